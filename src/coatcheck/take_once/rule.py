"""The take-once rule: what a store does with ``put``, ``take`` and ``purge`` of one item.

It stands beside the put rule and shares nothing with it: an item has no version and no owner, and a store that holds
nothing refuses a take where it would accept a tombstone. The rule was searched: a tombstone at the first store that can
be reached, the next store if the first is silent, and a majority of all stores each let two takers win.

* **One store decides**: the one where the item was put, and no other is asked in its place.
* **Nothing stored is refused.** A store that was restarted empty cannot know what was taken.
* **What was taken stays marked** as long as the item would have lived, so that nothing is put under its key again.
* **A lost answer may be asked for again** with the same nonce, for :data:`ANSWER_KEPT_MS`; then the content is gone.

The tables in memory and SQLite run it; Redis and Valkey run scripts that the contract suite holds to it.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 16
MAX_ITEM_BYTES: Final = 16 * 1024
"""A TLS session with a client certificate has about 600 bytes; one with a large certificate a few thousand."""
MIN_LIFE_MS: Final = 1
MAX_LIFE_MS: Final = 7 * 24 * 3600 * 1000
"""No item lives longer: a TLS 1.3 ticket may not (RFC 8446 section 4.6.1), and a hand-off ticket lives for seconds."""
ANSWER_KEPT_MS: Final = 5_000
"""So long the content of a taken item is kept for its taker, should the answer be lost on its way."""
NEVER_STORED: Final = b""
"""What a put is for unless it puts a taken item back."""
PURGED_BY: Final = bytes(NONCE_BYTES)
"""The taker that nobody is: its item can neither be taken nor put back."""


class ItemRow(msgspec.Struct, gc=False):
    """What a store keeps of an item; times are milliseconds on the store's clock."""

    item: bytes
    expires_at_ms: int
    taker: bytes = b""
    """Whose nonce took it; empty: it can be taken."""
    kept_until_ms: int = 0


class Taking(Enum):
    """What a take does to the row."""

    REFUSED = "refused"
    TAKES = "takes"
    ANSWERS_AGAIN = "answers again"


def may_put(stored: ItemRow | None, after: bytes) -> bool:
    """Whether an item may be put: on nothing, or back where ``after`` is the nonce that took it."""
    if stored is None:
        return after == NEVER_STORED
    return after not in (NEVER_STORED, PURGED_BY) and stored.taker == after


def judge_take(stored: ItemRow | None, nonce: bytes, now_ms: int) -> Taking:
    """What a take with ``nonce`` comes to; ``stored`` is ``None`` if there is nothing, or its life is over."""
    if stored is None:
        return Taking.REFUSED
    if not stored.taker:
        return Taking.TAKES
    is_repeat = stored.taker == nonce and now_ms < stored.kept_until_ms
    return Taking.ANSWERS_AGAIN if is_repeat else Taking.REFUSED


def taken(stored: ItemRow, nonce: bytes, now_ms: int) -> ItemRow:
    """The row after a take."""
    return ItemRow(stored.item, stored.expires_at_ms, nonce, now_ms + ANSWER_KEPT_MS)


def purged(stored: ItemRow) -> ItemRow:
    """The row after a purge: a mark, without the content."""
    return ItemRow(b"", stored.expires_at_ms, PURGED_BY)


NOTHING: Final = b""
"""Instead of what a value is proposed that replaces none."""


def decides(agreed: bytes | None, instead_of: bytes) -> bool:
    """Whether a proposal becomes what is agreed on: where nothing is yet, or instead of just what it names."""
    return agreed is None or (instead_of != NOTHING and agreed == instead_of)


def check_agreement(key: bytes, proposal: bytes, life_ms: int) -> None:
    """Raise ``ValueError`` unless such a value may be proposed."""
    check_put(key, proposal, life_ms, NEVER_STORED)


def check_key(key: bytes) -> None:
    """Raise ``ValueError`` unless ``key`` is an item's key."""
    if len(key) != KEY_BYTES:
        raise ValueError(f"an item's key has {KEY_BYTES} bytes, not {len(key)}")


def check_nonce(nonce: bytes) -> None:
    """Raise ``ValueError`` unless ``nonce`` is one that a taker may show."""
    if len(nonce) != NONCE_BYTES or nonce == PURGED_BY:
        raise ValueError(f"a taker's nonce is {NONCE_BYTES} random bytes")


def check_put(key: bytes, item: bytes, life_ms: int, after: bytes) -> None:
    """Raise ``ValueError`` unless such an item may be put at all."""
    check_key(key)
    if after != NEVER_STORED:
        check_nonce(after)
    if not 1 <= len(item) <= MAX_ITEM_BYTES:
        raise ValueError(f"an item has 1 to {MAX_ITEM_BYTES} bytes, not {len(item)}")
    if not MIN_LIFE_MS <= life_ms <= MAX_LIFE_MS:
        raise ValueError(f"an item lives {MIN_LIFE_MS} to {MAX_LIFE_MS} ms, not {life_ms}")
