"""Servers that keep the TLS sessions that they made, and give them to each other (mission C2, C10).

The ID of a session names the server that made it; whoever is shown it asks that one, and no other. Both ends of such a
connection prove by a certificate of the farm's own authority who they are; the one that is asked gives nothing to a
server that is not on its list, or whose certificate was revoked, and ends the connections of one that is revoked later.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Final

import msgspec
from cryptography import x509
from cryptography.exceptions import InvalidSignature

from coatcheck.errors import ConfigError
from coatcheck.host_port import parse_host_port
from coatcheck.options import check_plain_name
from coatcheck.seldom import Seldom
from coatcheck.session_server.server import SessionServer
from coatcheck.stores.address import StoreAddress
from coatcheck.stores.take_once.memory import MemoryItems, MemoryItemsForThreads, SharedItemTable
from coatcheck.stores.take_once.opening import items_at_a_session_server
from coatcheck.take_once.port import TakeOncePlace, TakeOnceUnavailable

MAX_ENTRIES: Final = 1
"""The door's session server has no room for copies of sessions: it is for items alone."""
LOOK_PERIOD_S: Final = 1.0
"""So often the file of revocations is looked at."""

START_S: Final = 1.0
"""So long a start waits until it listens."""

_log: Final = logging.getLogger("coatcheck.tls")
_seldom: Final = Seldom(_log, time.monotonic)


class Peers(msgspec.Struct, frozen=True, kw_only=True):
    """Where this server listens for the others, and where they are.

    ``listen``: ``HOST:PORT``. ``servers``: the others' addresses by their names; itself may be among them, so that all
    servers have one list. ``certificate``: a PEM file with this server's certificate, in which its name stands as a DNS
    name, and its key. ``authority``: a PEM file with the certificate of who signs them. ``revoked``: a PEM file with
    the list of what that authority took back (RFC 5280 section 5); it is read again when it changes.
    """

    listen: str
    servers: Mapping[str, str]
    certificate: str | Path
    authority: str | Path
    revoked: str | Path | None = None

    def check(self, server: str) -> None:
        """Raise :class:`ConfigError` if an address, a name or a file is wrong; nothing is opened."""
        self._door(server)
        self._ways(server, 1.0)

    def places(self, server: str, timeout_s: float) -> list[TakeOncePlace]:
        """Its own sessions, whose door is open from now on, and the ways to those of the others.

        Raises:
            ConfigError: an address, a name or a file is wrong.
        """
        ways = self._ways(server, timeout_s)
        door = self._door(server)
        if _opened_by.setdefault((server, self.listen), os.getpid()) == os.getpid():
            door.start()
            _doors.add(door)
        return [TakeOncePlace(server, lambda: door.items, lambda: _AtDoor(door)), *ways]

    def _door(self, server: str) -> PeerDoor:
        revocations = Revocations(Path(self.authority), Path(self.revoked)) if self.revoked else None
        host, port = parse_host_port(self.listen, "peers: listen")
        others = frozenset(self.servers) - {server}
        return PeerDoor(server, host, port, self._context(ssl.Purpose.CLIENT_AUTH), others, revocations)

    def _ways(self, server: str, timeout_s: float) -> list[TakeOncePlace]:
        asking = self._context(ssl.Purpose.SERVER_AUTH)
        others = {name: where for name, where in self.servers.items() if name != server}
        return [_way(name, where, asking, timeout_s) for name, where in others.items()]

    def _context(self, purpose: ssl.Purpose) -> ssl.SSLContext:
        try:
            context = ssl.create_default_context(purpose, cafile=self.authority)
            context.load_cert_chain(self.certificate)
        except (OSError, ssl.SSLError) as wrong:
            raise ConfigError(f"peers: certificate or authority cannot be read: {wrong}") from None
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.verify_mode = ssl.CERT_REQUIRED
        return context


def _way(name: str, where: str, context: ssl.SSLContext, timeout_s: float) -> TakeOncePlace:
    check_plain_name("peers: a server's name", name)
    host, port = parse_host_port(where, f"peers: {name}")
    address = StoreAddress(host=host, port=port, tls=context, tls_name=name, ours=True)
    return items_at_a_session_server(name, address, timeout_s)


