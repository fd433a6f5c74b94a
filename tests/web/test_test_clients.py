"""Apps are tested as their frameworks teach: no lifespan, event loops in turn and side by side, sessions in memory."""

from __future__ import annotations

import asyncio
import gc
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.testclient import TestClient as FastAPITestClient
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from coatcheck import CookiePolicy, SessionMiddleware, connect
from coatcheck.errors import CoatcheckError

from .in_process import acting, count, served

KEY = "AbcdEfgh0123_-AbcdEfgh0123_-AbcdEfgh0123_-A"


def site() -> Starlette:
    async def counting(request: Any) -> JSONResponse:
        return JSONResponse(count(request.session))

    async def logout(request: Any) -> JSONResponse:
        request.session.close()
        return JSONResponse(None)

    async def talk(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_json(dict(websocket.session))
        async for text in websocket.iter_text():
            await websocket.send_text(text + "!")

    return Starlette(routes=[Route("/", counting), Route("/logout", logout), WebSocketRoute("/talk", talk)])


def app(url: str = "memory://") -> SessionMiddleware:
    return SessionMiddleware(site(), connect(url, key=KEY))


@pytest.fixture(params=["memory", "sqlite"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory" else f"sqlite:///{tmp_path}/sessions.db"


def client(url: str, made: SessionMiddleware) -> TestClient:
    return TestClient(made) if url == "memory://" else TestClient(made, base_url="https://testserver")


def test_a_test_client_without_with_has_an_event_loop_for_each_request(url: str) -> None:
    browser = client(url, app(url))
    assert [browser.get("/").json() for _ in range(5)] == [1, 2, 3, 4, 5]
    browser.get("/logout")
    assert browser.get("/").json() == 1


def test_a_test_client_with_a_lifespan_and_another_after_it(url: str) -> None:
    made = app(url)
    with client(url, made) as browser:
        assert [browser.get("/").json() for _ in range(3)] == [1, 2, 3]
        cookies = browser.cookies
    with client(url, made) as later:
        later.cookies = cookies
        assert later.get("/").json() == 4
    browser = client(url, made)
    browser.cookies = cookies
    assert browser.get("/").json() == 5


def test_event_loops_in_turn(url: str) -> None:
    made = app(url)
    jar = httpx.Cookies()

    async def visit() -> int:
        base = "http://testserver" if url == "memory://" else "https://testserver"
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url=base, cookies=jar) as browser:
            seen = (await browser.get("/")).json()
            jar.update(browser.cookies)
            return int(seen)

    assert [asyncio.run(visit()) for _ in range(4)] == [1, 2, 3, 4]
    loop = asyncio.new_event_loop()  # one that ends without closing anything
    try:
        assert loop.run_until_complete(visit()) == 5
    finally:
        loop.close()
    assert asyncio.run(visit()) == 6


def test_a_websocket_beside_requests_is_a_second_event_loop_at_the_same_time(url: str) -> None:
    browser = client(url, app(url))
    assert browser.get("/").json() == 1
    # Starlette's client shows Secure cookies to wss:// alone, and says ws:// if it is not told.
    with browser.websocket_connect("/talk" if url == "memory://" else "wss://testserver/talk") as socket:
        assert socket.receive_json() == {"n": 1}
        assert [browser.get("/").json() for _ in range(3)] == [2, 3, 4]
        socket.send_text("still there")
        assert socket.receive_text() == "still there!"
        browser.get("/logout")
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_text()
        assert closed.value.code == 1008
    assert browser.get("/").json() == 1


def test_threads_with_an_event_loop_each_share_what_is_in_memory() -> None:
    made = app()

    def browse(number: int) -> list[int]:
        browser = TestClient(made)
        return [browser.get("/").json() for _ in range(15)]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(browse, range(6))) == [list(range(1, 16))] * 6


def test_nothing_is_left_open_when_the_event_loop_ends(url: str) -> None:
    made = app(url)

    async def visit() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(made), base_url="https://testserver") as browser:
            await browser.get("/")

    before = threading.active_count()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        asyncio.run(visit())
        gc.collect()
    assert [str(each.message) for each in caught if each.category is ResourceWarning] == []
    assert threading.active_count() == before
    assert not made.sessions.is_open


def test_each_connect_to_memory_is_empty() -> None:
    browser = TestClient(app())
    browser.get("/")
    other = TestClient(app())
    other.cookies = browser.cookies
    assert other.get("/").json() == 1


def test_cookies_for_plain_http_are_for_memory_alone(tmp_path: Path) -> None:
    assert "Secure" not in TestClient(app()).get("/").headers["set-cookie"]
    assert "Secure" in TestClient(app(f"sqlite:///{tmp_path}/s.db")).get("/").headers["set-cookie"]
    strict = SessionMiddleware(site(), connect("memory://", key=KEY), CookiePolicy())
    assert "__Host-" in TestClient(strict).get("/").headers["set-cookie"]


def test_fastapi_as_it_teaches() -> None:
    api = FastAPI()

    @api.get("/")
    def read(request: Request) -> int:
        return count(request.session)

    api.add_middleware(SessionMiddleware, sessions=connect("memory://", key=KEY))
    browser = FastAPITestClient(api)
    assert [browser.get("/").json() for _ in range(3)] == [1, 2, 3]


def test_stores_that_cannot_be_made_again_say_so_where_two_loops_run_at_once() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            with pytest.raises(CoatcheckError, match="another event loop"):
                await asyncio.to_thread(lambda: TestClient(server.middleware).get("/"))

    asyncio.run(story())


def test_each_opening_draws_a_server_id() -> None:
    sessions = connect("memory://", key=KEY)
    drawn = []

    async def opened() -> None:
        await sessions.start()
        drawn.append(sessions.server_id)
        assert sessions.copies.server_id == sessions.server_id
        await sessions.aclose()

    for _ in range(3):
        asyncio.run(opened())
    assert len(set(drawn)) == 3
