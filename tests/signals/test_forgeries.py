"""Tokens that end nothing, at a real service: each is refused, and the session it names stays open."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding

from .conftest import EVENT, FORM, SignalService, StartService
from .identity_provider import LOGOUT, REVOKED, IdentityProvider, Key, b64, compact

Forge = Callable[[IdentityProvider], str]
SID = "victim"
VICTIM = {"format": "opaque", "id": SID}
STRANGER = Key("RS256", "first")
OTHER_KIND = Key("ES256", "first")


def logout(**changed: Any) -> Forge:
    return lambda idp: idp.logout_token(sid=SID, **{name: _now(value) for name, value in changed.items()})


def event(subject: Any = VICTIM, **changed: Any) -> Forge:
    return lambda idp: idp.event_token(subject, **{name: _now(value) for name, value in changed.items()})


def header(**changed: Any) -> Forge:
    return lambda idp: idp.sign(idp.logout_claims(sid=SID), **changed)


class Now:
    """Seconds from now."""

    def __init__(self, seconds: int) -> None:
        self.seconds = seconds


def _now(value: Any) -> Any:
    return int(time.time()) + value.seconds if isinstance(value, Now) else value


def unsigned(alg: str) -> Forge:
    return lambda idp: compact({"alg": alg, "typ": "logout+jwt", "kid": "first"}, idp.logout_claims(sid=SID), None)


def by_hmac(idp: IdentityProvider) -> str:
    """What a verifier takes that believes ``alg``: the public key as a shared secret."""
    claims = idp.logout_claims(sid=SID)
    return compact({"alg": "HS256", "typ": "logout+jwt", "kid": "first"}, claims, None, idp.key.public_pem())


def by_stranger(idp: IdentityProvider) -> str:
    return compact({"alg": "RS256", "typ": "logout+jwt", "kid": "first"}, idp.logout_claims(sid=SID), STRANGER)


def by_own_key(idp: IdentityProvider) -> str:
    whole = {"alg": "RS256", "typ": "logout+jwt", "kid": "first", "jwk": STRANGER.jwk, "jku": "http://127.0.0.1/x"}
    return compact(whole, idp.logout_claims(sid=SID), STRANGER)


def other_algorithm(idp: IdentityProvider) -> str:
    return compact({"alg": "ES256", "typ": "logout+jwt", "kid": "first"}, idp.logout_claims(sid=SID), OTHER_KIND)


def by_other_hash(idp: IdentityProvider) -> str:
    """The right key with an algorithm that is strong, and not the provider's."""
    claims = idp.logout_claims(sid=SID)
    body = compact({"alg": "RS512", "typ": "logout+jwt", "kid": "first"}, claims, None).rpartition(".")[0]
    return f"{body}.{b64(idp.key.private.sign(body.encode(), padding.PKCS1v15(), hashes.SHA512()))}"


def other_body(idp: IdentityProvider) -> str:
    """A good token of somebody else with the victim's claims under its signature."""
    head, _, signature = idp.logout_token(sid="nobody").split(".")
    return f"{head}.{b64(json.dumps(idp.logout_claims(sid=SID)).encode())}.{signature}"


def id_token(idp: IdentityProvider) -> str:
    return idp.sign(idp.id_token(SID, "sub") | {"nonce": "n", "jti": "j"}, "JWT")


