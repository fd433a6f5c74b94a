"""The director as a process of its own before uvicorn processes, which are killed and frozen under load."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import websockets

from forked import ForkedProcess
from ports import free_port

from .harness import BUSY_S, LONGEST_S, Client, run, until

HERE = Path(__file__).parent
UVICORN = (
    "uvicorn.main",
    "uvicorn.lifespan.on",
    "uvicorn.loops.auto",
    "uvicorn.protocols.http.auto",
    "uvicorn.protocols.websockets.auto",
)


class Processes:
    """Web servers and a director; ends what it started, by process ID."""

    def __init__(self, count: int, descriptors: int = 0) -> None:
        self.descriptors = descriptors
        self.ports = [free_port() for _ in range(count)]
        self.web: list[ForkedProcess] = []
        self.director: subprocess.Popen[bytes] | None = None
        self.port = 0

    def start_web(self, index: int) -> ForkedProcess:
        words = ["-m", "uvicorn", "sample_app:app", "--port", str(self.ports[index])]
        quiet = ["--log-level", "critical", "--app-dir", str(HERE), "--no-access-log"]
        return ForkedProcess(*words, *quiet, loaded=UVICORN, stdout=None)

    def start(self) -> None:
        self.web = [self.start_web(index) for index in range(len(self.ports))]
        servers: list[str] = []
        for index, port in enumerate(self.ports):
            servers += ["--server", f"web-{index}=127.0.0.1:{port}#tag-{index}"]
        command = [sys.executable, "-m", "coatcheck.director", "--listen", "127.0.0.1:0", *servers]
        if self.descriptors:
            command = ["prlimit", f"--nofile={self.descriptors}", *command]
        self.director = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        assert self.director.stdout is not None
        self.port = int(self.director.stdout.readline().rpartition(b":")[2])

    def stop(self) -> dict[str, Any]:
        """End everything; answers the director's last status."""
        status: dict[str, Any] = {}
        if self.director is not None:
            self.director.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                out, _ = self.director.communicate(timeout=30)
                status = json.loads(out)
            self.director.kill()
            self.director.wait()
        for process in self.web:
            process.send_signal(signal.SIGCONT)
            process.kill()
            process.wait()
        return status


@asynccontextmanager
async def processes(count: int, descriptors: int = 0) -> AsyncIterator[Processes]:
    running = Processes(count, descriptors)
    try:
        await asyncio.to_thread(running.start)
        async with asyncio.timeout(LONGEST_S):
            while len(await pids(running, 2 * count)) < count:
                await asyncio.sleep(0.1)
        yield running
    finally:
        await asyncio.to_thread(running.stop)


@asynccontextmanager
async def client(running: Processes) -> AsyncIterator[Client]:
    reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
    try:
        yield Client(reader, writer)
    finally:
        writer.close()


def get(path: str = "/", server: int | None = None) -> bytes:
    cookie = f"Cookie: __Host-coatcheck-route=tag-{server}\r\n" if server is not None else ""
    return f"GET {path} HTTP/1.1\r\nHost: a\r\n{cookie}\r\n".encode()


async def pids(running: Processes, times: int) -> set[bytes]:
    async with client(running) as one:
        answers = [await one.ask(get()) for _ in range(times)]
    return {answer.body.split()[0] for answer in answers if answer.status == 200}


async def load(
    running: Processes, stop: asyncio.Event, browsers: int, statuses: Counter[int], times: list[float]
) -> None:
    """GETs from many keep-alive clients, each bound to a server by its cookie; counts answers and their seconds."""

    async def browse(number: int) -> None:
        async with client(running) as one:
            while not stop.is_set():
                began = time.monotonic()
                answer = await one.ask(get(server=number % len(running.ports)))
                times.append(time.monotonic() - began)
                statuses[answer.status] += 1
                await asyncio.sleep(0.01)

    await asyncio.gather(*(browse(number) for number in range(browsers)))


