"""What is stored of a session's values: each made into what MessagePack can write, or refused."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext

from coatcheck.errors import SessionDataError
from coatcheck.sessions.shapes import Shape
from coatcheck.sessions.value_names import Registered, by_class
from coatcheck.sessions.value_reading import UnknownValue
from coatcheck.sessions.values import (
    CODES,
    DATE_CODE,
    DATETIME_CODE,
    DECIMAL_CODE,
    EXTENSION_DEPTH,
    FOLD,
    FROZENSET_CODE,
    LEAVES,
    MAX_DEPTH,
    NAMED_CODE,
    SET_CODE,
    TIME_CODE,
    TIMEDELTA_CODE,
    TUPLE_CODE,
    UUID_CODE,
    Kept,
    name_of,
)

_HELP: Final = "docs/values.md"


class _Refused(Exception):
    """A value that cannot be stored; ``path``: where, from within outwards."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.path: list[str] = []


class _TooDeep(_Refused):
    def __init__(self) -> None:
        super().__init__(f"values are nested more than {MAX_DEPTH} deep; an extension counts as {EXTENSION_DEPTH}")


class Lowering:
    """Makes of values what MessagePack can write; raises :class:`SessionDataError` for what would not come back.

    What has nothing in it to change is returned as it is, the very object.
    """

    __slots__ = ("_kept",)

    def __init__(self, kept: Kept | None = None) -> None:
        self._kept = kept or {}

    def mapping(self, data: dict[str, Any]) -> dict[str, Any]:
        """A session's data, whose keys are text."""
        lowered = {}
        changed = False
        for key, value in dict.items(data):
            if not isinstance(key, str):
                raise SessionDataError(f"session keys must be strings, not {type(key).__name__}: {key!r:.80}")
            try:
                _check_text(key)
            except _Refused as refused:
                raise SessionDataError(f"the session cannot be stored: a key {key!r:.80}: {refused}") from None
            try:
                one = lowered[key] = self._lower(value, 0)
            except _Refused as refused:
                where = f"value of {key!r:.80}{_shown_path(refused.path)}"
                raise SessionDataError(f"the session cannot be stored: {where}: {refused}") from None
            changed = changed or one is not value
        return lowered if changed else data

    def one(self, value: Any) -> Any:
        """A single value. Raises :class:`SessionDataError`."""
        try:
            return self._lower(value, 0)
        except _Refused as refused:
            raise SessionDataError(f"the value cannot be stored: {refused}") from None

    def _lower(self, value: Any, depth: int) -> Any:
        kind = type(value)
        if kind is str:
            _check_text(value)
            return value
        if kind in LEAVES:
            return value
        if kind is int:
            if not -(2**63) <= value < 2**64:
                raise _Refused("an integer beyond 64 bits; store it as text")
            return value
        registered = by_class.get(kind)
        if registered is not None:
            return self._named(registered, value, depth)
        lower = _LOWER.get(kind) or _lower_of_base(kind)
        if lower is None:
            raise _Refused(_advice(kind))
        return lower(self, value, depth)

    def _named(self, registered: Registered, value: Any, depth: int) -> Ext:
        shape = registered.shape
        try:
            lowered = self._fields(shape, value, shape.take(value), depth)
        except _TooDeep:
            raise
        except _Refused:
            if shape.take_plainly is None:
                raise
            lowered = self._fields(shape, value, shape.take_plainly(value), depth)
        except (SessionDataError, RecursionError):
            raise
        except Exception as error:
            raise _Refused(f"{name_of(type(value))} cannot be taken apart: {type(error).__name__}") from error
        return Ext(NAMED_CODE, _encode([registered.name, lowered]))

    def _fields(self, shape: Shape, value: Any, payload: Any, depth: int) -> Any:
        """What is stored of an instance; fields in the order of their names, whatever order a version gives them."""
        if not shape.has_fields or type(payload) is not dict:
            return self._lower(payload, depth + EXTENSION_DEPTH)
        known_elsewhere = self._kept.get(id(value))
        if known_elsewhere is not None and known_elsewhere[0] is value:
            payload = known_elsewhere[1] | payload
        lowered = {}
        inside = _deeper(depth, EXTENSION_DEPTH)
        for field in sorted(payload):
            try:
                lowered[field] = self._lower(payload[field], inside)
            except _Refused as refused:
                refused.path.append(f".{field}")
                raise
        return lowered

    def list_(self, value: list[Any], depth: int) -> list[Any]:
        lowered = self._items(value, _deeper(depth))
        return value if all(map(_is, lowered, value)) else lowered

    def _items(self, value: Iterable[Any], inside: int) -> list[Any]:
        lowered = []
        for index, inner in enumerate(value):
            try:
                lowered.append(self._lower(inner, inside))
            except _Refused as refused:
                refused.path.append(f"[{index}]")
                raise
        return lowered

    def dict_(self, value: dict[Any, Any], depth: int) -> dict[Any, Any]:
        lowered = {}
        changed = False
        inside = _deeper(depth)
        for key, inner in value.items():
            try:
                _check_key(key)
                one = lowered[key] = self._lower(inner, inside)
            except _Refused as refused:
                refused.path.append(f"[{key!r:.80}]")
                raise
            changed = changed or one is not inner
        return lowered if changed else value

    def tuple_(self, value: tuple[Any, ...], depth: int) -> Ext:
        return Ext(TUPLE_CODE, _encode(self._items(value, _deeper(depth, EXTENSION_DEPTH))))

    def set_(self, value: Iterable[Any], depth: int) -> Ext:
        return Ext(SET_CODE, self._members(value, depth))

    def frozenset_(self, value: Iterable[Any], depth: int) -> Ext:
        return Ext(FROZENSET_CODE, self._members(value, depth))

    def _members(self, value: Iterable[Any], depth: int) -> bytes:
        """In the order of their bytes: equal sets are equal bytes, in every process."""
        inside = _deeper(depth, EXTENSION_DEPTH)
        members = sorted(_encode(self._lower(inner, inside)) for inner in value)
        return _encode([msgspec.Raw(member) for member in members])


