"""The main scenarios over real HTTP, under uvicorn and granian; and one session across both of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx
import pytest
from websockets.sync.client import connect

from .server_process import SERVERS, WebServer


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, WebServer]]:
    folder = tmp_path_factory.mktemp("servers")
    started: dict[str, WebServer] = {}
    try:
        for name in SERVERS:
            started[name] = WebServer(name, folder)
        yield started
    finally:
        for server in started.values():
            server.stop()


@pytest.fixture(params=list(SERVERS))
def server(request: pytest.FixtureRequest, servers: dict[str, WebServer]) -> WebServer:
    return servers[request.param]


def test_a_session_lasts_and_only_changes_set_a_cookie(server: WebServer) -> None:
    with server.browser() as browser:
        assert browser.get("/").headers["set-cookie"].startswith("coatcheck-route="), "a route, and no session"
        for number in range(1, 6):
            changed = browser.post("/count")
            assert changed.json() == number
            assert "coatcheck=" in changed.headers["set-cookie"]
            read = browser.get("/")
            assert read.json()["data"] == {"n": number, "log": list(range(1, number + 1))}
            # The first request that comes back with a new session's cookie is remembered: it gets its normal life.
            assert ("set-cookie" in read.headers) is (number == 1)
            assert read.headers["cache-control"] == "no-store"
            assert "cookie" in read.headers["vary"].lower()


def test_cookies_of_the_insecure_localhost_mode(server: WebServer) -> None:
    with server.browser() as browser:
        lines = browser.post("/count").headers.get_list("set-cookie")
        assert [line.partition("=")[0] for line in lines] == ["coatcheck", "coatcheck-route"]
        for line in lines:
            assert "; HttpOnly" in line
            assert "; SameSite=Lax" in line
            assert "Secure" not in line
        assert browser.cookies["coatcheck-route"] in SERVERS


def test_login_rotate_logout(server: WebServer) -> None:
    with server.browser() as browser:
        browser.post("/count")
        anonymous = dict(browser.cookies)
        browser.post("/login")
        assert "coatcheck" not in browser.cookies
        assert browser.get("/").json()["user"] == "ada"
        before = browser.cookies["coatcheck-login"]
        browser.post("/rotate")
        assert browser.cookies["coatcheck-login"] != before
        stale = dict(browser.cookies)
        browser.post("/logout")
        for cookies in (anonymous, stale, dict(browser.cookies)):
            shown = "; ".join(f"{name}={value}" for name, value in cookies.items())
            with server.browser() as other:
                assert other.get("/", headers={"cookie": shown}).json() == {"user": None, "data": {}}


def test_late_changes_of_a_stream(server: WebServer) -> None:
    with server.browser() as browser:
        browser.post("/count")
        assert browser.get("/stream").text == "first last"
        assert browser.get("/").json()["data"] == {"n": 1, "log": [1], "streamed": True}


def test_what_cannot_be_stored_is_a_500_and_a_clear_line_in_the_log(server: WebServer) -> None:
    with server.browser() as browser:
        browser.post("/count")
        response = browser.get("/bad")
        assert response.status_code == 500
        assert "set-cookie" not in response.headers
        assert browser.get("/").json()["data"] == {"n": 1, "log": [1]}
    deadline = time.monotonic() + 60
    while "value of 'bad'" not in server.log.read_text():
        assert time.monotonic() < deadline, server.log.read_text()
        time.sleep(0.05)


def test_a_browser_that_leaves_poisons_nothing(server: WebServer) -> None:
    with server.browser() as browser:
        browser.post("/count")
        for _ in range(3):
            with pytest.raises(httpx.ReadTimeout):
                browser.post("/slow", timeout=0.1)
        assert browser.post("/count").json() == 2
        time.sleep(0.7)
        assert browser.post("/count").json() == 3
        data = browser.get("/").json()["data"]
        assert data["n"] == 3
        assert data.get("slow", True) is True


def test_hostile_cookies_are_answered(server: WebServer) -> None:
    with server.browser() as browser:
        for value in ("", "x", "A" * 116, "A" * 6000, '"', "=" * 50, "\xff\xfe", "coatcheck=coatcheck="):
            shown = f"coatcheck={value}; coatcheck-login={value}".encode("latin-1")
            response = browser.get("/", headers=[(b"cookie", shown)])
            assert response.json() == {"user": None, "data": {}}


def test_a_websocket_reads_the_session(server: WebServer) -> None:
    with server.browser() as browser:
        browser.post("/count")
        shown = {"Cookie": f"coatcheck={browser.cookies['coatcheck']}"}
        with connect(f"ws://{server.address}/ws", additional_headers=shown) as channel:
            assert json.loads(channel.recv(60)) == {"n": 1, "log": [1]}


def test_a_websocket_can_begin_a_session_where_the_server_sends_headers_with_accept(
    servers: dict[str, WebServer],
) -> None:
    """Granian (2.8) drops the headers of ``websocket.accept``, ours and everybody's: begin sessions over HTTP there."""
    with connect(f"ws://{servers['granian'].address}/ws?nick=ada") as channel:
        assert json.loads(channel.recv(60)) == {"nick": "ada"}
    with connect(f"ws://{servers['uvicorn'].address}/ws?nick=ada") as channel:
        assert json.loads(channel.recv(60)) == {"nick": "ada"}
        assert channel.response is not None
        lines = channel.response.headers.get_all("set-cookie")
    text = next(line for line in lines if line.startswith("coatcheck=")).partition(";")[0]
    with servers["granian"].browser() as browser:
        assert browser.get("/", headers={"cookie": text}).json()["data"] == {"nick": "ada"}


def test_one_session_across_both_servers(servers: dict[str, WebServer]) -> None:
    with servers["uvicorn"].browser() as first, servers["granian"].browser() as second:
        for number in range(1, 11):
            browser, other = (first, second) if number % 2 else (second, first)
            assert browser.post("/count").json() == number
            other.cookies = browser.cookies
        assert second.get("/").json()["data"]["log"] == list(range(1, 11))
