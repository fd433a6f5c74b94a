"""docs/flask.md: the apps of the page do what it says."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import flask
import pytest

PAGE = Path(__file__).parents[2] / "docs" / "flask.md"
SECURE = {"base_url": "https://shop.test"}


@pytest.fixture
def page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SESSION_KEY", "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    namespace: dict[str, Any] = {"__name__": "page"}
    snippets = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.S)
    five_lines, in_quart, moving_in = snippets
    exec(five_lines, namespace)
    exec(in_quart, namespace)
    namespace["moving_in"] = moving_in
    return namespace


def test_the_five_lines(page: dict[str, Any]) -> None:
    client = page["app"].test_client()
    assert client.get("/", **SECURE).text == "None"
    client.post("/login/ada", **SECURE)
    assert client.get("/", **SECURE).text == "('tea', 2)"
    assert [one.user for one in page["app"].session_interface.sessions.list_sessions()] == ["ada"]
    client.post("/logout", **SECURE)
    assert client.get("/", **SECURE).text == "None"
    page["app"].session_interface.sessions.close()


def test_quart(page: dict[str, Any]) -> None:
    async def story() -> list[str]:
        client = page["quart_app"].test_client()
        said = [await (await client.get("/")).get_data(as_text=True) for _ in range(3)]
        await page["quart_app"].session_interface.sessions.here().aclose()
        return said

    assert asyncio.run(story()) == ["1", "2", "3"]


def test_moving_in(page: dict[str, Any]) -> None:
    before = flask.Flask("before")
    before.secret_key = "the SECRET_KEY of today"

    @before.get("/")
    def index() -> str:
        flask.session["cart"] = ("milk", 1)
        return ""

    old = before.test_client()
    old.get("/")
    cookie = old.get_cookie("session")
    assert cookie is not None
    exec(page["moving_in"].replace("date(2027, 1, 1)", "date(2999, 1, 1)"), page)
    client = page["app"].test_client()
    client.set_cookie("session", cookie.value, domain="shop.test", secure=True)
    for _ in range(2):
        assert client.get("/", **SECURE).text == "('milk', 1)"
    page["app"].session_interface.sessions.close()
