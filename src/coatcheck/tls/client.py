"""A client that comes back: an ``SSLContext`` that keeps the sessions of its connections, and offers them by itself.

For ``http.client``, urllib3, requests, httpx and aiohttp alike: whatever takes an ``SSLContext`` and names the host.
"""

from __future__ import annotations

import contextlib
import ssl
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import msgspec

from coatcheck.tls.hosts import as_host
from coatcheck.tls.offers import KeptSession, Offers

MAX_LIFE_S: Final = 7 * 24 * 3600
"""RFC 8446 section 4.6.1, whatever the server says."""


class ClientCounts(msgspec.Struct):
    """What became of sessions since the context was made."""

    kept: int = 0
    offered: int = 0
    accepted: int = 0
    """Of those; the others were negotiated anew, as OpenSSL does by itself."""


class _Keeping:
    """What is different about these connections: when the server has answered, their session is kept.

    In TLS 1.3 it comes after the handshake (RFC 8446 section 4.6.1), so with the first bytes that are read.
    """

    _watched: _Unanswered | None = None

    def _note(self, got: Any) -> None:
        watched = self._watched
        if watched is not None and got:
            self._watched = None
            watched.answered(self)


class _KeepingSocket(_Keeping, ssl.SSLSocket):
    def read(self, *arguments: Any) -> Any:
        got = super().read(*arguments)
        self._note(got)
        return got

    def recv(self, *arguments: Any) -> bytes:
        got = super().recv(*arguments)
        self._note(got)
        return got

    def recv_into(self, *arguments: Any) -> int:
        got = super().recv_into(*arguments)
        self._note(got)
        return got


class _KeepingObject(_Keeping, ssl.SSLObject):
    def read(self, *arguments: Any) -> Any:
        got = super().read(*arguments)
        self._note(got)
        return got


class _Unanswered:
    """A connection that has not been answered yet."""

    def __init__(self, context: ResumingContext, host: str, port: int, offered: bool) -> None:
        self._context, self._host, self._port, self._offered = context, host, port, offered

    def answered(self, connection: Any) -> None:
        self._context._answered(connection, self._host, self._port, self._offered)


class ResumingContext(ssl.SSLContext):
    """Made by :func:`resuming_context`. Any thread may use it, and any event loop."""

    sslsocket_class = _KeepingSocket
    sslobject_class = _KeepingObject
    _offers: Offers
    _guard: threading.Lock
    counts: ClientCounts

    def wrap_socket(
        self,
        sock: Any,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLSocket:
        """As :meth:`ssl.SSLContext.wrap_socket`; offers a session of its own if none is given."""
        port = 0
        with contextlib.suppress(OSError):
            port = _port_of(sock.getpeername())
        host, kept = self._offer(server_side, server_hostname, session, port)
        # The handshake may be done in there: then nothing has been read yet, and nothing is missed.
        connection: Any = super().wrap_socket(
            sock, server_side, do_handshake_on_connect, suppress_ragged_eofs, server_hostname, session or kept
        )
        if host:
            connection._watched = _Unanswered(self, host, port, kept is not None)
        found: ssl.SSLSocket = connection
        return found

    def wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool = False,
        server_hostname: str | bytes | None = None,
        session: ssl.SSLSession | None = None,
    ) -> ssl.SSLObject:
        """As :meth:`ssl.SSLContext.wrap_bio`; the port is not known here, and is none."""
        host, kept = self._offer(server_side, server_hostname, session, 0)
        connection: Any = super().wrap_bio(incoming, outgoing, server_side, server_hostname, session or kept)
        if host:
            connection._watched = _Unanswered(self, host, 0, kept is not None)
        found: ssl.SSLObject = connection
        return found

    def _offer(self, server_side: bool, named: object, given: object, port: int) -> tuple[str, Any]:
        """The host whose session is to be kept, if any, and what is offered to it."""
        host = as_host(named) if isinstance(named, str | bytes) else ""
        if not host or server_side or given is not None:
            return "", None
        with self._guard:
            kept = self._offers.offer(host, port, time.time())
            self.counts.offered += kept is not None
        return host, kept

    def _answered(self, connection: Any, host: str, port: int, offered: bool) -> None:
        session = connection.session
        is_accepted = bool(offered and connection.session_reused)
        with self._guard:
            if is_accepted:
                self.counts.accepted += 1
            elif offered:
                self._offers.forget(host, port)
            if session is None or not (session.has_ticket or session.id):
                return
            certificate = connection.getpeercert() or {}
            names = tuple(value for kind, value in certificate.get("subjectAltName", ()) if kind == "DNS")
            life_s = min(session.ticket_lifetime_hint or session.timeout, session.timeout, MAX_LIFE_S)
            kept = KeptSession(session, host, names, session.time + life_s, connection.version() == "TLSv1.3")
            self._offers.keep(port, kept)
            self.counts.kept += 1


def _port_of(peer: Any) -> int:
    return int(peer[1]) if isinstance(peer, tuple) and len(peer) > 1 else 0


def resuming_context(
    *,
    related: Iterable[str] = (),
    cafile: str | Path | None = None,
    capath: str | Path | None = None,
    cadata: str | bytes | None = None,
) -> ResumingContext:
    """What :func:`ssl.create_default_context` makes for a client, which resumes its sessions by itself.

    ``related``: domains whose hosts share sessions, as those of a farm do; each is offered only what was made with a
    certificate that covers it, too. The others as there. Raises :class:`coatcheck.errors.ConfigError` for a wrong
    domain, and what ``ssl`` raises.
    """
    offers = Offers(related)
    like = ssl.create_default_context(
        cafile=str(cafile) if cafile else None, capath=str(capath) if capath else None, cadata=cadata
    )
    context = ResumingContext(ssl.PROTOCOL_TLS_CLIENT)
    context._offers, context._guard, context.counts = offers, threading.Lock(), ClientCounts()
    context.verify_flags, context.options = like.verify_flags, like.options
    context.minimum_version, context.maximum_version = like.minimum_version, like.maximum_version
    if cafile or capath or cadata:
        context.load_verify_locations(cafile, capath, cadata)
    else:
        context.load_default_certs(ssl.Purpose.SERVER_AUTH)
    return context
