"""The sealed token: what the browser holds (mission A5, protocol section 2)."""

from __future__ import annotations

import struct
from binascii import Error as BinasciiError
from binascii import a2b_base64, b2a_base64
from typing import ClassVar, NamedTuple

from coatcheck.errors import TokenReason, TokenRejected
from coatcheck.events import public_id
from coatcheck.tokens.keyring import OVERHEAD_BYTES, KeyRing, RandomBytes

SESSION_ID_BYTES = 16

_BODY = struct.Struct(">16s16sHI16s")
"""Key, session ID, list number (6 bits) and timestamp (42 bits: Unix ms until the year 2109), version."""
_TIME_BITS_HIGH = 10
MAX_TIMESTAMP = (1 << 42) - 1
TOKEN_CHARS = (OVERHEAD_BYTES + _BODY.size) * 4 // 3
"""116: a multiple of four, so that base64 leaves no bit that could be flipped unnoticed."""

_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/", b"+/!!")  # the standard alphabet's own signs are refused


def audience_of(farm: str, site: str) -> str:
    """Who alone opens a token: the farm, and of several sites the one whose cookie's host ``site`` is."""
    return f"{farm}\x00{site}" if site else farm


class SealedToken(NamedTuple):
    """The content of a token, opened.

    ``key``: which session (16 bytes). ``session_id``: which link of its rotation chain (16 bytes).
    ``timestamp``: when that link was minted, Unix ms. ``version``: the newest data version that this
    browser was told about, packed (16 bytes; zeros: none). ``list_number``: of the list of session servers on which
    that was acknowledged, 0 to 63.
    """

    key: bytes
    session_id: bytes
    timestamp: int
    version: bytes
    list_number: int = 0

    def __repr__(self) -> str:
        return f"<SealedToken of session {public_id(self.key)}>"


class TokenCodec:
    """Seals and opens tokens for one purpose (the anonymous or the logged-in cookie) and one audience.

    Remembers what it sealed and opened lately: a browser shows the same token many times.
    """

    MAX_REMEMBERED: ClassVar = 2048
    """Tokens of a generation; there are two, the older of which is forgotten when the younger is full."""

    def __init__(self, ring: KeyRing, purpose: str, audience: str, random_bytes: RandomBytes) -> None:
        box = ring.box(f"token/{purpose}", audience, random_bytes)
        self._seal = box.seal
        self._open = box.open
        self._remembered: dict[bytes, SealedToken] = {}
        self._remembered_before: dict[bytes, SealedToken] = {}
        ring.on_change(self.forget)

    def seal(self, key: bytes, session_id: bytes, timestamp: int, version: bytes, list_number: int = 0) -> bytes:
        """116 characters of base64url, no padding."""
        return self.seal_token(SealedToken(key, session_id, timestamp, version, list_number))

    def seal_token(self, token: SealedToken) -> bytes:
        """The same for a token's content at hand."""
        timestamp = min(token.timestamp, MAX_TIMESTAMP)
        high, low = token.list_number << _TIME_BITS_HIGH | timestamp >> 32, timestamp & 0xFFFFFFFF
        body = _BODY.pack(token.key, token.session_id, high, low, token.version)
        text = b2a_base64(self._seal(body), newline=False).translate(_TO_URL)
        if len(self._remembered) >= self.MAX_REMEMBERED:
            self._forget_older()
        self._remembered[text] = token
        return text

    def open(self, text: bytes) -> SealedToken:
        """Raises :class:`TokenRejected` for any bytes of any length that this farm did not seal."""
        token = self._remembered.get(text)
        if token is None:
            token = self._remembered_before.get(text) or self._unseal(text)
            if len(self._remembered) >= self.MAX_REMEMBERED:
                self._forget_older()
            self._remembered[text] = token
        return token

    def forget(self) -> None:
        """Forget what was sealed and opened: the ring has changed, and a revoked key opens nothing."""
        self._remembered, self._remembered_before = {}, {}

    def _forget_older(self) -> None:
        self._remembered_before, self._remembered = self._remembered, {}

    def _unseal(self, text: bytes) -> SealedToken:
        if len(text) != TOKEN_CHARS:
            raise TokenRejected(TokenReason.MALFORMED)
        try:
            sealed = a2b_base64(text.translate(_FROM_URL), strict_mode=True)
        except BinasciiError:
            raise TokenRejected(TokenReason.MALFORMED) from None
        key, session_id, high, low, version = _BODY.unpack(self._open(sealed))
        number, high = high >> _TIME_BITS_HIGH, high & ((1 << _TIME_BITS_HIGH) - 1)
        return SealedToken(key, session_id, high << 32 | low, version, number)
