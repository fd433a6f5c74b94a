"""The session behaves as a dict does, and as Starlette's session; its verbs say what is to happen."""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.replication.cache import Copy
from coatcheck.replication.version import Version
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.record import EMPTY_DATA, Record
from coatcheck.tokens.chain import Chain, ChainLink

KEYS = st.sampled_from("abc")
VALUES = st.one_of(st.integers(0, 3), st.lists(st.integers(0, 3), max_size=2), st.none())
MAPPINGS = st.dictionaries(KEYS, VALUES, max_size=3)
Operation = Callable[[dict[str, Any]], Any]


def operations(key: str, value: Any, other: dict[str, Any]) -> dict[str, Operation]:
    """Every method and operator of a dict."""
    return {
        "get item": lambda d: d[key],
        "set item": lambda d: d.__setitem__(key, value),
        "delete item": lambda d: d.__delitem__(key),
        "in": lambda d: key in d,
        "in, not a string": lambda d: 7 in d,  # type: ignore[comparison-overlap]
        "get": lambda d: d.get(key),
        "get with default": lambda d: d.get(key, value),
        "keys": lambda d: list(d.keys()),
        "values": lambda d: list(d.values()),
        "items": lambda d: list(d.items()),
        "iterate": lambda d: list(d),
        "backwards": lambda d: list(reversed(d)),
        "len": len,
        "bool": bool,
        "pop": lambda d: d.pop(key),
        "pop with default": lambda d: d.pop(key, value),
        "popitem": lambda d: d.popitem(),
        "clear": lambda d: d.clear(),
        "setdefault": lambda d: d.setdefault(key, value),
        "setdefault to None": lambda d: d.setdefault(key),
        "update": lambda d: d.update(other),
        "update with pairs": lambda d: d.update(list(other.items())),
        "update by name": lambda d: d.update(**other),
        "update with nonsense": lambda d: d.update(7),  # type: ignore[call-overload]
        "|": lambda d: d | other,
        "| from the right": lambda d: other | d,
        "|=": lambda d: d.__ior__(other) is d,
        "==": lambda d: (d == other, d == dict(d), d != other),
        "copy": lambda d: d.copy(),
        "repr": repr,
        "str": str,
        "fromkeys": lambda d: d.fromkeys("xy", 1),
        "json": json.dumps,
        "as arguments": lambda d: dict(**d),
        "unpacked": lambda d: {**d},
        "dict": dict,
        "deep copy": lambda d: copy.deepcopy(dict(d)),
        "pickle": lambda d: pickle.loads(pickle.dumps(dict(d))),
        "hash": hash,
    }


def outcome(mapping: dict[str, Any], operation: Operation) -> tuple[str, str]:
    try:
        return "returned", repr(operation(mapping))
    except (KeyError, TypeError) as error:
        return type(error).__name__, str(error).replace("Session", "dict")


@given(MAPPINGS, st.lists(st.tuples(st.integers(0, 100), KEYS, VALUES, MAPPINGS), max_size=8))
def test_it_does_what_a_dict_does(start: dict[str, Any], steps: list[tuple[int, str, Any, dict[str, Any]]]) -> None:
    session, plain = Session(copy.deepcopy(start)), copy.deepcopy(start)
    for number, key, value, other in steps:
        table = operations(key, value, other)
        name = list(table)[number % len(table)]
        assert outcome(session, table[name]) == outcome(plain, table[name]), name
        assert list(dict.items(session)) == list(plain.items()), name


@given(MAPPINGS, KEYS, VALUES, MAPPINGS)
def test_what_changes_it_is_noticed_and_what_looks_is_seen(
    start: dict[str, Any], key: str, value: Any, other: dict[str, Any]
) -> None:
    for name, operation in operations(key, value, other).items():
        session = Session(copy.deepcopy(start))
        outcome(session, operation)
        if dict.__repr__(session) != repr(start):
            assert session.modified, name
            assert session._request.unsettled, name
            assert session.accessed, name


