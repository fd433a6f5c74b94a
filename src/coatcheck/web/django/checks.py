"""What ``manage.py check`` says of the settings of sessions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from django.conf import settings
from django.core import checks
from django.core.exceptions import ImproperlyConfigured

from coatcheck.web.django import configuration

ENGINE: Final = "coatcheck.web.django"
DJANGOS_MIDDLEWARE: Final = "django.contrib.sessions.middleware.SessionMiddleware"
MIDDLEWARE: Final = "coatcheck.web.django.SessionMiddleware"


def register() -> None:
    checks.register(check_middleware, checks.Tags.security)
    checks.register(check_settings, checks.Tags.security)
    checks.register(check_for_production, checks.Tags.security, deploy=True)


def check_middleware(app_configs: Sequence[Any] | None, **_: Any) -> list[checks.CheckMessage]:
    if settings.SESSION_ENGINE != ENGINE:
        return []
    if DJANGOS_MIDDLEWARE in settings.MIDDLEWARE:
        hint = f"In MIDDLEWARE, write {MIDDLEWARE!r} in its place."
        said = "With Django's SessionMiddleware no session key is rotated, and no theft found."
        return [checks.Warning(said, hint=hint, id="coatcheck.W001")]
    return []


def check_settings(app_configs: Sequence[Any] | None, **_: Any) -> list[checks.CheckMessage]:
    if settings.SESSION_ENGINE != ENGINE:
        return []
    try:
        configuration.check()
    except ImproperlyConfigured as error:
        return [checks.Error(str(error), id="coatcheck.E001")]
    return []


def check_for_production(app_configs: Sequence[Any] | None, **_: Any) -> list[checks.CheckMessage]:
    if settings.SESSION_ENGINE != ENGINE or configuration.is_configured():
        return []
    said = "COATCHECK is not set: each process keeps sessions of its own in memory, and they end with it."
    hint = "COATCHECK = {'session_servers': ['valkey://...']}; not needed under 'coatcheck serve'."
    return [checks.Warning(said, hint=hint, id="coatcheck.W002")]
