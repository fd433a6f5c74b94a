"""``scope["session"]`` replaced, emptied or hidden: what is there when the response starts is what counts."""

from __future__ import annotations

import asyncio
import dataclasses
import enum
from typing import Any

import msgspec
import pydantic
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware as StarletteMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from coatcheck.errors import SessionDataError
from coatcheck.events import EventKind
from coatcheck.web.asgi import SessionMiddleware

from .in_process import App, acting, look, served

COOKIE = "__Host-coatcheck"


class Empty(enum.Enum):
    """As Litestar's sentinel."""

    EMPTY = 0


@dataclasses.dataclass
class Data:
    n: int
    blob: bytes = b"\xff"


class Model(pydantic.BaseModel):
    n: int
    blob: bytes = b"\xff"


class Struct(msgspec.Struct):
    n: int
    blob: bytes = b"\xff"


def putting(value: Any) -> App:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"] = value
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"put"})

    return app


async def deleting(scope: Any, receive: Any, send: Any) -> None:
    del scope["session"]
    await acting(lambda s: None)({"session": None}, receive, send)


BEGUN = acting(lambda s: s.update(n=1, old=True))
FULL = [{"n": 5, "blob": b"\xff"}, Data(5), Model(n=5), Struct(5)]


@pytest.mark.parametrize("value", FULL, ids=lambda value: type(value).__name__)
def test_what_replaces_the_session_is_its_content(value: Any) -> None:
    async def story() -> None:
        async with served(BEGUN) as server, server.client() as browser:
            await browser.get("/")
            server.app = putting(value)
            response = await browser.get("/")
            assert response.headers["cache-control"] == "no-store"
            server.app = acting(look)
            assert (await browser.get("/")).text == repr(FULL[0])

    asyncio.run(story())


@pytest.mark.parametrize("value", [None, {}, Empty.EMPTY, Empty], ids=["None", "{}", "member", "class"])
def test_what_empties_the_session_closes_it(value: Any) -> None:
    async def story() -> None:
        async with served(BEGUN) as server, server.client() as browser:
            await browser.get("/")
            stolen = browser.cookies[COOKIE]
            server.app = putting(value)
            assert "Max-Age=0" in (await browser.get("/")).headers.get("set-cookie", "")
            server.app = acting(look)
            assert (await browser.get("/", headers={"cookie": f"{COOKIE}={stolen}"})).text == "{}"

    asyncio.run(story())


def test_a_session_taken_out_of_the_scope_is_closed() -> None:
    async def story() -> None:
        async with served(BEGUN) as server, server.client() as browser:
            await browser.get("/")
            server.app = deleting
            assert "Max-Age=0" in (await browser.get("/")).headers.get("set-cookie", "")

    asyncio.run(story())


def test_a_first_session_may_begin_by_replacing() -> None:
    async def story() -> None:
        async with served(putting({"n": 1})) as server, server.client() as browser:
            assert COOKIE in (await browser.get("/")).headers.get("set-cookie", "")
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'n': 1}"

    asyncio.run(story())


@pytest.mark.parametrize("value", [7, "text", [1], {"x": object()}, {1: 2}, {"s": {1j}}])
def test_what_is_no_mapping_or_cannot_be_stored_is_an_error_and_loses_nothing(value: Any) -> None:
    async def story() -> None:
        async with served(BEGUN) as server, server.client() as browser:
            await browser.get("/")
            server.app = putting(value)
            with pytest.raises(SessionDataError):
                await browser.get("/")
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'n': 1, 'old': True}"

    asyncio.run(story())


def test_a_stream_may_replace_it_late() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        scope["session"] = {"late": 1}
        await send({"type": "http.response.body", "body": b"last"})

    async def story() -> None:
        async with served(BEGUN) as server, server.client() as browser:
            await browser.get("/")
            server.app = app
            await browser.get("/")
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'late': 1}"

    asyncio.run(story())


def test_an_error_page_keeps_nothing_of_it_and_is_not_refused() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"] = 7
        await send({"type": "http.response.start", "status": 500, "headers": []})
        await send({"type": "http.response.body", "body": b"", "more_body": True})
        await send({"type": "http.response.body", "body": b"own page"})

    async def story() -> None:
        async with served(BEGUN) as server, server.client() as browser:
            await browser.get("/")
            server.app = app
            assert (await browser.get("/")).text == "own page"
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'n': 1, 'old': True}"

    asyncio.run(story())


# -- other session layers ------------------------------------------------------------------------------------


class PlainLayer:
    """As Starlette's before 1.0: a plain dict, empty for whoever has no cookie of theirs."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["session"] = {}
        await self.app(scope, receive, send)


PlainLayer.__name__ = PlainLayer.__qualname__ = "SessionMiddleware"


async def show(request: Request) -> JSONResponse:
    return JSONResponse(dict(request.session))


async def put(request: Request) -> JSONResponse:
    request.session["theirs"] = 1
    return JSONResponse("put")


async def count(request: Request) -> JSONResponse:
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse(dict(request.session))


def shop(layer: Middleware | None) -> Starlette:
    routes = [Route("/", show), Route("/put", put)]
    below = Starlette(routes=routes, middleware=[layer] if layer is not None else [])
    return Starlette(routes=[Route("/count", count), Mount("/below", app=below)])


LAYERS = {
    "starlette": Middleware(StarletteMiddleware, secret_key="s" * 32),
    "plain dict": Middleware(PlainLayer),
}


@pytest.mark.parametrize("name", LAYERS)
def test_another_session_layer_is_left_alone_and_named_once(name: str) -> None:
    async def story() -> None:
        async with served(shop(LAYERS[name])) as server, server.client() as browser:
            await browser.get("/count")
            for path in ("/below/", "/below/put", "/below/"):
                response = await browser.get(path)
                assert "__Host-coatcheck" not in response.headers.get("set-cookie", "")
            assert (await browser.get("/count")).json() == {"n": 2}
            hidden = [event for event in server.events if event.kind is EventKind.SESSION_HIDDEN]
            assert len(hidden) == 1
            assert "SessionMiddleware" in hidden[0].detail or "starlette.middleware.sessions" in hidden[0].detail

    asyncio.run(story())


def test_a_second_one_of_ours_inside_is_left_alone_too() -> None:
    async def story() -> None:
        async with served(acting(look)) as inner, served(inner.middleware) as server, server.client() as browser:
            inner.app = acting(lambda s: s.update(n=1))
            await browser.get("/")
            assert [store.table.entries for store in inner.stores] == [1, 1]
            assert [store.table.entries for store in server.stores] == [0, 0]
            assert [event.kind for event in server.events] == [EventKind.SESSION_HIDDEN]

    asyncio.run(story())


def test_our_own_middleware_among_starlettes_hides_nothing() -> None:
    """Installed with ``add_middleware``: a replaced session is the app's word to us."""

    async def clear(request: Request) -> JSONResponse:
        request.scope["session"] = {}
        return JSONResponse("cleared")

    async def story() -> None:
        async with served(acting(look)) as server:
            routes = [Route("/count", count), Route("/clear", clear)]
            server.middleware = Starlette(  # type: ignore[assignment]
                routes=routes, middleware=[Middleware(SessionMiddleware, sessions=server.sessions)]
            )
            async with server.client() as browser:
                await browser.get("/count")
                assert "Max-Age=0" in (await browser.get("/clear")).headers.get("set-cookie", "")
            assert EventKind.SESSION_HIDDEN not in [event.kind for event in server.events]

    asyncio.run(story())
