"""A web server's end of a TLS 1.3 connection whose handshake is done: what comes is opened, what goes is sealed.

It does what OpenSSL would do behind its handshake (RFC 8446 sections 4.6.3, 5 and 6), and besides it says at any time
what another web server needs to go on (mission C6). Pure: it never asks what time it is, nor for chance.
"""

from __future__ import annotations

from typing import Final

from coatcheck.takeover.rules.live_state import FORMAT, LiveState
from coatcheck.takeover.rules.tls_records import ALERT, APPLICATION_DATA, HANDSHAKE, MAX_PLAINTEXT_BYTES
from coatcheck.takeover.rules.traffic_keys import (
    Alert,
    Epoch,
    RecordReader,
    RecordWriter,
    Suite,
    TlsViolation,
    epoch_at,
)

_KEY_UPDATE: Final = 24
_MAX_IN_A_ROW: Final = 32
"""KeyUpdates or empty records in a row, without any data: more are a flood (OpenSSL's bound, too)."""
_FATAL, _WARNING = 2, 1


class EstablishedTls:
    """One connection; counts are of encrypted records since its beginning."""

    __slots__ = ("_client", "_idle_records", "_opener", "_sealer", "_server", "closed_by_client", "must_checkpoint")

    def __init__(
        self, suite: Suite, client: tuple[Epoch, ...], server: tuple[Epoch, ...], read: int, sent: int
    ) -> None:
        """``read``: records of the client; ``sent``: records to it. Raises ``ValueError`` without their keys."""
        self._opener = RecordReader(suite, epoch_at(client, read), read)
        self._sealer = RecordWriter(suite, epoch_at(server, sent), sent)
        self._client = [epoch for epoch in client if epoch.first >= self._opener.epoch.first]
        self._server = self._sealer.epoch
        self._idle_records = 0
        self.closed_by_client = False
        """It has said that it sends no more (``close_notify``)."""
        self.must_checkpoint = False
        """A key has changed: the state must be kept elsewhere before anything else leaves."""

    @property
    def read(self) -> int:
        """How many of the client's records were read."""
        return self._opener.position

    @property
    def sent(self) -> int:
        """How many records were sealed for the client."""
        return self._sealer.position

    def state(self, connection: bytes, checkpoint: bytes, answered: int) -> LiveState:
        """What another server needs to go on; ``answered``: up to there the client's records are never read again."""
        self.must_checkpoint = False
        current = epoch_at(tuple(self._client), min(answered, self.read))
        self._client = [epoch for epoch in self._client if epoch.first >= current.first]
        server = (self._server,) if self._server is self._sealer.epoch else (self._server, self._sealer.epoch)
        self._server = self._sealer.epoch
        return LiveState(FORMAT, connection, checkpoint, self._opener.suite.name, tuple(self._client), server)

    def open(self, record: bytes) -> tuple[bytes, bytes]:
        """The data in a record, and records to answer it with at once, if any.

        If :attr:`must_checkpoint` is set then, the state goes out before those. Raises :class:`TlsViolation`; then
        :meth:`alert` says what the client is told.
        """
        kind, content = self._opener.open(record)
        if kind == APPLICATION_DATA:
            if content:
                self._idle_records = 0
            else:
                self._count_idle()
            return content, b""
        if kind == ALERT:
            return b"", self._alerted(content)
        if kind == HANDSHAKE:
            return b"", self._handshake_message(content)
        raise TlsViolation(Alert.UNEXPECTED_MESSAGE, f"a record of the inner type {kind}")

    def _count_idle(self) -> None:
        self._idle_records += 1
        if self._idle_records > _MAX_IN_A_ROW:
            raise TlsViolation(Alert.UNEXPECTED_MESSAGE, "records without data, in a row")

    def _alerted(self, content: bytes) -> bytes:
        if len(content) != 2:
            raise TlsViolation(Alert.DECODE_ERROR, "a malformed alert")
        if content[1] == Alert.USER_CANCELED:
            self._count_idle()
            return b""
        if content[1] != Alert.CLOSE_NOTIFY:
            raise ClientAlert(content[1])
        self.closed_by_client = True
        return b""

    def _handshake_message(self, content: bytes) -> bytes:
        # A KeyUpdate is alone at the end of its record: keys change there (RFC 8446 section 5.1).
        if not content or content[0] != _KEY_UPDATE:
            raise TlsViolation(Alert.UNEXPECTED_MESSAGE, "a message of the handshake, which is over")
        if len(content) != 5 or content[1:4] != b"\x00\x00\x01":
            raise TlsViolation(Alert.DECODE_ERROR, "a malformed KeyUpdate")
        if content[4] > 1:
            raise TlsViolation(Alert.ILLEGAL_PARAMETER, "a KeyUpdate that asks for what there is not")
        self._count_idle()
        self._client.append(self._opener.update())
        self.must_checkpoint = True
        return self.update_key() if content[4] else b""

    def update_key(self) -> bytes:
        """A KeyUpdate: what is sealed behind it is sealed with the next key."""
        record = self._sealer.seal(HANDSHAKE, bytes((_KEY_UPDATE, 0, 0, 1, 0)))
        self._sealer.update()
        self.must_checkpoint = True
        return record

    @property
    def needs_key_update(self) -> bool:
        """Whether :meth:`update_key` has to come before more data."""
        return self._sealer.is_worn

    def seal(self, data: bytes) -> list[bytes]:
        """Records with this data."""
        if len(data) <= MAX_PLAINTEXT_BYTES:
            return [self._sealer.seal(APPLICATION_DATA, data)]
        return [
            self._sealer.seal(APPLICATION_DATA, data[at : at + MAX_PLAINTEXT_BYTES])
            for at in range(0, len(data), MAX_PLAINTEXT_BYTES)
        ]

    def alert(self, alert: Alert) -> bytes:
        """A record that ends our side."""
        level = _WARNING if alert in (Alert.CLOSE_NOTIFY, Alert.USER_CANCELED) else _FATAL
        return self._sealer.seal(ALERT, bytes((level, alert)))


class ClientAlert(TlsViolation):
    """The client has ended the connection for a reason of its own; it is not answered."""

    def __init__(self, number: int) -> None:
        super().__init__(Alert.CLOSE_NOTIFY, f"the client says alert {number}")
