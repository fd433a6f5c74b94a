"""The state of a small farm as a number: two paths that lead to the same state need be followed only once.

Generators cannot be copied, but they can be read: where each stands and what its variables are. Times count
relative to now, so that the same situation a second later is the same state.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable
from enum import Enum
from operator import attrgetter
from types import FunctionType, GeneratorType, MethodType
from typing import Any

import msgspec

from coatcheck.replication.cache import Copy
from coatcheck.replication.effects import Get, Put
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.replication.view import View
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.record import Record
from coatcheck.simulation.application import Attempt, Operation
from coatcheck.simulation.bare.runner import Collector, Runner, Task
from coatcheck.simulation.schedule import EPOCH_MS, Process
from coatcheck.tokens.chain import Chain, ChainLink
from coatcheck.tokens.sealed import SealedToken

PAST_S = -3.0
"""Moments longer ago than any lease are all the same, unless sessions time out."""
LONG_PAST_S = -10_000.0
"""Where they do: longer ago than any timeout."""
_STAMP = 10**11
"""Whole numbers from here on are Unix milliseconds."""
_AS_IT_IS = frozenset({str, bytes, bool, Version, type(None)})
_DATA = frozenset({Copy, View, Get, Put, SealedToken, Record, Chain, ChainLink})
"""Types whose values contain nothing but data: several flows have the same of them in hand."""
_COPY = [name for name in Copy.__struct_fields__ if name not in ("record", "marks")]


class Fingerprint:
    """Turns one state into a number; use a new one for each state. Numbers compare within one process only."""

    def __init__(self, now: float, past_s: float = PAST_S) -> None:
        self._now = now
        self._past_s = past_s
        self._open: set[int] = set()
        self._data: dict[int, Any] = {}
        """What was frozen of values that lead back to none of those that are open: by where they are."""

    def digest(self, parts: Any) -> int:
        return hash(self.freeze(parts))

    def freeze(self, value: Any) -> Any:
        """A hashable stand-in."""
        kind = type(value)
        if kind in _AS_IT_IS:
            return value
        if kind is int:
            if value > _STAMP:
                return ("ms", max(round((value - EPOCH_MS) / 1000 - self._now, 2), self._past_s))
            return value
        if kind is float:
            return value if value in (float("inf"), 0.0) else round(max(value - self._now, self._past_s), 3)
        if kind is Entry:
            return (value.version, value.history, value.closed, value.provisional, value.payload)
        place = id(value)
        if kind in _DATA:
            frozen = self._data.get(place)
            if frozen is None:
                frozen = self._data[place] = self._way(kind)(self, value)
            return frozen
        if place in self._open:
            return "again"
        self._open.add(place)
        frozen = self._way(kind)(self, value)
        self._open.discard(place)
        return frozen

    @staticmethod
    def _way(kind: type) -> _Way:
        way = _WAYS.get(kind)
        if way is None:
            way = _WAYS[kind] = _way(kind)
        return way

    def _items(self, values: Iterable[Any]) -> list[Any]:
        """Most values are plain: they cost no call."""
        freeze = self.freeze
        return [value if type(value) in _AS_IT_IS else freeze(value) for value in values]

    def _sequence(self, value: Iterable[Any]) -> Any:
        return tuple(self._items(value))

    def _set(self, value: Iterable[Any]) -> Any:
        return frozenset(self._items(value))

    def _dict(self, value: dict[Any, Any]) -> Any:
        return frozenset(zip(self._items(value), self._items(value.values()), strict=True))

    def _session(self, value: Session) -> Any:
        request = value._request
        own = self._items([item for name, item in sorted(vars(request).items()) if name != "copy_held"])
        held = request.copy_held
        return (self.freeze(dict(dict.items(value))), tuple(own), held.version if held is not None else None)

    def _collector(self, value: Collector) -> Any:
        return (self.freeze(value.effect), self.freeze(value.replies), value.missing, value.waiting)

    def _task(self, value: Task) -> Any:
        return (self.freeze(value.flow), self.freeze(value.child), self.freeze(value.context), value.ended)

    def _method(self, value: MethodType) -> Any:
        owner = value.__self__
        return (value.__func__.__name__, kind_name(owner) if isinstance(owner, Runner) else self.freeze(owner))

    def _generator(self, flow: Any) -> Any:
        frames = []
        while type(flow) is GeneratorType and flow.gi_frame is not None:
            frame = flow.gi_frame
            variables = {name: item for name, item in frame.f_locals.items() if name != "self"}
            frozen = tuple(zip(variables, self._items(variables.values()), strict=True))
            frames.append((frame.f_code.co_name, frame.f_lasti, frozen))
            flow = flow.gi_yieldfrom
        return tuple(frames)


_Way = Callable[[Fingerprint, Any], Any]
_WAYS: dict[type, _Way] = {
    tuple: Fingerprint._sequence,
    list: Fingerprint._sequence,
    SealedToken: Fingerprint._sequence,
    deque: Fingerprint._sequence,
    dict: Fingerprint._dict,
    set: Fingerprint._set,
    frozenset: Fingerprint._set,
    GeneratorType: Fingerprint._generator,
    Session: Fingerprint._session,
    Collector: Fingerprint._collector,
    Task: Fingerprint._task,
    Attempt: lambda self, value: (value.number, value.answered),
    Operation: lambda self, value: (value.name, tuple(value.versions)),
    MethodType: Fingerprint._method,
    FunctionType: lambda self, value: value.__qualname__,
}
"""How values of each type are frozen; of the types that are not here by themselves, what was found for the first."""


def _way(kind: type) -> _Way:
    if issubclass(kind, Enum):
        return lambda self, value: value.name
    if issubclass(kind, msgspec.Struct):
        return _fields(kind)
    if issubclass(kind, Process):
        return lambda self, value: value.name
    return lambda self, value: kind.__name__


def _fields(kind: type[msgspec.Struct]) -> _Way:
    name = kind.__name__
    fields = _COPY if kind is Copy else kind.__struct_fields__
    first = () if kind is Copy else (name,)
    if not fields:
        return lambda self, value: first
    if len(fields) == 1:
        only = attrgetter(fields[0])
        return lambda self, value: (*first, self.freeze(only(value)))
    read = attrgetter(*fields)
    return lambda self, value: (*first, *self._items(read(value)))


def kind_name(value: Any) -> str:
    return type(value).__name__
