"""The key ring: who seals, who opens, and how a key is replaced without logging anyone out."""

from __future__ import annotations

import os
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.errors import ConfigError, CorruptEntry, TokenReason, TokenRejected
from coatcheck.tokens.keyring import OVERHEAD_BYTES, KeyRing, PayloadSealer, SealedBox

A, B, C = (bytes([letter]) * 32 for letter in b"ABC")

# What the servers of a farm are given, step by step; each step reaches one server after the other.
ROTATION = [
    ("before", KeyRing([A])),
    ("add the new key", KeyRing([A, B])),
    ("make it the primary", KeyRing([A, B], primary=1)),
    ("drop the old one", KeyRing([B])),
]


def box(ring: KeyRing, purpose: str = "test", audience: str = "farm") -> SealedBox:
    return ring.box(purpose, audience, os.urandom)


def refusal(act: Callable[[], object]) -> TokenReason:
    with pytest.raises(TokenRejected) as caught:
        act()
    return caught.value.reason


@pytest.mark.parametrize("step", range(3), ids=[name for name, _ in ROTATION[1:]])
def test_while_a_step_of_the_rotation_is_rolled_out_everyone_opens_everything(step: int) -> None:
    (_, before), (_, after) = ROTATION[step : step + 2]
    for sealing in (before, after):
        for opening in (before, after):
            if (step, sealing) != (2, before):
                assert box(opening).open(box(sealing).seal(b"plain")) == b"plain"
    # The last step is taken when the longest token has expired; both sides seal with the new key by then.
    assert box(ROTATION[3][1]).open(box(ROTATION[2][1]).seal(b"plain")) == b"plain"


def test_what_the_old_key_sealed_opens_until_it_is_dropped() -> None:
    sealed = box(ROTATION[0][1]).seal(b"plain")
    for _, ring in ROTATION[:3]:
        assert box(ring).open(sealed) == b"plain"
    assert refusal(lambda: box(ROTATION[3][1]).open(sealed)) is TokenReason.UNKNOWN_KEY


def test_making_a_key_primary_too_early_is_refused_by_those_that_lack_it() -> None:
    assert refusal(lambda: box(KeyRing([A])).open(box(KeyRing([A, B], primary=1)).seal(b""))) is TokenReason.UNKNOWN_KEY


@pytest.mark.parametrize(("purpose", "audience"), [("other", "farm"), ("test", "other"), ("test\x00farm", "")])
def test_a_thing_sealed_for_another_purpose_or_audience_does_not_open(purpose: str, audience: str) -> None:
    ring = KeyRing([A])
    assert refusal(lambda: box(ring, purpose, audience).open(box(ring).seal(b"plain"))) is TokenReason.FORGED


def test_the_context_is_authenticated_and_not_stored() -> None:
    sealed = box(KeyRing([A])).seal(b"plain", b"context")
    assert box(KeyRing([A])).open(sealed, b"context") == b"plain"
    assert b"context" not in sealed
    for wrong in (b"", b"contexts", b"Context"):
        assert refusal(lambda wrong=wrong: box(KeyRing([A])).open(sealed, wrong)) is TokenReason.FORGED  # type: ignore[misc]


