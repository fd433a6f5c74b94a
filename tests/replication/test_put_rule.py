"""When a session server accepts a put (protocol section 3)."""

from __future__ import annotations

import itertools

import pytest

from coatcheck.replication.entry import Entry
from coatcheck.replication.put_rule import Verdict, judge_entries
from coatcheck.replication.version import Version

A, B = b"serverAA", b"serverBB"


def entry(epoch: int, owner: bytes = A, seq: int = 0, closed: bool = False, lapsed: bool = False) -> Entry:
    return Entry(Version(epoch, owner, seq), (), closed or lapsed, 1000, b"payload", lapsed)


def accepts(stored: Entry | None, seen: Version | None, new: Entry) -> bool:
    return judge_entries(stored, seen, new) is not Verdict.REFUSED


CASES = [
    # stored, seen here, new, accepted, why
    (None, None, entry(1), True, "nothing stored, nothing seen"),
    (None, Version(1, A, 0), entry(2), False, "what was seen here is gone: the server restarted empty"),
    (None, Version(1, A, 0), entry(2, closed=True), True, "a close is taken all the same"),
    (entry(1, A, 1), Version(1, A, 1), entry(2, B), True, "a claim of what was seen"),
    (entry(1, A, 2), Version(1, A, 1), entry(2, B), False, "a claim after a write that it has not seen"),
    (entry(1, A, 1), None, entry(2, B), False, "a claim that saw nothing"),
    (entry(2, B), Version(1, A, 1), entry(2, B), True, "the repeat of a retry"),
    (entry(2, B), Version(1, A, 1), entry(2, A), False, "the second of two rival claims"),
    (entry(1, A, 1), None, entry(1, A, 2), True, "the owner's next write, its answer before was lost"),
    (entry(1, A, 1), None, entry(1, A, 9), True, "the owner's later write"),
    (entry(1, A, 2), None, entry(1, A, 1), False, "an old write that comes late"),
    (entry(2, B), None, entry(1, A, 9), False, "a write of an owner that was superseded"),
    (entry(1, A, 9), Version(1, A, 9), entry(1, B, 1), True, "what was seen decides, not which number is larger"),
    (entry(1, A, 1), None, entry(9, B, closed=True), True, "a close of something alive"),
    (entry(9, A, 9), None, entry(1, B, closed=True), True, "even with a smaller number"),
    (entry(1, A, closed=True), Version(1, A, 0), entry(2, B), False, "nothing overwrites a tombstone"),
    (entry(1, A, closed=True), None, entry(1, A, 1), False, "nor does its own owner"),
    (entry(1, A, closed=True), Version(1, A, 0), entry(2, B, closed=True), False, "nor another tombstone"),
    (entry(1, A, closed=True), None, entry(1, A, closed=True), True, "but it may be repeated"),
    (entry(1, A, closed=True), Version(1, A, 0), entry(1, A), False, "and is not brought back to life"),
    (entry(1, A), None, entry(1, A, closed=True), True, "a close with the number of a claim is no repeat of it"),
    (entry(1, A, 1), Version(1, A, 1), entry(2, B, lapsed=True), True, "a time-out of what was seen"),
    (entry(1, A, 2), Version(1, A, 1), entry(2, B, lapsed=True), False, "a time-out after a write unseen"),
    (None, Version(1, A, 1), entry(2, B, lapsed=True), False, "nobody willed it: no exception for a restart"),
    (entry(2, B, lapsed=True), Version(2, B, 0), entry(3, A), True, "a claim by who saw the time-out"),
    (entry(2, B, lapsed=True), Version(1, A, 1), entry(1, A, 2), False, "a write by who did not"),
    (entry(2, B, lapsed=True), None, entry(1, A, closed=True), True, "a willed close over a time-out"),
    (entry(1, A, closed=True), Version(1, A, 0), entry(2, B, lapsed=True), False, "never the reverse"),
]


@pytest.mark.parametrize(
    ("stored", "seen", "new", "accepted"), [row[:4] for row in CASES], ids=[row[4] for row in CASES]
)
def test_which_puts_are_accepted(stored: Entry | None, seen: Version | None, new: Entry, accepted: bool) -> None:
    assert accepts(stored, seen, new) is accepted


SMALL = [
    entry(epoch, owner, seq, closed, lapsed)
    for epoch in (1, 2)
    for owner in (A, B)
    for seq in (0, 1, 2)
    for closed, lapsed in ((False, False), (True, False), (False, True))
]
SEEN = [None, *{one.version for one in SMALL}]


def as_the_protocol_says(stored: Entry | None, seen: Version | None, new: Entry) -> bool:
    """Section 3, word by word: a willed tombstone never overwritten, a provisional one only by who saw it."""
    if stored is None:
        return seen is None or new.final
    repeat = (stored.version, stored.closed, stored.provisional) == (new.version, new.closed, new.provisional)
    if stored.final:
        return repeat
    live = not stored.closed and not new.closed
    earlier = live and stored.version.claim == new.version.claim and stored.version.seq < new.version.seq
    return repeat or stored.version == seen or earlier or new.final


def who_must_hear(stored: Entry | None, seen: Version | None, new: Entry) -> bool:
    """Section 5: the owner of what is replaced, unless it is the one who replaces it with something alive."""
    if stored is None or not as_the_protocol_says(stored, seen, new) or stored.final:
        return False
    repeat = (stored.version, stored.closed, stored.provisional) == (new.version, new.closed, new.provisional)
    return not repeat and (stored.closed or new.closed or stored.version.claim != new.version.claim)


def test_all_puts_of_a_small_world_are_judged_as_the_protocol_says() -> None:
    judged = 0
    for stored, seen, new in itertools.product([None, *SMALL], SEEN, SMALL):
        verdict = judge_entries(stored, seen, new)
        assert (verdict is not Verdict.REFUSED) is as_the_protocol_says(stored, seen, new), (stored, seen, new)
        assert (verdict is Verdict.ACCEPTED_NOTIFY) is who_must_hear(stored, seen, new), (stored, seen, new)
        judged += 1
    assert judged == 37 * 13 * 36


def test_what_was_accepted_is_accepted_again_whatever_the_writer_saw() -> None:
    """A retry may find its own put: the outcome of the first try was unknown."""
    for seen, new in itertools.product(SEEN, SMALL):
        assert accepts(new, seen, new)


def test_a_tombstone_stays_whatever_comes_in_whatever_order() -> None:
    for first, second in itertools.product(SMALL, repeat=2):
        stored = entry(1, A, 1, closed=True)
        for new in (first, second):
            for seen in SEEN:
                if accepts(stored, seen, new):
                    stored = new
        assert stored == entry(1, A, 1, closed=True)
