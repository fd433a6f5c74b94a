"""The sessions of the store in use until today continue here: each is read once, at its browser's first visit.

Of no framework: an adapter asks :meth:`MovingIn.find` where a browser shows no session of ours, puts what it finds into
the new session, and calls :meth:`FormerSession.leave` when that is stored and the old cookie cleared. While a store of
before does not answer, the visit is refused: a moment's outage logs nobody out.
"""

from __future__ import annotations

import json
import logging
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, timedelta
from typing import Any, Final, Protocol

import msgspec

from coatcheck.errors import ConfigError, SessionDataError, SessionUnavailable, UnavailableReason
from coatcheck.seldom import Seldom
from coatcheck.sessions.record import encode_data

LEFT_FOR_S: Final = 60
"""How long a former session is still there after it was read, for requests that run beside the one that moved it."""

_LOG: Final = Seldom(logging.getLogger("coatcheck.moving_in"), time.monotonic)


class Former(Protocol):
    """A store of sessions of before."""

    @property
    def cookie(self) -> str:
        """The cookie by which a browser shows its session there."""
        ...

    def read(self, cookies: Mapping[str, str]) -> Mapping[str, Any] | None:
        """The session that these cookies open there; ``None`` if they open none, whoever has made them.

        Raises :class:`CannotRead` for one that can never be read here: it is logged, and the browser begins a fresh
        session. What else it raises is logged as well, and the visit refused, so that the browser can come again.
        """
        ...

    def leave(self, cookies: Mapping[str, str]) -> None:
        """The session is stored here now: let it end there, :data:`LEFT_FOR_S` from now. Repeatable."""
        ...


class FormerSession:
    """A session of before: its content, and the store that it is in."""

    def __init__(self, former: Former, content: dict[str, Any], user: str | None, cookies: Mapping[str, str]) -> None:
        self.cookie = former.cookie
        self.path: str = getattr(former, "path", "/")
        self.domain: str | None = getattr(former, "domain", None)
        self.content = content
        self.user = user
        self._former = former
        self._cookies = cookies

    def leave(self) -> None:
        """It is stored here now."""
        self._leave(self._former.leave)

    def end(self) -> None:
        """Its user has logged out before it was stored here: it ends at once, where its store can do that."""
        self._leave(getattr(self._former, "end", self._former.leave))

    def _leave(self, leave: Callable[[Mapping[str, str]], None]) -> None:
        try:
            leave(self._cookies)
        except Exception as error:  # noqa: BLE001 - the former store is none of ours
            _LOG.warning("moving in: %s: cannot be left: %r", _name(self._former), error, kind="leave")


