"""Stores of items when processes fork, servers change their parts, and the way there is long, or silently gone."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from store_backends import PASSWORD, RedisBackend, until
from take_once_backends import RedisItemBackend, client_of
from way import Way

from coatcheck import resp, sqlite_line
from coatcheck.stores.address import StoreAddress
from coatcheck.stores.session_server_url import SessionServerAddress
from coatcheck.stores.take_once.blocking import CONNECT_LIMIT_S, MAX_IDLE, MAX_UNREAD, BlockingItems
from coatcheck.stores.take_once.opening import items_at, items_in_a_file
from coatcheck.stores.take_once.session_server import SessionServerRequests
from coatcheck.stores.take_once.sqlite import RETRY_S
from coatcheck.take_once.port import TakeOnceUnavailable
from file_locks import is_taken

LIFE_MS = 60_000
PATIENCE_S = 30.0


def key() -> bytes:
    return secrets.token_bytes(32)


def nonce() -> bytes:
    return secrets.token_bytes(16)


def eventually(holds: Callable[[], object]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- SQLite ------------------------------------------------------------------------------------------------------------

FORKED = """
import os, subprocess, sys
from coatcheck.stores.take_once.opening import items_in_a_file
path, key = sys.argv[1], bytes.fromhex(sys.argv[2])
ours = items_in_a_file("items", path, 5.0).for_threads()
assert ours.check(5.0)
(read, write), (heard, say) = os.pipe(), os.pipe()
if not os.fork():
    child = items_in_a_file("items", path, 5.0).for_threads()
    assert child.put(key, b"item", 60_000, b"", 5.0)
    os.write(say, b"x")
    os.read(read, 1)
    print("child", child.take(key, b"c" * 16, 5.0), flush=True)
    os._exit(0)
os.read(heard, 1)
ours.close()
other = "import sys; from coatcheck.stores.take_once.opening import items_in_a_file as items; " \\
    "print('other', items('items', sys.argv[1], 5.0).for_threads().take(bytes.fromhex(sys.argv[2]), b'o' * 16, 5.0))"
print(subprocess.check_output([sys.executable, "-c", other, path, key.hex()], text=True), end="", flush=True)
os.write(write, b"x")
os.wait()
"""


def test_a_forked_child_and_its_parent_have_file_locks_of_their_own(tmp_path: Path) -> None:
    """The parent had the file open at the fork, and closes it while the child uses it: neither may remove the journal
    under the other, or both would have the item."""
    words = [sys.executable, "-c", FORKED, str(tmp_path / "items.db"), key().hex()]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    assert said.splitlines() == ["other b'item'", "child None"]


BUSY = """
import os, sys, threading, time
from coatcheck.stores.take_once.opening import items_in_a_file
path = sys.argv[1]
ours = items_in_a_file("items", path, 5.0).for_threads()
inside = threading.Event()
def slow(connection):
    inside.set()
    time.sleep(0.3)
threading.Thread(target=ours._run, args=(slow, 5.0)).start()
inside.wait()
if not os.fork():
    time.sleep(0.5)
    child = items_in_a_file("items", path, 5.0).for_threads()
    print(child.put(b"k" * 32, b"item", 60_000, b"", 5.0), flush=True)
    os._exit(0)
os.wait()
"""


def test_a_fork_waits_for_a_call_that_is_under_way(tmp_path: Path) -> None:
    words = [sys.executable, "-c", BUSY, str(tmp_path / "items.db")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=True).stdout
    assert said == "True\n"


def test_who_waits_for_the_file_comes_before_the_process_that_has_just_had_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or a busy process would lock the others out for seconds, as one web server did with sessions."""
    monkeypatch.setattr(sqlite_line, "PATIENCE_S", 60.0)
    first, second = (items_in_a_file("items", tmp_path / "items.db", 60.0).for_threads() for _ in range(2))
    assert first.check(60.0)
    assert second.check(60.0)
    line = os.open(tmp_path / "items.db-line", os.O_CREAT | os.O_RDWR)
    order: list[str] = []

    def call(items: Any, name: str) -> None:
        items._run(lambda connection: order.append(name), 60.0)

    def hold(_: Any) -> threading.Thread:
        waiting = threading.Thread(target=call, args=(second, "who waited"))
        waiting.start()
        eventually(lambda: is_taken(line))
        return waiting

    for _ in range(10):
        waiting = first._run(hold, 60.0)
        call(first, "who had it")
        waiting.join(60)
    assert order == ["who waited", "who had it"] * 10
    os.close(line)
    first.close()
    second.close()


