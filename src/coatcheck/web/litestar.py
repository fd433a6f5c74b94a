"""Litestar: ``Litestar(middleware=[ServerSideSession(connect(...)).middleware])``, on Litestar's own session base.

``request.session``, ``set_session``, ``clear_session``, ``exclude``, ``scopes`` and ``SessionAuth`` are Litestar's, as
they are. What a request does to its session is stored by :class:`coatcheck.SessionMiddleware`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

from litestar.enums import ScopeType
from litestar.middleware.base import DefineMiddleware
from litestar.middleware.session.base import BaseBackendConfig, BaseSessionBackend
from litestar.middleware.session.base import SessionMiddleware as LitestarMiddleware

from coatcheck.drivers.sessions import Sessions
from coatcheck.error_pages import ErrorPages
from coatcheck.errors import CoatcheckError
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.mapping import Session
from coatcheck.web.asgi import SessionMiddleware
from coatcheck.web.error_page import ErrorPage

if TYPE_CHECKING:
    from litestar.connection import ASGIConnection
    from litestar.types import ASGIApp, Message, Receive, Scope, Scopes, ScopeSession, Send


class ServerSideSession(BaseBackendConfig["Backend"]):
    """The configuration; its :attr:`middleware` goes into the list of one of Litestar's layers, and it is the
    ``session_backend_config`` of ``SessionAuth``.

    ``sessions``: what ``connect(...)`` returns; ``cookies`` and ``error_pages`` as :class:`coatcheck.SessionMiddleware`
    has them. ``exclude``, ``exclude_opt_key`` and ``scopes``: where there is no session, as Litestar says. Under
    ``coatcheck serve`` the farm's sessions count, and ``sessions`` is not used.
    """

    def __init__(
        self,
        sessions: Sessions,
        cookies: CookiePolicy | None = None,
        error_pages: ErrorPages | ErrorPage | None = None,
        *,
        exclude: str | list[str] | None = None,
        exclude_opt_key: str = "skip_session",
        scopes: Scopes | None = None,
    ) -> None:
        self.sessions = sessions
        self.cookies = cookies
        self.error_pages = error_pages
        self.exclude = exclude
        self.exclude_opt_key = exclude_opt_key
        self.scopes = scopes if scopes is not None else {ScopeType.HTTP, ScopeType.WEBSOCKET}
        self._backend_class = Backend
        # What others read of a session's configuration; the cookie itself is coatcheck's.
        policy = cookies or sessions.cookies or CookiePolicy()
        self.key = policy.name
        self.path = policy.path
        self.domain = policy.domain or None
        self.secure = not policy.insecure_localhost
        self.httponly = True
        same_site: Literal["lax", "strict", "none"] = policy.same_site
        self.samesite = same_site

    @property
    def middleware(self) -> DefineMiddleware:
        """For the ``middleware`` of an app, router, controller or handler."""
        return DefineMiddleware(LitestarSessions, backend=Backend(self))


class Backend(BaseSessionBackend[ServerSideSession]):
    """Litestar's name for where sessions are kept. It is asked nothing: who stores is around the app."""

    def get_session_id(self, connection: ASGIConnection[Any, Any, Any, Any]) -> str | None:
        """None: tokens rotate, and no id of ours stays."""
        return None

    async def load_from_connection(self, connection: ASGIConnection[Any, Any, Any, Any]) -> dict[str, Any]:
        """Raises :class:`CoatcheckError`."""
        raise CoatcheckError("ServerSideSession is installed by its .middleware")

    async def store_in_message(
        self, scope_session: ScopeSession, message: Message, connection: ASGIConnection[Any, Any, Any, Any]
    ) -> None:
        """Raises :class:`CoatcheckError`."""
        raise CoatcheckError("ServerSideSession is installed by its .middleware")


class LitestarSessions(LitestarMiddleware[Backend]):
    """The middleware, with what Litestar excludes from it."""

    def __init__(self, app: ASGIApp, backend: Backend) -> None:
        super().__init__(app, backend)
        config = backend.config
        inner: Any = app
        self._ours: Any = SessionMiddleware(inner, config.sessions, config.cookies, error_pages=config.error_pages)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """An outer layer of coatcheck has the session open already: then that one counts."""
        found: Any = scope.get("session")
        await (self.app if isinstance(found, Session) else self._ours)(scope, receive, send)
