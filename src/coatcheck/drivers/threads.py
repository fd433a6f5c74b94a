"""The sessions of one web server whose requests run in threads (WSGI): the same flows, no event loop to be seen.

One background thread has an event loop with the links to the session servers; it runs the flows, the repair and the
heart-beat, with the asyncio driver as it is. Whoever asks for a session that is hosted here is answered in the thread
that asks, under a lock that the background thread holds while it works and gives away while it waits for its sockets.
So nobody ever sees a session half changed, and no answer waits for another thread but for one from a session server.
"""

from __future__ import annotations

import asyncio
import atexit
import concurrent.futures.thread  # noqa: F401 - so that it has registered what it does at the end
import contextlib
import os
import sys
import threading
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Final, ParamSpec, TypeVar

from coatcheck.drivers.asked_in_threads import AskedInThreads
from coatcheck.drivers.background_thread import BackgroundThread
from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import CoatcheckError, SessionUnavailable
from coatcheck.sessions.answer import NO_HEADERS, Answer, CookieTransport
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Opened
from coatcheck.sessions.routes import Header

P = ParamSpec("P")
T = TypeVar("T")

_PATCHERS: Final = (
    ("gevent.monkey", "is_module_patched", "threading"),
    ("eventlet.patcher", "is_monkey_patched", "thread"),
)
"""Who replaces threads by greenlets: the module, its function that says so, and what is asked for."""

_all: weakref.WeakSet[ThreadedSessions] = weakref.WeakSet()
_inherited: list[object] = []
"""What a parent process had running at the fork: its threads are not in this process, and its links are not ours."""


_forking = threading.Lock()
_parked: list[BackgroundThread] = []
"""What a fork waits for and holds: no background thread is in the middle of anything that the child inherits."""


def _before_fork() -> None:
    _forking.acquire()
    for sessions in list(_all):
        background = sessions._background  # another thread may close it while we wait for its lock
        if background is not None:
            background.lock.acquire()
            _parked.append(background)


def _after_fork_in_parent() -> None:
    while _parked:
        _parked.pop().lock.release()
    _forking.release()


def _after_fork_in_child() -> None:
    _after_fork_in_parent()
    for sessions in list(_all):
        sessions._after_fork()


def _close_all() -> None:
    for sessions in list(_all):
        sessions.close()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
# When Python ends, executors go first, which SQLite needs to be closed in order; then the functions of `atexit`. What
# is registered here, as executors register theirs, is called before them, because it was registered later.
getattr(threading, "_register_atexit", atexit.register)(_close_all)


