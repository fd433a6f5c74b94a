"""A crowd of browsers that remember what was acknowledged, and a killer that goes round the farm."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import msgspec

from coatcheck.demo.browser import BrowserError, ShopBrowser

from .farm_process import Farm

DEADLINE_S = 300.0
WHOLE_S = 60.0
"""How long the farm may take to be whole again: a busy machine is no fault."""

KILL_APP = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

async def write(request):
    session = request.session
    session["n"] = session.get("n", 0) + 1
    session.setdefault("log", {})[request.path_params["mark"]] = session["n"]
    return JSONResponse({"n": session["n"]})

async def read(request):
    return JSONResponse({key: request.session.get(key) for key in ("n", "who", "log")})

async def login(request):
    request.session["who"] = request.path_params["who"]
    request.session.regenerate(request.path_params["who"])
    return JSONResponse({})

app = Starlette(routes=[
    Route("/write/{mark}", write, methods=["POST"]),
    Route("/login/{who}", login, methods=["POST"]),
    Route("/read", read),
])
"""

KILL_WSGI_APP = """
import json

def app(environ, start):
    session, (kind, _, what) = environ["coatcheck.session"], environ["PATH_INFO"][1:].partition("/")
    told = {}
    if kind == "write":
        session["n"] = told["n"] = session.get("n", 0) + 1
        session.setdefault("log", {})[what] = session["n"]
    elif kind == "login":
        session["who"] = what
        session.regenerate(what)
    else:
        told = {key: session.get(key) for key in ("n", "who", "log")}
    start("200 OK", [("Content-Type", "application/json")])
    return [json.dumps(told).encode()]
"""
"""The same as a WSGI app."""


class Seen(msgspec.Struct):
    """What the crowd saw."""

    gets: int = 0
    posts: int = 0
    failed_posts: int = 0
    bad_gets: list[str] = msgspec.field(default_factory=list)
    slowest_get_s: float = 0.0


class Shopper:
    def __init__(self, number: int, host: str, port: int) -> None:
        self.name = f"user{number}"
        self.browser = ShopBrowser(host, port)
        self.acknowledged: dict[str, int] = {}
        self.marks = 0

    async def login(self) -> None:
        status, _ = await self.browser.request("POST", f"/login/{self.name}")
        assert status == 200

    async def get(self, seen: Seen) -> None:
        seen.gets += 1
        began = time.monotonic()
        try:
            status, state = await self.browser.request("GET", "/read")
        except BrowserError as error:
            status, state = 0, {"error": str(error)}
        seen.slowest_get_s = max(seen.slowest_get_s, time.monotonic() - began)
        wrong = self.wrong(status, state)
        if wrong:
            seen.bad_gets.append(f"{self.name}: {wrong}")

    def wrong(self, status: int, state: Any) -> str:
        if status != 200:
            return f"status {status} {state}"
        if state["who"] != self.name:
            return f"logged out: who = {state['who']!r}"
        lost = [mark for mark, n in self.acknowledged.items() if (state["log"] or {}).get(mark) != n]
        if lost:
            return f"lost {lost[:5]} of {len(self.acknowledged)}"
        if (state["n"] or 0) < max(self.acknowledged.values(), default=0):
            return f"n = {state['n']} went back"
        return ""

    async def post(self, seen: Seen) -> None:
        seen.posts += 1
        self.marks += 1
        mark = f"m{self.marks}"
        try:
            status, answer = await self.browser.request("POST", f"/write/{mark}")
        except BrowserError:
            status, answer = 0, None
        if status == 200:
            self.acknowledged[mark] = answer["n"]
        else:
            seen.failed_posts += 1


class Listener(Shopper):
    """Each write of its app leaves a message for the next page as well, and each message is told once.

    It is told to a POST, which no director repeats: so a shopper knows whether it was told.
    """

    def __init__(self, number: int, host: str, port: int) -> None:
        super().__init__(number, host, port)
        self.due: set[str] = set()
        """Messages that were acknowledged and have to be told."""
        self.told: set[str] = set()

    async def post(self, seen: Seen) -> None:
        before = len(self.acknowledged)
        await super().post(seen)
        if len(self.acknowledged) > before:
            self.due.add(f"m{self.marks}")
        if self.marks % 4 == 0:
            await self.listen(seen)

    async def listen(self, seen: Seen) -> None:
        seen.posts += 1
        try:
            status, answer = await self.browser.request("POST", "/said")
        except BrowserError:
            status, answer = 0, None
        if status != 200:
            seen.failed_posts += 1
            self.due.clear()  # nobody knows
            return
        said = answer["said"]
        if not self.due <= set(said):
            seen.bad_gets.append(f"{self.name}: was not told {sorted(self.due - set(said))}")
        if len(set(said)) < len(said) or self.told & set(said):
            seen.bad_gets.append(f"{self.name}: was told twice {said}")
        self.told |= set(said)
        self.due.clear()


async def shop(
    crowd: Sequence[Shopper], seen: Seen, enough: Callable[[], bool], at_once: int = 32, pause_s: float = 0
) -> None:
    """Each browser one request at a time, ``at_once`` of them at any moment, until it is ``enough``.

    ``pause_s`` after each answer leaves the machine to the farm.
    """
    queue = list(crowd)
    random.shuffle(queue)
    deadline = time.monotonic() + DEADLINE_S

    async def worker() -> None:
        while not enough():
            assert time.monotonic() < deadline, f"the crowd is too slow: {seen}"
            shopper = queue.pop(0)
            await (shopper.post(seen) if random.random() < 0.5 else shopper.get(seen))
            queue.append(shopper)
            await asyncio.sleep(pause_s)

    await asyncio.gather(*(worker() for _ in range(at_once)))


def for_a_while(seen: Seen, seconds: float, requests: int) -> Callable[[], bool]:
    """At least so long, and at least so many more requests."""
    until, total = time.monotonic() + seconds, seen.gets + seen.posts + requests
    return lambda: time.monotonic() > until and seen.gets + seen.posts >= total


async def whole(farm: Farm) -> None:
    """Wait until every process is healthy and every session has its copies."""
    until = time.monotonic() + WHOLE_S
    while True:
        status = await asyncio.to_thread(farm.status)
        rows = status["director"] + status["web_servers"] + status["session_servers"]
        if all(row["healthy"] for row in rows) and not any(row.get("under_replicated") for row in rows):
            return
        assert time.monotonic() < until, f"the farm is not whole again: {status}"
        await asyncio.sleep(0.1)


async def freeze(pid: int, seconds: float) -> None:
    os.kill(pid, signal.SIGSTOP)
    try:
        await asyncio.sleep(seconds)
    finally:
        os.kill(pid, signal.SIGCONT)
