"""The contract of the token store port: every store, for threads and for asyncio, takes this one suite."""

from __future__ import annotations

import secrets
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from token_store_backends import KEY, TOKEN_BACKENDS, TokenBackend, wait

from coatcheck.pool import rules
from coatcheck.pool.commands import (
    Acquire,
    Add,
    Both,
    CleanUp,
    Command,
    Done,
    Extend,
    Granted,
    Leave,
    LogInAhead,
    LoginDone,
    LoginEnded,
    LogoutEnded,
    Lost,
    MustLogIn,
    NoSlot,
    NoToken,
    NotTried,
    QueueFull,
    RefuseToken,
    Release,
    Remove,
    Reset,
    TakeIdle,
    Then,
    Waiting,
)
from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.state import MAX_FAILING, Failing, Policy, new_user
from coatcheck.pool.stores.blob import TICKET_LIFE_S
from coatcheck.pool.stores.port import TokenStore

POLICY = Policy(per_user=2, max_uses=50, lease_s=30.0)
SHORT = msgspec.structs.replace(POLICY, lease_s=0.4)
TOKEN = "a token that nobody else may read"

Open = Callable[..., TokenStore]


@pytest.fixture(scope="module", params=list(TOKEN_BACKENDS))
def token_backend(request: pytest.FixtureRequest) -> Iterator[TokenBackend]:
    backend = TOKEN_BACKENDS[request.param]()
    backend.start()
    yield backend
    backend.stop()


@pytest.fixture(params=[False, True], ids=["threads", "asyncio"])
def client(request: pytest.FixtureRequest, token_backend: TokenBackend) -> Iterator[Open]:
    """Opens clients of one pool that no other test uses."""
    opened: list[TokenStore] = []
    name = secrets.token_hex(8)

    def open_client(policy: Policy = POLICY, key: bytes = KEY, name: str = name) -> TokenStore:
        store = token_backend.client(policy, name, awaited=request.param, key=key)
        opened.append(store)
        return store

    yield open_client
    for store in opened:
        store.close()


def ask(store: TokenStore, command: Command, user: str = "SADMIN") -> Any:
    return store.apply(user, command).reply


def log_in(store: TokenStore, user: str = "SADMIN", token: str = TOKEN) -> Granted:
    slot = ask(store, Acquire(may_wait=False), user)
    assert type(slot) is MustLogIn
    granted = ask(store, LoginDone(slot.fence, token, 60.0), user)
    assert type(granted) is Granted
    return granted


def test_a_lease_from_login_to_the_next_borrower(client: Open) -> None:
    first, second = client(), client()
    granted = log_in(first)
    assert (granted.value, granted.uses) == (TOKEN, 1)
    assert 0 < granted.remaining_s <= 30.0
    assert ask(first, Release(granted.fence, "refreshed")) == Done()
    again = ask(second, Acquire())
    assert (again.value, again.uses) == ("refreshed", 2)
    assert again.fence > granted.fence
    assert ask(second, Release(again.fence, keep=False)) == Done(0)
    assert type(ask(first, Acquire())) is MustLogIn, "a dropped token is gone"


def test_a_number_that_is_not_current_changes_nothing(client: Open) -> None:
    store = client()
    granted = log_in(store)
    assert ask(store, Release(granted.fence)) == Done()
    held = ask(store, Acquire())
    for fence in (granted.fence, held.fence + 1, 1):
        for command in (Release(fence, "x"), Extend(fence), LoginDone(fence, "x", 60.0), LogoutEnded(fence)):
            assert ask(store, command) == Lost(), command
    assert ask(store, LoginDone(held.fence, "x", 60.0)) == Lost(), "a lease is no login"
    still = ask(store, Extend(held.fence))
    assert (still.value, still.fence) == (TOKEN, held.fence)
    assert ask(store, Release(held.fence)) == Done()


def test_a_refused_token_is_dead_unless_it_is_fresh_from_a_login(client: Open) -> None:
    first, second = client(), client()
    early, late = log_in(first), log_in(first)
    assert ask(first, Release(late.fence)) == Done()
    again = ask(second, Acquire())
    assert ask(second, RefuseToken(again.fence)) == Done(), "an old one: whoever refused it is believed"
    assert ask(second, Release(again.fence, keep=False)) == Done(0)
    fresh = log_in(first)
    assert ask(first, RefuseToken(fresh.fence)) == Done(0), "opened for this very call"
    assert ask(first, Release(fresh.fence)) == Done()
    assert ask(second, Release(early.fence)) == Done()
    early = ask(second, Acquire())
    assert ask(first, RefuseToken(early.fence)) == Done(), "older than the refusal of before"
    assert ask(first, RefuseToken(1)) == Lost()


