"""What a context demands of clients: sessions made under other demands are not resumed under these (mission C8)."""

from __future__ import annotations

import logging
import ssl
import time
from hashlib import blake2b
from typing import Final

from coatcheck.seldom import Seldom

_log: Final = logging.getLogger("coatcheck.tls")
_seldom: Final = Seldom(_log, time.monotonic)


class Demands:
    """The demands on client certificates that a context had when its sessions began to be shared.

    ``name``: 32 bytes, equal on all servers of the farm that demand the same.
    """

    def __init__(self, context: ssl.SSLContext, farm: str) -> None:
        self._context = context
        self._seen = _demands(context)
        self.name = _named(context, farm)

    def are_others(self) -> bool:
        """Whether they are others now, as far as that can be told with every handshake."""
        if _demands(self._context) == self._seen:
            return False
        _seldom.warning(
            "this SSLContext demands something else of client certificates than when its sessions began to be shared, "
            "so none are: call share_sessions when the context is complete"
        )
        return True


def _demands(context: ssl.SSLContext) -> tuple[int, int, int]:
    authorities = context.cert_store_stats()["x509_ca"] if context.verify_mode is not ssl.CERT_NONE else 0
    return int(context.verify_mode), int(context.verify_flags), authorities


def _named(context: ssl.SSLContext, farm: str) -> bytes:
    found = blake2b(digest_size=32, person=b"coatcheck-tlsctx")
    found.update(f"{farm}\x00{int(context.verify_mode)} {int(context.verify_flags)}".encode())
    if context.verify_mode is not ssl.CERT_NONE:
        for authority in sorted(context.get_ca_certs(binary_form=True)):
            found.update(blake2b(authority).digest())
    return found.digest()
