"""Both ends prove that they know the farm's credential, and neither sends it: a challenge, an answer, an answer.

The shape is that of SAFECOOKIE (Tor control protocol, 3.24): the client sends a nonce and the name that it means to
reach; the server answers with a nonce and its proof; only then, and only if that is right, the client sends its own.
The name is under the proof, so whoever took one server's port cannot answer with the help of another server.
A proof is HMAC-SHA-256 (RFC 2104, FIPS 180-4). Pure: nonces are given.
"""

from __future__ import annotations

import hmac
from enum import Enum
from typing import Final

NONCE_BYTES: Final = 32
PROOF_BYTES: Final = 32
MAX_NAME_BYTES: Final = 64
_LABEL: Final = b"coatcheck link 1"


class Side(Enum):
    """Who proves; so that no proof can be sent back to the one who made it."""

    SERVER = b"server"
    CLIENT = b"client"


class Service(Enum):
    """What is connected to; so that a web server's proof is worth nothing as a session server's."""

    WEB_SERVER = b"web server"
    SESSION_SERVER = b"session server"


def proof(
    credential: str, service: Service, side: Side, name: str, *, client_nonce: bytes, server_nonce: bytes
) -> bytes:
    """What ``side`` of a connection to the server ``name`` shows, 32 bytes.

    Raises ``ValueError`` for nonces of another length, and for an empty credential, which proves nothing.
    """
    if not credential:
        raise ValueError("an empty credential proves nothing")
    if len(client_nonce) != NONCE_BYTES or len(server_nonce) != NONCE_BYTES:
        raise ValueError(f"a nonce has {NONCE_BYTES} bytes")
    # The name is the only part of free length, and it comes last.
    parts = (_LABEL, service.value, side.value, client_nonce + server_nonce + name.encode())
    return hmac.digest(credential.encode(), b"\x00".join(parts), "sha256")


def is_proof(shown: bytes, expected: bytes) -> bool:
    """Whether the proof that was shown is the expected one, in constant time."""
    return hmac.compare_digest(shown, expected)
