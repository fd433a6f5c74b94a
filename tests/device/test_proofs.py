"""Proofs by a browser's key: what a real browser makes is good, and nothing else is."""

from __future__ import annotations

import json
import os
import random
import string
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from coatcheck.device.challenges import (
    CHALLENGE_LIFE_MS,
    LEEWAY_MS,
    MAX_SERIAL,
    Challenge,
    ChallengeCodec,
    ChallengeKind,
)
from coatcheck.device.jws import MAX_PROOF_CHARS, read_proof
from coatcheck.device.keys import DeviceKey, from_base64url, read_jwk, to_base64url
from coatcheck.device.proofs import KeyProof, Registration
from coatcheck.device.refusals import ProofReason, ProofRefused
from coatcheck.errors import TokenReason, TokenRejected
from coatcheck.tokens.keyring import KeyRing

from .software_key import SoftwareKey, encoded, number, unsigned

BROWSER = json.loads((Path(__file__).parent / "browser.json").read_text())
RING = KeyRing([bytes(range(32)), bytes(range(1, 33))])
CODEC = ChallengeCodec(RING, "farm", os.urandom)
SESSION, OTHER = b"s" * 16, b"o" * 16
NOW = 1_791_000_000_000
KEY = SoftwareKey()


def challenge(kind: ChallengeKind, session: bytes = SESSION, made_at: int = NOW, serial: int = 7) -> str:
    return CODEC.seal(Challenge(kind, session, made_at, serial))


def register(text: str, now: int = NOW) -> DeviceKey:
    return Registration(text, CODEC).key_for(SESSION, now)


def prove(text: str, serial: int = 7, now: int = NOW, key: SoftwareKey = KEY) -> None:
    KeyProof(text, CODEC).check(SESSION, CODEC.name(SESSION), read_jwk(key.jwk, key.algorithm), serial, now)


def refusal(judge: Callable[[], object]) -> ProofReason:
    with pytest.raises(ProofRefused) as refused:
        judge()
    return refused.value.reason


OFFERED, ASKED = challenge(ChallengeKind.REGISTER, serial=0), challenge(ChallengeKind.PROVE)


def test_what_a_real_browser_has_signed() -> None:
    registration, refresh = read_proof(BROWSER["registration"]["proof"]), read_proof(BROWSER["refresh"]["proof"])
    key = registration.own_key()
    for proof, known in ((registration, BROWSER["registration"]), (refresh, BROWSER["refresh"])):
        proof.verify(key)
        assert proof.payload["jti"] == known["challenge"]
        with pytest.raises(ProofRefused):
            proof.verify(read_jwk(KEY.jwk, "ES256"))
    assert registration.payload["authorization"] == BROWSER["registration"]["authorization"]
    assert key.algorithm == "ES256"


@pytest.mark.parametrize(
    "key", [KEY, SoftwareKey(rsa_bits=2048), SoftwareKey(rsa_bits=4096)], ids=["EC", "2048", "4096"]
)
def test_an_honest_browser(key: SoftwareKey) -> None:
    bound = register(key.registration(OFFERED, authorization="", aud="https://farm.example/", iat=1))
    assert bound == read_jwk(key.jwk, key.algorithm)
    prove(key.refresh(ASKED), key=key)
    prove(key.refresh(ASKED, sub=CODEC.name(SESSION)), key=key)


def test_the_thumbprint_is_that_of_the_rfc() -> None:
    # RFC 7638, section 3.1.
    modulus = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tSoc_BJECPebWKRXjBZCiFV4n3oknjhM"
        "stn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5h"
        "ajrn1n91CbOpbISD08qNLyrdkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzKnqDKgw"
    )
    key = read_jwk({"kty": "RSA", "n": modulus, "e": "AQAB", "alg": "RS256", "kid": "2011-04-29"}, "RS256")
    assert key.thumbprint == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_the_same_key_has_the_same_thumbprint_and_another_another() -> None:
    key = read_proof(BROWSER["registration"]["proof"]).own_key()
    assert (
        key.thumbprint
        == read_jwk({**read_proof(BROWSER["registration"]["proof"]).header["jwk"], "kid": "x"}, "ES256").thumbprint
    )
    assert len(key.thumbprint) == 43
    assert key.thumbprint != read_jwk(KEY.jwk, "ES256").thumbprint


