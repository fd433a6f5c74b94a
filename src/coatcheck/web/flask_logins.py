"""Flask-Login's logins are coatcheck's: the session gets a new key, and the user's name (ASVS 7.2.4).

Whoever has planted a session in somebody's browser before the login has nothing after it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

import flask

from coatcheck.sessions.mapping import Session

if TYPE_CHECKING:
    from flask import Flask

LOGIN_KEYS: Final = ("_user_id", "_fresh", "_id", "_remember", "_remember_seconds")
"""What Flask-Login has just written when it tells of a login."""


def follow_logins(app: Flask) -> None:
    """Have the sessions of an app that has a login manager follow what it does. Repeatable."""
    try:
        from flask_login import signals
    except ImportError:  # another extension's login manager
        return

    signals.user_logged_in.connect(_log_in, app)
    signals.user_loaded_from_cookie.connect(_remember, app)
    signals.user_login_confirmed.connect(_confirm, app)
    signals.user_logged_out.connect(_log_out, app)


def _current() -> Session | None:
    """The session of this request, if it is one of ours."""
    session = flask.session._get_current_object()  # type: ignore[attr-defined]
    return session if isinstance(session, Session) else None


def _written(session: Session) -> dict[str, Any]:
    return {key: session[key] for key in LOGIN_KEYS if key in session}


def _log_in(app: Flask, **_: Any) -> None:
    session = _current()
    if session is None:
        return
    written = _written(session)
    try:
        session.regenerate(str(session["_user_id"]))
    except ValueError:  # a name that is not kept; the login is another session all the same
        session.close()
        session.regenerate()
    session.update(written)


def _remember(app: Flask, **_: Any) -> None:
    """A login that no form was sent for: requests that run beside each other all find it, and none is too late."""
    session = _current()
    if session is None:
        return
    user = str(session["_user_id"])
    kept = dict(session) if session.user in (None, user) else _written(session)
    session.close()
    try:
        session.regenerate(user)
    except ValueError:  # a name that is not kept
        session.regenerate()
    session.update(kept)


def _confirm(app: Flask, **_: Any) -> None:
    session = _current()
    if session is not None:
        session.regenerate()


def _log_out(app: Flask, **_: Any) -> None:
    """The session ends on every server. What Flask-Login leaves in it (a message for the next page) begins another."""
    session = _current()
    if session is None or (session.is_new and session.user is None):
        return
    left = dict(session)
    session.close()
    session.regenerate()
    session.update(left)
