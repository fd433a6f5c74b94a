"""What a logout token or a security event token must be to end sessions, and what ours are.

Pure. OpenID Connect Back-Channel Logout 1.0, sections 2.4 and 2.6; RFC 8417 with CAEP 1.0 (``session-revoked``) and the
subjects of RFC 9493. Signatures are PyJWT's to judge; what is signed is judged here, by the time that we are told.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import jwt
import msgspec

from coatcheck.errors import CoatcheckError
from coatcheck.sessions.mapping import MAX_USER_BYTES
from coatcheck.sessions.provider import ProviderName, is_claim

LOGOUT_EVENT: Final = "http://schemas.openid.net/event/backchannel-logout"
REVOKED_EVENT: Final = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
HARMLESS_EVENTS: Final = frozenset(
    {
        "https://schemas.openid.net/secevent/ssf/event-type/verification",
        "https://schemas.openid.net/secevent/ssf/event-type/stream-updated",
    }
)
"""About the stream itself: acknowledged, and nothing else."""

ALGORITHMS: Final = (
    "RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"
)  # fmt: skip
"""What a provider may be allowed: signatures alone. Neither ``none`` nor a shared secret is among them."""

LOGOUT_TYPE: Final = "logout+jwt"
EVENT_TYPE: Final = "secevent+jwt"
UNTYPED: Final = frozenset({"jwt", ""})
"""What older providers write there. The event and the missing nonce tell their tokens from ID tokens, too."""

MAX_TOKEN_CHARS: Final = 16_384
LEEWAY_S: Final = 60
"""By so much the clocks of a provider and ours may differ."""
LATEST_S: Final = 10**11
"""Seconds since 1970; what is later was meant to be milliseconds."""
MAX_LOGOUT_AGE_S: Final = 600
"""A logout token that was made longer ago is refused, whatever its ``exp`` (which is to be two minutes at most)."""
MAX_EVENT_AGE_S: Final = 24 * 3600
"""Event tokens have no ``exp``, and are sent again until they are taken; older ones are refused."""

Form = Literal["logout-token", "security-event"]
NamedBy = Literal["", "sub", "email"]


class EventTokenRefused(CoatcheckError):
    """It ends nothing. ``err``: of the names of RFC 8935, section 2.4."""

    def __init__(self, err: str, why: str) -> None:
        super().__init__(why)
        self.err = err


class KeysUnavailable(CoatcheckError):
    """The keys of its issuer cannot be had: nothing can be said about it now."""


class Issuer(msgspec.Struct, frozen=True):
    """Who may send what. ``named_by``: which of its claims is the user's name here, if any; ``untyped``: whether its
    logout tokens need not say that they are such."""

    issuer: str
    audience: str
    algorithms: tuple[str, ...] = ("RS256",)
    named_by: NamedBy = ""
    untyped: bool = False


class EndOrder(msgspec.Struct, frozen=True):
    """What a token that was found good wants: that sessions of these names, and of these users, end, which were begun
    by ``moment_ms``. It could be shown again until ``keep_until_ms``. Times are Unix ms."""

    message: ProviderName
    names: tuple[ProviderName, ...]
    users: tuple[str, ...]
    moment_ms: int
    keep_until_ms: int


def key_id_of(token: str, form: Form, issuer: Issuer) -> str | None:
    """Which key it says that it is signed with. Raises :class:`EventTokenRefused`, before any key is looked for."""
    if len(token) > MAX_TOKEN_CHARS:
        raise EventTokenRefused("invalid_request", f"a token has at most {MAX_TOKEN_CHARS} characters")
    try:
        header = jwt.get_unverified_header(token)
    except _BROKEN:
        raise EventTokenRefused("invalid_request", "not a JWS of compact form") from None
    if header.get("alg") not in issuer.algorithms:
        raise EventTokenRefused("invalid_key", "its algorithm is not allowed for this issuer")
    kind = header.get("typ", "")
    short = kind.lower().removeprefix("application/") if isinstance(kind, str) else None
    if short != type_of(form) and not (issuer.untyped and form == "logout-token" and short in UNTYPED):
        raise EventTokenRefused("invalid_request", f"its typ is not that of a {form}")
    if "crit" in header:
        raise EventTokenRefused("invalid_request", "it has extensions that must be understood, and are not")
    key_id = header.get("kid")
    if key_id is not None and not is_claim(key_id):
        raise EventTokenRefused("invalid_request", "its kid is no text")
    return key_id


def order_of(token: str, form: Form, issuer: Issuer, key: jwt.PyJWK, now_s: float) -> EndOrder:
    """What a token says that is signed with ``key``. Raises :class:`EventTokenRefused`."""
    try:
        claims = jwt.decode(token, key.key, algorithms=list(issuer.algorithms), options=_SIGNATURE_ALONE)
    except _BROKEN:
        raise EventTokenRefused("invalid_key", "its signature is not that of this key") from None
    made_at, ends_at = _judged_claims(claims, form, issuer, now_s)
    events = claims.get("events")
    if not isinstance(events, dict) or not all(isinstance(one, dict) for one in events.values()):
        raise EventTokenRefused("invalid_request", "events: an object of objects")
    names, users = _of_logout(claims, events, issuer) if form == "logout-token" else _of_event(claims, events, issuer)
    return EndOrder(
        ProviderName(issuer.issuer, f"jti of {form}", claims["jti"]),
        tuple(names),
        tuple(users),
        round(min(now_s, made_at + LEEWAY_S) * 1000),
        round((ends_at + 2 * LEEWAY_S) * 1000),
    )


_BROKEN: Final = (jwt.PyJWTError, ValueError, TypeError, KeyError, AttributeError, RecursionError, OverflowError)
"""What PyJWT raises for bytes that are none of its tokens; a hostile token is never a fault of ours."""
_SIGNATURE_ALONE: Final[Any] = {
    "verify_signature": True, "verify_exp": False, "verify_nbf": False, "verify_iat": False, "verify_aud": False,
    "verify_iss": False, "verify_sub": False, "verify_jti": False,
}  # fmt: skip


def _judged_claims(claims: Mapping[str, Any], form: Form, issuer: Issuer, now_s: float) -> tuple[float, float]:
    """When it was made, and until when it could be shown (Unix seconds)."""
    if claims.get("iss") != issuer.issuer:
        raise EventTokenRefused("invalid_issuer", "iss is not the issuer of this address")
    audience = claims.get("aud")
    if audience != issuer.audience and not (isinstance(audience, list) and issuer.audience in audience):
        raise EventTokenRefused("invalid_audience", "aud is somebody else")
    if not is_claim(claims.get("jti")):
        raise EventTokenRefused("invalid_request", "jti: a text that names this token")
    made_at = _time(claims, "iat")
    oldest_s = MAX_LOGOUT_AGE_S if form == "logout-token" else MAX_EVENT_AGE_S
    if made_at > now_s + LEEWAY_S:
        raise EventTokenRefused("invalid_request", "iat is in the future: clocks differ too much")
    if made_at < now_s - oldest_s:
        raise EventTokenRefused("invalid_request", f"iat is more than {oldest_s} s ago")
    ends_at = made_at + oldest_s
    if form == "logout-token" or "exp" in claims:
        ends_at = min(ends_at, _time(claims, "exp"))
        if ends_at + LEEWAY_S <= now_s:
            raise EventTokenRefused("invalid_request", "it has expired")
    if "nbf" in claims and _time(claims, "nbf") > now_s + LEEWAY_S:
        raise EventTokenRefused("invalid_request", "nbf is in the future")
    return made_at, ends_at


def _time(claims: Mapping[str, Any], name: str) -> float:
    value = claims.get(name)
    # Neither infinity nor a NaN is within the bound; a number of a thousand digits is no float.
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LATEST_S:
        raise EventTokenRefused("invalid_request", f"{name}: seconds since 1970 are needed")
    return value


Found = tuple[list[ProviderName], list[str]]


def _of_logout(claims: Mapping[str, Any], events: Mapping[str, Any], issuer: Issuer) -> Found:
    if "nonce" in claims:
        raise EventTokenRefused("invalid_request", "a logout token has no nonce: this may be an ID token")
    if LOGOUT_EVENT not in events:
        raise EventTokenRefused("invalid_request", "events: it is no logout")
    sid, sub = _text(claims, "sid"), _text(claims, "sub")
    if sid is None and sub is None:
        raise EventTokenRefused("invalid_request", "it has neither sid nor sub")
    return _found(issuer, sid, sub)


def _of_event(claims: Mapping[str, Any], events: Mapping[str, Any], issuer: Issuer) -> Found:
    if events and HARMLESS_EVENTS.issuperset(events):
        return [], []
    if set(events) != {REVOKED_EVENT}:
        raise EventTokenRefused("invalid_request", "events: session-revoked alone is understood here")
    # Before CAEP 1.0 was final, the subject stood in the event.
    subject = claims.get("sub_id", events[REVOKED_EVENT].get("subject"))
    if not isinstance(subject, dict):
        raise EventTokenRefused("invalid_request", "sub_id: a subject identifier is needed")
    if subject.get("format") == "complex" or "format" not in subject:
        # Of a session and its user the session is meant, and one that has a name of its own is found by that.
        subject = subject.get("session", subject.get("user"))
    return _of_subject(subject, issuer)


def _of_subject(subject: Any, issuer: Issuer) -> Found:
    """RFC 9493, section 3."""
    kind = subject.get("format") if isinstance(subject, dict) else None
    if kind == "opaque" and (sid := _text(subject, "id")) is not None:
        return _found(issuer, sid, None)
    if kind == "iss_sub" and (sub := _text(subject, "sub")) is not None:
        if subject.get("iss") != issuer.issuer:
            raise EventTokenRefused("invalid_request", "sub_id: a subject of another issuer")
        return _found(issuer, None, sub)
    if kind == "email" and issuer.named_by == "email" and (email := _text(subject, "email")) is not None:
        return [], [_user(email)]
    raise EventTokenRefused("invalid_request", "sub_id: nobody here is found by such a subject")


def _found(issuer: Issuer, sid: str | None, sub: str | None) -> Found:
    """A session by its own name; with the user's name beside it, also those of that user which have none."""
    names = [] if sid is None else [ProviderName(issuer.issuer, "sid", sid)]
    if sub is not None:
        names.append(ProviderName(issuer.issuer, "sub" if sid is None else "sub without sid", sub))
    return names, [_user(sub)] if sub is not None and issuer.named_by == "sub" else []