def test_on_a_loop_a_file_that_was_locked_is_in_reach_again(tmp_path: Path) -> None:
    path = str(tmp_path / "items.db")
    holder = items_in_a_file("items", path, 5.0).for_threads()

    async def story() -> None:
        store = items_in_a_file("items", path, 0.05).for_a_loop()
        await store.open()
        assert store.reachable
        locked, free = threading.Event(), threading.Event()

        def hold(_: object) -> None:
            locked.set()
            free.wait(PATIENCE_S)

        thread = threading.Thread(target=holder._run, args=(hold, 5.0))  # type: ignore[attr-defined]
        thread.start()
        await asyncio.to_thread(locked.wait)
        with pytest.raises(TakeOnceUnavailable):
            await store.put(key(), b"item", LIFE_MS)
        assert not store.reachable
        free.set()
        thread.join()
        await asyncio.sleep(RETRY_S)
        assert store.reachable, "nobody called it meanwhile, and new sessions may name it again"
        assert await store.put(key(), b"item", LIFE_MS)
        await store.aclose()

    asyncio.run(story())


# -- Redis -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisItemBackend]:
    backend = RedisItemBackend(tmp_path, True)
    backend.start()
    yield backend
    backend.stop()


def raw(backend: RedisItemBackend, *words: bytes) -> bytes:
    assert isinstance(backend.server, RedisBackend)
    return backend.server.raw(*words)


@pytest.mark.parametrize("is_asked_meanwhile", [False, True], ids=["idle", "asked"])
@pytest.mark.parametrize("in_threads", [False, True], ids=["loop", "threads"])
def test_a_server_that_was_replaced_and_promoted_again_gives_nothing_out_twice(
    redis: RedisItemBackend, in_threads: bool, is_asked_meanwhile: bool, tmp_path: Path
) -> None:
    """Its connections outlive both, and its data is that of the other one, where nobody had taken anything."""
    (tmp_path / "other").mkdir()
    other = RedisItemBackend(tmp_path / "other")
    other.start()

    def follow(one: RedisItemBackend, whom: RedisItemBackend) -> None:
        raw(one, b"CONFIG", b"SET", b"masterauth", PASSWORD.encode())
        raw(whom, b"CONFIG", b"SET", b"repl-diskless-sync-delay", b"0")
        raw(one, b"REPLICAOF", b"127.0.0.1", whom.place().encode())
        eventually(lambda: b"master_link_status:up" in raw(one, b"INFO", b"replication"))

    async def story() -> None:
        store, place = client_of("redis", redis.place(), in_threads=in_threads), key()
        await store.open()
        await until(lambda: store.reachable)
        await asyncio.to_thread(follow, other, redis)
        assert await store.put(place, b"item", LIFE_MS)
        eventually(lambda: b"item" in raw(other, b"KEYS", b"*"))
        raw(other, b"REPLICAOF", b"NO", b"ONE")
        assert await store.take(place, nonce()) == b"item"
        await asyncio.to_thread(follow, redis, other)
        if is_asked_meanwhile:
            with pytest.raises(TakeOnceUnavailable):
                await store.take(place, nonce())
        raw(redis, b"REPLICAOF", b"NO", b"ONE")
        assert b"kept" not in raw(redis, b"KEYS", b"*"), "what it has is what the other one had"
        assert await store.take(place, nonce()) is None
        assert await store.put(place, b"new", LIFE_MS), "and it goes on"
        assert await store.take(place, nonce()) == b"new"
        await store.aclose()

    try:
        asyncio.run(story())
    finally:
        other.stop()


@pytest.fixture
def way(redis: RedisItemBackend) -> Iterator[Way]:
    way = Way(int(redis.place()))
    yield way
    way.close()


def items_over(way: Way) -> BlockingItems:
    url = f"redis://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{way.port}?db=1"
    store: Any = items_at(SessionServerAddress("redis", url), "test", 1.0).for_threads()
    assert isinstance(store, BlockingItems)
    return store


def works(store: BlockingItems, limit_s: float) -> bool:
    try:
        store.take(key(), nonce(), limit_s)
    except TakeOnceUnavailable:
        return False
    return True


def test_a_connection_that_takes_longer_than_a_handshake_may_is_there_for_the_next_one(way: Way) -> None:
    way.delay_s = 0.06
    store = items_over(way)
    assert not works(store, 0.1), "dialling takes many round trips"
    eventually(lambda: works(store, 0.1))
    assert way.dials <= 2


def test_a_call_that_had_too_little_time_left_costs_no_connection(way: Way) -> None:
    """Its answer comes later, and is nobody's: the next one uses the connection, and gets its own answer."""
    store, place = items_over(way), key()
    assert store.put(place, b"item", LIFE_MS, b"", 5.0)
    way.delay_s = 0.2
    for _ in range(3):
        assert not works(store, 0.05)
        time.sleep(0.3)
    assert store.take(place, nonce(), 5.0) == b"item"
    assert way.dials == 1