def _deeper(depth: int, levels: int = 1) -> int:
    """How deep a value within a container at this depth is."""
    if depth + levels > MAX_DEPTH:
        raise _TooDeep
    return depth + levels


def _is(one: Any, other: Any) -> bool:
    return one is other


def _check_text(value: str) -> None:
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError as error:
            raise _Refused(f"text that UTF-8 cannot write: {error.reason}") from None


def _check_key(key: Any) -> None:
    """What is a key of a dict within a session comes back as it was, or is refused."""
    kind = type(key)
    if isinstance(key, str):
        _check_text(str.__str__(key))
    elif kind is int or (isinstance(key, int) and isinstance(key, Enum)):
        if not -(2**63) <= key < 2**64:
            raise _Refused("a key that is an integer beyond 64 bits")
    elif kind is tuple:
        for part in key:
            _check_key(part)
    elif isinstance(key, datetime.datetime) and key.tzinfo is not None:
        _aware(key)
    elif kind not in LEAVES:
        raise _Refused(f"a key of type {name_of(kind)} would come back as another type; use text")


def _lower_of_base(kind: type) -> Callable[[Lowering, Any, int], Any] | None:
    """Kinds of text, lists, dicts, dates and so on are stored as what they are kinds of."""
    if issubclass(kind, Enum):
        return _enum_value if issubclass(kind, (str, int)) else None
    return next((_LOWER[base] for base in kind.__mro__ if base in _LOWER), None)


def _plain_text(lowering: Lowering, value: Any, depth: int) -> str:
    text = str.__str__(value)
    _check_text(text)
    return text


def _enum_value(lowering: Lowering, value: Any, depth: int) -> Any:
    return lowering._lower(value.value, depth)


