"""Values that MessagePack has no word for: how a session carries them.

Data without such values is encoded by :mod:`coatcheck.sessions.record` alone. With them, each is a MessagePack
extension (docs/formats.md, section 4): a code of ours for the types of Python's library, and one code for all classes
that were registered (:mod:`coatcheck.sessions.value_names`), with the name in front. What is stored is made by
:mod:`coatcheck.sessions.value_writing` and read by :mod:`coatcheck.sessions.value_reading`. Nothing is ever imported,
or called, that a stored name asks for: a name that this process has not registered is kept as an
:class:`coatcheck.sessions.value_reading.UnknownValue` and written back as it came.
"""

from __future__ import annotations

import datetime
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from msgspec.msgpack import Ext

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


LEAVES: Final = frozenset({bool, float, bytes, type(None)})
"""Stored as they are, unlooked at."""
PLAIN: Final[frozenset[type]] = frozenset({str, int, float, bool, type(None), bytes})
"""Values that need no extension, and no look into them."""
IMMUTABLE: Final[frozenset[type]] = PLAIN | {
    UUID,
    Decimal,
    datetime.date,
    datetime.datetime,
    datetime.time,
    datetime.timedelta,
}
"""Whoever is handed one of these cannot change the session behind our back."""
HELD: Final[frozenset[type]] = IMMUTABLE | {list, dict, tuple, set, frozenset, bytearray, memoryview, Ext}
"""Kinds of values that every session holds."""
FROZEN: Final = frozenset({tuple, frozenset})
"""Of these it depends on what is in them."""


def is_immutable(value: Any) -> bool:
    """Whether nothing inside the value can be changed: a tuple or frozenset of which that holds for each item."""
    kind = type(value)
    if kind in FROZEN:
        return all(is_immutable(inner) for inner in value)
    return kind in IMMUTABLE


def all_kept(*tables: Kept | None) -> Kept | None:
    """What is stored beside the values of several mappings; ``None`` if all of them are plain."""
    found = [table for table in tables if table is not None]
    return {identity: kept for table in found for identity, kept in table.items()} if found else None


def name_of(kind: type) -> str:
    """A class as messages name it."""
    return kind.__name__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"[:160]
