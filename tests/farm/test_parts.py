"""The supervisor's parts by themselves: console, control channel, app loading, run directory."""

from __future__ import annotations

import asyncio
import io
import os
import re
import socket
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from coatcheck.errors import ConfigError
from coatcheck.farm.control.asking import call_farm
from coatcheck.farm.control.channel import ControlServer, Peer
from coatcheck.farm.control.lines import ControlError, Message, encode
from coatcheck.farm.files.run_directory import RunDirectory
from coatcheck.farm.plan.ports import InternalPorts, listen
from coatcheck.farm.processes.application import installs_starlette_sessions, interface_of, load_application
from coatcheck.farm.processes.forwarded_items import ForwardedItems
from coatcheck.farm.processes.front_door import HEALTH_PATH, AppShell
from coatcheck.farm.settings.farm_settings import Interface
from coatcheck.farm.supervision.console import Console
from coatcheck.replication.placement import Placement
from coatcheck.stores.session_server_url import SessionServerAddress
from coatcheck.stores.take_once.opening import items_at, items_in_memory
from coatcheck.take_once.port import TakeOnceUnavailable
from coatcheck.web.open_websocket import OpenWebSocket


def test_console_names_and_defuses_lines() -> None:
    out = io.StringIO()
    console = Console(out, colour=False, now=lambda: 1.5)
    console.line("web-1", "hello\x1b[2J\x07")
    console.say("bye")
    console.close()
    at = "1970-01-01T00:00:01.500Z"
    assert out.getvalue() == f"{at} web-1     │ hello\\x1b[2J\\x07\n{at} coatcheck │ bye\n"
    coloured = io.StringIO()
    console = Console(coloured, colour=True)
    console.line("web-1", "x")
    console.close()
    assert re.match(r"\d\d:\d\d:\d\dZ \x1b\[", coloured.getvalue())


def test_a_reader_who_stopped_reading_stops_nothing() -> None:
    free = threading.Event()

    class Stuck(io.StringIO):
        def write(self, text: str) -> int:
            free.wait(10)
            return super().write(text)

    stuck = Stuck()
    console = Console(stuck, colour=False)
    for n in range(Console.MAX_LINES + 500):
        console.line("web-1", str(n))
    free.set()
    while not console._lines.empty():
        pass
    console.say("after")
    console.close()
    assert "log lines were dropped" in stuck.getvalue()
    assert stuck.getvalue().endswith("after\n")


def test_control_channel_answers_refuses_and_is_bounded(tmp_path: Path) -> None:
    # A path longer than a unix socket's address may be.
    directory = tmp_path / ("d" * 90) / ("e" * 90)
    directory.mkdir(parents=True)

    async def answer(message: Message, progress: object) -> Message:
        if message["op"] == "boom":
            raise ControlError("no such thing")
        assert callable(progress)
        progress({"progress": "half"})
        return {"echo": message}

    async def run() -> None:
        server = ControlServer(directory / "control.sock", answer)
        await server.start()

        def ask(op: str) -> list[Message]:
            return list(call_farm(directory / "control.sock", {"op": op}, 30))

        assert await asyncio.to_thread(ask, "x") == [{"progress": "half"}, {"echo": {"op": "x"}}]
        with pytest.raises(ControlError, match="no such thing"):
            await asyncio.to_thread(ask, "boom")
        for junk in (b"\x00\xff\n", b"[1]\n", b"x" * (5 << 20)):
            await asyncio.to_thread(throw, directory / "control.sock", junk)
        assert len(await asyncio.to_thread(ask, "x")) == 2
        await server.aclose()

    asyncio.run(run())
    with pytest.raises(ControlError, match="no farm is running"):
        list(call_farm(directory / "control.sock", {"op": "x"}, 30))


def throw(path: Path, junk: bytes) -> None:
    """Send junk and read what comes, if anything."""
    directory = os.open(path.parent, os.O_PATH)
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(30)
        sock.connect(f"/proc/self/fd/{directory}/{path.name}")
        try:
            sock.sendall(junk)
            assert b"error" in sock.recv(4096) or len(junk) > 1 << 20
        except (BrokenPipeError, ConnectionResetError):
            assert len(junk) > 1 << 20
    os.close(directory)


