"""The ring that machines share: what becomes of a key, and of copies that were changed apart."""

from __future__ import annotations

import os
from collections.abc import Callable

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.errors import ConfigError, CorruptEntry
from coatcheck.tokens.keyring import key_id
from coatcheck.tokens.ring_state import (
    MAX_KEYS,
    MAX_MACHINES,
    MAX_REVOKED,
    RingState,
    decode_ring,
    encode_ring,
    seed,
)

SECRETS = [bytes([number]) * 31 + bytes([255 - number]) for number in range(6)]
IDS = [key_id(secret) for secret in SECRETS]


def states(ring: RingState) -> dict[bytes, str]:
    return {key.id: ring.state_of(key).value for key in ring.keys}


def test_a_key_is_announced_then_active_then_retiring_then_revoked_and_its_secret_is_gone() -> None:
    ring = seed((SECRETS[0],), 0)
    assert states(ring) == {IDS[0]: "active"}
    ring = ring.announce(SECRETS[1])
    assert states(ring) == {IDS[0]: "active", IDS[1]: "announced"}
    ring = ring.activate(IDS[1])
    assert states(ring) == {IDS[0]: "retiring", IDS[1]: "active"}
    ring = ring.revoke(IDS[0])
    assert states(ring) == {IDS[0]: "revoked", IDS[1]: "active"}
    assert SECRETS[0] not in encode_ring(ring)
    assert [key.secret for key in ring.usable] == [SECRETS[1]]


def test_steps_that_would_leave_the_farm_without_a_key_or_skip_one_are_refused() -> None:
    ring = seed((SECRETS[0],), 0)
    for wrong, words in (
        (lambda: ring.revoke(IDS[0]), "rotate first"),
        (lambda: ring.activate(IDS[0]), "not announced"),
        (lambda: ring.activate(IDS[1]), "there is no key"),
        (lambda: ring.announce(SECRETS[1]).activate(IDS[1]).revoke(IDS[0]).activate(IDS[0]), "not announced"),
    ):
        with pytest.raises(ConfigError, match=words):
            wrong()
    for _ in range(MAX_KEYS - 1):
        ring = ring.announce(os.urandom(32))
    with pytest.raises(ConfigError, match="revoke an old one"):
        ring.announce(os.urandom(32))


def test_nobody_need_wait_for_who_has_said_that_it_opens_with_the_key() -> None:
    ring = seed((SECRETS[0],), 0).announce(SECRETS[1]).says("a", IDS[:2], 5).says("b", IDS[:1], 5)
    assert ring.unaware(IDS[1]) == ["b"]
    assert ring.says("b", IDS[:2], 6).unaware(IDS[1]) == []
    left = ring.leaves("b", 1)
    assert left.unaware(IDS[1]) == []
    assert left.joined(ring).unaware(IDS[1]) == [], "its last word is the later one, whatever its clock says"
    assert left.says("b", IDS[:1], 2).unaware(IDS[1]) == ["b"]


def test_what_is_remembered_is_bounded() -> None:
    ring = seed((SECRETS[0],), 0)
    for _ in range(MAX_REVOKED + 5):
        secret = os.urandom(32)
        ring = ring.announce(secret).revoke(key_id(secret))
    for number in range(MAX_MACHINES + 5):
        ring = ring.says(f"machine-{number}", IDS, number)
    assert len([key for key in ring.keys if key.revoked]) == MAX_REVOKED
    assert len(ring.machines) == MAX_MACHINES
    assert "machine-0" not in ring.machines
    whole = ring
    for _ in range(MAX_KEYS - 1):
        whole = whole.announce(os.urandom(32))
    names = {"m" * 60 + str(number): tuple(os.urandom(4) for _ in range(MAX_KEYS)) for number in range(10, 42)}
    for name, accepts in names.items():
        whole = whole.says(name, accepts, 1 << 41)
    assert len(encode_ring(whole)) < 16 * 1024, "it fits where agreements are kept"


Step = Callable[[RingState], RingState]


def steps() -> st.SearchStrategy[list[tuple[str, int]]]:
    names = st.sampled_from(["announce", "activate", "revoke", "says"])
    return st.lists(st.tuples(names, st.integers(0, len(SECRETS) - 1)), max_size=8)


def walk(ring: RingState, taken: list[tuple[str, int]]) -> RingState:
    for name, which in taken:
        try:
            if name == "announce":
                known = {key.id for key in ring.keys}
                ring = ring if IDS[which] in known else ring.announce(SECRETS[which])
            elif name == "says":
                ring = ring.says(f"machine-{which % 2}", IDS[: which + 1], which)
            else:
                ring = getattr(ring, name)(IDS[which])
        except ConfigError:
            continue
    return ring


@given(steps(), steps(), steps())
def test_joining_does_not_depend_on_who_joins_whom(
    one: list[tuple[str, int]], two: list[tuple[str, int]], three: list[tuple[str, int]]
) -> None:
    a, b, c = (walk(seed((SECRETS[0],), 0), taken) for taken in (one, two, three))
    assert a.joined(b) == b.joined(a)
    assert a.joined(b).joined(c) == a.joined(b.joined(c))
    assert a.joined(a) == a
    assert decode_ring(encode_ring(a.joined(b))) == a.joined(b)


@given(steps(), steps())
def test_no_step_is_taken_back_by_a_join(one: list[tuple[str, int]], two: list[tuple[str, int]]) -> None:
    a, b = (walk(seed((SECRETS[0],), 0), taken) for taken in (one, two))
    joined = {key.id: key for key in a.joined(b).keys}
    for key in (*a.keys, *b.keys):
        assert joined[key.id].revoked >= key.revoked
        assert joined[key.id].activation >= key.activation
        assert not (joined[key.id].revoked and joined[key.id].secret)


@given(st.binary(max_size=200))
def test_what_is_no_ring_is_refused(raw: bytes) -> None:
    with pytest.raises(CorruptEntry):
        decode_ring(raw)


def test_a_ring_of_another_format_or_without_a_sealing_key_is_refused() -> None:
    ring = seed((SECRETS[0],), 0)
    for broken, words in (
        (msgspec.structs.replace(ring, format=2), "format 2"),
        (msgspec.structs.replace(ring, keys=()), "without a key that seals"),
        (msgspec.structs.replace(ring, keys=(msgspec.structs.replace(ring.keys[0], secret=b"short"),)), "too short"),
    ):
        with pytest.raises(CorruptEntry, match=words):
            decode_ring(encode_ring(broken))