def _user(name: str) -> str:
    if len(name.encode()) > MAX_USER_BYTES:
        raise EventTokenRefused("invalid_request", f"a user's name has at most {MAX_USER_BYTES} bytes")
    return name


def _text(claims: Mapping[str, Any], name: str) -> str | None:
    """Raises :class:`EventTokenRefused` for what is there and is no text."""
    value = claims.get(name)
    if value is not None and not is_claim(value):
        raise EventTokenRefused("invalid_request", f"{name}: text of a sensible length is needed")
    return value


# -- ours ------------------------------------------------------------------------------------------

OUR_LOGOUT_LIFE_S: Final = 120
"""Of a logout token (section 2.4: two minutes at most)."""


class Signal(msgspec.Struct, frozen=True):
    """What ended here: a session (by its public ID), all of a user, or (neither) everybody's."""

    user: str = ""
    session: str = ""
    at_s: int = 0
    stolen: bool = False


def payload_of(signal: Signal, form: Form, issuer: str, audience: str, jti: str, now_s: int) -> dict[str, Any] | None:
    """The claims of the token that tells it; ``None``: this form cannot say that."""
    claims: dict[str, Any] = {"iss": issuer, "aud": audience, "iat": now_s, "jti": jti}
    if form == "logout-token":
        if not signal.user:
            return None
        named = {"sub": signal.user} | ({"sid": signal.session} if signal.session else {})
        return {**claims, **named, "exp": now_s + OUR_LOGOUT_LIFE_S, "events": {LOGOUT_EVENT: {}}}
    event: dict[str, Any] = {"event_timestamp": signal.at_s}
    if signal.stolen:
        event |= {"initiating_entity": "policy", "reason_admin": {"en": "a token of the session was stolen"}}
    return {**claims, "sub_id": _subject_of(signal, issuer), "events": {REVOKED_EVENT: event}}


