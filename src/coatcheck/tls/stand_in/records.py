"""Where records end: a connection is given one at a time, and what comes after it stays where it is. Pure.

Whoever looks there, a poller at the socket or an event loop at its buffer, then sees whether there is more to read, as
with OpenSSL itself.
"""

from __future__ import annotations

from typing import Final

HEADER_BYTES: Final = 5
"""RFC 8446 section 5.1: a type, a version, and in two bytes how much follows."""


class RecordEnd:
    """How far the record that is being received has come."""

    def __init__(self) -> None:
        self._header = b""
        self._missing = 0

    @property
    def missing(self) -> int:
        """Bytes that surely belong to it and have not come yet; at least one."""
        return self._missing or HEADER_BYTES - len(self._header)

    def received(self, data: bytes) -> bool:
        """Some of them came, and no more than :attr:`missing`; answers whether that was its end."""
        if self._missing:
            self._missing -= len(data)
            return not self._missing
        self._header += data
        if len(self._header) < HEADER_BYTES:
            return False
        self._missing = int.from_bytes(self._header[3:], "big")
        self._header = b""
        return not self._missing