class ThreadedSessions(AskedInThreads):
    """The sessions of one web server, for apps that run in threads: :meth:`open` with each request, :meth:`finish` when
    its response starts, :meth:`end` when its body was streamed. From as many threads as you like.

    Build it anywhere, also before a fork: the background thread is begun by the first request of each process, and
    closed when the process ends. ``sessions``: what the background thread is to run; nobody else may.
    """

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions
        self._beginning = threading.RLock()
        """Held while it is begun or closed; a signal handler may close it in the middle of either."""
        self._background: BackgroundThread | None = None
        self.cookies = sessions.cookies
        self.transport = sessions.transport
        self.transport_of = sessions.transport_of
        _all.add(self)

    # -- the life of a request ---------------------------------------------------------------------

    def open(
        self,
        cookie_header: bytes = b"",
        client: str | None = None,
        transport: CookieTransport | None = None,
        method: str = "",
        headers: Iterable[Header] = NO_HEADERS,
    ) -> Opened:
        """Begin with a request: its session, at once where it is hosted here. ``cookie_header``: its Cookie headers,
        joined by ``; ``; ``client``: the host that asks, if the server knows it; ``method`` and ``headers``: the
        request's own, of which a user is shown the User-Agent.

        Raises :class:`SessionUnavailable`: no session is invented while the right one is out of reach;
        :meth:`Answer.refusal` says what to answer then. Raises :class:`CoatcheckError` on an event loop.
        """
        background = self._running()
        opened = Opened(self, cookie_header, client, transport or self.transport, method, headers)
        with background.lock:
            # Asked under the lock: whoever waits for it may have waited for a stall to end.
            if self._sessions.beats():
                loading = self._sessions.requests.open(opened)
                if loading is None:
                    return opened
                asking = self._sessions.run_for(opened, loading)
            else:
                asking = self._sessions.load(opened)
        background.run(asking)
        return opened

    def finish(self, opened: Opened, status: int = 200, headers: Iterable[Header] = NO_HEADERS) -> Answer:
        """When the app's response starts, with this status and these headers: what to send instead of them.

        Returns and raises as :meth:`Sessions.finish` does. One that waits for longer than :data:`LONGEST_WAIT_S`, or
        while :data:`MAX_WAITING` others wait, is refused too.
        """
        background = self._running_for(opened)
        with background.lock:
            answer = self._sessions.requests.finish(opened, status, headers)
        if isinstance(answer, Answer):
            return answer
        try:
            return background.run(self._sessions.run_for(opened, answer))
        except SessionUnavailable as unavailable:
            with background.lock:
                return self._sessions.requests.refuse(opened, unavailable)
        except BaseException:
            opened.give_up()
            raise

    def end(self, opened: Opened) -> None:
        """Before the last piece of a streamed body leaves: store what was changed since :meth:`finish`. Repeatable.

        Raises as :meth:`Sessions.end` does.
        """
        background = self._running_for(opened)
        with background.lock:
            storing = self._sessions.requests.end(opened)
        if storing is not None:
            background.run(self._sessions.run_for(opened, storing))

    # -- the same for an app that has event loops and threads: what is awaited blocks no loop --------

    async def aopen(
        self,
        cookie_header: bytes = b"",
        client: str | None = None,
        transport: CookieTransport | None = None,
        method: str = "",
        headers: Iterable[Header] = NO_HEADERS,
    ) -> Opened:
        """:meth:`open` from a coroutine on any event loop; the background thread does the work."""
        background = await self._running_beside()
        opened = Opened(self, cookie_header, client, transport or self.transport, method, headers)
        await background.run_awaited(self._sessions.load(opened))
        return opened

    async def afinish(self, opened: Opened, status: int = 200, headers: Iterable[Header] = NO_HEADERS) -> Answer:
        """:meth:`finish` from a coroutine."""
        background = await self._running_beside()
        try:
            return await background.run_awaited(self._finish(opened, status, headers))
        except SessionUnavailable as unavailable:
            return self._sessions.requests.refuse(opened, unavailable)

    async def _finish(self, opened: Opened, status: int, headers: Iterable[Header]) -> Answer:
        answer = self._sessions.requests.finish(opened, status, headers)
        if isinstance(answer, Answer):
            return answer
        return await self._sessions.run_for(opened, answer)

    # -- by the token that names it, outside of a request --------------------------------------------

    def find_by_token(self, text: bytes) -> Session | None:
        """The session that a token names, or ``None``; raises as :meth:`ByToken.find`, and changes nothing."""
        return self._wait_for(self._sessions.find_by_token, text)

    async def afind_by_token(self, text: bytes) -> Session | None:
        """:meth:`find_by_token` from a coroutine."""
        return await (await self._running_beside()).run_awaited(self._sessions.find_by_token(text))

    def store_now(self, session: Session) -> bytes:
        """Store a session that was found, opened or made; its newest token. Raises as :meth:`ByToken.store`."""
        return self._wait_for(self._sessions.store_now, session)

    async def astore_now(self, session: Session) -> bytes:
        """:meth:`store_now` from a coroutine."""
        return await (await self._running_beside()).run_awaited(self._sessions.store_now(session))

    def close_by_token(self, text: bytes) -> None:
        """Close the session that a token names; raises as :meth:`ByToken.close`."""
        self._wait_for(self._sessions.close_by_token, text)

    async def aclose_by_token(self, text: bytes) -> None:
        """:meth:`close_by_token` from a coroutine."""
        await (await self._running_beside()).run_awaited(self._sessions.close_by_token(text))

    def now_ms(self) -> int:
        """The farm's time (Unix ms), by which sessions are judged."""
        return self._sessions.requests.now_ms()

    # -- for operators, beside what threads may ask of any sessions ------------------------------------

    def change_keys(self, secrets: Sequence[bytes], primary: int) -> None:
        """Seal with the primary of these secrets and open with any; raises :class:`ConfigError`, with no change."""
        with self._held():
            self._sessions.change_keys(secrets, primary)

    def status(self) -> dict[str, Any]:
        """Numbers for operators."""
        with self._held():
            return self._sessions.status()

    def _wait_for(self, ask: Callable[P, Coroutine[Any, Any, T]], *arguments: P.args, **named: P.kwargs) -> T:
        return self._running().run(ask(*arguments, **named))

    def _held(self) -> AbstractContextManager[object]:
        background = self._background
        return background.lock if background is not None else contextlib.nullcontext()

    # -- the life of this web server ---------------------------------------------------------------

    def close(self) -> None:
        """Settle what was acknowledged early, then release everything; called when the process ends. The next request
        begins anew, when all is released; one that waits for session servers meanwhile is refused."""
        with self._beginning:
            background, self._background = self._background, None
            if background is not None:
                try:
                    background.run(self._sessions.aclose(), is_last=True)
                finally:
                    background.stop()

    def _running(self) -> BackgroundThread:
        if _get_running_loop() is not None:
            raise CoatcheckError(
                "these sessions are for threads, and would block this event loop: leave out connect(driver='threads')"
            )
        running = self._background
        return running if running is not None else self._begin()

    def _running_for(self, opened: Opened) -> BackgroundThread:
        home: object = opened.home
        if home is not self:
            raise CoatcheckError("this request was opened by other sessions")
        return self._running()

    async def _running_beside(self) -> BackgroundThread:
        """For a coroutine: to begin takes a while, so a thread waits for that."""
        running = self._background
        return running if running is not None else await asyncio.to_thread(self._begin)

    def _begin(self) -> BackgroundThread:
        with self._beginning:
            background = self._background
            if background is None:
                _refuse_greenlets()
                background = BackgroundThread(self._sessions.server_name)
                try:
                    background.run(self._sessions.start())
                except BaseException:
                    background.stop()
                    raise
                self._background = background
            return background

    def _after_fork(self) -> None:
        """In the child: threads are not forked, and what the parent has open is the parent's."""
        _inherited.append(self._background)
        self._background = None
        self._beginning = threading.RLock()


def _refuse_greenlets() -> None:
    """Patched threads are no threads: the background one would never run while a greenlet computes."""
    for module, question, what in _PATCHERS:
        is_patched = getattr(sys.modules.get(module), question, None)
        if is_patched is not None and is_patched(what):
            raise CoatcheckError(f"sessions for threads need real ones, and {module} has replaced them")
