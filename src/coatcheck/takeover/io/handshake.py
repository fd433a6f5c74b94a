"""The handshake of a connection whose records come through a director: OpenSSL's, on memory instead of a socket.

Behind it the record layer is ours with TLS 1.3, so that another server can go on, and stays OpenSSL's with TLS 1.2.
"""

from __future__ import annotations

import ssl
from typing import Final

from coatcheck.takeover.io.key_log import KeyLog, secrets_of
from coatcheck.takeover.rules.established import EstablishedTls
from coatcheck.takeover.rules.tls_records import APPLICATION_DATA, HANDSHAKE, HEADER_BYTES, count_encrypted
from coatcheck.takeover.rules.traffic_keys import SUITES, Alert, Epoch, TlsViolation

_READ_BYTES: Final = 64 * 1024


class OpenSslTls:
    """A connection that OpenSSL goes on with; no other server can."""

    must_checkpoint = False
    needs_key_update = False

    def __init__(self, connection: ssl.SSLObject, incoming: ssl.MemoryBIO, outgoing: ssl.MemoryBIO, read: int) -> None:
        """``read``: encrypted records of the client's that came with the handshake."""
        self._connection = connection
        self._incoming = incoming
        self._outgoing = outgoing
        self.closed_by_client = False
        self.read = read

    def open(self, record: bytes) -> tuple[bytes, bytes]:
        """The data in a record, and what it is answered with. Raises :class:`TlsViolation`."""
        self._incoming.write(record)
        self.read += record[0] == APPLICATION_DATA
        data: list[bytes] = []
        try:
            while piece := self._connection.read(_READ_BYTES):
                data.append(piece)
            self.closed_by_client = True
        except ssl.SSLWantReadError:
            pass
        except ssl.SSLZeroReturnError:
            self.closed_by_client = True
        except ssl.SSLError as error:
            raise TlsViolation(Alert.INTERNAL_ERROR, str(error)) from None
        return b"".join(data), self._outgoing.read()

    def seal(self, data: bytes) -> list[bytes]:
        """Records with this data."""
        self._connection.write(data)
        return [self._outgoing.read()]

    def alert(self, alert: Alert) -> bytes:
        """What ends our side; OpenSSL has said by itself what the client did wrong."""
        if alert is Alert.CLOSE_NOTIFY:
            try:
                self._connection.unwrap()
            except ssl.SSLError:
                pass
        return self._outgoing.read()

    def renew_key(self) -> bytes:
        """OpenSSL does that by itself."""
        return b""


class Handshake:
    """Takes the client's records until :attr:`done`."""

    def __init__(self, context: ssl.SSLContext, key_log: KeyLog | None) -> None:
        """``key_log``: that of the context, if another server is to be able to go on."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._connection = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._key_log = key_log
        self._told: dict[bytes, bytes] = {}
        self._client_random = b""
        self._read = self._sent = 0
        self.done: EstablishedTls | OpenSslTls | None = None

    def feed(self, record: bytes) -> bytes:
        """Take one record of the client's; answers what it is sent.

        Raises ``ssl.SSLError`` or ``OSError`` if it fails; :meth:`last_words` then says what the client is told.
        """
        self._incoming.write(record)
        if record[0] == HANDSHAKE and not self._client_random:
            # Behind the headers of record and message, and a version (RFC 8446 section 4.1.2).
            self._client_random = record[HEADER_BYTES + 6 : HEADER_BYTES + 38]
        if record[0] == APPLICATION_DATA:
            self._read += 1
        try:
            self._connection.do_handshake()
        except ssl.SSLWantReadError:
            said = self._outgoing.read()
            self._sent += count_encrypted(said)
            return said
        finally:
            # Also of a handshake that fails: nothing may stay in the log, and nothing be found there by the next one.
            self._listen()
        self.done = self._established()
        return self._outgoing.read()

    def last_words(self) -> bytes:
        """The alert that OpenSSL has for the client."""
        return self._outgoing.read()

    def _listen(self) -> None:
        if self._key_log is not None:
            self._key_log.take(self._client_random, self._told)

    def _established(self) -> EstablishedTls | OpenSslTls:
        secrets, cipher = secrets_of(self._told), self._connection.cipher()
        suite = SUITES.get(cipher[0]) if cipher is not None else None
        if self._key_log is None or secrets is None or suite is None:
            return OpenSslTls(self._connection, self._incoming, self._outgoing, self._read)
        # What OpenSSL says behind the client's Finished is the first that is sealed with these keys: its tickets.
        tickets = count_encrypted(bytes(self._pending()))
        client, server = Epoch(self._read, 0, secrets.client), Epoch(self._sent, 0, secrets.server)
        return EstablishedTls(suite, (client,), (server,), self._read, self._sent + tickets)

    def _pending(self) -> bytes:
        said = self._outgoing.read()
        self._outgoing.write(said)
        return said
