"""Data that requests share is decoded once, and never seen changed: not by another request, not in the cache."""

from __future__ import annotations

import asyncio
import copy
import json
import pickle
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.drivers.sessions import Sessions
from coatcheck.sessions import opening
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.record import decode_data, encode_data
from coatcheck.sessions.request_state import MAX_SHARED_BYTES, SharedData
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SealedToken
from replication.tiny_farm import Farm, WebServer

DATA = {"n": 1, "name": "Ada", "list": [1, [2]], "dict": {"of": {"deep": [3]}}}

WAYS: dict[str, Callable[[Any], Any]] = {
    "get item": lambda s: s["list"],
    "get": lambda s: s.get("dict"),
    "values": lambda s: s.values(),
    "items": lambda s: s.items(),
    "the values of its keys": lambda s: s.keys().mapping["list"],
    "copy": lambda s: s.copy(),
    "|": lambda s: s | {"other": 1},
    "| from the right": lambda s: {"other": 1} | s,
    "|=": lambda s: s.__ior__({"other": 1}),
    "pop": lambda s: s.pop("list"),
    "popitem": lambda s: s.popitem(),
    "setdefault": lambda s: s.setdefault("list", []),
    "update another": lambda s: {}.update(s),
    "dict": dict,
    "**": lambda s: dict(**s),
    "unpacked": lambda s: {**s},
    "copy.copy": copy.copy,
    "copy.deepcopy": copy.deepcopy,
    "pickle": lambda s: pickle.loads(pickle.dumps(s)),
    "json": json.dumps,
    "match": lambda s: matched(s),
    "format": "{0[list]}".format,
    "sorted": lambda s: sorted(s.items(), key=repr),
    "the session itself": lambda s: s,
    "get item, after it was set": lambda s: (s.__setitem__("n", 2), s["list"]),
}
"""Every way in which an app can come by a value of its session."""


def matched(session: Any) -> Any:
    match session:
        case {"list": found}:
            return found


def containers(value: Any) -> Iterator[int]:
    """The identities of all lists and dicts inside, as the app gets at them."""
    if isinstance(value, list | dict):
        yield id(value)
    inside = value.values() if isinstance(value, dict) else value
    if not isinstance(inside, str | bytes) and hasattr(inside, "__iter__"):
        for inner in inside:
            yield from containers(inner)


def shared_by(web: WebServer, token: SealedToken) -> SharedData:
    return web.lifecycle._shared[token.key]


def look_at(web: WebServer, token: SealedToken) -> None:
    """A request that changes nothing, and is told nothing; the first one to show its token is looked at closer."""
    web.opened(token)
    session = web.opened(token)
    session.get("n")
    assert web.lifecycle.is_settled(session)
    web.lifecycle.share(session)


def warm(web: WebServer, token: SealedToken) -> Session:
    """A session whose values are shared: it was only looked at before."""
    look_at(web, token)
    session = web.opened(token)
    assert session._request.shared is shared_by(web, token)
    return session


@pytest.mark.parametrize("way", WAYS)
def test_no_way_hands_out_what_is_shared(way: str) -> None:
    web = Farm().web()
    token = web.create(**DATA)
    session, other = warm(web, token), web.opened(token)
    shared = shared_by(web, token).mapping
    assert shared is not None
    theirs = set(containers(shared))
    assert len(theirs) > 4
    found = WAYS[way](session)
    assert theirs.isdisjoint(containers(found))
    assert shared == DATA == decode_data(encode_data(other))


MUTABLE = st.recursive(
    st.integers(0, 3), lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("xy"), inner)
)
NAMES = st.sampled_from("abc")


def change_inside(session: Any, name: str, value: Any) -> None:
    found = session.get(name)
    if isinstance(found, list):
        found.append(value)
    elif isinstance(found, dict):
        found["in"] = value


def change_all_inside(session: Any, name: str, value: Any) -> None:
    for found in session.values():
        if isinstance(found, list):
            found.insert(0, value)


