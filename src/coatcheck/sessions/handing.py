"""A session arrives at another site: its chain there begins, is joined, or is revoked (protocol section 12)."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from coatcheck.errors import SessionClosed, SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind
from coatcheck.replication.cache import Copy
from coatcheck.replication.effects import Exclusive, Flow
from coatcheck.replication.farm_clock import TOLERANCE_MS
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.record import KNOWN_MS, Record
from coatcheck.sessions.saving import Saving
from coatcheck.sessions.site_chains import chain_of, has_room, is_revoked, with_chain, without_chain
from coatcheck.tokens.chain import NO_CHAIN, Chain, ChainLink, Shown, joined, show
from coatcheck.tokens.sealed import SESSION_ID_BYTES, SealedToken

Change = Callable[[Record, int], Record | None]
"""What a record becomes at a moment (Unix ms); ``None``: nothing is to be stored."""


class Arrival(msgspec.Struct, frozen=True, gc=False):
    """The session that a ticket names. ``promised``: the newest data version that its browser was told of at the
    source; ``ticket``: the ticket's ID, by which what it issued can be revoked."""

    key: bytes
    promised: bytes
    list_number: int
    login: bool
    ticket: bytes


class Handing(Saving):
    """Changes nothing but the chain of this web server's own site."""

    def arrive(self, arrival: Arrival, kept_ms: int) -> Flow[Issue]:
        """Begin this site's chain of a session, or join it, and return the token for its browser.

        ``kept_ms``: how long the ticket is remembered. Raises :class:`SessionClosed` if the session is over, and
        :class:`SessionUnavailable` as a write does.
        """

        issue: Issue = yield Exclusive(arrival.key, self._arrive(arrival, kept_ms))
        return issue

    def _arrive(self, arrival: Arrival, kept_ms: int) -> Flow[Issue]:
        def change(record: Record, now: int) -> Record:
            return self._with_own_chain(record, arrival.ticket, now, kept_ms)

        copy = yield from self._rewrite(arrival, change)
        record, now = self._record(copy), self._world.now_ms()
        self._report(EventKind.SESSION_HANDED_OVER, arrival.key, "a ticket was redeemed here", record.user)
        # This answer tells the newest link: for two graces from now on nobody else's silence means that it is lost.
        copy.shown_at = now
        link = record.chain.told(now, self.policy.grace_ms)
        token = SealedToken(arrival.key, link.session_id, link.minted_at, copy.promised, self._list_number)
        return Issue(token, arrival.login)

    def arrive_by_token(self, arrival: Arrival, source: str, session_id: bytes, timestamp: int) -> Flow[Issue]:
        """The same for a token of the site ``source`` in place of a ticket: ID and timestamp are compared with that
        site's chain (mission A6). Raises :class:`SessionClosed` also for a token that the chain does not accept."""
        found = yield Exclusive(arrival.key, self._rewrite(arrival, lambda record, now: None))
        record, now = self._record(found), self._world.now_ms()
        verdict, _ = show(chain_of(record, source), session_id, timestamp, now, self.policy.grace_ms)
        if not verdict.accepted or verdict is Shown.LATE:
            raise SessionClosed(f"a token that is {verdict.value}")
        return (yield from self.arrive(arrival, kept_ms=0))

    def revoke(self, arrival: Arrival) -> Flow[bool]:
        """Take this site's chain away if the ticket has begun or joined it; whether it had."""
        had = False

        def change(record: Record, now: int) -> Record | None:
            nonlocal had
            left = without_chain(record, arrival.ticket, self.site)
            had = had or left is not None
            return left

        try:
            yield Exclusive(arrival.key, self._rewrite(arrival, change))
        except SessionClosed:
            return had
        if had:
            self._report(EventKind.HAND_OFF_REPLAYED, arrival.key, "a used ticket came back: what it issued is revoked")
        return had

    def _with_own_chain(self, record: Record, ticket: bytes, now: int, kept_ms: int) -> Record:
        if is_revoked(record, ticket):
            raise SessionClosed("what this ticket issued was revoked")
        session_id = self._world.random_bytes(SESSION_ID_BYTES)
        if record.chain != NO_CHAIN:
            chain = joined(record.chain, session_id, now, self.policy.grace_ms, self.policy.rotate_after_ms)
        elif has_room(record):
            # Here may have been a chain that was revoked: an honest browser may still have a token of that, minted by a
            # web server whose clock is ahead of ours.
            chain = Chain(ChainLink(session_id, now), forgotten_at=now + TOLERANCE_MS)
        else:
            raise SessionClosed("the session is used at as many sites as a record has room for")
        active = msgspec.structs.replace(
            record, last_seen_at=max(record.last_seen_at, now, record.created_at + KNOWN_MS)
        )
        return with_chain(active, chain, self.site, ticket, now, kept_ms)

    def _rewrite(self, arrival: Arrival, change: Change) -> Flow[Copy]:
        """Store the changed record on top of what is acknowledged now, with all copies; the copy that holds it."""
        key = arrival.key
        shown = SealedToken(key, b"", 0, arrival.promised, arrival.list_number)
        for _ in range(self.policy.max_tries):
            copy = yield from self._owned(key, shown)
            now = self._world.now_ms()
            before = self._record(copy)
            if now >= before.expires_at(self.policy):
                raise SessionClosed("the session has timed out")
            record = change(before, now)
            if record is None:
                return copy
            written = yield from self.copies.write(
                copy, self._encode(record), now, record.expires_at(self.policy), "all"
            )
            if written is None:
                continue
            stored = self._hosted(key)
            if stored is None:
                raise SessionClosed("the session was closed while it was handed over")
            self._keep_decoded(stored, record)
            return stored
        raise SessionUnavailable(UnavailableReason.CONTENDED)
