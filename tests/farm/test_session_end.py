"""Nothing that is open stays logged in (mission N4): WebSockets and streams of real farms end with their session."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from .farm_process import Farm, eventually

LEASE_S = 8.0
"""The bound that is promised; an answer is good for 5 s of it, so that 3 s are left for a busy machine."""

APP = """
import asyncio, os
from coatcheck import SessionEnd
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute

async def login(request):
    request.session.regenerate("ada")
    return JSONResponse(os.environ["COATCHECK_SERVER"])

async def count(request):
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse(os.environ["COATCHECK_SERVER"])

async def logout(request):
    request.session.close()
    return JSONResponse(os.environ["COATCHECK_SERVER"])

async def events(request):
    async def pieces():
        yield f"data: {os.environ['COATCHECK_SERVER']}\\n\\n"
        while True:
            await asyncio.sleep(0.1)
            yield ": still here\\n\\n"
    return StreamingResponse(pieces(), media_type="text/event-stream")

async def talk(websocket):
    await websocket.accept()
    await websocket.send_text(os.environ["COATCHECK_SERVER"])
    async for text in websocket.iter_text():
        await websocket.send_text(text + "!")
    print("the app has left its WebSocket", flush=True)

async def own(websocket):
    await websocket.accept()
    await websocket.send_text(os.environ["COATCHECK_SERVER"])
    end = await websocket.session.ended()
    await websocket.send_text(f"good bye: {end.value} {end is SessionEnd.CLOSED}")
    await websocket.close(4001, "own reason")

posts = [Route(f"/{call.__name__}", call, methods=["POST"]) for call in (login, count, logout)]
app = Starlette(routes=[*posts, Route("/events", events), WebSocketRoute("/talk", talk), WebSocketRoute("/own", own)])
"""


class Browser:
    """One cookie jar; each request goes to the web server that it names, by that server's route cookie."""

    def __init__(self, running: Farm) -> None:
        self._open = ExitStack()
        self.base = running.base
        self.client = httpx.Client(base_url=self.base, timeout=60)
        self.routes: dict[str, str] = {}
        while len(self.routes) < 2:  # without a route the director takes turns
            with httpx.Client(base_url=self.base, timeout=60) as other:
                name = other.post("/count").json()
                self.routes[name] = other.cookies["coatcheck-route"]

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def cookies(self, server: str) -> str:
        pairs = {name: value for name, value in self.client.cookies.items() if name != "coatcheck-route"}
        return "; ".join(f"{name}={value}" for name, value in {**pairs, "coatcheck-route": self.routes[server]}.items())

    def post(self, server: str, path: str) -> None:
        headers = {"cookie": self.cookies(server)}
        answer = self.client.post(path, headers=headers)
        assert answer.json() == server

    def websocket(self, server: str, path: str) -> ClientConnection:
        address, headers = self.base.replace("http", "ws") + path, {"cookie": self.cookies(server)}
        opened = self._open.enter_context(connect(address, additional_headers=headers))
        assert opened.recv(60) == server
        return opened

    def events(self, server: str) -> Iterator[bytes]:
        with self.client.stream("GET", "/events", headers={"cookie": self.cookies(server)}) as answer:
            assert answer.headers["cache-control"] == "no-store"
            yield from answer.iter_bytes()


def close_code(websocket: ClientConnection) -> tuple[int, str]:
    with pytest.raises(ConnectionClosed) as closed:
        while True:
            websocket.recv(60)
    assert closed.value.rcvd is not None
    return closed.value.rcvd.code, closed.value.rcvd.reason


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_what_is_open_ends_within_a_lease_of_the_logout(farm: Callable[..., Farm], tmp_path: Path, server: str) -> None:
    (tmp_path / "streams.py").write_text(APP)
    running = farm("--web", "2", "--lease", f"{LEASE_S:g}s", "--server", server, app="streams:app")
    with ThreadPoolExecutor(4) as pool, Browser(running) as browser:
        browser.post("web-1", "/login")
        sockets = [browser.websocket("web-1", "/talk"), browser.websocket("web-2", "/talk")]
        streams = [browser.events("web-1"), browser.events("web-2")]
        assert [next(stream) for stream in streams] == [b"data: web-1\n\n", b"data: web-2\n\n"]
        rest = [pool.submit(list, stream) for stream in streams]
        browser.post("web-2", "/count")  # from here on web-2 is the owner, and web-1 hears nothing any more
        sockets[0].send("a")
        assert sockets[0].recv(60) == "a!"
        time.sleep(0.5)
        assert not any(each.done() for each in rest)
        browser.post("web-2", "/logout")
        left = time.monotonic()
        assert [close_code(socket) for socket in sockets] == [(1008, "session closed")] * 2
        assert all(each.result(60)[-1] == b": still here\n\n" for each in rest), "the end is an end in order"
        assert time.monotonic() - left <= LEASE_S
        eventually(lambda: running.log.count("the app has left its WebSocket") == 2, "the end of the apps")
        assert "Traceback" not in running.log, running.log


def test_what_is_open_ends_when_the_operator_closes_the_session(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "streams.py").write_text(APP)
    running = farm("--web", "2", "--lease", f"{LEASE_S:g}s", app="streams:app")
    with ThreadPoolExecutor(1) as pool, Browser(running) as browser:
        browser.post("web-1", "/login")
        socket = browser.websocket("web-1", "/talk")
        listed = running.run("sessions", "ls", "--json")
        key = next(row["key"] for row in json.loads(listed.stdout) if row["user"] == "ada")
        code = pool.submit(close_code, socket)
        assert running.run("sessions", "close", key).returncode == 0
        left = time.monotonic()
        assert code.result(60) == (1008, "session closed")
        assert time.monotonic() - left <= LEASE_S


def test_what_is_open_ends_at_the_idle_timeout_and_the_app_may_close_it_itself(
    farm: Callable[..., Farm], tmp_path: Path
) -> None:
    (tmp_path / "streams.py").write_text(APP)
    running = farm("--web", "2", "--idle-timeout", "2s", app="streams:app")
    with Browser(running) as browser:
        browser.post("web-1", "/login")
        socket = browser.websocket("web-1", "/talk")
        begun = time.monotonic()
        assert close_code(socket) == (1008, "session expired")
        assert time.monotonic() - begun >= 2


def test_the_app_is_told_and_closes_in_its_own_way(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "streams.py").write_text(APP)
    running = farm("--web", "2", "--open-streams", "tell", app="streams:app")
    with Browser(running) as browser:
        browser.post("web-1", "/login")
        own, talk = browser.websocket("web-1", "/own"), browser.websocket("web-1", "/talk")
        browser.post("web-2", "/logout")
        assert own.recv(60) == "good bye: closed True"
        assert close_code(own) == (4001, "own reason")
        talk.send("still")
        assert talk.recv(60) == "still!", "who does not ask is not told"
