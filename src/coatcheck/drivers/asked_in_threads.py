"""What threads may ask sessions beside opening and finishing them: for operators, and for the user's own page."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from asyncio import _get_running_loop
from collections.abc import Callable, Coroutine
from concurrent.futures import TimeoutError as NotInTime
from typing import Any, Final, ParamSpec, TypeVar

from coatcheck.drivers.sessions import SessionInfo, Sessions
from coatcheck.errors import CoatcheckError, SessionUnavailable, UnavailableReason
from coatcheck.replication.closes import Closed
from coatcheck.sessions.devices import Device
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.users import UserClosed, UserSession

P = ParamSpec("P")
T = TypeVar("T")

LONGEST_WAIT_S: Final = 30.0
"""How long a thread waits for the session servers at most; the store's own time-outs are over long before."""


class AskedInThreads(ABC):
    """The questions, with the names that :class:`Sessions` has for them. Each waits :data:`LONGEST_WAIT_S` at most,
    then raises :class:`SessionUnavailable`."""

    _sessions: Sessions

    @abstractmethod
    def _wait_for(self, ask: Callable[P, Coroutine[Any, Any, T]], *arguments: P.args, **named: P.kwargs) -> T:
        """Wait in this thread for what runs elsewhere."""

    # -- for operators ---------------------------------------------------------------------------------

    def close_key(self, key: bytes) -> Closed:
        """Close a session by its key, on every server."""
        return self._wait_for(self._sessions.close_key, key)

    def find(self, public: str) -> bytes | None:
        """The key of the session that logs and audit records call ``public``; ``None``: not stored."""
        return self._wait_for(self._sessions.find, public)

    def show(self, key: bytes, with_data: bool = True) -> SessionInfo | None:
        """What the session servers hold of a session; changes nothing, claims nothing."""
        return self._wait_for(self._sessions.show, key, with_data)

    def list_sessions(self, limit: int = 1000) -> list[SessionInfo]:
        """Up to ``limit`` sessions, found by scanning the session servers that answer."""
        return self._wait_for(self._sessions.list_sessions, limit)

    def sessions_of(self, user: str) -> list[UserSession]:
        """The sessions of a user, the oldest first; no scan, and nothing changes."""
        return self._wait_for(self._sessions.sessions_of, user)

    def close_user(self, user: str, but: bytes | None = None) -> UserClosed:
        """Close all sessions of a user, ``but`` the one with this key; raises as :meth:`Sessions.close_user` does."""
        return self._wait_for(self._sessions.close_user, user, but)

    def close_all(self) -> None:
        """Close everybody's sessions; raises as :meth:`Sessions.close_all` does."""
        self._wait_for(self._sessions.close_all)

    # -- for the user's own page: what a session on an event loop has as its own methods -----------------

    def devices(self, session: Session) -> list[Device]:
        """The sessions of this session's user, as :meth:`Session.devices`."""
        return self._wait_for(self._sessions.devices, session._request)

    def close_device(self, session: Session, public: str) -> bool:
        """Close one of the user's other sessions, as :meth:`Session.close_device`."""
        session._at_home(changes=True)
        return self._wait_for(self._sessions.close_device, session._request, public)

    def close_other_devices(self, session: Session) -> int:
        """Close all sessions of the user but this one, as :meth:`Session.close_other_devices`."""
        session._at_home(changes=True)
        return self._wait_for(self._sessions.close_other_devices, session._request)


class LoopAskedInThreads(AskedInThreads):
    """Asks sessions that an event loop of this process runs: those of a web server whose app runs in threads."""

    def __init__(self, sessions: Sessions) -> None:
        self._sessions = sessions

    def _wait_for(self, ask: Callable[P, Coroutine[Any, Any, T]], *arguments: P.args, **named: P.kwargs) -> T:
        if _get_running_loop() is not None:
            raise CoatcheckError("this waits, and would block the event loop it is called on: ask the session itself")
        loop = self._sessions.loop
        if loop is None:
            raise SessionUnavailable(UnavailableReason.STOPPING)
        asked = asyncio.run_coroutine_threadsafe(ask(*arguments, **named), loop)
        try:
            return asked.result(LONGEST_WAIT_S)
        except NotInTime:
            asked.cancel()
            raise SessionUnavailable(UnavailableReason.TIMED_OUT) from None