@pytest.mark.parametrize("blow", [signal.SIGKILL, signal.SIGSTOP, signal.SIGTERM])
def test_no_get_fails_when_a_server_dies_or_freezes(blow: signal.Signals) -> None:
    async def test() -> None:
        async with processes(3) as running:
            stop, statuses, times = asyncio.Event(), Counter[int](), list[float]()
            loading = asyncio.ensure_future(load(running, stop, 12, statuses, times))
            for victim in (0, 1):
                await asyncio.sleep(0.4)
                running.web[victim].send_signal(blow)
                await asyncio.sleep(1.3)
                if blow is signal.SIGSTOP:
                    running.web[victim].send_signal(signal.SIGCONT)
                else:
                    await asyncio.to_thread(running.web[victim].wait)
                    running.web[victim] = running.start_web(victim)
                await asyncio.sleep(0.6)
            await until(lambda: loading.done() or statuses.total() > 500)
            stop.set()
            await loading
            assert set(statuses) == {200}
            assert max(times) < 1.3 + BUSY_S  # a frozen one is waited for until it goes on

    run(test)


def test_a_post_is_answered_or_refused_but_never_doubled_when_its_server_is_killed() -> None:
    async def test() -> None:
        async with processes(2) as running, client(running) as one:
            post = b"POST /slow HTTP/1.1\r\nHost: a\r\nCookie: coatcheck-route=tag-0\r\nContent-Length: 3\r\n\r\nabc"
            one.writer.write(post)
            await asyncio.sleep(0.2)
            os.kill(running.web[0].pid, signal.SIGKILL)
            assert (await one.answer()).status == 502
            # While the kernel takes a killed process apart, its port may accept for another moment.
            await asyncio.to_thread(running.web[0].wait, 10)
            # Not sent yet, so it may go elsewhere.
            answer = await one.ask(post)
            assert (answer.status, answer.body) == (200, b"%d 3" % running.web[1].pid)

    run(test)


def test_events_are_streamed_as_they_come() -> None:
    async def test() -> None:
        async with processes(1) as running, client(running) as one:
            one.writer.write(get("/events"))
            await one.reader.readuntil(b"\r\n\r\n")
            came: list[float] = []
            for number in range(5):
                await one.reader.readuntil(b"data: %d\n\n" % number)
                came.append(time.monotonic())
            assert came[4] - came[0] > 0.1

    run(test)


def test_websockets_under_uvicorn() -> None:
    async def test() -> None:
        from websockets.asyncio.client import connect

        async with processes(2) as running:
            headers = {"Cookie": "coatcheck-route=tag-1"}
            url = f"ws://127.0.0.1:{running.port}/ws"
            async with connect(url, additional_headers=headers, compression=None) as socket:
                await socket.send("who")
                assert int(await socket.recv()) == running.web[1].pid
                for size in (0, 1, 125, 126, 70_000, 900_000):
                    await socket.send(b"x" * size)
                    assert len(await socket.recv()) == size
            async with connect(url, additional_headers=headers) as socket:
                os.kill(running.web[1].pid, signal.SIGKILL)
                with pytest.raises(websockets.ConnectionClosed):
                    await socket.recv()

    run(test)


def test_the_command_refuses_nonsense_in_one_line() -> None:
    for arguments, complaint in (
        (
            ["--server", "web-1=127.0.0.1:1", "--server", "web-1=127.0.0.1:2#other"],
            "two web servers have the name 'web-1'",
        ),
        (["--server", "web-1"], "'web-1' is not NAME=HOST:PORT#TAG"),
        (["--server", "web-1=127.0.0.1:1", "--listen", "203.0.113.7:80"], "203.0.113.7"),
    ):
        command = [sys.executable, "-m", "coatcheck.director", *arguments]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert ended.returncode in (1, 2)
        assert complaint in ended.stderr
        assert "Traceback" not in ended.stderr


def test_a_shortage_of_descriptors_ejects_no_web_server() -> None:
    async def test() -> None:
        async with processes(2, descriptors=128) as running, client(running) as known:
            assert (await known.ask(get())).status == 200
            idle = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(200)]
            for _ in range(10):
                # Long enough for health checks to fail twice, if they did.
                await asyncio.sleep(0.1)
                async with client(running) as new:
                    assert (await new.ask(get())).status == 200
            for _, writer in idle:
                writer.close()
            status = await asyncio.to_thread(running.stop)
            assert status["errors"]["no_server"] == status["errors"]["upstream_lost"] == 0
            assert running.director is not None
            assert [server["failures"] for server in status["servers"]] == [0, 0]

    run(test)
