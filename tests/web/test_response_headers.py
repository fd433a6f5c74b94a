"""What the middleware reads from and adds to headers, against the plain way of saying it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.sessions.caching import guard
from coatcheck.sessions.cookies import CookieJar, CookiePolicy
from coatcheck.web.interface import Header

from .in_process import served

JAR = CookieJar(CookiePolicy(insecure_localhost=True))
COOKIE = (b"set-cookie", b"coatcheck=x")


def plainly(header: bytes) -> bytes | None:
    """RFC 6265 section 5.4, without any haste: the first value."""
    for part in header.split(b";"):
        name, equals, value = part.lstrip(b" \t").partition(b"=")
        if equals and name == b"coatcheck":
            return value
    return None


PARTS = st.sampled_from(
    [
        b"coatcheck=one",
        b"coatcheck=two",
        b"coatcheck=",
        b"xcoatcheck=no",
        b"x coatcheck=no",
        b"a=b",
        b"coatcheck",
        b"",
        b"a=coatcheck=no",
    ]
)


@given(st.lists(st.tuples(PARTS, st.sampled_from([b"; ", b"; ", b";", b";  ", b";\t"])), max_size=5))
def test_a_cookie_is_found_wherever_it_stands(parts: list[tuple[bytes, bytes]]) -> None:
    header = b"".join(part + end for part, end in parts)
    assert JAR.read(header) == plainly(header)


@given(
    st.binary(max_size=300) | st.lists(st.sampled_from([b"coatcheck=", b"coatcheck", b";", b" ", b"=", b"x", b"\t"]))
)
def test_any_bytes_are_read_as_a_plain_reader_reads_them(header: bytes | list[bytes]) -> None:
    raw = header if isinstance(header, bytes) else b"".join(header)
    for shown in (raw, b"coatcheck=one; " + raw, raw + b"; coatcheck=last", raw + b";coatcheck=last"):
        assert JAR.read(shown) == plainly(shown)


def test_no_name_is_confused_with_another() -> None:
    for header in (b"xcoatcheck=no", b"x; ycoatcheck=no", b"coatcheck-login=no", b"a=coatcheck=no", b"coatcheck =no"):
        assert JAR.read(header) is None
    assert JAR.read(b"xcoatcheck=no;coatcheck=yes; coatcheck=later") == b"yes"
    assert CookieJar(CookiePolicy(), "-login").read(b"__Host-coatcheck=no; __Host-coatcheck-login=yes") == b"yes"
    assert CookieJar(CookiePolicy()).read(b"__Host-coatcheck-login=no; coatcheck=no") is None


def test_the_first_of_two_cookies_counts() -> None:
    assert JAR.read(b"coatcheck=one; coatcheck=two") == b"one"
    assert JAR.read(b"a=b; coatcheck=one; coatcheck=two") == b"one"


def guard_plainly(headers: list[Header], cookies: list[Header]) -> dict[bytes, list[bytes]]:
    kept = [(name.lower(), value) for name, value in headers if not (cookies and name.lower() == b"cache-control")]
    varied = any(name == b"vary" and (b"cookie" in value.lower() or value.strip() == b"*") for name, value in kept)
    if not varied:
        kept.append((b"vary", b"Cookie"))
    if not any(name == b"cache-control" for name, _ in kept):
        kept.append((b"cache-control", b"no-store"))
    told: dict[bytes, list[bytes]] = {}
    for name, value in [*kept, *cookies]:
        told.setdefault(name, []).append(value)
    return told


HEADERS = st.lists(
    st.tuples(
        st.sampled_from([b"content-type", b"etag", b"Vary", b"vary", b"Cache-Control", b"cache-control", b"location"]),
        st.sampled_from([b"text/plain", b"*", b"Accept", b"Accept, cookie", b"public, max-age=60"]),
    ),
    max_size=4,
)


@given(HEADERS, st.sampled_from([[], [COOKIE]]))
def test_responses_with_a_session_are_kept_from_caches(headers: list[Header], cookies: list[Header]) -> None:
    told: dict[bytes, list[bytes]] = {}
    for name, value in guard(headers, cookies):
        told.setdefault(name.lower(), []).append(value)
    assert told == guard_plainly(headers, cookies)


@pytest.mark.parametrize("name", [b"content-length", b"x-own", b"etag"])
@pytest.mark.parametrize("kind", [iter, tuple, list])
def test_headers_that_can_be_read_once_reach_the_browser(name: bytes, kind: Callable[..., Any]) -> None:
    """ASGI allows any iterable: what is looked at on the way must still be there."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": kind([(b"x-first", b"1"), (name, b"2")])})
        await send({"type": "http.response.body", "body": b"ok"})

    async def story() -> None:
        async with served(app) as server, server.client() as browser:
            answer = await browser.get("/")
            assert (answer.headers["x-first"], answer.headers[name.decode()]) == ("1", "2")

    asyncio.run(story())
