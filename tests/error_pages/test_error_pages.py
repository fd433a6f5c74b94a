"""Which page an answer of our own gets: by status, by Accept (RFC 9110 section 12.5.1), by what the operator gave."""

from __future__ import annotations

import json
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck import ConfigError, ErrorPages
from coatcheck.error_pages import MAX_PAGE_BYTES, MAX_PAGES

FIREFOX = b"text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
OURS = [status for status in HTTPStatus if status >= 400]


def kind(pages: ErrorPages, accept: bytes, status: int = 503) -> str:
    return dict(pages.page(status, accept).headers)[b"content-type"].decode().partition(";")[0]


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        (b"", "text/plain"),
        (b"*/*", "text/plain"),
        (FIREFOX, "text/html"),
        (b"text/*", "text/plain"),
        (b"text/html;q=0.5, text/plain;q=0.4", "text/html"),
        (b"text/html;q=0, */*", "text/plain"),
        (b"text/plain;q=0, text/html;q=0, */*", "application/json"),
        (b"application/json", "application/json"),
        (b"application/json, text/plain, */*", "text/plain"),
        (b"application/problem+json", "application/problem+json"),
        (b"application/problem+json, application/json;q=0.9", "application/problem+json"),
        (b"application/json;charset=utf-8;q=0.9, text/html;q=0.8", "application/json"),
        (b"image/png", "text/plain"),
        (b"TEXT/HTML", "text/html"),
        (b"text/html;q=2", "text/html"),
        (b"garbage;;;,,/,;q=", "text/plain"),
    ],
)
def test_the_form_that_the_client_likes_best(accept: bytes, expected: str) -> None:
    assert kind(ErrorPages(), accept) == expected


def test_the_operators_pages_come_first_where_the_client_takes_them() -> None:
    pages = ErrorPages({"503.html": b"<p>back soon", "5xx.html": b"<p>oops", "5xx.json": b"{}", "404.txt": b"no"})
    assert pages.page(503, FIREFOX).body == b"<p>back soon"
    assert pages.page(502, FIREFOX).body == b"<p>oops"
    assert pages.page(502, b"*/*").body == b"<p>oops"
    assert pages.page(502, b"").body == b"<p>oops"
    assert pages.page(502, b"application/json").body == b"{}"
    assert pages.page(502, b"text/plain").body == b"502 Bad Gateway\n"
    assert pages.page(404, b"").body == b"no"
    assert pages.page(400, FIREFOX).body.startswith(b"<!doctype html>")
    assert dict(pages.page(503, FIREFOX).headers)[b"x-content-type-options"] == b"nosniff"


def test_built_in_pages_escape_what_they_say() -> None:
    detail = "it's <script>alert(1)</script> & more"
    body = ErrorPages().page(409, FIREFOX, detail).body
    assert b"<script>" not in body
    assert b"&lt;script&gt;" in body
    assert json.loads(ErrorPages().page(409, b"application/json", detail).body) == {
        "status": 409, "title": "Conflict", "detail": detail,
    }  # fmt: skip
    assert ErrorPages().page(409, b"", detail).body.decode() == detail + "\n"
    assert b"script" not in dict(ErrorPages().page(409, FIREFOX).headers)[b"content-security-policy"]


@pytest.mark.parametrize(
    ("pages", "line"),
    [
        ({"503.htm": b""}, "name pages 503.html, 5xx.html, 404.json or 400.txt (got '503.htm')"),
        ({"200.html": b""}, "name pages"),
        ({"../503.html": b""}, "name pages"),
        ({"x" * 500: b""}, "name pages"),
        ({"503.html": b"x" * (MAX_PAGE_BYTES + 1)}, "503.html is larger than 65536 bytes"),
        ({f"{status}.html": b"" for status in range(400, 401 + MAX_PAGES)}, "at most 64 pages"),
    ],
)
def test_what_is_no_page_is_refused(pages: dict[str, bytes], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        ErrorPages(pages)
    assert line in str(refused.value)
    assert len(str(refused.value)) < 200


RANGES = rb"\A(text|\*|application)/(html|\*|json)(;q=[0-9.]{1,6})?(, ?.{1,30})?\Z"
ACCEPT = st.one_of(st.binary(max_size=200), st.from_regex(RANGES))
NAMES = st.sets(st.sampled_from(["503.html", "5xx.json", "4xx.txt"]))


@given(st.sampled_from(OURS), ACCEPT, st.text(max_size=50), NAMES)
def test_fuzz_any_accept_gets_one_page_of_its_kind(status: int, accept: bytes, detail: str, names: set[str]) -> None:
    page = ErrorPages(dict.fromkeys(names, b"own")).page(status, accept, detail)
    assert page.body
    assert len(page.body) <= MAX_PAGE_BYTES
    for name, value in page.headers:
        assert b"\r" not in name + value
        assert b"\n" not in name + value