def test_slots_and_the_queue_have_ends(client: Open) -> None:
    store = client(msgspec.structs.replace(POLICY, max_waiting=2))
    slots = [ask(store, Acquire()) for _ in range(2)]
    assert [type(slot) for slot in slots] == [MustLogIn, MustLogIn]
    assert ask(store, Acquire(may_wait=False)) == NoToken()
    waiting = [ask(store, Acquire()) for _ in range(2)]
    assert [type(reply) for reply in waiting] == [Waiting, Waiting]
    assert ask(store, Acquire()) == QueueFull()
    assert ask(store, Add("one more", 60.0)) == NoSlot()
    assert ask(store, LoginEnded(slots[0].fence, failed=False)) == Done()
    assert ask(store, Acquire()) == QueueFull(), "a newcomer does not pass those who wait"
    assert type(ask(store, Acquire(waiting[1].ticket))) is Waiting, "nor does the second pass the first"
    assert type(ask(store, Acquire(waiting[0].ticket))) is MustLogIn


def test_who_lost_the_place_was_let_in_before(client: Open) -> None:
    store = client(msgspec.structs.replace(POLICY, per_user=1, max_waiting=1))
    held = log_in(store)
    first = ask(store, Acquire())
    assert type(first) is Waiting
    assert ask(store, Acquire()) == QueueFull()
    again = ask(store, Acquire(first.ticket + 1_000))  # as after a pause in which the ticket ended
    assert type(again) is Waiting
    assert ask(store, Acquire()) == QueueFull()
    assert ask(store, Release(held.fence)) == Done()
    assert type(ask(store, Acquire(again.ticket))) is Waiting, "at the end of the queue"
    assert type(ask(store, Acquire(first.ticket))) is Granted


def test_only_logins_that_brought_a_session_count_for_their_rate(client: Open) -> None:
    store = client(msgspec.structs.replace(POLICY, login_every_s=60.0))
    for ended in (LoginEnded, lambda fence: LoginEnded(fence, failed=False)):
        slot = ask(store, Acquire(credentials=RIGHT if ended is LoginEnded else ()))
        assert type(slot) is MustLogIn
        assert type(ask(store, ended(slot.fence))) is Done
    assert type(log_in(store)) is Granted
    assert type(ask(store, Acquire(credentials=WRONG, may_wait=False))) is NoToken, "one a minute"


