"""Which session servers hold which session (mission B1, B3, B4, B10)."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.replication.placement import Copies, Placement, copies_wanted

NAMES = ["session-1", "session-2", "session-3", "session-4"]
SESSIONS = [number.to_bytes(16, "big") for number in range(4000)]
FARMS = st.lists(st.text(min_size=1, max_size=20), min_size=2, max_size=9, unique=True)
KEYS = st.binary(min_size=16, max_size=16)


def subsets(copies: Copies, names: list[str] = NAMES) -> dict[str, set[bytes]]:
    """Which sessions each session server holds when all are reachable."""
    placement = Placement(names, copies)
    held: dict[str, set[bytes]] = {name: set() for name in names}
    for key in SESSIONS:
        for name in placement.ranking(key)[: placement.wanted]:
            held[name].add(key)
    return held


def times_held(held: dict[str, set[bytes]]) -> set[int]:
    return set(Counter(key for keys in held.values() for key in keys).values())


def test_b1_a_full_copy_on_each() -> None:
    assert all(keys == set(SESSIONS) for keys in subsets("all").values())


def test_b3_b4_one_copy_gives_disjoint_subsets_of_like_size() -> None:
    held = subsets(1)
    assert times_held(held) == {1}
    assert all(850 < len(keys) < 1150 for keys in held.values())


def test_b10_two_copies_overlap_and_every_pair_of_servers_shares_some() -> None:
    held = subsets(2)
    assert times_held(held) == {2}
    pairs = [held[one] & held[other] for one in NAMES for other in NAMES if one < other]
    assert sum(len(shared) for shared in pairs) == len(SESSIONS)
    assert all(500 < len(shared) < 850 for shared in pairs), "what a dead server held is spread over all others"


@pytest.mark.parametrize(
    ("copies", "servers", "wanted"),
    [(1, 1, 1), (1, 5, 1), (2, 5, 2), (2, 1, 1), (9, 3, 3), ("all", 5, 5), ("all", 1, 1)],
)
def test_how_many_copies(copies: Copies, servers: int, wanted: int) -> None:
    assert copies_wanted(copies, servers) == wanted
    assert Placement([f"s{number}" for number in range(servers)], copies).wanted == wanted


@given(FARMS, KEYS, st.randoms(use_true_random=False))
def test_every_web_server_ranks_alike_however_it_lists_the_servers(
    names: list[str], key: bytes, chance: object
) -> None:
    shuffled = list(names)
    chance.shuffle(shuffled)  # type: ignore[attr-defined]
    ranking = Placement(names, 2).ranking(key)
    assert ranking == Placement(shuffled, 1).ranking(key)
    assert sorted(ranking) == sorted(names)


@given(FARMS, KEYS, st.data())
def test_a_server_that_leaves_moves_only_what_it_held(names: list[str], key: bytes, data: st.DataObject) -> None:
    gone = data.draw(st.sampled_from(names))
    before = Placement(names, 2).ranking(key)
    after = Placement([name for name in names if name != gone], 2).ranking(key)
    assert after == tuple(name for name in before if name != gone)


def test_what_a_leaving_server_held_goes_to_all_the_others() -> None:
    before, after = subsets(1), subsets(1, NAMES[:-1])
    moved = {name: after[name] - before[name] for name in NAMES[:-1]}
    assert set().union(*moved.values()) == before[NAMES[-1]]
    assert all(len(keys) > 200 for keys in moved.values())


@pytest.mark.parametrize(
    ("names", "copies", "message"),
    [
        ([], 1, "at least one session server"),
        (["a", "b", "a"], 1, "different names"),
        (["a"], 0, "at least 1 or 'all'"),
        (["a"], -3, "at least 1 or 'all'"),
    ],
)
def test_bad_placements_are_refused(names: list[str], copies: Copies, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Placement(names, copies)


def test_remembered_rankings_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Placement, "MAX_CACHED", 10)
    placement = Placement(NAMES, 2)
    rankings = [placement.ranking(key) for key in SESSIONS[:100]]
    assert len(placement._ranked) <= 10
    assert [placement.ranking(key) for key in SESSIONS[:100]] == rankings
