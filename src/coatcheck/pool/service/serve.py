"""Starts the service: settings from the command line, judged before anything is opened."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from coatcheck.pool import AsyncTokenPool, TokenPool
from coatcheck.pool.options import PoolOptions
from coatcheck.pool.service.app import pool_app
from coatcheck.pool.service.upstream_login import outside_logins
from coatcheck.service_kit.bearer import read_bearer_tokens
from coatcheck.service_kit.http_server import serve_app, tls_for


class ServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``listen``: address. ``token_file``: bearer tokens of callers. ``login_command`` or ``login_url``: who logs in;
    the same for logouts. ``allow_insecure``: go beyond this machine without TLS.
    """

    listen: str
    token_file: Path
    login_command: str | None = None
    login_url: str | None = None
    logout_command: str | None = None
    logout_url: str | None = None
    tls_certificate: Path | None = None
    tls_key: Path | None = None
    allow_insecure: bool = False

    def tls(self) -> ssl.SSLContext | None:
        """What callers speak TLS with, if they do. Raises :class:`ConfigError`."""
        return tls_for(self.listen, self.tls_certificate, self.tls_key, self.allow_insecure)

    def logins(self) -> tuple[Any, Any]:
        """What logs in and what logs out. Raises :class:`ConfigError`."""
        return outside_logins(self.login_command, self.login_url, self.logout_command, self.logout_url)


def serve_pool(settings: ServiceSettings, options: PoolOptions, started: Callable[[str], None]) -> None:
    """Serve until told to stop; without a login of its own, callers log in. ``options``: of the pool.

    Raises :class:`ConfigError`.
    """
    bearer = read_bearer_tokens(settings.token_file)
    tls = settings.tls()
    # A wrong setting is told now, not by the first request. Nothing is connected yet.
    TokenPool(**options).close(0)
    login, logout = settings.logins()
    if logout is not None:
        options = {**options, "logout": logout}
    app = pool_app(lambda: AsyncTokenPool(login, **options), bearer)
    stopping = app.state.endpoint.stop
    serve_app(app, settings.listen, started, tls, stopping)