# -- algorithms and keys ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "algorithm", ["none", "None", "NONE", "", "HS256", "ES384", "PS256", "RS512", "EdDSA", None, 7, ["ES256"]]
)
def test_other_algorithms_are_refused_whatever_the_signature(algorithm: Any) -> None:
    head = {"alg": algorithm, "typ": "dbsc+jwt", "jwk": KEY.jwk}
    for text in (KEY.proof(head, {"jti": OFFERED}), unsigned(head, {"jti": OFFERED})):
        assert refusal(lambda text=text: register(text)) is ProofReason.ALGORITHM  # type: ignore[misc]


def test_the_public_key_is_nobodys_secret() -> None:
    point = from_base64url(KEY.jwk["x"]) + from_base64url(KEY.jwk["y"])
    for secret in (point, json.dumps(KEY.jwk).encode(), b"\4" + point):
        for name in ("HS256", "ES256"):
            text = unsigned({"alg": name, "typ": "dbsc+jwt"}, {"jti": ASKED}, secret)
            expected = ProofReason.ALGORITHM if name == "HS256" else ProofReason.SIGNATURE
            assert refusal(lambda text=text: prove(text)) is expected  # type: ignore[misc]


def test_the_algorithm_is_the_keys_and_not_the_proofs() -> None:
    rsa_key = SoftwareKey(rsa_bits=2048)
    as_if = rsa_key.proof({"alg": "ES256", "typ": "dbsc+jwt"}, {"jti": ASKED})
    assert refusal(lambda: prove(as_if, key=rsa_key)) is ProofReason.ALGORITHM
    as_if = KEY.proof({"alg": "RS256", "typ": "dbsc+jwt"}, {"jti": ASKED})
    assert refusal(lambda: prove(as_if)) is ProofReason.ALGORITHM
    mixed = {"alg": "RS256", "typ": "dbsc+jwt", "jwk": KEY.jwk}
    assert refusal(lambda: register(KEY.proof(mixed, {"jti": OFFERED}))) is ProofReason.KEY


@pytest.mark.parametrize("curve", [ec.SECP384R1(), ec.SECP521R1()], ids=["P-384", "P-521"])
def test_other_curves_are_refused(curve: ec.EllipticCurve) -> None:
    assert refusal(lambda: register(SoftwareKey(curve).registration(OFFERED))) is ProofReason.KEY


def with_key(**change: Any) -> Callable[[], object]:
    jwk = {name: value for name, value in {**KEY.jwk, **change}.items() if value is not None}
    return lambda: register(KEY.registration(OFFERED, header={"jwk": jwk}))


@pytest.mark.parametrize(
    "change",
    [
        {"crv": "P-384"}, {"crv": "secp256k1"}, {"kty": "OKP"}, {"kty": "oct", "k": "AAAA"}, {"x": None}, {"y": 5},
        {"x": number(1, 32)}, {"x": "AAAA"}, {"x": KEY.jwk["x"] + "="}, {"y": KEY.jwk["y"] + "AA"}, {"d": "AAAA"},
        {"alg": "RS256"}, {"use": "enc"}, {"x": number(0, 32), "y": number(0, 32)}, {"x": "\u00e4" * 43},
    ],
    ids=lambda change: "-".join(change),
)  # fmt: skip
def test_a_key_that_is_none_is_refused(change: dict[str, Any]) -> None:
    assert refusal(with_key(**change)) is ProofReason.KEY


@pytest.mark.parametrize("jwk", [None, [], "key", 1, {}])
def test_a_registration_without_a_key_is_refused(jwk: Any) -> None:
    assert refusal(lambda: register(KEY.registration(OFFERED, header={"jwk": jwk}))) is ProofReason.KEY


def test_rsa_keys_have_a_sensible_size_and_the_usual_exponent() -> None:
    short = SoftwareKey(rsa_bits=1024)
    assert refusal(lambda: register(short.registration(OFFERED))) is ProofReason.KEY
    usual = SoftwareKey(rsa_bits=2048).jwk
    for jwk in (
        {**usual, "n": number((1 << 2047) - 1)},
        {**usual, "n": number((1 << 4096) + 1)},
        {**usual, "n": number((1 << 16_384) + 1)},
        {**usual, "n": to_base64url(b"\0" + from_base64url(usual["n"]))},
        {**usual, "n": ""},
        {**usual, "e": number(3)},
        {**usual, "e": number(1)},
        {**usual, "e": "AAEAAQ"},
        {**usual, "e": None},
    ):
        assert refusal(lambda jwk=jwk: read_jwk(jwk, "RS256")) is ProofReason.KEY  # type: ignore[misc]
    assert read_jwk({**usual, "n": number((1 << 4095) + 1)}, "RS256").algorithm == "RS256"


