"""The main scenarios over real HTTP, under uvicorn and granian as processes of their own.

Two servers of each kind of process share two SQLite files; what one stored the other picks up.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
import websockets

from .server_process import SERVERS, ServerProcess
from .site_app import PIECES

TIMEOUT_S = 10.0


@dataclass
class Site:
    """One kind of server under test, and one of the other kind that shares its sessions."""

    server: ServerProcess
    other: ServerProcess

    def browser(self) -> httpx.Client:
        return httpx.Client(base_url=self.server.url, timeout=TIMEOUT_S)

    def elsewhere(self, browser: httpx.Client) -> httpx.Client:
        """The same cookies at the other server: ports do not part cookies."""
        return httpx.Client(base_url=self.other.url, timeout=TIMEOUT_S, headers={"cookie": jar(browser)})


def jar(browser: httpx.Client) -> str:
    return "; ".join(f"{cookie.name}={cookie.value}" for cookie in browser.cookies.jar)


def names_set(response: httpx.Response) -> list[str]:
    return [line.partition("=")[0] for line in response.headers.get_list("set-cookie")]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, ServerProcess]]:
    folder = tmp_path_factory.mktemp("site")
    sites = ",".join(f"{name}=sqlite:///{folder}/{name}.db" for name in ("one", "two"))
    key = secrets.token_urlsafe(32)
    started = {kind: ServerProcess(kind, f"web-{kind}", sites, key, folder / f"{kind}.log") for kind in SERVERS}
    try:
        for process in started.values():
            process.wait()
        yield started
    finally:
        for process in started.values():
            process.end()


@pytest.fixture(params=SERVERS)
def site(request: pytest.FixtureRequest, pair: dict[str, ServerProcess]) -> Site:
    other = next(kind for kind in SERVERS if kind != request.param)
    return Site(pair[request.param], pair[other])


def test_a_session_is_kept_and_picked_up_elsewhere(site: Site) -> None:
    with site.browser() as browser:
        assert names_set(browser.get("/")) == [], "who has no session gets no cookie"
        first = browser.post("/count")
        assert names_set(first) == ["coatcheck", "coatcheck-route"]
        assert [browser.post("/count").json() for _ in range(3)] == [2, 3, 4]
        with site.elsewhere(browser) as there:
            moved = there.post("/count")
            assert moved.json() == 5
            assert names_set(moved) == ["coatcheck", "coatcheck-route"], "the route follows the session"
        assert browser.post("/count").json() == 6
        seen = browser.get("/").json()["data"]["seen"]
        assert seen == [site.server.name] * 4 + [site.other.name, site.server.name]


def test_cookies_and_headers(site: Site) -> None:
    with site.browser() as browser:
        line = browser.post("/count").headers.get_list("set-cookie")[0]
        assert {"HttpOnly", "SameSite=Lax", "Path=/"} <= {part.strip() for part in line.split(";")}
        assert "Secure" not in line, "plain HTTP on localhost was asked for by name"
        read = browser.get("/")
        assert names_set(read) == []
        assert read.headers["cache-control"] == "no-store"
        assert read.headers["vary"] == "Cookie"
        free = browser.get("/untouched")
        assert names_set(free) == []
        assert "cache-control" not in free.headers
        assert "vary" not in free.headers


def test_any_data_comes_back(site: Site) -> None:
    data = {"ключ": "🧥", "": "\x00\u2028", "deep": {"a": [1, -2.5, None, True, {"b": []}]}, "large": "x" * 300_000}
    with site.browser() as browser:
        assert browser.post("/echo", json=data).status_code == 204
        assert browser.get("/").json()["data"] == data
        with site.elsewhere(browser) as there:
            assert there.get("/").json()["data"] == data


def test_rotate_login_logout(site: Site) -> None:
    with site.browser() as browser:
        browser.post("/count")
        before = browser.cookies["coatcheck"]
        assert names_set(browser.post("/rotate")) == ["coatcheck"]
        assert browser.cookies["coatcheck"] != before
        anonymous = jar(browser)
        assert names_set(browser.post("/login"))[:2] == ["coatcheck-login", "coatcheck"]
        assert "coatcheck" not in browser.cookies
        assert browser.get("/").json()["user"] == "ada"
        with site.elsewhere(browser) as there:
            assert there.get("/").json()["user"] == "ada"
        for url in (site.server.url, site.other.url):
            old = httpx.get(url, headers={"cookie": anonymous}, timeout=TIMEOUT_S)
            assert old.json() == {"user": None, "data": {}}, "login kills the anonymous token"
        logged_in = jar(browser)
        assert names_set(browser.post("/logout")) == ["coatcheck-login"]
        for url in (site.server.url, site.other.url):
            old = httpx.get(url, headers={"cookie": logged_in}, timeout=TIMEOUT_S)
            assert old.json() == {"user": None, "data": {}}, "logout kills it on every server"


def test_what_cannot_be_stored_is_a_500_and_changes_nothing(site: Site) -> None:
    with site.browser() as browser:
        browser.post("/count")
        assert browser.post("/bad").status_code == 500
        assert browser.post("/count").json() == 2
        assert "bad" not in browser.get("/").json()["data"]
    assert "value of 'bad'" in site.server.log.read_text(), "the log says which value"


def test_a_streamed_answer_keeps_late_changes(site: Site) -> None:
    with site.browser() as browser:
        browser.post("/count")
        with browser.stream("GET", "/stream") as response:
            assert list(response.iter_lines()) == [str(number) for number in range(PIECES)]
        assert browser.get("/").json()["data"]["piece"] == PIECES - 1
        with site.elsewhere(browser) as there:
            assert there.get("/").json()["data"]["piece"] == PIECES - 1


def test_whoever_leaves_in_the_middle_loses_nothing(site: Site) -> None:
    with site.browser() as browser:
        browser.post("/count")
        for number in range(4):
            with pytest.raises(httpx.ReadTimeout):
                browser.post(f"/slow?key=k{number}", timeout=0.1)
            with browser.stream("GET", "/stream") as response:
                next(response.iter_lines())  # and away
        assert browser.post("/count").json() == 2
        with site.elsewhere(browser) as there:
            assert there.post("/count").json() == 3
        assert browser.get("/").json()["data"]["n"] == 3


def test_parallel_requests_at_both_servers(site: Site) -> None:
    keys = {f"k{number}" for number in range(12)}

    async def story(cookies: str) -> list[int]:
        async with httpx.AsyncClient(headers={"cookie": cookies}, timeout=TIMEOUT_S) as client:
            urls = [site.server.url, site.other.url]
            answers = await asyncio.gather(
                *(client.post(f"{urls[at % 2]}/slow?key={key}") for at, key in enumerate(sorted(keys)))
            )
            return [answer.status_code for answer in answers]

    with site.browser() as browser:
        browser.post("/count")
        codes = asyncio.run(story(jar(browser)))
        kept = set(browser.get("/").json()["data"])
        stored = {key for key, code in zip(sorted(keys), codes, strict=True) if code == 200}
        assert stored <= kept, "what was acknowledged is there"
        assert set(codes) <= {200, 409, 503}
        assert codes.count(200) >= len(keys) // 2


def test_a_websocket_reads_the_session_and_may_set_a_cookie_on_accept(site: Site) -> None:
    async def story(cookies: str) -> tuple[str, list[str]]:
        headers = {"Cookie": cookies} if cookies else {}
        url = site.server.url.replace("http", "ws")
        async with websockets.connect(f"{url}/talk", additional_headers=headers) as socket:
            await socket.send("?")
            read = await asyncio.wait_for(socket.recv(), TIMEOUT_S)
            assert socket.response is not None
            assert socket.response.headers.get_all("set-cookie") == []
        async with websockets.connect(f"{url}/talk?count", additional_headers=headers) as socket:
            assert socket.response is not None
            return str(read), socket.response.headers.get_all("set-cookie")

    with site.browser() as browser:
        browser.post("/count")
        read, lines = asyncio.run(story(jar(browser)))
        assert '"n":1' in read
        assert len(lines) == 1
        assert lines[0].startswith("coatcheck=")
        assert browser.get("/").json()["data"]["talks"] == 1
    read, lines = asyncio.run(story(""))
    assert read == "{}"
    assert [line.partition("=")[0] for line in lines] == ["coatcheck", "coatcheck-route"], "a session begins"


def test_a_large_cookie_header_and_strange_bytes_are_no_matter(site: Site) -> None:
    with site.browser() as browser:
        browser.post("/count")
        token = browser.cookies["coatcheck"]
        for cookie in (
            b"coatcheck=" + b"A" * 3000,
            b'coatcheck="' + token.encode() + b'"',
            b"coatcheck=\xff\xfe; coatcheck-login=\x80",
            b"; ;;coatcheck; =x; coatcheck==",
            b"xcoatcheck=" + token.encode(),
        ):
            answer = httpx.get(site.server.url, headers={b"cookie": cookie}, timeout=TIMEOUT_S)
            assert answer.status_code == 200, cookie
            assert answer.json()["data"] == {}


@pytest.mark.parametrize("kind", SERVERS)
def test_sessions_survive_a_restart_of_their_server(kind: str, tmp_path: Path) -> None:
    sites, key = f"sqlite:///{tmp_path}/only.db", secrets.token_urlsafe(32)
    cookies = ""
    for expected in (1, 2):
        process = ServerProcess(kind, "web", sites, key, tmp_path / "web.log")
        try:
            process.wait()
            with httpx.Client(base_url=process.url, timeout=TIMEOUT_S, headers={"cookie": cookies}) as browser:
                assert browser.post("/count").json() == expected
                cookies = jar(browser)
        finally:
            process.end()
        assert process.process.returncode in (0, -15), process.log.read_text()
