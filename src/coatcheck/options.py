"""What a setting is: a typed field with its bounds and its sentence; and how one value is read and judged.

A group of settings is a struct whose fields are ``Annotated[TYPE, Option("Its sentence.")] = DEFAULT``: one
line each, for the file, the flag, the environment and Python alike. :func:`judge` in the struct's
``__post_init__`` refuses what is wrong wherever it is built.
"""

from __future__ import annotations

import difflib
import math
import re
import typing
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from coatcheck.duration import format_duration, parse_duration
from coatcheck.errors import ConfigError

LONGEST_S: Final = 3650 * 86400.0
"""Ten years: longer than any session, and far from what the stored format's times can hold."""

MAX_SHOWN: Final = 80
"""Characters of a refused value in its line."""

_WHOLE_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")
_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9_-]{1,64}")
_BOOLEANS: Final = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)


class Option(msgspec.Struct, frozen=True):
    """What is known about a setting beside its type and its default."""

    words: str
    """One sentence for ``--help`` and the reference table."""
    minimum: float | None = None
    maximum: float | None = None
    duration: bool = False
    """The value is a length of time; the option's name is the field's without ``_s``."""
    metavar: str = ""
    flag: str = ""
    """The flag, where it is not made from the name."""
    env: str = ""
    """The environment variable, where it is not made from the name."""


class Setting(msgspec.Struct, frozen=True):
    """One setting: a field of a struct of settings."""

    field: str
    kind: Any
    option: Option
    default: Any

    @property
    def key(self) -> str:
        """The name in a file; a duration carries its unit in the value, not in the name."""
        return self.field.removesuffix("_s") if self.option.duration else self.field

    @property
    def is_bool(self) -> bool:
        return self.kind is bool

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def default_text(self) -> str:
        """The default as one would write it."""
        if self.option.duration:
            return format_duration(self.default)
        if self.is_bool:
            return str(self.default).lower()
        return "" if self.default in ("", ()) else str(self.default)


@cache
def settings_of(group: type[msgspec.Struct]) -> tuple[Setting, ...]:
    """The settings of a struct, in its order; fields without an :class:`Option` are none."""
    hints = typing.get_type_hints(group, include_extras=True)
    found = []
    for field in msgspec.structs.fields(group):
        kind, *notes = get_args(hints[field.name]) or (hints[field.name],)
        if notes and isinstance(notes[0], Option):
            found.append(Setting(field.name, kind, notes[0], field.default))
    return tuple(found)


def judge(group: msgspec.Struct, prefix: str = "") -> None:
    """Refuse a struct with a wrong value; values given as text (``"30m"``) become what they mean.

    Raises:
        ConfigError: one line that names the field, after ``prefix``, and the mend.
    """
    for setting in settings_of(type(group)):
        value = getattr(group, setting.field)
        if value is not setting.default:
            msgspec.structs.force_setattr(group, setting.field, read_value(setting, value, prefix + setting.field))


def refuse_unknown(given: Iterable[str], known: Iterable[str], who: str) -> None:
    """Raises ConfigError for the first of the given names that is not known; ``who`` was given it."""
    names = list(known)
    for name in given:
        if name not in names:
            raise ConfigError(f"{shown(name)}: {who} has no setting of this name{nearest(name, names)}")


def nearest(name: str, known: Iterable[str], prefix: str = "") -> str:
    """The end of a line about an unknown name: which one was probably meant.

    ``prefix``: what all of them begin with, which makes no two alike.
    """
    close = difflib.get_close_matches(name.removeprefix(prefix), [one.removeprefix(prefix) for one in known], n=1)
    return f"; did you mean {prefix + close[0]!r}?" if close else "; see docs/operations.md for the list"


def read_value(setting: Setting, value: object, where: str) -> Any:
    """Read one value, as its own type or as text.

    Raises:
        ConfigError: wrong type or out of bounds; ``where`` begins the line.
    """
    try:
        parsed = _PARSERS[_kind(setting)](setting, value)
        _check_bounds(setting, parsed)
    except ValueError as error:
        # A list may hold URLs with passwords.
        got = "" if setting.is_list else f" (got {shown(value)!r})"
        raise ConfigError(f"{where}: {error}{got}") from None
    return parsed


def check_plain_name(field: str, value: object) -> None:
    """Raises ConfigError for what is no plain name of 1 to 64 characters."""
    if not isinstance(value, str) or not _PLAIN_NAME.fullmatch(value):
        raise ConfigError(f"{field}: 1 to 64 letters, digits, - or _ (got {shown(value)!r})")


def shown(value: object) -> str:
    """A value in text, so that -1 is the same in a line, written as a number or as text."""
    text = str(value) if isinstance(value, str | int | float) and not _is_huge(value) else type(value).__name__
    return text if len(text) <= MAX_SHOWN else text[:MAX_SHOWN] + "..."


def _is_huge(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() > 1024


def _kind(setting: Setting) -> str:
    if setting.option.duration:
        return "duration"
    if int in get_args(setting.kind):
        return "number_or_word"
    if setting.choices:
        return "choice"
    return "list" if setting.is_list else setting.kind.__name__


def _parse_int(setting: Setting, value: object) -> int:
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("write a whole number")


def _parse_float(setting: Setting, value: object) -> float:
    try:
        number = float(value) if isinstance(value, str | int | float) and not isinstance(value, bool) else None
    except (ValueError, OverflowError):
        number = None
    if number is None or not math.isfinite(number):
        raise ValueError("write a number")
    return number


def _parse_bool(setting: Setting, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.strip().lower() in _BOOLEANS:
        return _BOOLEANS[value.strip().lower()]
    raise ValueError("write true or false")


def _parse_str(setting: Setting, value: object) -> str:
    if not isinstance(value, str) or any(ord(character) < 32 for character in value):
        raise ValueError("write a string without control characters")
    return value


def _parse_choice(setting: Setting, value: object) -> str:
    if not isinstance(value, str) or value not in setting.choices:
        raise ValueError("choose one of " + ", ".join(setting.choices))
    return value


def _parse_number_or_word(setting: Setting, value: object) -> int | str:
    """A whole number, or one of the words of the type's ``Literal``."""
    words = [word for part in get_args(setting.kind) if get_origin(part) is Literal for word in get_args(part)]
    if isinstance(value, str) and value in words:
        return value
    try:
        return _parse_int(setting, value)
    except ValueError:
        raise ValueError("write a whole number or " + " or ".join(f'"{word}"' for word in words)) from None


def _parse_list(setting: Setting, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError("write a list of strings")
    return tuple(value)


_PARSERS: Final[Mapping[str, Callable[[Setting, object], Any]]] = {
    "duration": lambda setting, value: parse_duration(value),
    "int": _parse_int,
    "float": _parse_float,
    "bool": _parse_bool,
    "str": _parse_str,
    "choice": _parse_choice,
    "number_or_word": _parse_number_or_word,
    "list": _parse_list,
}


def _check_bounds(setting: Setting, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    write = format_duration if setting.option.duration else str
    minimum, maximum = setting.option.minimum, setting.option.maximum
    if minimum is not None and value < minimum:
        raise ValueError(f"must be at least {write(minimum)}")
    if maximum is not None and value > maximum:
        raise ValueError(f"must be at most {write(maximum)}")
