"""What operators ask of a web server's sessions: look at them, find and close one, and the figures of its status."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any

import msgspec

from coatcheck.drivers.asyncio_driver import AsyncioDriver, World
from coatcheck.drivers.background_repair import BackgroundRepair, scan
from coatcheck.errors import CoatcheckError
from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import Exclusive
from coatcheck.replication.stall_guard import StallGuard
from coatcheck.replication.view import View
from coatcheck.sessions.json_form import json_form
from coatcheck.sessions.newcomers import Newcomers
from coatcheck.sessions.record import decode_record, look_into_data
from coatcheck.sessions.user_index import is_index
from coatcheck.sessions.users import UserIndexes
from coatcheck.stores.port import Store, Unreachable


class SessionInfo(msgspec.Struct, frozen=True):
    """One session as operators see it. Times are Unix ms; ``copies`` names the servers that hold the newest state."""

    key: str
    id: str
    """What logs and audit records call it: :func:`coatcheck.events.public_id`."""
    state: str
    user: str | None
    created_at: int
    last_seen_at: int
    version: str
    owner: str
    copies: tuple[str, ...]
    bytes: int
    data: dict[str, Any] | None = None
    """As JSON can have it: :func:`coatcheck.sessions.json_form.json_form`."""


class SessionOperations(ABC):
    """What :class:`coatcheck.drivers.sessions.Sessions` does for operators."""

    LOOKS_AT_ONCE = 64
    """Sessions that a listing asks for at once: it shares the event loop with the requests."""

    copies: Copies
    users: UserIndexes
    newcomers: Newcomers
    events: Counter[EventKind]
    _last_event: dict[EventKind, Event]
    _stores: Mapping[str, Store]
    _world: World
    _repair: BackgroundRepair | None
    _stall_guard: StallGuard | None

    @property
    @abstractmethod
    def driver(self) -> AsyncioDriver:
        """What runs flows; raises :class:`CoatcheckError` before the start."""

    @abstractmethod
    def report(self, event: Event) -> None:
        """Tell operators."""

    def now_s(self) -> float:
        """The farm's time (Unix seconds), by which sessions are judged; one host's wrong clock does not change it."""
        return self._world.now_ms() / 1000

    async def close_key(self, key: bytes) -> Closed:
        """Close a session by its key, on every server."""
        view = await self.driver.run(self.copies.viewer.look(key))
        if is_index(view.body):
            raise CoatcheckError(
                "this is the key of a user's index, and of no session; close_user closes what it lists"
            )
        before = _describe(view, with_data=False)
        closed: Closed = await self.driver.run(_exclusively(key, self.copies.close(key)))
        user = before.user if before is not None else None
        detail = f"by an operator, {closed.holds} of {closed.servers}"
        self.report(Event(EventKind.SESSION_CLOSED, public_id(key), detail, user or ""))
        return closed

    async def find(self, public: str) -> bytes | None:
        """The key of the session that logs and audit records call ``public`` (12 hex digits); ``None``: not stored.

        Looks through the keys on the session servers that answer.
        """
        for store in self._stores.values():
            cursor = -1
            while cursor:
                reply = await scan(store, max(cursor, 0), 256)
                if isinstance(reply, Unreachable):
                    break
                cursor, found = reply
                for key in found:
                    if public_id(key) == public:
                        return key
        return None

    async def show(self, key: bytes, with_data: bool = True) -> SessionInfo | None:
        """What the session servers hold of a session; changes nothing, claims nothing."""
        view = await self.driver.run(self.copies.viewer.look(key))
        return _describe(view, with_data, self.users.all_closed_before)

    async def list_sessions(self, limit: int = 1000) -> list[SessionInfo]:
        """Up to ``limit`` sessions, found by scanning the session servers that answer."""
        found: list[SessionInfo] = []
        seen: set[bytes] = set()
        for store in self._stores.values():
            cursor = -1
            while cursor and len(found) < limit:
                reply = await scan(store, max(cursor, 0), 256)
                if isinstance(reply, Unreachable):
                    break
                cursor, stored = reply
                keys = [key for key in dict.fromkeys(stored) if key not in seen]
                seen.update(keys)
                found += await self._shown(keys)
        return found[:limit]

    async def _shown(self, keys: list[bytes]) -> list[SessionInfo]:
        found: list[SessionInfo] = []
        for start in range(0, len(keys), self.LOOKS_AT_ONCE):
            chunk = keys[start : start + self.LOOKS_AT_ONCE]
            shown = await asyncio.gather(*(self.show(key, with_data=False) for key in chunk))
            found += [info for info in shown if info is not None]
        return found

    def status(self) -> dict[str, Any]:
        """Numbers for ``coatcheck status``: sessions hosted, copies below their number, repair, events."""
        repair = self._repair
        return {
            "sessions": self.copies.cache.hosted(),
            "max_sessions": self.copies.cache.max_sessions,
            "under_replicated": len(self.copies.under_replicated),
            "closing": len(self.copies.closing),
            "stalls": self._stall_guard.stalls if self._stall_guard is not None else 0,
            "refused_new_sessions": self.newcomers.refused,
            "recopy": repair.progress() if repair is not None else {},
            "session_servers": {name: store.reachable for name, store in self._stores.items()},
            "clock": self._world.clock.status(),
            "events": {kind.value: count for kind, count in self.events.items()},
            "last_events": {kind.value: event.detail for kind, event in self._last_event.items()},
        }


def _exclusively(key: bytes, flow: Any) -> Any:
    return (yield Exclusive(key, flow))


def _describe(view: View, with_data: bool, closed_before: int = 0) -> SessionInfo | None:
    newest = view.newest
    if newest is None:
        return None
    holders = tuple(name for name, entry in view.entries.items() if entry.version == newest.version)
    common: dict[str, Any] = {
        "key": view.key.hex(),
        "id": public_id(view.key),
        "version": str(newest.version),
        "owner": newest.version.server_id.hex(),
        "copies": holders,
        "bytes": len(newest.payload),
    }
    if newest.closed:
        return SessionInfo(state="closed", user=None, created_at=0, last_seen_at=0, **common)
    if is_index(view.body):
        return None  # of a user, and no session
    record = decode_record(view.body)
    return SessionInfo(
        state="live" if record.created_at > closed_before else "closed",
        user=record.user,
        created_at=record.created_at,
        last_seen_at=record.last_seen_at,
        data=json_form(look_into_data(record.data)) if with_data else None,
        **common,
    )
