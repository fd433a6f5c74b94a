"""Starts the session service by itself: settings judged before anything is opened."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
from starlette.types import ASGIApp

from coatcheck.access import SessionAccess
from coatcheck.errors import ConfigError
from coatcheck.service.followed_keys import FollowedFile, FollowedKeys
from coatcheck.service.service import SessionService
from coatcheck.service_kit.http_server import serve_app, tls_for
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.tls.peers import Revocations


class SessionServiceSettings(msgspec.Struct, frozen=True, kw_only=True):
    """``listen``: address. ``callers``: the file of those who may ask. ``authority``: who signs their certificates;
    ``revoked``: what it took back. ``insecure``: listen beyond this machine without TLS. ``signals``: the file of
    logout signals.
    """

    listen: str
    callers: Path
    certificate: Path | None = None
    private_key: Path | None = None
    authority: Path | None = None
    revoked: Path | None = None
    insecure: bool = False
    signals: Path | None = None


def serve_sessions(
    settings: SessionServiceSettings,
    access: SessionAccess,
    cookies: CookiePolicy,
    started: Callable[[str], None],
    key_file: FollowedFile | None = None,
) -> None:
    """Serve until told to stop. ``key_file``: what the keys of ``access`` come from, if others may change them.

    Raises :class:`ConfigError`.
    """
    tls = tls_for(settings.listen, settings.certificate, settings.private_key, settings.insecure, settings.authority)
    revocations = None
    if settings.revoked is not None:
        if settings.authority is None:
            raise ConfigError("tls-revoked: only with tls-authority, who signs it")
        revocations = Revocations(settings.authority, settings.revoked)
    has_authority = settings.authority is not None
    followed = FollowedKeys(key_file) if key_file is not None else None
    service = SessionService(
        access,
        cookies,
        settings.callers,
        authority=has_authority,
        revocations=revocations,
        signals=settings.signals,
        refresh_keys=followed.refresh if followed is not None else None,
    )
    app: ASGIApp = service.app()
    if followed is not None:
        app = followed.around(app, service.change_keys)
    serve_app(app, settings.listen, started, tls, service.stop)
