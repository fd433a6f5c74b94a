"""Session IDs, records and the breaker: rules without sockets."""

from __future__ import annotations

import secrets

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.tls.breaker import FAILURES_IN_A_ROW, FIRST_PAUSE_S, MAX_PAUSE_S, Breaker
from coatcheck.tls.hosts import Siblings, as_host
from coatcheck.tls.record import RecordSealer, RecordVerdict, SessionRecord, judge_record
from coatcheck.tls.session_id import ID_BYTES, SessionIds, item_key, server_tag, store_tag
from coatcheck.tokens.keyring import KeyRing

OLD, NEW = secrets.token_bytes(32), secrets.token_bytes(32)
RING = KeyRing([OLD])
STORE = store_tag("session-1")
RECORD = SessionRecord("web-1", "shop.test", b"c" * 32, 1000, 0x0304, b"state")


def ids(ring: KeyRing = RING, farm: str = "farm", server: str = "web-1") -> SessionIds:
    return SessionIds(ring, farm, server, secrets.token_bytes)


def test_an_id_names_its_server_and_its_store_to_every_server_of_the_farm() -> None:
    raw = ids().new(STORE)
    assert len(raw) == ID_BYTES
    assert ids(server="web-2").read(raw) == (server_tag("web-1"), STORE)
    assert ids(farm="other").read(raw) is None
    assert ids(KeyRing([NEW])).read(raw) is None


def test_ids_outlive_a_rotation_of_the_keys() -> None:
    ring = KeyRing([OLD])
    maker = ids(ring)
    before = maker.new(STORE)
    ring.change([OLD, NEW], 1)
    after = maker.new(STORE)
    assert maker.read(before) and maker.read(after)
    ring.change([NEW], 0)
    assert maker.read(before) is None
    assert maker.read(after)


def test_one_changed_bit_and_it_is_not_ours() -> None:
    raw = ids().new(STORE)
    for bit in range(8 * ID_BYTES):
        changed = bytearray(raw)
        changed[bit // 8] ^= 1 << bit % 8
        assert ids().read(bytes(changed)) is None


@given(st.binary(max_size=40))
def test_any_other_bytes_are_not_ours(raw: bytes) -> None:
    assert ids().read(raw) is None


def test_no_two_ids_and_no_two_keys_are_the_same() -> None:
    made = {ids().new(STORE) for _ in range(1000)}
    assert len(made) == len({item_key(raw) for raw in made}) == 1000


@pytest.mark.parametrize(
    ("context", "host", "now_ms", "verdict"),
    [
        (b"c" * 32, "shop.test", 999, RecordVerdict.RESUME),
        (b"c" * 32, "shop.test", 1000, RecordVerdict.EXPIRED),
        (b"d" * 32, "shop.test", 0, RecordVerdict.OTHER_CONTEXT),
        (b"c" * 32, "blog.test", 0, RecordVerdict.OTHER_HOST),
        (b"c" * 32, "", 0, RecordVerdict.OTHER_HOST),
        (b"c" * 32, "www.shop.test", 0, RecordVerdict.RESUME),
    ],
)
def test_who_may_resume_a_record(context: bytes, host: str, now_ms: int, verdict: RecordVerdict) -> None:
    siblings = Siblings([["shop.test", "www.shop.test"], ["blog.test"]])
    assert judge_record(RECORD, context, host, siblings, now_ms) is verdict


@pytest.mark.parametrize(
    ("name", "host"),
    [("Shop.TEST.", "shop.test"), (b"SHOP.test", "shop.test"), ("", ""), (b"\xff", ""), ("a" * 256, "")],
)
def test_how_a_host_is_compared(name: str | bytes, host: str) -> None:
    assert as_host(name) == host


def test_a_sealed_record_opens_for_its_own_key_alone_and_unchanged() -> None:
    sealer, key = RecordSealer(RING, "farm", secrets.token_bytes), secrets.token_bytes(32)
    sealed = sealer.seal(key, RECORD)
    assert b"state" not in sealed
    assert b"shop" not in sealed
    assert sealer.open(key, sealed) == RECORD
    assert sealer.open(secrets.token_bytes(32), sealed) is None
    assert RecordSealer(RING, "other", secrets.token_bytes).open(key, sealed) is None
    for at in range(len(sealed)):
        assert sealer.open(key, sealed[:at] + bytes([sealed[at] ^ 1]) + sealed[at + 1 :]) is None
        assert sealer.open(key, sealed[:at]) is None


def test_the_breaker_opens_after_failures_in_a_row_and_tries_again() -> None:
    breaker = Breaker()
    for at in range(FAILURES_IN_A_ROW - 1):
        breaker.failed(float(at), float(at))
    breaker.succeeded()
    for _ in range(FAILURES_IN_A_ROW):
        assert breaker.lets_pass(10.0)
        breaker.failed(10.0, 10.0)
    assert not breaker.lets_pass(10.0 + FIRST_PAUSE_S - 0.01)
    assert not breaker.would_let_pass(10.0 + FIRST_PAUSE_S - 0.01)
    assert breaker.would_let_pass(10.0 + FIRST_PAUSE_S)
    assert breaker.lets_pass(10.0 + FIRST_PAUSE_S), "one may try"
    assert not breaker.lets_pass(10.0 + FIRST_PAUSE_S), "and no second one"
    breaker.failed(11.0, 11.0)
    assert not breaker.lets_pass(11.0 + FIRST_PAUSE_S), "the pause grows"
    now = 11.0
    for _ in range(20):
        now += 2 * MAX_PAUSE_S
        assert breaker.lets_pass(now)
        breaker.failed(now, now)
    assert breaker.lets_pass(now + MAX_PAUSE_S), "but not for ever"
    breaker.succeeded()
    assert breaker.lets_pass(now)


def test_one_hiccup_that_many_calls_met_is_one_pause() -> None:
    breaker = Breaker()
    for _ in range(50):
        assert breaker.lets_pass(10.0)
    for _ in range(50):
        breaker.failed(10.08, 10.0)
    assert breaker.lets_pass(10.08 + FIRST_PAUSE_S)
