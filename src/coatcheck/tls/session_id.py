"""The ID of a shared TLS session: it names the server that made it and the store that has it (mission C2, formats).

An ID is seen by whoever listens, and chosen by whoever connects: so it is marked with the key ring, and an ID that is
not ours (another farm's, or the random one that TLS 1.3 clients send to look like TLS 1.2, RFC 8446 section 4.1.2)
costs no look-up. Pure: randomness is given.
"""

from __future__ import annotations

import struct
from hashlib import blake2b
from typing import Final, NamedTuple

from coatcheck.tokens.keyring import KeyRing, RandomBytes

ID_BYTES: Final = 32
"""OpenSSL looks a TLS 1.3 session up only by an identity of exactly this length."""
FORMAT: Final = 1
SERVER_BYTES: Final = 4
STORE_BYTES: Final = 2
RANDOM_BYTES: Final = 15
MARK_BYTES: Final = 10
KEY_BYTES: Final = 32

_CLEAR = struct.Struct(f">B{SERVER_BYTES}s{STORE_BYTES}s{RANDOM_BYTES}s")


class NamedSession(NamedTuple):
    """What an ID of ours names, by their tags."""

    server: bytes
    store: bytes


class SessionIds:
    """Makes the IDs of one server, and reads those of all servers of its farm."""

    def __init__(self, ring: KeyRing, farm: str, server: str, random_bytes: RandomBytes) -> None:
        self._mac = ring.mac("tls-session-id", farm)
        self._server = server_tag(server)
        self._random_bytes = random_bytes

    def new(self, store: bytes) -> bytes:
        """A fresh ID of a session that will be put into the store of this tag."""
        clear = _CLEAR.pack(FORMAT, self._server, store, self._random_bytes(RANDOM_BYTES))
        return clear + self._mac.mark(clear, MARK_BYTES)

    def read(self, raw: bytes) -> NamedSession | None:
        """What an ID names; ``None`` if no server of this farm made it. For any bytes."""
        if len(raw) != ID_BYTES or raw[0] != FORMAT or not self._mac.is_ours(raw[:-MARK_BYTES], raw[-MARK_BYTES:]):
            return None
        _, server, store, _ = _CLEAR.unpack(raw[:-MARK_BYTES])
        return NamedSession(server, store)


def server_tag(name: str) -> bytes:
    """A server's tag in its IDs: the same wherever its name is known."""
    return blake2b(name.encode(), digest_size=SERVER_BYTES, person=b"coatcheck-tls").digest()


def store_tag(name: str) -> bytes:
    """A store's tag in IDs."""
    return blake2b(name.encode(), digest_size=STORE_BYTES, person=b"coatcheck-store").digest()


def item_key(raw: bytes) -> bytes:
    """Under what a session is stored: a hash, so that who reads the store learns no ID (mission C8)."""
    return blake2b(raw, digest_size=KEY_BYTES, person=b"coatcheck-tls-id").digest()
