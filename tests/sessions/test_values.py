"""Values come back as what they were: from another web server, from another version of their class, or as they came."""

from __future__ import annotations

import asyncio
import copy
import dataclasses
import datetime
import enum
import math
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st
from markupsafe import Markup
from msgspec.msgpack import Ext

from coatcheck import not_json, register_value
from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import ConfigError, ConflictError, CorruptEntry, SessionDataError
from coatcheck.sessions.delta import Delta, diff, merge
from coatcheck.sessions.description import describe
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.record import decode_data, encode_data, look_into_data, open_data
from coatcheck.sessions.value_names import by_class, by_name, lookalikes, registered_values
from coatcheck.sessions.value_reading import UnknownValue
from coatcheck.sessions.values import MAX_DEPTH
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.keyring import KeyRing
from replication.tiny_farm import Farm


def named(found: object) -> str:
    """What a case is called: the same in every process, as the texts of sets and of objects are not."""
    return found[:24] if isinstance(found, str) else type(found).__name__


class Point(msgspec.Struct, frozen=True):
    x: int
    y: int = 2


class Basket(msgspec.Struct, rename="camel", tag=True, array_like=True):
    item_list: list[Any]
    note: str | None = None


@dataclasses.dataclass
class Cart:
    items: list[Any]
    total: Decimal = Decimal(0)
    counted: int = dataclasses.field(default=0, init=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Price:
    amount: Decimal
    currency: str = "EUR"


class Profile(pydantic.BaseModel):
    name: str = pydantic.Field(alias="fullName")
    tags: set[str] = set()
    site: pydantic.HttpUrl | None = None
    at: datetime.datetime | None = None

    @pydantic.computed_field  # type: ignore[prop-decorator]
    @property
    def shout(self) -> str:
        return self.name.upper()


class Colour(enum.Enum):
    RED = "red"


class Money:
    """A class of none of the kinds that are known."""

    def __init__(self, cents: int) -> None:
        self.cents = cents

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Money) and other.cents == self.cents

    def __hash__(self) -> int:
        return hash(self.cents)

    def __repr__(self) -> str:
        return f"Money({self.cents})"


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    """Each test registers what it needs; nothing is left of it."""
    tables: list[Any] = [by_class, by_name]
    before = [dict(table) for table in tables]
    yield
    for table, content in zip(tables, before, strict=True):
        table.clear()
        table.update(content)
    lookalikes.intersection_update(by_class)


def register_all() -> None:
    register_value(Point, name="point")
    register_value(Basket, name="basket")
    register_value(Cart, name="cart.v1")
    register_value(Price, name="price")
    register_value(Profile, name="profile")
    register_value(Colour, name="colour")
    register_value(Money, name="money", encode=lambda money: money.cents, decode=Money)


def counted_cart() -> Cart:
    cart = Cart([1, (2,)], Decimal("3.50"))
    cart.counted = 7
    return cart


LIBRARY: list[Any] = [
    UUID(int=7),
    datetime.date(2026, 1, 2),
    datetime.date.min,
    datetime.datetime(2026, 1, 2, 3, 4, 5, 6),
    datetime.datetime(2026, 10, 25, 2, 30, fold=1),
    datetime.datetime.max,
    datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC),
    datetime.time(1, 2, 3, 4),
    datetime.time(2, 30, fold=1),
    datetime.time(1, tzinfo=datetime.timezone(datetime.timedelta(hours=2))),
    datetime.timedelta(days=-1, microseconds=5),
    datetime.timedelta.max,
    datetime.timedelta.min,
    Decimal("1.00"),
    Decimal("-0"),
    Decimal("1E+999999"),
    Decimal("Infinity"),
    set(),
    {1, "a", None, (1, 2), b"b", 2.5},
    frozenset(),
    frozenset({frozenset({UUID(int=1)}), datetime.date(2026, 1, 2)}),
    (),
    (1, [2, (3,)], {"a": (4, {5})}),
    [(1,), {2}],
    {"nested": {"deep": [Decimal("0.10")]}},
    "text",
    2**64 - 1,
    -(2**63),
    1.5,
    True,
    None,
    b"bytes",
    [1, [2]],
    {"a": {"b": 1}},
]
CLASSES: list[Any] = [
    Point(1),
    Basket([Point(3, 4), {5}], "note"),
    counted_cart(),
    Price(Decimal("9.90")),
    Profile(fullName="Ada", tags={"x", "y"}, at=datetime.datetime(2026, 1, 1)),
    Profile.model_validate({"fullName": "Bob", "site": "https://example.org/"}),
    Colour.RED,
    Money(3),
    {Price(Decimal(1)), Price(Decimal(2))},
    (Cart([Cart([])]), [Colour.RED]),
]


