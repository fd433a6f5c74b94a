"""The state of a small farm as a number: two paths that lead to the same state need be followed only once.

Generators cannot be copied, but they can be read: where each stands and what its variables are. Times count
relative to now, so that the same situation a second later is the same state.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from types import FunctionType, GeneratorType, MethodType
from typing import Any

import msgspec

from coatcheck.replication.cache import Copy
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.sessions.mapping import Session
from coatcheck.simulation.application import Attempt, Operation
from coatcheck.simulation.bare.runner import Collector, Runner, Task
from coatcheck.simulation.schedule import EPOCH_MS, Process
from coatcheck.tokens.sealed import SealedToken

PAST_S = -3.0
"""Moments longer ago than any lease are all the same, unless sessions time out."""
LONG_PAST_S = -10_000.0
"""Where they do: longer ago than any timeout."""
_STAMP = 10**11
"""Whole numbers from here on are Unix milliseconds."""
_PLAIN = (int, str, bytes, bool, Version)
_COPY = [name for name in Copy.__struct_fields__ if name not in ("record", "marks")]


class Fingerprint:
    """Turns one state into a number; use a new one for each state. Numbers compare within one process only."""

    def __init__(self, now: float, past_s: float = PAST_S) -> None:
        self._now = now
        self._past_s = past_s
        self._open: set[int] = set()

    def digest(self, parts: Any) -> int:
        return hash(self.freeze(parts))

    def freeze(self, value: Any) -> Any:
        """A hashable stand-in."""
        kind = type(value)
        if kind is float:
            return value if value in (float("inf"), 0.0) else round(max(value - self._now, self._past_s), 3)
        if kind is int and value > _STAMP:
            return ("ms", max(round((value - EPOCH_MS) / 1000 - self._now, 2), self._past_s))
        if value is None or kind in _PLAIN:
            return value
        if kind is Entry:
            return (value.version, value.history, value.closed, value.provisional, value.payload)
        if id(value) in self._open:
            return "again"
        self._open.add(id(value))
        try:
            return self._compound(value, kind)
        finally:
            self._open.discard(id(value))

    def _compound(self, value: Any, kind: type) -> Any:
        freeze = self.freeze
        if kind is tuple or kind is list or kind is SealedToken or kind is deque:
            return tuple([freeze(item) for item in value])
        if kind is dict:
            return frozenset([(freeze(key), freeze(item)) for key, item in value.items()])
        if kind in (set, frozenset):
            return frozenset([freeze(item) for item in value])
        if isinstance(value, Enum):
            return value.name
        if kind is Copy:
            return tuple([freeze(getattr(value, name)) for name in _COPY])
        if isinstance(value, msgspec.Struct):
            return (kind.__name__, *[freeze(getattr(value, name)) for name in value.__struct_fields__])
        return self._object(value, kind)

    def _object(self, value: Any, kind: type) -> Any:
        freeze = self.freeze
        if kind is GeneratorType:
            return self._generator(value)
        if isinstance(value, Process):
            return value.name
        if kind is Session:
            request = value._request
            own = [freeze(item) for name, item in sorted(vars(request).items()) if name != "copy_held"]
            held = request.copy_held
            return (freeze(dict(dict.items(value))), tuple(own), held.version if held is not None else None)
        if kind is Collector:
            return (freeze(value.effect), freeze(value.replies), value.missing, value.waiting)
        if kind is Task:
            return (freeze(value.flow), freeze(value.child), freeze(value.context), value.ended)
        if kind is Attempt:
            return (value.number, value.answered)
        if kind is Operation:
            return (value.name, tuple(value.versions))
        if kind is MethodType:
            owner = value.__self__
            return (value.__func__.__name__, kind_name(owner) if isinstance(owner, Runner) else freeze(owner))
        if kind is FunctionType:
            return value.__qualname__
        return kind_name(value)

    def _generator(self, flow: Any) -> Any:
        frames = []
        while type(flow) is GeneratorType and flow.gi_frame is not None:
            frame = flow.gi_frame
            variables = [(name, self.freeze(item)) for name, item in frame.f_locals.items() if name != "self"]
            frames.append((frame.f_code.co_name, frame.f_lasti, tuple(variables)))
            flow = flow.gi_yieldfrom
        return tuple(frames)


def kind_name(value: Any) -> str:
    return type(value).__name__
