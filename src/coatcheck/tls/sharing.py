"""TLS sessions that any server of the farm can resume: what is done with OpenSSL's questions (mission C1, C3, C8)."""

from __future__ import annotations

import logging
import os
import ssl
import time
from asyncio import _get_running_loop
from collections import Counter
from typing import Final, NamedTuple

import msgspec

from coatcheck.seldom import Seldom
from coatcheck.take_once.port import TakeOnceUnavailable
from coatcheck.take_once.rule import NONCE_BYTES
from coatcheck.tls.client_hello import ClientHello
from coatcheck.tls.demands import Demands
from coatcheck.tls.doors import door_of
from coatcheck.tls.hosts import Siblings, as_host
from coatcheck.tls.openssl import OpenSslDoor, OpenSslRefused
from coatcheck.tls.record import RecordSealer, RecordVerdict, SessionRecord, judge_record
from coatcheck.tls.repository import SessionRepository
from coatcheck.tls.session_id import ID_BYTES, NamedSession, SessionIds, item_key

THREAD_LIMIT_S: Final = 0.08
"""So long a thread waits in the middle of a handshake for a store; a full handshake takes less than that."""
LOOP_LIMIT_S: Final = 0.5
"""So long a connection on an event loop waits for a store before its handshake begins."""
MAX_OFFERED: Final = 2
"""So many of the sessions that a client offers are asked for."""
MAX_AHEAD: Final = 4096
"""Sessions that were fetched for handshakes that are under way; more are not fetched."""
MAX_GIVEN: Final = 1024
"""Handshakes that were given a session and are under way, or broke off; of more the oldest are forgotten."""

_log: Final = logging.getLogger("coatcheck.tls")
_seldom: Final = Seldom(_log, time.monotonic)


class SharingCounts(msgspec.Struct):
    """What became of sessions since the start of this process."""

    made: int = 0
    """Sessions that were handed to a store."""
    offered: int = 0
    """Sessions of this farm that clients offered."""
    resumed: int = 0
    """Of those: fetched, and given to OpenSSL."""
    gone: int = 0
    """Not in the store: taken before, expired, or lost."""
    refused: int = 0
    """Not for this host name, these demands on client certificates, or this moment."""
    unreadable: int = 0
    """What the store gave was not sealed by this farm for this session."""
    unavailable: int = 0
    """The store did not answer in time, or was not asked because it did not before."""
    not_ahead: int = 0
    """Offered on an event loop that does not fetch ahead."""


class FetchedSession(NamedTuple):
    """A record that this server has taken, and how it would put it back."""

    record: SessionRecord
    nonce: bytes
    store: bytes
    key: bytes


class LookedFor(NamedTuple):
    """What was asked for ahead of one handshake, by the IDs of sessions."""

    fetched: tuple[bytes, ...] = ()
    missed: tuple[bytes, ...] = ()


