"""The table of items: bounded memory, bounded life."""

from __future__ import annotations

import pytest

from coatcheck.take_once.rule import ANSWER_KEPT_MS
from coatcheck.take_once.table import ROW_OVERHEAD_BYTES, ItemsFull, ItemTable

NONCE = b"n" * 16


def key(at: int) -> bytes:
    return b"%032d" % at


def test_a_full_table_refuses_new_items_and_loses_none() -> None:
    table = ItemTable(max_bytes=3 * (ROW_OVERHEAD_BYTES + 10))
    for at in range(3):
        assert table.put(key(at), b"0123456789", 1000, b"", 0)
    with pytest.raises(ItemsFull):
        table.put(key(3), b"0123456789", 1000, b"", 0)
    assert [table.take(key(at), NONCE, 0) for at in range(4)] == [b"0123456789"] * 3 + [None]
    assert table.put(key(0), b"0123456789", 1000, NONCE, 0), "what is put back takes no more room"


def test_what_has_expired_makes_room_with_the_next_puts() -> None:
    table = ItemTable()
    for at in range(100):
        table.put(key(at), b"item", 1000, b"", 0)
    table.take(key(50), NONCE, 0)
    for at in range(100, 130):
        table.put(key(at), b"item", 1000, b"", 2000)
    assert len(table) == 30
    assert table.held_bytes == 30 * (ROW_OVERHEAD_BYTES + 4)


def test_the_content_of_a_taken_item_goes_when_its_taker_had_it_long_enough() -> None:
    table = ItemTable()
    table.put(key(1), b"secret", 60_000, b"", 0)
    assert table.take(key(1), NONCE, 0) == b"secret"
    assert table.take(key(1), NONCE, ANSWER_KEPT_MS - 1) == b"secret"
    assert table.take(key(1), NONCE, ANSWER_KEPT_MS) is None
    table.sweep(ANSWER_KEPT_MS, 10)
    assert table.held_bytes == ROW_OVERHEAD_BYTES
    assert not table.put(key(1), b"other", 60_000, b"", ANSWER_KEPT_MS), "the mark stays"


def test_a_key_that_is_used_again_after_its_life_is_counted_once() -> None:
    table = ItemTable()
    table.put(key(1), b"item", 10, b"", 0)
    table.put(key(1), b"item", 10, b"", 20)
    table.sweep(100, 10)
    assert (len(table), table.held_bytes) == (0, 0)