def test_every_flipped_bit_is_refused() -> None:
    opener = box(KeyRing([A]))
    sealed = opener.seal(b"plain")
    reasons = set()
    for bit in range(8 * len(sealed)):
        bent = bytearray(sealed)
        bent[bit // 8] ^= 1 << bit % 8
        reasons.add(refusal(lambda bent=bent: opener.open(bytes(bent))))  # type: ignore[misc]
    assert reasons == {TokenReason.UNKNOWN_FORMAT, TokenReason.UNKNOWN_KEY, TokenReason.FORGED}


def test_every_truncation_and_extension_is_refused() -> None:
    opener = box(KeyRing([A]))
    sealed = opener.seal(b"plain")
    for bent in [*(sealed[:size] for size in range(len(sealed))), sealed + b"\x00", b"\x00" + sealed]:
        assert isinstance(refusal(lambda bent=bent: opener.open(bent)), TokenReason)  # type: ignore[misc]


@given(st.binary(max_size=200))
def test_any_bytes_are_refused(raw: bytes) -> None:
    assert isinstance(refusal(lambda: box(KeyRing([A])).open(raw)), TokenReason)


@given(st.binary(max_size=300))
def test_sealing_adds_33_bytes_and_hides_the_content(plain: bytes) -> None:
    sealed = box(KeyRing([A])).seal(plain)
    assert len(sealed) == len(plain) + OVERHEAD_BYTES == len(plain) + 33
    assert len(plain) < 4 or plain not in sealed
    assert box(KeyRing([A])).open(sealed) == plain


def test_the_same_content_is_never_sealed_alike() -> None:
    sealing = box(KeyRing([A]))
    assert len({sealing.seal(b"plain") for _ in range(100)}) == 100


@pytest.mark.parametrize(
    ("secrets", "primary", "message"),
    [
        ([], 0, "1 to 16 keys"),
        ([bytes([number]) * 32 for number in range(17)], 0, "1 to 16 keys"),
        ([b"short" * 6], 0, "at least 32 bytes"),
        ([A, B], 2, "primary key 2"),
        ([A, B], -1, "primary key -1"),
        ([A, B, A], 0, "the same"),
    ],
)
def test_a_bad_ring_gets_one_clear_line(secrets: list[bytes], primary: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        KeyRing(secrets, primary)
    assert "\n" not in str(caught.value)


def test_no_secret_shows() -> None:
    ring = KeyRing([A, B])
    things = [ring, box(ring), PayloadSealer(ring, "farm", os.urandom)]
    for text in [f(thing) for thing in things for f in (repr, str)]:
        assert not any(secret.hex() in text or secret.decode() in text or repr(secret) in text for secret in (A, B))


def test_credentials_follow_the_primary_key_and_the_name() -> None:
    assert KeyRing([A]).credential("redis") == KeyRing([B, A], primary=1).credential("redis")
    assert (
        len({KeyRing([A]).credential("redis"), KeyRing([A]).credential("web"), KeyRing([B]).credential("redis")}) == 3
    )
    assert A.hex() not in KeyRing([A]).credential("redis")


# -- what session servers store ------------------------------------------------------------------


def sealer(ring: KeyRing | None = None, farm: str = "farm") -> PayloadSealer:
    return PayloadSealer(ring or KeyRing([A]), farm, os.urandom)


KEY, HEADER = b"k" * 16, b"header"
PAYLOAD = sealer().seal(KEY, HEADER, b"body")


def test_a_payload_opens_for_its_own_key_and_header() -> None:
    assert sealer().unseal(KEY, HEADER, PAYLOAD) == b"body"
    assert sealer(KeyRing([B, A])).unseal(KEY, HEADER, PAYLOAD) == b"body"
    assert b"body" not in PAYLOAD


@pytest.mark.parametrize(
    ("ring", "farm", "key", "header", "payload"),
    [
        (KeyRing([A]), "farm", b"K" * 16, HEADER, PAYLOAD),
        (KeyRing([A]), "farm", KEY, b"another version", PAYLOAD),
        (KeyRing([A]), "other farm", KEY, HEADER, PAYLOAD),
        (KeyRing([B]), "farm", KEY, HEADER, PAYLOAD),
        (KeyRing([A]), "farm", KEY, HEADER, b""),
        (KeyRing([A]), "farm", KEY, HEADER, PAYLOAD[:-1]),
    ],
    ids=["another session", "another version", "another farm", "another ring", "empty", "cut"],
)
def test_a_payload_that_was_moved_is_corrupt(
    ring: KeyRing, farm: str, key: bytes, header: bytes, payload: bytes
) -> None:
    with pytest.raises(CorruptEntry):
        sealer(ring, farm).unseal(key, header, payload)


def test_a_branch_follows_until_it_is_cut_and_learns_what_it_missed() -> None:
    ring = KeyRing([A])
    branch = ring.branch()
    forgotten: list[str] = []
    branch.on_change(lambda: forgotten.append("what was opened"))
    ring.change([A, B], 1)
    assert box(ring).open(box(branch).seal(b"plain")) == b"plain"
    assert len(forgotten) == 1
    ring.join(branch)
    assert len(forgotten) == 1, "it has missed nothing"
    for _ in range(2):
        ring.cut(branch)
    ring.change([B, C], 1)
    assert refusal(lambda: box(branch).open(box(ring).seal(b""))) is TokenReason.UNKNOWN_KEY
    ring.join(branch)
    assert box(branch).open(box(ring).seal(b"plain")) == b"plain"
    assert len(forgotten) == 2
    ring.change([A], 0)
    assert box(branch).open(box(ring).seal(b"plain")) == b"plain", "and it follows again"
