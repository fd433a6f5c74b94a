"""The middleware's own answers, as the app wants them shown: pages by name, or a function."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from coatcheck import ErrorPages, SessionMiddleware
from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.web.error_page import ErrorPage

from .in_process import acting, served

HTML = {"accept": "text/html"}


def count(session: Any) -> None:
    session["n"] = session.get("n", 0) + 1


def refused(pages: ErrorPages | ErrorPage | None, headers: dict[str, str]) -> httpx.Response:
    """The answer while no session server answers."""

    async def story() -> httpx.Response:
        async with served(acting(count)) as server:
            server.middleware.__dict__.update(
                SessionMiddleware(server._call, server.sessions, error_pages=pages).__dict__
            )

            def away(session: Any) -> Any:
                raise SessionUnavailable(UnavailableReason.NO_SERVER)

            server.sessions.lifecycle.finish = away  # type: ignore[method-assign]
            async with server.client() as browser:
                return await browser.get("/", headers=headers)

    answer = asyncio.run(story())
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "1"
    assert answer.headers["cache-control"] == "no-store"
    assert "set-cookie" not in answer.headers
    return answer


def test_the_built_in_pages() -> None:
    assert refused(None, {}).text == "session not saved: no_session_server_answers\n"
    assert refused(None, HTML).text.startswith("<!doctype html>")
    assert refused(None, {"accept": "application/json"}).json() == {
        "status": 503, "title": "Service Unavailable", "detail": "session not saved: no_session_server_answers",
    }  # fmt: skip


def test_pages_by_name() -> None:
    answer = refused(ErrorPages({"5xx.html": b"<h1>Back soon</h1>"}), HTML)
    assert (answer.text, answer.headers["content-type"]) == ("<h1>Back soon</h1>", "text/html; charset=utf-8")


def test_a_function_of_the_app() -> None:
    seen: list[tuple[str, int, str]] = []

    def page(scope: Any, status: int, detail: str) -> tuple[str, bytes | str] | None:
        seen.append((scope["path"], status, detail))
        return ("text/html; charset=utf-8", "<p>später") if b"html" in dict(scope["headers"])[b"accept"] else None

    answer = refused(page, HTML)
    assert answer.text == "<p>später"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert refused(page, {"accept": "text/plain"}).text.startswith("session not saved")
    assert seen[0] == ("/", 503, "session not saved: no_session_server_answers")


def _raises(scope: Any, status: int, detail: str) -> Any:
    raise RuntimeError("no template")


@pytest.mark.parametrize(
    "page",
    [
        _raises,
        lambda scope, status, detail: ("text/html", b"x" * 65537),
        lambda scope, status, detail: ("text/html\r\nset-cookie: a=b", b"x"),
        lambda scope, status, detail: ("", b"x"),
        lambda scope, status, detail: "just text",
        lambda scope, status, detail: ("text/html", None),
    ],
)
def test_a_function_that_fails_is_logged_and_the_built_in_page_leaves(
    page: Callable[..., Any], caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR, "coatcheck.web"):
        assert refused(page, {}).text == "session not saved: no_session_server_answers\n"
    assert "error page for 503 failed" in caplog.text
