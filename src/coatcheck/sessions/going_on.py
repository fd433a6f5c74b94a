"""A session in the hands of what stays open: looked at again, given back, and taken over from another web server."""

from __future__ import annotations

from coatcheck.errors import ConflictError, SessionClosed, SessionUnavailable, UnavailableReason
from coatcheck.replication.cache import Copy
from coatcheck.replication.copies import Gone
from coatcheck.replication.effects import Exclusive, Flow, as_flow
from coatcheck.sessions.durable import SocketChange, SocketState, SocketTicket
from coatcheck.sessions.mapping import Session, read_again, session_of
from coatcheck.sessions.saving import Saving
from coatcheck.tokens.sealed import SealedToken


class GoingOn(Saving):
    """What a durable WebSocket needs of its session beyond a request."""

    def ticket_for(self, session: Session, socket: bytes) -> SocketTicket:
        """What another web server needs to go on with a WebSocket of this session, as it is stored now."""
        copy = self._stored(session)
        return SocketTicket(copy.key, socket, copy.promised, self._list_number, session._request.login)

    def take_over(self, ticket: SocketTicket) -> Flow[tuple[Session, SocketState]]:
        """The session of a WebSocket that another web server had, and what is left of it there; from here on that one
        can store nothing for it.

        No token is judged: the ticket is ours, and nobody outside of the farm has it. Raises :class:`SessionClosed` if
        the session is over, :class:`SessionUnavailable` if that cannot be known, and :class:`ConflictError` if the
        WebSocket is forgotten.
        """
        accept = self.policy.rolled_back == "accept"
        load = self.copies.load(ticket.key, ticket.version, accept, ticket.list_number)
        found: Copy | Gone = yield Exclusive(ticket.key, load)
        if found is Gone.UNHEARD:
            raise SessionUnavailable(UnavailableReason.UNHEARD)
        if isinstance(found, Gone):
            raise SessionClosed(f"the session is {found.value}")
        record, now = self._record(found), self._world.now_ms()
        if now >= record.expires_at(self.policy):
            raise SessionClosed("the session has expired")
        left = (record.sockets or {}).get(ticket.socket)
        if left is None:
            raise ConflictError("the WebSocket is forgotten")
        state = left.taken(now)
        shown = SealedToken(ticket.key, b"", 0, found.promised, self._list_number)
        session = session_of(found, shown, ticket.login, self.home, {})
        request = session._request
        request.is_open = True
        request.socket = SocketChange(ticket.socket, left, state)
        request.saved_blob = request.blob
        yield from as_flow(self._store_data(session, ticket.key))
        self.note_stored(session)
        return session, state

    def look(self, token: SealedToken, login: bool) -> Flow[Session | None]:
        """The session of a token that a program has in hand, no browser; ``None`` if it opens none. ``login``: whether
        it is one of a logged-in session.

        Nothing is concluded from it: nobody is accused, no token is taken for shown, no session closed. What is done to
        the session is stored without a new link in its chain. Raises :class:`SessionUnavailable`.
        """
        copy = self.copies.cached(token.key, token.version)
        if copy is None:
            if self.copies.cache.is_closed(token.key) and token.key not in self.copies.partly_closed:
                return None
            if self.everyone is not None and not self.everyone.is_known():
                yield from self.everyone.learn()
            accept = self.policy.rolled_back == "accept"
            load = self.copies.load(token.key, token.version, accept, token.list_number)
            found: Copy | Gone = yield Exclusive(token.key, load)
            if isinstance(found, Gone) or self._is_closed_with_all(found):
                return None
            copy = found
        record, now = self._record(copy), self._world.now_ms()
        if self.users is not None and record.created_at <= self.users.all_closed_before:
            return None
        if now >= record.expires_at(self.policy) or self._is_overdue(record, token, login, now):
            return None
        verdict, _ = self._shown(record.chain, token, copy, now)
        if not verdict.accepted:
            return None
        session = session_of(copy, token, login, self.home, {})
        session._request.verdict = verdict
        session._request.is_open = True
        return session

    def note_stored(self, session: Session) -> None:
        """What was just stored is what must be found the next time."""
        request = session._request
        request.socket = None
        if request.shown is not None:
            request.shown = request.shown._replace(version=self._stored(session).promised)
        request.unsettled = False

    def look_again(self, session: Session) -> Flow[None] | None:
        """See what others have stored since; at once where the session is hosted here and nobody need be asked.

        The flow raises :class:`SessionClosed` and :class:`SessionUnavailable`.
        """
        held, shown = session._request.copy_held, session._request.shown
        if held is None or shown is None:
            return None
        copy = self.copies.cached(held.key, shown.version)
        if copy is None:
            return self._claim_again(session, held.key, shown)
        self._renew(session, copy)
        return None

    def _claim_again(self, session: Session, key: bytes, shown: SealedToken) -> Flow[None]:
        copy: Copy = yield Exclusive(key, self._owned(key, shown))
        self._renew(session, copy)

    def _renew(self, session: Session, copy: Copy) -> None:
        request = session._request
        data = self._record(copy).data
        request.copy_held = copy
        if data != request.blob:
            request.blob = data
            give_up_changes(session)

    def _stored(self, session: Session) -> Copy:
        held = session._request.copy_held
        if held is None:
            raise SessionClosed("nothing was stored of the session")
        return self.copies.cache.get(held.key) or held


def give_up_changes(session: Session) -> None:
    """What was changed since the session was read or stored is not to be stored."""
    request = session._request
    request.closing = request.cleared = request.rotating = False
    request.drop_new()
    request.shared = None
    read_again(session)
