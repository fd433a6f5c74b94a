"""A flood of clients without cookies, each of which begins a session: logged-in users notice nothing."""

from __future__ import annotations

import threading
import time
from collections import Counter
from collections.abc import Callable
from itertools import count
from pathlib import Path

import httpx

from .farm_process import Farm, eventually

BROWSERS = 40
FLOODERS = 4
FLOOD_S = 6.0
ENTRIES = 1600
LOGIN_APP = """
import os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def login(request):
    request.session["user"] = request.query_params["user"]
    request.session.regenerate(request.query_params["user"])
    return JSONResponse({})

async def count(request):
    request.session["count"] = request.session.get("count", 0) + 1
    return JSONResponse({"count": request.session["count"], "user": request.session.get("user")})

routes = [Route("/login", login, methods=["POST"]), Route("/", count, methods=["POST"])]
app = Starlette(routes=routes)
"""


class Browser:
    """A user who logs in once and then changes his session again and again."""

    def __init__(self, base: str, name: str) -> None:
        self.name = name
        self.wrong: list[str] = []
        self.done = 0
        self._client = httpx.Client(base_url=base, timeout=60)
        assert self._client.post("/login", params={"user": name}).status_code == 200

    def step(self) -> None:
        answer = self._client.post("/")
        if answer.status_code != 200 or answer.json() != {"count": self.done + 1, "user": self.name}:
            self.wrong.append(f"{answer.status_code} {answer.text}")
        self.done += 1

    def close(self) -> None:
        self._client.close()


class Flood:
    """Strangers: each request comes from another address and brings no cookie."""

    def __init__(self, base: str, address_of: Callable[[int], str]) -> None:
        self.answers: Counter[int] = Counter()
        self.reasons: Counter[str] = Counter()
        self.retry_after: set[str | None] = set()
        self._base = base
        self._address_of = address_of
        self._numbers = count()
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(FLOODERS)]

    def __enter__(self) -> Flood:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        with httpx.Client(base_url=self._base, timeout=60) as client:
            while not self._stop.is_set():
                client.cookies.clear()
                answer = client.post("/", headers={"X-Forwarded-For": self._address_of(next(self._numbers))})
                self.answers[answer.status_code] += 1
                if answer.status_code != 200:
                    self.reasons[answer.text.strip()] += 1
                    self.retry_after.add(answer.headers.get("retry-after"))


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def test_a_flood_from_everywhere_takes_nobody_down(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "login_app.py").write_text(LOGIN_APP)
    bounds = ("--session-server-max-entries", str(ENTRIES), "--trusted-proxy", "127.0.0.1")
    running = farm(*bounds, "--store-timeout", "5s", "--unresponsive-after", "60", app="login_app:app")
    browsers = [Browser(running.base, f"user-{number}") for number in range(BROWSERS)]
    with Flood(running.base, lambda number: f"203.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}") as flood:
        eventually(lambda: flood.answers[503] > 50, "a session server that is full")
        ends_at = time.monotonic() + FLOOD_S
        while time.monotonic() < ends_at:
            for browser in browsers:
                browser.step()
    for browser in browsers:
        browser.step()
        browser.close()
    assert [browser.wrong for browser in browsers if browser.wrong] == []
    assert min(browser.done for browser in browsers) >= 2
    # Who is refused is told why, and when to come again; the operator sees which servers are full, and why.
    assert set(flood.reasons) == {"session not saved: session_servers_are_full"}
    assert flood.retry_after == {"1"}
    status = running.healthy_status()
    for row in status["session_servers"]:
        assert row["full"]
        assert row["refused_full"] > 0
        assert row["entries"] <= row["max_entries"] == ENTRIES
        assert row["entries"] >= ENTRIES * 0.75
        assert resident_bytes(row["pid"]) < 200e6
    assert running.run("status").stdout.count(" full ") == 2
    assert "session-1 is full: no room: " in running.log
    assert running.log.count("is full") < 60, "and the flood does not fill the log"


def test_a_flood_from_one_address_fills_nothing(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "login_app.py").write_text(LOGIN_APP)
    limits = ("--new-sessions-burst", "30", "--new-sessions-per-minute", "1", "--trusted-proxy", "127.0.0.1")
    running = farm(*limits, "--web", "2", app="login_app:app")
    with Flood(running.base, lambda number: f"2001:db8::{number:x}") as flood:
        eventually(lambda: flood.answers[429] > 300, "many refusals")
    assert 60 <= flood.answers[200] <= 60 + 2 * 10, "the burst of two web servers, and little more"
    assert set(flood.reasons) == {"session not saved: too_many_new_sessions_from_this_address"}
    assert None not in flood.retry_after
    # Another address, and whoever has a session, is served.
    with httpx.Client(base_url=running.base, headers={"X-Forwarded-For": "2001:db8:0:1::1"}, timeout=60) as other:
        assert [other.post("/").json()["count"] for _ in range(3)] == [1, 2, 3]
    # What a client says of itself, without being a proxy that we trust, changes nothing for it.
    status = running.healthy_status()
    assert sum(row["refused_new_sessions"] for row in status["web_servers"]) == flood.answers[429]


def test_an_address_is_believed_from_a_trusted_proxy_only(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "login_app.py").write_text(LOGIN_APP)
    running = farm("--new-sessions-burst", "1", "--new-sessions-per-minute", "1", "--web", "1", app="login_app:app")
    # From this machine there is no limit; if the header counted, the second request of an address would be refused.
    with Flood(running.base, lambda number: "203.0.113.7") as flood:
        eventually(lambda: flood.answers[200] > 20, "requests that are not limited")
    assert set(flood.answers) == {200}
