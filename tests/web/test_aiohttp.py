"""aiohttp apps on a real aiohttp server: responses, streams, WebSockets, refusals, and aiohttp_session's calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import aiohttp_session
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from coatcheck import ConfigError, CookiePolicy, ErrorPages, connect
from coatcheck.drivers.sessions import Sessions
from coatcheck.web.aiohttp import setup

KEY = "for-tests-only-for-tests-only-for-tests-001"
DEADLINE_S = 30.0


async def show(request: web.Request) -> web.Response:
    session = request["session"]
    return web.json_response({"user": session.user, "data": dict(session)})


async def add(request: web.Request) -> web.Response:
    cart = request["session"].setdefault("cart", {})
    cart["tea"] = cart.get("tea", 0) + 1
    return web.json_response(cart)


async def login(request: web.Request) -> web.Response:
    request["session"].regenerate("ada")
    raise web.HTTPSeeOther("/")


async def logout(request: web.Request) -> web.Response:
    request["session"].close()
    return web.Response(text="good bye")


async def fails(request: web.Request) -> web.Response:
    request["session"]["cart"] = 5
    raise LookupError("a mistake")


async def unstorable(request: web.Request) -> web.Response:
    request["session"]["what"] = object()
    return web.Response(text="x" * 1000)


async def stream(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    await response.write(b"one ")
    request["session"]["late"] = True
    await response.write(b"two")
    if request.query:
        await response.write_eof(b"!")
    return response


async def begins_a_stream(request: web.Request) -> web.StreamResponse:
    request["session"]["n"] = 1
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"tick ")
        await asyncio.sleep(0.01)


async def talk(request: web.Request) -> web.WebSocketResponse:
    request["session"]["talks"] = request["session"].get("talks", 0) + 1
    socket = web.WebSocketResponse()
    await socket.prepare(request)
    async for message in socket:
        await socket.send_str(f"{message.data} {request['session']['talks']}")
    return socket


async def untouched(request: web.Request) -> web.Response:
    return web.Response(text="for everybody")


async def theirs(request: web.Request) -> web.Response:
    """As apps of aiohttp_session are written."""
    session = await aiohttp_session.get_session(request)
    match request.query.get("do"):
        case "set":
            session["who"] = "ada"
            session.setdefault("list", []).append(1)
        case "new":
            session = await aiohttp_session.new_session(request)
            session["who"] = "eve"
        case "invalidate":
            session.invalidate()
    return web.json_response({"new": session.new, "data": dict(session)})


HANDLERS = (show, add, login, logout, fails, unstorable, stream, begins_a_stream, talk, untouched, theirs)


@asynccontextmanager
async def site(sessions: Sessions | None = None, **more: Any) -> AsyncIterator[tuple[Sessions, aiohttp.ClientSession]]:
    app = web.Application()
    sub = web.Application()
    sub.router.add_get("/add", add)
    for handler in HANDLERS:
        app.router.add_route("*", "/" if handler is show else f"/{handler.__name__}", handler)
    app.add_subapp("/sub", sub)
    sessions = sessions or connect("memory://", key=KEY)
    setup(app, sessions, CookiePolicy(insecure_localhost=True), **more)
    async with TestServer(app) as server:
        jar = aiohttp.CookieJar(unsafe=True)
        async with aiohttp.ClientSession(server.make_url("/"), cookie_jar=jar) as browser:
            yield sessions, browser


def told(story: Any, *arguments: Any, **more: Any) -> None:
    async def run() -> None:
        async with site(*arguments, **more) as (sessions, browser):
            await asyncio.wait_for(story(sessions, browser), 2 * DEADLINE_S)

    asyncio.run(run())


async def text(browser: aiohttp.ClientSession, path: str, method: str = "GET") -> str:
    async with browser.request(method, path) as answer:
        return await answer.text()


def test_a_session_from_first_item_to_logout() -> None:
    async def story(sessions: Sessions, browser: aiohttp.ClientSession) -> None:
        async with browser.get("/untouched") as answer:
            assert "set-cookie" not in answer.headers
            assert "cache-control" not in answer.headers, "it says its length, and nobody looked at the session"
        async with browser.post("/add") as answer:
            assert answer.headers["cache-control"] == "no-store"
            assert "HttpOnly" in answer.headers["set-cookie"]
        assert await text(browser, "/sub/add") == '{"tea": 2}', "a nested change, in an app below"
        assert await text(browser, "/login", "POST") == '{"user": "ada", "data": {"cart": {"tea": 2}}}'
        stolen = {each.key: each.value for each in browser.cookie_jar}
        await text(browser, "/logout", "POST")
        async with aiohttp.ClientSession(browser._base_url, cookies=stolen) as other:
            assert await text(other, "/") == '{"user": null, "data": {}}'

    told(story)


@pytest.mark.parametrize("path", ["/fails", "/unstorable"])
def test_a_request_that_fails_keeps_nothing(path: str) -> None:
    async def story(sessions: Sessions, browser: aiohttp.ClientSession) -> None:
        await text(browser, "/add")
        async with browser.get(path) as answer:
            assert (answer.status, "500" in await answer.text()) == (500, True)
        assert await text(browser, "/") == '{"user": null, "data": {"cart": {"tea": 1}}}'

    told(story)


@pytest.mark.parametrize("path", ["/stream", "/stream?eof=1"])
def test_what_is_changed_in_a_stream_is_stored_before_its_end(path: str) -> None:
    async def story(sessions: Sessions, browser: aiohttp.ClientSession) -> None:
        await text(browser, "/add")
        assert await text(browser, path) in ("one two", "one two!")
        assert await text(browser, "/") == '{"user": null, "data": {"cart": {"tea": 1}, "late": true}}'

    told(story)


def test_what_is_open_ends_with_its_session() -> None:
    async def story(sessions: Sessions, browser: aiohttp.ClientSession) -> None:
        async with browser.get("/begins_a_stream") as answer:
            assert await answer.content.readexactly(5) == b"tick "
            async with browser.ws_connect("/talk") as socket:
                await socket.send_str("hello")
                assert await socket.receive_str() == "hello 1"
                [info] = await sessions.list_sessions()
                await sessions.close_key(bytes.fromhex(info.key))
                closed = await socket.receive(DEADLINE_S)
                assert (closed.type, closed.data) == (aiohttp.WSMsgType.CLOSE, 1008)
            assert len(await answer.content.read()) % 5 == 0, "its last piece came in order"

    told(story)


def test_a_websocket_begins_a_session() -> None:
    async def story(sessions: Sessions, browser: aiohttp.ClientSession) -> None:
        for count in (1, 2):
            async with browser.ws_connect("/talk") as socket:
                await socket.send_str("hello")
                assert await socket.receive_str() == f"hello {count}"
        assert len(await sessions.list_sessions()) == 1

    told(story)


@pytest.mark.parametrize("path", ["/add", "/begins_a_stream", "/talk"])
def test_what_was_not_stored_is_not_said(path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story(sessions: Sessions, browser: aiohttp.ClientSession) -> None:
        async def stopping(*_: Any) -> Any:
            from coatcheck.errors import SessionUnavailable, UnavailableReason

            opened = _[0]
            return opened.home.requests.refuse(opened, SessionUnavailable(UnavailableReason.NO_SERVER))

        await text(browser, "/untouched")
        monkeypatch.setattr(sessions, "finish", stopping)
        headers = {"Upgrade": "websocket", "Connection": "Upgrade", "Sec-WebSocket-Version": "13"}
        headers["Sec-WebSocket-Key"] = "dGhlIHNhbXBsZSBub25jZQ=="
        async with browser.get(path, headers=headers if path == "/talk" else {}) as answer:
            assert (answer.status, answer.headers["retry-after"]) == (503, "1")
            assert "session not saved" in await answer.text()
            assert "set-cookie" not in answer.headers

    told(story)


def test_the_calls_of_aiohttp_session() -> None:
    async def story(sessions: Sessions, browser: aiohttp.ClientSession) -> None:
        assert await text(browser, "/theirs") == '{"new": true, "data": {}}'
        assert await text(browser, "/theirs?do=set") == '{"new": true, "data": {"who": "ada", "list": [1]}}'
        assert await text(browser, "/theirs?do=set") == '{"new": false, "data": {"who": "ada", "list": [1, 1]}}'
        [old] = await sessions.list_sessions()
        assert await text(browser, "/theirs?do=new") == '{"new": false, "data": {"who": "eve"}}'
        states = {each.key: each.state for each in await sessions.list_sessions()}
        assert states.pop(old.key) == "closed"
        assert list(states.values()) != ["closed"]
        await text(browser, "/theirs?do=invalidate")
        assert {each.state for each in await sessions.list_sessions()} == {"closed"}

    told(story)


def test_wrong_arguments() -> None:
    sessions = connect("memory://", key=KEY)
    for arguments in (
        (object(), sessions),
        (web.Application(), connect("memory://", key=KEY, driver="threads")),
        (web.Application(), sessions, "cookies"),
        (web.Application(), sessions, None, None, 5),
    ):
        with pytest.raises(ConfigError):
            setup(*arguments)  # type: ignore[arg-type]
    setup(web.Application(), sessions, error_pages=ErrorPages())
