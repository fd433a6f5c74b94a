"""The session server against clients that are wrong, hostile, slow or too many. Real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from coatcheck import resp
from coatcheck.replication.entry import MAX_ENTRY_BYTES, Entry
from coatcheck.replication.version import Version
from coatcheck.session_server import connection as session_connection
from coatcheck.session_server import server as session_server
from coatcheck.session_server.server import SessionServer
from coatcheck.stores.port import ACCEPTED, Unreachable
from coatcheck.stores.session_server_store import SessionServerStore

PASSWORD = "correct horse"
KEY = bytes(range(16))
ENTRY = Entry(Version(1, b"AAA-0001", 0), (), False, 60_000, b"payload")
PUT = resp.command(b"CC.PUT", KEY, b"", b"60000", ENTRY.encode())


def run(story: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(280):
            await story()

    asyncio.run(bounded())


@contextlib.asynccontextmanager
async def serving(**options: Any) -> AsyncIterator[SessionServer]:
    server = SessionServer("s1", **options)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


class Peer:
    """A raw client."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @classmethod
    async def of(cls, server: SessionServer, password: str = "") -> Peer:
        peer = cls(*await asyncio.open_connection("127.0.0.1", server.port))
        if password:
            assert await peer.ask(b"AUTH", password.encode()) == b"+OK\r\n"
        return peer

    async def ask(self, *words: bytes) -> bytes:
        """Send a request; answers the first line of the reply, or what was read before the end."""
        self.writer.write(resp.command(*words))
        return await asyncio.wait_for(self.reader.readline(), 60)

    async def until_closed(self, within_s: float = 60) -> bytes:
        try:
            return await asyncio.wait_for(self.reader.read(-1), within_s)
        except ConnectionError:
            return b""

    def close(self) -> None:
        self.writer.transport.abort()


async def ask(method: Callable[..., None], *arguments: object) -> Any:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    method(*arguments, answer.set_result)
    return await asyncio.wait_for(answer, 60)


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(60):
        while not condition():
            await asyncio.sleep(0.01)


def test_without_the_password_nothing_but_logging_in() -> None:
    async def story() -> None:
        async with serving(password=PASSWORD) as server:
            member = await Peer.of(server, PASSWORD)
            member.writer.write(PUT)
            assert await member.reader.readline() == b":1\r\n"
            stranger = await Peer.of(server)
            assert await stranger.ask(b"PING") == b"+PONG\r\n"
            refused: list[list[bytes]] = [
                [b"CC.GET", KEY], [b"CC.PUT", KEY, b"", b"1", b""], [b"GET", KEY], [b"SCAN", b"0"], [b"INFO"],
                [b"DBSIZE"], [b"SUBSCRIBE", b"AAA"], [b"PUBLISH", b"AAA", b"x"], [b"SELECT", b"0"], [b"COMMAND"],
                [b"CLIENT", b"SETNAME", b"x"], [b"HELLO", b"3"], [b"PTTL", KEY], [b"NONSENSE"], [b"cc.get", KEY],
            ]  # fmt: skip
            for words in refused:
                assert (await stranger.ask(*words)).startswith(b"-NOAUTH"), words
            assert await stranger.ask(b"QUIT") == b"+OK\r\n"
            assert await stranger.until_closed() == b""

    run(story)


def test_guessing_the_password_ends_after_three_tries() -> None:
    async def story() -> None:
        async with serving(password=PASSWORD) as server:
            peer = await Peer.of(server)
            assert (await peer.ask(b"AUTH", b"wrong")).startswith(b"-WRONGPASS")
            assert (await peer.ask(b"AUTH", b"root", PASSWORD.encode())).startswith(b"-WRONGPASS")
            assert (await peer.ask(b"HELLO", b"3", b"AUTH", b"default", b"wrong")).startswith(b"-WRONGPASS")
            assert await peer.until_closed() == b""
            third = await Peer.of(server)
            assert (await third.ask(b"HELLO", b"3", b"AUTH", b"default", PASSWORD.encode())).startswith(b"%")

    run(story)


def test_a_store_with_the_wrong_password_is_unreachable_and_the_password_is_not_told() -> None:
    async def story() -> None:
        async with serving(password=PASSWORD) as server:
            told: list[str] = []
            secret = "hunter2-secret"
            store = SessionServerStore(
                "s1", "127.0.0.1", server.port, password=secret, on_event=lambda event: told.append(str(event))
            )
            await store.open()
            assert store.reachable is False
            reply = await ask(store.get, KEY)
            assert isinstance(reply, Unreachable)
            assert "does not know the password" in reply.why
            await store.aclose()
            assert told
            assert secret not in " ".join([*told, reply.why, repr(store._link.address), repr(vars(store))])

    run(story)


