"""What a web server does for each request: open its session, finish it with the response, and end it with the body.

Pure: what needs the session servers comes back as a flow, for a driver or the simulation to run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final

from coatcheck.device.challenges import Challenge, ChallengeCodec, ChallengeKind
from coatcheck.device.headers import registration
from coatcheck.errors import (
    CoatcheckError,
    ConflictError,
    SessionClosed,
    SessionDataError,
    SessionUnavailable,
    TokenReason,
    TokenRejected,
    UnavailableReason,
)
from coatcheck.events import Event, EventKind
from coatcheck.replication.effects import Exclusive, Flow, FreshKeys, as_flow
from coatcheck.sessions.answer import SWITCHING_PROTOCOLS, Answer
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.newcomers import Newcomers
from coatcheck.sessions.opened import Opened, Phase
from coatcheck.sessions.routes import Header
from coatcheck.sessions.saving import NOTHING, Saved
from coatcheck.tokens.sealed import SealedToken

ShownToken = tuple[SealedToken, bool]
"""A token that a request shows and that is ours, with whether it is the logged-in cookie's."""

OPENING, OPEN, FINISHED, ENDED = Phase.OPENING, Phase.OPEN, Phase.FINISHED, Phase.ENDED
"""Python 3.11 takes a tenth of a microsecond to find a member of an enum by its class."""

FAILED: Final = 500
"""The status of a response whose request is taken to have failed half-way."""
TOO_LATE: Final = (
    "a session cannot be begun or regenerated while the response is streamed: its head has left, and the browser "
    "cannot be given the cookie any more; do it before the response starts"
)


