"""Responses in pieces, connections that stay open, browsers that leave, and servers without a lifespan."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

import in_hand
from coatcheck.errors import SessionUnavailable
from coatcheck.events import EventKind
from coatcheck.sessions.policy import SessionPolicy

from .in_process import Served, acting, count, look, served

COOKIE = "__Host-coatcheck"


def streaming(late: Any) -> Any:
    """Sends a piece, then does something to the session, then sends the last piece."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first ", "more_body": True})
        late(scope["session"])
        await send({"type": "http.response.body", "body": b"last"})

    return app


def test_late_changes_are_stored_before_the_last_piece_leaves() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            server.app = streaming(lambda s: s.update(late=True))
            assert (await browser.get("/")).text == "first last"
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'n': 1, 'late': True}"

    asyncio.run(story())


def test_early_and_late_changes_of_one_response() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["early"] = 1
        await streaming(lambda s: s.update(late=s["early"] + 1))(scope, receive, send)

    async def story() -> None:
        async with served(app) as server, server.client() as browser:
            created = await browser.get("/")
            assert COOKIE in created.headers["set-cookie"]
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'early': 1, 'late': 2}"

    asyncio.run(story())


def test_late_changes_that_cannot_be_stored_break_the_response_off() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")

            async def app(scope: Any, receive: Any, send: Any) -> None:
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"first ", "more_body": True})
                count(scope["session"])
                for store in server.stores:
                    await store.aclose()
                await send({"type": "http.response.body", "body": b"stored!"})

            server.app = app
            with pytest.raises(SessionUnavailable):
                await browser.get("/")

    asyncio.run(story())


def test_a_stream_that_changes_nothing_needs_no_session_server_in_the_end() -> None:
    """What was due by the response's head was stored then; what is due by its end, a next token say, can wait."""

    async def story() -> None:
        policy = SessionPolicy(rotate_after_ms=0)
        async with served(acting(count), policy=policy) as server, server.client() as browser:

            async def app(scope: Any, receive: Any, send: Any) -> None:
                count(scope["session"])
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"first ", "more_body": True})
                for store in server.stores:
                    await store.aclose()
                await asyncio.sleep(0.02)  # the next token is due
                await send({"type": "http.response.body", "body": b"last"})

            server.app = app
            answer = await browser.get("/")
            assert answer.text == "first last"
            assert COOKIE in answer.headers["set-cookie"]

    asyncio.run(story())


def test_a_late_change_to_nothing_is_a_change() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            server.app = streaming(lambda s: s.pop("n"))
            await browser.get("/")
            server.app = acting(lambda s: dict(s))
            assert (await browser.get("/")).text == "{}"

    asyncio.run(story())


def test_a_login_that_is_streamed_keeps_what_others_stored_meanwhile() -> None:
    opened, stored = asyncio.Event(), asyncio.Event()

    async def slow_login(scope: Any, receive: Any, send: Any) -> None:
        opened.set()
        await stored.wait()
        scope["session"].regenerate("ann")
        await streaming(lambda s: None)(scope, receive, send)

    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            server.app = slow_login
            login = asyncio.create_task(browser.get("/"))
            await opened.wait()
            server.app = acting(lambda s: s.update(other=1))
            await browser.get("/")
            stored.set()
            assert (await login).text == "first last"
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'n': 1, 'other': 1}"

    asyncio.run(story())


def test_starlettes_streams_work() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        def pieces() -> Iterator[bytes]:
            yield b"a"
            scope["session"]["streamed"] = True
            yield b"b"

        await StreamingResponse(pieces())(scope, receive, send)

    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            server.app = app
            assert (await browser.get("/")).text == "ab"
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'n': 1, 'streamed': True}"

    asyncio.run(story())


# -- browsers that leave -------------------------------------------------------------------------------------


@pytest.mark.parametrize("moment_s", [0.0, 0.01, 0.03, 0.05, 0.07])
def test_a_request_cancelled_while_it_saves_poisons_nothing(moment_s: float) -> None:
    """The put is on its way: it may count or not, but later requests are right, here and on another server."""

    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            for store in server.stores:
                store.delay_s = 0.05
            leaving = asyncio.create_task(browser.get("/"))
            await asyncio.sleep(moment_s)
            leaving.cancel()
            await asyncio.wait([leaving], timeout=60)
            for store in server.stores:
                store.delay_s = 0.0
            after = int((await browser.get("/")).text)
            assert after in (2, 3)
            for _ in range(3):
                after += 1
                assert (await browser.get("/")).text == str(after)
            other = server.another_server()
            await other.start()
            token = in_hand.unsealed(server.sessions, browser.cookies[COOKIE].encode(), False)
            assert token is not None
            session = await in_hand.opened(other, token)
            assert session == {"n": after}
            kinds = {event.kind for event in server.events}
            assert not kinds & {EventKind.SESSION_FORKED, EventKind.SESSION_ROLLED_BACK, EventKind.SESSION_THEFT}

    asyncio.run(story())


