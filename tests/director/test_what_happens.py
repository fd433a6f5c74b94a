"""The table "What happens to a request when its web server fails" of docs/operations.md, cell by cell, on processes."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from coatcheck.director.embedded import EmbeddedDirector
from coatcheck.director.options import DirectorOptions, WebServer
from ports import free_port

from .harness import LONGEST_S, Client, run, until

PAGE = Path(__file__).parents[2] / "docs/operations.md"
SCRIPT = Path(__file__).parent / "failing_server.py"
IDEMPOTENT = {"GET", "HEAD", "OPTIONS", "TRACE", "PUT", "DELETE"}
OTHERS = ("POST", "PATCH", "BREW")


def table() -> dict[str, dict[str, str]]:
    """By failure and method: the outcome that the page promises, its bold word."""
    section = PAGE.read_text().split("<!-- what happens -->")[1].split("<!-- end")[0]
    lines = [line.strip("| ").split(" | ") for line in section.splitlines() if line.startswith("| ")]
    heads, rows = lines[0], lines[2:]
    found: dict[str, dict[str, str]] = {}
    for _, key, *cells in rows:
        outcomes = found[key.strip("`")] = {}
        for head, cell in zip(heads[2:], cells, strict=True):
            (outcome,) = re.findall(r"\*\*([^*]+)\*\*", cell)
            for method in OTHERS if "any other" in head else re.findall(r"[A-Z]{3,}", head):
                outcomes[method] = outcome
    return found


class Farm:
    """Two web server processes behind a director; one connection for each method's request."""

    def __init__(self, folder: Path, options: dict[str, Any]) -> None:
        self.notes = folder / "notes"
        self.notes.touch()
        self.ports = {name: free_port() for name in ("web-0", "web-1")}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        servers = tuple(WebServer(name, "127.0.0.1", port, name) for name, port in self.ports.items())
        standing = {"tick_s": 0.02, "first_byte_timeout_s": 30.0, "resend_after_s": 0.0, "no_server_wait_s": 20.0}
        self.director = EmbeddedDirector(DirectorOptions(servers=servers, port=0, **{**standing, **options}))
        self.clients: dict[str, Client] = {}

    def start(self) -> None:
        for name, port in self.ports.items():
            command = [sys.executable, str(SCRIPT), name, str(port), str(self.notes)]
            self.processes[name] = subprocess.Popen(command, stdout=subprocess.PIPE)
        for process in self.processes.values():
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"

    def signal(self, name: str, number: signal.Signals) -> None:
        os.kill(self.processes[name].pid, number)
        if number is signal.SIGKILL:
            self.processes[name].wait(30)

    def stop(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait(30)
            assert process.stdout is not None
            process.stdout.close()

    def executed(self) -> Counter[tuple[str, str]]:
        """How often each web server began each method's request."""
        return Counter((line.split()[0], line.split()[1]) for line in self.notes.read_text().splitlines())

    def health(self, name: str) -> str:
        return next(str(row["health"]) for row in self.director.status()["servers"] if row["name"] == name)

    async def ask(
        self, what: str, where: str = "web-0", *, body: bytes = b"hello", of: int = 0, expect: bool = False
    ) -> None:
        """Send the request of every method at once, all of sessions that web-0 hosts; ``of``: the body's whole size."""
        for method, client in self.clients.items():
            lines = [f"{method} /{method}/{what}/{where} HTTP/1.1", "Host: a", "Cookie: coatcheck-route=web-0"]
            lines += [f"Content-Length: {of or len(body)}"] + ["Expect: 100-continue"] * expect
            client.writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + (b"" if expect else body))

    async def until_begun(self, name: str, methods: set[str]) -> None:
        await until(lambda: {method for server, method in self.executed() if server == name} == methods)

    async def outcome(self, method: str) -> str:
        """What the browser saw, in the words of the table."""
        client = self.clients[method]
        try:
            answer = await client.answer(head_only=method == "HEAD")
            if answer.status == 100:
                client.writer.write(b"hello")
                answer = await client.answer(head_only=method == "HEAD")
        except (asyncio.IncompleteReadError, ConnectionError):
            return "breaks off"
        if answer.status != 200:
            return str(answer.status)
        server = (answer.values("x-server") or [b"web-0"])[0].decode()
        return "elsewhere" if server == "web-1" else "waits" if answer.values("x-server") else "answered"


