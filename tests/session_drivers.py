"""A web server of one app over either driver, and a browser of it: without an HTTP server between."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable
from http.cookies import SimpleCookie
from typing import Any

from coatcheck import Answer, SessionUnavailable
from coatcheck.drivers.sessions import Sessions
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.errors import ConflictError, SessionClosed
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Opened
from coatcheck.stores.port import Store

Act = Callable[[Session], Any]
HEAD = ((b"content-type", b"text/plain"), (b"content-length", b"2"))
COOKIE, LOGIN = "__Host-coatcheck", "__Host-coatcheck-login"
UNTIL_S = 30.0


class OnThreads:
    """Calls as a WSGI server's thread does."""

    def __init__(self, sessions: Sessions) -> None:
        self.threaded = ThreadedSessions(sessions)
        self.sessions = sessions

    def open(self, header: bytes = b"", client: str | None = None) -> Opened:
        return self.threaded.open(header, client)

    def finish(self, opened: Opened, status: int = 200, headers: Iterable[Any] = HEAD) -> Answer:
        return self.threaded.finish(opened, status, headers)

    def end(self, opened: Opened) -> None:
        self.threaded.end(opened)

    def operate(self, call: str, *arguments: Any) -> Any:
        return getattr(self.threaded, call)(*arguments)

    def close(self) -> None:
        self.threaded.close()


class OnAsyncio:
    """The same calls, each of them waited for on an event loop."""

    def __init__(self, sessions: Sessions) -> None:
        self.sessions = sessions
        self._runner = asyncio.Runner()

    def open(self, header: bytes = b"", client: str | None = None) -> Opened:
        return self._runner.run(self.sessions.open(header, client))

    def finish(self, opened: Opened, status: int = 200, headers: Iterable[Any] = HEAD) -> Answer:
        return self._runner.run(self.sessions.finish(opened, status, headers))

    def end(self, opened: Opened) -> None:
        self._runner.run(self.sessions.end(opened))

    def operate(self, call: str, *arguments: Any) -> Any:
        asked = getattr(self.sessions, call)(*arguments)
        return self._runner.run(asked) if asyncio.iscoroutine(asked) else asked

    def close(self) -> None:
        self._runner.run(self.sessions.aclose())
        self._runner.close()


Server = OnThreads | OnAsyncio
DRIVERS: dict[str, type[OnThreads] | type[OnAsyncio]] = {"threads": OnThreads, "asyncio": OnAsyncio}


class Browser:
    """Keeps cookies as one does."""

    def __init__(self) -> None:
        self.jar: dict[str, str] = {}
        self.told: Any = None
        """What the app answered last."""

    @property
    def header(self) -> bytes:
        return "; ".join(f"{name}={value}" for name, value in self.jar.items()).encode()

    def ask(self, server: Server, act: Act, status: int = 200) -> Answer:
        """One request, as an adapter serves it; refused ones change nothing."""
        try:
            opened = server.open(self.header, "203.0.113.9")
        except SessionUnavailable as error:
            return Answer.refusal(error)
        self.told = act(opened.session)
        answer = server.finish(opened, status, HEAD)
        try:
            server.end(opened)
        except (SessionClosed, SessionUnavailable, ConflictError) as error:
            return Answer.refusal(error)
        self.keep(answer)
        return answer

    def keep(self, answer: Answer) -> None:
        for _, value in answer.cookies:
            for name, morsel in SimpleCookie(value.decode()).items():
                if morsel.value:
                    self.jar[name] = morsel.value
                else:
                    self.jar.pop(name, None)


def header_of(answer: Answer, name: bytes) -> bytes | None:
    return next((value for key, value in answer.headers if key.lower() == name), None)


def reachable(sessions: Sessions, servers: int) -> None:
    """Wait until that many session servers answer."""
    began = time.monotonic()
    while sum(sessions.status()["session_servers"].values()) != servers:
        assert time.monotonic() - began < UNTIL_S, "waited in vain"
        time.sleep(0.005)


StoreMaker = Callable[[], list[Store]]
