"""Data is looked at a second time only where it can hold what would not come back; nothing is missed by that."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.errors import SessionDataError
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.record import decode_data, encode_data, encode_plain
from replication.tiny_farm import Farm

names = st.sampled_from(["a", "b", "c", "d"])
plain = st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text("xyzé") | st.binary()
stored = st.recursive(plain, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("xy"), inner))
odd = st.sampled_from([{1}, frozenset({2}), (1, 2), {3: 4}, [{5}], datetime(2026, 1, 1), {"in": {"side": {6}}}])


class Text(str):
    pass


def put_inside(session: Session, name: str, value: Any) -> None:
    found = session.get(name)
    if isinstance(found, list):
        found.append(value)
    elif isinstance(found, dict):
        found["inside"] = value


def put_inside_all(session: Session, name: str, value: Any) -> None:
    for found in session.values():
        if isinstance(found, list):
            found.append(value)


def set_item(session: Session, name: str, value: Any) -> None:
    session[name] = value


DOINGS: list[Callable[[Session, str, Any], Any]] = [
    set_item,
    put_inside,
    put_inside_all,
    lambda session, name, value: session.__setitem__(Text(name), value),
    lambda session, name, value: session.update({name: value}),
    lambda session, name, value: session.setdefault(name, value),
    lambda session, name, value: session.__ior__({name: value}),
    lambda session, name, value: session.pop(name, None),
    lambda session, name, value: session.get(name),
    lambda session, name, value: session.clear(),
]


@given(
    st.dictionaries(names, stored),
    st.lists(st.tuples(st.sampled_from(DOINGS), names, plain | stored | odd), max_size=5),
)
def test_what_is_not_looked_at_again_would_have_passed(
    before: dict[str, Any], doings: list[tuple[Callable[[Session, str, Any], Any], str, Any]]
) -> None:
    session = Session(decode_data(encode_data(before)))
    for do, name, value in doings:
        do(session, name, value)
    if not session._request.deep:
        assert encode_plain(session) == encode_data(session)


@pytest.mark.parametrize("do", [set_item, put_inside, put_inside_all, *DOINGS[4:7]])
def test_what_would_not_come_back_is_refused_however_it_got_in(do: Callable[[Session, str, Any], Any]) -> None:
    web = Farm().web()
    session = web.opened(web.create(a=[1], n=1))
    do(session, "a" if do in (set_item, put_inside, put_inside_all) else "new", 1j)
    with pytest.raises(SessionDataError):
        web.save(session)


def test_a_plain_value_is_not_looked_at_again() -> None:
    web = Farm().web()
    session = web.opened(web.create(a=[1], n=1))
    session["n"] = session.get("n", 0) + 1
    assert not session._request.deep
    web.save(session)
    assert session._request.saved_blob == encode_data({"a": [1], "n": 2})
