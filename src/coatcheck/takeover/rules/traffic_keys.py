"""The record layer of TLS 1.3 from its traffic secrets (RFC 8446 sections 5.2 to 5.5, 7.1 to 7.3).

OpenSSL gives the secrets of a connection to nobody after its handshake, and takes none; so from there on the records
are sealed and opened here, by the AEADs of a library. Pure: no randomness is needed, for nonces count.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Final

import msgspec
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM, ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from cryptography.hazmat.primitives.kdf.hkdf import HKDFExpand

from coatcheck.errors import CoatcheckError
from coatcheck.takeover.rules.tls_records import APPLICATION_DATA, HEADER_BYTES, MAX_PLAINTEXT_BYTES

_IV_BYTES: Final = 12
_TAG_BYTES: Final = 16
MAX_RECORDS_PER_KEY: Final = 1 << 24
"""Below the 2^24.5 that AES-GCM allows (RFC 8446 section 5.5); then comes a KeyUpdate."""
MAX_GENERATIONS: Final = (1 << 48) - 1
"""KeyUpdates that who sends may send; who receives must not count them (RFC 9846 section 4.7.3)."""


class Alert(IntEnum):
    """Why a connection ends (RFC 8446 section 6)."""

    CLOSE_NOTIFY = 0
    UNEXPECTED_MESSAGE = 10
    BAD_RECORD_MAC = 20
    RECORD_OVERFLOW = 22
    ILLEGAL_PARAMETER = 47
    DECODE_ERROR = 50
    INTERNAL_ERROR = 80
    USER_CANCELED = 90


class TlsViolation(CoatcheckError):
    """The other end broke the protocol; :attr:`alert` is what it is told."""

    def __init__(self, alert: Alert, why: str) -> None:
        super().__init__(why)
        self.alert = alert


class Suite(msgspec.Struct, frozen=True):
    """A cipher suite of TLS 1.3 (RFC 8446 appendix B.4)."""

    name: str
    digest: type[SHA256] | type[SHA384]
    key_bytes: int
    aead: type[AESGCM] | type[ChaCha20Poly1305]

    @property
    def secret_bytes(self) -> int:
        """The length of its traffic secrets."""
        return self.digest.digest_size


SUITES: Final = {
    suite.name: suite
    for suite in (
        Suite("TLS_AES_128_GCM_SHA256", SHA256, 16, AESGCM),
        Suite("TLS_AES_256_GCM_SHA384", SHA384, 32, AESGCM),
        Suite("TLS_CHACHA20_POLY1305_SHA256", SHA256, 32, ChaCha20Poly1305),
    )
}


def expand_label(suite: Suite, secret: bytes, label: bytes, length: int) -> bytes:
    """HKDF-Expand-Label with an empty context (RFC 8446 section 7.1)."""
    full = b"tls13 " + label
    info = length.to_bytes(2, "big") + bytes([len(full)]) + full + b"\x00"
    return HKDFExpand(suite.digest(), length, info).derive(secret)


class Epoch(msgspec.Struct, frozen=True, array_like=True):
    """One key of one direction, and from which record on it is used."""

    first: int
    """How many encrypted records of this direction came before it."""
    generation: int
    """How many KeyUpdates came before it."""
    secret: bytes

    def __repr__(self) -> str:
        return f"<Epoch {self.generation} from record {self.first}>"

    def successor(self, suite: Suite, first: int) -> Epoch:
        """The key behind a KeyUpdate (RFC 8446 section 7.2)."""
        secret = expand_label(suite, self.secret, b"traffic upd", suite.secret_bytes)
        return Epoch(first, self.generation + 1, secret)


class _Direction:
    """The keys of one direction, at one record of it."""

    __slots__ = ("_aead", "_iv", "epoch", "position", "suite")

    def __init__(self, suite: Suite, epoch: Epoch, position: int) -> None:
        """``position``: how many encrypted records of this direction came before the next one."""
        self.suite = suite
        self.position = position
        self.use(epoch)

    def use(self, epoch: Epoch) -> None:
        """Go on with this key."""
        if not epoch.first <= self.position:
            raise ValueError("a key of records that are still to come")
        self.epoch = epoch
        self._aead = self.suite.aead(expand_label(self.suite, epoch.secret, b"key", self.suite.key_bytes))
        self._iv = int.from_bytes(expand_label(self.suite, epoch.secret, b"iv", _IV_BYTES), "big")

    def update(self) -> Epoch:
        """The next key, from the next record on."""
        self.use(self.epoch.successor(self.suite, self.position))
        return self.epoch

    def _nonce(self) -> bytes:
        return (self._iv ^ (self.position - self.epoch.first)).to_bytes(_IV_BYTES, "big")


class RecordWriter(_Direction):
    """What we send."""

    __slots__ = ()

    @property
    def is_worn(self) -> bool:
        """Whether the key has sealed so much that a KeyUpdate is due."""
        return self.position - self.epoch.first >= MAX_RECORDS_PER_KEY

    @property
    def may_update(self) -> bool:
        """Whether there may be one more KeyUpdate."""
        return self.epoch.generation < MAX_GENERATIONS

    def seal(self, content_type: int, content: bytes) -> bytes:
        """One record of 16,384 bytes of content at most."""
        if len(content) > MAX_PLAINTEXT_BYTES:
            raise ValueError(f"{len(content)} bytes are too many for one record")
        size = len(content) + 1 + _TAG_BYTES
        header = bytes((APPLICATION_DATA, 3, 3, size >> 8, size & 0xFF))
        sealed = self._aead.encrypt(self._nonce(), content + bytes((content_type,)), header)
        self.position += 1
        return header + sealed


class RecordReader(_Direction):
    """What the other end sends."""

    __slots__ = ()

    def open(self, record: bytes) -> tuple[int, bytes]:
        """The content type of a record and its content, without the padding.

        Raises :class:`TlsViolation`; the record then counts as not read.
        """
        if record[0] != APPLICATION_DATA:
            raise TlsViolation(Alert.UNEXPECTED_MESSAGE, f"a record of the type {record[0]} that is not encrypted")
        try:
            inner = self._aead.decrypt(self._nonce(), record[HEADER_BYTES:], record[:HEADER_BYTES])
        except (InvalidTag, ValueError):
            raise TlsViolation(Alert.BAD_RECORD_MAC, "a record that was not sealed for this place") from None
        if len(inner) > MAX_PLAINTEXT_BYTES + 1:
            raise TlsViolation(Alert.RECORD_OVERFLOW, "a record with too much in it")
        # All but the common case of no padding goes through the copy.
        content = inner if inner and inner[-1] else inner.rstrip(b"\x00")
        if not content:
            raise TlsViolation(Alert.UNEXPECTED_MESSAGE, "a record with nothing but padding")
        self.position += 1
        return content[-1], content[:-1]


def epoch_at(epochs: tuple[Epoch, ...], position: int) -> Epoch:
    """The key that the record at ``position`` is sealed with. Raises ``ValueError`` if it is not among them."""
    for epoch in reversed(epochs):
        if epoch.first <= position:
            return epoch
    raise ValueError("a record of a time whose key is forgotten")