class Requests:
    """``open_anonymous`` and ``open_login`` unseal a token or raise :class:`TokenRejected`, which
    ``rejected(reason, client)`` is told of."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        newcomers: Newcomers,
        open_anonymous: Callable[[bytes], SealedToken],
        open_login: Callable[[bytes], SealedToken],
        seal: Callable[[Issue], bytes],
        rejected: Callable[[TokenReason, str | None], None],
        keys_may_be_newer: bool = False,
        challenges: ChallengeCodec | None = None,
    ) -> None:
        """``keys_may_be_newer``: whether somebody can be asked about a key that is not known here. ``challenges``: of
        sessions that are bound to their browsers, if they are."""
        self._lifecycle = lifecycle
        self._open_cached = lifecycle.open_cached
        self._is_settled = lifecycle.is_settled
        self._newcomers = newcomers
        self._open_anonymous = open_anonymous
        self._open_login = open_login
        self._seal = seal
        self._rejected = rejected
        self._keys_may_be_newer = keys_may_be_newer
        self._challenges = challenges
        self._world = lifecycle.copies.world

    def now_ms(self) -> int:
        """Unix ms, by the farm's clock."""
        return self._world.now_ms()

    # -- open --------------------------------------------------------------------------------------

    def open(self, opened: Opened) -> Flow[None] | None:
        """Open its session: at once if it is hosted here or the browser shows none, else by the flow returned.

        The flow raises :class:`SessionUnavailable`: no session is invented while the right one is out of reach.
        """
        if opened.phase is not OPENING:
            opened.demand(OPENING, "open")
        return self._open(opened, self._keys_may_be_newer)

    def _open(self, opened: Opened, may_ask: bool) -> Flow[None] | None:
        header, transport = opened.cookie_header, opened.transport
        login = False
        tokens: list[ShownToken] = []
        """Those that the browser shows and that are ours; the logged-in cookie's is first."""
        if transport.login_name in header and (text := transport.login.read(header)):
            try:
                tokens.append((self._open_login(text), True))
                login = True
            except TokenRejected as rejection:
                if may_ask and rejection.reason is TokenReason.UNKNOWN_KEY:
                    return self._open_with_fresh_keys(opened)
                self._rejected(rejection.reason, opened.client)
        if header and (text := transport.read_anonymous(header)):
            try:
                tokens.append((self._open_anonymous(text), False))
            except TokenRejected as rejection:
                if may_ask and rejection.reason is TokenReason.UNKNOWN_KEY:
                    return self._open_with_fresh_keys(opened)
                self._rejected(rejection.reason, opened.client)
        session = self._open_cached(*tokens[0]) if tokens else self._fresh()
        if session is None:
            return self._load(opened, tokens)
        if login:
            _introduce(session, opened)
        opened.session = session
        opened.phase = OPEN
        return None

    def _open_with_fresh_keys(self, opened: Opened) -> Flow[None]:
        """Another server may seal with a key that this one has not heard of: that ends no session."""
        is_fresh: bool = yield FreshKeys()
        if not is_fresh:
            raise SessionUnavailable(UnavailableReason.KEYS)
        opening = self._open(opened, may_ask=False)
        if opening is not None:
            yield from opening

    def _fresh(self) -> Session:
        session = Session()
        session._request.home = self._lifecycle.home
        return session

    def _load(self, opened: Opened, tokens: list[ShownToken]) -> Flow[None]:
        """The session of the first token that opens one, else a fresh one."""
        unheard: tuple[bytes, ...] = ()
        overdue = b""
        for token, login in tokens:
            session = self._open_cached(token, login) or (yield from self._lifecycle.open(token, login))
            if session is None:
                continue
            if session._request.overdue:
                overdue = session._request.overdue
                continue
            if not session._request.unheard:
                break
            unheard += session._request.unheard
        else:
            session = self._fresh()
        session._request.unheard = unheard
        session._request.overdue = overdue
        _introduce(session, opened)
        opened.session = session
        opened.phase = OPEN

    # -- finish ------------------------------------------------------------------------------------

    def finish(self, opened: Opened, status: int, headers: Iterable[Header]) -> Answer | Flow[Answer] | Exclusive:
        """What to answer when the app's response starts, with its ``status`` and ``headers``: decided at once, or by
        the flow that stores what the request did, which ends when that is acknowledged. Should it be cancelled or fail:
        :meth:`Opened.give_up`.

        Raises :class:`SessionDataError` for what cannot be stored; then the app's own error page may be finished.
        """
        if opened.phase is not OPEN:
            opened.demand(OPEN, "finish")
        session = opened.session
        request = session._request
        if not request.unsettled and self._is_settled(session):
            opened.phase = FINISHED
            if request.shared is None:
                self._lifecycle.share(session)
            return opened.transport.answer(session, opened.cookie_header, NOTHING, self._seal, status, headers)
        if status == FAILED:
            # The error page of a request that failed half-way. Starlette's own middleware, which stands between the
            # app and its error page, keeps nothing of what such a request did; nor does Django. A logout counts.
            opened.failed = opened.failed or not request.closing
            request.drop_new()
        saved: Saved | Flow[Saved] | Exclusive = NOTHING
        if request.new_login:
            _introduce(session, opened)
        if not opened.failed:
            try:
                saved = self._lifecycle.finish(session)
                if type(saved) is not Saved and request.copy_held is None:
                    self._admit(session, opened.client)
            except SessionUnavailable as error:
                return self.refuse(opened, error)
            except SessionDataError:
                opened.failed = True  # the app's own error page may pass, without a session
                raise
        opened.phase = FINISHED
        if isinstance(saved, Saved):
            return self._answer(opened, saved, status, headers)
        if isinstance(saved, Exclusive):
            return Exclusive(saved.key, self._finish(opened, saved.flow, status, headers))
        return self._finish(opened, saved, status, headers)

    def _admit(self, session: Session, client: str | None) -> None:
        """Raises :class:`SessionUnavailable` if one session more is to begin, and there are too many new ones."""
        if not self._lifecycle.is_logout(session) and not self._newcomers.admit(client, self._world.monotonic()):
            self._world.report(Event(EventKind.SESSION_LIMITED, detail=f"too many new sessions from {client}"))
            raise SessionUnavailable(UnavailableReason.TOO_MANY_NEW)

    def _finish(self, opened: Opened, saving: Flow[Saved], status: int, headers: Iterable[Header]) -> Flow[Answer]:
        try:
            saved = yield from saving
        except (SessionUnavailable, SessionClosed, ConflictError) as error:
            return self.refuse(opened, error)
        return self._answer(opened, saved, status, headers)

    def refuse(self, opened: Opened, error: SessionUnavailable | SessionClosed | ConflictError) -> Answer:
        """What the app answers is not true: its change was not stored. For drivers: what finishes it could not be run,
        or not be waited for.
        """
        opened.phase = ENDED
        return Answer.refusal(error)

    def _answer(self, opened: Opened, saved: Saved, status: int, headers: Iterable[Header]) -> Answer:
        opened.closed = saved.clear
        session = opened.session
        session._request.rotating = session._request.cleared = session._request.telling = False
        session._request.socket = None
        if self._challenges is not None and status != SWITCHING_PROTOCOLS:
            headers = self._with_offer(self._challenges, opened, saved, headers)
        return opened.transport.answer(session, opened.cookie_header, saved, self._seal, status, headers)

    def _with_offer(
        self, challenges: ChallengeCodec, opened: Opened, saved: Saved, headers: Iterable[Header]
    ) -> Iterable[Header]:
        """A login's answer offers its browser to bind the session, once (W3C DBSC)."""
        path, request = opened.transport.device_path, opened.session._request
        if path is None or saved.issue is None or not (request.begun and request.login):
            return headers
        key = saved.issue.token.key
        challenge = Challenge(ChallengeKind.REGISTER, key, self._world.now_ms(), 0)
        return [*headers, registration(path + "register", challenges.seal(challenge))]

    # -- save --------------------------------------------------------------------------------------

    def save(self, opened: Opened) -> Flow[None] | None:
        """Between finish and end, for what stays open: store what was changed since. Repeatable.

        No token is made, for none could be told. Raises as :meth:`end` does, and :class:`SessionClosed` if this very
        request has closed its session.
        """
        opened.demand(FINISHED, "save")
        session = opened.session
        request = session._request
        if opened.closed:
            raise SessionClosed("the session was closed")
        request.is_open = True
        if request.socket is None and self._lifecycle.is_unchanged_since(session):
            return None
        saved = self._lifecycle.finish(session)
        if isinstance(saved, Saved):
            return None
        if session.is_new or request.new_login:
            (saved.flow if isinstance(saved, Exclusive) else saved).close()
            return self._end_too_late(session)
        return self._save(opened, as_flow(saved))

    def _save(self, opened: Opened, saving: Flow[Saved]) -> Flow[None]:
        session = opened.session
        saved = yield from saving
        if saved.clear:
            opened.closed = True
            return
        self._lifecycle.note_stored(session)

    # -- end ---------------------------------------------------------------------------------------

    def end(self, opened: Opened) -> Flow[None] | None:
        """Before the last piece of the body leaves: store what was changed while it was streamed. Repeatable.

        Raises :class:`CoatcheckError` for what needs a cookie, whose time has passed, and :class:`SessionDataError`;
        the flow raises what :meth:`Lifecycle.save` raises.
        """
        if opened.phase is ENDED:
            return None
        opened.demand(FINISHED, "end")
        opened.phase = ENDED
        session = opened.session
        if opened.failed or opened.closed or self._is_settled(session):
            return None
        if session._request.copy_held is not None and self._lifecycle.is_unchanged_since(session):
            return None
        saved = self._lifecycle.finish(session)
        if isinstance(saved, Saved):
            return None
        if session.is_new or session._request.new_login:
            (saved.flow if isinstance(saved, Exclusive) else saved).close()
            return self._end_too_late(session)
        return _only(as_flow(saved))

    def _end_too_late(self, session: Session) -> Flow[None]:
        """What was to begin cannot; a logout before it counts."""
        session._request.drop_new()
        closing = self._lifecycle.finish(session) if session._request.closing else NOTHING
        if isinstance(closing, Saved):
            raise CoatcheckError(TOO_LATE)
        return _and_then_too_late(as_flow(closing))


def _introduce(session: Session, opened: Opened) -> None:
    """Who asks: what a user is shown of a device, and whether the request may close any."""
    request = session._request
    request.method, request.headers, request.client = opened.method, opened.headers, opened.client


def _only(saving: Flow[Saved]) -> Flow[None]:
    yield from saving


def _and_then_too_late(closing: Flow[Saved]) -> Flow[None]:
    yield from closing
    raise CoatcheckError(TOO_LATE)