def test_looking_up_a_name_holds_nobody_up(way: Way, monkeypatch: pytest.MonkeyPatch) -> None:
    found, stall = socket.getaddrinfo, threading.Event()

    def slow(*arguments: Any, **more: Any) -> Any:
        stall.wait(PATIENCE_S)
        return found(*arguments, **more)

    monkeypatch.setattr(socket, "getaddrinfo", slow)
    store = items_over(way)
    began = time.monotonic()
    assert not works(store, 0.1)
    assert time.monotonic() - began < CONNECT_LIMIT_S
    stall.set()
    eventually(lambda: works(store, 1.0))


def test_connections_that_died_without_a_sound_cost_one_call_its_limit(way: Way) -> None:
    store, crowd = items_over(way), 12
    together = threading.Barrier(crowd)

    def one(_: int) -> bool:
        together.wait(PATIENCE_S)
        return works(store, 5.0)

    way.delay_s = 0.05
    with ThreadPoolExecutor(crowd) as threads:
        assert all(threads.map(one, range(crowd)))
    way.delay_s = 0.0
    assert len(store._idle) > 1
    way.lose_all()
    assert [works(store, 0.5) for _ in range(3)] == [False, True, True]


def test_what_is_handed_over_is_counted_once_whatever_becomes_of_it(way: Way) -> None:
    store = items_over(way)
    assert works(store, 5.0)
    way.lose_all()
    for _ in range(MAX_UNREAD):
        store.hand_over(key(), b"item", LIFE_MS, b"", 0.5)
    assert store.settle() == (0, MAX_UNREAD), "the last one waited for answers, and found that there are none"
    assert works(store, 5.0)
    store.hand_over(key(), b"item", LIFE_MS, b"", 5.0)
    eventually(lambda: store.settle() == (0, MAX_UNREAD))


def test_a_close_ends_what_is_in_use_when_it_comes_back(way: Way) -> None:
    store = items_over(way)
    assert works(store, 5.0)
    way.delay_s = 0.3
    asking = threading.Thread(target=works, args=(store, 5.0))
    asking.start()
    time.sleep(0.1)
    store.close()
    asking.join()
    assert not store._idle


def test_a_crowd_shares_the_connections_that_are_kept(way: Way) -> None:
    store = items_over(way)
    with ThreadPoolExecutor(100) as threads:
        assert all(threads.map(lambda _: works(store, PATIENCE_S), range(400)))
    assert len(store._idle) <= MAX_IDLE


def test_a_server_without_room_costs_takes_nothing(redis: RedisItemBackend, way: Way) -> None:
    store, place = items_over(way), key()
    assert store.put(place, b"item", LIFE_MS, b"", 5.0)
    raw(redis, b"CONFIG", b"SET", b"maxmemory", b"1")
    for _ in range(20):
        store.hand_over(key(), b"item", LIFE_MS, b"", 5.0)
        works(store, 5.0)
    raw(redis, b"CONFIG", b"SET", b"maxmemory", b"0")
    assert store.take(place, nonce(), 5.0) == b"item"
    assert store.settle() == (0, 20)
    assert way.dials == 1


def test_scripts_that_were_flushed_are_loaded_before_the_next_question(redis: RedisItemBackend, way: Way) -> None:
    store, place = items_over(way), key()
    assert store.put(place, b"item", LIFE_MS, b"", 5.0)
    raw(redis, b"SCRIPT", b"FLUSH")
    store.hand_over(key(), b"item", LIFE_MS, b"", 5.0)
    assert store.take(place, nonce(), 5.0) == b"item"
    assert way.dials == 1
    assert store.settle() == (0, 1), "it was refused, and nobody waited for it"


def test_a_server_that_says_what_nobody_asked_is_left(tmp_path: Path) -> None:
    """It greets as it should, and then talks: no word of it is taken for an answer."""
    listener = socket.create_server(("127.0.0.1", 0))

    def talk() -> None:
        connection, _ = listener.accept()
        connection.recv(65536)
        connection.sendall(resp.OK)
        connection.recv(65536)
        connection.sendall(b":1\r\n" * 3)
        connection.recv(65536)

    threading.Thread(target=talk, daemon=True).start()
    address = StoreAddress(host="127.0.0.1", port=listener.getsockname()[1])
    store = BlockingItems("talker", address, SessionServerRequests)
    assert store.put(key(), b"item", LIFE_MS, b"", 5.0)
    eventually(lambda: not store.settle()[0] and not store._idle)
    listener.close()
