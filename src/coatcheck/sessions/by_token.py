"""Sessions by the token that names them, for frameworks whose session objects load and save themselves.

Django keeps one cookie and gives its value to its session store, inside a request and outside (tests, programs of the
server's own). A token that comes this way is no proof that its browser is there: nobody is accused by it, and it is
never replaced. Rotation and theft are for requests (:mod:`coatcheck.sessions.requests`), which such a framework makes
with a :class:`coatcheck.sessions.answer.OneCookie`; the text of a token begins with its mark here, too. Pure: what
needs the session servers is a flow.
"""

from __future__ import annotations

from collections.abc import Callable

from coatcheck.errors import SessionUnavailable, TokenReason, TokenRejected, UnavailableReason
from coatcheck.replication.effects import Flow, FreshKeys, as_flow
from coatcheck.sessions.cookies import ANONYMOUS_MARK, LOGIN_MARK
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.saving import Saved
from coatcheck.tokens.sealed import SealedToken


class ByToken:
    """``open_anonymous`` and ``open_login`` unseal a token or raise :class:`TokenRejected`; ``keys_may_be_newer``: as
    :class:`Requests`."""

    def __init__(
        self,
        lifecycle: Lifecycle,
        open_anonymous: Callable[[bytes], SealedToken],
        open_login: Callable[[bytes], SealedToken],
        seal: Callable[[Issue], bytes],
        keys_may_be_newer: bool = False,
    ) -> None:
        self._lifecycle = lifecycle
        self._open_anonymous = open_anonymous
        self._open_login = open_login
        self._seal = seal
        self._keys_may_be_newer = keys_may_be_newer

    def find(self, text: bytes) -> Flow[Session | None]:
        """The session that a token names, if it lives and its chain accepts the token; changes nothing.

        Raises :class:`SessionUnavailable` while that cannot be known.
        """
        token = yield from self._opened(text)
        if token is None:
            return None
        return (yield from self._lifecycle.look(token, text.startswith(LOGIN_MARK)))

    def store(self, session: Session) -> Flow[bytes]:
        """Store what was done to a session that was found, or is to begin; returns the text of its newest token when it
        is acknowledged. Repeatable.

        Raises :class:`SessionDataError`, :class:`SessionUnavailable`, :class:`SessionClosed`: it is over, and
        :class:`ConflictError`.
        """
        request = session._request
        was_open, request.is_open = request.is_open, True
        try:
            saving = self._lifecycle.finish(session)
            saved = saving if isinstance(saving, Saved) else (yield from as_flow(saving))
        finally:
            request.is_open = was_open
        request.rotating = request.cleared = False
        self._lifecycle.note_stored(session)
        if saved.issue is not None:
            return _text_of(saved.issue, self._seal)
        assert request.shown is not None
        return _text_of(Issue(request.shown, request.login), self._seal)

    def close(self, text: bytes) -> Flow[None]:
        """Close the session that a token names, however old the token is: whoever has it may end it. A text that names
        none is nothing to close. Raises :class:`SessionUnavailable` while somebody might still be served."""
        token = yield from self._opened(text)
        if token is not None:
            yield from self._lifecycle.close_named(token)

    def _opened(self, text: bytes) -> Flow[SealedToken | None]:
        try:
            return self._open_token(text)
        except TokenRejected as rejection:
            if rejection.reason is not TokenReason.UNKNOWN_KEY or not self._keys_may_be_newer:
                return None
        is_fresh: bool = yield FreshKeys()
        if not is_fresh:
            raise SessionUnavailable(UnavailableReason.KEYS)
        try:
            return self._open_token(text)
        except TokenRejected:
            return None

    def _open_token(self, text: bytes) -> SealedToken | None:
        if text.startswith(LOGIN_MARK):
            return self._open_login(text[len(LOGIN_MARK) :])
        return self._open_anonymous(text[len(ANONYMOUS_MARK) :]) if text.startswith(ANONYMOUS_MARK) else None


def _text_of(issue: Issue, seal: Callable[[Issue], bytes]) -> bytes:
    return (LOGIN_MARK if issue.login else ANONYMOUS_MARK) + seal(issue)
