"""What a session server leaves to its successor: whole, sealed, of the last run, and without what may be taken once."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.session_server.handover import (
    Clocks,
    HandoverRefused,
    Stamp,
    handover_box,
    take_handover,
    write_handover,
)
from coatcheck.session_server.server import SessionServer
from coatcheck.session_server.table import EntryTable
from coatcheck.tokens.keyring import KeyRing

SECRETS = (bytes(range(32)), bytes(range(1, 33)))
BOX = handover_box(SECRETS, 0, "farm")
ITEM_KEY = b"i" * 32
WRITTEN_AT_MS = 1_700_000_000_000


def clocks(passed_ms: int = 0, late: bool = False) -> Clocks:
    return Clocks(lambda: 5_000, lambda: WRITTEN_AT_MS + passed_ms, lambda: late)


def new_table(max_bytes: int = 1 << 30) -> EntryTable:
    return EntryTable(lambda server_id, message: None, max_bytes)


def entry(epoch: int, *, closed: bool = False, payload: bytes = b"sealed payload") -> bytes:
    version = Version(epoch, b"AAA-0001", 0)
    return Entry(version, (version,), closed, 1, payload).encode()


def key(at: int) -> bytes:
    return b"%016d" % at


def written(path: Path, table: EntryTable, run: str = "run-1") -> int:
    return write_handover(path, Stamp(run, "session-1", WRITTEN_AT_MS), table.hand_over(0), BOX)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "session-1.handover"


def test_everything_comes_back_with_the_life_that_is_left(path: Path) -> None:
    old, new = new_table(), new_table()
    for at in range(3000):
        old.put(key(at), b"", 60_000 + at, entry(1, closed=at % 3 == 0, payload=b"p" * 1000), 0)
    assert written(path, old) == 3000
    assert path.stat().st_mode & 0o777 == 0o600
    assert take_handover(path, "run-1", new, BOX, clocks(passed_ms=61_000)) == 3000 - 1001
    assert not path.exists()
    assert list(path.parent.iterdir()) == []
    assert new.get(key(1000), 5_000) is None, "the time that passed counts"
    for at in range(1001, 3000):
        assert new.get(key(at), 5_000) == (entry(1, closed=at % 3 == 0, payload=b"p" * 1000), at - 1000)
    assert (new.entries, new.tombstones) == (1999, 666)


def test_a_clock_that_went_back_lengthens_no_life(path: Path) -> None:
    old, new = new_table(), new_table()
    old.put(key(1), b"", 60_000, entry(1), 0)
    written(path, old)
    assert take_handover(path, "run-1", new, BOX, clocks(passed_ms=-3_600_000)) == 1
    assert new.get(key(1), 5_000) == (entry(1), 60_000)


def test_what_may_be_taken_once_is_in_no_file(path: Path) -> None:
    async def story() -> None:
        old, new = (SessionServer("session-1") for _ in range(2))
        old._state.table.put(key(1), b"", 60_000, entry(1), old._state.now_ms())
        assert old._state.items.put(ITEM_KEY, entry(1), 60_000, b"", old._state.now_ms())
        assert await old.hand_over(path, "run-1", BOX) == 1
        assert await new.take_over(path, "run-1", BOX, 60) == 1
        assert new._state.table.get(key(1), new._state.now_ms()) is not None
        assert new._state.table.get(ITEM_KEY[:16], new._state.now_ms()) is None
        assert new._state.items.take(ITEM_KEY, b"n" * 16, new._state.now_ms()) is None

    asyncio.run(story())


def test_a_file_of_another_run_is_refused_and_gone(path: Path) -> None:
    old, new = new_table(), new_table()
    old.put(key(1), b"", 60_000, entry(1), 0)
    written(path, old, run="run-1")
    with pytest.raises(HandoverRefused, match="farm's last run"):
        take_handover(path, "run-2", new, BOX, clocks())
    assert not path.exists()
    assert new.entries == 0


def test_any_cut_or_changed_byte_is_refused_and_nothing_is_kept(path: Path) -> None:
    old = new_table()
    for at in range(1):
        old.put(key(at), b"", 60_000, entry(1), 0)
    written(path, old)
    whole = path.read_bytes()
    damaged = [whole[:size] for size in range(len(whole))]
    damaged += [whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :] for at in range(len(whole))]
    damaged += [whole + b"x", b"", b"\xff" * 100]
    for bad in damaged:
        path.write_bytes(bad)
        new = new_table()
        with pytest.raises(HandoverRefused):
            take_handover(path, "run-1", new, BOX, clocks())
        assert new.entries == 0
        assert not path.exists()


def test_blocks_cannot_be_moved_nor_come_from_another_server(path: Path) -> None:
    old = new_table()
    for at in range(3):
        old.put(key(at), b"", 60_000, entry(1, payload=b"p" * 700_000), 0)
    written(path, old)
    whole = path.read_bytes()
    blocks, at = [], whole.index(b"\n") + 1
    while at < len(whole):
        size = 4 + int.from_bytes(whole[at : at + 4], "big")
        blocks.append(whole[at : at + size])
        at += size
    magic = whole[: whole.index(b"\n") + 1]
    assert len(blocks) == 4
    for order in ((0, 2, 1, 3), (0, 1, 3), (0, 1, 1, 2, 3), (1, 2, 3)):
        path.write_bytes(magic + b"".join(blocks[at] for at in order))
        with pytest.raises(HandoverRefused):
            take_handover(path, "run-1", new_table(), BOX, clocks())
    write_handover(path, Stamp("run-1", "session-2", WRITTEN_AT_MS), old.hand_over(0), BOX)
    other = path.read_bytes()
    path.write_bytes(magic + blocks[0] + other[len(magic) + len(blocks[0]) :])
    with pytest.raises(HandoverRefused, match="not written by this farm"):
        take_handover(path, "run-1", new_table(), BOX, clocks())


def test_reading_that_takes_too_long_keeps_nothing(path: Path) -> None:
    old, new = new_table(), new_table()
    old.put(key(1), b"", 60_000, entry(1), 0)
    written(path, old)
    with pytest.raises(HandoverRefused, match="too long"):
        take_handover(path, "run-1", new, BOX, clocks(late=True))
    assert new.entries == 0


def test_of_two_predecessors_the_newest_entry_wins_in_any_order(tmp_path: Path) -> None:
    first, second = new_table(), new_table()
    first.put(key(1), b"", 60_000, entry(1), 0)
    second.put(key(1), b"", 60_000, entry(2), 0)
    first.put(key(2), b"", 60_000, entry(1, closed=True), 0)
    second.put(key(2), b"", 60_000, entry(2), 0)
    for order in ((first, second), (second, first)):
        new = new_table()
        for at, old in enumerate(order):
            path = tmp_path / f"session-{at}.handover"
            written(path, old)
            take_handover(path, "run-1", new, BOX, clocks())
        assert new.get(key(1), 5_000) == (entry(2), 60_000)
        assert new.get(key(2), 5_000) == (entry(1, closed=True), 60_000), "a closed session stays closed"


def test_a_smaller_bound_of_memory_takes_what_fits(path: Path) -> None:
    old, new = new_table(), new_table(max_bytes=2000)
    for at in range(10):
        old.put(key(at), b"", 60_000, entry(1), 0)
    written(path, old)
    assert 0 < take_handover(path, "run-1", new, BOX, clocks()) < 10


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    old = new_table()
    old.put(key(1), b"", 60_000, entry(1), 0)
    with pytest.raises(OSError, match="No such file"):
        written(tmp_path / "missing" / "session-1.handover", old)
    assert list(tmp_path.iterdir()) == []


def test_the_derived_ring_opens_after_a_rotation_and_never_what_the_farm_sealed(path: Path) -> None:
    before, after = KeyRing(SECRETS[:1]), KeyRing(SECRETS, 1)
    old = new_table()
    old.put(key(1), b"", 60_000, entry(1), 0)
    box = handover_box(*before.derived("handover"), "farm")
    write_handover(path, Stamp("run-1", "session-1", WRITTEN_AT_MS), old.hand_over(0), box)
    content = path.read_bytes()
    assert b"sealed payload" not in content
    assert key(1) not in content
    assert take_handover(path, "run-1", new_table(), handover_box(*after.derived("handover"), "farm"), clocks()) == 1
    assert not set(SECRETS) & set(after.derived("handover")[0])
