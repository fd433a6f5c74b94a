"""How many of our functions, and how many of our files, one warm write passes: from the request's head to its cookie.

With two real session servers behind sockets, on an event loop of their own, so that only the web server is counted.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import coatcheck
from coatcheck.drivers.sessions import Sessions
from coatcheck.session_server.server import SessionServer
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.stores.session_server_store import SessionServerStore
from coatcheck.tokens.keyring import KeyRing
from coatcheck.web.asgi import SessionMiddleware

PACKAGE = str(Path(coatcheck.__file__).parent)
MAX_CALLS = 90
"""Python functions of ours that are entered, the app's own use of the session included."""
MAX_CALLS_WITH_BUILTINS = 192
"""The same, and what they call that is written in C."""
MAX_FILES = 28
WRITES = 50
"""The least of so many counts: a timer that fires meanwhile is no part of a write."""


class Counted:
    """What the profiler saw of one request."""

    def __init__(self) -> None:
        self.calls = self.builtins = 0
        self.files: set[str] = set()

    def see(self, frame: FrameType, event: str, argument: Any) -> None:
        file = frame.f_code.co_filename
        if not file.startswith(PACKAGE):
            return
        if event == "call":
            self.calls += 1
            self.files.add(file[len(PACKAGE) + 1 :])
        elif event == "c_call":
            self.builtins += 1


@contextmanager
def servers() -> Iterator[list[SessionServer]]:
    """Two session servers on another thread."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    both = [SessionServer(f"session-{number}") for number in (1, 2)]
    for server in both:
        asyncio.run_coroutine_threadsafe(server.start(), loop).result(60)
    try:
        yield both
    finally:
        for server in both:
            asyncio.run_coroutine_threadsafe(server.stop(), loop).result(60)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(60)
        loop.close()


async def app(scope: Any, receive: Any, send: Any) -> None:
    session = scope["session"]
    session["n"] = session.get("n", 0) + 1
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


class Browser:
    """Keeps one cookie."""

    def __init__(self, wrapped: SessionMiddleware) -> None:
        self.wrapped = wrapped
        self.cookie = b""

    async def send(self, message: Any) -> None:
        for name, value in message.get("headers", ()):
            if name == b"set-cookie":
                self.cookie = value.partition(b";")[0]

    async def write(self) -> None:
        headers = [(b"host", b"127.0.0.1"), *([(b"cookie", self.cookie)] if self.cookie else [])]
        scope = {"type": "http", "method": "GET", "path": "/", "headers": headers, "client": ("127.0.0.1", 1)}
        await self.wrapped(scope, None, self.send)  # type: ignore[arg-type]


async def counts(both: list[SessionServer]) -> list[Counted]:
    stores = [SessionServerStore(one.name, "127.0.0.1", one.port, timeout_s=30.0) for one in both]
    cookies = CookiePolicy(insecure_localhost=True)
    sessions = Sessions(farm="farm", server_name="web-1", stores=stores, ring=KeyRing([bytes(32)]), cookies=cookies)
    browser = Browser(SessionMiddleware(app, sessions))
    await browser.write()
    before = browser.cookie
    found = []
    try:
        for _ in range(WRITES):
            counted = Counted()
            sys.setprofile(counted.see)
            try:
                await browser.write()
            finally:
                sys.setprofile(None)
            found.append(counted)
            assert browser.cookie not in (b"", before), "each write is told"
            before = browser.cookie
    finally:
        await sessions.aclose()
    return found


def test_a_write_passes_few_functions_and_few_files() -> None:
    with servers() as both:
        found = asyncio.run(counts(both))
    calls = min(one.calls for one in found)
    whole = min(one.calls + one.builtins for one in found)
    files = min((one.files for one in found), key=len)
    assert calls <= MAX_CALLS, f"{calls} calls"
    assert whole <= MAX_CALLS_WITH_BUILTINS, f"{whole} calls, builtins included"
    assert len(files) <= MAX_FILES, f"{len(files)} files: {sorted(files)}"
    assert calls > MAX_CALLS * 0.9, f"only {calls}: lower MAX_CALLS"
