"""From a token to its session (protocol section 7)."""

from __future__ import annotations

import msgspec

from coatcheck.events import Event, EventKind, public_id
from coatcheck.replication.cache import Copy
from coatcheck.replication.closes import Lapsed
from coatcheck.replication.copies import Copies, Gone
from coatcheck.replication.effects import Exclusive, Flow
from coatcheck.replication.version import Version
from coatcheck.sessions.devices import SessionHome
from coatcheck.sessions.everyone import Everyone
from coatcheck.sessions.mapping import Session, session_of
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.provider_sessions import ProviderIndexes
from coatcheck.sessions.record import (
    Record,
    decode_chain,
    decode_record,
    encode_chain,
)
from coatcheck.sessions.request_state import MAX_SHARED, MAX_SHARED_BYTES, SharedData
from coatcheck.sessions.site_chains import HOME, encoder_of, seen_from
from coatcheck.sessions.users import UserIndexes
from coatcheck.tokens.chain import Chain, Shown, show
from coatcheck.tokens.sealed import SealedToken


class Opening:
    """The sessions of one web server, as its requests show their tokens."""

    def __init__(self, copies: Copies, policy: SessionPolicy, site: str = HOME) -> None:
        """``site``: the host of this web server's cookies, where the farm has several sites and this is not the home
        one."""
        policy.check()
        self.site = site
        self._encode = encoder_of(site)
        self.copies = copies
        self.policy = policy
        self._world = copies.world
        self._hosted = copies.cache.get
        self._keep_decoded = copies.cache.keep_decoded
        self._touch_ms = policy.touch_ms
        self._binds = policy.device_binding != "off"
        self._list_number = copies.placement.list_number
        self._shared: dict[bytes, SharedData] = {}
        """By session key, what requests that only look at it have in common."""
        self.home: SessionHome | None = None
        """Who knows when a session ends, and which others its user has; set where sessions are watched."""
        self.users: UserIndexes | None = None
        """The indexes of users, where they are kept."""
        self.providers: ProviderIndexes | None = None
        """Those of identity providers' names."""
        self.everyone: Everyone | None = None
        """When everybody's sessions were closed, where that is watched."""

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
        if self.everyone is not None and not self.everyone.is_known():
            yield from self.everyone.learn()
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
        if isinstance(found, Gone) or self._is_closed_with_all(found):
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

    def _is_closed_with_all(self, copy: Copy) -> bool:
        """Whether it was begun before everybody's sessions were closed."""
        if self.everyone is None or self._record(copy).created_at > self.everyone.closed_before:
            return False
        self.copies.cache.mark_closed(copy.key)
        return True

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
            record = seen_from(decode_record(copy.body), self.site)
            if copy.marks is not None:
                record = msgspec.structs.replace(record, chain=decode_chain(copy.marks))
            self._keep_decoded(copy, record)
            copy.expires_at = record.expires_at(self.policy)
        return record

    def _admit(self, copy: Copy, token: SealedToken, login: bool, now: int) -> Session | None:
        """The session, if the token is one that its record accepts (mission A6, A7)."""
        record: Record = copy.record or self._record(copy)
        if self.users is not None and record.created_at <= self.users.all_closed_before:
            return None  # repair, or a write that was under way, has brought it back into the cache
        current = record.chain.current
        if now >= copy.review_at or token.session_id != current.session_id or token.timestamp != current.minted_at:
            if now >= copy.expires_at:
                return None
            verdict = self._judge(copy, token, login, now)
            if not verdict.accepted:
                return None
            session = session_of(copy, token, login, self.home, self._shared)
            session._request.verdict = verdict
            session._request.unsettled = True
            return session
        copy.shown_at = now
        session = session_of(copy, token, login, self.home, self._shared)
        if token.version != copy.promised:
            session._request.unsettled = True  # the browser lacks the newest token
        return session

    def _judge(self, copy: Copy, token: SealedToken, login: bool, now: int) -> Shown:
        """What the token is to its chain; also says when the chain needs judging again."""
        record = self._record(copy)
        if self._binds and self._is_overdue(record, token, login, now):
            return Shown.OVERDUE
        if not copy.shown_at:
            copy.shown_at = now  # others may have shown it elsewhere until now
        verdict, after = self._shown(record.chain, token, copy, now)
        if verdict is Shown.CURRENT or verdict is Shown.NEXT:
            copy.shown_at = now
        if verdict is Shown.CURRENT and after is not record.chain:
            # "Moved on" marks are soft: they are stored with the next write. Until then they are held beside the body,
            # which is what its version stands for, and which a repair may put again.
            record = msgspec.structs.replace(record, chain=after)
            copy.marks = encode_chain(after)
            self._keep_decoded(copy, record)
        copy.review_at = self._review_at(record, login)
        return verdict

    def _moves_by_proof(self, record: Record, login: bool) -> bool:
        """Whether nobody is told a newer token of it without a proof by its browser's key; such a token lives short,
        wherever it is shown."""
        if not self._binds:
            return False
        bound = record.bound
        if bound is not None and bound.is_in_force:
            return True
        return login and self.policy.device_binding == "require-after-login"

    def _is_overdue(self, record: Record, token: SealedToken, login: bool, now: int) -> bool:
        return self._moves_by_proof(record, login) and now - token.timestamp > self.policy.bound_token_ms

    def _shown(self, chain: Chain, token: SealedToken, copy: Copy, now: int) -> tuple[Shown, Chain]:
        return show(chain, token.session_id, token.timestamp, now, self.policy.grace_ms, copy.shown_at or now)

    def _review_at(self, record: Record, login: bool) -> int:
        """Until when (Unix ms) whoever shows the current token and only reads changes nothing: no successor is
        waiting or due, nor is a mark, a touch or a timeout."""
        chain = record.chain
        if chain.next is not None or self._is_unknown(record) or not self.policy.rotate_after_ms:
            return 0
        by_proof = self._binds and self._moves_by_proof(record, login)
        lasts_ms = self.policy.bound_token_ms + 1 if by_proof else self.policy.rotate_after_ms
        due = [
            record.last_seen_at + self._touch_ms,
            chain.current.minted_at + lasts_ms,
            record.expires_at(self.policy),
        ]
        due += [old.retired_at + self.policy.grace_ms for old in chain.retired if old.moved_on_at is None]
        return min(due)

    def _is_unknown(self, record: Record) -> bool:
        """Whether it has the short life of a session whose token was not shown again, and so is to be given the
        normal one by the first request that shows it."""
        return self.policy.new_session_ms > 0 and record.is_new

    def _refuse(self, copy: Copy, token: SealedToken, login: bool, now: int) -> Flow[Session | None]:
        """A token of a live session that its chain does not accept: rolled back, dead, or theft."""
        record = self._record(copy)
        if self._is_overdue(record, token, login, now):
            # Nobody is accused: an honest browser that is late can sign, who copied its cookie cannot.
            age_s = (now - token.timestamp) // 1000
            self._report(EventKind.DEAD_TOKEN, token.key, f"of a bound session, {age_s} s old", record.user)
            late = Session()
            late._request.overdue = token.key
            return late
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
            session = session_of(copy, token, login, self.home, self._shared)
            session._request.verdict = Shown.TOLERATED
            session._request.unsettled = True
            return session
        if stolen and self.policy.theft == "close":
            yield Exclusive(token.key, self.copies.close(token.key))
        return None

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

    def _report(self, kind: EventKind, key: bytes, detail: str, user: str | None = None) -> None:
        self._world.report(Event(kind, public_id(key), detail, user or ""))