DEEDS: list[Callable[[Any, str, Any], Any]] = [
    change_inside,
    change_inside,
    change_all_inside,
    lambda session, name, value: session.__setitem__(name, value),
    lambda session, name, value: session.pop(name, None),
    lambda session, name, value: session.setdefault(name, value),
    lambda session, name, value: session.update({name: value}),
    lambda session, name, value: session.get(name),
    lambda session, name, value: len(session) + (name in session),
    lambda session, name, value: session.clear(),
]


@given(
    st.dictionaries(NAMES, MUTABLE, min_size=1),
    st.lists(st.tuples(st.integers(0, 2), st.sampled_from(DEEDS), NAMES, MUTABLE), max_size=12),
)
def test_requests_that_are_open_together_do_not_see_each_other(
    data: dict[str, Any], deeds: list[tuple[int, Callable[[Any, str, Any], Any], str, Any]]
) -> None:
    web = Farm().web()
    token = web.create(**data)
    look_at(web, token)
    sessions = [web.opened(token) for _ in range(3)]
    expected = [copy.deepcopy(data) for _ in range(3)]
    for whose, do, name, value in deeds:
        do(sessions[whose], name, copy.deepcopy(value))
        do(expected[whose], name, copy.deepcopy(value))
        assert [decode_data(encode_data(session)) for session in sessions] == expected
        assert shared_by(web, token).mapping == data
    assert decode_data(encode_data(web.opened(token))) == data, "nor does one that comes later"


def test_a_change_inside_shared_values_is_stored() -> None:
    web = Farm().web()
    token = web.create(**DATA)
    session = warm(web, token)
    session["list"].append(4)
    issue = web.save(session).issue
    assert issue is not None
    assert web.opened(issue.token)["list"] == [1, [2], 4]


def test_what_has_changed_is_not_shared_any_more() -> None:
    web = Farm().web()
    token = web.create(**DATA)
    reader, writer = warm(web, token), web.opened(token)
    writer["n"] = 2
    issue = web.save(writer).issue
    assert issue is not None
    after = web.opened(issue.token)
    assert after._request.shared is None
    assert (after["n"], reader["n"], reader["list"]) == (2, 1, [1, [2]])


def test_only_what_pays_is_shared() -> None:
    web = Farm().web()
    token = web.create(**DATA)
    assert web.opened(token)._request.shared is None, "it may be changed each time"
    session = warm(web, token)
    assert session["list"] == [1, [2]]
    assert session._request.shared is None
    look_at(web, token)
    assert web.opened(token)._request.shared is None, "an app that asks for lists gets its own at once"
    large = web.create(text="x" * MAX_SHARED_BYTES)
    look_at(web, large)
    assert web.opened(large)._request.shared is None


def test_what_is_served_is_shared() -> None:
    async def serve() -> list[bool]:
        stores = [MemoryStore(name, time.monotonic) for name in ("one", "two")]
        sessions = Sessions(farm="farm", server_name="web", stores=stores, ring=KeyRing([bytes(32)]), in_memory=True)
        opened = await sessions.open()
        opened.session.update(DATA)
        answer = await sessions.finish(opened)
        cookie = answer.cookies[0][1].partition(b";")[0]
        shared = []
        for _ in range(4):
            opened = await sessions.open(cookie)
            assert opened.session.get("n") == 1
            shared.append(opened.session._request.shared is not None)
            await sessions.finish(opened)
        await sessions.aclose()
        return shared

    assert asyncio.run(serve()) == [False, False, True, True]


def test_what_is_shared_is_bounded_and_ends_with_its_session(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(opening, "MAX_SHARED", 3)
    web = Farm().web()
    tokens = [web.create(number=number) for number in range(5)]
    for token in tokens:
        look_at(web, token)
    assert list(web.lifecycle._shared) == [token.key for token in tokens[2:]]
    session = web.opened(tokens[4])
    session.close()
    web.save(session)
    assert list(web.lifecycle._shared) == [token.key for token in tokens[2:4]]