def test_strangers_may_send_little_and_must_be_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_connection, "LOGIN_TIMEOUT_S", 0.6)
    monkeypatch.setattr(session_server, "CHECK_PERIOD_S", 0.05)

    async def story() -> None:
        async with serving(password=PASSWORD) as server:
            greedy = await Peer.of(server)
            greedy.writer.write(b"*2\r\n$4\r\nAUTH\r\n$100000\r\n")
            assert (await greedy.until_closed()).startswith(b"-ERR Protocol error")
            idle = await Peer.of(server)
            assert await idle.until_closed() == b""
            quick = await Peer.of(server, PASSWORD)
            await asyncio.sleep(0.9)
            assert await quick.ask(b"PING") == b"+PONG\r\n"

    run(story)


def test_a_new_client_can_log_in_although_strangers_hold_many_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_server, "MAX_STRANGERS", 5)

    async def story() -> None:
        async with serving(password=PASSWORD) as server:
            member = await Peer.of(server, PASSWORD)
            strangers = [await Peer.of(server) for _ in range(20)]
            late = await Peer.of(server, PASSWORD)
            assert await late.ask(b"PING") == await member.ask(b"PING") == b"+PONG\r\n"
            assert await strangers[0].until_closed() == b""
            await until(lambda: server.status()["connections"] <= 8)

    run(story)


def test_more_connections_than_the_bound_are_told_and_closed() -> None:
    async def story() -> None:
        async with serving(max_connections=3) as server:
            peers = [await Peer.of(server) for _ in range(3)]
            for peer in peers:
                await peer.ask(b"PING")
            extra = await Peer.of(server)
            assert (await extra.until_closed()).startswith(b"-ERR max number of clients")
            peers[0].close()
            await until(lambda: server.status()["connections"] < 3)
            again = await Peer.of(server)
            assert await again.ask(b"PING") == b"+PONG\r\n"

    run(story)


def test_a_request_must_be_completed_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_connection, "REQUEST_TIMEOUT_S", 0.2)
    monkeypatch.setattr(session_server, "CHECK_PERIOD_S", 0.05)

    async def story() -> None:
        async with serving() as server:
            dribbler = await Peer.of(server)
            dribbler.writer.write(PUT[:-3])
            assert await dribbler.until_closed() == b""
            assert server.status()["puts"] == 0

    run(story)


def test_a_client_that_does_not_read_is_held_back_and_then_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_connection, "UNREAD_TIMEOUT_S", 0.5)
    monkeypatch.setattr(session_server, "CHECK_PERIOD_S", 0.05)

    async def story() -> None:
        async with serving() as server:
            big = Entry(ENTRY.version, (), False, 60_000, bytes(MAX_ENTRY_BYTES - 100))
            writer = await Peer.of(server)
            assert await writer.ask(b"CC.PUT", KEY, b"", b"60000", big.encode()) == b":1\r\n"
            before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            reader, stream = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
            for _ in range(20):
                stream.write(resp.command(b"CC.GET", KEY) * 100)  # two gigabytes of answers
            await asyncio.sleep(0.3)
            grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
            assert grown < 64 * 1024, "kilobytes"
            assert await writer.ask(b"PING") == b"+PONG\r\n", "the others are served meanwhile"
            await until(lambda: server.status()["connections"] == 1)
            stream.transport.abort()
            assert reader is not None

    run(story)


def test_a_slow_but_steady_reader_gets_every_answer() -> None:
    async def story() -> None:
        async with serving() as server:
            big = Entry(ENTRY.version, (), False, 60_000, bytes(MAX_ENTRY_BYTES - 100))
            peer = await Peer.of(server)
            assert await peer.ask(b"CC.PUT", KEY, b"", b"60000", big.encode()) == b":1\r\n"
            peer.writer.write(resp.command(b"CC.GET", KEY) * 40 + resp.command(b"QUIT"))
            received = 0
            while chunk := await peer.reader.read(256 * 1024):
                received += len(chunk)
                await asyncio.sleep(0.0005)
            assert received > 40 * len(big.encode())

    run(story)


def test_a_subscriber_that_does_not_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_connection, "MAX_UNSENT_BYTES", 64 * 1024)

    async def story() -> None:
        async with serving() as server:
            deaf_reader, deaf = await asyncio.open_connection("127.0.0.1", server.port, limit=1024)
            deaf.write(resp.command(b"SUBSCRIBE", b"AAA"))
            await deaf_reader.readline()
            speaker = await Peer.of(server)
            last = b""
            for _ in range(20_000):
                last = await speaker.ask(b"PUBLISH", b"AAA", bytes(4096))
                if last == b":0\r\n":
                    break
            assert last == b":0\r\n"
            deaf.transport.abort()

    run(story)


