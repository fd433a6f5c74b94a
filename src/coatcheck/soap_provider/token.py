"""The provider's session token: an encrypted string of session ID, credentials and timestamp (mission D8)."""

from __future__ import annotations

from binascii import Error as BinasciiError
from binascii import a2b_base64, b2a_base64

import msgspec

from coatcheck.errors import TokenRejected
from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.soap_provider.session_types import SessionType
from coatcheck.tokens.keyring import KeyRing, RandomBytes

MAX_TOKEN_CHARS = 2048
"""Longer than any token that can be sealed from names and passwords within their bounds."""

_TO_URL = bytes.maketrans(b"+/", b"-_")
_FROM_URL = bytes.maketrans(b"-_+/", b"+/!!")  # the standard alphabet's own signs are refused


class SessionToken(msgspec.Struct, frozen=True, array_like=True):
    """What a token says, opened.

    ``session_id``: 16 bytes. ``issued_at``: Unix ms. ``serial``: the how-manieth token of its session.
    ``server``: where the session lives. ``session_type``: what the session was when the token was issued.
    """

    session_id: bytes
    username: str
    password: str
    issued_at: int
    serial: int
    server: str
    session_type: SessionType

    def __repr__(self) -> str:
        return f"<SessionToken of {self.username!r}, serial {self.serial}>"


class SessionTokenCodec:
    """Seals and opens session tokens (AES-256-GCM-SIV); one key ring for all servers of a provider."""

    def __init__(self, ring: KeyRing, audience: str, random_bytes: RandomBytes) -> None:
        self._box = ring.box("soap-session", audience, random_bytes)
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(SessionToken).decode

    def seal(self, token: SessionToken) -> str:
        """Base64url without padding."""
        sealed = b2a_base64(self._box.seal(self._encode(token)), newline=False)
        return sealed.rstrip(b"=").translate(_TO_URL).decode()

    def open(self, text: str) -> SessionToken:
        """The content of a token; any text that was not sealed here is a fault of reason ``TokenInvalid``."""
        if not text.isascii() or len(text) > MAX_TOKEN_CHARS:
            raise SoapFault(FaultReason.TOKEN_INVALID, "the session token is none of ours; log in")
        try:
            padded = text.encode() + b"=" * (-len(text) % 4)
            sealed = a2b_base64(padded.translate(_FROM_URL), strict_mode=True)
            return self._decode(self._box.open(sealed))
        except (BinasciiError, TokenRejected, msgspec.DecodeError):
            raise SoapFault(FaultReason.TOKEN_INVALID, "the session token is none of ours; log in") from None
