"""Mutated logout tokens and events: ``PYTHONPATH=tests python -m signals.fuzz 1000000 [SEED]``.

Each is judged in this process, and one of forty goes through the whole service, as a request. None may break anything,
take long, or be taken that an independent look (:func:`may_be_taken`) does not find good.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any
from urllib.parse import quote

from coatcheck.access import SessionAccess
from coatcheck.service.service import SessionService
from coatcheck.service.signals.event_tokens import (
    EventTokenRefused,
    Form,
    Issuer,
    key_id_of,
    order_of,
    usable_keys,
)
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.stores.session_server_url import parse_session_servers

from .identity_provider import AUDIENCE, LOGOUT, REVOKED, Key, b64, compact
from .receiver import raw_of

ISSUER = "https://idp.example"
KEY, STRANGER = Key("ES256", "first"), Key("ES256", "first")
THROUGH_THE_SERVICE = 40
MAX_S = 0.5
"""CPU time that one token may take; it is a thousand times what one takes."""
WORDS: tuple[Any, ...] = (
    None, True, False, 0, -1, 7, 1e308, 10**400, "", "x", "\x00", "\ud800", "none", "HS256", "RS256", "None", [], [7],
    {}, {"x": {}}, [[]] * 3, ISSUER, AUDIENCE, LOGOUT, REVOKED, "first", "../x", "JWT", "secevent+jwt", "logout+jwt",
    {LOGOUT: None}, {REVOKED: []}, {LOGOUT: {}}, {"format": "opaque"}, {"format": "complex"}, ["exp"], "9" * 5000,
)  # fmt: skip
NAMES = ("alg", "kid", "typ", "crit", "b64", "zip", "jwk", "jku", "x5c", "enc", "cty")
CLAIMS = ("iss", "aud", "iat", "exp", "nbf", "jti", "sid", "sub", "events", "nonce", "sub_id", "format", "toe")


def good(dice: random.Random, form: Form, now: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """A header and claims that would be taken."""
    header = {"alg": "ES256", "kid": "first", "typ": "logout+jwt" if form == "logout-token" else "secevent+jwt"}
    claims: dict[str, Any] = {"iss": ISSUER, "aud": AUDIENCE, "iat": now, "jti": f"j{dice.getrandbits(64)}"}
    if form == "logout-token":
        return header, claims | {"exp": now + 120, "sid": "victim", "sub": "u", "events": {LOGOUT: {}}}
    return header, claims | {"sub_id": {"format": "opaque", "id": "victim"}, "events": {REVOKED: {}}}


def changed(dice: random.Random, members: dict[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    for _ in range(dice.randint(1, 3)):
        name = dice.choice([*members, *names] if members else list(names))
        if dice.random() < 0.3:
            members.pop(name, None)
        else:
            members[name] = dice.choice(WORDS)
    return members


def mutated(dice: random.Random, form: Form, now: int) -> str:
    header, claims = good(dice, form, now)
    kind = dice.random()
    if kind < 0.2:  # what is signed by the right key, and says something odd
        return compact(changed(dice, header, NAMES), claims, KEY)
    if kind < 0.5:
        return compact(header, changed(dice, claims, CLAIMS), KEY)
    token = compact(header, claims, KEY)
    if kind < 0.6:
        return compact(changed(dice, header, NAMES), claims, dice.choice([STRANGER, None]), b"secret")
    if kind < 0.7:
        head, _, signature = token.split(".")
        return f"{head}.{b64(json.dumps(changed(dice, claims, CLAIMS)).encode())}.{signature}"
    if kind < 0.75:
        parts = token.split(".")
        dice.shuffle(parts)
        return dice.choice([".", "..", ""]).join(parts[: dice.randint(0, 3)])
    if kind < 0.8:
        deep = b64(b"[" * dice.randint(1, 5000))
        return f"{deep}.{deep}.{deep}" if dice.random() < 0.5 else f"{token.split('.')[0]}.{deep}.x"
    text = bytearray(token.encode())
    for _ in range(dice.randint(1, 4)):
        at = dice.randrange(len(text))
        how = dice.random()
        if how < 0.4:
            text[at] = dice.randrange(32, 127)
        elif how < 0.6:
            del text[at : at + dice.randint(1, 40)]
        elif how < 0.8:
            text[at:at] = bytes(dice.randrange(256) for _ in range(dice.randint(1, 20)))
        else:
            text[at] ^= 1 << dice.randrange(8)
        if not text:
            break
    return text.decode("latin-1")


def may_be_taken(token: str, form: Form, now: float) -> bool:
    """Another look, without the code that is tried: nothing but a good signature over good claims may be taken."""
    head, body, signature = token.split(".")
    raw = raw_of(signature)
    if KEY.algorithm != "ES256" or len(raw) != 64:
        return False
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
    try:
        KEY.private.public_key().verify(der, f"{head}.{body}".encode(), ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        return False
    header, claims = json.loads(raw_of(head)), json.loads(raw_of(body))
    events, typ = claims["events"], str(header.get("typ", "")).lower()
    right = header["alg"] == "ES256" and "crit" not in header and claims["iss"] == ISSUER
    right = right and (claims["aud"] == AUDIENCE or AUDIENCE in claims["aud"]) and isinstance(claims["jti"], str)
    right = right and now - 90_000 < claims["iat"] < now + 90
    if form == "logout-token":
        return bool(
            right and LOGOUT in events and "nonce" not in claims and claims["exp"] > now - 90
            and (claims.get("sid") or claims.get("sub")) and typ.removeprefix("application/") == "logout+jwt"
        )  # fmt: skip
    return bool(right and list(events) == [REVOKED] and isinstance(claims["sub_id"], dict) and typ == "secevent+jwt")


class Service:
    """The whole service in this process: requests without sockets."""

    def __init__(self, folder: Path) -> None:
        (folder / "callers.toml").write_text('[shop]\nscopes = ["verify"]\n')
        (folder / "keys.json").write_text(json.dumps({"keys": [KEY.jwk]}))
        (folder / "signals.toml").write_text(
            f'[providers.idp]\nissuer = "{ISSUER}"\naudience = "{AUDIENCE}"\nkeys = "keys.json"\n'
            'algorithms = ["ES256"]\n'
        )
        access = SessionAccess(
            farm="f", server="s", session_servers=parse_session_servers(("memory://",), ("memory",)), keys=(b"k" * 32,)
        )
        service = SessionService(access, CookiePolicy(), folder / "callers.toml", signals=folder / "signals.toml")
        self.sessions = service.sessions
        self._app = service.app()

    async def post(self, token: str, form: Form) -> int:
        logout = form == "logout-token"
        kind = b"application/x-www-form-urlencoded" if logout else b"application/secevent+jwt"
        body = f"logout_token={quote(token, encoding='latin-1')}".encode() if logout else token.encode("latin-1")
        path = f"/v1/signals/idp/{'logout' if logout else 'events'}"
        scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "headers": [(b"content-type", kind)],
        }  # fmt: skip
        status = 0

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            nonlocal status
            status = message.get("status", status)

        await self._app(scope, receive, send)
        return status


async def fuzz(count: int, seed: int, say: Any = lambda line: None) -> Counter[str]:
    """How many came to what; raises :class:`AssertionError` with the token that should not have."""
    dice, seen, used = random.Random(seed), Counter[str](), set[str]()
    issuer = Issuer(ISSUER, AUDIENCE, ("ES256",))
    keys = usable_keys([KEY.jwk], ["ES256"])
    with tempfile.TemporaryDirectory() as folder:
        service = Service(Path(folder))
        await service.sessions.start()
        for number in range(count):
            form: Form = dice.choice(("logout-token", "security-event"))
            now = int(time.time())
            token = mutated(dice, form, now)
            began = time.process_time()
            try:
                found = keys.get(key_id_of(token, form, issuer) or "first")
                if found is None:
                    raise EventTokenRefused("invalid_key", "no such key")
                order_of(token, form, issuer, found, now)
                outcome = "taken"
            except EventTokenRefused as refusal:
                outcome = refusal.err
            assert time.process_time() - began < MAX_S, token
            assert outcome != "taken" or may_be_taken(token, form, now), token
            seen[outcome] += 1
            if number % THROUGH_THE_SERVICE == 0:
                status = await service.post(token, form)
                assert status in (200, 202, 400, 413), (status, token)
                right = {200} if form == "logout-token" else {202}
                if outcome == "taken" and form == "logout-token":
                    jti = json.loads(raw_of(token.split(".")[1]))["jti"]
                    # A name that was used is refused while that token is remembered, which is for minutes.
                    right |= {400} if jti in used else set()
                    used.add(jti)
                assert status in right or outcome != "taken", (status, token)
                assert status >= 400 or outcome == "taken", (status, outcome, token)
                seen[str(status)] += 1
            if number and number % 100_000 == 0:
                say(f"{number} {dict(seen)}")
        await service.sessions.aclose()
    return seen


if __name__ == "__main__":
    arguments = [int(word) for word in sys.argv[1:]] or [100_000]
    print(dict(asyncio.run(fuzz(arguments[0], [*arguments, 0][1], print))))