def test_a_peer_that_is_late_or_gone() -> None:
    async def run() -> None:
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        events: list[Message] = []
        peer = Peer(ours, events.append)
        await peer.open()
        with pytest.raises(ControlError, match=r"no answer to ping within 0.1 s"):
            await peer.call("ping", 0.1)
        theirs.sendall(encode({"event": "ready"}) + encode({"id": 99}))
        waiting = asyncio.create_task(peer.call("ping", 30))
        async with asyncio.timeout(30):
            while not events:
                await asyncio.sleep(0.01)
        assert events == [{"event": "ready"}]
        theirs.close()
        with pytest.raises(ControlError, match="gone"):
            await waiting
        with pytest.raises(ControlError, match="gone"):
            await peer.call("ping", 30)
        await peer.aclose()

    asyncio.run(run())


def test_front_door_answers_health_and_counts() -> None:
    async def run() -> None:
        stopping = asyncio.Event()
        inside: list[int] = []

        async def app(scope: object, receive: object, send: object) -> None:
            inside.append(door.in_flight)
            raise ValueError("the app's own mistake")

        door = AppShell(app, stopping)
        sent: list[Message] = []

        async def send(message: Message) -> None:
            sent.append(message)

        await door({"type": "http", "path": HEALTH_PATH}, send, send)
        stopping.set()
        await door({"type": "http", "path": HEALTH_PATH}, send, send)
        assert [message["status"] for message in sent if "status" in message] == [200, 503]
        with pytest.raises(ValueError, match="mistake"):
            await door({"type": "http", "path": "/"}, send, send)
        assert (door.requests, door.in_flight, inside) == (1, 0, [1])

    asyncio.run(run())


def test_apps_are_found_or_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "found_app.py").write_text("class box:\n    async def app(scope, receive, send): ...\n")
    (tmp_path / "needs_more.py").write_text("import surely_not_installed\n")
    (tmp_path / "other_kinds.py").write_text(
        "async def half(environ, start_response): ...\n"
        "def make(): ...\nclass Old:\n    def __init__(self, scope): ...\n"
    )
    # The error is raised in the depths of the standard library; the line to mend is the user's own.
    (tmp_path / "asks_wrongly.py").write_text("import json\napp = json.loads('no json')\n")
    (tmp_path / "bad_syntax.py").write_text("def (:\n")
    assert callable(load_application("found_app:box.app"))
    for path, words in (
        ("needs_more:app", "No module named 'surely_not_installed'"),
        ("bad_syntax:app", "SyntaxError"),
        ("found_app:box.nothing", "no attribute 'box.nothing'"),
        (":", "write MODULE:ATTRIBUTE"),
        ("..:app", "is no module's name; did you mean app:app?"),
        ("found_app.py:app", "did you mean found_app:app?"),
        ("shop/web.py:app", "did you mean shop.web:app?"),
        ("other_kinds:half", "is no app; one of ASGI is called with scope, receive and send, one of WSGI with"),
        ("other_kinds:make", "if it makes one, add --factory"),
        ("other_kinds:Old", "one of ASGI is called with scope, receive and send"),
        ("asks_wrongly:app", "asks_wrongly.py, line 2)"),
    ):
        with pytest.raises(ConfigError) as caught:
            load_application(path)
        assert words in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not installs_starlette_sessions(load_application("found_app:box.app"))


KINDS = """
import functools

def wsgi(environ, start_response): ...
async def asgi(scope, receive, send): ...
def more(environ, start_response, *others): ...
def anything(*arguments): ...

class Pages:
    def __init__(self, environ, start_response): ...

class Wsgi:
    def __call__(self, environ, start_response): ...

class Asgi:
    async def __call__(self, scope, receive, send): ...

@functools.wraps(wsgi)
def wrapped(*arguments): ...

wsgi_object, asgi_object, in_c = Wsgi(), Asgi(), print
make_wsgi, make_asgi = lambda: wsgi, lambda: asgi
"""