def test_the_memory_bound_refuses_and_evicts_nothing() -> None:
    async def story() -> None:
        async with serving(max_bytes=100_000) as server:
            store = SessionServerStore("s1", "127.0.0.1", server.port, on_event=lambda event: None)
            await store.open()
            kept = []
            for number in range(1000):
                key = number.to_bytes(16, "big")
                answer = await ask(store.put, key, None, ENTRY)
                if answer != ACCEPTED:
                    break
                kept.append(key)
            assert isinstance(answer, Unreachable)
            assert "FULL" in answer.why
            assert 100 < len(kept) < 1000
            assert server.status()["bytes"] <= 100_000
            for key in kept:
                assert (await ask(store.get, key)).version == ENTRY.version
            tombstone = Entry(ENTRY.version, (), True, 1000, b"")
            assert await ask(store.put, kept[0], None, tombstone) == ACCEPTED, "what does not grow is taken"
            assert server.status()["tombstones"] == 1
            assert store.reachable
            while await ask(store.get, kept[0]) is not None:
                await asyncio.sleep(0.05)
            assert await ask(store.put, b"room for one new", None, ENTRY) == ACCEPTED
            await store.aclose()

    run(story)


def test_expired_entries_free_their_memory() -> None:
    async def story() -> None:
        async with serving() as server:
            store = SessionServerStore("s1", "127.0.0.1", server.port, timeout_s=10)
            await store.open()
            short = Entry(ENTRY.version, (), False, 3000, b"x" * 500)
            answers = await asyncio.gather(
                *[ask(store.put, number.to_bytes(16, "little"), None, short) for number in range(1000)]
            )
            assert set(answers) == {ACCEPTED}
            assert server.status()["entries"] == 1000
            await until(lambda: not server.status()["entries"])
            assert server.status()["bytes"] == 0
            await store.aclose()

    run(story)


@pytest.mark.parametrize(
    "words",
    [
        [b"CC.PUT", b"short", b"", b"1000", ENTRY.encode()],
        [b"CC.PUT", KEY, b"seen", b"1000", ENTRY.encode()],
        [b"CC.PUT", KEY, b"", b"-1", ENTRY.encode()],
        [b"CC.PUT", KEY, b"", b"soon", ENTRY.encode()],
        [b"CC.PUT", KEY, b"", b"9" * 17, ENTRY.encode()],
        [b"CC.PUT", KEY, b"", b"1000", b"not an entry"],
        [b"CC.PUT", KEY, b"", b"1000", b"\x01\x02" + bytes(40)],
        [b"CC.PUT", KEY, b"", b"1000", b"\x01\x00" + bytes(16) + b"\x10"],
        [b"CC.PUT", KEY],
        [b"CC.GET", b"short"],
        [b"CC.GET"],
        [b"SCAN", b"zero"],
        [b"SCAN", b"0", b"COUNT"],
        [b"SCAN", b"0", b"MATCH", b"x*"],
        [b"SELECT", b"1"],
        [b"HELLO", b"9"],
        [b"PUBLISH", b"AAA", bytes(5000)],
        [b"SUBSCRIBE", bytes(65)],
        [b"CLIENT", b"KILL"],
        [b"FLUSHALL"],
        [b"SET", KEY, b"x"],
        [b"DEL", KEY],
        [b"EVAL", b"return 1", b"0"],
        [b""],
        [b"\r\n+OK\r\n"],
    ],
)  # fmt: skip
def test_bad_requests_get_an_error_and_change_nothing(words: list[bytes]) -> None:
    async def story() -> None:
        async with serving() as server:
            peer = await Peer.of(server)
            assert (await peer.ask(*words)).startswith(b"-"), words
            assert await peer.ask(b"DBSIZE") == b":0\r\n"

    run(story)


def test_channels_per_client_are_bounded() -> None:
    async def story() -> None:
        async with serving() as server:
            peer = await Peer.of(server)
            for at in range(64):
                assert (await peer.ask(b"SUBSCRIBE", b"%02d" % at)) == b"*3\r\n"
                for _ in range(5):
                    await peer.reader.readline()
            assert (await peer.ask(b"SUBSCRIBE", b"one more")).startswith(b"-ERR at most 64")

    run(story)


