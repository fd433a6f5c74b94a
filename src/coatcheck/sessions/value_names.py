"""The classes whose instances sessions hold, by the names that apps give them."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.sessions.shapes import Shape, shape_of
from coatcheck.sessions.values import HELD

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Registered(msgspec.Struct, frozen=True):
    """A class under its name."""

    name: str
    cls: type
    shape: Shape


by_class: Final[dict[type, Registered]] = {}
by_name: Final[dict[str, Registered]] = {}
held: Final[set[type]] = set(HELD)
"""Kinds that sessions hold without being told."""
lookalikes: Final[set[type]] = set()
"""Registered kinds of text, numbers, lists and dicts: their instances equal plain values."""


def register_value(
    cls: type,
    *,
    name: str,
    encode: Callable[[Any], Any] | None = None,
    decode: Callable[[Any], Any] | None = None,
    unknown_fields: str | None = None,
) -> None:
    """Instances of ``cls`` come back from sessions as such, stored under ``name`` (1 to 64 letters, digits, ``.``,
    ``_`` or ``-``). Call it where the class is defined, in every process that uses it, before the first request.

    A msgspec Struct, a dataclass, a pydantic model and an Enum need no more. For any other class, ``encode`` makes of
    an instance a value that sessions hold, and ``decode`` the instance of that. ``unknown_fields``: the field, a dict,
    that takes the stored fields which this version of the class does not know; without it they are kept beside the
    instance, and a changed copy of it (``dataclasses.replace``) is without them.

    Raises :class:`ConfigError` for a name that is not plain or is another class's, a class that has a name already, and
    one that cannot be registered.
    """
    if not isinstance(cls, type):
        raise ConfigError(f"register_value: give a class, not {cls!r:.80}")
    what = f"register_value: {cls.__module__}.{cls.__qualname__}"
    if not isinstance(name, str) or not _PLAIN_NAME.fullmatch(name):
        raise ConfigError(f"{what}: name: 1 to 64 letters, digits, '.', '_' or '-' (got {name!r:.80})")
    if cls in held:
        raise ConfigError(f"{what}: sessions hold it without being told; register a class of your own")
    former = by_name.get(name)
    if former is not None and former.cls is not cls and not _is_reloaded(former.cls, cls):
        raise ConfigError(f"{what}: the name {name!r} is that of {former.cls.__module__}.{former.cls.__qualname__}")
    known = by_class.get(cls)
    if known is not None and known.name != name:
        raise ConfigError(f"{what}: it is registered as {known.name!r}; a class has one name")
    try:
        shape = shape_of(cls, encode, decode, unknown_fields)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None
    if former is not None:
        by_class.pop(former.cls, None)
        lookalikes.discard(former.cls)
    by_class[cls] = by_name[name] = Registered(name, cls, shape)
    if issubclass(cls, (str, int, float, bytes, list, dict)):
        lookalikes.add(cls)


def registered_values() -> dict[str, type]:
    """The classes that are registered in this process, by name."""
    return {name: registered.cls for name, registered in by_name.items()}


def _is_reloaded(former: type, cls: type) -> bool:
    same = (former.__module__, former.__qualname__) == (cls.__module__, cls.__qualname__)
    return same and "<locals>" not in cls.__qualname__