def test_a_refresh_brings_no_key_along() -> None:
    thief = SoftwareKey()
    own = thief.proof({"alg": "ES256", "typ": "dbsc+jwt", "jwk": thief.jwk}, {"jti": ASKED})
    assert refusal(lambda: prove(own)) is ProofReason.KEY
    assert refusal(lambda: prove(thief.refresh(ASKED))) is ProofReason.SIGNATURE


# -- form --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["JWT", "dbsc+JWT", "application/dbsc+jwt", "", None, 1, ["dbsc+jwt"]])
def test_other_types_are_refused(kind: Any) -> None:
    assert refusal(lambda: prove(KEY.refresh(ASKED, header={"typ": kind}))) is ProofReason.TYPE


def test_what_is_no_jws_is_refused() -> None:
    good = KEY.refresh(ASKED)
    head, payload, signature = good.split(".")
    wrong_heads = [
        *(encoded(said) for said in ([], "alg", {"alg": "ES256", "typ": "dbsc+jwt", "crit": ["x"]})),
        *(to_base64url(raw) for raw in (b"{", b"{}\xff", b'{"alg":"none","alg":"ES256","typ":"dbsc+jwt"}')),
    ]
    wrong_payloads = [to_base64url(raw) for raw in (b"{} {}", b'{"jti": NaN}', b'{"jti": 1, "jti": 2}', b"")]
    for text in (
        "", ".", "..", "...", "a.b.c", head, f"{head}.{payload}", f"{good}.", f".{good}", f"{good}=", good + "\n",
        f"{head}.{payload}.{signature}.{signature}.{signature}", f"{head} .{payload}.{signature}", good[:-1] + "*",
        "\u00e9.\u00e9.\u00e9", "\ud800.a.b", "\0", *(f"{one}.{payload}.{signature}" for one in wrong_heads),
        *(f"{head}.{one}.{signature}" for one in wrong_payloads),
    ):  # fmt: skip
        assert refusal(lambda text=text: prove(text)) is ProofReason.MALFORMED, text  # type: ignore[misc]
    assert refusal(lambda: prove("a" * (MAX_PROOF_CHARS + 1))) is ProofReason.TOO_LARGE
    assert refusal(lambda: prove("." * 10_000_000)) is ProofReason.TOO_LARGE


def test_deep_json_is_refused_and_breaks_nothing() -> None:
    deep = to_base64url(b'{"alg":"ES256","typ":"dbsc+jwt","x":' + b"[" * 2500 + b"]" * 2500 + b"}")
    assert len(deep) < MAX_PROOF_CHARS - 300
    assert refusal(lambda: prove(f"{deep}.{encoded({'jti': ASKED})}.AAAA")) in ProofReason


@pytest.mark.parametrize("signature", [b"", b"\0" * 64, b"\xff" * 64, b"\1" * 63, b"\1" * 65, b"\1" * 72])
def test_signatures_of_other_sizes_and_values_are_refused(signature: bytes) -> None:
    signed = KEY.refresh(ASKED).rpartition(".")[0]
    assert refusal(lambda: prove(f"{signed}.{to_base64url(signature)}")) is ProofReason.SIGNATURE


def test_one_changed_character_is_refused() -> None:
    drawn, letters = random.Random(12), string.ascii_letters + string.digits + '-_.="{ \u00e9'
    for good, judge in ((KEY.refresh(ASKED), prove), (KEY.registration(OFFERED), register)):
        for _ in range(1500):
            changed = list(good)
            for _ in range(drawn.choice((1, 1, 1, 2, 5))):
                at = drawn.randrange(len(changed))
                match drawn.choice(("change", "change", "drop", "insert")):
                    case "change":
                        changed[at] = drawn.choice(letters)
                    case "drop":
                        del changed[at]
                    case _:
                        changed.insert(at, drawn.choice(letters))
            text = "".join(changed)
            if text != good:
                with pytest.raises((ProofRefused, TokenRejected)):  # the latter: of a key that is not in the ring
                    judge(text)


# -- challenges -----------------------------------------------------------------------------------------


