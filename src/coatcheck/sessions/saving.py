"""What a request did to the data of its session is stored, on top of what is acknowledged now (protocol section 5)."""

from __future__ import annotations

from coatcheck.errors import ConflictError, SessionClosed, SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind
from coatcheck.replication.cache import Copy
from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Gone, Written
from coatcheck.replication.effects import Detach, Exclusive, Flow, as_flow
from coatcheck.replication.policy import Durability
from coatcheck.replication.version import Version, holds
from coatcheck.sessions.delta import merge
from coatcheck.sessions.durable import SocketChange, SocketState
from coatcheck.sessions.issuing import Issue, token_to_tell
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opening import Opening
from coatcheck.sessions.policy import Merge
from coatcheck.sessions.record import (
    KNOWN_MS,
    BoundRecord,
    Record,
    binding_to,
    check_room,
    encode_data,
    ending,
    open_data,
)
from coatcheck.sessions.request_state import RequestState
from coatcheck.sessions.values import all_kept
from coatcheck.tokens.chain import Chain, ChainLink, Shown, mint, needs_successor
from coatcheck.tokens.sealed import SESSION_ID_BYTES, SealedToken
from coatcheck.value import Value


class Saved(Value):
    """The outcome of a save. ``issue``: the token to set, if it differs from the one shown.

    ``clear``: the session was closed, so its cookie is to be deleted. ``written``: the level that a write reached.
    """

    issue: Issue | None = None
    clear: bool = False
    written: Written | None = None
    closed: Closed | None = None


CURRENT = Shown.CURRENT  # to find a member of an enum by its class takes a while
NOTHING = Saved()
"""Nothing was to be stored, and the browser knows everything."""


