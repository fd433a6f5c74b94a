"""Responses that any web server gives alike, byte for byte: a part that has left need not be sent again.

A strong entity tag says so: the same tag is the same bytes (RFC 9110 section 8.8.1). So when a web server dies in the
midst of such a response, the next one does the request again, and the client gets the rest of the very same bytes.
"""

from __future__ import annotations

import re
from enum import Enum
from typing import Final

import msgspec

from coatcheck.errors import CoatcheckError
from coatcheck.takeover.rules.tls_records import MAX_PLAINTEXT_BYTES

_GET: Final = b"GET "
_HEAD_END: Final = b"\r\n\r\n"
_MAX_HEAD_BYTES: Final = 64 * 1024
_MAX_TAG_BYTES: Final = 1024
"""Of the tag and the codings together: a director keeps them."""
_STATUS: Final = b"HTTP/1.1 200 "
_STRONG_TAG: Final = re.compile(rb'\r\netag:[ \t]*("[\x21\x23-\x7e\x80-\xff]*")[ \t]*(?=\r\n)', re.IGNORECASE)
_LENGTH: Final = re.compile(rb"\r\ncontent-length:[ \t]*([0-9]{1,15})[ \t]*(?=\r\n)", re.IGNORECASE)
_CODINGS: Final = re.compile(rb"\r\n(?:transfer|content)-encoding:[ \t]*([^\r]*)(?=\r\n)", re.IGNORECASE)


class OtherResponse(CoatcheckError):
    """The response is not the one of which a part has left."""


class Repeatable(msgspec.Struct, frozen=True, array_like=True):
    """What tells such a response from every other."""

    tag: bytes
    length: int
    """Of its body, in bytes."""
    codings: tuple[bytes, ...]
    head_bytes: int
    """Of the head that has left; another server's may be longer or shorter."""

    def is_same(self, other: Repeatable) -> bool:
        return (self.tag, self.length, self.codings) == (other.tag, other.length, other.codings)


def repeatable(data: bytes) -> Repeatable | None:
    """The response whose head ``data`` begins with; ``None`` if its head is not whole, or it may differ next time."""
    end = data.find(_HEAD_END)
    if end < 0 or not data.startswith(_STATUS):
        return None
    head = data[: end + 2]
    tags, lengths = _STRONG_TAG.findall(head), _LENGTH.findall(head)
    if len(tags) != 1 or len(lengths) != 1:
        return None
    codings = tuple(_CODINGS.findall(head))
    if len(tags[0]) + sum(map(len, codings)) > _MAX_TAG_BYTES:
        return None
    return Repeatable(tags[0], int(lengths[0]), codings, end + len(_HEAD_END))


def is_interim(data: bytes) -> bool:
    """Whether this is one interim response and no more (RFC 9110 section 15.2): a client may be given it twice."""
    return (
        data.startswith(b"HTTP/1.1 1")
        and not data.startswith(b"HTTP/1.1 101")
        and data.find(_HEAD_END) == len(data) - len(_HEAD_END)
    )


class Told(Enum):
    """What the director is to be told of a response that does not leave at once."""

    NOTHING = "nothing"
    REPEATABLE = "another server can go on with it"
    OPAQUE = "no other server can go on with it any more"


class ResponseMark:
    """Follows what leaves behind the last commit: is it one response, and a repeatable one?"""

    __slots__ = ("_has_body", "_left", "_remaining", "what")

    def __init__(self) -> None:
        self.what: Repeatable | None = None
        """The response that another server can go on with."""
        self._has_body: bool | None = None
        self._remaining = 0
        self._left = False

    @property
    def has_left(self) -> bool:
        """Whether anything has left behind the last commit."""
        return self._left

    def begin_anew(self) -> None:
        """All that has left is answered for."""
        self.what = None
        self._has_body = None
        self._left = False

    def asked(self, data: bytes) -> None:
        """What the client has sent: a response to HEAD has a length, and nothing of that length behind its head."""
        if self._has_body is None:
            self._has_body = data.startswith(_GET)

    def go_on(self, what: Repeatable, delivered: int) -> None:
        """A part of a response has left from another server; ``delivered``: so many bytes, the head included."""
        self.what = what
        self._left = True
        self._remaining = what.length - (delivered - what.head_bytes)

    def disturb(self) -> Told:
        """Something else leaves in the midst of it, or what is kept elsewhere of it does not count any more."""
        was, self.what = self.what, None
        return Told.NOTHING if was is None else Told.OPAQUE

    def leaves(self, data: bytes) -> Told:
        """The next bytes."""
        if not self._left:
            self._left = True
            self.what = repeatable(data) if self._has_body else None
            if self.what is None or self.what.head_bytes > MAX_PLAINTEXT_BYTES:
                self.what = None
                return Told.NOTHING
            self._remaining = self.what.length - (len(data) - self.what.head_bytes)
            return Told.REPEATABLE if self._remaining >= 0 else self._is_more()
        if self.what is None:
            return Told.NOTHING
        self._remaining -= len(data)
        return Told.NOTHING if self._remaining >= 0 else self.disturb()

    def _is_more(self) -> Told:
        # The next response has begun in the same bytes, and nothing was said of this one yet.
        self.what = None
        return Told.NOTHING


class Skipper:
    """Takes a response that was begun elsewhere, and gives what has not left of it."""

    __slots__ = ("_begun", "_buffer", "_skip", "_what")

    def __init__(self, what: Repeatable, delivered: int) -> None:
        """``delivered``: how many bytes have left, the head included. Raises :class:`OtherResponse` for less."""
        if not what.head_bytes <= delivered <= what.head_bytes + what.length:
            raise OtherResponse("a part of a response that cannot have left")
        self._what = what
        self._skip = delivered - what.head_bytes
        self._buffer = b""
        self._begun = False

    @property
    def is_done(self) -> bool:
        """Whether all that comes now is new."""
        return self._begun and not self._skip

    def feed(self, data: bytes) -> bytes:
        """What of these bytes is new. Raises :class:`OtherResponse`."""
        if not self._begun:
            data = self._body(self._buffer + data)
        skipped = min(self._skip, len(data))
        self._skip -= skipped
        return data[skipped:]

    def _body(self, data: bytes) -> bytes:
        while data.startswith(b"HTTP/1.1 1") and _HEAD_END in data:
            data = data.partition(_HEAD_END)[2]
        end = data.find(_HEAD_END)
        if end < 0:
            if len(data) > _MAX_HEAD_BYTES:
                raise OtherResponse("a head that does not end")
            self._buffer = data
            return b""
        found = repeatable(data)
        if found is None or not found.is_same(self._what):
            raise OtherResponse("the response is another one now")
        self._begun = True
        self._buffer = b""
        return data[end + len(_HEAD_END) :]
