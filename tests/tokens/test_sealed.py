"""The sealed token: hostile bytes in, a refusal with a reason out."""

from __future__ import annotations

import os
import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.errors import TokenReason, TokenRejected
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import MAX_TIMESTAMP, TOKEN_CHARS, SealedToken, TokenCodec

RING = KeyRing([b"A" * 32])
TOKEN = SealedToken(b"k" * 16, b"i" * 16, 1_800_000_000_000, b"v" * 16)
ALPHABET = (string.ascii_letters + string.digits + "-_").encode()


def codec(ring: KeyRing = RING, purpose: str = "anonymous", audience: str = "farm") -> TokenCodec:
    return TokenCodec(ring, purpose, audience, os.urandom)


TEXT = codec().seal_token(TOKEN)


def refusal(opener: TokenCodec, text: bytes) -> TokenReason:
    with pytest.raises(TokenRejected) as caught:
        opener.open(text)
    return caught.value.reason


def test_a_token_is_short_and_fits_into_a_cookie_as_it_is() -> None:
    assert len(TEXT) == TOKEN_CHARS == 116 < 128
    assert set(TEXT) <= set(ALPHABET)
    assert codec().seal(*TOKEN) != TEXT, "each is sealed anew"


SIXTEEN = st.binary(min_size=16, max_size=16)


@given(st.builds(SealedToken, SIXTEEN, SIXTEEN, st.integers(0, MAX_TIMESTAMP), SIXTEEN, st.integers(0, 63)))
def test_round_trip(token: SealedToken) -> None:
    text = codec().seal_token(token)
    assert codec().open(text) == token
    assert token.key not in text


def test_every_changed_character_is_refused() -> None:
    """At each place, each other character of the alphabet and some from outside of it."""
    opener = codec()
    others = ALPHABET + b"+/=%. \n\x00\xff"
    for at in range(len(TEXT)):
        for other in others:
            if other != TEXT[at]:
                refusal(opener, TEXT[:at] + bytes([other]) + TEXT[at + 1 :])
    assert opener.open(TEXT) == TOKEN


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (b"", TokenReason.MALFORMED),
        (TEXT[:-1], TokenReason.MALFORMED),
        (TEXT + b"=", TokenReason.MALFORMED),
        (TEXT + b"A", TokenReason.MALFORMED),
        (TEXT + TEXT, TokenReason.MALFORMED),
        (b"." * TOKEN_CHARS, TokenReason.MALFORMED),
        (TEXT[:-2] + b"==", TokenReason.FORGED),
        (b"A" * TOKEN_CHARS, TokenReason.UNKNOWN_FORMAT),
        (b"AQAA" * (TOKEN_CHARS // 4), TokenReason.UNKNOWN_KEY),
        (TEXT[:8] + TEXT[8:][::-1], TokenReason.FORGED),
        (b"x" * 1_000_000, TokenReason.MALFORMED),
    ],
    ids=lambda part: part.value if isinstance(part, TokenReason) else f"{len(part)}",
)
def test_why_a_token_is_refused(text: bytes, reason: TokenReason) -> None:
    assert refusal(codec(), text) is reason


@given(st.one_of(st.binary(max_size=300), st.binary(min_size=TOKEN_CHARS, max_size=TOKEN_CHARS)))
def test_any_bytes_of_any_length_are_refused(text: bytes) -> None:
    assert isinstance(refusal(codec(), text), TokenReason)


@given(st.lists(st.sampled_from(ALPHABET), min_size=TOKEN_CHARS, max_size=TOKEN_CHARS))
def test_any_well_formed_text_is_refused(letters: list[int]) -> None:
    assert isinstance(refusal(codec(), bytes(letters)), TokenReason)


def test_the_standard_alphabet_is_not_a_second_spelling() -> None:
    """One token has one spelling, so that nobody can make two that look different and mean the same."""
    opener = codec()
    text = next(text for text in (opener.seal_token(TOKEN) for _ in range(1000)) if b"-" in text and b"_" in text)
    for bent in (text.replace(b"-", b"+"), text.replace(b"_", b"/")):
        assert refusal(opener, bent) is TokenReason.MALFORMED


@pytest.mark.parametrize("other", [codec(purpose="login"), codec(audience="other farm")], ids=["purpose", "audience"])
def test_a_token_for_another_purpose_or_farm_is_refused(other: TokenCodec) -> None:
    assert refusal(other, TEXT) is TokenReason.FORGED


def test_a_token_of_another_ring_is_refused() -> None:
    assert refusal(codec(KeyRing([b"B" * 32])), TEXT) is TokenReason.UNKNOWN_KEY


def test_a_browser_stays_logged_in_while_the_key_is_replaced() -> None:
    old, new = b"A" * 32, b"B" * 32
    rings = [KeyRing([old]), KeyRing([old, new]), KeyRing([old, new], 1), KeyRing([new])]
    text = TEXT
    for ring in rings:
        server = codec(ring)
        text = server.seal_token(server.open(text))  # its token is rotated at least once before the next step
    assert codec(rings[-1]).open(text) == TOKEN
    assert refusal(codec(rings[-1]), TEXT) is TokenReason.UNKNOWN_KEY


def test_what_was_remembered_is_bounded_and_refusals_are_not_remembered() -> None:
    opener = codec()
    for number in range(3 * TokenCodec.MAX_REMEMBERED):
        opener.seal(bytes(16), bytes(16), number, bytes(16))
    for number in range(100):
        refusal(opener, b"%0116d" % number)
    for generation in (opener._remembered, opener._remembered_before):
        assert 0 < len(generation) <= TokenCodec.MAX_REMEMBERED
        assert not any(text.startswith(b"0") for text in generation)
    assert opener.open(TEXT) == TOKEN


def test_the_reason_is_for_operators_and_names_no_content() -> None:
    with pytest.raises(TokenRejected) as caught:
        codec().open(TEXT[:-1])
    assert str(caught.value) == "malformed"
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
