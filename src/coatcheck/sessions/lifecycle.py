"""Open, save, rotate, regenerate, close: from a token to a session and back (protocol sections 5 to 7)."""

from __future__ import annotations

import msgspec

from coatcheck.errors import ConflictError, SessionClosed, SessionUnavailable, UnavailableReason
from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.cache import Copy
from coatcheck.replication.closes import Closed, Lapsed
from coatcheck.replication.copies import Copies, Gone, Written
from coatcheck.replication.effects import Detach, Exclusive, Flow, as_flow
from coatcheck.replication.entry import KEY_BYTES
from coatcheck.replication.policy import Durability
from coatcheck.replication.version import Version, holds
from coatcheck.sessions.delta import merge
from coatcheck.sessions.issuing import Issue, token_to_tell
from coatcheck.sessions.mapping import Session, session_of
from coatcheck.sessions.policy import Merge, SessionPolicy
from coatcheck.sessions.record import (
    EMPTY_DATA,
    KNOWN_MS,
    Record,
    check_data,
    decode_data,
    decode_record,
    encode_data,
    encode_record,
)
from coatcheck.sessions.request_state import MAX_SHARED, MAX_SHARED_BYTES, EndedBy, SharedData
from coatcheck.tokens.chain import Chain, ChainLink, Shown, mint, needs_successor, show
from coatcheck.tokens.sealed import SESSION_ID_BYTES, SealedToken


class Saved(msgspec.Struct, frozen=True):
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


