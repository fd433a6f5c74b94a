"""Values that MessagePack has no word for: how a session carries them, and the classes that apps register by name.

Data without such values is encoded by :mod:`coatcheck.sessions.record` alone. With them, each is a MessagePack
extension (docs/formats.md, section 4): a code of ours for the types of Python's library, and one code for all classes
that were registered, with the name in front. Nothing is ever imported, or called, that a stored name asks for: a name
that this process has not registered is kept as an :class:`UnknownValue` and written back as it came.
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from enum import Enum
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext

from coatcheck.errors import ConfigError, SessionDataError
from coatcheck.sessions.shapes import Shape, shape_of

MAX_DEPTH: Final = 100
"""Of nested values; what is encoded must be decoded again, wherever the stack stands then."""
EXTENSION_DEPTH: Final = 4
"""So many levels are an extension within an extension: to read it takes as much of the stack."""

UUID_CODE: Final = 1
DATE_CODE: Final = 2
DATETIME_CODE: Final = 3
TIME_CODE: Final = 4
TIMEDELTA_CODE: Final = 5
DECIMAL_CODE: Final = 6
TUPLE_CODE: Final = 7
SET_CODE: Final = 8
FROZENSET_CODE: Final = 9
NAMED_CODE: Final = 10
CODES: Final = range(UUID_CODE, NAMED_CODE + 1)

FOLD: Final = "~"
"""Ends the text of a time that is the second of two alike, when clocks are set back (``fold=1``)."""

Kept = dict[int, tuple[Any, dict[str, Any]]]
"""By the identity of a value: the value itself, which so stays alive, and those of its stored fields that the class of
this process does not know. They are written back with it."""

_PLAIN_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_HELP: Final = "docs/values.md"


class UnknownValue:
    """A stored value whose name is not registered in this process, or that its class refuses. It is written back
    unchanged, and equals what was stored alike.

    ``name``: under which it was stored. ``problem``: why it is not an instance of its class.
    """

    __slots__ = ("_stored", "name", "problem")

    name: str
    problem: str

    def __init__(self, name: str, stored: bytes, problem: str = "") -> None:
        self.name = name
        self._stored = stored
        self.problem = problem or "not registered in this process"

    @property
    def payload(self) -> Any:
        """What is stored under the name, made anew at each call; of a class, usually a dict of its fields."""
        return Raising(opaque=True).payload_of(self._stored)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnknownValue) and self._stored == other._stored

    def __hash__(self) -> int:
        return hash(self._stored)

    def __repr__(self) -> str:
        return f"<UnknownValue {self.name!r} of {len(self._stored)} bytes: {self.problem}>"

    def __reduce__(self) -> tuple[Any, ...]:
        return UnknownValue, (self.name, self._stored, self.problem)

    def __getattr__(self, attribute: str) -> Any:
        if attribute.startswith("_") or attribute in ("name", "problem"):
            raise AttributeError(attribute)
        raise AttributeError(f"the session's value {self.name!r} has no {attribute!r} here: it is {self.problem}")


# -- registering ---------------------------------------------------------------------------------


class Registered(msgspec.Struct, frozen=True):
    """A class under its name."""

    name: str
    cls: type
    shape: Shape


_by_class: Final[dict[type, Registered]] = {}
_by_name: Final[dict[str, Registered]] = {}
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
    if cls in _LOWER or cls in _LEAVES or cls in (int, str, list, dict, UnknownValue, Ext):
        raise ConfigError(f"{what}: sessions hold it without being told; register a class of your own")
    former = _by_name.get(name)
    if former is not None and former.cls is not cls and not _is_reloaded(former.cls, cls):
        raise ConfigError(f"{what}: the name {name!r} is that of {former.cls.__module__}.{former.cls.__qualname__}")
    known = _by_class.get(cls)
    if known is not None and known.name != name:
        raise ConfigError(f"{what}: it is registered as {known.name!r}; a class has one name")
    try:
        shape = shape_of(cls, encode, decode, unknown_fields)
    except ValueError as error:
        raise ConfigError(f"{what}: {error}") from None
    if former is not None:
        _by_class.pop(former.cls, None)
        lookalikes.discard(former.cls)
    _by_class[cls] = _by_name[name] = Registered(name, cls, shape)
    if issubclass(cls, (str, int, float, bytes, list, dict)):
        lookalikes.add(cls)


def registered_values() -> dict[str, type]:
    """The classes that are registered in this process, by name."""
    return {name: registered.cls for name, registered in _by_name.items()}


def _is_reloaded(former: type, cls: type) -> bool:
    same = (former.__module__, former.__qualname__) == (cls.__module__, cls.__qualname__)
    return same and "<locals>" not in cls.__qualname__


# -- storing -------------------------------------------------------------------------------------


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
        if kind in _LEAVES:
            return value
        if kind is int:
            if not -(2**63) <= value < 2**64:
                raise _Refused("an integer beyond 64 bits; store it as text")
            return value
        registered = _by_class.get(kind)
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
            raise _Refused(f"{_name_of(type(value))} cannot be taken apart: {type(error).__name__}") from error
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
    elif kind not in _LEAVES:
        raise _Refused(f"a key of type {_name_of(kind)} would come back as another type; use text")


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


_LEAVES: Final = frozenset({bool, float, bytes, type(None)})
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
    name = _name_of(kind)
    if kind.__module__ == "builtins":
        return f"{name}: sessions hold no such values; store what it has as plain ones ({_HELP})"
    return (
        f"{name} is not registered and would come back as another type: call coatcheck.register_value("
        f"{kind.__name__:.80}, name=...) where it is defined, or store what it has as plain values ({_HELP})"
    )


def _name_of(kind: type) -> str:
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"[:160]


def _shown_path(path: list[str]) -> str:
    """From the key of the session inwards; of a long path, its beginning."""
    text = "".join(reversed(path))
    return f", at {text if len(text) <= 160 else text[:160] + '...'}" if text else ""


_encode: Final = msgspec.msgpack.Encoder(enc_hook=str.__str__).encode
"""Lowered values; of what the encoder does not know, only kinds of text are left (as keys of dicts)."""


# -- reading -------------------------------------------------------------------------------------


class Raising:
    """Makes of stored extensions the values that they stand for. One is used for one reading.

    ``kept`` has the fields that no class here knows. ``opaque``: registered classes are not made; each value of them is
    an :class:`UnknownValue`. Raises :class:`ValueError`, :class:`TypeError`, :class:`ArithmeticError`,
    :class:`RecursionError` and msgspec's errors for what nobody can have stored.
    """

    __slots__ = ("_decode", "_depth", "_opaque", "kept")

    def __init__(self, opaque: bool = False) -> None:
        self.kept: Kept = {}
        self._depth = 0
        self._opaque = opaque
        self._decode = msgspec.msgpack.Decoder(Any, ext_hook=self._raise).decode

    def mapping(self, data: bytes) -> dict[str, Any]:
        """A session's data."""
        found = self._decode(data)
        if not isinstance(found, dict) or not set(map(type, found)) <= {str}:
            raise ValueError("no mapping with keys of text")
        return found

    def payload_of(self, stored: bytes) -> Any:
        """What a named value holds, behind its name."""
        return self._parts(stored)[1]

    def _raise(self, code: int, payload: memoryview) -> Any:
        stored = bytes(payload)
        if code not in CODES:
            return Ext(code, stored)
        if self._depth > MAX_DEPTH // EXTENSION_DEPTH:
            raise ValueError("extensions are nested too deep")
        self._depth += 1
        try:
            return _RAISE[code](self, stored)
        finally:
            self._depth -= 1

    def items(self, stored: bytes) -> list[Any]:
        found = self._decode(stored)
        if not isinstance(found, list):
            raise ValueError("an extension that is no array")
        return found

    def members(self, stored: bytes) -> Iterable[Any]:
        members = self.items(stored)
        try:
            return frozenset(members)
        except TypeError:
            if self._opaque:
                raise
            # Their class was hashable when they were stored, and is not any more.
            return frozenset(Raising(opaque=True).items(stored))

    def named(self, stored: bytes) -> Any:
        name, payload = self._parts(stored)
        if self._opaque:
            return UnknownValue(name, stored)
        registered = _by_name.get(name)
        if registered is None:
            return UnknownValue(name, stored)
        shape = registered.shape
        try:
            value, unknown = shape.make(payload)
        except Exception as error:  # noqa: BLE001 - whatever the app's own class raises
            # Of errors, those of a call that does not fit say nothing of what is stored.
            words = f": {error}" if type(error) is TypeError else ""
            problem = f"refused by {_name_of(registered.cls)}, {type(error).__name__}{words}"
            return UnknownValue(name, stored, problem[:400])
        if unknown:
            self.kept[id(value)] = (value, unknown)
        return value

    def _parts(self, stored: bytes) -> tuple[str, Any]:
        parts = self.items(stored)
        if len(parts) != 2 or type(parts[0]) is not str:
            raise ValueError("no named value")
        return parts[0], parts[1]