def alike(one: Any, other: Any) -> bool:
    """Equal, of the same types throughout."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return [*one] == [*other] and all(alike(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(alike, one, other))
    if isinstance(one, set | frozenset):
        return len(one) == len(other) and all(any(alike(each, its) for its in other) for each in one)
    if isinstance(one, float) and math.isnan(one):
        return math.isnan(other)
    if isinstance(one, Cart):
        return all(alike(getattr(one, name), getattr(other, name)) for name in ("items", "total", "counted"))
    if isinstance(one, datetime.datetime) and one.tzinfo is not None:
        return bool(one == other)  # the instant
    if isinstance(one, Decimal | datetime.datetime | datetime.time):
        return repr(one) == repr(other)
    return bool(one == other)


def there_and_back(value: Any) -> Any:
    return decode_data(encode_data({"k": value}))["k"]


# -- through sessions ----------------------------------------------------------------------------


@pytest.mark.parametrize("value", [*LIBRARY, *CLASSES], ids=named)
def test_another_web_server_finds_what_was_stored(value: Any) -> None:
    register_all()
    farm = Farm()
    one, other = farm.web(), farm.web()
    token = one.create(k=value, n=1)
    session = other.opened(token)
    assert alike(session["k"], value)
    before = encode_data(session, session._request.kept)
    assert before == session._request.blob, "a look changes nothing"
    session["n"] = 2
    issue = other.save(session).issue
    again = one.opened(issue.token if issue else token)
    assert alike(again["k"], value)
    assert again["n"] == 2


def test_all_of_them_through_open_and_finish() -> None:
    register_all()
    data = {str(number): value for number, value in enumerate([*LIBRARY, *CLASSES])}

    async def serve() -> None:
        stores = [MemoryStore("one", time.monotonic)]
        ring = KeyRing([bytes(32)])
        one, other = (
            Sessions(farm="farm", server_name=name, stores=stores, ring=ring, in_memory=True) for name in ("a", "b")
        )
        opened = await one.open()
        opened.session.update(data)
        answer = await one.finish(opened)
        cookie = answer.cookies[0][1].partition(b";")[0]
        opened = await other.open(cookie)
        assert alike(dict(opened.session), data)
        assert opened.key is not None
        shown = await one.show(opened.key)
        assert shown is not None
        assert shown.data is not None
        assert msgspec.json.decode(msgspec.json.encode(shown))["data"]["0"] == str(UUID(int=7))
        await other.finish(opened)

    asyncio.run(serve())


PLAIN = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats()
    | st.text(max_size=4)
    | st.binary(max_size=4)
)
PLAIN_DATA = st.dictionaries(
    st.text(max_size=4),
    st.recursive(
        PLAIN,
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
        max_leaves=12,
    ),
    max_size=4,
)
HASHABLE = st.recursive(
    PLAIN.filter(lambda value: value == value)
    | st.uuids()
    | st.dates()
    | st.datetimes()
    | st.times()
    | st.timedeltas()
    | st.decimals(allow_nan=False)
    | st.builds(Price, st.decimals(allow_nan=False)),
    lambda inner: st.frozensets(inner, max_size=3) | st.lists(inner, max_size=3).map(tuple),
    max_leaves=4,
)
ANY = st.recursive(
    HASHABLE | st.datetimes(timezones=st.just(datetime.UTC)) | st.just(Decimal("NaN")),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=3), inner, max_size=3)
        | st.sets(HASHABLE, max_size=3)
        | st.builds(Cart, st.lists(inner, max_size=2), st.just(Decimal(1)))
    ),
    max_leaves=8,
)


@given(PLAIN_DATA)
def test_plain_data_is_stored_as_it_always_was(data: dict[str, Any]) -> None:
    assert encode_data(data) == msgspec.msgpack.encode(data)
    assert open_data(encode_data(data))[1] is None


@given(st.dictionaries(st.text(max_size=3), ANY, max_size=4))
def test_any_nest_of_values_comes_back_and_is_the_same_bytes_again(data: dict[str, Any]) -> None:
    register_all()
    encoded = encode_data(data)
    found, kept = open_data(encoded)
    assert alike(found, data)
    assert encode_data(found, kept) == encoded
    look_into_data(encoded)


@given(st.binary(max_size=60), st.integers(0, 12))
def test_nonsense_is_refused_with_one_error(noise: bytes, code: int) -> None:
    register_all()
    head = b"\x81\xa1k\xc7" + bytes([len(noise), code])
    for data in (noise, head + noise):
        for read in (decode_data, look_into_data):
            try:
                assert isinstance(read(data), dict)
            except CorruptEntry as corrupt:
                assert "not a session's data" in str(corrupt)


# -- the format ----------------------------------------------------------------------------------

VECTORS: list[tuple[Any, bytes]] = [
    # Written out by hand from the MessagePack specification: 81 a1 6b is {"k": ...}; d4 to d8 are fixext 1, 2, 4, 8
    # and 16, c7 is ext 8 with a length; then the code, then the payload.
    (UUID("00112233-4455-6677-8899-aabbccddeeff"), b"\xd8\x01" + bytes.fromhex("00112233445566778899aabbccddeeff")),
    (datetime.date(2026, 1, 2), b"\xc7\x0a\x02" + b"2026-01-02"),
    (datetime.datetime(2026, 1, 2, 3, 4, 5), b"\xc7\x13\x03" + b"2026-01-02T03:04:05"),
    (datetime.datetime(2026, 1, 2, 3, 4, fold=1), b"\xc7\x14\x03" + b"2026-01-02T03:04:00~"),
    (datetime.time(1, 2, 3), b"\xd7\x04" + b"01:02:03"),
    (datetime.timedelta(days=1, seconds=2, microseconds=3), b"\xd6\x05" + b"\x93\x01\x02\x03"),
    (datetime.timedelta(microseconds=-1), b"\xc7\x0c\x05" + b"\x93\xff\xce\x00\x01\x51\x7f\xce\x00\x0f\x42\x3f"),
    (Decimal("1.00"), b"\xd6\x06" + b"1.00"),
    (Decimal("-0"), b"\xd5\x06" + b"-0"),
    ((1, "a"), b"\xd6\x07" + b"\x92\x01\xa1a"),
    ((), b"\xd4\x07" + b"\x90"),
    ({2, 1}, b"\xc7\x03\x08" + b"\x92\x01\x02"),
    (frozenset({"b", "a"}), b"\xc7\x05\x09" + b"\x92\xa1a\xa1b"),
    (Point(1), b"\xc7\x0e\x0a" + b"\x92\xa5point" + b"\x82\xa1x\x01\xa1y\x02"),
    (Colour.RED, b"\xc7\x0c\x0a" + b"\x92\xa6colour" + b"\xa3red"),
    (datetime.datetime(1970, 1, 1, 0, 0, 1, tzinfo=datetime.UTC), b"\xd6\xff\x00\x00\x00\x01"),
]


@pytest.mark.parametrize(("value", "stored"), VECTORS, ids=named)
def test_the_format_is_what_the_page_says(value: Any, stored: bytes) -> None:
    register_all()
    assert encode_data({"k": value}) == b"\x81\xa1k" + stored
    assert alike(decode_data(b"\x81\xa1k" + stored)["k"], value)


def test_equal_sets_are_equal_bytes_in_every_process() -> None:
    program = "import sys; from coatcheck.sessions.record import encode_data; " + (
        "print(encode_data({'k': {'a', 'b', 'c', 'd', ('e', 1), 7}}).hex())"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            check=True,
            timeout=60,
        ).stdout
        for seed in ("1", "2", "3")
    }
    assert len(found) == 1


def test_a_release_that_knows_no_extensions_writes_them_back_as_they_came() -> None:
    """It reads data with a decoder without a hook, and writes what that gives."""
    register_all()
    stored = encode_data({"a": UUID(int=1), "b": [Point(1)], "n": 1})
    found = msgspec.msgpack.Decoder(dict[str, Any]).decode(stored)
    assert msgspec.msgpack.encode(found | {"n": 1}) == stored


def test_an_extension_of_a_later_release_is_written_back_as_it_came() -> None:
    stored = b"\x82\xa1k\xd6\x63abcd\xa1n\x01"
    found, kept = open_data(stored)
    found["n"] = 1
    assert encode_data(found, kept) == stored
    assert decode_data(encode_data({"k": Ext(99, b"abcd")}))["k"].data == b"abcd"


# -- what counts as a change ---------------------------------------------------------------------

IN_PLACE: dict[str, tuple[Any, Callable[[Any], Any]]] = {
    "a set": ({1}, lambda found: found.add(2)),
    "a dataclass": (Cart([]), lambda found: found.items.append(1)),
    "a field": (Cart([]), lambda found: setattr(found, "total", Decimal("1.0"))),
    "a struct": (Basket([]), lambda found: setattr(found, "note", "x")),
    "a model": (Profile(fullName="a"), lambda found: found.tags.add("x")),
    "a list in a tuple": (([1],), lambda found: found[0].append(2)),
    "a set in a list": ([{1}], lambda found: found[0].clear()),
    "a list made a tuple": ([[1], {2}], lambda found: found.__setitem__(0, (1,))),
    "zeros of a Decimal": ([Decimal("1.0")], lambda found: found.__setitem__(0, Decimal("1.00"))),
    "text made a UUID": ([str(UUID(int=1)), ()], lambda found: found.__setitem__(0, UUID(int=1))),
}


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("way", IN_PLACE)
def test_a_change_in_place_is_stored(way: str, warm: bool) -> None:
    register_all()
    before, change = copy.deepcopy(IN_PLACE[way][0]), IN_PLACE[way][1]
    web = Farm().web()
    token = web.create(k=before, n=1)
    if warm:
        for _ in range(2):
            looked = web.opened(token)
            looked.get("n")
            web.lifecycle.share(looked)
    session = web.opened(token)
    change(session["k"])
    expected = copy.deepcopy(dict.__getitem__(session, "k"))
    assert not web.lifecycle.is_settled(session)
    issue = web.save(session).issue
    assert issue is not None
    found = web.opened(issue.token)["k"]
    assert alike(found, expected)
    assert not alike(found, before)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([1], (1,)),
        ((1,), [1]),
        ({1}, [1]),
        ({1}, frozenset({1})),
        (str(UUID(int=1)), UUID(int=1)),
        ("2026-01-02", datetime.date(2026, 1, 2)),
        ("1.5", Decimal("1.5")),
        (Decimal("1.0"), Decimal("1.00")),
        ({"x": 1, "y": 2}, Point(1, 2)),
    ],
)
def test_a_value_of_another_type_is_a_change(before: Any, after: Any) -> None:
    register_all()
    web = Farm().web()
    token = web.create(k=before)
    session = web.opened(token)
    session["k"] = after
    issue = web.save(session).issue
    assert issue is not None
    assert alike(web.opened(issue.token)["k"], after)
    assert diff({"k": before}, {"k": after}).changed.keys() == {"k"}


IMMUTABLE = [value for value in LIBRARY if type(value) not in (set, list, dict)]


@pytest.mark.parametrize("value", [each for each in IMMUTABLE if each != LIBRARY[22]], ids=named)
def test_who_looks_at_what_cannot_change_leaves_the_session_settled(value: Any) -> None:
    web = Farm().web()
    token = web.create(k=value, n=1)
    web.opened(token)
    session = web.opened(token)
    assert session["k"] == value
    assert web.lifecycle.is_settled(session)


@pytest.mark.parametrize("value", [({},), {1}, frozenset({Money(1)}), (Point(1),)], ids=named)
def test_who_is_handed_what_can_change_unsettles_the_session(value: Any) -> None:
    register_all()
    web = Farm().web()
    session = web.opened(web.create(k=value))
    assert session["k"] == value
    assert session._request.unsettled


def test_requests_that_share_data_have_changeable_values_of_their_own() -> None:
    register_all()
    web = Farm().web()
    token = web.create(s={1}, c=Cart([1]), n=1)
    for _ in range(2):
        session = web.opened(token)
        session.get("n")
        web.lifecycle.share(session)
    one, other = web.opened(token), web.opened(token)
    assert one._request.shared is not None
    one["s"].add(2)
    one["c"].items.append(2)
    assert (other["s"], other["c"]) == ({1}, Cart([1]))


# -- two changes at once -------------------------------------------------------------------------


def test_two_requests_that_change_other_keys_both_count() -> None:
    register_all()
    web = Farm().web()
    token = web.create(s={1}, c=Cart([1]), t=(1,), nan=float("nan"), n=1)
    one, other = web.opened(token), web.opened(token)
    one["s"].add(2)
    other["c"].items.append(2)
    web.save(one)
    issue = web.save(other).issue
    found = web.opened(issue.token if issue else token)
    assert (found["s"], found["c"], found["t"]) == ({1, 2}, Cart([1, 2]), (1,))


@pytest.mark.parametrize(
    ("base", "theirs", "mine"),
    [
        ({1}, {1, 2}, {1, 3}),
        (Cart([]), Cart([1]), Cart([2])),
        ((1,), (1, 2), (1, 3)),
        (Decimal("1.0"), Decimal("1.00"), Decimal("2")),
    ],
)
def test_a_value_is_one_thing_in_a_merge(base: Any, theirs: Any, mine: Any) -> None:
    register_all()
    assert merge({"k": base}, {"k": theirs}, {"k": mine}, "last_write") == {"k": mine}
    with pytest.raises(ConflictError):
        merge({"k": base}, {"k": theirs}, {"k": mine}, "reject")


def test_what_nobody_changed_is_no_change() -> None:
    register_all()
    data = {"nan": float("nan"), "big": set(range(50)), "d": Decimal("sNaN"), "u": {"a": Cart([{"x"}])}}
    stored = encode_data(data)
    assert diff(decode_data(stored), decode_data(stored)) == Delta({}, frozenset())


# -- another version of a class ------------------------------------------------------------------

OLD = """
import dataclasses, sys
from decimal import Decimal
import msgspec
import pydantic
from coatcheck import register_value

