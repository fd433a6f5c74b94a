"""Redis decides in the server: one round trip, nothing twice after a lost reply, and what stands in clear is bound."""

from __future__ import annotations

import contextlib
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from token_store_backends import RedisBackend, looped

from coatcheck.pool.commands import (
    Acquire,
    Add,
    CleanUp,
    CommandOutcome,
    Done,
    Granted,
    LoginDone,
    Lost,
    MustLogIn,
    Release,
    Waiting,
)
from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.state import Policy
from coatcheck.pool.stores.address import open_async_store, open_store
from coatcheck.pool.stores.blob import StateBox
from coatcheck.pool.stores.header import sealed_of
from coatcheck.pool.stores.port import TokenStore
from coatcheck.tokens.keyring import KeyRing

OLD, NEW = b"old key " * 4, b"new key " * 4
RIGHT, WRONG = (b"r" * 16,), (b"w" * 16,)
POLICY = Policy(per_user=2, signs_out=True, lease_s=300.0, logout_timeout_s=300.0, login_timeout_s=300.0)


@pytest.fixture(scope="module")
def server() -> Iterator[Any]:
    backend = RedisBackend()
    backend.start()
    yield backend
    backend.stop()


@pytest.fixture
def name() -> str:
    return secrets.token_hex(8)


def open_on(url: str, name: str, ring: KeyRing | None = None) -> TokenStore:
    return open_store(url, StateBox(ring or KeyRing([OLD]), name, POLICY))


def ask(store: TokenStore, command: Any, user: str = "ann") -> Any:
    return store.apply(user, command).reply


def log_in(store: TokenStore, user: str = "ann", whose: tuple[bytes, ...] = (), value: str = "token") -> Granted:
    granted = ask(store, LoginDone(ask(store, Acquire(credentials=whose), user).fence, value, 900.0), user)
    assert type(granted) is Granted
    return granted


def key_of(server: Any, store: Any, user: str = "ann") -> str:
    key: str = store._calls.key(user)
    assert server.redis.exists(key)
    return key


def test_a_command_is_one_round_trip_however_many_processes_there_are(server: Any, name: str) -> None:
    stores = [open_on(server.url, name) for _ in range(3)]
    ask(stores[0], Release(log_in(stores[0]).fence))
    for store in stores:
        ask(store, CleanUp())  # connections and script are there from now on

    def calls() -> int:
        return sum(stat["calls"] for kind, stat in server.redis.info("commandstats").items() if "eval" in kind)

    before = calls()
    for number in range(30):
        store = stores[number % 3]
        assert ask(store, Release(ask(store, Acquire()).fence)) == Done()
    assert calls() - before == 60
    for store in stores:
        store.close()


def test_a_server_that_forgot_the_script_is_told_it_again(server: Any, name: str) -> None:
    store = open_on(server.url, name)
    granted = log_in(store)
    server.redis.script_flush()
    assert ask(store, Release(granted.fence)) == Done()
    server.redis.script_flush()
    assert ask(store, Acquire()).value == "token"
    store.close()


