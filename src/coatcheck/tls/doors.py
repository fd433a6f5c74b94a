"""Which way leads to an OpenSSL whose sessions can be shared: the one behind Python's ``ssl``, or the system's."""

from __future__ import annotations

import logging
import ssl
from typing import Final

from coatcheck.tls.openssl import OpenSslDoor, OpenSslRefused, open_door
from coatcheck.tls.stand_in import StandInContext, stand_in_context

_log: Final = logging.getLogger("coatcheck.tls")


def door_of(context: ssl.SSLContext) -> OpenSslDoor:
    """The door to a server's context. Raises :class:`OpenSslRefused`; then nothing of the context was touched."""
    return context.door if isinstance(context, StandInContext) else open_door(context)


def server_context() -> ssl.SSLContext:
    """A server's context as :func:`ssl.create_default_context` makes it, whose sessions can be shared on any CPython.

    It is Python's own where the OpenSSL behind it is in reach. Where that is built into Python, it is one over the
    system's OpenSSL 3, which takes the same settings; what it cannot do raises ``NotImplementedError`` (docs/tls.md).
    Where the system has none, it is Python's own, a warning says why, and sharing stays off.
    """
    own = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        open_door(own)
        return own
    except OpenSslRefused as refused:
        out_of_reach = refused
    try:
        context = stand_in_context()
    except OpenSslRefused as refused:
        _log.warning("TLS sessions cannot be shared: %s; and %s", out_of_reach, refused)
        return own
    if own.keylog_filename:
        _log.warning("SSLKEYLOGFILE: a context over the system's OpenSSL logs no keys")
    context.verify_flags = own.verify_flags
    return context
