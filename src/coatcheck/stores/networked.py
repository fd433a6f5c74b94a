"""What the stores behind a RESP link have in common: the port, and the meaning of their replies."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import hiredis

from coatcheck import resp
from coatcheck.errors import CorruptEntry
from coatcheck.replication.entry import KEY_BYTES, Entry, decode_entry
from coatcheck.replication.version import Version
from coatcheck.session_server.table import check_key
from coatcheck.stores.events import EventSink, StoreEvent, StoreEventKind
from coatcheck.stores.link import Link
from coatcheck.stores.port import ACCEPTED, GetReply, PutReply, Refused, ScanReply, Unreachable
from coatcheck.stores.put_requests import put_requests

_NO_SCRIPT = "NOSCRIPT"
_FULL = ("FULL", "OOM")
"""How a session server of ours, and how Redis and Valkey begin the error that they have no room."""


class NetworkedStore:
    """A store on the other side of a link; see :class:`coatcheck.stores.port.Store`.

    ``get_head`` and ``put_head`` are the requests up to the key's 16 bytes; a put goes on with what was seen,
    the life in milliseconds, the entry, and ``put_tail``. One that names web servers to be notified begins with
    ``notifying_head`` and ends with their IDs. Put is answered by ``1``, or by what is stored as
    ``[entry, life left]`` (``[]``: nothing); get by the latter. ``key_prefix`` precedes the keys of a scan.
    """

    def __init__(
        self,
        link: Link,
        *,
        get_head: bytes,
        put_head: bytes,
        notifying_head: bytes,
        put_tail: bytes,
        key_prefix: bytes,
        scripts: tuple[bytes, ...],
        on_event: EventSink,
    ) -> None:
        self.name = link.name
        self._link = link
        self._get_head = get_head
        self._put_request = put_requests(put_head, notifying_head, put_tail).encode
        self._key_prefix = key_prefix
        self._scan_tail = resp.bulk(b"MATCH") + resp.bulk(_glob_escaped(key_prefix) + b"*") + resp.bulk(b"COUNT")
        self._scripts = scripts
        self._on_event = on_event

    @property
    def reachable(self) -> bool:
        return self._link.reachability.now

    def get(self, key: bytes, reply: Callable[[GetReply], None]) -> None:
        check_key(key)
        self._link.call(b"%b%b\r\n" % (self._get_head, key), partial(self._got, key, reply))

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        try:
            request = self._put_request(key, seen, new, notify)
        except CorruptEntry as impossible:
            return reply(self._event(StoreEventKind.PUT_IMPOSSIBLE, str(impossible)))
        return self._link.call(request, partial(self._put_done, key, seen, new, notify, reply))

    def scan(self, cursor: int, limit: int, reply: Callable[[ScanReply], None]) -> None:
        request = b"*6\r\n$4\r\nSCAN\r\n%b%b%b" % (
            resp.bulk(b"%d" % max(cursor, 0)),
            self._scan_tail,
            resp.bulk(b"%d" % max(limit, 1)),
        )
        self._link.call(request, partial(self._scanned, reply))

    def publish(self, server_id: bytes, message: bytes) -> None:
        self._link.publish(server_id, message)

    def subscribe(self, server_id: bytes, on_message: Callable[[bytes], None]) -> None:
        self._link.subscribe(server_id, on_message)

    def watch(self, on_change: Callable[[str, bool], None]) -> None:
        self._link.reachability.watch(on_change)

    def watch_clock(self, on_time: Callable[[str, float, float], None]) -> bool:
        self._link.watch_clock(on_time)
        return True

    def watch_notices(self, on_heard: Callable[[str, float], None], period_s: float) -> None:
        self._link.watch_notices(on_heard, period_s)

    async def open(self) -> None:
        await self._link.open()

    async def aclose(self) -> None:
        await self._link.aclose()

    def _put_done(
        self,
        key: bytes,
        seen: Version | None,
        new: Entry,
        notify: bytes,
        reply: Callable[[PutReply], None],
        got: Any,
        retried: bool = False,
    ) -> None:
        if got == 1:
            return reply(ACCEPTED)
        if self._scripts_lost(got) and not retried:
            request = self._put_request(key, seen, new, notify)
            return self._link.call(request, partial(self._put_done, key, seen, new, notify, reply, retried=True))
        stored = self._entry(got)
        return reply(stored if isinstance(stored, Unreachable) else Refused(stored))

    def _got(self, key: bytes, reply: Callable[[GetReply], None], got: Any, retried: bool = False) -> None:
        if self._scripts_lost(got) and not retried:
            request = b"%b%b\r\n" % (self._get_head, key)
            return self._link.call(request, partial(self._got, key, reply, retried=True))
        return reply(self._entry(got))

    def _entry(self, got: Any) -> GetReply:
        """The entry in a reply ``[bytes, life left]``; a life without end is as corrupt as bad bytes."""
        if isinstance(got, Unreachable):
            return got
        if isinstance(got, hiredis.ReplyError) and str(got).startswith(_FULL):
            self._on_event(StoreEvent(self.name, StoreEventKind.FULL, str(got)))
            return Unreachable(str(got), full=True)
        if isinstance(got, hiredis.ReplyError):
            return self._event(StoreEventKind.CORRUPT_ENTRY if str(got).startswith("CORRUPT") else None, str(got))
        if got == []:
            return None
        try:
            raw, left_ms = got
            if left_ms < 0:
                raise CorruptEntry("a stored entry that never expires")
            return decode_entry(raw, left_ms)
        except (CorruptEntry, TypeError, ValueError) as corrupt:
            return self._event(StoreEventKind.CORRUPT_ENTRY, str(corrupt))

    def _scanned(self, reply: Callable[[ScanReply], None], got: Any) -> None:
        reply(self._page(got))

    def _page(self, got: Any) -> ScanReply:
        if isinstance(got, Unreachable):
            return got
        if isinstance(got, hiredis.ReplyError):
            return Unreachable(str(got))
        skip = len(self._key_prefix)
        try:
            cursor, found = got
            return int(cursor), [key[skip:] for key in found if len(key) == skip + KEY_BYTES]
        except (TypeError, ValueError):
            return Unreachable("not a reply to SCAN")

    def _scripts_lost(self, got: Any) -> bool:
        """Whether the server has forgotten our scripts; if so they are sent again, ahead of the retry."""
        if not (isinstance(got, hiredis.ReplyError) and str(got).startswith(_NO_SCRIPT)):
            return False
        for script in self._scripts:
            self._link.call(script, _ignore)
        return bool(self._scripts)

    def _event(self, kind: StoreEventKind | None, why: str) -> Unreachable:
        self._on_event(StoreEvent(self.name, kind or StoreEventKind.REFUSED_BY_SERVER, why))
        return Unreachable(why)


def _glob_escaped(literal: bytes) -> bytes:
    return b"".join([b"\\" + bytes([c]) if c in b"*?[]\\^-" else bytes([c]) for c in literal])


def _ignore(reply: Any) -> None:
    """If loading a script failed, the retried call says so."""