def test_a_challenge_of_another_session_or_purpose_is_refused() -> None:
    for text in (challenge(ChallengeKind.PROVE, OTHER), OFFERED):
        assert refusal(lambda text=text: prove(KEY.refresh(text))) is ProofReason.FOREIGN  # type: ignore[misc]
    for text in (challenge(ChallengeKind.REGISTER, OTHER), ASKED):
        assert refusal(lambda text=text: register(KEY.registration(text))) is ProofReason.FOREIGN  # type: ignore[misc]


def test_a_challenge_lives_for_five_minutes() -> None:
    good, registration = KEY.refresh(ASKED), KEY.registration(OFFERED)
    prove(good, now=NOW + CHALLENGE_LIFE_MS)
    prove(good, now=NOW - LEEWAY_MS)
    register(registration, now=NOW + CHALLENGE_LIFE_MS)
    for now in (NOW + CHALLENGE_LIFE_MS + 1, NOW - LEEWAY_MS - 1):
        assert refusal(lambda now=now: prove(good, now=now)) is ProofReason.EXPIRED  # type: ignore[misc]
        assert refusal(lambda now=now: register(registration, now=now)) is ProofReason.EXPIRED  # type: ignore[misc]


def test_a_challenge_is_used_once() -> None:
    good = KEY.refresh(ASKED)
    prove(good, serial=7)
    for serial in (8, 6, MAX_SERIAL):
        assert refusal(lambda serial=serial: prove(good, serial=serial)) is ProofReason.USED  # type: ignore[misc]


def test_a_proof_for_another_session_is_refused() -> None:
    assert refusal(lambda: prove(KEY.refresh(ASKED, sub=CODEC.name(OTHER)))) is ProofReason.FOREIGN


@pytest.mark.parametrize("text", ["", "a", "AAAA", "A" * 80, "\u00e9", None, 1, ["x"], {"a": 1}, "A" * 5000])
def test_what_is_no_challenge_is_refused(text: Any) -> None:
    assert refusal(lambda: prove(KEY.refresh(text))) is ProofReason.CHALLENGE
    assert refusal(lambda: CODEC.session(text)) is ProofReason.FOREIGN


def test_challenges_and_names_of_another_farm_or_purpose_do_not_open() -> None:
    foreign = ChallengeCodec(RING, "another farm", os.urandom)
    assert (
        refusal(lambda: CODEC.open(foreign.seal(Challenge(ChallengeKind.PROVE, SESSION, NOW, 7))))
        is ProofReason.CHALLENGE
    )
    assert refusal(lambda: CODEC.open(CODEC.name(SESSION))) is ProofReason.CHALLENGE
    for name in (foreign.name(SESSION), ASKED):
        assert refusal(lambda name=name: CODEC.session(name)) is ProofReason.FOREIGN  # type: ignore[misc]
    for flipped in range(len(ASKED)):
        other = "A" if ASKED[flipped] != "A" else "B"
        with pytest.raises((ProofRefused, TokenRejected)):
            CODEC.open(ASKED[:flipped] + other + ASKED[flipped + 1 :])


def test_a_key_of_the_ring_that_is_not_known_here_is_no_refusal() -> None:
    newer = ChallengeCodec(KeyRing([bytes(range(2, 34))]), "farm", os.urandom)
    for judge in (lambda: CODEC.open(newer.seal(Challenge(ChallengeKind.PROVE, SESSION, NOW, 7))),
                  lambda: CODEC.session(newer.name(SESSION))):  # fmt: skip
        with pytest.raises(TokenRejected) as rejected:
            judge()
        assert rejected.value.reason is TokenReason.UNKNOWN_KEY


def test_a_challenge_says_what_went_into_it_and_nothing_to_who_reads_it() -> None:
    one = Challenge(ChallengeKind.PROVE, SESSION, (1 << 48) - 1, MAX_SERIAL)
    assert CODEC.open(CODEC.seal(one)) == one
    assert CODEC.seal(one) != CODEC.seal(one)
    assert SESSION not in from_base64url(CODEC.seal(one)) + from_base64url(CODEC.name(SESSION))
    assert SESSION.hex() not in repr(one)


def test_a_session_has_one_name() -> None:
    assert CODEC.name(SESSION) == CODEC.name(SESSION) != CODEC.name(OTHER)
    assert CODEC.session(CODEC.name(SESSION)) == SESSION
    assert len(CODEC.name(SESSION)) == 66
