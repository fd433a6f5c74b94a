"""What the frameworks around an app make of it: Starlette's middleware, streams and error pages; failed starts."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from coatcheck.errors import CoatcheckError, ConfigError, SessionDataError

from .in_process import served


async def show(request: Request) -> Response:
    return JSONResponse({"user": request.session.user, "data": dict(request.session)})


async def count(request: Request) -> Response:
    request.session["n"] = request.session.get("n", 0) + 1
    return JSONResponse(request.session["n"])


def site(*routes: Route | Mount, **options: Any) -> Starlette:
    return Starlette(routes=[Route("/", show), Route("/count", count), *routes], **options)


async def afterwards(request: Request, call_next: Callable[[Request], Any]) -> Any:
    response = await call_next(request)
    request.session["afterwards"] = request.session.get("afterwards", 0) + 1
    return response


def test_changes_of_a_middleware_after_the_endpoint_are_kept() -> None:
    async def story() -> None:
        app = site(middleware=[Middleware(BaseHTTPMiddleware, dispatch=afterwards)])
        async with served(app) as server, server.client() as browser:
            assert (await browser.get("/count")).json() == 1
            assert (await browser.get("/count")).json() == 2
            assert (await browser.get("/")).json()["data"] == {"n": 2, "afterwards": 2}

    asyncio.run(story())


def test_a_mounted_app_sees_the_same_session() -> None:
    async def story() -> None:
        async with served(site(Mount("/below", app=site()))) as server, server.client() as browser:
            await browser.get("/count")
            assert (await browser.get("/below/count")).json() == 2

    asyncio.run(story())


def test_a_redirect_carries_the_cookie() -> None:
    async def login(request: Request) -> Response:
        request.session.regenerate("ada")
        return RedirectResponse("/", 303)

    async def story() -> None:
        async with served(site(Route("/login", login))) as server, server.client() as browser:
            assert (await browser.get("/login", follow_redirects=True)).json() == {"user": "ada", "data": {}}

    asyncio.run(story())


def test_a_background_task_comes_too_late_as_with_starlette() -> None:
    async def later(request: Request) -> Response:
        request.session["early"] = True
        return JSONResponse(None, background=BackgroundTask(request.session.update, {"late": True}))

    async def story() -> None:
        async with served(site(Route("/later", later))) as server, server.client() as browser:
            await browser.get("/later")
            assert (await browser.get("/")).json()["data"] == {"early": True}

    asyncio.run(story())


@pytest.mark.parametrize("catches", [SessionDataError, Exception, 500])
def test_starlettes_own_error_page_comes_too_late_but_the_status_and_the_error_are_right(catches: Any) -> None:
    """Starlette counts a response as started before its head is on the way, so its handlers are not asked."""

    async def bad(request: Request) -> Response:
        request.session["bad"] = object()
        return JSONResponse("stored")

    async def page(request: Request, error: Exception) -> Response:
        return PlainTextResponse("own page", 500)

    async def story() -> None:
        app = site(Route("/bad", bad), exception_handlers={catches: page})
        async with served(app) as server, server.client() as browser:
            await browser.get("/count")
            with pytest.raises((SessionDataError, RuntimeError)) as raised:
                await browser.get("/bad")
            root = raised.value if isinstance(raised.value, SessionDataError) else raised.value.__cause__
            assert isinstance(root, SessionDataError)
            assert "value of 'bad'" in str(root)
            assert (await browser.get("/")).json()["data"] == {"n": 1}

    asyncio.run(story())


def streaming(act: Callable[[Any], Any]) -> Route:
    async def stream(request: Request) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            yield b"first "
            act(request.session)
            yield b"last"

        return StreamingResponse(pieces())

    return Route("/stream", stream)


def close_and_log_in(session: Any) -> None:
    session.close()
    session["hello"] = "again"
    session.regenerate("bob")


def test_a_close_and_then_a_login_make_a_fresh_session() -> None:
    async def again(request: Request) -> Response:
        close_and_log_in(request.session)
        if "fails" in request.query_params:
            return PlainTextResponse("failed half-way", 500)
        return PlainTextResponse(request.session.user)

    async def story() -> None:
        async with served(site(Route("/again", again))) as server, server.client() as browser:
            await browser.get("/count")
            assert (await browser.get("/again")).text == "bob"
            assert (await browser.get("/")).json() == {"user": "bob", "data": {"hello": "again"}}
            assert [store.table.entries - store.table.tombstones for store in server.stores] == [2, 2], (
                "with bob's index"
            )
            assert (await browser.get("/again?fails=yes")).status_code == 500
            assert (await browser.get("/")).json() == {"user": None, "data": {}}, "the close counts, the login does not"
            assert [store.table.entries - store.table.tombstones for store in server.stores] == [1, 1], "bob's index"

    asyncio.run(story())


def test_a_login_after_a_close_while_the_response_is_streamed_closes() -> None:
    async def story() -> None:
        async with served(site(streaming(close_and_log_in))) as server, server.client() as browser:
            await browser.get("/count")
            with pytest.raises(CoatcheckError, match="before the response starts"):
                await browser.get("/stream")
            assert (await browser.get("/")).json() == {"user": None, "data": {}}

    asyncio.run(story())


@pytest.mark.parametrize("begun", [False, True])
def test_a_login_while_the_response_is_streamed_is_refused_and_logs_nobody_out(begun: bool) -> None:
    async def story() -> None:
        app = site(streaming(lambda session: session.regenerate("ada")))
        async with served(app) as server, server.client() as browser:
            if begun:
                await browser.get("/count")
            with pytest.raises(CoatcheckError, match="before the response starts"):
                await browser.get("/stream")
            assert (await browser.get("/")).json() == {"user": None, "data": {"n": 1} if begun else {}}
            assert [store.table.entries for store in server.stores] == [int(begun)] * 2

    asyncio.run(story())


def test_a_session_that_begins_while_the_response_is_streamed_is_refused() -> None:
    """Its cookie could not be given to the browser: nobody could ever open what would be stored."""

    async def story() -> None:
        app = site(streaming(lambda session: session.update(n=1)))
        async with served(app) as server, server.client() as browser:
            with pytest.raises(CoatcheckError, match="before the response starts"):
                await browser.get("/stream")
            assert [store.table.entries for store in server.stores] == [0, 0]

    asyncio.run(story())


def test_late_verbs_that_need_no_cookie_are_done() -> None:
    async def story() -> None:
        for act, data in ((lambda s: s.rotate(), {"n": 1}), (lambda s: s.close(), {}), (lambda s: s.clear(), {})):
            async with served(site(streaming(act))) as server, server.client() as browser:
                await browser.get("/count")
                assert (await browser.get("/stream")).text == "first last"
                assert (await browser.get("/")).json()["data"] == data

    asyncio.run(story())


def test_sessions_that_cannot_be_opened_fail_the_startup_in_so_many_words() -> None:
    async def story() -> None:
        async with served(site()) as server:
            told: list[Any] = []

            async def receive() -> Any:
                return {"type": "lifespan.startup"}

            async def send(message: Any) -> None:
                told.append(message)

            async def broken() -> None:
                raise ConfigError("the folder of the file does not exist")

            server.stores[0].open = broken  # type: ignore[method-assign]
            with pytest.raises(ConfigError):
                await server.middleware({"type": "lifespan", "state": {}}, receive, send)
            assert told == [{"type": "lifespan.startup.failed", "message": "the folder of the file does not exist"}]
            del server.stores[0].open  # type: ignore[misc]

    asyncio.run(story())