class MovingIn:
    """``former``: the stores of before, in the order in which they are asked. ``until``: the day, or the moment, from
    which on nobody moves in any more; a day begins at midnight in UTC, and a moment without a zone is in UTC.

    ``user``: the name of the user that a session's content tells; ``clock``: Unix seconds.

    Raises :class:`ConfigError` for stores without an end: whoever has copied a signed cookie could use it for ever.
    """

    def __init__(
        self,
        former: Sequence[Former],
        until: date | datetime | None,
        user: Callable[[Mapping[str, Any]], str | None] = lambda content: None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        if former and until is None:
            raise ConfigError("former: say until when: a date after which nobody moves in any more")
        if until is not None and not isinstance(until, date):
            raise ConfigError(f"until: a date or a datetime, not {type(until).__name__}")
        for each in former:
            if not callable(getattr(each, "read", None)) or not isinstance(getattr(each, "cookie", None), str):
                raise ConfigError(f"former: readers, such as FlaskCookie(...), not {type(each).__name__}")
        self._former = tuple(former)
        self._user = user
        self._clock = clock
        self._until_s = _seconds(until) if until is not None else 0.0

    def is_over(self) -> bool:
        """Whether nobody moves in any more."""
        return not self._former or self._clock() >= self._until_s

    @property
    def cookies(self) -> frozenset[str]:
        """The names of the cookies of before."""
        return frozenset(former.cookie for former in self._former)

    def find(self, cookies: Mapping[str, str]) -> FormerSession | None:
        """The session of before of a browser with these cookies; ask only where it shows none of ours.

        Raises :class:`SessionUnavailable` while a store of before does not answer.
        """
        if self.is_over():
            return None
        for former in self._former:
            if former.cookie not in cookies:
                continue
            try:
                content = former.read(cookies)
            except CannotRead as unreadable:
                _LOG.warning("moving in: %s: %s", _name(former), unreadable, kind=_name(former))
                continue
            except Exception as error:
                _LOG.warning("moving in: %s does not answer: %r", _name(former), error, kind=_name(former))
                raise SessionUnavailable(UnavailableReason.FORMER) from error
            if content:
                return self._found(former, dict(content), cookies)
        return None

    def _found(self, former: Former, content: dict[str, Any], cookies: Mapping[str, str]) -> FormerSession:
        user = self._user(content)
        return FormerSession(former, content, user if user is None else str(user), cookies)


def check_content(content: dict[str, Any]) -> bool:
    """Whether a session of before can be stored as it is; else a line in the log says why not."""
    try:
        encode_data(content)
    except SessionDataError as error:
        _LOG.warning("moving in: %s", error, kind="content")
        return False
    return True


def _seconds(until: date) -> float:
    if not isinstance(until, datetime):
        until = datetime(until.year, until.month, until.day, tzinfo=UTC)
    return (until if until.tzinfo is not None else until.replace(tzinfo=UTC)).timestamp()


def _name(former: Former) -> str:
    return type(former).__name__


class CannotRead(Exception):
    """A session of before that is there and cannot be read here; its text is a line for the log."""


class _Signed:
    """A store that is a signed cookie."""

    def __init__(self, cookie: str, max_age: float | timedelta, path: str = "/", domain: str | None = None) -> None:
        self.cookie = cookie
        self.path = path
        self.domain = domain
        self._max_age_s = max_age.total_seconds() if isinstance(max_age, timedelta) else float(max_age)

    def leave(self, cookies: Mapping[str, str]) -> None:
        """The cookie was all there is."""


class FlaskCookie(_Signed):
    """The signed cookie of Flask and Quart.

    ``secret_key``: the app's ``SECRET_KEY``, or several, the newest first (``SECRET_KEY_FALLBACKS``). ``max_age``:
    its ``PERMANENT_SESSION_LIFETIME``, seconds. ``path`` and ``domain`` of the cookie: for a middleware of ours, which
    clears it; a session interface does by the app's own settings. It needs Flask.
    """

    def __init__(
        self,
        secret_key: str | bytes | Sequence[str | bytes],
        cookie: str = "session",
        max_age: float | timedelta = timedelta(days=31),
        path: str = "/",
        domain: str | None = None,
    ) -> None:
        from flask.sessions import SecureCookieSessionInterface
        from itsdangerous import URLSafeTimedSerializer

        super().__init__(cookie, max_age, path, domain)
        like = SecureCookieSessionInterface
        self._serializer = URLSafeTimedSerializer(
            _oldest_first(secret_key),  # type: ignore[arg-type]
            salt=like.salt,
            serializer=like.serializer,
            signer_kwargs={"key_derivation": like.key_derivation, "digest_method": like.digest_method},
        )

    def read(self, cookies: Mapping[str, str]) -> Mapping[str, Any] | None:
        from itsdangerous import BadPayload, BadSignature

        try:
            found = self._serializer.loads(cookies[self.cookie], max_age=int(self._max_age_s))
        except BadSignature:
            return None
        except BadPayload as error:
            raise CannotRead(f"what the cookie holds is not Flask's: {error}") from error
        return _mapping(found)


class StarletteCookie(_Signed):
    """The signed cookie of Starlette's and FastAPI's ``SessionMiddleware``: its ``secret_key``, ``session_cookie``,
    ``max_age`` (seconds), ``path`` and ``domain``. It needs itsdangerous."""

    def __init__(
        self,
        secret_key: str,
        cookie: str = "session",
        max_age: float | timedelta = timedelta(days=14),
        path: str = "/",
        domain: str | None = None,
    ) -> None:
        from itsdangerous import TimestampSigner

        super().__init__(cookie, max_age, path, domain)
        self._signer = TimestampSigner(str(secret_key))

    def read(self, cookies: Mapping[str, str]) -> Mapping[str, Any] | None:
        from itsdangerous import BadSignature

        try:
            signed = self._signer.unsign(cookies[self.cookie].encode(), max_age=int(self._max_age_s))
        except BadSignature:
            return None
        try:
            found = json.loads(b64decode(signed))
        except ValueError as error:
            raise CannotRead(f"what the cookie holds is not Starlette's: {error}") from error
        return _mapping(found)


class _Redis(Protocol):
    """What is needed of :class:`redis.Redis`."""

    def get(self, name: str) -> Any: ...

    def expire(self, name: str, time: int) -> Any: ...


class _InRedis:
    """A store that keeps each session under a key of Redis. ``client``: a :class:`redis.Redis` with a short
    ``socket_timeout``; it is asked while requests wait."""

    def __init__(self, client: _Redis, cookie: str, prefix: str, path: str = "/", domain: str | None = None) -> None:
        self.cookie = cookie
        self.path = path
        self.domain = domain
        self._client = client
        self._prefix = prefix

    def read(self, cookies: Mapping[str, str]) -> Mapping[str, Any] | None:
        key = self._key(cookies)
        raw = None if key is None else self._client.get(key)
        return None if raw is None else _mapping(_decoded(bytes(raw)))

    def leave(self, cookies: Mapping[str, str]) -> None:
        key = self._key(cookies)
        if key is not None:
            self._client.expire(key, LEFT_FOR_S)

    def _key(self, cookies: Mapping[str, str]) -> str | None:
        """``None``: the cookie was not made there."""
        return self._prefix + cookies[self.cookie]


class FlaskSessionRedis(_InRedis):
    """Flask-Session's Redis: MessagePack (since 0.7) or JSON. The pickles of older versions are refused: whoever can
    write to that Redis could run code here.

    ``client``: a :class:`redis.Redis` with a short ``socket_timeout``; it is asked while requests wait. ``prefix``:
    ``SESSION_KEY_PREFIX``. ``secret_key``: with ``SESSION_USE_SIGNER``, the app's ``SECRET_KEY``; it needs
    itsdangerous then. ``path`` and ``domain``: as with :class:`FlaskCookie`.
    """

    def __init__(
        self,
        client: _Redis,
        cookie: str = "session",
        prefix: str = "session:",
        secret_key: str | bytes | None = None,
        path: str = "/",
        domain: str | None = None,
    ) -> None:
        super().__init__(client, cookie, prefix, path, domain)
        self._secret_key = secret_key

    def _key(self, cookies: Mapping[str, str]) -> str | None:
        shown = cookies[self.cookie]
        if self._secret_key is not None:
            from itsdangerous import BadSignature, Signer

            try:
                shown = Signer(self._secret_key, salt="flask-session", key_derivation="hmac").unsign(shown).decode()
            except BadSignature:
                return None
        return self._prefix + shown


class StarsessionsRedis(_InRedis):
    """The Redis of starsessions, with its ``JsonSerializer``: ``cookie_name``, ``prefix``, ``cookie_path`` and
    ``cookie_domain``. ``client``: a :class:`redis.Redis`, of threads, with a short ``socket_timeout``."""

    def __init__(
        self,
        client: _Redis,
        cookie: str = "session",
        prefix: str = "starsessions.",
        path: str = "/",
        domain: str | None = None,
    ) -> None:
        super().__init__(client, cookie, prefix, path, domain)

    def read(self, cookies: Mapping[str, str]) -> Mapping[str, Any] | None:
        found = super().read(cookies)
        return None if found is None else {key: value for key, value in found.items() if key != "__metadata__"}


def _decoded(raw: bytes) -> Any:
    for decode in (msgspec.msgpack.decode, msgspec.json.decode):
        try:
            found = decode(raw)
        except msgspec.DecodeError:
            continue
        if isinstance(found, dict):
            return found
    if raw[:1] == b"\x80":
        raise CannotRead(
            "a session is stored as a pickle, which is not read here: let its own library rewrite it as JSON first"
        )
    raise CannotRead("a session is stored neither as MessagePack nor as JSON")


def _mapping(found: Any) -> Mapping[str, Any]:
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise CannotRead("what stands there is no mapping with text for keys")
    return found


def _oldest_first(secret_key: str | bytes | Sequence[str | bytes]) -> list[str | bytes]:
    keys = [secret_key] if isinstance(secret_key, str | bytes) else list(secret_key)
    return keys[::-1]


__all__ = [
    "CannotRead",
    "FlaskCookie",
    "FlaskSessionRedis",
    "Former",
    "FormerSession",
    "MovingIn",
    "StarletteCookie",
    "StarsessionsRedis",
]
