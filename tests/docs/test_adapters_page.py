"""docs/adapters.md is run as a reader would run it: its files in a folder, and gunicorn with threads and forks."""

from __future__ import annotations

import os
import re
import runpy
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.cookies import SimpleCookie
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import httpx
import pytest

import coatcheck.errors
from coatcheck import SessionDataError, connect
from ports import free_port

ROOT = Path(__file__).parents[2]
SOURCE = Path(coatcheck.errors.__file__).parents[1]
FILE = re.compile(r"```python\n# (\w+\.py)\n(.*?)```", re.S)
KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"
START_TIMEOUT_S = 60.0
THREADS = 8


@pytest.fixture
def address(tmp_path: Path) -> Iterator[str]:
    for name, text in FILE.findall((ROOT / "docs" / "adapters.md").read_text()):
        (tmp_path / name).write_text(text)
    port = free_port()
    command = [sys.executable, "-m", "gunicorn", "--preload", "--workers", "2", "--threads", str(THREADS)]
    environment = os.environ | {"SESSION_KEY": KEY, "PYTHONPATH": str(SOURCE)}
    log = (tmp_path / "gunicorn.log").open("wb")
    server = subprocess.Popen(
        [*command, "--bind", f"127.0.0.1:{port}", "shop:app"], cwd=tmp_path, env=environment, stdout=log, stderr=log
    )
    try:
        began = time.monotonic()
        while True:
            try:
                httpx.get(f"http://127.0.0.1:{port}/")
                break
            except httpx.TransportError:
                assert server.poll() is None, (tmp_path / "gunicorn.log").read_text()
                assert time.monotonic() - began < START_TIMEOUT_S
                time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
        server.terminate()
        assert server.wait(60) == 0
        said = (tmp_path / "gunicorn.log").read_text()
        assert "Traceback" not in said, said
    finally:
        server.kill()
        server.wait(60)
        log.close()
        print((tmp_path / "gunicorn.log").read_text())  # shown with a failure


def test_a_shop_on_two_forked_workers_with_threads(address: str) -> None:
    def shopper(number: int) -> None:
        """Each request may reach another worker: what one has stored the other one serves."""
        with httpx.Client(base_url=address, timeout=60) as browser:
            assert browser.get("/").text == "None 0"
            assert not browser.cookies
            for count in range(1, 6):
                answer = browser.get("/add")
                assert (answer.text, answer.headers["cache-control"]) == (f"None {count}", "no-store")
            assert browser.get("/login").text == "ada 5"
            assert set(browser.cookies) == {"coatcheck-login"}
            loot = dict(browser.cookies)
            assert browser.get("/").text == "ada 5"
            browser.get("/logout")
            assert not browser.cookies
            assert httpx.get(f"{address}/", cookies=loot, timeout=60).text == "None 0"

    with ThreadPoolExecutor(THREADS) as pool:
        list(pool.map(shopper, range(THREADS)))


Answered = tuple[str, bytes]


class Site:
    """The page's adapter between an app and a browser; both sides are held to PEP 3333."""

    def __init__(self, folder: Path) -> None:
        files = dict(FILE.findall((ROOT / "docs" / "adapters.md").read_text()))
        (folder / "wsgi_sessions.py").write_text(files["wsgi_sessions.py"])
        self._adapter: Any = runpy.run_path(str(folder / "wsgi_sessions.py"))["Sessions"]
        self.sessions = connect("memory://", key=KEY, driver="threads")
        self.jar: dict[str, str] = {}

    def ask(self, app: Any) -> Answered:
        environ: dict[str, Any] = {"QUERY_STRING": "", "REMOTE_ADDR": "203.0.113.9"}
        environ["HTTP_COOKIE"] = "; ".join(f"{name}={value}" for name, value in self.jar.items())
        setup_testing_defaults(environ)
        begun: list[str] = []

        def start(status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
            begun.append(status)
            for name, value in headers:
                if name.lower() == "set-cookie":
                    self.jar.update({key: morsel.value for key, morsel in SimpleCookie(value).items()})
            return lambda data: None

        pieces: Any = validator(self._adapter(validator(app), self.sessions))(environ, start)
        try:
            body = b"".join(pieces)
        finally:
            pieces.close()
        return begun[-1], body


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    yield made
    made.sessions.close()


TEXT = [("Content-Type", "text/plain")]


def counting(environ: Any, start: Any) -> Iterator[bytes]:
    session = environ["coatcheck.session"]
    session["n"] = session.get("n", 0) + 1
    start("200 OK", TEXT)
    yield str(session["n"]).encode()


def test_the_adapter_is_wsgi(site: Site) -> None:
    assert [site.ask(counting) for _ in range(3)] == [("200 OK", b"1"), ("200 OK", b"2"), ("200 OK", b"3")]


def test_what_is_changed_while_the_body_leaves_is_stored(site: Site) -> None:
    def late(environ: Any, start: Any) -> Iterator[bytes]:
        start("200 OK", TEXT)
        yield b"one "
        environ["coatcheck.session"]["n"] = 10
        yield b"two"

    site.ask(counting)
    assert site.ask(late) == ("200 OK", b"one two")
    assert site.ask(counting) == ("200 OK", b"11")


@pytest.mark.parametrize("has_started", [True, False], ids=["as it starts", "before it starts"])
def test_an_app_that_fails_sends_its_own_error_page(site: Site, has_started: bool) -> None:
    """With what cannot be stored, which shows when the response starts, or by a mistake before that."""

    def fails(environ: Any, start: Any) -> list[bytes]:
        environ["coatcheck.session"]["n"] = 1j if has_started else 5
        try:
            if not has_started:
                raise LookupError("a mistake of the app")
            start("200 OK", TEXT)
        except (LookupError, SessionDataError) as error:
            start("500 Our own page", TEXT, sys.exc_info())
            return [str(error).encode()]
        raise AssertionError("it was taken")

    site.ask(counting)
    status, body = site.ask(fails)
    assert status == "500 Our own page"
    assert (b"cannot be stored" if has_started else b"a mistake") in body
    assert site.ask(counting) == ("200 OK", b"2")


def test_a_refusal_takes_the_place_of_what_the_app_answers(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    site.ask(counting)
    with monkeypatch.context() as closing:
        closing.setattr(site.sessions._sessions, "_driver", None)
        assert site.ask(counting) == ("503 Refused", b"this_web_server_is_stopping")
    assert site.ask(counting) == ("200 OK", b"2")


def test_the_adapter_has_thirty_lines_or_few_more() -> None:
    files = dict(FILE.findall((ROOT / "docs" / "adapters.md").read_text()))
    adapter = files["wsgi_sessions.py"].partition("\ndef refuse")[0]
    assert len([line for line in adapter.splitlines() if line.strip() and not line.startswith("from")]) <= 32
