"""``[session.moving_in]`` of the file: the store of sessions in use until today, whose sessions continue in the farm.

It has neither flags nor variables: a store is described by values that belong together, as a site is.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Final, Literal, get_args

import msgspec

from coatcheck.duration import parse_duration
from coatcheck.errors import ConfigError
from coatcheck.options import nearest, shown

KEY: Final = "moving_in"
"""In the table ``[session]``."""
Store = Literal["starlette", "flask", "flask-session", "starsessions", "django"]

_OF_COOKIES: Final = frozenset({"cookie", "path", "domain", "user"})
_SECRET: Final = ("secret_file", "secret_env")
_REDIS: Final = ("redis", "redis_env")
_TAKEN: Final[dict[str, frozenset[str]]] = {
    "starlette": _OF_COOKIES.union(_SECRET, {"max_age"}),
    "flask": _OF_COOKIES.union(_SECRET, {"max_age"}),
    "flask-session": _OF_COOKIES.union(_SECRET, _REDIS, {"prefix"}),
    "starsessions": _OF_COOKIES.union(_REDIS, {"prefix"}),
    "django": frozenset({"engine"}),
}
"""Beside ``from`` and ``until``."""
_NEEDED: Final[dict[str, tuple[str, ...]]] = {
    "starlette": _SECRET,
    "flask": _SECRET,
    "flask-session": _REDIS,
    "starsessions": _REDIS,
    "django": ("engine",),
}
"""One of these."""
_VARIABLE: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OWN_PREFIX: Final = "COATCHECK_"
_SCHEMES: Final = ("redis://", "rediss://", "unix://")


class MovingInSettings(msgspec.Struct, frozen=True, kw_only=True):
    """One store of before. ``until``: the day, in UTC, from whose beginning on nobody moves in any more.

    ``secret_file`` and ``secret_env`` name where the app's secret key of before is, ``redis_env`` where the URL of its
    Redis. ``user``: under which key a session names its user. What is left out is as the store's own library has it.

    Raises:
        ConfigError: a value is wrong or missing, or this store has no such setting.
    """

    store: Store = msgspec.field(name="from")
    until: date
    secret_file: str = ""
    secret_env: str = ""
    redis: str = ""
    redis_env: str = ""
    engine: str = ""
    cookie: str = ""
    path: str = "/"
    domain: str = ""
    prefix: str = ""
    max_age: str | int | float = ""
    user: str = ""

    def __post_init__(self) -> None:
        fields = msgspec.structs.fields(MovingInSettings)
        given = {each.name for each in fields if not each.required and getattr(self, each.name) != each.default}
        for name in sorted(given - _TAKEN[self.store]):
            raise ConfigError(f"{name}: sessions from {self.store} have no such setting; drop it")
        for one, other in (_SECRET, _REDIS):
            if {one, other} <= given:
                raise ConfigError(f"{one}: {other} says where it is, too; drop one of the two")
        if given.isdisjoint(_NEEDED[self.store]):
            names = _NEEDED[self.store]
            raise ConfigError(f"{names[0]}: sessions from {self.store} are read by it; give {' or '.join(names)}")
        for name in ("secret_env", "redis_env"):
            _check_variable(name, getattr(self, name))
        if self.redis and not self.redis.startswith(_SCHEMES):
            raise ConfigError(f"redis: the URL begins with one of {', '.join(_SCHEMES)}")
        if "@" in self.redis:
            raise ConfigError("redis: it holds a password; put the URL into a variable, and name that by redis_env")
        if self.max_age_s == 0:
            raise ConfigError("max_age: with 0 no session of before would be taken; drop it")

    @property
    def max_age_s(self) -> float | None:
        """Seconds; ``None``: as the store's own library has it. Raises :class:`ConfigError`."""
        if self.max_age == "":
            return None
        try:
            return parse_duration(self.max_age)
        except ValueError as error:
            raise ConfigError(f"max_age: {error} (got {shown(self.max_age)!r})") from None


def _check_variable(name: str, variable: str) -> None:
    if variable and not _VARIABLE.fullmatch(variable):
        raise ConfigError(f"{name}: the name of an environment variable (got {shown(variable)!r})")
    if variable.startswith(_OWN_PREFIX):
        raise ConfigError(f"{name}: web servers are given no variable that begins with {_OWN_PREFIX}; choose another")


def read_moving_in(content: object) -> MovingInSettings:
    """What stands in the file, judged. Raises :class:`ConfigError`, in one line that begins with the setting."""
    if not isinstance(content, dict):
        raise ConfigError("a table, whose first settings are from and until")
    known = [field.encode_name for field in msgspec.structs.fields(MovingInSettings)]
    for name in content:
        if name not in known:
            raise ConfigError(f"{shown(name)}: there is no such setting{nearest(name, known)}")
    if content.get("from") not in get_args(Store):
        raise ConfigError(f"from: choose one of {', '.join(get_args(Store))}")
    if type(content.get("until")) is not date:
        raise ConfigError("until: say until when, by a day such as 2027-01-31, after which nobody moves in any more")
    try:
        return msgspec.convert(content, MovingInSettings)
    except msgspec.ValidationError as error:
        words, _, name = str(error).partition(" - at `$.")
        raise ConfigError(f"{name.strip('`')}: {words[:1].lower()}{words[1:].replace('`', '')}") from None