def test_a_cancelled_request_lets_the_waiting_ones_go_on() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            for store in server.stores:
                store.delay_s = 0.03
            tasks = [asyncio.create_task(browser.get("/")) for _ in range(6)]
            await asyncio.sleep(0.02)
            for task in tasks[::2]:
                task.cancel()
            done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)
            assert [type(one) is asyncio.CancelledError for one in done] == [True, False] * 3
            assert all(one.status_code == 200 for one in done[1::2])  # type: ignore[union-attr]
            server.app = acting(look)
            assert (await browser.get("/")).status_code == 200

    asyncio.run(story())


def test_a_cancelled_first_request_leaves_the_middleware_usable() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            first = asyncio.create_task(browser.get("/"))
            await asyncio.sleep(0)
            first.cancel()
            await asyncio.wait([first], timeout=60)
            assert (await browser.get("/")).text == "1"

    asyncio.run(story())


# -- lifespan -------------------------------------------------------------------------------------------------


async def lifespan(server: Served, app: Any, messages: list[str]) -> list[str]:
    server.app = app
    queue = [{"type": message} for message in messages]
    told: list[str] = []

    async def receive() -> Any:
        return queue.pop(0)

    async def send(message: Any) -> None:
        told.append(message["type"])

    await server.middleware({"type": "lifespan", "state": {}}, receive, send)
    return told


def test_lifespan_passes_through_and_opens_and_closes_the_sessions() -> None:
    states: list[Any] = []

    @asynccontextmanager
    async def life(app: Any) -> Any:
        states.append("up")
        yield {"shared": 1}
        states.append("down")

    async def story() -> None:
        async with served(acting(count)) as server:
            assert not server.sessions.is_open
            told = await lifespan(server, Starlette(lifespan=life), ["lifespan.startup", "lifespan.shutdown"])
            assert told == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
            assert states == ["up", "down"]
            assert not server.sessions.is_open

    asyncio.run(story())


def test_an_app_without_lifespan_raises_as_it_would_alone_and_is_served_all_the_same() -> None:
    async def http_only(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await acting(count)(scope, receive, send)

    async def story() -> None:
        async with served(http_only) as server, server.client() as browser:
            with pytest.raises(AssertionError):  # what servers take for "no lifespan here"
                await lifespan(server, http_only, ["lifespan.startup"])
            assert (await browser.get("/")).text == "1"
            assert (await browser.get("/")).text == "2"

    asyncio.run(story())


def test_other_kinds_of_scope_pass_untouched() -> None:
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope)

    async def story() -> None:
        async with served(app) as server:
            await server.middleware({"type": "webtransport"}, None, None)  # type: ignore[arg-type]
            assert seen == [{"type": "webtransport"}]

    asyncio.run(story())


# -- WebSocket ------------------------------------------------------------------------------------------------


def make_chat() -> Starlette:
    async def enter(request: Request) -> JSONResponse:
        request.session["nick"] = request.query_params["nick"]
        return JSONResponse("entered")

    async def chat(socket: WebSocket) -> None:
        if "nick" not in socket.session:
            socket.session["nick"] = "guest"
        await socket.accept()
        await socket.send_json(dict(socket.session))
        await socket.close()

    async def who(request: Request) -> JSONResponse:
        return JSONResponse(dict(request.session))

    return Starlette(routes=[Route("/enter", enter), Route("/who", who), WebSocketRoute("/chat", chat)])


def chatting() -> TestClient:
    async def build() -> Any:
        async with served(make_chat()) as server:
            return server.middleware

    return TestClient(asyncio.run(build()), base_url="https://farm.example")


def test_a_websocket_reads_the_session() -> None:
    with chatting() as browser:
        browser.get("/enter?nick=ada")
        shown = {"cookie": f"{COOKIE}={browser.cookies[COOKIE]}"}
        with browser.websocket_connect("/chat", headers=shown) as socket:
            assert socket.receive_json() == {"nick": "ada"}
            assert b"set-cookie" not in dict(socket.extra_headers or [])


def test_a_websocket_can_begin_a_session_when_it_is_accepted() -> None:
    with chatting() as browser:
        with browser.websocket_connect("/chat") as socket:
            assert socket.receive_json() == {"nick": "guest"}
            cookies = [value for name, value in socket.extra_headers or [] if name == b"set-cookie"]
            assert len(cookies) == 1
        text = cookies[0].decode().partition(";")[0]
        assert browser.get("/who", headers={"cookie": text}).json() == {"nick": "guest"}


def test_a_websocket_without_session_servers_is_refused() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            text = browser.cookies[COOKIE]
            server.app = make_chat()
            for shown in (True, False):  # a session that cannot be opened, one that cannot be begun
                for store in server.stores:
                    await store.aclose()
                await asyncio.sleep(0.1)
                sent: list[Any] = []

                async def receive() -> Any:
                    return {"type": "websocket.connect"}

                async def send(message: Any, sent: list[Any] = sent) -> None:
                    sent.append(message)

                headers = [(b"cookie", f"{COOKIE}={text}".encode())] if shown else []
                scope = {"type": "websocket", "path": "/chat", "headers": headers, "query_string": b""}
                try:
                    await server.middleware(scope, receive, send)
                except (WebSocketDisconnect, RuntimeError) as error:
                    pytest.fail(f"the app got {error!r}")
                assert [message["type"] for message in sent] == ["websocket.close"]
                assert sent[0]["code"] == 1013

    asyncio.run(story())