def _subject_of(signal: Signal, issuer: str) -> dict[str, Any]:
    if not signal.user:
        return {"format": "complex", "tenant": {"format": "opaque", "id": issuer}}
    user = {"format": "iss_sub", "iss": issuer, "sub": signal.user}
    if not signal.session:
        return user
    return {"format": "complex", "session": {"format": "opaque", "id": signal.session}, "user": user}


def type_of(form: Form) -> str:
    """What its ``typ`` says (ASVS 10.5.5)."""
    return LOGOUT_TYPE if form == "logout-token" else EVENT_TYPE


def usable_keys(documents: Sequence[Any], algorithms: Sequence[str]) -> dict[str, jwt.PyJWK]:
    """The keys of a JWK set (RFC 7517) that verify one of these algorithms, by ``kid`` (``""``: it has none)."""
    keys: dict[str, jwt.PyJWK] = {}
    for document in documents:
        if not isinstance(document, dict) or document.get("kty") not in ("RSA", "EC", "OKP"):
            continue
        if document.get("use", "sig") != "sig" or document.get("alg", algorithms[0]) not in algorithms:
            continue
        public = {name: value for name, value in document.items() if name in _PUBLIC_MEMBERS}
        try:
            key = jwt.PyJWK.from_dict(public)
        except _BROKEN:
            continue
        size = getattr(key.key, "key_size", MIN_RSA_BITS)
        key_id = document.get("kid", "")
        if isinstance(key_id, str) and (document["kty"] != "RSA" or size >= MIN_RSA_BITS):
            keys.setdefault(key_id, key)
    return keys


MIN_RSA_BITS: Final = 2048
_PUBLIC_MEMBERS: Final = frozenset({"kty", "kid", "alg", "use", "n", "e", "crv", "x", "y"})