LOGOUTS: dict[str, Forge] = {
    "alg none": unsigned("none"),
    "alg None": unsigned("None"),
    "no signature": unsigned("RS256"),
    "HS256 with the public key": by_hmac,
    "a stranger's key": by_stranger,
    "a key in the header": by_own_key,
    "an algorithm that is not allowed": other_algorithm,
    "the right key with another algorithm": by_other_hash,
    "another body under the signature": other_body,
    "wrong iss": logout(iss="https://idp.example"),
    "no iss": logout(iss=None),
    "wrong aud": logout(aud="another-client"),
    "no aud": logout(aud=None),
    "aud an empty list": logout(aud=[]),
    "aud a part of ours": logout(aud="shop"),
    "typ of an ID token for others": header(typ="at+jwt"),
    "typ of an event": header(typ="secevent+jwt"),
    "typ a number": header(typ=7),
    "typ JWT": header(typ="JWT"),
    "no typ": header(typ=None),
    "a nonce": logout(nonce="n"),
    "a nonce that is null": lambda idp: idp.sign(idp.logout_claims(sid=SID) | {"nonce": None}),
    "no events": logout(events=None),
    "events empty": logout(events={}),
    "events a list": logout(events=[LOGOUT]),
    "the event a text": logout(events={LOGOUT: "x"}),
    "another event": logout(events={REVOKED: {}}),
    "iat in the future": logout(iat=Now(120), exp=Now(240)),
    "iat long ago": logout(iat=Now(-700)),
    "no iat": logout(iat=None),
    "iat a text": logout(iat="now"),
    "iat true": logout(iat=True),
    "expired": logout(iat=Now(-300), exp=Now(-61)),
    "no exp": logout(exp=None),
    "exp in the year 200000": logout(exp=10**13),
    "nbf in the future": logout(nbf=Now(600)),
    "no jti": logout(jti=None),
    "jti empty": logout(jti=""),
    "jti a number": logout(jti=7),
    "sid a number": lambda idp: idp.logout_token(sid=7, sub="sub-victim"),
    "neither sid nor sub": lambda idp: idp.logout_token(),
    "sid with a NUL": lambda idp: idp.logout_token(sid=f"{SID}\x00"),
    "unknown kid": header(kid="unknown"),
    "kid a number": header(kid=7),
    "kid a path": header(kid="../../etc/passwd"),
    "crit": header(crit=["exp"]),
    "an ID token": id_token,
    "an event": lambda idp: idp.event_token(VICTIM),
    "claims a list": lambda idp: idp.sign([idp.logout_claims(sid=SID)]),
    "a huge token": lambda idp: idp.logout_token(sid=SID, filler="x" * 20_000),
    "two dots": lambda idp: "..",
    "no token": lambda idp: "x",
    "empty": lambda idp: "",
}
EVENTS: dict[str, Forge] = {
    "alg none": lambda idp: compact({"alg": "none", "typ": "secevent+jwt"}, idp.event_claims(VICTIM), None),
    "typ JWT": lambda idp: idp.sign(idp.event_claims(VICTIM), "JWT"),
    "no typ": lambda idp: idp.sign(idp.event_claims(VICTIM), None),
    "a logout token": lambda idp: idp.logout_token(sid=SID),
    "wrong iss": event(iss="https://idp.example"),
    "wrong aud": event(aud=["another-client"]),
    "iat in the future": event(iat=Now(120)),
    "iat days ago": event(iat=Now(-25 * 3600)),
    "expired": event(exp=Now(-120)),
    "no jti": event(jti=None),
    "no events": event(events=None),
    "another event beside it": event(events={REVOKED: {}, "https://idp.example/other": {}}),
    "no subject": event(None),
    "a subject of another issuer": event({"format": "iss_sub", "iss": "https://idp.example", "sub": "sub-victim"}),
    "a subject by address": event({"format": "email", "email": "victim@shop.example"}),
    "a device": event({"format": "complex", "device": {"format": "opaque", "id": SID}}),
    "a subject of no format": event({"id": SID}),
    "a subject that is text": event(SID),
    "a list of subjects": event([VICTIM]),
}


@pytest.fixture(scope="module")
def victim(service: SignalService, idp: IdentityProvider) -> str:
    return service.log_in("victim", idp.id_token(SID, "sub-victim"))


@pytest.mark.parametrize("name", LOGOUTS)
def test_a_forged_logout_token_ends_nothing(
    service: SignalService, idp: IdentityProvider, victim: str, name: str
) -> None:
    answer = service.logout(LOGOUTS[name](idp))
    assert (answer.status_code, answer.headers["cache-control"]) == (400, "no-store"), answer.text
    assert answer.json()["error"] == "invalid_request"
    assert set(answer.json()) == {"error", "error_description"}
    assert service.is_open(victim)