class Point(msgspec.Struct):
    x: int

@dataclasses.dataclass
class Cart:
    items: list

class Profile(pydantic.BaseModel):
    name: str

@dataclasses.dataclass(frozen=True)
class Frozen:
    a: int
    rest: dict = dataclasses.field(default_factory=dict)

EXTRA = {"unknown_fields": "rest"}
"""
NEW = """
import dataclasses, sys
from decimal import Decimal
import msgspec
import pydantic
from coatcheck import register_value

class Point(msgspec.Struct):
    label: str = "none"
    x: int = 0

@dataclasses.dataclass
class Cart:
    coupon: Decimal | None = None
    items: list = dataclasses.field(default_factory=list)
    buyers: set = dataclasses.field(default_factory=set)

class Profile(pydantic.BaseModel):
    name: str
    age: int = 0

@dataclasses.dataclass(frozen=True)
class Frozen:
    a: int
    b: int = 5

EXTRA = {}
"""
REQUEST = """
register_value(Point, name="schema.point")
register_value(Cart, name="schema.cart")
register_value(Profile, name="schema.profile")
register_value(Frozen, name="schema.frozen", **EXTRA)

import asyncio
from coatcheck import connect

async def request(do):
    sessions = connect(f"sqlite:///{sys.argv[1]}", key="m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    await sessions.start()
    opened = await sessions.open(sys.argv[2].encode())
    do(opened.session)
    blob = opened.session._request.blob
    answer = await sessions.finish(opened)
    assert not answer.refused, answer
    cookie = answer.cookies[0][1].partition(b";")[0] if answer.cookies else sys.argv[2].encode()
    print(cookie.decode())
    await sessions.aclose()

asyncio.run(request(do))
"""


def in_a_process(version: str, what: str, file: Path, cookie: str = "") -> str:
    """One request in a process of its own; returns the cookie that the browser has then."""
    lines = "".join(f"    {line}\n" for line in what.strip().splitlines())
    program = f"{version}\ndef do(session):\n{lines}{REQUEST}"
    done = subprocess.run(
        [sys.executable, "-c", program, str(file), cookie], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_old_and_new_code_of_a_class_serve_one_session_in_turns(tmp_path: Path) -> None:
    """As in a farm during a deploy: the new version adds fields, and both run at once."""
    file = tmp_path / "sessions.db"
    made = """
session["cart"] = Cart(coupon=Decimal("5.00"), items=[Point(label="here", x=1)], buyers={"ada"})
session["profile"] = Profile(name="Ada", age=36)
session["frozen"] = Frozen(1, 9)
"""
    cookie = in_a_process(NEW, made, file)
    changed = """
assert type(session["cart"]) is Cart and session["cart"].items[0].x == 1
session["cart"].items[0].x = 2
session["cart"].items.append(Point(x=7))
session["profile"].name = "Bob"
session["frozen"] = dataclasses.replace(session["frozen"], a=2)
session["moved"] = session["cart"]
"""
    cookie = in_a_process(OLD, changed, file, cookie)
    seen = """
assert session["cart"] == Cart(Decimal("5.00"), [Point("here", 2), Point("none", 7)], {"ada"}), session["cart"]
assert session["moved"] == session["cart"]
assert session["profile"] == Profile(name="Bob", age=36)
assert session["frozen"] == Frozen(2, 9)
session["n"] = 1
"""
    cookie = in_a_process(NEW, seen, file, cookie)
    cookie = in_a_process(OLD, 'assert session["cart"].items[0].x == 2', file, cookie)
    in_a_process(NEW, seen, file, cookie)


def test_what_old_code_began_new_code_goes_on_with(tmp_path: Path) -> None:
    file = tmp_path / "sessions.db"
    made = 'session["cart"] = Cart([Point(1)])\nsession["profile"] = Profile(name="Ada")\nsession["frozen"] = Frozen(1)'
    cookie = in_a_process(OLD, made, file)
    seen = """
assert session["cart"] == Cart(None, [Point("none", 1)], set()), session["cart"]
assert session["profile"] == Profile(name="Ada", age=0)
assert session["frozen"] == Frozen(1, 5)
"""
    in_a_process(NEW, seen, file, cookie)


def two_versions() -> tuple[type, type]:
    first = msgspec.defstruct("First", [("a", int)])
    second = msgspec.defstruct("Second", [("b", int, 0), ("a", int, 0)])
    return first, second


def stored_by(cls: type, *args: Any, **fields: Any) -> bytes:
    """As a process stores it that has this version of the class."""
    register_value(cls, name="versioned")
    try:
        return encode_data({"k": cls(*args, **fields), "n": 1})
    finally:
        del by_class[cls], by_name["versioned"]


def test_old_code_that_only_looks_writes_nothing() -> None:
    """Or else old and new web servers would store each session anew in turns."""
    first, second = two_versions()
    stored = stored_by(second, a=1, b=2)
    register_value(first, name="versioned")
    found, kept = open_data(stored)
    assert found["k"].a == 1
    assert encode_data(found, kept) == stored


def test_a_merge_in_old_code_keeps_what_new_code_changed() -> None:
    first, second = two_versions()
    web = Farm().web()
    base, theirs = stored_by(second, a=1, b=2), stored_by(second, a=1, b=3)
    register_value(first, name="versioned")
    (one, its), (other, others) = open_data(base), open_data(theirs)
    kept = {**its, **others}
    assert diff(one, other, kept).changed.keys() == {"k"}, "the class sees no difference, but there is one"
    merged = merge(one, other, dict(one) | {"n": 2}, "reject", kept)
    assert encode_data(merged | {"n": 1}, kept) == theirs
    assert web.events == []


def test_a_new_instance_has_nothing_of_the_old_one() -> None:
    """Above all not of another user's."""
    first, second = two_versions()
    stored = stored_by(second, a=1, b=2)
    register_value(first, name="versioned")
    found, kept = open_data(stored)
    found["k"] = first(1)
    again = look_into_data(encode_data(found, kept))
    assert again["k"].payload == {"a": 1}


def test_a_payload_that_the_class_refuses_is_kept_and_says_so() -> None:
    first = msgspec.defstruct("First", [("a", int)])
    other = msgspec.defstruct("Other", [("needed", int)])
    stored = stored_by(first, 1)
    register_value(other, name="versioned")
    found, kept = open_data(stored)
    value = found["k"]
    assert isinstance(value, UnknownValue)
    assert "refused by" in value.problem
    with pytest.raises(AttributeError, match=r"'versioned' has no 'needed' here: it is refused by .*Other"):
        _ = value.needed
    assert encode_data(found, kept) == stored


def test_what_a_class_says_of_its_values_is_not_told() -> None:
    """Errors go to logs, and sessions hold secrets."""
    model = pydantic.create_model("Model", card=(str, ...))
    narrow = pydantic.create_model("Narrow", card=(int, ...))
    stored = stored_by(model, card="4111-1111")
    register_value(narrow, name="versioned")
    value = decode_data(stored)["k"]
    assert isinstance(value, UnknownValue)
    assert "4111" not in value.problem + repr(value)


# -- names that are not known here ---------------------------------------------------------------


def test_a_process_without_the_classes_writes_them_back_unchanged() -> None:
    register_all()
    farm = Farm()
    web = farm.web()
    token = web.create(c=Cart([Point(1), {Price(Decimal(1))}]), p={Price(Decimal(2))}, n=1)
    stored = web.opened(token)._request.blob
    by_class.clear()
    by_name.clear()
    other = farm.web()
    session = other.opened(token)
    value = session["c"]
    assert isinstance(value, UnknownValue)
    assert value.name == "cart.v1"
    assert value.payload["items"][0].payload == {"x": 1, "y": 2}
    assert repr(value) == f"<UnknownValue 'cart.v1' of {len(value._stored)} bytes: not registered in this process>"
    for same in (copy.deepcopy(value), copy.copy(value), pickle.loads(pickle.dumps(value))):
        assert same == value
        assert hash(same) == hash(value)
    session["n"] = 2
    issue = other.save(session).issue
    token = issue.token if issue else token
    register_all()
    session = web.opened(token)
    assert session["c"] == Cart([Point(1), {Price(Decimal(1))}])
    session["n"] = 1
    web.save(session)
    assert session._request.blob == stored


def test_a_set_whose_members_can_be_hashed_no_more_is_still_read() -> None:
    register_value(Price, name="price")
    stored = encode_data({"k": {Price(Decimal(1))}})
    del by_class[Price], by_name["price"]
    unhashable = dataclasses.make_dataclass("Price", ["amount", "currency"])
    register_value(unhashable, name="price")
    found, kept = open_data(stored)
    assert {each.name for each in found["k"]} == {"price"}
    assert encode_data(found, kept) == stored


def test_those_who_look_from_outside_run_nothing_of_the_app() -> None:
    made = []
    register_value(Money, name="money", encode=lambda money: money.cents, decode=made.append)
    data = look_into_data(encode_data({"k": Money(3), "t": (1, {2})}))
    assert made == []
    assert data["k"].payload == 3


def test_the_session_service_shows_values_as_json() -> None:
    register_all()
    web = Farm().web()
    session = web.opened(web.create(c=Cart([Point(1)], Decimal("1.50")), t=(1, {3, 2}), u=UUID(int=7), b={1: None}))
    state = describe(session, SessionPolicy())
    assert state is not None
    cart = {"counted": 0, "items": [{"$value": "point", "payload": {"x": 1, "y": 2}}], "total": "1.50"}
    assert msgspec.json.decode(msgspec.json.encode(state.data)) == {
        "c": {"$value": "cart.v1", "payload": cart},
        "t": [1, [2, 3]],
        "u": str(UUID(int=7)),
        "b": {"1": None},
    }


def test_what_is_not_plain_json_is_named() -> None:
    data = {
        "fine": [1, {"a": None, "b": [1.5, True, "x"]}],
        "tuple": (1,),
        "deep": {"a": [1, {2}]},
        "bytes": b"x",
        "nan": [math.nan],
        "key": {1: 2},
        "id": UUID(int=1),
    }
    found = not_json(Session(data))
    assert found == {
        "tuple": "tuple",
        "deep": "['a'][1]: set",
        "bytes": "bytes",
        "nan": "[0]: a float that is not finite",
        "key": "a key of type int",
        "id": "UUID",
    }


# -- what is refused -----------------------------------------------------------------------------


class Pair(NamedTuple):
    a: int
    b: int


class Level(enum.StrEnum):
    HIGH = "high"


REFUSED: list[tuple[Any, str]] = [
    (object(), r"value of 'k': object: sessions hold no such values; store what it has as plain ones"),
    (
        [1, {"a": Point(1)}],
        r"value of 'k', at \[1\]\['a'\]: .*test_values.Point is not registered .*coatcheck.register_value",
    ),
    ((1, Colour.RED), r"value of 'k', at \[1\]: .*Colour is not registered"),
    ({Money(1)}, r"value of 'k': .*Money is not registered"),
    (Cart([1, Money(2)]), r"value of 'k', at .items\[1\]: .*Money is not registered"),
    ({UUID(int=1): 1}, r"at \[UUID\(.*\)\]: a key of type uuid.UUID would come back as another type; use text"),
    ((2**64,), r"at \[0\]: an integer beyond 64 bits"),
    (("\ud800",), r"at \[0\]: text that UTF-8 cannot write"),
    (datetime.time(1, tzinfo=ZoneInfo("Europe/Berlin")), r"a time with a zone that needs a date"),
    (datetime.datetime.max.replace(tzinfo=datetime.timezone(-datetime.timedelta(hours=2))), r"beyond the years"),
    (Ext(1, b""), r"extension of code 1, which is coatcheck's own"),
    (1j, r"value of 'k': complex"),
]


@pytest.mark.parametrize(("value", "words"), REFUSED, ids=named)
def test_what_cannot_be_stored_is_named_with_its_place(value: Any, words: str) -> None:
    register_value(Cart, name="cart.v1")
    with pytest.raises(SessionDataError, match=words) as refused:
        encode_data({"fine": (1,), "k": value})
    assert "the session cannot be stored" in str(refused.value)
    assert len(str(refused.value)) < 600


def test_kinds_of_plain_values_come_back_as_what_they_are_kinds_of() -> None:
    class Day(datetime.date):
        pass

    found = there_and_back([Markup("<b>"), Level.HIGH, Pair(1, 2), Day(2026, 1, 2), bytearray(b"x"), ()])
    assert alike(found, ["<b>", "high", (1, 2), datetime.date(2026, 1, 2), b"x", ()])


def test_a_kind_of_text_may_be_registered() -> None:
    """As an adapter does for what its framework promises."""
    register_value(Markup, name="markup", encode=str.__str__, decode=Markup)
    register_value(Level, name="level")
    register_value(Pair, name="pair", encode=tuple, decode=lambda parts: Pair(*parts))
    web = Farm().web()
    for stored in (Markup("<b>"), Level.HIGH, Pair(1, 2)):
        token = web.create(k="<b>", n=1)
        session = web.opened(token)
        session["k"] = stored
        issue = web.save(session).issue
        assert issue is not None
        assert alike(web.opened(issue.token)["k"], stored)
        assert alike(there_and_back([{"deep": stored}]), [{"deep": stored}])


@pytest.mark.parametrize(
    ("value", "levels"), [(lambda inner: (inner,), 25), (lambda inner: Cart([inner]), 20), (lambda inner: [inner], 100)]
)
def test_how_deep_values_may_be_nested(value: Callable[[Any], Any], levels: int) -> None:
    register_value(Cart, name="cart.v1")
    nested: Any = UUID(int=1)
    for _ in range(levels):
        nested = value(nested)
    assert there_and_back(nested) == nested
    with pytest.raises(SessionDataError, match=f"nested more than {MAX_DEPTH} deep"):
        encode_data({"k": value(nested)})


def test_what_is_stored_may_not_be_nested_without_end() -> None:
    data = b"\x90"
    for _ in range(5_000):
        data = (
            b"\xc9" + len(data + b"\x91").to_bytes(4) + b"\x07" + b"\x91" + data if data != b"\x90" else b"\xd4\x07\x90"
        )
    with pytest.raises(CorruptEntry):
        decode_data(b"\x81\xa1k" + data)


# -- registering ---------------------------------------------------------------------------------


@dataclasses.dataclass
class WithInitVar:
    a: int
    seed: dataclasses.InitVar[int]


@pytest.mark.parametrize(
    ("cls", "options", "words"),
    [
        (Point, {"name": ""}, "name: 1 to 64 letters"),
        (Point, {"name": "two words"}, "name: 1 to 64 letters"),
        (Point, {"name": "x" * 65}, "name: 1 to 64 letters"),
        (Point, {"name": 5}, "name: 1 to 64 letters"),
        (Point(1), {"name": "point"}, "give a class"),
        (list[int], {"name": "ints"}, "give a class"),
        (Money, {"name": "money"}, "no msgspec Struct, dataclass, pydantic model or Enum; give encode and decode"),
        (Money, {"name": "money", "encode": str}, "both encode and decode"),
        (WithInitVar, {"name": "with"}, "cannot be made of its fields: 'seed' is none"),
        (Point, {"name": "point", "unknown_fields": "rest"}, "has no field 'rest'"),
        (Profile, {"name": "profile", "unknown_fields": "rest"}, 'extra="allow"'),
        (UUID, {"name": "uuid"}, "hold it without being told"),
        (dict, {"name": "dict"}, "hold it without being told"),
        (Cart, {"name": "taken"}, "the name 'taken' is that of .*Price"),
        (Price, {"name": "other"}, "it is registered as 'taken'"),
    ],
)
def test_what_cannot_be_registered_is_refused(cls: Any, options: dict[str, Any], words: str) -> None:
    before = registered_values()  # other tests of this process may have registered theirs
    register_value(Price, name="taken")
    with pytest.raises(ConfigError, match=rf"^register_value: .*{words}"):
        register_value(cls, **options)
    assert registered_values() == before | {"taken": Price}


def test_a_module_that_is_loaded_anew_registers_its_classes_anew() -> None:
    before = registered_values()
    register_value(Price, name="price")
    register_value(Price, name="price")
    again = dataclasses.make_dataclass("Price", ["amount"], namespace={"__module__": __name__})
    again.__module__ = __name__
    register_value(again, name="price")
    assert registered_values() == before | {"price": again}