class Saving(Opening):
    """Stores the data of sessions that exist, moves their token chains on, and says which tokens are to be told."""

    # -- nothing is stored -------------------------------------------------------------------------

    def is_settled(self, session: Session) -> bool:
        """Whether there is nothing to save and nothing to tell the browser: the hot path of reading.

        A shortcut: if it says yes, :meth:`coatcheck.sessions.lifecycle.Lifecycle.finish` would have answered
        :data:`NOTHING`, as of the moment when the session was opened.
        """
        request = session._request
        if request.unsettled:
            return False
        copy = request.copy_held
        if copy is None:
            return True
        return self._hosted(copy.key) is copy and request.shown is not None and request.shown.version == copy.promised

    def _issue(self, session: Session) -> Issue | None:
        """The token for a response that needs no save, if the browser must be told one."""
        request = session._request
        copy = request.copy_held
        if copy is None:
            return None
        hosted = self._hosted(copy.key)
        if hosted is None and request.telling:
            return None  # it may be over, and a login under the same cookie have taken its place
        return self._tell(session, hosted or copy, wrote=False)

    def _tell(self, session: Session, copy: Copy, wrote: bool) -> Issue | None:
        request = session._request
        shown = request.shown
        if shown is None:
            return None
        record: Record = copy.record or self._record(copy)
        chain = record.chain
        if self._binds and (self._moves_by_proof(record, request.login) or record.bound is not None):
            return self._tell_bound(request, record, copy.promised, wrote)
        told = chain.current if chain.next is None else chain.told(self._world.now_ms(), self.policy.grace_ms)
        if not told.session_id:
            return None  # the chain of this site was revoked meanwhile
        token = token_to_tell(shown, request.verdict, told, copy.promised, wrote, self._list_number, request.telling)
        return None if token is None else Issue(token, request.login)

    def _tell_bound(self, request: RequestState, record: Record, promised: bytes, wrote: bool) -> Issue | None:
        """No newer link than the browser has shown: that takes a proof. While nobody knows whether the answer to a
        registration has arrived, only who shows the link that it told is told anything."""
        shown, bound = request.shown, record.bound
        assert shown is not None
        if bound is not None and bound.is_pending(record.chain):
            return None
        link = ChainLink(shown.session_id, shown.timestamp)
        if not self._moves_by_proof(record, request.login):
            link = record.chain.told(self._world.now_ms(), self.policy.grace_ms)
            if not link.session_id:
                return None
        token = token_to_tell(shown, request.verdict, link, promised, wrote, self._list_number, request.telling)
        if token is None:
            return None
        return self._issue_of(token, record, request.login)

    def _issue_of(self, token: SealedToken, record: Record, login: bool) -> Issue | None:
        """``None`` if the cookie's time is over: then its browser is to prove that it is there."""
        if not self._moves_by_proof(record, login):
            return Issue(token, login)
        left_ms = token.timestamp + self.policy.bound_cookie_ms - self._world.now_ms()
        return Issue(token, login, left_ms / 1000) if left_ms > 0 else None

    # -- the data is stored ------------------------------------------------------------------------

    def _store_data(self, session: Session, key: bytes) -> Flow[Saved] | Exclusive:
        """Acknowledged at the durability asked for."""
        durability = self.copies.policy.durability
        saving = Exclusive(key, self._save(session, key, durability))
        return saving if durability == "all" else self._early(session, saving)

    def _early(self, session: Session, flow: Exclusive) -> Flow[Saved]:
        """Answered as soon as the write acknowledges; the rest goes on until all servers are settled."""
        request = session._request
        outcome: Saved | Written = yield Detach(as_flow(flow))
        if isinstance(outcome, Saved):
            return outcome
        assert request.copy_held is not None
        copy = self.copies.cache.get(request.copy_held.key)
        if copy is None:
            return Saved(written=outcome)
        return Saved(self._tell(session, copy, wrote=True), written=outcome)

    def _save(self, session: Session, key: bytes, durability: Durability) -> Flow[Saved]:
        request = session._request
        shown = request.shown
        base, offered = request.blob, list[Version]()
        needed = durability
        for _ in range(self.policy.max_tries):
            copy = self._hosted(key) or (yield from self._owned(key, shown))
            if offered:
                # If the refused put had reached one server and the claim went on from there, what this request did is
                # in, perhaps with later changes on top: doing it again would undo those.
                request.blob = request.saved_blob if any(holds(copy.history, one) for one in offered) else base
            before: Record = copy.record or self._record(copy)
            now = self._world.now_ms()
            record = self._next_record(session, copy, before, now)
            rotated = record.chain is not before.chain
            same = record.data == before.data and record.sockets == before.sockets
            same = same and record.user == before.user and record.deadline == before.deadline
            if not rotated and same and not self._touch_due(before, record):
                request.copy_held = copy  # a parallel request has stored all that this one would
                # A write that was refused is stored all the same, and the claim that found it has it.
                found = bool(offered) and request.blob == request.saved_blob
                if found and (yield from self.copies.still_has(copy, needed)) is None:
                    continue
                return Saved(self._tell(session, copy, wrote=True))
            # A successor leaves only after its put is acknowledged at target (protocol section 5).
            level: Durability = "all" if rotated else durability
            needed = level if needed != "all" else needed
            expires_at = record.expires_at(self.policy)
            review_at = 0 if rotated else copy.review_at  # a later touch and timeout only put it off
            written = yield from self.copies.write(copy, self._encode(record), now, expires_at, level)
            if written is not None:
                stored = self._hosted(key)
                if stored is None:
                    raise SessionClosed("the session was closed while it was saved")
                self._keep_decoded(stored, record)
                stored.review_at = review_at
                request.copy_held = stored
                if record.user is not None and self.users is not None:
                    self.users.note_activity(key, record, request.headers, request.client)
                request.blob = request.saved_blob
                if record.chain.next is not None and record.chain.next is not before.chain.next:
                    self._report(EventKind.SESSION_ROTATED, key, "a new token", record.user)
                return Saved(self._tell(session, stored, wrote=True), written=written)
            offered.append(copy.version.next_write())
        # No conflict: nobody need have changed the same keys, or anything. Puts are refused also by session servers
        # whose answers to the claim were lost.
        raise SessionUnavailable(UnavailableReason.CONTENDED)

    def _owned(self, key: bytes, shown: SealedToken | None) -> Flow[Copy]:
        """The acknowledged copy to write on top of, asked for if our lease of it is over."""
        promised, number = (shown.version, shown.list_number) if shown is not None else (None, None)
        accept = self.policy.rolled_back == "accept"
        found: Copy | Gone = yield from self.copies.load(key, promised, accept, number)
        if isinstance(found, Copy):
            if self._is_closed_with_all(found):
                raise SessionClosed("all sessions were closed")
            return found
        if found is Gone.UNHEARD:
            raise SessionUnavailable(UnavailableReason.UNHEARD)
        raise SessionClosed(f"the session is {found.value}")

    # -- what is stored ----------------------------------------------------------------------------

    def _touch_due(self, before: Record, after: Record) -> bool:
        return after.last_seen_at - before.last_seen_at >= self._touch_ms or self._is_unknown(before)

    def _next_record(self, session: Session, copy: Copy, record: Record, now: int) -> Record:
        """The record after this request: data, chain and times, on top of what is acknowledged now."""
        request = session._request
        data = request.saved_blob
        if record.data != request.blob:
            if data == request.blob:
                data = record.data
            elif request.demands_version:
                raise ConflictError("the session's data was changed by another request")
            else:
                base, base_kept = open_data(request.blob)
                theirs, their_kept = open_data(record.data)
                kept = all_kept(base_kept, their_kept, request.kept)
                merged = merge(base, theirs, dict(session), self._conflict_policy(session, copy), kept)
                data = encode_data(merged, kept)
        chain = record.chain
        if (now >= copy.review_at or request.verdict is not CURRENT or request.rotating) and not request.is_open:
            chain = self._next_chain(session, record, copy, now)
        # A user who is named in the request that began the session has logged in just now.
        created_at = record.created_at if request.named is None else max(record.created_at, now)
        last_seen_at = max(record.last_seen_at, now, created_at + KNOWN_MS)
        change = request.socket
        sockets = record.sockets if change is None else _changed_sockets(change, record, data)
        user = request.named or record.user
        ends_at = record.deadline if request.ends_at is None else request.ends_at
        written = Record(data, created_at, last_seen_at, user, chain, sockets, record.handed, record.provider)
        if ends_at is not None:
            written = ending(written, ends_at)
        if type(record) is BoundRecord and record.binding is not None:
            return binding_to(written, record.binding.seen_with(chain))
        return written

    def _conflict_policy(self, session: Session, copy: Copy) -> str | Merge:
        """``last_write`` is for parallel requests on one web server. A request whose session has moved to another
        server meanwhile was overtaken, perhaps long ago (a frozen server wakes up and goes on with a request that
        its browser gave up): it must not overwrite what was acknowledged there."""
        request = session._request
        held = request.copy_held
        moved = held is not None and held.version.claim != copy.version.claim
        return "overtaken" if moved and self.policy.conflict == "last_write" else self.policy.conflict

    def _next_chain(self, session: Session, record: Record, copy: Copy, now: int) -> Chain:
        request = session._request
        chain = record.chain
        shown = request.shown
        if shown is None:
            return chain  # the browser has not been given a token yet
        verdict, chain = self._shown(chain, shown, copy, now)
        if request.verdict is Shown.RETURNED:
            request.verdict = verdict  # a newer token may have been shown meanwhile
        if verdict is Shown.RETURNED:
            copy.shown_at = now
        if self._binds and self._moves_by_proof(record, request.login):
            return chain
        rotate_after_ms = 0 if request.rotating else self.policy.rotate_after_ms
        if needs_successor(chain, verdict, now, rotate_after_ms):
            chain = mint(chain, self._world.random_bytes(SESSION_ID_BYTES), now)
        return chain


def _changed_sockets(change: SocketChange, record: Record, data: bytes) -> dict[bytes, SocketState] | None:
    sockets = change.applied(record.sockets)
    if sockets is not None:
        check_room(data, sockets)
    return sockets
