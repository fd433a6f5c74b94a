"""From ``[session.moving_in]`` to the reader of the sessions of before, in a web server."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from coatcheck.errors import ConfigError
from coatcheck.farm.settings.moving_in import MovingInSettings
from coatcheck.service_kit.secret_file import secret_lines
from coatcheck.web import moving_in as readers
from coatcheck.web.moving_in import Former, MovingIn

REDIS_TIMEOUT_S: Final = 1.0
"""A first visit waits so long for the Redis of before; then it is refused (503)."""
OF_FLASK_LOGIN: Final = "_user_id"


def moving_in_of(settings: MovingInSettings | None) -> MovingIn | None:
    """What the middleware is told; ``None`` if nobody moves in there: a Django project does so itself.

    Raises:
        ConfigError: a secret is not where it should be, or what reads such sessions is not installed.
    """
    if settings is None:
        return None
    try:
        if settings.store == "django":
            _tell_django(settings)
            return None
        former = _READERS[settings.store](settings)
    except ConfigError as error:
        raise ConfigError(f"moving_in: {error}") from None
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"moving_in: reading sessions from {settings.store} needs {error.name}; pip install {error.name}"
        ) from None
    user = settings.user or (OF_FLASK_LOGIN if settings.store in ("flask", "flask-session") else "")
    return MovingIn([former], settings.until, lambda content: content.get(user))


def _starlette(settings: MovingInSettings) -> Former:
    secret = _secrets(settings)
    if len(secret) > 1:
        raise ConfigError("secret_file: it holds one line, the secret_key")
    return readers.StarletteCookie(secret[0], **_of_cookie(settings), **_max_age(settings))


def _flask(settings: MovingInSettings) -> Former:
    return _FlaskValues(readers.FlaskCookie(_secrets(settings), **_of_cookie(settings), **_max_age(settings)))


def _flask_session(settings: MovingInSettings) -> Former:
    secret = _secrets(settings)
    if len(secret) > 1:
        raise ConfigError("secret_file: it holds one line, the SECRET_KEY")
    named = _of_cookie(settings) | _prefix(settings)
    return _FlaskValues(readers.FlaskSessionRedis(_redis(settings), secret_key=secret[0] if secret else None, **named))


def _starsessions(settings: MovingInSettings) -> Former:
    return readers.StarsessionsRedis(_redis(settings), **_of_cookie(settings), **_prefix(settings))


_READERS: Final = {
    "starlette": _starlette,
    "flask": _flask,
    "flask-session": _flask_session,
    "starsessions": _starsessions,
}


class _FlaskValues:
    """Sessions of Flask, with their values as coatcheck's session interface of Flask and Quart stores them."""

    def __init__(self, former: Any) -> None:
        from coatcheck.web.flask_session import ValueTags

        self.cookie: str = former.cookie
        self.path: str = former.path
        self.domain: str | None = former.domain
        self.leave = former.leave
        self._former = former
        self._tags = ValueTags()

    def read(self, cookies: Mapping[str, str]) -> Mapping[str, Any] | None:
        found = self._former.read(cookies)
        return None if found is None else self._tags.stored(found)


def _of_cookie(settings: MovingInSettings) -> dict[str, Any]:
    named = {"cookie": settings.cookie} if settings.cookie else {}
    return {**named, "path": settings.path, "domain": settings.domain or None}


def _max_age(settings: MovingInSettings) -> dict[str, Any]:
    return {} if settings.max_age_s is None else {"max_age": settings.max_age_s}


def _prefix(settings: MovingInSettings) -> dict[str, Any]:
    return {"prefix": settings.prefix} if settings.prefix else {}


def _secrets(settings: MovingInSettings) -> list[str]:
    """The secret keys of the app of before, the newest first."""
    if settings.secret_env:
        return [_variable("secret_env", settings.secret_env)]
    if not settings.secret_file:
        return []
    lines = secret_lines(Path(settings.secret_file), "secret_file")
    if not lines:
        raise ConfigError(f"secret_file: {settings.secret_file} holds no line; write the app's secret key into it")
    return lines


def _redis(settings: MovingInSettings) -> Any:
    import redis

    url = settings.redis or _variable("redis_env", settings.redis_env)
    try:
        return redis.Redis.from_url(url, socket_timeout=REDIS_TIMEOUT_S, socket_connect_timeout=REDIS_TIMEOUT_S)
    except ValueError:
        name = "redis" if settings.redis else f"redis_env: {settings.redis_env}"
        raise ConfigError(f"{name}: no URL of a Redis, such as redis://HOST:6379") from None


def _variable(setting: str, name: str) -> str:
    value = os.environ.get(name, "")
    if not value:
        raise ConfigError(f"{setting}: the environment has no {name}; set it where the farm is started")
    return value


def _tell_django(settings: MovingInSettings) -> None:
    """Its own engine of before reads them, so signature, serializer and expiry are judged as ever."""
    improper = importlib.import_module("django.core.exceptions").ImproperlyConfigured
    try:
        configuration = importlib.import_module("coatcheck.web.django.configuration")
        configuration.move_in({"engine": settings.engine, "until": settings.until})
    except improper as error:
        raise ConfigError(str(error).splitlines()[0].removeprefix("COATCHECK: moving_in: ")) from None
