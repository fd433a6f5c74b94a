"""The two ends of a TLS connection in memory: OpenSSL is the client, and what web servers run is the server."""

from __future__ import annotations

import _ssl
import ctypes
import ssl
from pathlib import Path
from typing import Final

from coatcheck.takeover.io.handshake import Handshake
from coatcheck.takeover.io.key_log import KeyLog
from coatcheck.takeover.rules.established import EstablishedTls
from coatcheck.takeover.rules.tls_records import RecordSplitter

READ: Final = 1 << 16
_SSL_KEY_UPDATE_NOT_REQUESTED, _SSL_KEY_UPDATE_REQUESTED = 0, 1
_TLS_1_3: Final = 0x0304

_library = ctypes.CDLL(_ssl.__file__)
_library.SSL_version.argtypes = [ctypes.c_void_p]
_library.SSL_key_update.argtypes = [ctypes.c_void_p, ctypes.c_int]
_library.SSL_CTX_set_ciphersuites.argtypes = [ctypes.c_void_p, ctypes.c_char_p]


def choose_suite(context: ssl.SSLContext, suite: str) -> None:
    """``ssl`` of Python 3.11 has no word for the suites of TLS 1.3."""
    pointer = ctypes.c_void_p.from_address(id(context) + object.__basicsize__)
    assert _library.SSL_CTX_set_ciphersuites(pointer, suite.encode()) == 1


class MemoryClient:
    """A client as any browser's: OpenSSL does all of it."""

    def __init__(self, suite: str = "", version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3) -> None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        context.maximum_version = version
        if suite:
            choose_suite(context, suite)
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.tls = context.wrap_bio(self._incoming, self._outgoing)
        self.closed = False
        """The server has said ``close_notify``."""

    def handshake(self, data: bytes = b"") -> bytes:
        """Take what the server said; answers what is said to it."""
        self._incoming.write(data)
        try:
            self.tls.do_handshake()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()

    def write(self, data: bytes) -> bytes:
        """The records with this data."""
        assert self.tls.write(data) == len(data)
        return self._outgoing.read()

    def take(self, records: bytes) -> bytes:
        """The data in what came. Raises ``ssl.SSLError`` for anything that is not right."""
        self._incoming.write(records)
        data = bytearray()
        try:
            while piece := self.tls.read(READ):
                data += piece
            self.closed = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed = True
        return bytes(data)

    def said(self) -> bytes:
        """What OpenSSL wants to say by itself: alerts, and answers to KeyUpdates."""
        return self._outgoing.read()

    def update_key(self, *, requested: bool) -> bytes:
        """A KeyUpdate, which ``ssl`` has no word for."""
        # struct PySSLSocket { PyObject_HEAD; PyObject *Socket; SSL *ssl; ... }
        place = id(self.tls._sslobj) + object.__basicsize__ + ctypes.sizeof(ctypes.c_void_p)  # type: ignore[attr-defined]
        pointer = ctypes.c_void_p.from_address(place)
        assert _library.SSL_version(pointer) == _TLS_1_3, "that is no SSL*"
        kind = _SSL_KEY_UPDATE_REQUESTED if requested else _SSL_KEY_UPDATE_NOT_REQUESTED
        assert _library.SSL_key_update(pointer, kind) == 1
        # It leaves with the next step.
        self.tls.do_handshake()
        return self._outgoing.read()

    def close(self) -> bytes:
        """Its ``close_notify``."""
        try:
            self.tls.unwrap()
        except ssl.SSLWantReadError:
            pass
        return self._outgoing.read()


class ServerContext:
    """What the web servers of a test end TLS with; all of them have the same certificate."""

    def __init__(self, certificate: tuple[Path, Path], suite: str = "") -> None:
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.load_cert_chain(*certificate)
        if suite:
            choose_suite(self.context, suite)
        self.key_log = KeyLog(self.context)

    def handshake(self) -> Handshake:
        return Handshake(self.context, self.key_log)


def connect(context: ServerContext, client: MemoryClient) -> EstablishedTls:
    """Both hands shaken; the client has the server's tickets."""
    server, cut = context.handshake(), RecordSplitter()
    to_server = client.handshake()
    while server.done is None:
        said = b"".join(server.feed(record) for record in cut.feed(to_server))
        to_server = client.handshake(said) if server.done is None else b""
        if server.done is not None:
            assert client.take(said) == b""
    assert isinstance(server.done, EstablishedTls)
    return server.done


def records(data: bytes) -> list[bytes]:
    """The whole records that ``data`` consists of."""
    splitter = RecordSplitter()
    found = splitter.feed(data)
    assert splitter.is_empty
    return found
