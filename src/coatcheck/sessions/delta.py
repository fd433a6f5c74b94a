"""What a request did to the session, and how two such changes become one (protocol section 5).

A change is seen by comparing the mapping before and after, key by key, so changes inside nested values
are noticed without any co-operation of the app.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from coatcheck.errors import ConflictError
from coatcheck.sessions.policy import Merge
from coatcheck.sessions.value_writing import encoded_value
from coatcheck.sessions.values import Kept


class _Absent:
    def __repr__(self) -> str:
        return "ABSENT"

    def __bool__(self) -> bool:
        return False


ABSENT: Final = _Absent()
"""Stands for "this key does not exist" in a merge function."""


class Delta(msgspec.Struct, frozen=True):
    """Keys set (to their new values) and keys deleted, both at the top level of the mapping."""

    changed: dict[str, Any]
    deleted: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.changed or self.deleted)

    def __repr__(self) -> str:
        return f"<Delta: {len(self.changed)} keys set, {len(self.deleted)} deleted>"

    def touches(self, key: str) -> bool:
        return key in self.changed or key in self.deleted


def diff(base: dict[str, Any], mine: dict[str, Any], kept: Kept | None = None) -> Delta:
    """What leads from ``base`` to ``mine``. ``kept``: what is stored beside the values of both."""
    changed = {key: value for key, value in mine.items() if key not in base or not _same(base[key], value, kept)}
    return Delta(changed, frozenset(key for key in base if key not in mine))


def _same(one: Any, other: Any, kept: Kept | None) -> bool:
    # Equal is not enough: 1 == 1.0 == True, and the stored value must be what the app wrote. Nor is it needed: a NaN
    # that nobody touched is the same, and so is a set in another order.
    if one is other or one is ABSENT or other is ABSENT:
        return one is other
    return encoded_value(one, kept) == encoded_value(other, kept)


def merge(
    base: dict[str, Any],
    theirs: dict[str, Any],
    mine: dict[str, Any],
    policy: str | Merge,
    kept: Kept | None = None,
) -> dict[str, Any]:
    """``theirs`` with what ``mine`` changed since ``base``.

    Disjoint keys merge and deletes stay deleted. Where both changed one key the policy decides:
    ``last_write`` (mine), ``reject`` (raises :class:`ConflictError`) or a merge function. Equal values conflict
    too: two requests that both counted from 5 to 6 have counted once. Not with ``overtaken``, which is for a
    request that must not undo what came after it.
    """
    delta = diff(base, mine, kept)
    other = diff(base, theirs, kept)
    merged = dict(theirs)
    for key in [*delta.changed, *delta.deleted]:
        own = delta.changed.get(key, ABSENT)
        if other.touches(key) and policy != "last_write":
            rival = other.changed.get(key, ABSENT)
            if not (own is ABSENT and rival is ABSENT) and not (policy == "overtaken" and _same(own, rival, kept)):
                if isinstance(policy, str):
                    raise ConflictError(f"two requests changed {key!r:.80} of one session")
                own = policy(key, base.get(key, ABSENT), rival, own)
        if own is ABSENT:
            merged.pop(key, None)
        else:
            merged[key] = own
    return merged
