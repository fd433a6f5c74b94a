"""Values of sessions as they were, made of what is stored."""

from __future__ import annotations

import datetime
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import msgspec
from msgspec.msgpack import Ext

from coatcheck.sessions.value_names import by_name, held
from coatcheck.sessions.values import (
    CODES,
    DATE_CODE,
    DATETIME_CODE,
    DECIMAL_CODE,
    EXTENSION_DEPTH,
    FOLD,
    FROZENSET_CODE,
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


held.add(UnknownValue)


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
        registered = by_name.get(name)
        if registered is None:
            return UnknownValue(name, stored)
        shape = registered.shape
        try:
            value, unknown = shape.make(payload)
        except Exception as error:  # noqa: BLE001 - whatever the app's own class raises
            # Of errors, those of a call that does not fit say nothing of what is stored.
            words = f": {error}" if type(error) is TypeError else ""
            problem = f"refused by {name_of(registered.cls)}, {type(error).__name__}{words}"
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
