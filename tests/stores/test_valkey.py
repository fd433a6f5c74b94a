"""What is special about Valkey/Redis: scripts, databases, eviction, foreign values. A real server."""

from __future__ import annotations

import asyncio
import shutil
import socket
import subprocess
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck import resp
from coatcheck.errors import ConfigError
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.stores.events import StoreEvent, StoreEventKind
from coatcheck.stores.port import ACCEPTED, Refused, Unreachable
from coatcheck.stores.valkey import ValkeyStore
from ports import free_port

KEY = bytes(range(16))
V1 = Version(1, b"AAA-0001", 0)


def entry(version: Version = V1) -> Entry:
    return Entry(version, (), False, 60_000, b"payload")


class Redis:
    def __init__(self, folder: Path) -> None:
        server = shutil.which("valkey-server") or shutil.which("redis-server")
        assert server is not None, "redis-server is missing: apt-get install redis-server"
        self.port = free_port()
        self.path = folder / "redis.sock"
        command = [server, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
        command += ["--unixsocket", str(self.path), "--loglevel", "warning", "--logfile", str(folder / "log")]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 30
        while not self._listens():  # the file of its socket is there before anybody may connect
            assert time.monotonic() < deadline
            time.sleep(0.01)

    def _listens(self) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(self.path)) == 0

    def ask(self, *words: bytes) -> bytes:
        with socket.create_connection(("127.0.0.1", self.port), timeout=30) as connection:
            connection.sendall(resp.command(*words) + resp.command(b"QUIT"))
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
        return received.removesuffix(b"+OK\r\n")


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Redis]:
    redis = Redis(tmp_path)
    yield redis
    redis.process.kill()
    redis.process.wait(60)


async def ask(method: Callable[..., None], *arguments: object) -> Any:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    method(*arguments, answer.set_result)
    return await asyncio.wait_for(answer, 60)


def with_store(where: str, story: Callable[[ValkeyStore], Awaitable[None]], **options: Any) -> list[StoreEvent]:
    events: list[StoreEvent] = []

    async def bounded() -> None:
        store = ValkeyStore("v", where, timeout_s=20, on_event=events.append, **options)
        await store.open()
        try:
            async with asyncio.timeout(120):
                await story(store)
        finally:
            await store.aclose()

    asyncio.run(bounded())
    return events


def test_scripts_that_the_server_forgot_are_loaded_again(redis: Redis) -> None:
    async def story(store: ValkeyStore) -> None:
        assert await ask(store.put, KEY, None, entry()) == ACCEPTED
        redis.ask(b"SCRIPT", b"FLUSH")
        puts = [ask(store.put, KEY, None, entry(Version(1, b"AAA-0001", seq))) for seq in range(1, 20)]
        assert set(await asyncio.gather(*puts)) == {ACCEPTED}
        redis.ask(b"SCRIPT", b"FLUSH")
        assert (await ask(store.get, KEY)).version.seq == 19
        assert isinstance(await ask(store.put, KEY, None, entry(Version(2, b"BBB-0001", 0))), Refused)

    with_store(f"valkey://127.0.0.1:{redis.port}", story)


def test_unix_socket_database_and_farm_keep_apart(redis: Redis) -> None:
    async def story(store: ValkeyStore) -> None:
        found = await ask(store.get, KEY)
        assert found is None
        assert await ask(store.put, KEY, None, entry()) == ACCEPTED
        assert await ask(store.scan, 0, 100) == (0, [KEY])

    places = [(f"unix://{redis.path}?db=3", "farm"), (f"redis://127.0.0.1:{redis.port}/4", "farm")]
    places += [(f"redis://127.0.0.1:{redis.port}?db=4", "f[a-z]*?\\"), (f"redis://127.0.0.1:{redis.port}?db=4", "fx")]
    for where, farm in places:
        with_store(where, story, farm=farm)
    assert redis.ask(b"DBSIZE") == b":0\r\n"


def test_values_of_other_programs_are_reported_and_kept(redis: Redis) -> None:
    name = b"coatcheck:{farm}:" + KEY

    async def story(store: ValkeyStore) -> None:
        assert isinstance(await ask(store.get, KEY), Unreachable)
        assert isinstance(await ask(store.put, KEY, None, entry()), Unreachable)

    for words in ([b"LPUSH", name, b"x"], [b"SET", name, b""], [b"SET", name, b"a string without an expiry"]):
        redis.ask(b"DEL", name)
        redis.ask(*words)
        before = redis.ask(b"DUMP", name)
        assert with_store(f"redis://127.0.0.1:{redis.port}", story)
        assert redis.ask(b"DUMP", name) == before


def test_an_eviction_policy_that_may_drop_sessions_is_reported_once(redis: Redis) -> None:
    async def story(store: ValkeyStore) -> None:
        for _ in range(2):
            await ask(store.get, KEY)
            redis.ask(b"CLIENT", b"KILL", b"TYPE", b"normal")
            while not store.reachable:
                await asyncio.sleep(0.01)
        await asyncio.sleep(0.1)

    where = f"redis://127.0.0.1:{redis.port}"
    assert StoreEventKind.EVICTION_POSSIBLE not in [event.kind for event in with_store(where, story)]
    redis.ask(b"CONFIG", b"SET", b"maxmemory", b"100mb")
    assert StoreEventKind.EVICTION_POSSIBLE not in [event.kind for event in with_store(where, story)]
    redis.ask(b"CONFIG", b"SET", b"maxmemory-policy", b"allkeys-lru")
    kinds = [event.kind for event in with_store(where, story)]
    assert kinds.count(StoreEventKind.EVICTION_POSSIBLE) == 1


def test_a_full_server_refuses_and_the_caller_is_told_why(redis: Redis) -> None:
    async def story(store: ValkeyStore) -> None:
        assert await ask(store.put, KEY, None, entry()) == ACCEPTED
        redis.ask(b"CONFIG", b"SET", b"maxmemory", b"1")
        refused = await ask(store.put, b"another key 0000", None, entry())
        assert isinstance(refused, Unreachable)
        assert "OOM" in refused.why
        assert refused.full
        assert (await ask(store.get, KEY)).version == V1

    events = with_store(f"redis://127.0.0.1:{redis.port}", story)
    assert StoreEventKind.FULL in [event.kind for event in events]


@pytest.mark.parametrize("farm", ["", "a{b", "a}b", "x" * 65, "a\r\nb"])
def test_bad_farm_names(farm: str) -> None:
    with pytest.raises(ConfigError, match="farm"):
        ValkeyStore("v", "redis://127.0.0.1", farm=farm)
