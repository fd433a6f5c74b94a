"""The session as a dict: no change may go unnoticed, however it is made."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.sessions.mapping import MAX_USER_BYTES, Session
from coatcheck.sessions.record import decode_data, encode_data

DATA = {"n": 1, "name": "Ada", "cart": [{"sku": "tea", "count": 2}], "flags": {"dark": True}, "none": None}


def opened() -> Session:
    session = Session(DATA and decode_data(encode_data(DATA)))
    session._request.blob = encode_data(session)
    return session


# Each gets at a nested value another way, and changes it behind the mapping's back.
SLY: list[Callable[[Session], Any]] = [
    lambda s: s["cart"].append(1),
    lambda s: s.get("cart").append(1),
    lambda s: s.get("absent", s.get("flags")).clear(),
    lambda s: next(value for value in s.values() if isinstance(value, list)).append(1),
    lambda s: dict(s.items())["flags"].update(dark=False),
    lambda s: dict(s)["cart"].append(1),
    lambda s: {**s}["cart"].append(1),
    lambda s: (s | {})["cart"].append(1),
    lambda s: ({} | s)["cart"].append(1),
    lambda s: s.copy()["cart"].append(1),
    lambda s: copy.copy(s)["cart"].append(1),
    lambda s: s.setdefault("cart", []).append(1),
    lambda s: [s[key] for key in s][2].append(1),
    lambda s: s.pop("cart"),
    lambda s: s.__ior__({"n": 2}),
    lambda s: s.update(n=2),
    lambda s: s.__delitem__("n"),
    lambda s: s.popitem(),
    lambda s: s.clear(),
]


def test_every_way_to_change_it_is_noticed() -> None:
    for number, change in enumerate(SLY):
        session = opened()
        change(session)
        assert encode_data(session) != session._request.blob, f"{number} changes it"
        assert session._request.unsettled, f"{number} went unnoticed"


def test_matching_hands_out_nested_values_too() -> None:
    session = opened()
    match session:
        case {"cart": [first, *_]}:
            first["count"] = 3
    assert session._request.unsettled


def test_reading_what_cannot_be_changed_settles_nothing() -> None:
    session = opened()
    assert (session["n"], session.get("name"), session.get("absent"), "cart" in session) == (1, "Ada", None, True)
    assert list(session) == list(DATA)
    assert len(session) == len(DATA)
    assert session == DATA
    assert session.accessed
    assert not session._request.unsettled
    assert not session.modified


def test_encoders_see_the_whole_of_it() -> None:
    assert json.loads(json.dumps(opened())) == DATA
    assert decode_data(encode_data(opened())) == DATA


def test_verbs_are_noticed() -> None:
    for verb in (Session.rotate, Session.regenerate, Session.close, Session.clear):
        session = opened()
        verb(session)
        assert session._request.unsettled


KEYS = st.sampled_from([*DATA, "other"])
VALUES = st.sampled_from([0, 1, "x", [], [1], {}, {"a": []}, None])
STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("get"), KEYS, VALUES),
        st.tuples(st.just("set"), KEYS, VALUES),
        st.tuples(st.just("grow"), KEYS, VALUES),
        st.tuples(st.just("pop"), KEYS, VALUES),
        st.tuples(st.just("in"), KEYS, VALUES),
    ),
    max_size=6,
)


def do(session: Session, verb: str, key: str, value: Any) -> None:
    if verb == "get":
        session.get(key, value)
    elif verb == "set":
        session[key] = copy.deepcopy(value)
    elif verb == "pop":
        session.pop(key, None)
    elif verb == "in":
        assert (key in session) is dict.__contains__(session, key)
    else:
        found = session.get(key)
        if isinstance(found, list):
            found.append(value)
        elif isinstance(found, dict):
            found[str(value)] = value


@given(STEPS)
def test_a_session_that_says_it_is_settled_has_not_changed(steps: list[tuple[str, str, Any]]) -> None:
    session = opened()
    for verb, key, value in steps:
        do(session, verb, key, value)
    if not session._request.unsettled:
        assert encode_data(session) == session._request.blob


@pytest.mark.parametrize(
    "user", [5, b"ada", 0, object(), "", "\ud800", "a" * (MAX_USER_BYTES + 1), "ä" * (MAX_USER_BYTES // 2 + 1)]
)
def test_a_name_that_cannot_be_kept_is_refused_and_changes_nothing(user: Any) -> None:
    """Such a record could be written, but never be read again."""
    session = opened()
    with pytest.raises((TypeError, ValueError), match="regenerate: the user's name is "):
        session.regenerate(user, remember=True)
    assert dict(session) == DATA
    assert not session._request.new_login
    assert session.user is None


@pytest.mark.parametrize("remember", ["no", "on", 1, 0, []])
def test_remember_is_true_or_false(remember: Any) -> None:
    session = opened()
    with pytest.raises(TypeError, match="regenerate: remember is True, False or None, not "):
        session.regenerate("ada", remember=remember)
    assert (dict(session), session.user) == (DATA, None)


@pytest.mark.parametrize("user", ["a" * MAX_USER_BYTES, "ä" * (MAX_USER_BYTES // 2)])
def test_a_name_of_the_greatest_length_is_kept(user: str) -> None:
    session = opened()
    session.regenerate(user)
    assert session.user == user