@pytest.mark.parametrize("name", EVENTS)
def test_a_forged_event_ends_nothing(service: SignalService, idp: IdentityProvider, victim: str, name: str) -> None:
    answer = service.event(EVENTS[name](idp))
    assert (answer.status_code, answer.headers["cache-control"]) == (400, "no-store"), answer.text
    assert set(answer.json()) == {"err", "description"}
    expected = {"wrong iss": "invalid_issuer", "wrong aud": "invalid_audience", "alg none": "invalid_key"}
    assert answer.json()["err"] == expected.get(name, "invalid_request")
    assert service.is_open(victim)


def test_bodies_and_addresses_that_are_none(service: SignalService, idp: IdentityProvider, victim: str) -> None:
    token = idp.logout_token(sid=SID)
    good = f"logout_token={token}"
    for body, kind in (
        (good, "application/json"), (good, "text/plain"), (good, ""), (token, FORM), ("", FORM),
        ("logout_token=", FORM),
        (f"{good}&{good}", FORM), (good.encode() + b"\xff", FORM), ("a=b&" * 20 + good, FORM),
        (json.dumps({"logout_token": token}), "application/json"),
    ):  # fmt: skip
        answer = service.http.post("/v1/signals/idp/logout", content=body, headers={"Content-Type": kind})
        assert answer.status_code == 400, (body, kind)
    packed = {"Content-Type": FORM, "Content-Encoding": "gzip"}
    assert service.http.post("/v1/signals/idp/logout", content=good, headers=packed).status_code == 400
    event_token = idp.event_token(VICTIM)
    for kind in ("application/jwt", FORM, "application/json"):
        answer = service.http.post("/v1/signals/idp/events", content=event_token, headers={"Content-Type": kind})
        assert (answer.status_code, answer.json()["err"]) == (400, "invalid_request")
    huge = service.http.post("/v1/signals/idp/events", content="x" * 100_000, headers={"Content-Type": EVENT})
    assert huge.status_code == 413
    assert service.logout(token, "somebody").status_code == 404
    assert service.http.get("/v1/signals/idp/logout").status_code == 405
    assert service.http.get("/.well-known/ssf-configuration").status_code == 404, "it transmits nothing"
    assert service.is_open(victim)
    assert service.logout(token).status_code == 200, "it was a good one"
    assert not service.is_open(victim)


def test_a_token_for_one_provider_is_none_for_another(
    start: StartService, idp: IdentityProvider, new_idp: Callable[..., IdentityProvider]
) -> None:
    other = new_idp("ES256")
    service = start(idp.settings() + other.settings("other"))
    cookie = service.log_in("ada", idp.id_token("sid-1"))
    for token in (other.logout_token(sid="sid-1"), other.logout_token(sid="sid-1", iss=idp.issuer)):
        assert service.logout(token, "idp").status_code == 400
    assert service.logout(other.logout_token(sid="sid-1", iss=idp.issuer), "other").status_code == 400
    assert service.logout(other.logout_token(sid="sid-1"), "other").status_code == 200, "a session of its own"
    assert service.is_open(cookie)
    assert service.logout(idp.logout_token(sid="sid-1"), "idp").status_code == 200
    assert not service.is_open(cookie)


def test_a_provider_that_sets_no_types_has_to_be_let_do_so(start: StartService, idp: IdentityProvider) -> None:
    service = start(idp.settings().replace("algorithms", "untyped = true\nalgorithms"))
    for n, typ in enumerate(("JWT", None, "logout+jwt", "application/logout+jwt")):
        cookie = service.log_in("ada", idp.id_token(f"sid-{n}"))
        assert service.logout(idp.sign(idp.logout_claims(sid=f"sid-{n}"), typ)).status_code == 200
        assert not service.is_open(cookie)
    assert service.logout(idp.sign(idp.logout_claims(sid="x"), "at+jwt")).status_code == 400
    assert service.event(idp.sign(idp.event_claims(VICTIM), "JWT")).status_code == 400, "events always have theirs"
