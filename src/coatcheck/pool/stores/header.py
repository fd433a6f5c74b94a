"""When a sealed state ends, written before it in clear: so what no key opens any more is known to be over.

Whoever can write to the store could delete the state as well, so nothing is lost by telling it there.
"""

from __future__ import annotations

import struct
from typing import Final

from coatcheck.errors import TokenReason, TokenRejected

_HEADER: Final = struct.Struct(">cd")
_MARK: Final = b"\x02"
"""How stored bytes begin; then the moment (Unix seconds). What is sealed begins with ``0x01``, and so do the states of
the release before, which have no header."""


def with_end(ends_at: float, sealed: bytes) -> bytes:
    """What is stored."""
    return _HEADER.pack(_MARK, ends_at) + sealed


def sealed_of(stored: bytes) -> bytes:
    """What was sealed, without the header."""
    return stored[_HEADER.size :] if stored[:1] == _MARK else stored


def has_ended(rejection: TokenRejected, stored: bytes, now: float) -> bool:
    """Whether what was not opened for this reason has ended: its key is gone, and so is all that it was good for."""
    if rejection.reason is not TokenReason.UNKNOWN_KEY or stored[:1] != _MARK or len(stored) < _HEADER.size:
        return False
    ends_at: float = _HEADER.unpack_from(stored)[1]
    return ends_at <= now
