"""Starts the service: settings from the command line, judged before anything is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.pool import AsyncTokenPool, TokenPool
from coatcheck.pool.options import PoolOptions
from coatcheck.pool.service.app import pool_app
from coatcheck.pool.service.authentication import read_bearer_tokens
from coatcheck.pool.service.upstream_login import login_command, login_url, logout_command, logout_url
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
    login, logout = _callbacks(settings)
    if logout is not None:
        options = {**options, "logout": logout}
    app = pool_app(lambda: AsyncTokenPool(login, **options), bearer)
    stopping = app.state.endpoint.stop
    serve_app(app, settings.listen, started, tls, stopping)


def _callbacks(settings: ServiceSettings) -> tuple[Any, Any]:
    for kind in ("login", "logout"):
        if getattr(settings, f"{kind}_command") and getattr(settings, f"{kind}_url"):
            raise ConfigError(f"{kind}-command and {kind}-url: only one of them")
    login: Any = None
    logout: Any = None
    if settings.login_command:
        login = login_command(settings.login_command)
    elif settings.login_url:
        login = login_url(settings.login_url)
    if settings.logout_command:
        logout = logout_command(settings.logout_command)
    elif settings.logout_url:
        logout = logout_url(settings.logout_url)
    return login, logout
