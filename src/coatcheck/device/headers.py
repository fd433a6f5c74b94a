"""The headers of Device Bound Session Credentials, read and written (W3C DBSC, "formats"; RFC 9651).

Browsers write some items bare that the specification has as strings (seen with Chromium 150): both are read.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Final

import msgspec

from coatcheck.device.jws import MAX_PROOF_CHARS
from coatcheck.device.keys import ALGORITHMS

REGISTRATION: Final = b"secure-session-registration"
CHALLENGE: Final = b"secure-session-challenge"
RESPONSE: Final = b"secure-session-response"
SKIPPED: Final = b"secure-session-skipped"
SESSION_ID: Final = b"sec-secure-session-id"

MAX_HEADER_BYTES: Final = MAX_PROOF_CHARS + 16
MAX_SKIPPED: Final = 16
"""Sessions that one request may say it has skipped; what is more is not read."""

_STRING: Final = re.compile(rb'"((?:[ !#-\[\]-~]|\\["\\])*)"')
_BARE: Final = re.compile(rb"[A-Za-z0-9*!#$%&'+.^_`|~:/-]+")
_KEY: Final = re.compile(rb"[a-z*][a-z0-9_.*-]*")
_SPACES: Final = re.compile(rb" *")
_COMMA: Final = re.compile(rb"[ \t]*,[ \t]*")
_ESCAPED: Final = re.compile(rb'\\(["\\])')

RawHeader = tuple[bytes, bytes]


class Skipped(msgspec.Struct, frozen=True):
    """A browser has not refreshed a session: ``reason`` says why (``quota_exceeded``, ``unreachable``,
    ``server_error``), ``session`` which one it is, in its own words."""

    reason: str
    session: str


def the_only(headers: Iterable[RawHeader], name: bytes) -> bytes | None:
    """The value of a header that stands once; ``None`` if it is missing, or stands more than once."""
    found = [value for each, value in headers if each == name]
    return found[0] if len(found) == 1 else None


def read_item(value: bytes | None) -> str | None:
    """The text of an item that is a string or bare, without its parameters; ``None`` for what is neither."""
    if value is None or len(value) > MAX_HEADER_BYTES:
        return None
    found = _item(value.strip(b" \t"), 0)
    if found is None:
        return None
    text, at = found
    rest = _parameters(value.strip(b" \t"), at)
    return text if rest is not None and rest[1] == len(value.strip(b" \t")) else None


def read_skipped(value: bytes) -> tuple[Skipped, ...]:
    """What ``Secure-Session-Skipped`` says, :data:`MAX_SKIPPED` at most; nothing at all if it is malformed."""
    text, at, found = value.strip(b" \t"), 0, list[Skipped]()
    if len(text) > MAX_HEADER_BYTES:
        return ()
    while len(found) < MAX_SKIPPED:
        item = _item(text, at)
        parameters = None if item is None else _parameters(text, item[1])
        if item is None or parameters is None:
            return ()
        named, at = parameters
        found.append(Skipped(item[0], named.get("session_identifier", "")))
        if at == len(text):
            break
        comma = _COMMA.match(text, at)
        if comma is None:
            return ()
        at = comma.end()
    return tuple(found)


def _item(text: bytes, at: int) -> tuple[str, int] | None:
    """A string or bare text, and where it ends."""
    string = _STRING.match(text, at)
    if string is not None:
        return _ESCAPED.sub(rb"\1", string[1]).decode("ascii"), string.end()
    bare = _BARE.match(text, at)
    return None if bare is None else (bare[0].decode("ascii"), bare.end())


def _parameters(text: bytes, at: int) -> tuple[dict[str, str], int] | None:
    """By name, those whose value is a string or bare, and where they end; ``None`` for what are no parameters."""
    found: dict[str, str] = {}
    while text[at : at + 1] == b";":
        spaces = _SPACES.match(text, at + 1)
        assert spaces is not None
        key = _KEY.match(text, spaces.end())
        if key is None:
            return None
        at, value = key.end(), ""
        if text[at : at + 1] == b"=":
            item = _item(text, at + 1)
            if item is None:
                return None
            value, at = item
        found[key[0].decode("ascii")] = value
    return found, at


def registration(path: str, challenge: str) -> RawHeader:
    """The offer of a login's answer: make a key, and prove it at ``path`` with ``challenge``."""
    algorithms = " ".join(ALGORITHMS)
    value = f"({algorithms});path={_quoted(path)};challenge={_quoted(challenge)}"
    return REGISTRATION, value.encode("ascii")


def challenge_for(challenge: str, session: str) -> RawHeader:
    """What the browser is to sign next for its session."""
    return CHALLENGE, f"{_quoted(challenge)};id={_quoted(session)}".encode("ascii")


def _quoted(text: str) -> str:
    """Raises :class:`ValueError` for text that no string can hold (RFC 9651 section 3.3.3)."""
    if not text.isascii() or not text.isprintable():
        raise ValueError("a string of a structured field is printable ASCII")
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
