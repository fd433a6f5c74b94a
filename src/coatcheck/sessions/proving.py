"""A session is bound to its browser's key, and its token moves on when that key signs (protocol section 13)."""

from __future__ import annotations

import msgspec

from coatcheck.device.binding import Binding
from coatcheck.device.keys import DeviceKey
from coatcheck.device.proofs import KeyProof
from coatcheck.device.refusals import ProofReason, ProofRefused
from coatcheck.errors import SessionClosed, SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind
from coatcheck.replication.cache import Copy
from coatcheck.replication.effects import Exclusive, Flow
from coatcheck.sessions.handing import Arrival, Change, Handing
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.record import KNOWN_MS, Record, binding_to
from coatcheck.tokens.chain import ChainLink, renewed
from coatcheck.tokens.sealed import SESSION_ID_BYTES, SealedToken

NOTHING_PROMISED = bytes(16)


class ProofWanted(ProofRefused):
    """The browser is to sign a challenge with this serial; nothing has changed."""

    def __init__(self, reason: ProofReason, serial: int) -> None:
        super().__init__(reason)
        self.serial = serial


class NotBound(ProofRefused):
    """The session lives, and is bound to no key."""

    def __init__(self) -> None:
        super().__init__(ProofReason.FOREIGN)


class Proving(Handing):
    """Changes a session's chain and what it is bound to, and nothing else."""

    def bind(self, token: SealedToken, key: DeviceKey) -> Flow[Issue]:
        """Bind the session of a logged-in browser that shows ``token`` to its key, which has signed; the token that the
        answer is to tell. The same key may come again, until that answer is known to have arrived.

        Raises :class:`ProofRefused` if the session is bound, :class:`SessionClosed` if it is over, and
        :class:`SessionUnavailable` as a write does.
        """

        def change(record: Record, now: int) -> Record | None:
            bound = record.bound
            if bound is not None:
                if bound.key == key and bound.is_pending(record.chain):
                    return None
                if bound.is_in_force or bound.is_pending(record.chain):
                    raise ProofRefused(ProofReason.USED)
            session_id = self._world.random_bytes(SESSION_ID_BYTES)
            # A link of its own, which no other answer tells: who shows it has got this one.
            chain = renewed(record.chain, session_id, now, self.policy.grace_ms, fresh_ms=-1)
            return binding_to(_active(record, now, chain), Binding(key, now, now, 0, session_id))

        copy = yield from self._proved(token.key, token, change)
        record = self._record(copy)
        self._report(EventKind.SESSION_BOUND, token.key, f"to the key {key.thumbprint}", record.user)
        return self._told_by_proof(copy, record)

    def prove(
        self, key: bytes, name: str, proof: KeyProof | None, shown: SealedToken | None
    ) -> Flow[tuple[Issue, int]]:
        """A proof for the session with this ``key``, which the browser calls ``name``: the token that the answer is to
        tell, and the serial of the next challenge. ``shown``: a token of the session, if the browser has one.

        Raises :class:`ProofWanted` if there is no proof, or none that counts, :class:`NotBound`, and as :meth:`bind`.
        """

        def change(record: Record, now: int) -> Record:
            bound = record.bound
            if bound is None:
                raise NotBound
            if proof is None:
                raise ProofWanted(ProofReason.MISSING, bound.serial)
            try:
                proof.check(key, name, bound.key, bound.serial, now)
            except ProofRefused as refused:
                raise ProofWanted(refused.reason, bound.serial) from None
            session_id = self._world.random_bytes(SESSION_ID_BYTES)
            fresh_ms = self.policy.bound_cookie_ms // 4
            chain = renewed(record.chain, session_id, now, self.policy.grace_ms, fresh_ms)
            return binding_to(_active(record, now, chain), bound.proved(now))

        copy = yield from self._proved(key, shown, change)
        record = self._record(copy)
        bound = record.bound
        assert bound is not None
        self._report(EventKind.SESSION_ROTATED, key, "its browser has signed", record.user)
        return self._told_by_proof(copy, record), bound.serial

    def _proved(self, key: bytes, shown: SealedToken | None, change: Change) -> Flow[Copy]:
        promised, number = NOTHING_PROMISED, self._list_number
        if shown is not None and shown.key == key:
            promised, number = shown.version, shown.list_number
        arrival = Arrival(key, promised, number, True, b"")
        try:
            copy: Copy = yield Exclusive(key, self._rewrite(arrival, change))
        except SessionClosed:
            # Without a token nobody knows what was promised: what is not seen may be with who does not answer.
            reachable = all(self._world.reachable(server) for server in self.copies.placement.servers)
            if reachable or self.copies.cache.is_closed(key):
                raise
            raise SessionUnavailable(UnavailableReason.UNHEARD) from None
        copy.review_at = 0
        copy.shown_at = self._world.now_ms()  # nobody else's silence means for two graces that this answer is lost
        return copy

    def _told_by_proof(self, copy: Copy, record: Record) -> Issue:
        link: ChainLink = record.chain.next or record.chain.current
        token = SealedToken(copy.key, link.session_id, link.minted_at, copy.promised, self._list_number)
        left_ms = link.minted_at + self.policy.bound_cookie_ms - self._world.now_ms()
        return Issue(token, True, max(left_ms, 1) / 1000)


def _active(record: Record, now: int, chain: object) -> Record:
    last_seen_at = max(record.last_seen_at, now, record.created_at + KNOWN_MS)
    return msgspec.structs.replace(record, chain=chain, last_seen_at=last_seen_at)
