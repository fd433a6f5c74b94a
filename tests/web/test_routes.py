"""Which responses give a browser without a session its route: never one that caches may hand to others."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.testclient import TestClient

from coatcheck.sessions.routes import may_carry_route, with_route

from .in_process import Served, acting, count, look, served

ROUTE = "__Host-coatcheck-route"
LENGTH = (b"content-length", b"4")
HTML = (b"content-type", b"text/html; charset=utf-8")

ANSWERS: dict[str, tuple[int, list[tuple[bytes, bytes]], bool]] = {
    "a page": (200, [HTML], True),
    "a poll of socket.io": (200, [(b"Content-Type", b"text/plain; charset=UTF-8")], True),
    "JSON": (200, [(b"content-type", b"application/json")], True),
    "a redirect": (303, [(b"location", b"/")], True),
    "not found": (404, [HTML], True),
    "private": (200, [HTML, (b"Cache-Control", b"private, max-age=60")], True),
    "private, with a validator": (200, [(b"ETag", b'"1"'), (b"Cache-Control", b"no-store")], True),
    "public": (200, [HTML, (b"cache-control", b"public, max-age=60")], False),
    "for shared caches": (200, [HTML, (b"cache-control", b"s-maxage=60")], False),
    "to be validated": (200, [HTML, (b"cache-control", b"no-cache")], False),
    "a file": (200, [HTML, (b"etag", b'"1"'), (b"last-modified", b"Sat, 01 Nov 2025 00:00:00 GMT")], False),
    "until a date": (200, [HTML, (b"expires", b"Sat, 01 Nov 2025 00:00:00 GMT")], False),
    "not modified": (304, [], False),
    "an image": (200, [(b"content-type", b"image/png")], False),
    "a private image": (200, [(b"content-type", b"image/png"), (b"cache-control", b"private")], False),
    "a style": (200, [(b"content-type", b"text/css")], False),
    "a script": (200, [(b"content-type", b"application/javascript")], False),
    "a failure": (502, [HTML], False),
}


@pytest.mark.parametrize("name", ANSWERS)
def test_what_may_carry_a_route(name: str) -> None:
    status, headers, may = ANSWERS[name]
    assert may_carry_route(status, headers) is may
    assert may_carry_route(status, headers[::-1]) is may


@given(st.lists(st.sampled_from([header for _, headers, _ in ANSWERS.values() for header in headers]), max_size=5))
def test_what_carries_a_route_says_that_it_is_not_shared(headers: list[tuple[bytes, bytes]]) -> None:
    if not may_carry_route(200, headers):
        return
    sent = with_route(headers, (b"set-cookie", b"x"))
    controls = [value.lower() for name, value in sent if name.lower() == b"cache-control"]
    assert any(b"private" in value or b"no-store" in value for value in controls)
    assert sent[: len(headers)] == headers


def names_set(response: Any) -> list[str]:
    return [line.partition("=")[0] for line in response.headers.get_list("set-cookie")]


def test_a_browser_without_a_session_is_told_its_route_once() -> None:
    async def story() -> None:
        async with served(acting(lambda session: None, [HTML, LENGTH]), route_tag="web-1") as server:
            async with server.client() as browser:
                first = await browser.get("/")
                assert names_set(first) == [ROUTE]
                assert first.headers["cache-control"] == "private"
                assert "vary" not in first.headers
                second = await browser.get("/")
                assert names_set(second) == []
                assert "cache-control" not in second.headers
                server.app = acting(look, [HTML])
                assert names_set(await browser.get("/")) == []
                server.app = acting(count, [HTML])
                assert names_set(await browser.get("/")) == ["__Host-coatcheck"], "it has its route"
            assert [store.table.entries for store in server.stores] == [1, 1]

    asyncio.run(story())


def test_a_route_to_another_server_is_replaced_and_a_cacheable_answer_stays_cacheable() -> None:
    public = [HTML, (b"cache-control", b"public, max-age=60")]

    async def story() -> None:
        app = acting(lambda session: None, public)
        async with served(app, route_tag="web-1") as server, server.client() as browser:
            answer = await browser.get("/", headers={"cookie": f"{ROUTE}=web-9"})
            assert names_set(answer) == []
            assert answer.headers["cache-control"] == "public, max-age=60"
            server.app = acting(look, public)
            assert names_set(await browser.get("/")) == [], "also when the session was looked at"
            server.app = acting(lambda session: None, [HTML, LENGTH])
            assert names_set(await browser.get("/", headers={"cookie": f"{ROUTE}=web-9"})) == [ROUTE]

    asyncio.run(story())


def test_a_websocket_tells_the_route_when_it_is_accepted() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        await send({"type": "websocket.close"})

    async def build() -> Served:
        async with served(app, route_tag="web-1") as server:
            return server

    server = asyncio.run(build())
    with TestClient(server.middleware).websocket_connect("/") as socket:
        cookies = [value for name, value in socket.extra_headers or [] if name == b"set-cookie"]
    assert [value.partition(b"=")[0].decode() for value in cookies] == [ROUTE]
