"""Litestar's own way to sessions: the middleware in its list, ``exclude``, ``scopes``, ``SessionAuth``, WebSockets."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from litestar import Litestar, Request, WebSocket, get, post, websocket
from litestar.connection import ASGIConnection
from litestar.exceptions import ImproperlyConfiguredException
from litestar.response import Stream
from litestar.security.session_auth import SessionAuth
from litestar.testing import TestClient

from coatcheck import CookiePolicy, SessionMiddleware, connect
from coatcheck.drivers.sessions import Sessions
from coatcheck.web.litestar import ServerSideSession

KEY = "for-tests-only-for-tests-only-for-tests-001"
AnyRequest = Request[Any, Any, Any]


@get("/")
async def show(request: AnyRequest) -> dict[str, Any]:
    return dict(request.session)


@post("/add")
async def add(request: AnyRequest) -> dict[str, Any]:
    cart = request.session.setdefault("cart", {})
    cart["tea"] = cart.get("tea", 0) + 1
    return dict(cart)


@post("/set")
async def set_(request: AnyRequest) -> None:
    request.set_session({"user_id": 7})


@post("/clear")
async def clear(request: AnyRequest) -> None:
    request.clear_session()


@get("/stream")
async def stream(request: AnyRequest) -> Stream:
    session: Any = request.session

    async def pieces() -> Any:
        yield "one "
        session["late"] = True
        yield "two"

    return Stream(pieces())


@get("/static/page")
async def excluded(request: AnyRequest) -> str:
    with pytest.raises(ImproperlyConfiguredException):
        _ = request.session
    return "no session"


@get("/opted-out", skip_session=True)
async def opted_out(request: AnyRequest) -> bool:
    return "session" in request.scope


@websocket("/talk")
async def talk(socket: WebSocket[Any, Any, Any]) -> None:
    socket.session["talks"] = socket.session.get("talks", 0) + 1
    await socket.accept()
    await socket.send_json(dict(socket.session))
    await socket.close()


HANDLERS = [show, add, set_, clear, stream, excluded, opted_out, talk]


@pytest.fixture
def sessions() -> Sessions:
    return connect("memory://", key=KEY, cookies=CookiePolicy(insecure_localhost=True))


def app_of(sessions: Sessions, **more: Any) -> Litestar:
    return Litestar(HANDLERS, middleware=[ServerSideSession(sessions, exclude="^/static", **more).middleware])


@pytest.fixture
def browser(sessions: Sessions) -> Iterator[TestClient[Litestar]]:
    with TestClient(app_of(sessions)) as made:
        yield made


def test_a_session_from_first_item_to_its_end(browser: TestClient[Litestar]) -> None:
    assert "set-cookie" not in browser.get("/").headers
    assert [browser.post("/add").json() for _ in range(2)] == [{"tea": 1}, {"tea": 2}], "a nested change"
    assert set(browser.cookies) == {"coatcheck"}
    browser.post("/set")
    assert browser.get("/").json() == {"user_id": 7}, "set_session replaces everything"
    stolen = dict(browser.cookies)
    browser.post("/clear")
    assert browser.get("/").json() == {}
    browser.cookies.update(stolen)
    assert browser.get("/").json() == {}, "it is over on the server"


def test_a_stream_and_a_websocket(browser: TestClient[Litestar]) -> None:
    browser.post("/add")
    assert browser.get("/stream").text == "one two"
    assert browser.get("/").json() == {"cart": {"tea": 1}, "late": True}
    with browser.websocket_connect("/talk") as socket:
        assert socket.receive_json() == {"cart": {"tea": 1}, "late": True, "talks": 1}
    assert browser.get("/").json()["talks"] == 1


def test_what_is_excluded(browser: TestClient[Litestar]) -> None:
    assert browser.get("/static/page").text == "no session"
    assert browser.get("/opted-out").json() is False


def test_scopes(sessions: Sessions) -> None:
    with TestClient(app_of(sessions, scopes={"websocket"})) as browser:
        assert browser.get("/").status_code == 500
        with browser.websocket_connect("/talk") as socket:
            assert socket.receive_json() == {"talks": 1}


def test_an_outer_layer_of_ours_has_the_session(sessions: Sessions) -> None:
    """As under ``coatcheck serve``."""
    outer = connect("memory://", key=KEY)
    app = SessionMiddleware(app_of(sessions), outer)  # type: ignore[arg-type]

    async def story() -> None:
        transport = httpx.ASGITransport(app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="http://shop.example") as browser:
            await browser.post("/add")
            assert (await browser.get("/")).json() == {"cart": {"tea": 1}}
            await browser.post("/set")
            assert (await browser.get("/")).json() == {"user_id": 7}
            assert len(await outer.list_sessions()) == 1
            await browser.post("/clear")
            assert [each.state for each in await outer.list_sessions()] == ["closed"]
        assert not sessions.is_open
        await outer.aclose()

    asyncio.run(story())


async def retrieve(session: dict[str, Any], connection: ASGIConnection[Any, Any, Any, Any]) -> int | None:
    return session.get("user_id")


def test_session_auth(sessions: Sessions) -> None:
    """Litestar's own logins by a session."""

    @get("/me")
    async def me(request: AnyRequest) -> int:
        return int(request.user)

    @post("/login")
    async def login(request: AnyRequest) -> None:
        request.set_session({"user_id": 7})

    config = ServerSideSession(sessions)
    auth = SessionAuth[int, Any](
        retrieve_user_handler=retrieve, session_backend_config=config, exclude=["^/login", "^/schema"]
    )
    with TestClient(Litestar([me, login, clear], on_app_init=[auth.on_app_init])) as browser:
        assert browser.get("/me").status_code == 401
        browser.post("/login")
        assert browser.get("/me").json() == 7
        stolen = dict(browser.cookies)
        browser.post("/clear")
        assert browser.get("/me").status_code == 401
        browser.cookies.update(stolen)
        assert browser.get("/me").status_code == 401