@asynccontextmanager
async def farm(folder: Path, methods: list[str], **options: Any) -> AsyncIterator[Farm]:
    running = Farm(folder, options)
    try:
        await asyncio.to_thread(running.start)
        await running.director.start()
        await until(lambda: {running.health(name) for name in running.ports} == {"healthy"})
        for method in methods:
            running.clients[method] = Client(*await asyncio.open_connection(*running.director.address))
        yield running
    finally:
        for client in running.clients.values():
            client.writer.transport.abort()
        await running.director.stop(0)
        running.stop()


Story = Callable[[Farm], Awaitable[None]]
ALL = IDEMPOTENT | set(OTHERS)


async def refused(farm: Farm) -> None:
    farm.signal("web-0", signal.SIGKILL)
    await farm.ask("answer")


async def killed(farm: Farm) -> None:
    await farm.ask("hold")
    await farm.until_begun("web-0", ALL)
    farm.signal("web-0", signal.SIGKILL)


async def killed_twice(farm: Farm) -> None:
    await farm.ask("hold", "web-0,web-1")
    await farm.until_begun("web-0", ALL)
    farm.signal("web-0", signal.SIGKILL)
    await farm.until_begun("web-1", IDEMPOTENT)
    farm.signal("web-1", signal.SIGKILL)


async def killed_with_a_long_body(farm: Farm) -> None:
    await farm.ask("hold", body=b"x" * 5000)
    await farm.until_begun("web-0", ALL)
    farm.signal("web-0", signal.SIGKILL)


async def killed_amid_the_body(farm: Farm) -> None:
    await farm.ask("hold", body=b"hello", of=10)
    await farm.until_begun("web-0", ALL)
    farm.signal("web-0", signal.SIGKILL)
    await farm.until_begun("web-1", IDEMPOTENT)
    for method in IDEMPOTENT:
        farm.clients[method].writer.write(b"again")


async def killed_before_continue(farm: Farm) -> None:
    await farm.ask("hold", expect=True)
    await farm.until_begun("web-0", ALL)
    farm.signal("web-0", signal.SIGKILL)


