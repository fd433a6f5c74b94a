"""Whether bytes that are about to be looked at can carry out nothing that must not be done twice."""

from __future__ import annotations

from typing import Final

from coatcheck.director.rules.delivery import IDEMPOTENT_METHODS

_HEAD_END: Final = b"\r\n\r\n"
_BEGINNINGS: Final = tuple(sorted(method + b" " for method in IDEMPOTENT_METHODS))


def is_harmless(data: bytes) -> bool:
    """The first bytes of a request: one whose method may be repeated, and nothing of another one behind its head."""
    if not data.startswith(_BEGINNINGS):
        return False
    end = data.find(_HEAD_END)
    return end < 0 or end + len(_HEAD_END) == len(data)
