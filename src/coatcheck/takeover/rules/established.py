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
MAX_KEPT_KEYS: Final = 64
"""Of the client's: with more KeyUpdates of its before it has an answer, no other server can go on before that."""
_FATAL, _WARNING = 2, 1


class EstablishedTls:
    """One connection; counts are of encrypted records since its beginning."""

    __slots__ = (
        "_client",
        "_idle_records",
        "_inherited",
        "_opener",
        "_ours_from",
        "_sealer",
        "_server",
        "closed_by_client",
        "must_checkpoint",
    )

    def __init__(
        self, suite: Suite, client: tuple[Epoch, ...], server: tuple[Epoch, ...], read: int, sent: int
    ) -> None:
        """``read``: records of the client; ``sent``: records to it. Raises ``ValueError`` without their keys."""
        self._opener = RecordReader(suite, epoch_at(client, read), read)
        self._sealer = RecordWriter(suite, epoch_at(server, sent), sent)
        # Later ones are known again when the KeyUpdates before them were read again.
        self._client = [self._opener.epoch]
        self._server = [self._sealer.epoch]
        """The key of the last state, and those that came since."""
        self._inherited: tuple[Epoch, ...] = ()
        """Further keys that the server before had ready."""
        self._ours_from = 0
        """Nobody else has sealed anything with keys of this generation, or later ones."""
        self._idle_records = 0
        self.closed_by_client = False
        """It has said that it sends no more (``close_notify``)."""
        self.must_checkpoint = False
        """A key has changed: the state must be kept elsewhere before anything else leaves."""

    @classmethod
    def taken_over(cls, state: LiveState, read: int, sent: int) -> EstablishedTls:
        """Go on with what another server has left. Raises ``ValueError`` if it has not the keys of these records.

        A KeyUpdate comes before anything else: the next record may share its nonce with one that the server before
        sealed, and that never left. There is nothing secret in it, and what comes behind has a key of its own.
        """
        tls = cls(state.cipher_suite, state.client, state.server, read, sent)
        tls._ours_from = state.server[-1].generation + 1
        tls._inherited = tuple(epoch for epoch in state.server if epoch.generation > tls.generation)
        return tls

    @property
    def read(self) -> int:
        """How many of the client's records were read."""
        return self._opener.position

    @property
    def generation(self) -> int:
        """How many KeyUpdates of ours came before the key that seals now."""
        return self._sealer.epoch.generation

    @property
    def sent(self) -> int:
        """How many records were sealed for the client."""
        return self._sealer.position

    def state(self, connection: bytes, checkpoint: bytes, answered: int) -> LiveState:
        """What another server needs to go on; ``answered``: up to there the client's records are never read again."""
        self.must_checkpoint = False
        while len(self._client) > 1 and self._client[1].first <= answered:
            del self._client[0]
        server = (*self._server, *self._inherited)
        self._server = [self._sealer.epoch]
        return LiveState(FORMAT, connection, checkpoint, self._opener.suite.name, tuple(self._client), server)

    def open(self, record: bytes) -> tuple[bytes, bytes]:
        """The data in a record, and records to answer it with at once, if any.

        If :attr:`must_checkpoint` is set then, the state goes out before those. Raises :class:`TlsViolation`; then
        :meth:`alert` says what the client is told.
        """
        if self.closed_by_client:
            # What comes behind the end is ignored (RFC 8446 section 6.1).
            return b"", b""
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
        if not content:
            raise TlsViolation(Alert.UNEXPECTED_MESSAGE, "an alert without content")
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
        if len(content) < 5 or content[1:4] != b"\x00\x00\x01":
            raise TlsViolation(Alert.DECODE_ERROR, "a malformed KeyUpdate")
        if len(content) > 5:
            raise TlsViolation(Alert.UNEXPECTED_MESSAGE, "a KeyUpdate, and more in the same record")
        if content[4] > 1:
            raise TlsViolation(Alert.ILLEGAL_PARAMETER, "a KeyUpdate that asks for what there is not")
        self._count_idle()
        self._client.append(self._opener.update())
        del self._client[:-MAX_KEPT_KEYS]
        self.must_checkpoint = True
        # What cannot be granted is passed over (RFC 9846 section 4.7.3).
        return self.renew_key() if content[4] and self._sealer.may_update else b""

    def update_key(self) -> bytes:
        """A KeyUpdate: what is sealed behind it is sealed with the next key.

        Raises :class:`TlsViolation` if there were as many as there may be.
        """
        if not self._sealer.may_update:
            raise TlsViolation(Alert.INTERNAL_ERROR, "too many KeyUpdates")
        record = self._sealer.seal(HANDSHAKE, bytes((_KEY_UPDATE, 0, 0, 1, 0)))
        self._server.append(self._sealer.update())
        self._inherited = ()
        self.must_checkpoint = True
        return record

    @property
    def needs_key_update(self) -> bool:
        """Whether :meth:`renew_key` has to come before anything else that is sealed."""
        return self._sealer.is_worn or self.generation < self._ours_from

    def renew_key(self) -> bytes:
        """KeyUpdates: one, or as many as lead to a key that no other server had. Raises :class:`TlsViolation`."""
        updates = self.update_key()
        while self.generation < self._ours_from:
            updates += self.update_key()
        return updates

    def seal(self, data: bytes) -> list[bytes]:
        """Records with this data."""
        self._check_key()
        if len(data) <= MAX_PLAINTEXT_BYTES:
            return [self._sealer.seal(APPLICATION_DATA, data)]
        return [
            self._sealer.seal(APPLICATION_DATA, data[at : at + MAX_PLAINTEXT_BYTES])
            for at in range(0, len(data), MAX_PLAINTEXT_BYTES)
        ]

    def alert(self, alert: Alert) -> bytes:
        """A record that ends our side."""
        self._check_key()
        level = _WARNING if alert in (Alert.CLOSE_NOTIFY, Alert.USER_CANCELED) else _FATAL
        return self._sealer.seal(ALERT, bytes((level, alert)))

    def _check_key(self) -> None:
        if self.generation < self._ours_from:
            raise RuntimeError("nothing may be sealed with a key that another server has had")


class ClientAlert(TlsViolation):
    """The client has ended the connection for a reason of its own; it is not answered."""

    def __init__(self, number: int) -> None:
        super().__init__(Alert.CLOSE_NOTIFY, f"the client says alert {number}")