async def blocked(farm: Farm) -> None:
    _, writer = await asyncio.open_connection("127.0.0.1", farm.ports["web-0"])
    writer.write(b"GET /blocker/block/web-0 HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: ("web-0", "blocker") in farm.executed())
    await farm.ask("answer")
    await until(lambda: farm.health("web-0") == "healthy")
    writer.close()


async def frozen_and_killed(farm: Farm) -> None:
    await farm.ask("hold")
    await farm.until_begun("web-0", ALL)
    farm.signal("web-0", signal.SIGSTOP)
    await until(lambda: farm.health("web-0") == "busy")
    farm.signal("web-0", signal.SIGKILL)


async def frozen_not_sent(farm: Farm) -> None:
    farm.signal("web-0", signal.SIGSTOP)
    await until(lambda: farm.health("web-0") == "busy")
    await farm.ask("answer")
    await until(lambda: farm.director.status()["waiting"] == len(ALL))
    farm.signal("web-0", signal.SIGKILL)


async def silent(farm: Farm) -> None:
    await farm.ask("hold")
    await farm.until_begun("web-0", ALL)
    farm.signal("web-0", signal.SIGSTOP)


async def silent_not_sent(farm: Farm) -> None:
    farm.signal("web-0", signal.SIGSTOP)
    await until(lambda: farm.health("web-0") == "busy")
    await farm.ask("answer")


async def late(farm: Farm) -> None:
    await farm.ask("hold")


async def half(farm: Farm) -> None:
    await farm.ask("half")
    await farm.until_begun("web-0", ALL)
    await asyncio.sleep(0.1)  # The halves are on their way, and the story holds wherever they are.
    farm.signal("web-0", signal.SIGKILL)


async def half_streamed(farm: Farm) -> None:
    await farm.ask("stream")
    await farm.until_begun("web-0", ALL)
    for method, client in farm.clients.items():
        # The beginning has left for the browser; the rest of this answer is what is waited for.
        seen = await client.reader.readuntil(b"\r\n\r\n")
        again = asyncio.StreamReader()
        again.feed_data(seen)
        farm.clients[method] = Client(_Joined(again, client.reader), client.writer)  # type: ignore[arg-type]
    farm.signal("web-0", signal.SIGKILL)


async def nonsense(farm: Farm) -> None:
    await farm.ask("nonsense")


async def no_server(farm: Farm) -> None:
    for name in farm.ports:
        farm.signal(name, signal.SIGKILL)
    await until(lambda: {farm.health(name) for name in farm.ports} == {"gone"})
    await farm.ask("answer")


async def queue_full(farm: Farm) -> None:
    for name in farm.ports:
        farm.signal(name, signal.SIGSTOP)
    await until(lambda: {farm.health(name) for name in farm.ports} == {"busy"})
    _, writer = await asyncio.open_connection(*farm.director.address)
    writer.write(b"GET /first/answer/web-0 HTTP/1.1\r\nHost: a\r\n\r\n")
    await until(lambda: farm.director.status()["waiting"] == 1)
    await farm.ask("answer")


class _Joined:
    """What was read already, and then the rest."""

    def __init__(self, first: asyncio.StreamReader, rest: asyncio.StreamReader) -> None:
        self._first, self._rest = first, rest

    async def readuntil(self, separator: bytes) -> bytes:
        reader, self._first = self._first, self._rest
        return await reader.readuntil(separator)

    async def readexactly(self, count: int) -> bytes:
        return await self._rest.readexactly(count)


STORIES: dict[str, tuple[Story, dict[str, Any]]] = {
    "refused": (refused, {"check_interval_s": 60.0}),
    "killed": (killed, {}),
    "killed-twice": (killed_twice, {}),
    "killed-long-body": (killed_with_a_long_body, {"kept_body_bytes": 1024}),
    "killed-mid-body": (killed_amid_the_body, {}),
    "killed-before-continue": (killed_before_continue, {}),
    "half-held": (half, {"hold_response_s": LONGEST_S}),
    "half-streamed": (half_streamed, {}),
    "nonsense": (nonsense, {}),
    "blocked": (blocked, {}),
    "frozen-killed": (frozen_and_killed, {}),
    "frozen-not-sent": (frozen_not_sent, {}),
    "silent": (silent, {"resend_after_s": 1.0, "first_byte_timeout_s": 5.0}),
    "silent-not-sent": (silent_not_sent, {"resend_after_s": 1.0}),
    "late": (late, {"first_byte_timeout_s": 1.0}),
    "no-server": (no_server, {"no_server_wait_s": 0.5}),
    "queue-full": (queue_full, {"max_waiting": 1}),
}
"""The failures of the table, made real."""

SENT_FIRST = {"killed", "killed-mid-body", "killed-before-continue", "half-held", "frozen-killed", "silent"}
"""Here the first web server has begun what then goes elsewhere."""


def test_every_failure_of_the_table_has_a_story_and_every_method_a_cell() -> None:
    assert set(table()) == set(STORIES)
    assert all(set(cells) == ALL for cells in table().values())


@pytest.mark.parametrize("failure", STORIES)
def test_what_happens(failure: str, tmp_path: Path) -> None:
    story, options = STORIES[failure]
    promised = table()[failure]
    seen: dict[str, str] = {}
    executed: Counter[tuple[str, str]] = Counter()

    async def test() -> None:
        async with farm(tmp_path, sorted(ALL), **options) as running:
            await story(running)
            for method in running.clients:
                seen[method] = await running.outcome(method)
            executed.update(running.executed())

    run(test)
    assert seen == promised
    for method in ALL:
        times = executed["web-0", method], executed["web-1", method]
        assert sum(times) <= (2 if method in IDEMPOTENT else 1)
        if promised[method] == "elsewhere":
            assert times == (int(failure in SENT_FIRST), 1)
        if promised[method] in ("waits", "answered", "breaks off"):
            assert times == (1, 0)