def _raised_datetime(raising: Raising, stored: bytes) -> datetime.datetime:
    text = stored.decode("ascii")
    found = datetime.datetime.fromisoformat(text.removesuffix(FOLD))
    if found.tzinfo is not None:
        raise ValueError("a datetime with a zone, which has another form")
    return found.replace(fold=1) if text.endswith(FOLD) else found


def _raised_time(raising: Raising, stored: bytes) -> datetime.time:
    text = stored.decode("ascii")
    found = datetime.time.fromisoformat(text.removesuffix(FOLD))
    return found.replace(fold=1) if text.endswith(FOLD) else found


def _raised_timedelta(raising: Raising, stored: bytes) -> datetime.timedelta:
    days, seconds, microseconds = raising.items(stored)
    if not all(type(part) is int for part in (days, seconds, microseconds)):
        raise ValueError("a length of time that is no three integers")
    return datetime.timedelta(days, seconds, microseconds)


_RAISE: Final[Mapping[int, Callable[[Raising, bytes], Any]]] = {
    UUID_CODE: lambda raising, stored: UUID(bytes=stored),
    DATE_CODE: lambda raising, stored: datetime.date.fromisoformat(stored.decode("ascii")),
    DATETIME_CODE: _raised_datetime,
    TIME_CODE: _raised_time,
    TIMEDELTA_CODE: _raised_timedelta,
    DECIMAL_CODE: lambda raising, stored: Decimal(stored.decode("ascii")),
    TUPLE_CODE: lambda raising, stored: tuple(raising.items(stored)),
    SET_CODE: lambda raising, stored: set(raising.members(stored)),
    FROZENSET_CODE: lambda raising, stored: frozenset(raising.members(stored)),
    NAMED_CODE: Raising.named,
}


# -- what cannot be changed ----------------------------------------------------------------------

PLAIN: Final = frozenset({str, int, float, bool, type(None), bytes})
"""Values that need no extension, and no look into them."""
IMMUTABLE: Final = PLAIN | {
    UUID,
    Decimal,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
}
"""Whoever is handed one of these cannot change the session behind our back."""


FROZEN: Final = frozenset({tuple, frozenset})
"""Of these it depends on what is in them."""


def is_immutable(value: Any) -> bool:
    """Whether nothing inside the value can be changed: a tuple or frozenset of which that holds for each item."""
    kind = type(value)
    if kind in FROZEN:
        return all(is_immutable(inner) for inner in value)
    return kind in IMMUTABLE


def encoded_value(value: Any, kept: Kept | None = None) -> bytes:
    """The bytes of one value: equal for what comes back alike, and for nothing else. Raises
    :class:`SessionDataError`."""
    return _encode(Lowering(kept).one(value))


def all_kept(*tables: Kept | None) -> Kept | None:
    """What is stored beside the values of several mappings; ``None`` if all of them are plain."""
    found = [table for table in tables if table is not None]
    return {identity: kept for table in found for identity, kept in table.items()} if found else None
