"""Keys, sealed things and tokens, as docs/spec/token.md has them."""

from __future__ import annotations

import os
from base64 import urlsafe_b64decode

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coatcheck.drivers.asyncio_driver import RandomPool
from coatcheck.errors import ConfigError, TokenReason, TokenRejected
from coatcheck.tokens.keyring import KeyRing, key_id
from coatcheck.tokens.sealed import TokenCodec

from .citing import cites

A, B = bytes(range(32)), bytes(range(50, 98))
NONCE = bytes(range(12))
KEY, ID, VERSION = bytes(range(16)), bytes(range(16, 32)), bytes(range(32, 48))


def derived(secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=b"coatcheck/1/" + info).derive(secret)


def codec(ring: KeyRing, purpose: str = "anonymous", audience: str = "farm") -> TokenCodec:
    return TokenCodec(ring, purpose, audience, lambda count: NONCE)


def refusal(ring: KeyRing, text: bytes, purpose: str = "anonymous", audience: str = "farm") -> TokenReason:
    with pytest.raises(TokenRejected) as refused:
        codec(ring, purpose, audience).open(text)
    return refused.value.reason


@cites("K1", "K3")
def test_rings_that_cannot_be_are_refused() -> None:
    for secrets in ([A[:31]], [A, A], []):
        with pytest.raises(ConfigError):
            KeyRing(secrets)
    assert key_id(A) == derived(A, b"key-id", 4)


@cites("K2", "K4", "S1", "S2")
def test_a_sealed_thing_is_what_the_primitives_say() -> None:
    sealed = KeyRing([A, B], 1).box("purpose", "audience", lambda count: NONCE).seal(b"plain", b"context")
    head, scope = b"\x01" + derived(B, b"key-id", 4), b"purpose\x00audience"
    body = AESGCMSIV(derived(B, scope, 32)).encrypt(NONCE, b"plain", head + scope + b"context")
    assert sealed == head + NONCE + body
    assert len(sealed) == len(b"plain") + 33


@cites("K5")
def test_one_key_seals_and_all_open() -> None:
    both, old, new = KeyRing([A, B], 1), KeyRing([A]), KeyRing([B])
    text = codec(both).seal(KEY, ID, 1, VERSION)
    assert codec(new).open(text).key == KEY
    assert refusal(old, text) is TokenReason.UNKNOWN_KEY
    assert codec(both).open(codec(old).seal(KEY, ID, 1, VERSION)).key == KEY


@cites("S3", "T4")
def test_nonces_keys_and_ids_are_fresh_bytes_of_the_operating_system(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[bytes] = []

    def urandom(count: int) -> bytes:
        drawn.append(bytes((len(drawn) + n) & 255 for n in range(count)))
        return drawn[-1]

    monkeypatch.setattr(os, "urandom", urandom)
    pool = RandomPool()
    given = b"".join(pool(size) for size in (12, 16, 16) * 40)
    assert b"".join(drawn).startswith(given), "each byte is given out once, in the order of the system"
    assert KeyRing([A]).box("p", "a", pool).seal(b"")[5:17] in b"".join(drawn)


@cites("S4")
def test_why_a_thing_is_refused() -> None:
    box = KeyRing([A]).box("purpose", "farm", lambda count: NONCE)
    ours = b"\x01" + key_id(A)
    for raw, reason in (
        (ours, "forged"),
        (ours + bytes(11), "forged"),
        (ours + bytes(60), "forged"),
        (b"", "malformed"),
        (b"\x02" + bytes(31), "malformed"),
        (b"\x01" + bytes(31), "malformed"),
        (b"\x02" + bytes(32), "unknown_format"),
        (b"\x01" + bytes(32), "unknown_key"),
    ):
        with pytest.raises(TokenRejected) as refused:
            box.open(raw)
        assert refused.value.reason.value == reason, raw


@cites("S5")
def test_what_was_sealed_for_something_else_is_refused() -> None:
    ring = KeyRing([A])
    text = codec(ring).seal(KEY, ID, 1, VERSION)
    assert refusal(ring, text, purpose="login") is TokenReason.FORGED
    assert refusal(ring, text, audience="farm-2") is TokenReason.FORGED
    box = ring.box("purpose", "farm", lambda count: NONCE)
    with pytest.raises(TokenRejected):
        box.open(box.seal(b"plain", b"one"), b"another")


@cites("T1", "T2")
def test_the_text_and_the_plain_bytes_of_a_token() -> None:
    ring = KeyRing([A])
    for purpose in ("anonymous", "login"):
        text = codec(ring, purpose).seal(KEY, ID, (1 << 41) + 5, VERSION, 63)
        assert len(text) == 116
        assert b"=" not in text
        scope = f"token/{purpose}\x00farm".encode()
        head = b"\x01" + key_id(A)
        raw = urlsafe_b64decode(text)
        plain = AESGCMSIV(derived(A, scope, 32)).decrypt(NONCE, raw[17:], head + scope)
        assert plain == KEY + ID + ((63 << 42) + (1 << 41) + 5).to_bytes(6) + VERSION


@cites("T3")
def test_other_texts_are_refused() -> None:
    ring = KeyRing([A])
    text = codec(ring).seal(KEY, ID, 1, VERSION)
    wrong = [text[:-1], text + b"A", text + b"=", b"", text[:-1] + b" ", b"\xff" + text[1:], text[:-1] + b"="]
    wrong += [text[:at] + sign + text[at + 1 :] for at in (0, 50, 115) for sign in (b"+", b"/", b".", b"\n")]
    for other in wrong:
        refusal(ring, other)


@cites("T5", "T6")
def test_the_latest_time_the_list_number_and_no_version() -> None:
    ring = KeyRing([A])
    token = codec(KeyRing([A])).open(codec(ring).seal(KEY, ID, 1 << 50, bytes(16), 0))
    assert (token.timestamp, token.version, token.list_number) == ((1 << 42) - 1, bytes(16), 0)
    for number in (0, 1, 63):
        assert codec(KeyRing([A])).open(codec(ring).seal(KEY, ID, 1, VERSION, number)).list_number == number
