"""Whose a token is: keyed hashes of the credentials that callers give. The credentials themselves are never kept."""

from __future__ import annotations

import itertools
from contextvars import ContextVar
from typing import Final

from coatcheck.tokens.keyring import KeyedMac, KeyRing

HASH_BYTES: Final = 16
REMEMBERED: Final = 64
"""Check-outs in vain that one thread or task may have open; of more, the first are forgotten."""

_numbers: Final = itertools.count(1)
_in_vain: Final[ContextVar[tuple[tuple[int, str, tuple[bytes, ...]], ...]]] = ContextVar("_in_vain", default=())


class Credentials:
    """Hashes credentials by the keys of one pool, and remembers with which a check-out was in vain.

    A hash is bound to the pool's name and the user: the same password of two users looks different.
    """

    def __init__(self, ring: KeyRing, name: str) -> None:
        self._mac: KeyedMac = ring.mac("pool-credentials", name)
        self._number = next(_numbers)

    def of(self, user: str, password: str | None) -> tuple[bytes, ...]:
        """The hash by each key, that of the sealing key first; nothing for no password."""
        if password is None:
            return ()
        # No user has a NUL, so no two pairs are written alike.
        clear = user.encode() + b"\x00" + password.encode("utf-8", "surrogatepass")
        return tuple(self._mac.marks(clear, HASH_BYTES))

    def checked_out_in_vain(self, user: str, hashes: tuple[bytes, ...]) -> None:
        """This thread (or task) goes and logs in with these, and will check the new token in."""
        if not hashes and not _in_vain.get():
            return
        kept = self._others(user)
        _in_vain.set((*kept[-(REMEMBERED - 1) :], (self._number, user, hashes)) if hashes else kept)

    def of_new(self, user: str, password: str | None) -> tuple[bytes, ...]:
        """The hashes for a new token: those of ``password``, or of this thread's check-out in vain."""
        found = self.of(user, password)
        for number, other, hashes in _in_vain.get():
            if password is None and (number, other) == (self._number, user):
                found = hashes
        return found

    def checked_in(self, user: str) -> None:
        """The new token is in: the next one begins with a check-out."""
        _in_vain.set(self._others(user))

    def _others(self, user: str) -> tuple[tuple[int, str, tuple[bytes, ...]], ...]:
        return tuple(entry for entry in _in_vain.get() if entry[:2] != (self._number, user))
