"""TLS records as they stand on the wire: cut out of a stream by their clear headers (RFC 8446 section 5.1)."""

from __future__ import annotations

from typing import Final

from coatcheck.errors import CoatcheckError

HEADER_BYTES: Final = 5
MAX_PLAINTEXT_BYTES: Final = 1 << 14
MAX_CIPHERTEXT_BYTES: Final = MAX_PLAINTEXT_BYTES + 256
"""Of a record that is encrypted (RFC 8446 section 5.2)."""

CHANGE_CIPHER_SPEC: Final = 20
ALERT: Final = 21
HANDSHAKE: Final = 22
APPLICATION_DATA: Final = 23
"""Also what every encrypted record of TLS 1.3 calls itself."""
FIRST_TYPE: Final = CHANGE_CIPHER_SPEC
LAST_TYPE: Final = APPLICATION_DATA


class BadRecord(CoatcheckError):
    """What came is no TLS, or too much of it in one record."""


def count_encrypted(records: bytes) -> int:
    """How many of these whole records are encrypted ones (or of application data, with TLS 1.2)."""
    count = at = 0
    while at + HEADER_BYTES <= len(records):
        count += records[at] == APPLICATION_DATA
        at += HEADER_BYTES + (records[at + 3] << 8 | records[at + 4])
    return count


class RecordSplitter:
    """Cuts a stream into whole records; holds the beginning of one, of 16.6 KB at most."""

    __slots__ = ("_buffer", "_first", "_last")

    def __init__(self, first: int = FIRST_TYPE, last: int = LAST_TYPE) -> None:
        """``first`` to ``last``: the content types that are allowed."""
        self._buffer = b""
        self._first = first
        self._last = last

    def feed(self, data: bytes) -> list[bytes]:
        """The records that are whole now.

        Raises :class:`BadRecord` for a type that is not allowed or a length beyond the protocol's.
        """
        if self._buffer:
            data = self._buffer + data
        records: list[bytes] = []
        at, end = 0, len(data)
        while end - at >= HEADER_BYTES:
            if not self._first <= data[at] <= self._last:
                raise BadRecord(f"a record of the type {data[at]}")
            size = data[at + 3] << 8 | data[at + 4]
            if size > MAX_CIPHERTEXT_BYTES:
                raise BadRecord(f"a record of {size} bytes")
            behind = at + HEADER_BYTES + size
            if behind > end:
                break
            records.append(data[at:behind])
            at = behind
        self._buffer = data[at:]
        return records

    @property
    def is_empty(self) -> bool:
        """Whether nothing but whole records has come."""
        return not self._buffer

    def take_all(self) -> bytes:
        """The beginning of a record that is held; it is held no more."""
        held, self._buffer = self._buffer, b""
        return held
