"""What is stored of a TLS session, sealed, and whether it may be resumed here (mission C1, C8).

OpenSSL by itself would resume a session that was made for another host of the same farm, past the certificate that
the client would have checked. So the record says for which host name it was made, and for which kind of context: what
is demanded of client certificates, and which authorities may sign them. Pure: the time is given.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

from coatcheck.errors import TokenRejected
from coatcheck.tls.hosts import Siblings
from coatcheck.tokens.keyring import KeyRing, RandomBytes

TLS_1_3: Final = 0x0304


class SessionRecord(msgspec.Struct, frozen=True, array_like=True):
    """A TLS session outside of the server that made it."""

    owner: str
    """The server that has it, or had it before it was taken."""
    host: str
    """The name that the client asked for (SNI), in lower case; empty if it did not say."""
    context: bytes
    """What kind of context it was made under."""
    expires_at_ms: int
    """Unix milliseconds."""
    protocol: int
    """0x0303 for TLS 1.2, 0x0304 for TLS 1.3."""
    session: bytes
    """OpenSSL's own encoding: keys, cipher, the client's certificate."""

    def __repr__(self) -> str:
        return f"<SessionRecord of {self.owner}>"

    @property
    def keeps_its_id(self) -> bool:
        """Whether the same session is resumed again and again: TLS 1.2. In TLS 1.3 each resumption makes a new one."""
        return self.protocol < TLS_1_3


class RecordVerdict(Enum):
    """Whether a session that was fetched may be resumed."""

    RESUME = "resumed"
    EXPIRED = "expired"
    OTHER_CONTEXT = "made under other demands on client certificates"
    OTHER_HOST = "made for another host name"


def judge_record(record: SessionRecord, context: bytes, host: str, siblings: Siblings, now_ms: int) -> RecordVerdict:
    """Whether ``record`` may be resumed by a client that asks this ``context`` for ``host``."""
    if now_ms >= record.expires_at_ms:
        return RecordVerdict.EXPIRED
    if record.context != context:
        return RecordVerdict.OTHER_CONTEXT
    return RecordVerdict.RESUME if siblings.may_share(record.host, host) else RecordVerdict.OTHER_HOST


class RecordSealer:
    """Seals records: a store never sees a key of a TLS session, and cannot pass one session off as another."""

    def __init__(self, ring: KeyRing, farm: str, random_bytes: RandomBytes) -> None:
        self._box = ring.box("tls-session", farm, random_bytes)

    def seal(self, key: bytes, record: SessionRecord) -> bytes:
        """``key``: under what it will be stored."""
        return self._box.seal(_ENCODER.encode(record), key)

    def open(self, key: bytes, sealed: bytes) -> SessionRecord | None:
        """``None`` for bytes that no server of this farm sealed for this key."""
        try:
            return _DECODER.decode(self._box.open(sealed, key))
        except (TokenRejected, msgspec.DecodeError):
            return None


_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(SessionRecord)