def wait_for(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_what_a_lost_key_sealed_is_in_the_way_of_nobody_once_it_has_ended(
    client: Open, token_backend: TokenBackend
) -> None:
    if not token_backend.shared:
        assert token_backend.url == "", "its key is as old as what it seals"
        return
    store, later = client(SHORT), client(SHORT, key=b"another key, of 32 bytes at leas")
    for user in ("ended", "idle"):
        slot = ask(store, Acquire(), user)
        granted = ask(store, LoginDone(slot.fence, TOKEN, 0.3), user)
        ask(store, Release(granted.fence), user)
    other = ask(later, Acquire(), "another")
    ask(later, LoginDone(other.fence, TOKEN, 60.0), "another")
    assert TOKEN in {holding.token.value for holding in later.look()["another"][0].leases.values() if holding.token}

    def answers(command: Command, user: str) -> Any:
        try:
            return ask(later, command, user)
        except StoreUnavailable as error:
            assert "unknown_key" in str(error)
            return None

    wait_for(lambda: type(answers(Acquire(), "ended")) is MustLogIn)
    wait_for(lambda: answers(CleanUp(), "idle"))
    later.forget()
    assert "idle" not in later.look()
    assert "idle" not in store.look(), "it is deleted"


def test_an_operator_resets_what_a_lost_key_sealed(client: Open, token_backend: TokenBackend) -> None:
    if not token_backend.shared:
        assert token_backend.url == "", "its key is as old as what it seals"
        return
    store, later = client(), client(key=b"another key, of 32 bytes at leas")
    granted = log_in(store, "ann")
    ask(store, Release(granted.fence), "ann")
    with pytest.raises(StoreUnavailable, match="unknown_key"):
        ask(later, Acquire(), "ann")
    assert later.apply("ann", Reset()).partings == (), "it cannot be logged out"
    slot = ask(later, Acquire(), "ann")
    assert type(slot) is MustLogIn
    assert slot.fence > granted.fence


def test_an_overdue_lease_is_dropped_and_never_handed_on(client: Open) -> None:
    store, other = client(SHORT), client(SHORT)
    lost, extended = 0, None
    while type(extended) is not Granted:  # once more if this machine stood still for longer than the lease
        lost += 1
        assert lost < 20
        granted = log_in(store)
        extended = ask(store, Extend(granted.fence))
    assert extended.remaining_s < 0.41
    time.sleep(0.45)
    replacement = ask(other, Acquire())
    assert type(replacement) is MustLogIn, "the slot is free, the token is not"
    assert ask(store, Release(granted.fence, "late")) == Lost()
    assert ask(store, Extend(granted.fence)) == Lost()
    state, _ = store.look()["SADMIN"]
    assert not state.free
    assert state.counters.lost == lost


def test_what_is_dropped_holds_its_slot_until_it_is_logged_out(client: Open) -> None:
    policy = msgspec.structs.replace(POLICY, per_user=1, signs_out=True, logout_timeout_s=20.0)
    store = client(policy)
    granted = log_in(store)
    outcome = store.apply("SADMIN", Release(granted.fence, keep=False))
    (parting,) = outcome.partings
    assert parting.value == TOKEN
    assert ask(store, Acquire(may_wait=False)) == NoToken(), "the upstream still counts that session"
    assert ask(store, LogoutEnded(parting.fence)) == Done()
    assert type(ask(store, Acquire(may_wait=False))) is MustLogIn


def test_who_came_first_is_served_first(client: Open) -> None:
    store, other = (client(msgspec.structs.replace(POLICY, per_user=1)) for _ in range(2))
    granted = log_in(store)
    first, second = ask(store, Acquire()), ask(other, Acquire())
    assert ask(store, Release(granted.fence)) == Done()
    assert type(ask(other, Acquire(second.ticket))) is Waiting
    assert type(ask(store, Acquire(first.ticket))) is Granted


def test_first_come_first_served_and_the_dead_do_not_block(client: Open, token_backend: TokenBackend) -> None:
    store = client(msgspec.structs.replace(POLICY, per_user=1))
    granted = log_in(store)
    dead, alive = ask(store, Acquire()), ask(store, Acquire())
    until = time.monotonic() + (TICKET_LIFE_S + 0.5 if token_backend.shared else 0.0)
    while time.monotonic() < until:
        assert type(ask(store, Acquire(alive.ticket))) is Waiting
        wait(store, "SADMIN", alive.ticket, 0.3)
    if not token_backend.shared:  # in one process nobody can die alone; a caller who goes away says so
        ask(store, Leave(dead.ticket))
    assert ask(store, Release(granted.fence)) == Done()
    assert type(ask(store, Acquire(alive.ticket))) is Granted


def test_a_waiting_caller_is_woken(client: Open) -> None:
    store, other = (
        client(msgspec.structs.replace(POLICY, per_user=1)),
        client(msgspec.structs.replace(POLICY, per_user=1)),
    )
    granted = log_in(store)
    waiting = ask(other, Acquire())
    began = time.monotonic()
    timer = threading.Timer(0.2, lambda: store.apply("SADMIN", Release(granted.fence)))
    timer.start()
    wait(other, "SADMIN", waiting.ticket, 40.0)
    waited_s = time.monotonic() - began
    timer.join()
    assert waited_s < 20.0
    assert type(ask(other, Acquire(waiting.ticket))) is Granted
    began = time.monotonic()
    wait(other, "SADMIN", ask(other, Acquire()).ticket, 0.2)
    assert time.monotonic() - began < 20.0, "and wait() ends by itself"


def test_a_turn_that_came_before_the_wait_is_not_missed(client: Open) -> None:
    store = client(msgspec.structs.replace(POLICY, per_user=1))
    granted = log_in(store)
    waiting = ask(store, Acquire())
    assert ask(store, Release(granted.fence)) == Done()
    began = time.monotonic()
    wait(store, "SADMIN", waiting.ticket, 40.0)
    assert time.monotonic() - began < 20.0


def test_many_callers_never_share_a_token(client: Open) -> None:
    stores = [client(msgspec.structs.replace(POLICY, per_user=3, max_uses=1_000_000)) for _ in range(3)]
    users, problems, served = ["ann", "böb"], [], []
    held: dict[str, set[str]] = {user: set() for user in users}
    lock = threading.Lock()

    def borrow(number: int) -> None:
        store, user = stores[number % 3], users[number % 2]
        for turn in range(15):
            ticket, reply = 0, ask(store, Acquire(), user)
            while type(reply) is Waiting:
                ticket = reply.ticket
                wait(store, user, ticket, min(reply.again_s, 1.0))
                reply = ask(store, Acquire(ticket), user)
            if type(reply) is MustLogIn:
                reply = ask(store, LoginDone(reply.fence, f"{number}-{turn}-{user}", 60.0), user)
            with lock:
                if type(reply) is not Granted or reply.value in held[user] or len(held[user]) >= 3:
                    problems.append(reply)
                    return
                held[user].add(reply.value)
            time.sleep(0.001)
            with lock:
                held[user].discard(reply.value)
                served.append(number)
            ask(store, Release(reply.fence, keep=turn % 5 != 4), user)

    threads = [threading.Thread(target=borrow, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not problems
    assert len(served) == 8 * 15, "everybody was served"
    for state, _ in stores[0].look().values():
        assert not state.leases
        assert not state.tickets
        assert len(state.free) <= 3


def test_what_is_stored_is_sealed(client: Open, token_backend: TokenBackend) -> None:
    if not token_backend.shared:
        assert token_backend.url == "", "it leaves nothing anywhere"
        return
    store = client()
    granted = log_in(store)
    ask(store, Release(granted.fence, "refreshed " + TOKEN))
    raw = token_backend.raw()
    assert b"SADMIN" in raw, "this is the right place"
    assert TOKEN.encode() not in raw
    thief = client(key=secrets.token_bytes(32))
    with pytest.raises(StoreUnavailable, match="cannot be opened: unknown_key"):
        ask(thief, Acquire())
    assert ask(store, Acquire()).value == "refreshed " + TOKEN, "and nothing was lost"


def test_bytes_that_we_did_not_write_are_an_error(client: Open, token_backend: TokenBackend) -> None:
    if not token_backend.shared:
        assert token_backend.url == "", "nobody else can write there"
        return
    store = client()
    user = f"user-{secrets.token_hex(4)}"
    log_in(store, user)
    for raw in (b"\x00", b"x" * 200, b"\x01" + b"\x00" * 100):
        token_backend.overwrite(user, raw)
        with pytest.raises(StoreUnavailable, match="cannot be opened"):
            ask(store, Acquire(), user)
    assert type(ask(store, Acquire(), "another")) is MustLogIn


def test_a_state_of_another_user_or_pool_is_an_error(client: Open, token_backend: TokenBackend) -> None:
    if not token_backend.shared:
        assert token_backend.url == "", "nobody else can write there"
        return
    box = token_backend.box(POLICY, "another pool")
    user = f"user-{secrets.token_hex(4)}"
    store = client()
    log_in(store, user)
    for other, whose in ((box, user), (token_backend.box(POLICY, "default"), "another")):
        raw = token_backend.sealed(other, whose, new_user(1))
        token_backend.overwrite(user, raw)
        with pytest.raises(StoreUnavailable, match=r"cannot be opened: forged|cannot be opened: unknown_key"):
            ask(store, Acquire(), user)


def test_after_a_loss_old_numbers_fit_nothing(client: Open, token_backend: TokenBackend) -> None:
    store = client()
    granted = log_in(store)
    token_backend.lose()
    assert ask(store, Release(granted.fence)) == Lost()
    slot = ask(store, Acquire())
    assert type(slot) is MustLogIn
    assert slot.fence > granted.fence


def test_pools_and_users_of_any_name_are_strangers(client: Open) -> None:
    store, other = client(), client(name=secrets.token_hex(8))
    names = ["a", "A", "a}", "{a", "a:b", "ä", "日本", "a' OR '1'='1", "%s", "*", "x" * 1024]
    for name in names:
        ask(store, Release(log_in(store, name, f"token of {name}").fence), name)
    for name in names:
        assert ask(store, Acquire(), name).value == f"token of {name}"
    assert set(store.look()) == set(names)
    assert list(store.look("a")) == ["a"]
    assert store.look("nobody") == {}
    assert type(ask(other, Acquire(), "a")) is MustLogIn
    assert set(other.look()) == {"a"}


def test_asking_in_vain_leaves_nothing_behind(client: Open) -> None:
    store = client()
    assert store.look() == {}
    for command in (
        CleanUp(),
        Remove(),
        Release(5),
        Extend(5),
        LogoutEnded(5),
        Acquire(may_wait=False, may_login=False),
    ):
        assert type(ask(store, command, "nobody")) in (Done, Lost, NoToken)
    assert store.look() == {}
    store.forget()


def test_the_limits_of_whoever_borrows_are_told(client: Open, token_backend: TokenBackend) -> None:
    if not token_backend.shared:
        assert token_backend.url == "", "there is one pool, and it knows"
        return
    log_in(client())
    operator = client(msgspec.structs.replace(POLICY, per_user=999, max_uses=888))
    assert ask(operator, CleanUp()) == Done(0)
    state, _ = operator.look()["SADMIN"]
    assert state.limits == (POLICY.per_user, POLICY.max_uses)


def test_idle_users_are_forgotten_and_others_are_not(client: Open) -> None:
    store = client()
    busy = log_in(store, "busy")
    free = log_in(store, "free")
    ask(store, Release(free.fence), "free")
    failing = ask(store, Acquire(), "failing")
    ask(store, LoginEnded(failing.fence), "failing")
    gone = log_in(store, "gone")
    ask(store, Release(gone.fence, keep=False), "gone")
    store.forget()
    assert set(store.look()) == {"busy", "free", "failing"}
    assert ask(store, Release(busy.fence), "busy") == Done()
    assert log_in(store, "gone").fence > gone.fence


def test_a_store_that_is_away_says_so(token_backend: TokenBackend) -> None:
    if token_backend.url.startswith("redis"):
        url = "redis://127.0.0.1:1/0"
    elif token_backend.url.startswith("sqlite"):
        url = "sqlite:////nowhere/at/all/tokens.db"
    elif token_backend.url.startswith("postgresql"):
        url = "postgresql://coatcheck@127.0.0.1:1/postgres"
    else:
        assert not token_backend.shared, "the process itself is never away"
        return
    nowhere = type(token_backend)()
    nowhere.url = url
    for awaited in (False, True):
        store = nowhere.client(POLICY, "default", awaited=awaited)
        with pytest.raises(StoreUnavailable) as refusal:
            ask(store, Acquire())
        assert TOKEN not in str(refusal.value)
        store.close()


RIGHT, WRONG, NEW_KEY = (b"r" * 16,), (b"w" * 16,), b"n" * 16
WHOSE = st.sampled_from([(), RIGHT, WRONG, (NEW_KEY, *RIGHT)])


def open_session(store: TokenStore, whose: tuple[bytes, ...], token: str = TOKEN) -> Granted:
    slot = ask(store, Acquire(may_wait=False, credentials=whose))
    assert type(slot) is MustLogIn
    granted = ask(store, LoginDone(slot.fence, token, 60.0))
    assert type(granted) is Granted
    return granted


def test_a_token_is_lent_only_with_the_credentials_that_opened_it(client: Open) -> None:
    store, other = client(), client()
    ask(store, Release(open_session(store, RIGHT, "right's").fence))
    ask(store, Release(open_session(store, (), "nobody's").fence))
    for whose, token in ((RIGHT, "right's"), ((), "nobody's"), ((NEW_KEY, *RIGHT), "right's"), ((NEW_KEY,), "right's")):
        assert ask(other, Acquire(may_login=False, may_wait=False, credentials=WRONG)) == NoToken()
        granted = ask(other, Acquire(credentials=whose))
        assert granted.value == token
        assert ask(other, Release(granted.fence, token)) == Done()
    assert ask(store, Acquire(may_login=False, may_wait=False, credentials=RIGHT)) == NoToken(), "the key is another"


def test_an_idle_token_of_other_credentials_makes_room(client: Open) -> None:
    policy = msgspec.structs.replace(POLICY, signs_out=True, logout_timeout_s=20.0)
    store = client(policy)
    held = open_session(store, RIGHT, "held")
    ask(store, Release(open_session(store, RIGHT, "idle").fence))
    outcome = store.apply("SADMIN", Acquire(credentials=WRONG))
    assert type(outcome.reply) is Waiting, "the upstream still counts the session that is dropped"
    (parting,) = outcome.partings
    assert parting.value == "idle"
    again = store.apply("SADMIN", Acquire(outcome.reply.ticket, credentials=WRONG))
    assert (type(again.reply), again.partings) == (Waiting, ()), "one room is enough for one caller"
    assert ask(store, LogoutEnded(parting.fence)) == Done()
    assert type(ask(store, Acquire(outcome.reply.ticket, credentials=WRONG))) is MustLogIn
    assert type(ask(store, Extend(held.fence))) is Granted, "what is in use stays"


def test_back_offs_are_apart_and_do_not_make_room(client: Open) -> None:
    store = client(msgspec.structs.replace(POLICY, per_user=1, backoff_first_s=50.0))
    slot = ask(store, Acquire(credentials=WRONG))
    assert ask(store, LoginEnded(slot.fence)) == Done(0)
    live = open_session(store, RIGHT)
    waiting = ask(store, Acquire(credentials=WRONG))
    assert type(waiting) is Waiting
    assert ask(store, Release(live.fence)) == Done()
    again = ask(store, Acquire(waiting.ticket, credentials=WRONG))
    assert type(again) is Waiting
    assert 0 < again.limited_s <= 50.0
    assert type(ask(store, Acquire(credentials=RIGHT))) is Granted, "who cannot be served holds nobody up"


def test_refused_credentials_are_not_tried_and_their_number_is_bounded(client: Open) -> None:
    store = client()
    live = open_session(store, RIGHT)
    assert ask(store, Release(live.fence)) == Done()
    for number in range(MAX_FAILING):
        slot = ask(store, Acquire(credentials=(bytes([number]) * 16,)))
        assert ask(store, LoginEnded(slot.fence, refused=True)) == Done(0)
    for number in range(MAX_FAILING):
        assert ask(store, Acquire(credentials=(bytes([number]) * 16,))) == NotTried()
    one_more = ask(store, Acquire(may_wait=False, credentials=WRONG))
    assert type(one_more) is NoToken
    assert 0 < one_more.limited_s <= POLICY.backoff_max_s
    assert type(ask(store, Acquire(credentials=RIGHT))) is Granted
    assert type(ask(store, Acquire(credentials=RIGHT))) is MustLogIn, "who was right needs no place"
    state, _ = store.look("SADMIN")["SADMIN"]
    assert len(state.failing) == MAX_FAILING
    ask(store, Reset())
    assert type(ask(store, Acquire(credentials=(bytes(16),)))) is MustLogIn


def test_a_state_of_the_release_before_is_read_and_its_tokens_are_nobodys(
    client: Open, token_backend: TokenBackend
) -> None:
    if not token_backend.shared:
        assert token_backend.url == "", "nothing of before is kept"
        return
    name, user = "default", f"user-{secrets.token_hex(4)}"
    box, store = token_backend.box(POLICY, name), client(name=name)
    now_us = time.time_ns() // 1000
    far = time.time() + 60.0
    token = {"token_id": 1, "value": "of before", "life_s": 60.0, "expires_at": far, "used_at": far - 60.0}
    former = {"fence": now_us, "first_fence": now_us, "free": [token], "failures": 3, "retry_at": far}
    plain = b"\x01" + msgspec.msgpack.encode(former)
    ask(store, Release(log_in(store, user).fence), user)
    token_backend.overwrite(user, box._box.seal(plain, user.encode()))
    assert [token.value for token in store.look(user)[user][0].free] == ["of before"]
    for whose in ((), RIGHT):
        assert ask(store, Acquire(may_login=False, may_wait=False, credentials=whose), user) == NoToken()
    slots = [ask(store, Acquire(credentials=RIGHT), user) for _ in range(POLICY.per_user)]
    assert [type(slot) for slot in slots] == [MustLogIn] * POLICY.per_user, "they make room"
    later = b"\x03" + msgspec.msgpack.encode(former)
    token_backend.overwrite(user, box._box.seal(later, user.encode()))
    with pytest.raises(StoreUnavailable, match="a format that this version does not know"):
        ask(store, Acquire(), user)


COMMANDS = st.lists(
    st.one_of(
        st.builds(lambda wait, login, whose: ("acquire", wait, login, whose), st.booleans(), st.booleans(), WHOSE),
        st.builds(lambda which, keep: ("release", which, keep), st.integers(0, 5), st.booleans()),
        st.tuples(st.sampled_from(["login", "login_failed", "leave", "extend", "closed"]), st.integers(0, 5)),
        st.tuples(st.sampled_from(["idle", "remove", "remove softly", "clean"])),
        st.tuples(st.sampled_from(["add", "ahead"]), WHOSE),
        st.tuples(st.just("pass on"), st.integers(0, 5), WHOSE, st.booleans()),
    ),
    max_size=20,
)


@given(script=COMMANDS)
@settings(max_examples=12)
def test_every_store_is_the_rules_and_nothing_else(client: Open, script: list[tuple[Any, ...]]) -> None:
    policy = Policy(
        per_user=3, max_uses=4, lease_s=3_000.0, signs_out=True, backoff_first_s=0.0, logout_timeout_s=3_000
    )
    store, user = client(policy), secrets.token_hex(8)
    slot = ask(store, Acquire(), user)
    model = new_user(slot.fence - 1)
    assert rules.apply(model, policy, 1.0, Acquire()).reply == slot == MustLogIn(slot.fence)
    end = LoginEnded(slot.fence, failed=False)
    assert ask(store, end, user) == rules.apply(model, policy, 1.0, end).reply
    fences: list[int] = []
    tickets: list[int] = []
    partings: list[int] = []
    for step in script:
        command = command_of(step, fences, tickets, partings)
        outcome = store.apply(user, command)
        expected = rules.apply(model, policy, 1.0, command)
        assert timeless(outcome) == timeless(expected), command
        reply = outcome.reply.second if isinstance(outcome.reply, Both) else outcome.reply
        if isinstance(reply, Granted | MustLogIn) and reply.fence not in fences:
            fences.append(reply.fence)
        if isinstance(reply, Waiting) and reply.ticket not in tickets:
            tickets.append(reply.ticket)
        partings.extend(parting.fence for parting in outcome.partings)
    state = store.look(user)[user][0]
    assert [token.value for token in state.free] == [token.value for token in model.free]
    assert list(state.leases) == list(model.leases)
    assert state.counters == model.counters
    assert [(ticket.number, ticket.callers) for ticket in state.tickets] == [
        (ticket.number, ticket.callers) for ticket in model.tickets
    ]


def command_of(step: tuple[Any, ...], fences: list[int], tickets: list[int], partings: list[int]) -> Command:
    def pick(numbers: list[int], which: int) -> int:
        return numbers[which % len(numbers)] if numbers else 7

    match step:
        case ("acquire", wait, login, whose):
            return Acquire(tickets[-1] if tickets and not login else 0, wait, login, whose)
        case ("release", which, keep):
            return Release(pick(fences, which), f"refreshed {which}" if which % 2 else None, keep=keep)
        case ("login", which):
            return LoginDone(pick(fences, which), f"token {which}", 3_000.0)
        case ("login_failed", which):
            return LoginEnded(pick(fences, which), failed=which % 2 == 0, refused=which == 4)
        case ("leave", which):
            return Leave(pick(tickets, which))
        case ("extend", which):
            return Extend(pick(fences, which))
        case ("closed", which):
            return LogoutEnded(pick(partings, which))
        case ("add", whose):
            return Add("added", 3_000.0, whose)
        case ("pass on", which, whose, ahead):
            asking = Acquire(pick(tickets, which), credentials=whose, more=which % 3, ahead=ahead)
            return Then(Leave(0, which) if which == 5 else Release(pick(fences, which)), asking)
        case ("idle",):
            return TakeIdle(0.0)
        case ("remove",):
            return Remove()
        case ("remove softly",):
            return Remove(soft=True)
        case ("ahead", whose):
            return LogInAhead(2, whose)
    return CleanUp()


def test_a_shared_value_is_swapped_only_if_it_is_the_one_that_was_read(client: Open) -> None:
    store, other = client(), client()
    assert store.shared_users() == []
    nothing, now = store.read_shared("ada")
    assert nothing is None
    assert store.swap_shared("ada", None, b"one", 60.0)
    assert not other.swap_shared("ada", None, b"another", 60.0)
    assert not other.swap_shared("ada", b"unknown", b"another", 60.0)
    assert other.swap_shared("ada", b"one", b"two", 60.0)
    assert other.swap_shared("ada", b"one", b"two", 60.0), "the same again: its answer may have been lost"
    assert not store.swap_shared("ada", b"one", b"three", 60.0)
    found, later = store.read_shared("ada")
    assert (found, later >= now) == (b"two", True)
    assert store.swap_shared("böb", None, b"x", 0.0)
    assert sorted(other.shared_users()) == ["ada", "böb"]
    assert store.look() == {}, "apart from the states"
    assert not store.swap_shared("ada", b"one", None, 0.0)
    assert store.swap_shared("ada", b"two", None, 0.0)
    assert other.read_shared("ada")[0] is None
    assert client(name=secrets.token_hex(8)).read_shared("böb")[0] is None, "another pool's"


def test_of_many_swaps_at_once_one_is_done(client: Open) -> None:
    stores = [client() for _ in range(3)]
    done: list[bytes] = []

    def swap(number: int) -> None:
        value = b"value %d" % number
        if stores[number % 3].swap_shared("ada", None, value, 60.0):
            done.append(value)

    threads = [threading.Thread(target=swap, args=(number,)) for number in range(9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert done == [stores[0].read_shared("ada")[0]]


AHEAD_S = 3600.0
LIMITED = msgspec.structs.replace(POLICY, backoff_max_s=2.0, login_every_s=1.0, login_burst=2)


@pytest.mark.parametrize("failed", [True, False], ids=["failed", "done"])
def test_after_a_login_under_a_clock_that_was_ahead_the_next_one_waits_no_longer_than_it_may(
    client: Open, token_backend: TokenBackend, failed: bool
) -> None:
    name = secrets.token_hex(8)
    store = client(LIMITED, name=name)
    assert isinstance(ask(store, Acquire()), MustLogIn)
    (state, now), *_ = store.look("SADMIN").values()
    (fence,) = state.leases
    then = now + AHEAD_S
    rules.apply(state, LIMITED, then, LoginEnded(fence, failed=failed))
    for _ in range(2):
        begun = rules.apply(state, LIMITED, then, Acquire()).reply
        if isinstance(begun, MustLogIn):
            rules.apply(state, LIMITED, then, LoginDone(begun.fence, f"token {begun.fence}", 3000.0))
    token_backend.put_back(name, "SADMIN", state)
    reply = ask(store, Acquire())
    assert isinstance(reply, Waiting)
    assert reply.limited_s <= 2.0
    (state, now), *_ = store.look("SADMIN").values()
    assert all(holding.deadline <= now + LIMITED.lease_s for holding in state.leases.values())
    assert all(failing.retry_at() <= now + 2.0 for failing in state.failing)
    assert state.rate_at <= now + 2.0


def test_a_reset_frees_a_user_who_is_locked_up(client: Open, token_backend: TokenBackend) -> None:
    name = secrets.token_hex(8)
    store = client(LIMITED, name=name)
    assert isinstance(ask(store, Acquire()), MustLogIn)
    (state, now), *_ = store.look("SADMIN").values()
    state.rate_at, state.failing = now + AHEAD_S, [Failing(b"", 3, now, AHEAD_S)]
    token_backend.put_back(name, "SADMIN", state)
    assert isinstance(ask(store, Acquire(may_wait=False)), NoToken)
    assert ask(store, Reset()) == Done(0)
    assert isinstance(ask(store, Acquire()), MustLogIn)


def timeless(outcome: Any) -> Any:
    """An outcome without the times in it, which depend on the clock."""
    first = None
    reply = outcome.reply
    if isinstance(reply, Both):
        first, reply = reply.first, reply.second
    if isinstance(reply, Granted):
        reply = msgspec.structs.replace(reply, remaining_s=0.0, idle_s=0.0)
    if isinstance(reply, Waiting):
        reply = (reply.ticket, reply.hopeless)
    return first, reply, [(parting.fence, parting.value) for parting in outcome.partings]