class Way:
    """Everything to a port and back, but some replies: they are eaten, and the connection breaks."""

    def __init__(self, port: int) -> None:
        self._to = port
        self._server = socket.create_server(("127.0.0.1", 0))
        self.url = f"redis://127.0.0.1:{self._server.getsockname()[1]}/1"
        self.eat = False
        self.eaten = 0
        self._closed = False
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                near = self._server.accept()[0]
            except OSError:
                assert self._closed
                return
            far = socket.create_connection(("127.0.0.1", self._to))
            threading.Thread(target=self._carry, args=(near, far), daemon=True).start()
            threading.Thread(target=self._carry_back, args=(far, near), daemon=True).start()

    def _carry(self, near: socket.socket, far: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := near.recv(65_536):
                far.sendall(data)

    def _carry_back(self, far: socket.socket, near: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := far.recv(65_536):
                if self.eat:
                    self.eat, self.eaten = False, self.eaten + 1
                    near.shutdown(socket.SHUT_RDWR)
                    far.shutdown(socket.SHUT_RDWR)
                    return
                near.sendall(data)

    def close(self) -> None:
        self._closed = True
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()


@pytest.mark.parametrize("awaited", [False, True], ids=["threads", "asyncio"])
def test_a_call_that_is_repeated_after_a_lost_reply_changes_nothing_twice(
    server: Any, name: str, awaited: bool
) -> None:
    way = Way(server.port)
    box = StateBox(KeyRing([OLD]), name, POLICY)
    store: Any = looped(lambda: open_async_store(way.url, box)) if awaited else open_store(way.url, box)
    ask(store, CleanUp())  # the connection is there, and the script

    def unheard(command: Any) -> CommandOutcome:
        way.eat, before = True, way.eaten
        outcome: CommandOutcome = store.apply("ann", command)
        assert way.eaten == before + 1, "and asked again"
        return outcome

    slot = unheard(Acquire()).reply
    assert type(slot) is MustLogIn
    assert type(unheard(LoginDone(slot.fence, "token", 900.0)).reply) is Granted
    assert unheard(Release(slot.fence, "refreshed")).reply == Done()
    again = unheard(Acquire()).reply
    assert type(again) is Granted
    assert (again.value, again.uses) == ("refreshed", 2)
    unheard(Acquire())
    waiting = unheard(Acquire()).reply
    assert type(waiting) is Waiting
    ((state, _),) = store.look().values()
    assert (len(state.leases), len(state.tickets), state.counters.logins) == (2, 1, 1)
    dropped = unheard(Release(again.fence, keep=False))
    assert dropped.reply == Done(0)
    assert [parting.value for parting in dropped.partings] == ["refreshed"], "it is logged out"
    ((state, _),) = store.look().values()
    assert (len(state.closing), state.counters.drops) == (1, 1)
    store.close()
    way.close()


def test_what_is_kept_for_lost_replies_has_a_bound(server: Any, name: str) -> None:
    stores: list[Any] = [open_on(server.url, name) for _ in range(2)]
    key = None
    for number in range(200):
        store = stores[number % 2]
        store._calls._lines.clear()  # as if another process came
        ask(store, Acquire(may_wait=False))
        key = key or key_of(server, store)
        for field, note in server.redis.hgetall(key).items():
            if field.startswith(b"call:"):  # a day passes
                call, at, reply = note.split(b" ", 2)
                server.redis.hset(key, field, b"%s %.3f %s" % (call, float(at) - 86_400, reply))
    assert key is not None
    assert server.redis.hlen(key) < 80
    for store in stores:
        store.close()


# -- whoever can write to the server: numbers, not values


def change(server: Any, store: TokenStore, edit: Callable[[dict[str, Any]], None], user: str = "ann") -> None:
    key = key_of(server, store, user)
    state = msgspec.msgpack.decode(server.redis.hget(key, "s"))
    edit(state)
    server.redis.hset(key, "s", msgspec.msgpack.encode(state))


def test_a_value_cannot_be_moved_to_another_user_or_to_other_credentials(server: Any, name: str) -> None:
    store = open_on(server.url, name)
    for user in ("ann", "bob"):
        ask(store, Release(log_in(store, user, RIGHT, f"{user}'s").fence), user)
    stolen = msgspec.msgpack.decode(server.redis.hget(key_of(server, store), "s"))["free"]

    def put_in(state: dict[str, Any]) -> None:
        state["free"] = stolen

    change(server, store, put_in, "bob")
    with pytest.raises(StoreUnavailable, match="cannot be opened: forged"):
        ask(store, Acquire(credentials=RIGHT), "bob")
    assert type(ask(store, Acquire(credentials=RIGHT), "bob")) is MustLogIn, "it is not in the way"

    for lie in ({"credentials": WRONG[0].hex()}, {"credentials": WRONG[0].hex(), "sealed_for": WRONG[0].hex()}):
        change(server, store, lambda state, lie=lie: state.update(free=[stolen[0] | lie]))  # type: ignore[misc]
        with pytest.raises(StoreUnavailable, match="cannot be opened: forged"):
            ask(store, Acquire(credentials=WRONG))
    store.close()


def test_what_a_login_brings_is_sealed_for_those_who_began_it(server: Any, name: str) -> None:
    """Though somebody says meanwhile that it is of others; also where another process ends it."""
    store, other = open_on(server.url, name), open_on(server.url, name)
    slot = ask(store, Acquire(credentials=RIGHT))

    def lie(state: dict[str, Any]) -> None:
        state["leases"][0]["credentials"] = WRONG[0].hex()

    change(server, store, lie)
    ask(store, LoginDone(slot.fence, "right's", 900.0))
    ask(store, Release(slot.fence, "refreshed"))
    with pytest.raises(StoreUnavailable, match="cannot be opened: forged"):
        ask(store, Acquire(credentials=WRONG))
    slot = ask(store, Acquire(credentials=RIGHT), "bob")
    assert ask(other, LoginDone(slot.fence, "of another", 900.0), "bob").value == "of another"
    assert ask(store, Release(slot.fence, "refreshed"), "bob") == Done()
    assert ask(other, Acquire(credentials=RIGHT), "bob").value == "refreshed"
    assert ask(other, Release(5, "never lent"), "bob") == Lost()
    for each in (store, other):
        each.close()


@pytest.mark.parametrize("ends", ["refreshed", "kept"])
def test_a_change_of_the_key_costs_no_login(server: Any, name: str, ends: str) -> None:
    ring = KeyRing([OLD])
    store = open_on(server.url, name, ring)
    ask(store, Release(log_in(store, whose=RIGHT).fence))
    ring.change([OLD, NEW], 1)
    by_new = (b"n" * 16, *RIGHT)
    held = ask(store, Acquire(credentials=by_new))
    assert held.value == "token"
    assert ask(store, Release(held.fence, "token" if ends == "refreshed" else None)) == Done()
    ring.change([NEW], 0)
    assert ask(store, Acquire(credentials=by_new[:1])).value == "token", "it was sealed anew"
    store.close()


def test_a_process_without_the_key_changes_nothing_and_a_lost_key_is_no_end(server: Any, name: str) -> None:
    store, stranger = open_on(server.url, name), open_on(server.url, name, KeyRing([NEW]))
    ask(store, Release(log_in(store).fence))
    before = server.redis.hgetall(key_of(server, store))
    for command in (Acquire(), CleanUp(), Add("mine", 60.0)):
        with pytest.raises(StoreUnavailable, match="cannot be opened: unknown_key"):
            ask(stranger, command)
    assert server.redis.hgetall(key_of(server, store)) == before
    change(server, store, lambda state: state["free"][0].update(expires_at=1.0, used_at=0.0))
    outcome = stranger.apply("ann", Acquire())
    assert type(outcome.reply) is MustLogIn, "the token has expired"
    assert outcome.partings == (), "it cannot be logged out"
    for each in (store, stranger):
        each.close()


def test_the_release_before_refuses_what_this_one_writes(server: Any, name: str) -> None:
    """It knows the field ``s`` as sealed bytes: it must not begin a new state beside ours."""
    store: Any = open_on(server.url, name)
    log_in(store)
    stored = server.redis.hget(key_of(server, store), "s")
    with pytest.raises(StoreUnavailable, match="cannot be opened: unknown_format"):
        store._calls.box.open("ann", stored)
    store.close()


def test_a_state_of_the_release_before_is_converted_once_and_costs_no_login(server: Any, name: str) -> None:
    store: Any = open_on(server.url, name)
    held = log_in(store, whose=RIGHT)
    ask(store, Release(held.fence))
    key = key_of(server, store)
    ((state, _),) = store.look().values()
    server.redis.hset(key, mapping={"s": sealed_of(store._calls.box.seal("ann", state)), "v": b"version"})
    assert store.look()["ann"][0] == state
    again = ask(store, Acquire(credentials=RIGHT))
    assert (again.value, again.uses) == ("token", 2)
    assert server.redis.hget(key, "v") is None
    assert b"token_id" in server.redis.hget(key, "s")
    store.close()
