"""Reading a secret key: one parser for the farm's key file, ``COATCHECK_KEYS`` and :func:`coatcheck.connect`."""

from __future__ import annotations

import base64
import binascii
import re
from itertools import pairwise
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.tokens.keyring import MIN_SECRET_BYTES

HOW: Final = 'make one: python3 -c "import secrets; print(secrets.token_urlsafe(32))"'
FEWEST_DIFFERENT_BYTES: Final = 16
"""Of 32 random bytes about 30 are different; fewer than 16 come once in 10**17 keys."""

_HEX: Final = re.compile(r"(?:[0-9A-Fa-f]{2})+")
_BASE64: Final = re.compile(r"[A-Za-z0-9+/_-]+={0,2}")

PRINTED: Final = frozenset({"wG8rq4NGtU3d1rWX0uo7Jp6kXrjbhOqkQ5-8mM2nTBw"})
"""Keys that stood in our documentation: whoever reads it knows them."""


def parse_key(given: str | bytes, where: str) -> bytes:
    """The secret in ``given``: raw bytes, or text in hex, base64 or base64url, with or without padding.

    Raises :class:`ConfigError`, which begins with ``where`` and never shows the key, if it is none, shorter than 32
    bytes, or one that can be guessed.
    """
    if isinstance(given, str) and given.strip().rstrip("=") in PRINTED:
        raise ConfigError(f"{where}: this key is printed in the documentation, so everybody knows it; {HOW}")
    secret = given if isinstance(given, bytes) else _decode(given.strip(), where)
    if len(secret) < MIN_SECRET_BYTES:
        raise ConfigError(f"{where}: a key is at least {MIN_SECRET_BYTES} random bytes, this one {len(secret)}; {HOW}")
    steps = {after - before & 0xFF for before, after in pairwise(secret)}
    if len(set(secret)) < FEWEST_DIFFERENT_BYTES or len(steps) == 1:
        raise ConfigError(f"{where}: this key is not random, so it can be guessed; {HOW}")
    return secret


def _decode(text: str, where: str) -> bytes:
    # Hex first: every hex text is base64 as well, and no random base64 text of this length is hex.
    if _HEX.fullmatch(text):
        return bytes.fromhex(text)
    bare = text.rstrip("=")
    if _BASE64.fullmatch(text):
        try:
            return base64.b64decode(bare.translate(_TO_STANDARD) + "=" * (-len(bare) % 4), validate=True)
        except (binascii.Error, ValueError):
            pass
    raise ConfigError(f"{where}: a key is text in base64url, base64 or hex; {HOW}")


_TO_STANDARD: Final = str.maketrans("-_", "+/")