def test_random_bytes_from_many_clients_harm_nobody() -> None:
    """Forty thousand random and mutated pieces; a well-behaved client is served all the while."""
    seed = random.randrange(2**32)
    chance = random.Random(seed)
    valid = [PUT, resp.command(b"CC.GET", KEY), resp.command(b"SCAN", b"0"), resp.command(b"SUBSCRIBE", b"AAA")]
    valid += [resp.command(b"INFO"), resp.command(b"HELLO", b"3"), resp.command(b"PUBLISH", b"AAA", b"x")]

    def piece() -> bytes:
        if chance.random() < 0.2:
            return chance.randbytes(chance.randrange(1, 60))
        data = bytearray(chance.choice(valid))
        for _ in range(chance.randrange(3)):
            data[chance.randrange(len(data))] = chance.choice(b"*$\r\n0123456789-\x00\xff")
        if chance.random() < 0.1:
            del data[chance.randrange(len(data)) :]
        return bytes(data)

    async def attack(server: SessionServer, pieces: int) -> None:
        while pieces > 0:
            peer = await Peer.of(server)
            burst = chance.randrange(1, 20)  # a violation ends the connection, so most of a long one is wasted
            peer.writer.write(b"".join(piece() for _ in range(burst)))
            pieces -= burst
            with contextlib.suppress(ConnectionError):
                await peer.writer.drain()
                peer.writer.write_eof()
                await asyncio.wait_for(peer.reader.read(-1), 60)
            peer.close()

    async def story() -> None:
        async with serving() as server:
            store = SessionServerStore("s1", "127.0.0.1", server.port, timeout_s=20)
            await store.open()
            healthy = b"healthy key 0000"
            lasting = Entry(ENTRY.version, (), False, 3_600_000, ENTRY.payload)
            assert await ask(store.put, healthy, None, lasting) == ACCEPTED
            attackers = [asyncio.ensure_future(attack(server, 10_000)) for _ in range(4)]
            while not all(attacker.done() for attacker in attackers):
                assert (await ask(store.get, healthy)).payload == ENTRY.payload, f"seed {seed}"
                await asyncio.sleep(0.02)
            await asyncio.gather(*attackers)
            await until(lambda: server.status()["connections"] == 1)
            assert store.reachable
            assert server._state._channels == {}
            await store.aclose()

    run(story)


def test_redis_cli_can_look_at_it() -> None:
    cli = shutil.which("redis-cli") or shutil.which("valkey-cli")
    assert cli is not None, "redis-cli is missing: apt-get install redis-tools"

    async def story() -> None:
        async with serving(password=PASSWORD) as server:
            store = SessionServerStore("s1", "127.0.0.1", server.port, password=PASSWORD)
            await store.open()
            await ask(store.put, b"a readable key 1", None, ENTRY)

            async def cli_says(*words: str) -> str:
                process = await asyncio.create_subprocess_exec(
                    cli, "-p", str(server.port), *words,
                    stdout=asyncio.subprocess.PIPE, env={**os.environ, "REDISCLI_AUTH": PASSWORD},
                )  # fmt: skip
                output, _ = await asyncio.wait_for(process.communicate(), 60)
                return output.decode(errors="replace").strip()

            assert await cli_says("PING") == "PONG"
            assert await cli_says("--scan") == "a readable key 1"
            assert await cli_says("DBSIZE") == "1"
            assert "entries:1" in await cli_says("INFO")
            assert 0 < int(await cli_says("PTTL", "a readable key 1")) <= 60_000
            assert "payload" in await cli_says("GET", "a readable key 1")
            assert await cli_says("-3", "PING") == "PONG"
            assert "unknown command" in await cli_says("FLUSHALL")
            await store.aclose()

    run(story)


def test_status() -> None:
    async def story() -> None:
        async with serving() as server:
            peer = await Peer.of(server)
            peer.writer.write(PUT + resp.command(b"CC.PUT", KEY, b"", b"60000", Entry(
                Version(1, b"BBB-0001", 0), (), False, 1, b"").encode()) + resp.command(b"QUIT"))  # fmt: skip
            await peer.until_closed()
            status = server.status()
            assert {"entries", "tombstones", "bytes", "connections", "puts", "refused", "started_at"} <= set(status)
            assert (status["entries"], status["puts"], status["refused"]) == (1, 1, 1)

    run(story)


def test_the_process_says_where_it_listens_and_stops_on_sigterm() -> None:
    command = [sys.executable, "-m", "coatcheck.session_server", "--listen", "127.0.0.1:0"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        assert process.stdout.readline().startswith(b"listening 127.0.0.1:")
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize(
    ("options", "complaint", "status"),
    [
        (["--listen", "nowhere"], "--listen", 2),
        (["--listen", "0.0.0.0:0"], "--password-env", 2),
        (["--password-env", "NOT_SET_ANYWHERE"], "NOT_SET_ANYWHERE", 2),
        (["--max-bytes", "0"], "--max-bytes", 2),
        (["--listen", "127.0.0.1:1"], "cannot listen", 1),
    ],
)
def test_bad_options_get_one_clear_line(options: list[str], complaint: str, status: int) -> None:
    if complaint == "cannot listen":
        import socket

        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            taken.listen()
            check_refusal(["--listen", f"127.0.0.1:{taken.getsockname()[1]}"], complaint, status)
    else:
        check_refusal(options, complaint, status)


def check_refusal(options: list[str], complaint: str, status: int) -> None:
    command = [sys.executable, "-m", "coatcheck.session_server", *options]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == status
    assert complaint in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
