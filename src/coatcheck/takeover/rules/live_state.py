"""What a web server leaves outside of itself of a live TLS connection, so that another one goes on with it (C6, C7).

The director carries it and cannot read it: it is sealed with the farm's key ring, which the director has not.
"""

from __future__ import annotations

from typing import Final

import msgspec

from coatcheck.errors import TokenRejected
from coatcheck.takeover.rules.repeatable import Repeatable
from coatcheck.takeover.rules.traffic_keys import SUITES, Epoch, Suite
from coatcheck.tokens.keyring import KeyRing, RandomBytes

FORMAT: Final = 1
ID_BYTES: Final = 16


class LiveState(msgspec.Struct, frozen=True, array_like=True):
    """The state of a connection whose handshake is done; counts are of encrypted records since its beginning."""

    format: int
    connection: bytes
    """Names the connection, for as long as it lives."""
    checkpoint: bytes
    """Names this state of it: it is used once."""
    suite: str
    client: tuple[Epoch, ...]
    """Keys of what the client sends: of every record that may still have to be read."""
    server: tuple[Epoch, ...]
    """Keys of what the client is sent: the one of the next record, and maybe its successor."""

    def __repr__(self) -> str:
        return f"<LiveState of {self.connection.hex()}>"

    @property
    def cipher_suite(self) -> Suite:
        return SUITES[self.suite]


class LiveStateSealer:
    """Seals states for the director to carry, and opens those of other servers."""

    def __init__(self, ring: KeyRing, farm: str, random_bytes: RandomBytes) -> None:
        self._box = ring.box("tls-connection", farm, random_bytes)

    def seal(self, state: LiveState) -> bytes:
        return self._box.seal(_ENCODER.encode(state), b"")

    def open(self, sealed: bytes) -> LiveState | None:
        """``None`` for bytes that no server of this farm sealed, or that are of a newer kind."""
        try:
            state = _DECODER.decode(self._box.open(sealed, b""))
        except (TokenRejected, msgspec.DecodeError, UnicodeDecodeError):
            return None
        suite = SUITES.get(state.suite)
        if state.format != FORMAT or suite is None or not state.client or not state.server:
            return None
        if any(len(epoch.secret) != suite.secret_bytes for epoch in state.client + state.server):
            return None
        return state

    def seal_repeatable(self, what: Repeatable) -> bytes:
        """Of a response of which a part has left."""
        return self._box.seal(_ENCODER.encode(what), _REPEATABLE)

    def open_repeatable(self, sealed: bytes) -> Repeatable | None:
        """``None`` for bytes that no server of this farm sealed."""
        try:
            return _REPEATABLE_DECODER.decode(self._box.open(sealed, _REPEATABLE))
        except (TokenRejected, msgspec.DecodeError):
            return None


_REPEATABLE: Final = b"repeatable"
_REPEATABLE_DECODER = msgspec.msgpack.Decoder(Repeatable)
_ENCODER = msgspec.msgpack.Encoder()
_DECODER = msgspec.msgpack.Decoder(LiveState)
