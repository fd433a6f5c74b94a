"""Several copies of one session: who wins, in whatever order they are read (protocol section 3)."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.replication.entry import Entry
from coatcheck.replication.resolution import Resolution, contains, resolve
from coatcheck.replication.version import History, Version, with_write

A, B = b"serverAA", b"serverBB"


def copy(version: Version, *history: Version, closed: bool = False, lapsed: bool = False) -> Entry:
    return Entry(version, history, closed or lapsed, 1000, b"", lapsed)


W1 = Version(1, A, 1)
BASE = copy(W1, W1)
LATER = copy(Version(1, A, 2), Version(1, A, 2))
CLAIM = copy(Version(2, B, 0), W1)
BRANCH_B = copy(Version(2, B, 1), W1, Version(2, B, 1))
BRANCH_A = copy(Version(3, A, 1), W1, Version(3, A, 1))
CLAIMED_BRANCH_B = copy(Version(9, A, 0), W1, Version(2, B, 1))
JOINED = copy(Version(4, B, 1), W1, Version(2, B, 1), Version(3, A, 1), Version(4, B, 1))
CLOSED = copy(Version(2, B, 0), W1, closed=True)
CLAIMED = copy(Version(9, A, 0), W1)
LAPSED = copy(Version(2, B, 0), W1, lapsed=True)
LAPSED_LATER = copy(Version(3, B, 0), Version(1, A, 2), lapsed=True)

CASES = [
    ("one copy", [BASE], BASE, False),
    ("the later of two writes", [BASE, LATER], LATER, False),
    ("a claim of the same data is newer", [BASE, CLAIM], CLAIM, False),
    ("a claim is older than a write that it has not seen", [LATER, CLAIM], LATER, False),
    ("two branches: the highest data version", [BRANCH_B, BRANCH_A], BRANCH_A, True),
    ("a claim does not make a branch higher", [CLAIMED_BRANCH_B, BRANCH_A], BRANCH_A, True),
    ("a fork beside a common ancestor", [BRANCH_B, BASE, BRANCH_A], BRANCH_A, True),
    ("what covers both ends the fork", [BRANCH_B, JOINED, BRANCH_A], JOINED, False),
    ("a tombstone beats everything", [LATER, CLOSED, BRANCH_A], CLOSED, False),
    ("a tombstone alone", [CLOSED], CLOSED, False),
    ("a provisional tombstone beats what it covers", [BASE, LAPSED], LAPSED, False),
    ("and a claim of what it covers", [CLAIMED, LAPSED], LAPSED, False),
    ("a write that it lacks beats it", [BASE, LAPSED, LATER], LATER, False),
    ("in a fork as well", [LAPSED, BRANCH_B, BRANCH_A], BRANCH_A, True),
    ("of two, the one that covers all counts", [LAPSED, LATER, LAPSED_LATER], LAPSED_LATER, False),
    ("a willed one beats it whatever it covers", [LAPSED_LATER, CLOSED, LATER], CLOSED, False),
    ("alone it counts", [LAPSED], LAPSED, False),
]


@pytest.mark.parametrize(("copies", "newest", "forked"), [row[1:] for row in CASES], ids=[row[0] for row in CASES])
def test_who_wins(copies: list[Entry], newest: Entry, forked: bool) -> None:
    for order in itertools.permutations(copies):
        assert resolve(order) == Resolution(newest, forked)


def test_nothing_is_none() -> None:
    assert resolve([]) is None


def test_of_several_tombstones_all_readers_take_the_same() -> None:
    tombstones = [CLOSED, copy(Version(5, A, 0), W1, closed=True), copy(Version(3, B, 0), closed=True)]
    assert len({resolve(order).newest.version for order in itertools.permutations(tombstones)}) == 1  # type: ignore[union-attr]


class World:
    """Copies as they really come to be: every claim and write starts from a copy that exists, forks included."""

    def __init__(self, seed: int, steps: int) -> None:
        chance = random.Random(seed)
        self.truth: dict[Version, frozenset[Version]] = {W1: frozenset({W1})}
        self.copies = [BASE]
        for _ in range(steps):
            parent = chance.choice(self.copies)
            version = Version(max(one.version.epoch for one in self.copies) + 1, chance.choice([A, B]), 0)
            history: History = parent.history
            writes = self.truth[parent.version]
            for _ in range(chance.randint(0, 2)):
                self.add(version, history, writes)
                version = version.next_write()
                history, writes = with_write(history, version), writes | {version}
            self.add(version, history, writes)

    def add(self, version: Version, history: History, writes: frozenset[Version]) -> None:
        self.copies.append(copy(version, *history))
        self.truth[version] = writes


WORLDS = st.builds(World, st.integers(0, 2**32), st.integers(0, 6))


@given(WORLDS, st.randoms(use_true_random=False))
def test_the_order_of_reading_does_not_matter(world: World, chance: random.Random) -> None:
    some = chance.sample(world.copies, chance.randint(1, len(world.copies)))
    first = resolve(some)
    chance.shuffle(some)
    assert resolve(some) == first


@given(WORLDS, st.randoms(use_true_random=False))
def test_no_write_is_passed_over_without_saying_fork(world: World, chance: random.Random) -> None:
    some = chance.sample(world.copies, chance.randint(1, len(world.copies)))
    found = resolve(some)
    assert found is not None
    everything = frozenset[Version]().union(*(world.truth[one.version] for one in some))
    assert found.forked is (world.truth[found.newest.version] != everything)


@given(WORLDS)
def test_contains_is_what_really_happened(world: World) -> None:
    for one, other in itertools.product(world.copies, repeat=2):
        assert contains(one, other) is (world.truth[one.version] >= world.truth[other.version])