class SharedSessions:
    """The sessions of one context; made by :func:`coatcheck.tls.share_sessions`.

    Nothing here ever fails a handshake: whatever goes wrong is a full handshake, and is counted.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        repository: SessionRepository,
        ids: SessionIds,
        sealer: RecordSealer,
        *,
        server: str,
        farm: str,
        siblings: Siblings,
        lifetime_s: int,
        thread_limit_s: float = THREAD_LIMIT_S,
        loop_limit_s: float = LOOP_LIMIT_S,
    ) -> None:
        self.counts = SharingCounts()
        self.why_off = ""
        """Why nothing is shared, in words; empty if all is well."""
        self._context = context
        self._repository = repository
        self._ids = ids
        self._sealer = sealer
        self._server = server
        self._siblings = siblings
        self._lifetime_ms = lifetime_s * 1000
        self._thread_limit_s = thread_limit_s
        self._loop_limit_s = loop_limit_s
        self._ahead: dict[bytes, FetchedSession] = {}
        self._missed: Counter[bytes] = Counter()
        """How many handshakes that are under way offer a session that was asked for and not had."""
        self._given: dict[int, tuple[bytes, bytes]] = {}
        """By connection, the ID and the session that its handshake was given: after a HelloRetryRequest it asks again
        (RFC 8446 section 4.1.4). Forgotten when the handshake ends with a session of its own."""
        self._demands = Demands(context, farm)
        self._context_id = self._demands.name
        self._begin(lifetime_s)

    @property
    def active(self) -> bool:
        """Whether sessions are shared."""
        return not self.why_off

    def status(self) -> dict[str, object]:
        """For operators: whether it is on, the counts, and which stores answer."""
        counts: dict[str, object] = msgspec.to_builtins(self.counts)
        repository = self._repository
        return {
            "active": self.active,
            **counts,
            "ahead": len(self._ahead),
            "storing": repository.storing,
            "dropped": repository.dropped,
            "stores": repository.status(),
        }

    def close(self) -> None:
        """Release the stores; from now on every handshake is a full one."""
        self.why_off = self.why_off or "closed"
        self._repository.close()

    async def open_here(self) -> None:
        """Let the running event loop reach the stores; :func:`coatcheck.tls.new_event_loop` does it for its servers."""
        await self._repository.open_here()

    async def close_here(self) -> None:
        """As often as :meth:`open_here`."""
        await self._repository.close_here()

    # -- ahead of the handshake, on event loops ----------------------------------------------------

    async def fetch_ahead(self, hello: ClientHello) -> LookedFor:
        """Fetch what this client offers before its handshake begins; answers what :meth:`forget` must be told after."""
        fetched: list[bytes] = []
        missed: list[bytes] = []
        for raw, named in self._offers(hello):
            if len(self._ahead) + len(self._missed) >= MAX_AHEAD:
                break
            key, nonce = item_key(raw), os.urandom(NONCE_BYTES)
            try:
                sealed = await self._fetch(named.store, key, nonce)
            except TakeOnceUnavailable as unavailable:
                self._unavailable(unavailable)
                missed.append(raw)
                break
            record = self._opened(key, sealed)
            if record is not None:
                self._ahead[raw] = FetchedSession(record, nonce, named.store, key)
                fetched.append(raw)
                break  # OpenSSL takes the first that it finds
            missed.append(raw)
        self._missed.update(missed)
        return LookedFor(tuple(fetched), tuple(missed))

    def forget(self, looked_for: LookedFor) -> None:
        """The handshake is over: what it did not ask for is nobody's any more."""
        for raw in looked_for.fetched:
            self._ahead.pop(raw, None)
        for raw in looked_for.missed:
            self._missed[raw] -= 1
            if not self._missed[raw]:
                del self._missed[raw]

    def _offers(self, hello: ClientHello) -> list[tuple[bytes, NamedSession]]:
        offers = [(raw, self._ids.read(raw)) for raw in hello.offers if len(raw) == ID_BYTES]
        return [(raw, named) for raw, named in offers if named is not None][:MAX_OFFERED] if self.active else []

    async def _fetch(self, store: bytes, key: bytes, nonce: bytes) -> bytes | None:
        """An answer that was lost is asked for again, by the same nonce, while there is time."""
        until = time.monotonic() + self._loop_limit_s
        try:
            return await self._repository.fetch(store, key, nonce, self._loop_limit_s)
        except TakeOnceUnavailable:
            if (left_s := until - time.monotonic()) <= self._loop_limit_s / 2:
                raise
            return await self._repository.fetch(store, key, nonce, left_s)

    # -- what OpenSSL asks, in the middle of a handshake -------------------------------------------

    def new_id(self) -> bytes:
        """An ID that names a store that can be reached; random bytes if there is none."""
        try:
            store = self._repository.place() if self.active else None
            return self._ids.new(store) if store is not None else os.urandom(ID_BYTES)
        except Exception as wrong:  # noqa: BLE001 - whatever it is, the handshake goes on, and it is reported
            self._report(wrong)
            return os.urandom(ID_BYTES)

    def keep(self, door: OpenSslDoor, connection: int, session: int) -> None:
        """Hand a new session to the store that its ID names."""
        try:
            self._given.pop(connection, None)
            raw = door.id_of(session)
            named = self._ids.read(raw)
            if named is None or self._demands.are_others():
                return
            record = SessionRecord(
                owner=self._server,
                host=as_host(door.host_of(connection)),
                context=self._context_id,
                expires_at_ms=_now_ms() + self._lifetime_ms,
                protocol=door.protocol_of(session),
                session=door.encoded(session),
            )
            if record.session:
                key = item_key(raw)
                self._repository.put(named.store, key, self._sealer.seal(key, record), self._lifetime_ms)
                self.counts.made += 1
        except Exception as wrong:  # noqa: BLE001 - as above
            self._report(wrong)

    def find(self, door: OpenSslDoor, connection: int, session_id: bytes) -> bytes | None:
        """The session that a client offers, if this server gets it and may resume it."""
        try:
            return self._find(door, connection, session_id)
        except Exception as wrong:  # noqa: BLE001 - as above
            self._report(wrong)
            return None

    def _find(self, door: OpenSslDoor, connection: int, raw: bytes) -> bytes | None:
        named = self._ids.read(raw)
        if named is None or not self.active:
            return None
        given = self._given.pop(connection, None)
        if given is not None and given[0] == raw:
            return given[1]
        self.counts.offered += 1
        fetched = self._ahead.pop(raw, None)
        if fetched is None and raw not in self._missed:
            fetched = self._take(raw, named.store)
        if fetched is None or self._demands.are_others():
            return None
        record, now_ms = fetched.record, _now_ms()
        host = as_host(door.offered_host(connection))
        verdict = judge_record(record, self._context_id, host, self._siblings, now_ms)
        if verdict is not RecordVerdict.RESUME:
            self.counts.refused += 1
            _seldom.write(logging.INFO, "a TLS session was not resumed: %s", verdict.value, kind="refused")
            return None
        if record.keeps_its_id:
            self._move(fetched, now_ms)
        else:
            self._give(connection, raw, record.session)
        self.counts.resumed += 1
        return record.session

    def _give(self, connection: int, raw: bytes, session: bytes) -> None:
        if len(self._given) >= MAX_GIVEN:
            self._given.pop(next(iter(self._given)), None)
        self._given[connection] = (raw, session)

    def _take(self, raw: bytes, store: bytes) -> FetchedSession | None:
        """In a thread: wait for the store, but not for long."""
        if _get_running_loop() is not None:
            self.counts.not_ahead += 1
            _seldom.warning("TLS sessions are not fetched on this event loop: run it by coatcheck.tls.new_event_loop")
            return None
        key, nonce = item_key(raw), os.urandom(NONCE_BYTES)
        try:
            sealed = self._repository.take(store, key, nonce, self._thread_limit_s)
        except TakeOnceUnavailable as unavailable:
            self._unavailable(unavailable)
            return None
        record = self._opened(key, sealed)
        return FetchedSession(record, nonce, store, key) if record is not None else None

    def _move(self, fetched: FetchedSession, now_ms: int) -> None:
        """TLS 1.2 keeps the session's ID: the record goes back with a new owner, and nobody had it in between."""
        moved = msgspec.structs.replace(fetched.record, owner=self._server)
        sealed = self._sealer.seal(fetched.key, moved)
        self._repository.put(fetched.store, fetched.key, sealed, moved.expires_at_ms - now_ms, after=fetched.nonce)

    def _opened(self, key: bytes, sealed: bytes | None) -> SessionRecord | None:
        if sealed is None:
            self.counts.gone += 1
            return None
        record = self._sealer.open(key, sealed)
        if record is None:
            self.counts.unreadable += 1
            _seldom.warning("what a store gave for a TLS session was not sealed by this farm")
        return record

    # -- trouble -----------------------------------------------------------------------------------

    def _unavailable(self, why: TakeOnceUnavailable) -> None:
        self.counts.unavailable += 1
        _seldom.warning("a TLS session could not be fetched: %s", why, kind="take")

    def _report(self, wrong: Exception) -> None:
        _seldom.write(logging.ERROR, "sharing of TLS sessions failed: %r", wrong, kind="failed")

    def _begin(self, lifetime_s: int) -> None:
        try:
            door = door_of(self._context)
            door.share(self, self._context_id, lifetime_s)
        except OpenSslRefused as refused:
            self.why_off = str(refused)
            return
        # TLS 1.3 sessions then have IDs as well, instead of carrying their own state (RFC 8446 section 4.6.1).
        self._context.options |= ssl.OP_NO_TICKET
        self._context.num_tickets = 1
        self._repository.start()


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
