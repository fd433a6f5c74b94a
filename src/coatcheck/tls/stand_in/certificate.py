"""A client's certificate in the form in which ``getpeercert`` shows it."""

from __future__ import annotations

import os
import ssl
from typing import Any


def shown_certificate(der: bytes) -> dict[str, Any]:
    """The dictionary that Python's own ``ssl`` makes of this certificate, whichever OpenSSL it has built in.

    Python has no public way to it. This one, from its tests, reads a file; it is proved before it is relied on.
    """
    import _ssl

    descriptor = os.memfd_create("certificate")
    try:
        os.write(descriptor, ssl.DER_cert_to_PEM_cert(der).encode())
        found: dict[str, Any] = _ssl._test_decode_cert(  # type: ignore[attr-defined]
            f"/proc/self/fd/{descriptor}"
        )
        return found
    finally:
        os.close(descriptor)
