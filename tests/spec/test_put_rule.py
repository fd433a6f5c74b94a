"""The put rule as docs/spec/put-rule.md has it: each rule alone, and every case that they come to."""

from __future__ import annotations

from itertools import product

import pytest

from coatcheck.replication.entry import Entry
from coatcheck.replication.put_rule import MAX_LIFE_MS, Verdict, bounded_life_ms, judge, servers_to_notify
from coatcheck.replication.version import Version
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import ACCEPTED, Refused

from .citing import cites

ONE, OTHER = b"aaabbbbb", b"cccddddd"
VERSIONS = [Version(epoch, owner, seq) for epoch in (1, 2) for owner in (ONE, OTHER) for seq in (0, 1)]
REFUSED, ACCEPTED_, NOTIFIED = Verdict.REFUSED, Verdict.ACCEPTED, Verdict.ACCEPTED_NOTIFY


def header(flags: int, version: Version) -> bytes:
    return b"\x01" + bytes([flags]) + version + b"\x00"


@cites("P1")
@pytest.mark.parametrize(("flags", "seen", "verdict"), [
    (0, b"", ACCEPTED_), (3, b"", ACCEPTED_), (1, VERSIONS[0], ACCEPTED_),
    (0, VERSIONS[0], REFUSED), (3, VERSIONS[0], REFUSED),
])  # fmt: skip
def test_nothing_is_stored(flags: int, seen: bytes, verdict: Verdict) -> None:
    assert judge(None, seen, header(flags, VERSIONS[1])) is verdict


@cites("P2")
def test_a_repeat() -> None:
    for flags in (0, 1, 3):
        assert judge(header(flags, VERSIONS[1]), b"", header(flags, VERSIONS[1])) is ACCEPTED_


@cites("P3")
def test_a_willed_tombstone_stays() -> None:
    for flags, version in product((0, 1, 3), VERSIONS[1:]):
        assert judge(header(1, VERSIONS[0]), VERSIONS[0], header(flags, version)) is REFUSED


@cites("P4")
def test_a_willed_tombstone_takes() -> None:
    for flags, seen in product((0, 3), (b"", VERSIONS[5])):
        assert judge(header(flags, VERSIONS[1]), seen, header(1, VERSIONS[0])) is NOTIFIED


@cites("P5")
@pytest.mark.parametrize(("stored", "new", "verdict"), [
    (header(0, VERSIONS[0]), header(0, VERSIONS[1]), ACCEPTED_),
    (header(0, VERSIONS[1]), header(0, VERSIONS[0]), ACCEPTED_),
    (header(0, VERSIONS[0]), header(0, VERSIONS[2]), NOTIFIED),
    (header(0, VERSIONS[0]), header(0, VERSIONS[4]), NOTIFIED),
    (header(0, VERSIONS[0]), header(3, VERSIONS[1]), NOTIFIED),
    (header(3, VERSIONS[0]), header(0, VERSIONS[1]), NOTIFIED),
])  # fmt: skip
def test_who_saw_what_is_stored(stored: bytes, new: bytes, verdict: Verdict) -> None:
    assert judge(stored, stored[2:18], new) is verdict


@cites("P6")
def test_a_later_write_of_the_claim() -> None:
    assert judge(header(0, VERSIONS[0]), b"", header(0, VERSIONS[1])) is ACCEPTED_
    assert judge(header(0, VERSIONS[1]), b"", header(0, VERSIONS[0])) is REFUSED
    assert judge(header(3, VERSIONS[0]), b"", header(0, VERSIONS[1])) is REFUSED


@cites("P1", "P2", "P3", "P4", "P5", "P6", "P7")
def test_every_case_is_as_the_first_rule_that_fits_says() -> None:
    cases = 0
    for stored, new in product([None, *product((0, 1, 3), VERSIONS)], product((0, 1, 3), VERSIONS)):
        for seen in (b"", *VERSIONS):
            said = judge(header(*stored) if stored else None, seen, header(*new))
            assert said is by_the_text(stored, seen, new), (stored, seen, new)
            cases += 1
    assert cases == 25 * 24 * 9


def by_the_text(stored: tuple[int, Version] | None, seen: bytes, new: tuple[int, Version]) -> Verdict:
    if stored is None:
        return ACCEPTED_ if not seen or new[0] == 1 else REFUSED  # P1
    one_claim = stored[0] == new[0] == 0 and stored[1].claim == new[1].claim
    rules = (
        (stored == new, ACCEPTED_),  # P2
        (stored[0] == 1, REFUSED),  # P3
        (new[0] == 1, NOTIFIED),  # P4
        (stored[1] == seen, ACCEPTED_ if one_claim else NOTIFIED),  # P5
        (one_claim and new[1].seq > stored[1].seq, ACCEPTED_),  # P6
    )
    return next((verdict for fits, verdict in rules if fits), REFUSED)  # P7


@cites("P7")
def test_a_refused_put_changes_nothing_and_is_answered_with_what_is_stored() -> None:
    replies: list[object] = []
    store = MemoryStore("store", lambda: 0.0)
    first = Entry(VERSIONS[0], (), False, 1000, b"x" * 40)
    store.put(b"k" * 16, None, first, replies.append)
    store.put(b"k" * 16, None, Entry(VERSIONS[4], (), False, 1000, b"y" * 40), replies.append)
    store.get(b"k" * 16, replies.append)
    assert replies[0] == ACCEPTED
    assert isinstance(replies[1], Refused)
    assert replies[2] == first


@cites("P8")
def test_who_is_told() -> None:
    stored = header(0, VERSIONS[0])
    assert servers_to_notify(NOTIFIED, stored, b"eeeaaa" + b"fff") == [b"aaa", b"eee", b"fff"]
    assert servers_to_notify(ACCEPTED_, stored, b"eeeeee") == [b"eee"]
    assert servers_to_notify(REFUSED, stored, b"eee") == []


@cites("P9")
def test_a_life_has_bounds_and_a_get_says_what_is_left() -> None:
    assert (bounded_life_ms(-5), bounded_life_ms(7), bounded_life_ms(1 << 60)) == (1, 7, MAX_LIFE_MS)
    assert MAX_LIFE_MS == 316_224_000_000
    now, replies = [0.0], []
    store = MemoryStore("store", lambda: now[0])
    store.put(b"k" * 16, None, Entry(VERSIONS[0], (), False, 1000, b"x" * 40), lambda reply: None)
    for now[0] in (0.0, 0.4, 1.0):
        store.get(b"k" * 16, replies.append)
    assert [None if one is None else one.expires_in_ms for one in replies] == [1000, 600, None]