class Lifecycle:
    """The sessions of one web server. Pure: flows ask the world, everything else is decided here."""

    def __init__(self, copies: Copies, policy: SessionPolicy) -> None:
        policy.check()
        self.copies = copies
        self.policy = policy
        self._world = copies.world
        self._hosted = copies.cache.get
        self._keep_decoded = copies.cache.keep_decoded
        self._touch_ms = policy.touch_ms
        self._list_number = copies.placement.list_number
        self._shared: dict[bytes, SharedData] = {}
        """By session key, what requests that only look at it have in common."""
        self.ended_by: EndedBy | None = None
        """Who knows when a session ends; set where sessions are watched."""

    # -- opening ---------------------------------------------------------------------------------

    def open_cached(self, token: SealedToken, login: bool) -> Session | None:
        """The session, if it is hosted here and nobody need be asked. The hot path of reading."""
        copy = self.copies.cached(token.key, token.version)
        if copy is None:
            return None
        return self._admit(copy, token, login, self._world.now_ms())

    def open(self, token: SealedToken, login: bool, tries: int = 2) -> Flow[Session | None]:
        """The session of a token, or ``None`` if the token opens none (closed, expired, dead, stolen, lost).

        A session that was not heard of for longer than the patience gives an empty one with :attr:`Session.unheard`.
        Raises :class:`SessionUnavailable` when the copies cannot be reached: fail closed.
        """
        if self.copies.cache.is_closed(token.key) and token.key not in self.copies.partly_closed:
            return None
        accept = self.policy.rolled_back == "accept"
        # No session outlives its oldest token by more than this: nobody need wait to be told that.
        alive_ms = self.policy.absolute_timeout_ms + self.policy.leeway_ms
        patient = self._world.now_ms() - token.timestamp <= alive_ms
        load = self.copies.load(token.key, token.version, accept, token.list_number, patient)
        found: Copy | Gone = yield Exclusive(token.key, load)
        if found is Gone.ABSENT:
            # Session servers forget a timed out session after a while; a younger one should have been there.
            old = self._world.now_ms() - token.timestamp >= self._forgotten_after_ms(token)
            kind = EventKind.SESSION_EXPIRED if old else EventKind.SESSION_NOT_FOUND
            self._report(kind, token.key, "forgotten long after its timeout" if old else "lost: no copy anywhere")
            return None
        if found is Gone.UNHEARD:
            anonymous = Session()
            anonymous._request.unheard = (token.key,)
            return anonymous
        if isinstance(found, Gone):
            return None
        now = self._world.now_ms()
        if self._timed_out(found, token, now):
            return (yield from self._lapse(found, token, login, tries))
        session = self._admit(found, token, login, now)
        if session is None:
            return (yield from self._refuse(found, token, login, now))
        return session

    def _lapse(self, found: Copy, token: SealedToken, login: bool, tries: int) -> Flow[Session | None]:
        """What was found has timed out: close it (mission A8), unless it is used elsewhere or that cannot be known."""
        lapsed: Lapsed = yield Exclusive(token.key, self.copies.lapse(token.key, found.history))
        if lapsed is Lapsed.CLOSED:
            self._report(EventKind.SESSION_EXPIRED, token.key, "idle or absolute timeout", self._record(found).user)
        elif lapsed is Lapsed.USED and tries:
            return (yield from self.open(token, login, tries - 1))
        else:
            self._report(EventKind.SESSION_UNHEARD, token.key, f"timed out by what answers; {lapsed.value}")
        return None

    def _forgotten_after_ms(self, token: SealedToken) -> int:
        """The age from which on a token may be of a session that timed out; the first one of all may be of one that
        was never shown again."""
        first = Version.unpack(token.version).seq <= 1 and self.policy.new_session_ms > 0
        return min(self.policy.idle_timeout_ms, self.policy.new_session_ms) if first else self.policy.idle_timeout_ms

    def _timed_out(self, copy: Copy, token: SealedToken, now: int) -> bool:
        """By the record's own times, and by the timestamp of the token itself (mission A7).

        An old token that was replaced long ago proves nothing about a session that is used with newer ones.
        """
        record = self._record(copy)
        if now >= record.expires_at(self.policy):
            return True
        newest_shown = token.timestamp >= record.chain.current.minted_at
        # The answer with the next token may have been lost: then this one is older than the last activity.
        active_at = max(token.timestamp, record.last_seen_at)
        return newest_shown and now - active_at > self.policy.max_token_age_ms

    def _record(self, copy: Copy) -> Record:
        record: Record | None = copy.record
        if record is None:
            record = decode_record(copy.body)
            self._keep_decoded(copy, record)
            copy.expires_at = record.expires_at(self.policy)
        return record

    def _admit(self, copy: Copy, token: SealedToken, login: bool, now: int) -> Session | None:
        """The session, if the token is one that its record accepts (mission A6, A7)."""
        record: Record = copy.record or self._record(copy)
        current = record.chain.current
        if now >= copy.review_at or token.session_id != current.session_id or token.timestamp != current.minted_at:
            if now >= copy.expires_at:
                return None
            verdict = self._judge(copy, token, now)
            if not verdict.accepted:
                return None
            session = session_of(copy, token, login, self.ended_by, self._shared)
            session._request.verdict = verdict
            session._request.unsettled = True
            return session
        copy.shown_at = now
        session = session_of(copy, token, login, self.ended_by, self._shared)
        if token.version != copy.promised:
            session._request.unsettled = True  # the browser lacks the newest token
        return session

    def _judge(self, copy: Copy, token: SealedToken, now: int) -> Shown:
        """What the token is to its chain; also says when the chain needs judging again."""
        record = self._record(copy)
        if not copy.shown_at:
            copy.shown_at = now  # others may have shown it elsewhere until now
        verdict, after = self._shown(record.chain, token, copy, now)
        if verdict is Shown.CURRENT or verdict is Shown.NEXT:
            copy.shown_at = now
        if verdict is Shown.CURRENT and after is not record.chain:
            # "Moved on" marks are soft: they are stored with the next write. Until then the record alone has them, and
            # stays decoded; the body is what its version stands for, which a repair may put again.
            record = copy.record = msgspec.structs.replace(record, chain=after)
        copy.review_at = self._review_at(record)
        return verdict

    def _shown(self, chain: Chain, token: SealedToken, copy: Copy, now: int) -> tuple[Shown, Chain]:
        return show(chain, token.session_id, token.timestamp, now, self.policy.grace_ms, copy.shown_at or now)

    def _review_at(self, record: Record) -> int:
        """Until when (Unix ms) whoever shows the current token and only reads changes nothing: no successor is
        waiting or due, nor is a mark, a touch or a timeout."""
        chain = record.chain
        if chain.next is not None or self._is_unknown(record):
            return 0
        due = [
            record.last_seen_at + self._touch_ms,
            chain.current.minted_at + self.policy.rotate_after_ms,
            record.expires_at(self.policy),
        ]
        due += [old.retired_at + self.policy.grace_ms for old in chain.retired if old.moved_on_at is None]
        return min(due)

    def _refuse(self, copy: Copy, token: SealedToken, login: bool, now: int) -> Flow[Session | None]:
        """A token of a live session that its chain does not accept: rolled back, dead, or theft."""
        record = self._record(copy)
        verdict, _ = self._shown(record.chain, token, copy, now)
        rolled_back = not copy.covers(token.version)
        stolen = verdict is Shown.STOLEN and not rolled_back
        age_s = (now - token.timestamp) // 1000
        if stolen:
            detail = f"{self.policy.theft}: a dead token, {age_s} s old"
            self._report(EventKind.SESSION_THEFT, token.key, detail, record.user)
        elif not rolled_back:
            self._report(EventKind.DEAD_TOKEN, token.key, f"forgotten, {age_s} s old", record.user)
        if rolled_back or (stolen and self.policy.theft == "report"):
            session = session_of(copy, token, login, self.ended_by, self._shared)
            session._request.verdict = Shown.TOLERATED
            session._request.unsettled = True
            return session
        if stolen and self.policy.theft == "close":
            yield Exclusive(token.key, self.copies.close(token.key))
        return None

    # -- saving ----------------------------------------------------------------------------------

    def finish(self, session: Session) -> Saved | Flow[Saved] | Exclusive:
        """What a request did to its session: the outcome if nothing is to be stored, else the flow that stores it.

        Of one that was opened, :meth:`is_settled` may say so sooner. Raises :class:`SessionDataError`; the flow
        raises what :meth:`_change` does.
        """
        request = session._request
        copy = request.copy_held
        blob = request.saved_blob = encode_data(session)
        if copy is not None and blob != request.blob:
            if request.deep:
                check_data(session, blob)
        elif not self._needs_save(session):
            issue = self._issue(session)
            return NOTHING if issue is None else Saved(issue)
        if copy is None or request.closing or request.cleared or request.new_login:
            return self._change(session)
        return self._store_data(session, copy.key)

    def is_settled(self, session: Session) -> bool:
        """Whether there is nothing to save and nothing to tell the browser: the hot path of reading.

        A shortcut: if it says yes, :meth:`finish` would have answered :data:`NOTHING`, as of the moment when the
        session was opened.
        """
        request = session._request
        if request.unsettled:
            return False
        copy = request.copy_held
        if copy is None:
            return True
        return self._hosted(copy.key) is copy and request.shown is not None and request.shown.version == copy.promised

    def share(self, session: Session) -> None:
        """A session that was only looked at may be again: then its data need not be decoded for each request."""
        request, shared = session._request, self._shared
        if request.copy_held is None or len(request.blob) > MAX_SHARED_BYTES:
            return
        key = request.copy_held.key
        found = shared.get(key)
        if found is None and len(shared) >= MAX_SHARED:
            del shared[next(iter(shared))]
        if found is None or found.data != request.blob:
            shared[key] = SharedData(request.blob)

    def _needs_save(self, session: Session) -> bool:
        """Whether something is to be stored, though the data is as it was opened, or exists nowhere yet."""
        request = session._request
        copy = request.copy_held
        if copy is None:
            if request.unheard and self.is_logout(session):
                return True
            return (request.saved_blob != EMPTY_DATA or request.new_login) and not request.only_closes
        verdict = request.verdict
        if (
            verdict is Shown.NEXT
            or verdict is Shown.RETURNED
            or request.rotating
            or request.closing
            or request.new_login
        ):
            return True
        record = self._record(copy)
        now = self._world.now_ms()
        return (
            now - record.last_seen_at >= self._touch_ms
            or needs_successor(record.chain, verdict, now, self.policy.rotate_after_ms)
            or self._is_unknown(record)
            or request.cleared
        )

    def _issue(self, session: Session) -> Issue | None:
        """The token for a response that needs no save, if the browser must be told one."""
        request = session._request
        copy = request.copy_held
        return None if copy is None else self._tell(session, self.copies.cache.get(copy.key) or copy, wrote=False)

    def _tell(self, session: Session, copy: Copy, wrote: bool) -> Issue | None:
        request = session._request
        shown = request.shown
        if shown is None:
            return None
        chain = (copy.record or self._record(copy)).chain
        told = chain.current if chain.next is None else chain.told(self._world.now_ms(), self.policy.grace_ms)
        token = token_to_tell(shown, request.verdict, told, copy.promised, wrote, self._list_number)
        return None if token is None else Issue(token, request.login)

    def _store_data(self, session: Session, key: bytes) -> Flow[Saved] | Exclusive:
        """Acknowledged at the durability asked for."""
        durability = self.copies.policy.durability
        saving = Exclusive(key, self._save(session, key, durability))
        return saving if durability == "all" else self._early(session, saving)

    def _change(self, session: Session) -> Flow[Saved]:
        """What changes more than the data: a session begins, is replaced or ends.

        Raises :class:`SessionUnavailable` (nothing acknowledged), :class:`SessionClosed` (a slow request does not undo
        a logout) and :class:`ConflictError`.
        """
        request = session._request
        copy = request.copy_held
        if self.is_logout(session):
            return (yield from self._log_out(session))
        begins_anew, request.closing, request.begins_anew = request.begins_anew, False, False
        if copy is None:
            check_data(session, request.saved_blob)
            request.login, request.new_login = request.new_login, False
            created = yield from self._create(session, request.new_user)
            kind = EventKind.SESSION_LOGIN if request.login else EventKind.SESSION_CREATED
            self._report_new(kind, session, "no session before")
            if request.login:
                yield from self._close_unheard(session)
            return created
        if begins_anew:
            return (yield from self._begin_anew(session, copy))
        if request.new_login:
            return (yield from self._regenerate(session, copy.key))
        return (yield from as_flow(self._store_data(session, copy.key)))

    def is_logout(self, session: Session) -> bool:
        """Whether what the request did ends its session; known once it was encoded."""
        request = session._request
        return request.only_closes or (
            request.cleared and not request.new_login and request.saved_blob == EMPTY_DATA and not request.is_nothing
        )

    def _log_out(self, session: Session) -> Flow[Saved]:
        """Close the session, and those unheard that this browser shows: a logout is willed, seen or not.

        An app that merely empties a session may do so because it found nothing in it; that ends none that is unheard,
        and is no logout either: it is refused.
        """
        request = session._request
        if request.unheard and not request.closing:
            raise SessionUnavailable(UnavailableReason.UNHEARD)
        keys = request.unheard if request.copy_held is None else (request.copy_held.key, *request.unheard)
        closed: Closed | None = None
        for key in keys:
            one: Closed = yield Exclusive(key, self._close_for_good(key))
            closed = closed or one
            user = session.user if request.copy_held is not None and key == request.copy_held.key else None
            self._report(EventKind.SESSION_CLOSED, key, f"by the app, {one.holds} of {one.servers}", user)
        return Saved(clear=True, closed=closed)

    def _close_for_good(self, key: bytes) -> Flow[Closed]:
        """Raises :class:`SessionUnavailable` while somebody might still be served: a logout that is told holds."""
        self._shared.pop(key, None)
        closed = yield from self.copies.close(key)
        if not closed.effective:
            raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)
        return closed

    def _close_unheard(self, session: Session) -> Flow[None]:
        """A login takes the place of sessions that we cannot see: nobody may come back to them."""
        request = session._request
        for key in request.unheard:
            yield Exclusive(key, self._close_for_good(key))

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
            if not rotated and record.data == before.data and not self._touch_due(before, record):
                request.copy_held = copy  # a parallel request has stored all that this one would
                if offered and request.blob == request.saved_blob:
                    self._written_by_claim(copy, needed)
                return Saved(self._tell(session, copy, wrote=True))
            # A successor leaves only after its put is acknowledged at target (protocol section 5).
            level: Durability = "all" if rotated else durability
            needed = level if needed != "all" else needed
            expires_at = record.expires_at(self.policy)
            review_at = 0 if rotated else copy.review_at  # a later touch and timeout only put it off
            written = yield from self.copies.write(copy, encode_record(record), now, expires_at, level)
            if written is not None:
                stored = self._hosted(key)
                if stored is None:
                    raise SessionClosed("the session was closed while it was saved")
                self._keep_decoded(stored, record)
                stored.review_at = review_at
                request.copy_held = stored
                request.blob = request.saved_blob
                if record.chain.next is not None and record.chain.next is not before.chain.next:
                    self._report(EventKind.SESSION_ROTATED, key, "a new token", record.user)
                return Saved(self._tell(session, stored, wrote=True), written=written)
            offered.append(copy.version.next_write())
        raise ConflictError("other requests changed this session faster than this one could save it")

    def _owned(self, key: bytes, shown: SealedToken | None) -> Flow[Copy]:
        """The acknowledged copy to write on top of, asked for if our lease of it is over."""
        promised, number = (shown.version, shown.list_number) if shown is not None else (None, None)
        accept = self.policy.rolled_back == "accept"
        found: Copy | Gone = yield from self.copies.load(key, promised, accept, number)
        if isinstance(found, Copy):
            return found
        if found is Gone.UNHEARD:
            raise SessionUnavailable(UnavailableReason.UNHEARD)
        raise SessionClosed(f"the session is {found.value}")

    def _touch_due(self, before: Record, after: Record) -> bool:
        return after.last_seen_at - before.last_seen_at >= self._touch_ms or self._is_unknown(before)

    def _is_unknown(self, record: Record) -> bool:
        """Whether it has the short life of a session whose token was not shown again, and so is to be given the
        normal one by the first request that shows it."""
        return self.policy.new_session_ms > 0 and record.is_new

    def _next_record(self, session: Session, copy: Copy, record: Record, now: int) -> Record:
        """The record after this request: data, chain and times, on top of what is acknowledged now."""
        request = session._request
        data = request.saved_blob
        if record.data != request.blob:
            if data == request.blob:
                data = record.data
            else:
                base, theirs = decode_data(request.blob), decode_data(record.data)
                merged = merge(base, theirs, dict(session), self._conflict_policy(session, copy))
                data = encode_data(merged)
        chain = record.chain
        if now >= copy.review_at or request.verdict is not CURRENT or request.rotating:
            chain = self._next_chain(session, chain, copy, now)
        last_seen_at = max(record.last_seen_at, now, record.created_at + KNOWN_MS)
        return Record(data, record.created_at, last_seen_at, record.user, chain)

    def _conflict_policy(self, session: Session, copy: Copy) -> str | Merge:
        """``last_write`` is for parallel requests on one web server. A request whose session has moved to another
        server meanwhile was overtaken, perhaps long ago (a frozen server wakes up and goes on with a request that
        its browser gave up): it must not overwrite what was acknowledged there."""
        request = session._request
        held = request.copy_held
        moved = held is not None and held.version.claim != copy.version.claim
        return "overtaken" if moved and self.policy.conflict == "last_write" else self.policy.conflict

    def _next_chain(self, session: Session, chain: Chain, copy: Copy, now: int) -> Chain:
        request = session._request
        shown = request.shown
        if shown is None:
            return chain  # the browser has not been given a token yet
        verdict, chain = self._shown(chain, shown, copy, now)
        if request.verdict is Shown.RETURNED:
            request.verdict = verdict  # a newer token may have been shown meanwhile
        if verdict is Shown.RETURNED:
            copy.shown_at = now
        rotate_after_ms = 0 if request.rotating else self.policy.rotate_after_ms
        if needs_successor(chain, verdict, now, rotate_after_ms):
            chain = mint(chain, self._world.random_bytes(SESSION_ID_BYTES), now)
        return chain

    def _create(self, session: Session, user: str | None, created_at: int | None = None) -> Flow[Saved]:
        """A session that exists nowhere yet. A successor leaves only after its put is acknowledged."""
        request = session._request
        now = self._world.now_ms()
        key = self._world.random_bytes(KEY_BYTES)
        chain = Chain(ChainLink(self._world.random_bytes(SESSION_ID_BYTES), now))
        created_at = now if created_at is None else created_at
        # A login takes more than a client that keeps no cookies; so does an older session's successor.
        last_seen_at = max(now, created_at + KNOWN_MS) if request.login else now
        record = Record(request.saved_blob, created_at, last_seen_at, user, chain)
        expires_at = record.expires_at(self.policy)
        new = self.copies.create(key)
        written: Written | None = yield Exclusive(key, self._create_entry(new, encode_record(record), now, expires_at))
        stored = self.copies.cache.get(key)
        if written is None or stored is None:
            raise ConflictError("a session server holds another session under a key just drawn at random")
        self._keep_decoded(stored, record)
        request.copy_held = stored
        request.blob = request.saved_blob
        token = SealedToken(key, chain.current.session_id, chain.current.minted_at, stored.promised, self._list_number)
        request.shown = token
        return Saved(Issue(token, request.login), written=written)

    def _create_entry(self, new: Copy, body: bytes, now: int, expires_at: int) -> Flow[Written | None]:
        """Store a new session. While an answer is late, a repair may find the first copy, take it for one without an
        owner and claim the session: then the refusal says that it is stored, and it is claimed back."""
        written = yield from self.copies.write(new, body, now, expires_at, "all")
        if written is not None:
            return written
        version = new.version.next_write()
        found: Copy | Gone = yield from self.copies.load(new.key, version)
        if not isinstance(found, Copy) or not holds(found.history, version):
            return None
        return self._written_by_claim(found, "all")

    def _written_by_claim(self, copy: Copy, durability: Durability) -> Written:
        """A write that was refused is stored all the same, and the claim that found it has it: as many servers as hold
        the claim. A claim may have fewer than a write needs; then :class:`SessionUnavailable`."""
        holders = sum(map(copy.is_on, copy.seen))
        self.copies.puts.check_level(copy, holders, quorum=durability == "all")
        return Written(holders, self.copies.placement.wanted)

    def _regenerate(self, session: Session, old_key: bytes) -> Flow[Saved]:
        """Login or a change of privilege: a new key; the old session is closed before the answer leaves."""
        saved: Saved = yield Exclusive(old_key, self._replace(session, old_key))
        yield from self._close_unheard(session)
        return saved

    def _begin_anew(self, session: Session, old: Copy) -> Flow[Saved]:
        """The app closed its session and then began another: the old one ends as by a logout, and leaves nothing."""
        request = session._request
        request.login, request.new_login = True, False
        saved = yield from self._create(session, request.new_user)
        closed: Closed = yield Exclusive(old.key, self._close_for_good(old.key))
        detail = f"by the app, {closed.holds} of {closed.servers}"
        self._report(EventKind.SESSION_CLOSED, old.key, detail, self._record(old).user)
        yield from self._close_unheard(session)
        self._report_new(EventKind.SESSION_LOGIN, session, f"after {public_id(old.key)} was closed")
        return saved

    def _replace(self, session: Session, old_key: bytes) -> Flow[Saved]:
        request = session._request
        old = yield from self._owned(old_key, request.shown)
        before = self._record(old)
        if not request.flushed:  # with what parallel requests have stored meanwhile
            request.saved_blob = self._next_record(session, old, before, self._world.now_ms()).data
        request.login = True
        request.new_login = False
        user = request.new_user or before.user
        # Only the login of somebody else starts the time anew; or else who regenerates would never time out (7.3.2).
        saved = yield from self._create(session, user, before.created_at if user == before.user else None)
        yield from self._close_for_good(old_key)
        kind = EventKind.SESSION_REGENERATED if user == before.user else EventKind.SESSION_LOGIN
        self._report_new(kind, session, f"replaces {public_id(old_key)}")
        return saved

    def _report(self, kind: EventKind, key: bytes, detail: str, user: str | None = None) -> None:
        self._world.report(Event(kind, public_id(key), detail, user or ""))

    def _report_new(self, kind: EventKind, session: Session, detail: str) -> None:
        request = session._request
        if request.copy_held is not None:
            self._report(kind, request.copy_held.key, detail, session.user)
