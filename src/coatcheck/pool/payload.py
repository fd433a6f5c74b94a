"""What belongs to a token beside its string, and how both are kept as one opaque string.

The rules and the stores know nothing of payloads: they keep what :func:`pack` made, sealed as every token is.
"""

from __future__ import annotations

from typing import Any, Final

import msgspec

from coatcheck.pool.masking import check_token

MAX_PAYLOAD_BYTES: Final = 16_384
"""Of its JSON form."""

MARK: Final = "\x00payload:1:"
"""How a packed string begins. A token that begins so is packed as well, so the two are never taken for each other."""

Payload = dict[str, Any]
"""A small dict of JSON types: an instance URL, further cookies, a CSRF token."""


def check_payload(payload: object) -> Payload | None:
    """A copy of ``payload``; raises ``ValueError`` unless it is ``None`` or a dict of JSON types. Never shows it."""
    if payload is None:
        return None
    if not isinstance(payload, dict) or not all(isinstance(name, str) for name in payload):
        raise ValueError("a payload is a dict with strings as names")
    if not _is_json(payload):
        raise ValueError("a payload holds nothing but dicts, lists, strings, numbers, truths and None")
    try:
        encoded = msgspec.json.encode(payload)
    except (TypeError, ValueError, OverflowError, RecursionError):
        raise ValueError("a payload is what JSON can say") from None
    if len(encoded) > MAX_PAYLOAD_BYTES:
        raise ValueError(f"a payload is at most {MAX_PAYLOAD_BYTES} bytes of JSON, not {len(encoded)}")
    copied: Payload = msgspec.json.decode(encoded)
    return copied


def _is_json(value: object, depth: int = 32) -> bool:
    if value is None or isinstance(value, (str, bool, int)):
        return True
    if isinstance(value, float):
        return value - value == 0  # neither infinite nor no number
    if isinstance(value, list):
        return depth > 0 and all(_is_json(each, depth - 1) for each in value)
    if isinstance(value, dict):
        return depth > 0 and all(isinstance(name, str) and _is_json(each, depth - 1) for name, each in value.items())
    return False


def pack(token: str, payload: Payload | None) -> str:
    """One string of both; the token itself where there is no payload. Raises ``ValueError`` for what is no token."""
    check_token(token)
    if payload is None and not token.startswith(MARK):
        return token
    return MARK + msgspec.json.encode((token, payload)).decode()


def unpack(value: str) -> tuple[str, Payload | None]:
    """The token and the payload of what :func:`pack` made."""
    if not value.startswith(MARK):
        return value, None
    token, payload = msgspec.json.decode(value[len(MARK) :], type=tuple[str, Payload | None])
    return token, payload


def token_of(value: str) -> str:
    """The token alone."""
    return unpack(value)[0]


def renewed(value: str, token: str) -> str:
    """``value`` with another token; the payload stays."""
    return pack(token, unpack(value)[1])