def test_every_method_of_a_dict_is_covered_here_or_hands_out_nothing() -> None:
    """A new Python with a new method of dict must be looked at."""
    harmless = {"__class_getitem__", "__eq__", "__ge__", "__getattribute__", "__gt__", "__init__", "__le__", "__len__"}
    harmless |= {"__lt__", "__ne__", "__new__", "__repr__", "__reversed__", "__sizeof__", "__hash__", "__doc__"}
    own = set(vars(Session))
    assert set(vars(dict)) - own - harmless - {"fromkeys"} == set()


def test_an_app_sees_a_dict_and_what_the_guide_tells_of() -> None:
    told = {"accessed", "bound", "close", "ended", "is_new", "lost", "mark_accessed", "mark_modified", "modified"}
    told |= {"regenerate", "remember", "refresh", "rotate", "user", "devices", "close_device", "close_other_devices"}
    assert {name for name in set(dir(Session(a=1))) - set(dir(dict)) if not name.startswith("_")} == told


def test_a_copy_is_of_the_data_alone() -> None:
    session = hosted("alice")
    session["cart"] = ["tea"]
    for copied in (copy.copy(session), copy.deepcopy(session), pickle.loads(pickle.dumps(session))):
        assert copied == {"cart": ["tea"]}
        assert isinstance(copied, Session)
        assert copied.is_new and copied.user is None


def test_a_mistyped_attribute_is_no_secret_state() -> None:
    session = Session()
    with pytest.raises(AttributeError, match="regenrate"):
        session.regenrate("alice")  # type: ignore[attr-defined]
    with pytest.raises(AttributeError):
        session.user = "alice"  # type: ignore[misc]


def test_it_is_a_dict() -> None:
    assert isinstance(Session(), dict)
    assert Session(a=1) == {"a": 1}
    assert not Session()


# -- Starlette's two flags -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("act", "accessed", "modified"),
    [
        (lambda s: None, False, False),
        (lambda s: s.get("a"), True, False),
        (lambda s: "a" in s, True, False),
        (lambda s: list(s), True, False),
        (lambda s: s["a"], True, False),
        (lambda s: s.items(), True, False),
        (lambda s: s.update(b=1), True, True),
        (lambda s: s.pop("missing", None), True, True),
        (lambda s: s.mark_accessed(), True, False),
        (lambda s: s.mark_modified(), True, True),
        (lambda s: s.rotate(), True, False),
        (lambda s: s.regenerate(), True, True),
        (lambda s: s.close(), True, True),
    ],
)
def test_accessed_and_modified(act: Callable[[Session], Any], accessed: bool, modified: bool) -> None:
    session = Session(a=1)
    act(session)
    assert (session.accessed, session.modified) == (accessed, modified)


# -- the verbs -----------------------------------------------------------------------------------


def test_closing_empties_it() -> None:
    session = Session(a=1)
    session.close()
    assert session._request.closing
    assert session == {}


def test_clearing_is_remembered_even_if_something_is_put_in_again() -> None:
    session = Session(a=1)
    session.clear()
    session["b"] = 2
    assert session._request.cleared
    assert not session._request.closing


def hosted(user: str | None) -> Session:
    held = Copy(b"k" * 16, Version(1, b"serverAA", 1), (), b"")
    held.record = Record(EMPTY_DATA, 0, 0, user, Chain(ChainLink(b"i", 0)))
    session = Session()
    session._request.copy_held = held
    return session


def test_who_the_user_is() -> None:
    assert Session().user is None
    assert hosted(None).user is None
    assert hosted("alice").user == "alice"
    session = hosted("alice")
    session.regenerate("bob")
    assert session.user == "bob"


def test_new_means_that_it_exists_nowhere_yet() -> None:
    assert Session().is_new
    assert not hosted(None).is_new


def test_two_sessions_share_nothing() -> None:
    one, other = Session(), Session()
    one.close()
    one.rotate()
    one.regenerate("alice")
    state = other._request
    assert not (state.closing or state.rotating or state.new_login or state.new_user or state.unsettled)
