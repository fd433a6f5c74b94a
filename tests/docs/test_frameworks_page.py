"""docs/frameworks.md is run as a reader would run it: its files in a folder, and a browser."""

from __future__ import annotations

import asyncio
import importlib
import re
import sys
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp.test_utils import TestServer
from litestar.testing import TestClient

PAGE = (Path(__file__).parents[2] / "docs" / "frameworks.md").read_text()
FILES = dict(re.findall(r"```python\n# (\w+)\.py\n(.*?)```", PAGE, re.S))


@pytest.fixture(params=sorted(FILES))
def app(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[str, Any]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("SESSION_KEY", "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    (tmp_path / f"{request.param}.py").write_text(FILES[request.param])
    sys.modules.pop(request.param, None)
    return request.param, importlib.import_module(request.param).app


def test_a_page_keeps_a_session(app: tuple[str, Any]) -> None:
    name, found = app
    if name == "litestar_shop":
        with TestClient(found, base_url="https://shop.example") as browser:
            assert [browser.post("/add/tea").json() for _ in range(2)] == [{"tea": 1}, {"tea": 2}]
        return

    async def visit() -> str:
        async with TestServer(found) as server:
            jar = aiohttp.CookieJar(unsafe=True, treat_as_secure_origin=server.make_url("/"))
            async with aiohttp.ClientSession(server.make_url("/"), cookie_jar=jar) as browser:
                async with browser.get("/") as answer:
                    assert await answer.text() == "nobody"
                async with browser.post("/login") as answer:
                    return await answer.text()

    assert name == "aiohttp_shop"
    assert asyncio.run(visit()) == "alice"
