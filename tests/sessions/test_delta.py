"""Two requests changed one session: what becomes of both (protocol section 5)."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.errors import ConflictError
from coatcheck.sessions.delta import ABSENT, Delta, diff, merge

BASE = {"n": 1, "cart": ["tea"], "flag": True, "profile": {"name": "Ada", "tags": {"a": 1}}}


def changed(**changes: Any) -> dict[str, Any]:
    """The base with some keys set; those set to ``ABSENT`` are deleted."""
    data = copy.deepcopy(BASE) | changes
    return {key: value for key, value in data.items() if value is not ABSENT}


# -- what is a change ----------------------------------------------------------------------------

OTHER_TAGS, OTHER_ORDER = {"name": "Ada", "tags": {"a": 2}}, {"tags": {"a": 1}, "name": "Ada"}
CHANGES = [
    ("nothing", {}, {}, set()),
    ("set", {"n": 2}, {"n": 2}, set()),
    ("new", {"x": None}, {"x": None}, set()),
    ("deleted", {"n": ABSENT}, {}, {"n"}),
    ("deep inside", {"profile": OTHER_TAGS}, {"profile": OTHER_TAGS}, set()),
    ("the order inside", {"profile": OTHER_ORDER}, {"profile": OTHER_ORDER}, set()),
    ("an equal copy is none", {"cart": ["tea"]}, {}, set()),
]


@pytest.mark.parametrize(("why", "changes", "found", "deleted"), CHANGES, ids=[row[0] for row in CHANGES])
def test_what_counts_as_a_change(why: str, changes: dict[str, Any], found: dict[str, Any], deleted: set[str]) -> None:
    delta = diff(BASE, changed(**changes))
    assert delta == Delta(found, frozenset(deleted)), why
    assert bool(delta) is bool(found or deleted)
    assert all(delta.touches(key) for key in [*found, *deleted])
    assert not delta.touches("untouched")


SIMILAR = [
    (1, True),
    (1, 1.0),
    (0, False),
    (0.0, -0.0),
    ([1], [True]),
    ({"a": 1}, {"a": 1.0}),
    (None, False),
    ("", b""),
]


@pytest.mark.parametrize(("before", "after"), SIMILAR)
def test_equal_is_not_the_same(before: Any, after: Any) -> None:
    assert diff({"k": before}, {"k": after}).changed.keys() == {"k"}
    assert diff({"k": before}, {"k": copy.deepcopy(before)}) == Delta({}, frozenset())


# -- merging -------------------------------------------------------------------------------------

MERGES = [
    # theirs, mine, merged with last_write, whether `reject` refuses
    ("disjoint keys", {"n": 2}, {"cart": ["coffee"]}, {"n": 2, "cart": ["coffee"]}, False),
    ("both add", {"x": 1}, {"y": 2}, {"x": 1, "y": 2}, False),
    ("my delete stays deleted", {"cart": []}, {"n": ABSENT}, {"cart": [], "n": ABSENT}, False),
    ("their delete stays deleted", {"n": ABSENT}, {"cart": []}, {"cart": [], "n": ABSENT}, False),
    ("both delete", {"n": ABSENT}, {"n": ABSENT}, {"n": ABSENT}, False),
    ("same key", {"n": 2}, {"n": 3}, {"n": 3}, True),
    ("same key, equal values: two counted from one", {"n": 2}, {"n": 2}, {"n": 2}, True),
    ("they set what I delete", {"n": 2}, {"n": ABSENT}, {"n": ABSENT}, True),
    ("they delete what I set", {"n": ABSENT}, {"n": 2}, {"n": 2}, True),
    ("both add one key", {"x": 1}, {"x": 2}, {"x": 2}, True),
    ("different places inside one key", {"profile": {"name": "Bob"}}, {"profile": {}}, {"profile": {}}, True),
    ("only they", {"n": 2}, {}, {"n": 2}, False),
    ("only I", {}, {"n": 2}, {"n": 2}, False),
]


@pytest.mark.parametrize(
    ("theirs", "mine", "merged", "refused"), [row[1:] for row in MERGES], ids=[row[0] for row in MERGES]
)
def test_merging(theirs: dict[str, Any], mine: dict[str, Any], merged: dict[str, Any], refused: bool) -> None:
    three = BASE, changed(**theirs), changed(**mine)
    assert merge(*three, "last_write") == changed(**merged)
    if refused:
        with pytest.raises(ConflictError, match="changed '"):
            merge(*three, "reject")
    else:
        assert merge(*three, "reject") == changed(**merged)


@pytest.mark.parametrize(
    ("theirs", "mine", "merged"),
    [
        ({"n": 2}, {"n": 3}, None),
        ({"n": 1.0}, {"n": True}, None),
        ({"n": 2}, {"n": ABSENT}, None),
        ({"n": 2}, {"n": 2}, {"n": 2}),
        ({"n": 2}, {"cart": []}, {"n": 2, "cart": []}),
    ],
)
def test_an_overtaken_request_undoes_nothing(
    theirs: dict[str, Any], mine: dict[str, Any], merged: dict[str, Any] | None
) -> None:
    if merged is None:
        with pytest.raises(ConflictError):
            merge(BASE, changed(**theirs), changed(**mine), "overtaken")
    else:
        assert merge(BASE, changed(**theirs), changed(**mine), "overtaken") == changed(**merged)


def test_a_merge_function_is_asked_for_conflicts_alone_and_told_what_is_absent() -> None:
    asked = []

    def decide(key: str, base: Any, theirs: Any, mine: Any) -> Any:
        asked.append((key, base, theirs, mine))
        return {"n": theirs + mine - base if key == "n" else 0, "gone": ABSENT, "x": "both"}.get(key)

    base = {"n": 5, "gone": 1, "mine": 1}
    merged = merge(base, {"n": 6, "mine": 1, "x": 1}, {"n": 7, "gone": 2, "mine": 2, "x": 2}, decide)
    assert merged == {"n": 8, "mine": 2, "x": "both"}
    assert sorted(asked) == [("gone", 1, ABSENT, 2), ("n", 5, 6, 7), ("x", ABSENT, 1, 2)]


def test_absent_is_false_and_says_its_name() -> None:
    assert not ABSENT
    assert repr(ABSENT) == "ABSENT"


def test_a_conflict_names_the_key_in_bounded_length() -> None:
    with pytest.raises(ConflictError) as caught:
        merge({}, {"k" * 10_000: 1}, {"k" * 10_000: 2}, "reject")
    assert len(str(caught.value)) < 200


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-9, 9) | st.floats(allow_nan=False) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("ab"), inner, max_size=2),
    max_leaves=4,
)
DATA = st.dictionaries(st.sampled_from("abcde"), VALUES, max_size=5)


def exactly(one: Any, other: Any) -> bool:
    return repr(sorted(one.items())) == repr(sorted(other.items()))


@given(DATA, DATA)
def test_without_a_rival_the_merge_is_mine_and_without_a_change_it_is_theirs(base: Any, other: Any) -> None:
    for policy in ("last_write", "reject", "overtaken"):
        assert exactly(merge(base, base, other, policy), other)
        assert exactly(merge(base, other, base, policy), other)


@given(DATA, DATA, DATA)
def test_every_key_is_what_one_of_both_made_of_it(base: Any, theirs: Any, mine: Any) -> None:
    before = copy.deepcopy((base, theirs, mine))
    merged = merge(base, theirs, mine, "last_write")
    own, other = diff(base, mine), diff(base, theirs)
    for key in {*base, *theirs, *mine, *merged}:
        source = mine if own.touches(key) else theirs
        assert repr(merged.get(key, ABSENT)) == repr(source.get(key, ABSENT)), key
    assert repr((base, theirs, mine)) == repr(before), "merging changes none of the three"
    if not any(own.touches(key) and other.touches(key) for key in "abcde"):
        assert exactly(merged, merge(base, mine, theirs, "reject"))


@given(DATA, DATA, DATA)
def test_reject_refuses_just_where_both_changed_a_key(base: Any, theirs: Any, mine: Any) -> None:
    own, other = diff(base, mine), diff(base, theirs)
    both = {key for key in "abcde" if own.touches(key) and other.touches(key)} - (own.deleted & other.deleted)
    try:
        merge(base, theirs, mine, "reject")
    except ConflictError:
        assert both
    else:
        assert not both
