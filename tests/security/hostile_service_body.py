"""Hostile bodies of requests to the session service: JSON, and what looks like it, for each of its operations.

What a body may say is judged by the document that the service publishes, not by the types that it reads with.
"""

from __future__ import annotations

import json
import math
import re
from typing import Any

from security.hostile_input import Report, damaged, scrambled
from security.hostile_service import SHOP, TICKETS, Asked, Service, run_of

WORDS: tuple[Any, ...] = (
    None, True, False, 0, -1, 1e308, 10**30, 10**400, "", "x", "\x00", "\ud800", "\U0010ffff", [], [[]] * 3, {},
    {"": {}}, {"x": [None]}, "x" * 1025, "x" * 20_000, "::1", "192.0.2.1, 10.0.0.1", "ada", "\r\nSet-Cookie: a=b",
    "/tickets/1?coatcheck-ticket=AAAA", "/basket?coatcheck-ask=A", "//evil.example/", "/\\evil.example", "GET", "POST",
    "/.coatcheck/hand-off?coatcheck-call=A", ["a"] * 1_001, {str(n): n for n in range(1_001)},
)  # fmt: skip
SHOWING = ("/v1/sessions/verify", "/v1/sessions/renew", "/v1/sessions/update", "/v1/sessions/close")
"""What is for whom a cookie opens a session."""
MEMBERS = ("cookie", "client", "user", "data", "set", "delete", "version", "now", "url", "method", "cross_site",
           "device", "remember", "id_token", "Cookie", "__class__", "")  # fmt: skip
LITERALS = (
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"-0", b"01", b"1.", b"0x10", b"9" * 5_000, b"-",
    b"1e-999", b'"\xff\xfe"', b'"\xed\xa0\x80"', b'"\x00"', b'"\\ud800"', b'"\\u12"', b"'a'", b"nul", b"[", b"]", b"{",
    b'{"a":1,"a":2}', b"/**/1", b"\xef\xbb\xbf1", b"[" * 5_000,
    b"[" * 900 + b"]" * 900, b'{"a":' * 500 + b"1" + b"}" * 500,
    b"[" * 100_000 + b"]" * 100_000, b'{"a":' * 20_000, b"123456789012345678901234567890",
)  # fmt: skip


