"""The arguments of a middleware, judged where it is built: else the first visitor's request would fail for them."""

from __future__ import annotations

from typing import get_args

from coatcheck.drivers.sessions import Sessions
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import ConfigError
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.routes import Sticky
from coatcheck.web.moving_in import MovingIn

NAME = "SessionMiddleware"


def check_arguments(app: object, kind: str, cookies: object, error_pages: object, sticky: object) -> None:
    """What the middlewares of event loops and of threads have in common; ``kind``: of app that it wraps.

    Raises :class:`ConfigError` for the first one of the wrong kind.
    """
    if not callable(app):
        raise ConfigError(f"{NAME}: app: {kind}, not {type(app).__name__}")
    if cookies is not None and not isinstance(cookies, CookiePolicy):
        raise ConfigError(f"{NAME}: cookies: a CookiePolicy, not {type(cookies).__name__}")
    if error_pages is not None and not isinstance(error_pages, ErrorPages) and not callable(error_pages):
        raise ConfigError(f"{NAME}: error_pages: ErrorPages or a function, not {type(error_pages).__name__}")
    if sticky not in get_args(Sticky):
        raise ConfigError(f"{NAME}: sticky: choose one of {', '.join(get_args(Sticky))}")


def check_moving_in(moving_in: object, ours: frozenset[str]) -> None:
    """``ours``: the names of our own cookies. Raises :class:`ConfigError`."""
    if not isinstance(moving_in, MovingIn):
        raise ConfigError(
            f"{NAME}: moving_in: MovingIn([StarletteCookie(...)], date(...)), not {type(moving_in).__name__}"
        )
    for name in sorted(moving_in.cookies & ours):
        raise ConfigError(f"{NAME}: moving_in: a cookie of before is called {name}, as ours; give ours another name")


def check_for_loops(sessions: object, cookies: object, name: str = NAME, *, binds: bool = False) -> None:
    """Raises :class:`ConfigError` for sessions that an event loop cannot wait for, or with another's cookies.

    ``binds``: whether this middleware offers browsers to bind their logins.
    """
    if isinstance(sessions, ThreadedSessions):
        raise ConfigError(f"{name}: sessions: of threads; connect(...) without driver='threads' is for event loops")
    if not isinstance(sessions, Sessions):
        raise ConfigError(f"{name}: sessions: what connect(...) returns, not {type(sessions).__name__}")
    if sessions.sites is not None and cookies not in (None, sessions.cookies):
        raise ConfigError(f"{NAME}: cookies: sessions with sites know theirs; give cookies to connect(...) instead")
    if sessions.demands_binding and not binds:
        raise ConfigError(f'{name}: sessions: device_binding = "require-after-login" is for the ASGI middleware alone')
    if sessions.challenges is not None and isinstance(cookies, CookiePolicy):
        cookies.check_binding("require-after-login" if sessions.demands_binding else "offer")


def check_for_threads(sessions: object, name: str = NAME, kind: str = "a WSGI app") -> None:
    """Raises :class:`ConfigError` for sessions that a thread cannot wait for; ``name``: of the class that has the
    argument."""
    if isinstance(sessions, Sessions):
        raise ConfigError(f"{name}: sessions: of an event loop; {kind} needs connect(..., driver='threads')")
    if not isinstance(sessions, ThreadedSessions):
        raise ConfigError(
            f"{name}: sessions: what connect(..., driver='threads') returns, not {type(sessions).__name__}"
        )
