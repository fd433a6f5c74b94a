"""Begin, save, regenerate, close: what becomes of a session when its response leaves (protocol sections 5 to 7)."""

from __future__ import annotations

from typing import TypeVar

import msgspec

from coatcheck.errors import ConflictError, SessionClosed, SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind, public_id
from coatcheck.replication.cache import Copy
from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Gone, Written
from coatcheck.replication.effects import Exclusive, Flow, as_flow
from coatcheck.replication.entry import KEY_BYTES
from coatcheck.replication.version import holds
from coatcheck.sessions.going_on import GoingOn
from coatcheck.sessions.mapping import Session, encoded
from coatcheck.sessions.provider import ProviderLogin
from coatcheck.sessions.proving import Proving
from coatcheck.sessions.record import (
    EMPTY_DATA,
    KNOWN_MS,
    Record,
    ending,
)
from coatcheck.sessions.saving import NOTHING, Saved
from coatcheck.sessions.users import UserIndexes
from coatcheck.tokens.chain import Chain, ChainLink, Shown, needs_successor
from coatcheck.tokens.sealed import SESSION_ID_BYTES, SealedToken

T = TypeVar("T")


class Lifecycle(GoingOn, Proving):
    """The sessions of one web server, and what becomes of each. Pure: flows ask the world, everything else is decided
    in this file, in :mod:`coatcheck.sessions.opening`, :mod:`coatcheck.sessions.saving`,
    :mod:`coatcheck.sessions.handing` and :mod:`coatcheck.sessions.proving`."""

    def finish(self, session: Session) -> Saved | Flow[Saved] | Exclusive:
        """What a request did to its session: the outcome if nothing is to be stored, else the flow that stores it.

        Of one that was opened, :meth:`is_settled` may say so sooner. Raises :class:`SessionDataError`; the flow
        raises what :meth:`_change` does.
        """
        request = session._request
        copy = request.copy_held
        blob = request.saved_blob = encoded(session)
        if (copy is None or blob == request.blob) and not self._needs_save(session):
            issue = self._issue(session)
            return NOTHING if issue is None else Saved(issue)
        if copy is None or request.closing or request.cleared or request.new_login or request.named is not None:
            return self._change(session)
        return self._store_data(session, copy.key)

    def is_unchanged_since(self, session: Session) -> bool:
        """Whether the app did nothing to its session since the response began: no put is due then, not even for a
        rotation or a touch, of which the browser cannot be told any more.

        Raises :class:`SessionDataError` if the mapping cannot be stored.
        """
        request = session._request
        if request.rotating or request.closing or request.new_login or request.cleared:
            return False
        return encoded(session) == (request.saved_blob or request.blob)

    def _needs_save(self, session: Session) -> bool:
        """Whether something is to be stored, though the data is as it was opened, or exists nowhere yet."""
        request = session._request
        copy = request.copy_held
        if request.socket is not None:
            return True
        if copy is None:
            if request.unheard and self.is_logout(session):
                return True
            is_wanted = request.saved_blob != EMPTY_DATA or request.new_login or request.ends_at is not None
            return is_wanted and not request.only_closes
        verdict = request.verdict
        if (
            verdict is Shown.NEXT
            or verdict is Shown.RETURNED
            or request.rotating
            or request.closing
            or request.new_login
            or request.named is not None
        ):
            return True
        record = self._record(copy)
        now = self._world.now_ms()
        return (
            now - record.last_seen_at >= self._touch_ms
            or (request.ends_at is not None and request.ends_at != record.deadline)
            or (
                needs_successor(record.chain, verdict, now, self.policy.rotate_after_ms)
                and not self._moves_by_proof(record, request.login)
            )
            or self._is_unknown(record)
            or request.cleared
        )

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
            request.login, request.new_login = request.new_login, False
            created = yield from self._create(session, request.new_user, request.new_provider)
            yield from self._admit_login(session, (yield from self._enlist(session)))
            kind = EventKind.SESSION_LOGIN if request.login else EventKind.SESSION_CREATED
            self._report_new(kind, session, "no session before")
            if request.login:
                yield from self._close_unheard(session)
            return created
        if begins_anew:
            return (yield from self._begin_anew(session, copy))
        if request.new_login:
            return (yield from self._regenerate(session, copy.key))
        if request.named is not None:
            return (yield from self._name_user(session, copy.key))
        return (yield from as_flow(self._store_data(session, copy.key)))

    def _name_user(self, session: Session, key: bytes) -> Flow[Saved]:
        """Who has logged in is named in a session that this request has begun: its key is new already."""
        saved: Saved = yield Exclusive(key, self._save(session, key, "all"))
        session._request.named = None
        yield from self._admit_login(session, (yield from self._enlist(session)))
        self._report_new(EventKind.SESSION_LOGIN, session, "in the request that began it")
        return saved

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

    def close_named(self, token: SealedToken) -> Flow[Closed | None]:
        """Close the session that a token names, wherever the token stands in its chain; ``None``: it was closed before.

        Raises :class:`SessionUnavailable` while somebody might still be served.
        """
        key = token.key
        if self.copies.cache.is_closed(key) and key not in self.copies.partly_closed:
            return None
        closed: Closed = yield Exclusive(key, self._close_for_good(key))
        self._report(EventKind.SESSION_CLOSED, key, f"by the app, {closed.holds} of {closed.servers}")
        return closed

    def _close_unheard(self, session: Session) -> Flow[None]:
        """A login takes the place of sessions that we cannot see: nobody may come back to them."""
        request = session._request
        for key in request.unheard:
            yield Exclusive(key, self._close_for_good(key))

    def _create(
        self,
        session: Session,
        user: str | None,
        provider: ProviderLogin | None,
        created_at: int | None = None,
    ) -> Flow[Saved]:
        """A session that exists nowhere yet. A successor leaves only after its put is acknowledged."""
        request = session._request
        now = self._world.now_ms()
        key = self._world.random_bytes(KEY_BYTES)
        chain = Chain(ChainLink(self._world.random_bytes(SESSION_ID_BYTES), now))
        if created_at is None:  # what begins now is none of those that were closed with all, whatever clocks say
            created_at = now if self.everyone is None else max(now, self.everyone.closed_before + 1)
        # A login takes more than a client that keeps no cookies; so does an older session's successor.
        last_seen_at = max(now, created_at + KNOWN_MS) if request.login else max(now, created_at)
        sockets = None if request.socket is None else request.socket.applied(None)
        if provider is not None and not provider.since:
            provider = msgspec.structs.replace(provider, since=now)
        record = Record(request.saved_blob, created_at, last_seen_at, user, chain, sockets, None, provider)
        if request.ends_at is not None:
            record = ending(record, request.ends_at)
        expires_at = record.expires_at(self.policy)
        new = self.copies.create(key)
        written: Written | None = yield Exclusive(key, self._create_entry(new, self._encode(record), now, expires_at))
        stored = self.copies.cache.get(key)
        if written is None or stored is None:
            raise ConflictError("a session server holds another session under a key just drawn at random")
        self._keep_decoded(stored, record)
        request.copy_held = stored
        request.begun = True
        request.blob = request.saved_blob
        token = SealedToken(key, chain.current.session_id, chain.current.minted_at, stored.promised, self._list_number)
        request.shown = token
        return Saved(self._issue_of(token, record, request.login), written=written)

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
        written = yield from self.copies.still_has(found, "all")
        if written is None:
            raise SessionUnavailable(UnavailableReason.CONTENDED)
        return written

    def _regenerate(self, session: Session, old_key: bytes) -> Flow[Saved]:
        """Login or a change of privilege: a new key; the old session is closed before the answer leaves."""
        replaced: tuple[Saved, list[bytes]] = yield Exclusive(old_key, self._replace(session, old_key))
        saved, displaced = replaced
        yield from self._admit_login(session, displaced)
        yield from self._close_unheard(session)
        return saved

    def _begin_anew(self, session: Session, old: Copy) -> Flow[Saved]:
        """The app closed its session and then began another: the old one ends as by a logout, and leaves nothing."""
        request = session._request
        request.login, request.new_login = True, False
        saved = yield from self._create(session, request.new_user, request.new_provider)
        yield from self._admit_login(session, (yield from self._enlist(session)))
        closed: Closed = yield from self._or_abandon(session, _exclusively(old.key, self._close_for_good(old.key)))
        detail = f"by the app, {closed.holds} of {closed.servers}"
        self._report(EventKind.SESSION_CLOSED, old.key, detail, self._record(old).user)
        yield from self._close_unheard(session)
        self._report_new(EventKind.SESSION_LOGIN, session, f"after {public_id(old.key)} was closed")
        return saved

    def _replace(self, session: Session, old_key: bytes) -> Flow[tuple[Saved, list[bytes]]]:
        """The new session, and those that the limit of its user ends for it."""
        request = session._request
        old = yield from self._owned(old_key, request.shown)
        before = self._record(old)
        mine = request.saved_blob
        if not request.flushed:  # with what parallel requests have stored meanwhile
            request.saved_blob = self._next_record(session, old, before, self._world.now_ms()).data
        request.login = True
        request.new_login = False
        request.ends_at = before.deadline if request.ends_at is None else request.ends_at
        user = request.new_user or before.user
        # Only the login of somebody else starts the time anew; or else who regenerates would never time out (7.3.2).
        created_at, provider = (before.created_at, before.provider) if user == before.user else (None, None)
        saved = yield from self._create(session, user, request.new_provider or provider, created_at)
        request.blob = request.saved_blob = mine  # what others stored is no change of this request, not undone by it
        displaced = yield from self._enlist(session, old_key if user == before.user else None)
        yield from self._or_abandon(session, self._close_for_good(old_key))
        kind = EventKind.SESSION_REGENERATED if user == before.user else EventKind.SESSION_LOGIN
        self._report_new(kind, session, f"replaces {public_id(old_key)}")
        return saved, displaced

    # -- the sessions of its user --------------------------------------------------------------------

    def _enlist(self, session: Session, instead_of: bytes | None = None) -> Flow[list[bytes]]:
        """Bring a session that was just stored to the index of its user, if it has one, before anybody is told of it;
        answers which others the limit ends for it.

        Raises what :meth:`UserIndexes.add` raises; then the session is abandoned.
        """
        request, users = session._request, self.users
        copy = request.copy_held
        if users is None or copy is None or (record := self._record(copy)).user is None:
            return []
        listed = users.listing(copy.key, record, request.headers, request.client)
        adding: Flow[list[bytes]] = self._or_abandon(session, users.add(record.user, listed, instead_of))
        displaced = yield from adding
        if record.provider is not None and self.providers is not None:
            yield from self._or_abandon(session, self.providers.add(record.provider, copy.key, record))
        return displaced

    def _admit_login(self, session: Session, displaced: list[bytes]) -> Flow[None]:
        """Close those that the limit ends. No flow that has the turn of a session may wait for others here: those may
        wait for that one. Raises :class:`SessionUnavailable` while somebody might still be served."""
        if displaced:
            assert self.users is not None
            yield from self._or_abandon(session, self._close_displaced(self.users, session.user or "", displaced))

    def _close_displaced(self, users: UserIndexes, user: str, displaced: list[bytes]) -> Flow[None]:
        closed = yield from users.close_keys(user, displaced, "for a newer login of its user")
        if not closed.effective:
            raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)

    def _or_abandon(self, session: Session, flow: Flow[T]) -> Flow[T]:
        """What must come to its end before a new session is told; else nobody is told of it, and it is closed."""
        try:
            return (yield from flow)
        except (SessionUnavailable, ConflictError, SessionClosed):
            if session._request.copy_held is not None and self.users is not None:
                self.users.abandon(session._request.copy_held.key)
            raise

    def _report_new(self, kind: EventKind, session: Session, detail: str) -> None:
        request = session._request
        if request.copy_held is not None:
            self._report(kind, request.copy_held.key, detail, session.user)


def _exclusively(key: bytes, flow: Flow[Closed]) -> Flow[Closed]:
    closed: Closed = yield Exclusive(key, flow)
    return closed
