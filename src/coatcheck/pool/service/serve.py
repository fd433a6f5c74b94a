"""Starts the service: settings from the command line, judged before anything is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from coatcheck.pool import AsyncTokenPool, TokenPool
from coatcheck.pool.options import PoolOptions
from coatcheck.pool.service.app import pool_app
from coatcheck.pool.service.upstream_login import outside_logins
from coatcheck.service_kit.bearer import read_bearer_tokens
from coatcheck.service_kit.http_server import serve_app, tls_for


class ServiceSettings(msgspec.Struct, frozen=True):
    """``listen``: address. ``token_file``: bearer tokens of callers. ``login_command`` or ``login_url``: who logs in;
    without them, callers do. ``insecure``: listen beyond this machine without TLS.
    """

    listen: str
    token_file: Path
    login_command: str | None = None
    login_url: str | None = None
    logout_command: str | None = None
    logout_url: str | None = None
    certificate: Path | None = None
    private_key: Path | None = None
    insecure: bool = False


def serve_pool(settings: ServiceSettings, options: PoolOptions, started: Callable[[str], None]) -> None:
    """Serve until told to stop. ``options``: of the pool. Raises :class:`ConfigError`."""
    bearer = read_bearer_tokens(settings.token_file)
    tls = tls_for(settings.listen, settings.certificate, settings.private_key, settings.insecure)
    # A wrong setting is told now, not by the first request. Nothing is connected yet.
    TokenPool(**options).close(0)
    login, logout = outside_logins(
        settings.login_command, settings.login_url, settings.logout_command, settings.logout_url
    )
    if logout is not None:
        options = {**options, "logout": logout}
    app = pool_app(lambda: AsyncTokenPool(login, **options), bearer)
    stopping = app.state.endpoint.stop
    serve_app(app, settings.listen, started, tls, stopping)
