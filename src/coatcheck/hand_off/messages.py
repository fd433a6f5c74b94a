"""HandOffAsk, call and ticket: what travels in URLs when a session goes from site to site (formats section 13)."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as BinasciiError
from hashlib import blake2b
from hmac import compare_digest
from typing import Annotated, Any, Final, TypeVar

import msgspec
from msgspec import Meta

from coatcheck.errors import TokenReason, TokenRejected
from coatcheck.events import public_id
from coatcheck.replication.placement import MAX_LIST_NUMBER
from coatcheck.take_once.rule import KEY_BYTES as ITEM_KEY_BYTES
from coatcheck.take_once.rule import NONCE_BYTES
from coatcheck.tokens.keyring import KeyRing, RandomBytes, SealedBox

TICKET_LIFE_MS: Final = 10_000
MESSAGE_LIFE_MS: Final = 30_000
"""Of asks, calls, and tokens in URLs: a redirect with all its name look-ups and handshakes."""
LEEWAY_MS: Final = 5_000
"""So much a message may come from the future: the clocks of two servers differ."""
BINDER_BYTES: Final = 32
MAX_TEXT: Final = 8192
"""Characters of a message; what is longer is none of ours."""
ITEM: Final = b"\x01"
"""What is stored of a ticket: that it can be taken is all that it says."""

_MARK_BYTES: Final = 16
_PAGE_BYTES: Final = 16

_Bytes16 = Annotated[bytes, Meta(min_length=16, max_length=16)]
_Bytes32 = Annotated[bytes, Meta(min_length=32, max_length=32)]
_MarkOrNone = Annotated[bytes, Meta(max_length=_MARK_BYTES)]
_ListNumber = Annotated[int, Meta(ge=0, le=MAX_LIST_NUMBER)]


class HandOffAsk(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """From the source, by redirect, to the target: is this session with you? ``mark``: of the session's key, empty if
    the browser has no session at the source."""

    source: str
    page: _Bytes16
    mark: _MarkOrNone
    login: bool
    made_at: int


class HandOffCall(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """From the target back to the source: hand it over, to the browser with this binder."""

    target: str
    page: str
    mark: _Bytes16
    binder: _Bytes32
    attempt: int
    made_at: int


class HandOffTicket(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """From the source to the target. ``store`` and ``item``: which session server has the item, and under which key."""

    source: str
    page: _Bytes16
    session: _Bytes16
    promised: _Bytes16
    list_number: _ListNumber
    login: bool
    store: str
    item: _Bytes32
    binder: _Bytes32
    attempt: int
    made_at: int

    @property
    def id(self) -> bytes:
        return self.item[:16]

    def __repr__(self) -> str:
        return f"<HandOffTicket for session {public_id(self.session)}>"


class UrlToken(msgspec.Struct, frozen=True, array_like=True, kw_only=True, gc=False):
    """The token itself, for ``hand_off = "token-in-url"`` alone (mission A9, to the letter)."""

    source: str
    chain: str
    page: _Bytes16
    session: _Bytes16
    session_id: _Bytes16
    timestamp: int
    promised: _Bytes16
    list_number: _ListNumber
    login: bool
    made_at: int

    def __repr__(self) -> str:
        return f"<UrlToken of session {public_id(self.session)}>"


Message = TypeVar("Message", HandOffAsk, HandOffCall, HandOffTicket, UrlToken)

PURPOSES: Final[dict[type, str]] = {
    HandOffAsk: "hand-off/ask",
    HandOffCall: "hand-off/call",
    HandOffTicket: "hand-off",
    UrlToken: "hand-off/token",
}


class HandOffCodec:
    """Seals and opens the messages of one farm; ``home``: the origin of its home site, on which all sites agree."""

    def __init__(self, ring: KeyRing, farm: str, home: str, random_bytes: RandomBytes) -> None:
        audience = f"{farm}\x00{home}"
        self._boxes: dict[type, SealedBox] = {
            kind: ring.box(purpose, audience, random_bytes) for kind, purpose in PURPOSES.items()
        }
        self._decoders: dict[type, Any] = {kind: msgspec.msgpack.Decoder(kind) for kind in PURPOSES}
        self._encode = msgspec.msgpack.Encoder().encode
        self._marks = ring.mac("hand-off-session", farm)

    def seal(self, message: HandOffAsk | HandOffCall | HandOffTicket | UrlToken, reader: str) -> str:
        """``reader``: the origin that alone can open it. Base64url without padding."""
        sealed = self._boxes[type(message)].seal(self._encode(message), reader.encode())
        return urlsafe_b64encode(sealed).rstrip(b"=").decode()

    def open(self, kind: type[Message], text: str, reader: str) -> Message:
        """Raises :class:`TokenRejected` for any text that no site of this farm has sealed for this reader, or that does
        not say what such a message says (formats section 13)."""
        try:
            if len(text) > MAX_TEXT or "+" in text or "/" in text:
                raise ValueError(text)
            raw = urlsafe_b64decode(text + "=" * (-len(text) % 4))
            if urlsafe_b64encode(raw).rstrip(b"=").decode() != text:
                raise ValueError(text)  # a bit that decoding drops was flipped
        except (ValueError, BinasciiError):
            raise TokenRejected(TokenReason.MALFORMED) from None
        plain = self._boxes[kind].open(raw, reader.encode())
        try:
            message: Message = self._decoders[kind].decode(plain)
        except msgspec.MsgspecError:
            raise TokenRejected(TokenReason.UNKNOWN_FORMAT) from None
        return message

    def mark(self, session: bytes) -> bytes:
        """Names a session to who knows it, and opens nothing."""
        return self._marks.mark(session, _MARK_BYTES)

    def is_marked(self, session: bytes, mark: bytes) -> bool:
        """Whether a mark is that of a session."""
        return len(mark) == _MARK_BYTES and self._marks.is_ours(session, mark)


def is_in_time(made_at: int, now: int, life_ms: int) -> bool:
    """Whether a message may still be used."""
    return -LEEWAY_MS <= now - made_at <= life_ms


def page_hash(page: str) -> bytes:
    """What a message says of a path with its query."""
    return blake2b(page.encode(), digest_size=_PAGE_BYTES, person=b"coatcheck-page").digest()


def binder_hash(binder: bytes) -> bytes:
    """What a message says of a browser's binder, as it stands in the cookie."""
    return blake2b(binder, digest_size=32, person=b"coatcheck-binder").digest()


def is_bound_to(ticket: HandOffTicket, binder: bytes | None) -> bool:
    """Whether this is the browser that a ticket was made for."""
    return binder is not None and compare_digest(ticket.binder, binder_hash(binder))


def taker(ticket: HandOffTicket, binder: bytes) -> bytes:
    """The nonce that a browser takes its ticket's item with: the same at its second try."""
    return blake2b(ticket.item, key=binder_hash(binder), digest_size=NONCE_BYTES, person=b"coatcheck-taker").digest()


def new_binder(random_bytes: RandomBytes) -> bytes:
    """The value of a binder cookie."""
    return urlsafe_b64encode(random_bytes(BINDER_BYTES)).rstrip(b"=")


def is_binder(text: bytes | None) -> bool:
    """Whether a cookie's value can be a binder of ours."""
    return text is not None and len(text) == 43 and text.replace(b"-", b"").replace(b"_", b"").isalnum()


__all__ = ["ITEM_KEY_BYTES", "HandOffAsk", "HandOffCall", "HandOffCodec", "HandOffTicket", "UrlToken"]
