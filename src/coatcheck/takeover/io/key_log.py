"""The traffic secrets of a TLS 1.3 connection: ``ssl`` tells them in one way only, by writing them to a file.

The file is in memory, without a name, and emptied whenever it was read (RFC 8446 section 7.1; the format is NSS's).
"""

from __future__ import annotations

import os
import ssl
from typing import Final, NamedTuple

_CLIENT: Final = b"CLIENT_TRAFFIC_SECRET_0"
_SERVER: Final = b"SERVER_TRAFFIC_SECRET_0"


class TrafficSecrets(NamedTuple):
    """The first secrets of the two directions, behind the handshake."""

    client: bytes
    server: bytes


class KeyLog:
    """What one context tells; handshakes are made on one thread, one step after another."""

    def __init__(self, context: ssl.SSLContext) -> None:
        """The context must not log its keys anywhere else."""
        self._descriptor = os.memfd_create("tls-secrets", os.MFD_CLOEXEC)
        os.fchmod(self._descriptor, 0o600)
        context.keylog_filename = f"/proc/self/fd/{self._descriptor}"
        # It begins with a comment.
        os.ftruncate(self._descriptor, 0)

    def close(self) -> None:
        os.close(self._descriptor)

    def take(self, client_random: bytes, told: dict[bytes, bytes]) -> None:
        """Add what was told of one connection since the last time to ``told``: secrets by their labels."""
        size = os.fstat(self._descriptor).st_size
        if not size:
            return
        for line in os.pread(self._descriptor, size, 0).splitlines():
            label, _, rest = line.partition(b" ")
            whose, _, secret = rest.partition(b" ")
            if label in (_CLIENT, _SERVER) and whose == client_random.hex().encode():
                told[label] = bytes.fromhex(secret.decode())
        os.ftruncate(self._descriptor, 0)


def secrets_of(told: dict[bytes, bytes]) -> TrafficSecrets | None:
    """``None``: not TLS 1.3, or not there yet."""
    client, server = told.get(_CLIENT), told.get(_SERVER)
    return None if client is None or server is None else TrafficSecrets(client, server)
