"""Starts the gateway: settings from the command line, judged before anything is opened."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from lxml import etree

from coatcheck.errors import ConfigError
from coatcheck.host_port import is_loopback
from coatcheck.pool import AsyncTokenPool, TokenPool
from coatcheck.pool.duration import seconds
from coatcheck.pool.options import PoolOptions
from coatcheck.pool.service.serve import ServiceSettings
from coatcheck.pool.soap.faults import EXPIRED_FAULTS
from coatcheck.pool.soap.gateway import LoginOperations, SoapGateway
from coatcheck.pool.soap.gateway_app import gateway_app
from coatcheck.pool.soap.session_headers import SESSION_NS, SessionHeaders
from coatcheck.pool.soap.upstream import SoapUpstream
from coatcheck.pool.soap.versions import VERSIONS
from coatcheck.service_kit.addresses import check_url
from coatcheck.service_kit.bearer import read_bearer_tokens
from coatcheck.service_kit.http_server import serve_app
from coatcheck.service_kit.secret_file import secret_lines


class GatewaySettings(ServiceSettings, frozen=True, kw_only=True):
    """``upstream``: the address of the service. ``user``, ``password_file``: who calls there. ``login_operation``,
    ``logout_operation``: instead of commands and addresses; ``soap``: the version that they speak. ``timeout``: for a
    call. ``expired_fault``: ``NAME=TEXT`` in a fault that refuses a token.
    """

    upstream: str
    user: str
    password_file: Path | None = None
    login_operation: str | None = None
    logout_operation: str | None = None
    soap: str = "1.1"
    session_type: str = "Stateless"
    session_namespace: str | None = None
    expired_fault: tuple[str, ...] = ()
    timeout: str = "30s"
    upstream_ca_file: Path | None = None
    public_url: str | None = None


def serve_gateway(settings: GatewaySettings, options: PoolOptions, started: Callable[[str], None]) -> None:
    """Serve until told to stop. ``options``: of the pool. Raises :class:`ConfigError`."""
    callers = read_bearer_tokens(settings.token_file)
    tls = settings.tls()
    timeout_s = seconds("timeout", settings.timeout, least=0.1)
    upstream = SoapUpstream(_checked_upstream(settings), timeout_s, _trust(settings.upstream_ca_file))
    placing = SessionHeaders(settings.session_type, settings.session_namespace or SESSION_NS)
    password = _password(settings.password_file)
    login, logout = _logins(settings, upstream, placing)
    # A wrong setting is told now, not by the first request. Nothing is connected yet.
    judged = TokenPool(**options)
    judged.close(0)
    if timeout_s >= judged.settings.policy.lease_s:
        raise ConfigError("timeout: must be shorter than the lease, or a token could be lent while it is in use")
    if logout is not None:
        options = {**options, "logout": logout}
    expired = frozenset(settings.expired_fault) or EXPIRED_FAULTS
    if any("=" not in each for each in expired):
        raise ConfigError("expired-fault: write NAME=TEXT, as Reason=TokenExpired")

    def open_gateway() -> tuple[AsyncTokenPool, SoapGateway]:
        pool = AsyncTokenPool(login, **options)
        return pool, SoapGateway(pool, settings.user, password, upstream, placing, expired)

    app = gateway_app(open_gateway, upstream, callers, settings.public_url)
    serve_app(app, settings.listen, started, tls)


def _checked_upstream(settings: GatewaySettings) -> str:
    check_url("upstream", settings.upstream)
    parts = urlsplit(settings.upstream)
    if parts.scheme == "http" and not is_loopback(parts.hostname or "") and not settings.allow_insecure:
        raise ConfigError("upstream: password and tokens would go there in the clear; use https, or --allow-insecure")
    return settings.upstream


def _trust(authority: Path | None) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=authority)
    except OSError as error:
        raise ConfigError(f"upstream-ca-file: {error}") from None


def _password(file: Path | None) -> str | None:
    if file is None:
        return None
    lines = secret_lines(file, "password-file")
    if len(lines) != 1:
        raise ConfigError(f"password-file: {file} has {len(lines)} lines; one is needed")
    return lines[0]


def _logins(settings: GatewaySettings, upstream: SoapUpstream, placing: SessionHeaders) -> tuple[Any, Any]:
    login, logout = settings.logins()
    if (login is None) == (settings.login_operation is None):
        raise ConfigError("login-operation, login-command, login-url: one of them is needed")
    if logout is not None and settings.logout_operation is not None:
        raise ConfigError("logout-operation, logout-command and logout-url: only one of them")
    version = next(each for each in VERSIONS if each.name == settings.soap)
    names = [_named(kind, getattr(settings, f"{kind}_operation")) for kind in ("login", "logout")]
    operations = LoginOperations(upstream, placing, version, *names)
    if settings.login_operation is not None:
        login = operations.log_in
    if settings.logout_operation is not None:
        logout = operations.log_out
    return login, logout


def _named(kind: str, operation: str | None) -> str:
    """The element of an operation. Raises :class:`ConfigError`."""
    try:
        return "" if operation is None else etree.QName(operation).text
    except ValueError:
        raise ConfigError(f"{kind}-operation: write {{NAMESPACE}}NAME, as {{urn:example}}Ping") from None