class PeerDoor:
    """The sessions of this server, and the door where the others ask for them: a thread of its own.

    ``allowed``: the names of who may ask.
    """

    def __init__(
        self,
        name: str,
        host: str,
        port: int,
        context: ssl.SSLContext,
        allowed: frozenset[str],
        revocations: Revocations | None,
    ) -> None:
        self.name = name
        self.is_open = False
        self._allowed = allowed
        self._revocations = revocations
        table = SharedItemTable()
        self._server = SessionServer(
            name, host, port, tls=context, max_entries=MAX_ENTRIES, refuses=self._why_refused, items=table
        )
        self.items = _DoorItems(self, lambda: self._server.now_ms() / 1000, table)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None
        self._stopped = False

    def start(self) -> None:
        """Listen. If the address cannot be had, that is logged, and this server shares nothing of its own."""
        tried = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(tried,), name="coatcheck-peers", daemon=True)
        self._thread.start()
        tried.wait(START_S)

    def stop(self) -> None:
        """Listen no more; what is kept is forgotten with this object."""
        self.is_open, self._stopped = False, True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._loop.stop)
        if self._thread is not None:
            self._thread.join(START_S)

    def abandon(self) -> None:
        """In a forked child: the door is the parent's, who could not close it while we had it open, too."""
        self.is_open = False
        nothing = os.open(os.devnull, os.O_RDWR)
        for descriptor in self._server.descriptors():
            os.dup2(nothing, descriptor)  # whoever has its number may still close it, once
        os.close(nothing)

    def _run(self, tried: threading.Event) -> None:
        loop = asyncio.new_event_loop()
        try:
            loop.run_until_complete(self._server.start())
            self._loop, self.is_open = loop, not self._stopped
            tried.set()
            if not self._stopped:
                loop.run_forever()
            loop.run_until_complete(self._server.stop())
        except OSError as wrong:
            _log.error("no TLS sessions are shared by %s: it cannot listen for its peers: %s", self.name, wrong)
        finally:
            self.is_open = False
            tried.set()
            loop.close()

    def _why_refused(self, transport: asyncio.BaseTransport) -> str:
        connection = transport.get_extra_info("ssl_object")
        raw = connection.getpeercert(binary_form=True) if connection is not None else None
        if raw is None:
            return "it showed no certificate"
        certificate = x509.load_der_x509_certificate(raw)
        names = dns_names(certificate)
        if not names & self._allowed:
            return f"{', '.join(sorted(names)) or 'a nameless server'} is none of this server's peers"
        if self._revocations is not None and self._revocations.has(certificate):
            return f"the certificate of {', '.join(sorted(names))} was revoked"
        return ""


class _DoorItems(MemoryItemsForThreads):
    """What nobody else could fetch is not kept."""

    def __init__(self, door: PeerDoor, clock: Callable[[], float], table: SharedItemTable) -> None:
        super().__init__(door.name, clock, table)
        self._door = door

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> bool:
        if not self._door.is_open:
            raise TakeOnceUnavailable(f"{self.name}: it does not listen for its peers")
        return super().put(key, item, life_ms, after, limit_s)

    def check(self, limit_s: float) -> bool:
        return self._door.is_open

    def close(self) -> None:
        self._door.stop()


class _AtDoor(MemoryItems):
    """The same for an event loop."""

    def __init__(self, door: PeerDoor) -> None:
        super().__init__(door.items)
        self._door = door

    @property
    def reachable(self) -> bool:
        return self._door.is_open


def dns_names(certificate: x509.Certificate) -> frozenset[str]:
    """Those that a certificate names as its own."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except x509.ExtensionNotFound:
        return frozenset()
    return frozenset(extension.value.get_values_for_type(x509.DNSName))


class Revocations:
    """What the farm's authority took back: a file that it signed, read again when it changes.

    A file that was damaged, or signed by somebody else, changes nothing: what was revoked stays so. Raises
    :class:`ConfigError` if there is no good one to begin with.
    """

    def __init__(self, authority: Path, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._seen: object = None
        self._looked_at = clock()
        try:
            self._authority: Any = x509.load_pem_x509_certificate(authority.read_bytes()).public_key()
            self._list = self._read()
        except (OSError, ValueError) as wrong:
            raise ConfigError(f"peers: revoked: {path}: {wrong}") from None

    def has(self, certificate: x509.Certificate) -> bool:
        """Whether this certificate was revoked."""
        if self._clock() - self._looked_at >= LOOK_PERIOD_S:
            self._looked_at = self._clock()
            try:
                self._list = self._read()
            except (OSError, ValueError) as wrong:
                _seldom.warning("the revocations in %s cannot be read; those known before hold: %s", self._path, wrong)
        return self._list.get_revoked_certificate_by_serial_number(certificate.serial_number) is not None

    def _read(self) -> x509.CertificateRevocationList:
        stamp = self._path.stat()
        seen = (stamp.st_ino, stamp.st_mtime_ns, stamp.st_size)
        if seen == self._seen:
            return self._list
        found = x509.load_pem_x509_crl(self._path.read_bytes())
        try:
            is_signed = found.is_signature_valid(self._authority)
        except (InvalidSignature, TypeError):
            is_signed = False
        if not is_signed:
            raise ValueError("it was not signed by the farm's authority")
        self._seen = seen
        return found


_doors: weakref.WeakSet[PeerDoor] = weakref.WeakSet()
_opened_by: dict[tuple[str, str], int] = {}
"""By server and address, the process that has the door there: a forked child of it has none."""


def _after_fork_in_child() -> None:
    for door in list(_doors):
        door.abandon()


os.register_at_fork(after_in_child=_after_fork_in_child)