class Bodies(Service):
    """Good requests whose JSON is not what it should be."""

    def make(self) -> Asked:
        """A good request whose JSON is not what it should be."""
        dice = self.dice
        path, members = dice.choice(list(self.bodies().items()))
        asked = self.genuine("shop", path, {})
        raw = self._json(members)
        body: list[bytes | None] = [raw]
        if dice.random() < 0.1:
            at = dice.randint(0, len(raw))
            body = dice.choice(([raw[:at], raw[at:]], [raw[:at], None], [json.dumps(members).encode(), None]))
        return asked._replace(body=body)

    def _json(self, members: dict[str, Any]) -> bytes:
        dice, act = self.dice, self.dice.random()
        name = dice.choice(list(members))
        wide = dice.choice([each for each in ("data", "set", "id_token") if each in members] or [name])
        if act < 0.45:
            for _ in range(dice.randint(1, 2)):
                self._change(members)
            return json.dumps(members).encode()
        if act < 0.6:
            inner = {dice.choice(MEMBERS): dice.choice(WORDS)}
            return json.dumps(members | {dice.choice((name, wide, wide)): inner}).encode()
        if act < 0.75:
            text = json.dumps(members | {dice.choice((name, wide)): dice.choice(("@@", ["@@"], {"a": "@@"}))})
            return text.encode().replace(b'"@@"', dice.choice(LITERALS))
        text = json.dumps(members).encode()
        if act < 0.8:
            return text[:-1] + b"," + json.dumps({name: dice.choice(WORDS)}).encode()[1:]
        if act < 0.9:
            return damaged(text, dice)
        if act < 0.92:
            return text.decode().encode(dice.choice(("utf-16", "utf-8-sig", "utf-32")))
        if act < 0.93:
            return dice.choice((b"{" + b" " * 600_000 + b"}", b"[" * 600_000, b'{"user":"' + b"x" * 500_000 + b'"}'))
        return scrambled(dice) if act < 0.97 else dice.choice(LITERALS)

    def _change(self, members: dict[str, Any]) -> None:
        dice = self.dice
        name = dice.choice([*members, *MEMBERS])
        act, was = dice.random(), members.get(name)
        if act < 0.25:
            members.pop(name, None)
        elif act < 0.5 and isinstance(was, str):
            members[name] = damaged(was.encode("utf-8", "replace"), dice).decode("latin-1")
        else:
            members[name] = dice.choice(WORDS)

    def judge(self, asked: Asked) -> bool:
        told = self.tell(asked)
        if told.status >= 400:
            assert told.status in (400, 404, 409, 413, 429), told
            return False
        assert told.status == (201 if asked.target == "/v1/sessions" else 200), told
        answer = json.loads(told.body.decode(), parse_constant=_refuse)
        assert None not in asked.body, "the end of it never came"
        raw = b"".join(piece for piece in asked.body if piece)
        self._judge_accepted(asked.target, raw)
        if asked.target == "/v1/hand-off":
            assert answer["todo"] != "redirect" or answer["url"].startswith((SHOP + "/", TICKETS + "/")), answer
            given = [line for line in answer["set_cookie"] if "Max-Age=0" not in line and "-binder=" not in line]
            assert not given or self._shows(raw), f"a ticket that nobody has issued was redeemed: {given}"
        elif asked.target in SHOWING and answer.get("closed") is not False:
            assert self._shows(raw), "anybody is ada"
        return True

    def _shows(self, raw: bytes) -> bool:
        return any(each.partition("=")[2].encode() in raw for each in self.cookies)

    def _judge_accepted(self, path: str, raw: bytes) -> None:
        """What was accepted is JSON (RFC 8259), and what the document describes."""
        value = json.loads(raw.decode(), parse_constant=_refuse, parse_int=len, parse_float=_finite) if raw else {}
        described = self.document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        assert _fits(described, value, self.document["components"]["schemas"]), "the document does not describe it"


def _refuse(word: str) -> None:
    raise AssertionError(f"{word} is no JSON")


def _finite(text: str) -> float:
    assert math.isfinite(float(text)), f"{text} is no number that can be stored"
    return float(text)


def _fits(schema: Any, value: Any, components: Any) -> bool:
    """As much of JSON Schema as our document has."""
    if "$ref" in schema:
        return _fits(components[schema["$ref"].rpartition("/")[2]], value, components)
    if "anyOf" in schema:
        return any(_fits(each, value, components) for each in schema["anyOf"])
    kind = schema.get("type")
    if kind == "object":
        members, more = schema.get("properties", {}), schema.get("additionalProperties", True)
        return (
            isinstance(value, dict)
            and all(name in value for name in schema.get("required", ()))
            and len(value) <= schema.get("maxProperties", len(value))
            and all(more is not False if name not in members else True for name in value)
            and all(_fits(members[name], value[name], components) for name in value if name in members)
        )
    if kind == "array":
        items = schema.get("items", {})
        return (
            isinstance(value, list)
            and len(value) <= schema.get("maxItems", len(value))
            and all(_fits(items, each, components) for each in value)
        )
    if kind == "string":
        return (
            isinstance(value, str)
            and schema.get("minLength", 0) <= len(value) <= schema.get("maxLength", len(value))
            and re.search(schema.get("pattern", ""), value) is not None
        )
    return kind is None or (kind == "boolean" and isinstance(value, bool)) or (kind == "null" and value is None)


def service_body(count: int, seed: int) -> Report:
    """JSON for every operation that reads any."""
    return run_of("service-body", Bodies, count, seed)