def test_how_an_app_is_called_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    (tmp_path / "kinds.py").write_text(KINDS)

    def found(name: str, asked: Interface = "auto", factory: bool = False) -> str:
        return interface_of(load_application(f"kinds:{name}", factory, asked), name, asked)

    assert {found(name) for name in ("wsgi", "more", "Pages", "wsgi_object", "wrapped")} == {"wsgi"}
    assert {found(name) for name in ("asgi", "anything", "asgi_object", "in_c")} == {"asgi"}
    assert [found("make_wsgi", factory=True), found("make_asgi", factory=True)] == ["wsgi", "asgi"]
    assert [found("anything", "wsgi"), found("wsgi", "asgi")] == ["wsgi", "asgi"], "whoever says it knows better"


def test_farms_that_start_at_once_share_no_port(monkeypatch: pytest.MonkeyPatch) -> None:
    one, other = InternalPorts(), InternalPorts()
    monkeypatch.setattr("coatcheck.farm.plan.ports._INTERNAL", range(23_400, 23_420))
    try:
        addresses = [ports.take(f"web-{n}") for n in range(4) for ports in (one, other)]
        assert len({address.port for address in addresses}) == 8
        # A process of the farm can listen there all the same, and so can its successor.
        for _ in range(2):
            with listen(addresses[0]) as listening, socket.create_connection(listening.getsockname()):
                pass
    finally:
        one.close()
        other.close()


def test_run_directory_is_private_and_exclusive(tmp_path: Path) -> None:
    path = tmp_path / "run"
    first = RunDirectory(path)
    first.acquire()
    first.write({"pid": 7})
    with pytest.raises(ConfigError, match=r"a farm is running in .* \(pid 7\)"):
        RunDirectory(path).acquire()
    first.release()
    second = RunDirectory(path)
    second.acquire()
    assert second.read() == {}
    second.release()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="run_dir: "):
        RunDirectory(tmp_path / "file").acquire()


def test_an_app_learns_that_its_websocket_ends_when_the_close_has_left() -> None:
    """A server that sees the app end first closes without a code."""

    async def story() -> None:
        sent: list[Any] = []
        gate = asyncio.Event()

        async def send(message: Any) -> None:
            if message["type"] == "websocket.close":
                await gate.wait()
            sent.append(message)

        async def receive() -> Any:
            await asyncio.Event().wait()

        websocket = OpenWebSocket(receive, send)
        await websocket.send({"type": "websocket.accept"})
        app = asyncio.create_task(websocket.receive())
        hanging_up = asyncio.create_task(websocket.hang_up())
        await asyncio.sleep(0.05)
        assert not app.done()
        with pytest.raises(OSError, match="1012"):
            await websocket.send({"type": "websocket.send", "text": "too late"})
        gate.set()
        await hanging_up
        assert await app == {"type": "websocket.disconnect", "code": 1012, "reason": "service restart"}
        assert [message["type"] for message in sent] == ["websocket.accept", "websocket.close"]
        assert sent[-1]["code"] == 1012

    asyncio.run(story())


def test_a_session_server_that_hangs_is_not_asked_for_items_for_a_while() -> None:
    """Or each handshake of a director would wait for it; what is on the others is taken meanwhile."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        hanging = SessionServerAddress("silent", f"coatcheck://:hush@127.0.0.1:{silent.getsockname()[1]}")
        items = ForwardedItems([items_at(hanging, "farm", 0.05), items_in_memory("well")], limit_s=0.05)
        placed = Placement(["silent", "well"], copies=1)
        keys = [os.urandom(32) for _ in range(64)]
        there = [key for key in keys if placed.ranking(key)[0] == "silent"]
        other = next(key for key in keys if placed.ranking(key)[0] == "well")
        said = []
        for key in there[:5]:
            with pytest.raises(TakeOnceUnavailable) as caught:
                items.take(key, os.urandom(16), 0)
            said.append("is not asked for a while" in str(caught.value))
        assert said == [False, False, False, True, True]
        assert items.put(other, b"item", 60_000, b"", 0)
        assert items.take(other, os.urandom(16), 0) == b"item"
        assert items.take(other, os.urandom(16), 0) is None
