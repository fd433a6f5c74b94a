"""Async views, and an ASGI handler: nothing blocks the event loop, and the session is the same as everywhere."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import httpx
import pytest
from django.contrib.auth.models import User
from django.core.asgi import get_asgi_application
from django.http import HttpRequest
from django.test import AsyncClient, Client

from coatcheck import SessionMiddleware as Outer
from coatcheck import connect
from coatcheck.web.django import SessionStore
from coatcheck.web.django.configuration import sessions

from .project.urls import todo

COOKIE = "sessionid"
SECRET = "for-tests-only-for-tests-only-for-tests-001"


@pytest.fixture(autouse=True)
def nothing_to_do() -> Iterator[None]:
    yield
    todo.clear()


def test_an_async_view_and_a_sync_one_have_the_same_session() -> None:
    async def visit() -> None:
        client = AsyncClient()
        assert (await client.get("/aadd")).json() == ["tea"]
        assert (await client.get("/add")).json() == ["tea", "tea"]
        assert (await client.get("/ain?user=ada")).content == b"in"
        assert (await client.get("/who")).json()["user"] == "ada"
        ada = str((await User.objects.aget(username="ada")).pk)
        session = await client.asession()
        assert await session.aget("_auth_user_id") == ada
        key = client.cookies[COOKIE].value
        await client.get("/aout")
        assert not await SessionStore().aexists(key)

    asyncio.run(visit())


def test_the_session_of_an_async_view_needs_no_await_once_it_is_open() -> None:
    async def view(request: HttpRequest) -> str:
        request.session["n"] = request.session.get("n", 0) + 1
        await request.session.asave()
        key = request.session.session_key
        await request.session.acycle_key()
        assert request.session.session_key != key
        return str(request.session["n"])

    async def visit() -> None:
        todo["ado"] = view
        client = AsyncClient()
        assert [(await client.get("/ado")).content for _ in range(3)] == [b"1", b"2", b"3"]

    asyncio.run(visit())


def test_the_loop_goes_on_while_session_servers_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is held up: another coroutine of the loop runs meanwhile."""

    async def visit() -> None:
        client = AsyncClient()
        await client.get("/aadd")
        inner = sessions()._sessions
        run = inner.run_for
        gate: list[Callable[[], object]] = []

        async def slow(*arguments: Any) -> Any:
            waits = asyncio.Event()
            loop = asyncio.get_running_loop()
            gate.append(lambda: loop.call_soon_threadsafe(waits.set))
            await waits.wait()
            return await run(*arguments)

        monkeypatch.setattr(inner, "run_for", slow)
        asked = asyncio.ensure_future(client.get("/aadd"))
        while not gate:
            await asyncio.sleep(0.01)
        assert not asked.done()
        monkeypatch.undo()
        gate[0]()
        assert (await asked).json() == ["tea", "tea"]

    asyncio.run(visit())


def test_a_client_that_goes_away_leaves_nothing_waiting() -> None:
    async def visit() -> None:
        client = AsyncClient()
        await client.get("/aadd")
        asked = asyncio.ensure_future(client.get("/aadd"))
        await asyncio.sleep(0)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert (await client.get("/aadd")).status_code == 200

    asyncio.run(visit())
    background = sessions()._background
    assert background is not None
    assert not background._calls


def ours(cookies: httpx.Cookies) -> set[str]:
    return {name for name in cookies if name.startswith("coatcheck")}


Visit = Callable[[httpx.AsyncClient], Awaitable[None]]


def inside_our_own(visit: Visit) -> None:
    """The project inside of coatcheck's ASGI middleware, as under ``coatcheck serve``."""

    async def run() -> None:
        outer = connect("memory://", key=SECRET)
        app: Any = Outer(get_asgi_application(), outer)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as browser:
            await visit(browser)
        await outer.aclose()

    asyncio.run(run())


def test_the_session_that_an_outer_layer_has_opened_is_the_one() -> None:
    async def visit(browser: httpx.AsyncClient) -> None:
        assert (await browser.get("/add")).json() == ["tea"]
        assert (await browser.get("/aadd")).json() == ["tea", "tea"]
        assert ours(browser.cookies) == {"coatcheck"}
        old = browser.cookies["coatcheck"]
        assert (await browser.get("/in?user=ada")).text == "in"
        assert ours(browser.cookies) == {"coatcheck-login"}
        assert (await browser.get("/who")).json() == {"user": "ada", "cart": ["tea", "tea"], "said": ["welcome ada"]}
        loot = dict(browser.cookies)
        assert (await browser.get("/out")).text == "out"
        assert not ours(browser.cookies)
        browser.cookies.update(loot | {"coatcheck": old})
        assert (await browser.get("/who")).json()["user"] == ""

    inside_our_own(visit)


def test_inside_of_an_outer_layer_another_user_finds_nothing() -> None:
    async def visit(browser: httpx.AsyncClient) -> None:
        await browser.get("/in?user=ada")
        await browser.get("/add")
        await browser.get("/in?user=bob")
        found = (await browser.get("/who")).json()
        assert (found["user"], found["cart"]) == ("bob", None)

    inside_our_own(visit)


def test_inside_of_an_outer_layer_the_rules_of_django_hold() -> None:
    async def visit(browser: httpx.AsyncClient) -> None:
        await browser.get("/add")
        todo["do"] = lambda request: request.session["cart"].append("not stored")
        await browser.get("/do")
        assert (await browser.get("/who")).json()["cart"] == ["tea"]

        def flush(request: HttpRequest) -> None:
            request.session.flush()
            request.session["after"] = 1

        todo["do"] = flush
        await browser.get("/do")
        todo["do"] = lambda request: sorted(request.session.keys())
        assert (await browser.get("/do")).text == "['after']"
        todo["do"] = lambda request: request.session.set_expiry(-1)
        await browser.get("/do")
        todo["do"] = lambda request: sorted(request.session.keys())
        assert (await browser.get("/do")).text == "[]"

    inside_our_own(visit)


def test_inside_of_an_outer_wsgi_layer() -> None:
    from django.core.wsgi import get_wsgi_application

    from coatcheck.web.wsgi import SessionMiddleware as OuterWSGI

    outer = connect("memory://", key=SECRET, driver="threads")
    app: Any = OuterWSGI(get_wsgi_application(), outer)
    with httpx.Client(transport=httpx.WSGITransport(app), base_url="http://127.0.0.1") as browser:
        browser.get("/add")
        assert browser.get("/in?user=ada").text == "in"
        assert ours(browser.cookies) == {"coatcheck-login"}
        assert browser.get("/who").json()["cart"] == ["tea"]
        ada = str(User.objects.get(username="ada").pk)
        assert len(outer.sessions_of(ada)) == 1
        browser.get("/out")
        assert not ours(browser.cookies)
    outer.close()


def test_a_sync_client_sees_what_an_async_one_has_stored() -> None:
    async def visit() -> str:
        client = AsyncClient()
        await client.get("/aadd")
        return client.cookies[COOKIE].value

    client = Client()
    client.cookies[COOKIE] = asyncio.run(visit())
    assert client.get("/who").json()["cart"] == ["tea"]
