"""Real packages that bring their own idea of a session, unmodified, under a real server."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .server_process import WebServer


@pytest.fixture(scope="module")
def litestar(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    server = WebServer("uvicorn", tmp_path_factory.mktemp("litestar"), "web.litestar_app:app")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    server = WebServer("uvicorn", tmp_path_factory.mktemp("admin"), "web.admin_app:app")
    yield server
    server.stop()


@pytest.fixture(scope="module")
def nicegui(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebServer]:
    folder: Path = tmp_path_factory.mktemp("nicegui")
    server = WebServer("uvicorn", folder, "web.nicegui_app:app", NICEGUI_STORAGE_PATH=str(folder))
    yield server
    server.stop()


def cookie(lines: list[str]) -> str:
    return "; ".join(line.partition(";")[0] for line in lines)


@pytest.mark.parametrize("way", ["/logout", "/empty"])
def test_litestars_logout_logs_out_on_the_server(litestar: WebServer, way: str) -> None:
    with litestar.browser() as browser:
        stolen = cookie(browser.post("/login").headers.get_list("set-cookie"))
        assert browser.get("/").json() == {"user": "ada", "cart": ["tea"]}, "set_session() is kept"
        browser.post("/add")
        assert browser.get("/").json() == {"user": "ada", "cart": ["tea", "milk"]}
        assert "Max-Age=0" in browser.post(way).headers.get("set-cookie", "")
        assert browser.get("/").json() == {}
    with litestar.browser() as other:
        assert other.get("/", headers={"cookie": stolen}).json() == {}


def test_litestars_set_session_replaces_everything(litestar: WebServer) -> None:
    with litestar.browser() as browser:
        browser.post("/login")
        browser.post("/add")
        browser.post("/login")
        assert browser.get("/").json() == {"user": "ada", "cart": ["tea"]}
        assert browser.get("/").headers["cache-control"] == "no-store"


def warnings(server: WebServer) -> list[str]:
    deadline = time.monotonic() + 30
    while not (lines := [line for line in server.log.read_text().splitlines() if "session.hidden" in line]):
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)
    return lines


def test_sqladmins_own_session_layer_leaves_ours_alone_and_is_named_once(shop: WebServer) -> None:
    with shop.browser() as browser:
        assert browser.post("/count").json() == {"n": 1}
        for _ in range(3):
            assert browser.get("/admin/login").status_code == 200, "an empty session of theirs is no logout of ours"
        assert browser.post("/admin/login").status_code in (302, 303)
        assert browser.get("/admin/").status_code == 200
        assert browser.post("/count").json() == {"n": 2}, "what they keep is not mixed into ours"
        browser.get("/admin/logout")
        assert browser.post("/count").json() == {"n": 3}
    (line,) = warnings(shop)
    assert "starlette.middleware.sessions" in line


def test_nicegui_keeps_its_user_storage_and_leaves_our_session_alone(nicegui: WebServer) -> None:
    with nicegui.browser() as browser:
        assert browser.post("/count").json() == 1
        assert "seen 1 times" in browser.get("/page").text
        assert "seen 2 times" in browser.get("/page").text
        assert browser.post("/count").json() == 2
    assert len(warnings(nicegui)) == 1