def _bytes(lowering: Lowering, value: Any, depth: int) -> bytes:
    return bytes(value)


def _uuid(lowering: Lowering, value: UUID, depth: int) -> Ext:
    return Ext(UUID_CODE, value.bytes)


def _date(lowering: Lowering, value: datetime.date, depth: int) -> Ext:
    return Ext(DATE_CODE, datetime.date.isoformat(value).encode())


def _datetime(lowering: Lowering, value: datetime.datetime, depth: int) -> Ext | datetime.datetime:
    if value.tzinfo is not None:
        return _aware(value)
    text = datetime.datetime.isoformat(value)
    return Ext(DATETIME_CODE, (text + FOLD * value.fold).encode())


def _aware(value: datetime.datetime) -> datetime.datetime:
    """MessagePack has the instant itself, in UTC."""
    if value.utcoffset() is None:
        raise _Refused("a datetime whose zone does not know its offset; use one of datetime.timezone or zoneinfo")
    try:
        value.astimezone(datetime.UTC)
    except OverflowError:
        raise _Refused("a datetime that is beyond the years 1 to 9999 in UTC") from None
    return value


def _time(lowering: Lowering, value: datetime.time, depth: int) -> Ext:
    if value.tzinfo is not None and type(value.tzinfo) is not datetime.timezone:
        raise _Refused("a time with a zone that needs a date; store a datetime, or the time without its zone")
    return Ext(TIME_CODE, (datetime.time.isoformat(value) + FOLD * value.fold).encode())


def _timedelta(lowering: Lowering, value: datetime.timedelta, depth: int) -> Ext:
    return Ext(TIMEDELTA_CODE, _encode([value.days, value.seconds, value.microseconds]))


def _decimal(lowering: Lowering, value: Decimal, depth: int) -> Ext:
    return Ext(DECIMAL_CODE, Decimal.__str__(value).encode())


def _ext(lowering: Lowering, value: Ext, depth: int) -> Ext:
    """Of a release after this one, which has more codes: written back as it came."""
    if value.code in CODES:
        raise _Refused(f"a MessagePack extension of code {value.code}, which is coatcheck's own; use another code")
    return value


def _unknown(lowering: Lowering, value: UnknownValue, depth: int) -> Ext:
    return Ext(NAMED_CODE, value._stored)


_LOWER: Final[Mapping[type, Callable[[Lowering, Any, int], Any]]] = {
    str: _plain_text,
    list: Lowering.list_,
    dict: Lowering.dict_,
    tuple: Lowering.tuple_,
    set: Lowering.set_,
    frozenset: Lowering.frozenset_,
    UUID: _uuid,
    datetime.datetime: _datetime,
    datetime.date: _date,
    datetime.time: _time,
    datetime.timedelta: _timedelta,
    Decimal: _decimal,
    bytearray: _bytes,
    memoryview: _bytes,
    Ext: _ext,
    UnknownValue: _unknown,
}


def _advice(kind: type) -> str:
    name = name_of(kind)
    if kind.__module__ == "builtins":
        return f"{name}: sessions hold no such values; store what it has as plain ones ({_HELP})"
    return (
        f"{name} is not registered and would come back as another type: call coatcheck.register_value("
        f"{kind.__name__:.80}, name=...) where it is defined, or store what it has as plain values ({_HELP})"
    )


def _shown_path(path: list[str]) -> str:
    """From the key of the session inwards; of a long path, its beginning."""
    text = "".join(reversed(path))
    return f", at {text if len(text) <= 160 else text[:160] + '...'}" if text else ""


_encode: Final = msgspec.msgpack.Encoder(enc_hook=str.__str__).encode
"""Lowered values; of what the encoder does not know, only kinds of text are left (as keys of dicts)."""


def encoded_value(value: Any, kept: Kept | None = None) -> bytes:
    """The bytes of one value: equal for what comes back alike, and for nothing else. Raises
    :class:`SessionDataError`."""
    return _encode(Lowering(kept).one(value))
