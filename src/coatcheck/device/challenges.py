"""What a browser is to sign, and what it calls its session: sealed, so that no server need remember it (formats,
section 14)."""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from hmac import compare_digest
from typing import Final

import msgspec

from coatcheck.device.keys import from_base64url, to_base64url
from coatcheck.device.refusals import ProofReason, ProofRefused
from coatcheck.errors import TokenReason, TokenRejected
from coatcheck.events import public_id
from coatcheck.tokens.keyring import KeyRing, RandomBytes

CHALLENGE_LIFE_MS: Final = 300_000
"""Browsers answer at once, but may hold a challenge that was sent ahead until their cookie ends; then they are told a
fresh one."""
LEEWAY_MS: Final = 5_000
"""So much a challenge may come from the future: the clocks of two servers differ."""
SESSION_KEY_BYTES: Final = 16
MAX_IDENTIFIER_CHARS: Final = 256
_CHALLENGE: Final = struct.Struct(">B16sHII")
"""Kind, session key, time (48 bits: Unix ms), serial."""
MAX_SERIAL: Final = (1 << 32) - 1


class ChallengeKind(IntEnum):
    """What a challenge is for; a proof of one kind is none of another."""

    REGISTER = 1
    PROVE = 2


class Challenge(msgspec.Struct, frozen=True, gc=False):
    """``session``: its key. ``made_at``: Unix ms. ``serial``: how many proofs its record had counted: the next one
    counts one more, so that each challenge is used once (compare-and-set decides, not a memory of challenges)."""

    kind: ChallengeKind
    session: bytes
    made_at: int
    serial: int

    def __repr__(self) -> str:
        return f"<Challenge for session {public_id(self.session)}>"

    def check(self, kind: ChallengeKind, session: bytes, now: int) -> None:
        """Raises :class:`ProofRefused` if it is for something else, or too old (``now``: Unix ms)."""
        if self.kind is not kind or not compare_digest(self.session, session):
            raise ProofRefused(ProofReason.FOREIGN)
        if not -LEEWAY_MS <= now - self.made_at <= CHALLENGE_LIFE_MS:
            raise ProofRefused(ProofReason.EXPIRED)


class ChallengeCodec:
    """Seals and opens the challenges of one farm, and the names by which browsers call their bound sessions."""

    def __init__(self, ring: KeyRing, farm: str, random_bytes: RandomBytes) -> None:
        self._challenges = ring.box("device-challenge", farm, random_bytes)
        # One session has one name, however often it is written. Of AES-GCM-SIV a nonce that comes again shows that two
        # plain texts are the same, and nothing else (RFC 8452 section 9).
        self._names = ring.box("device-session", farm, bytes)

    def seal(self, challenge: Challenge) -> str:
        """80 characters of base64url."""
        high, low = challenge.made_at >> 32, challenge.made_at & 0xFFFFFFFF
        plain = _CHALLENGE.pack(challenge.kind, challenge.session, high, low, challenge.serial)
        return to_base64url(self._challenges.seal(plain))

    def open(self, text: object) -> Challenge:
        """Raises :class:`ProofRefused` for anything that no server of this farm has sealed as a challenge, and
        :class:`TokenRejected` with ``UNKNOWN_KEY`` if it may be sealed with a key that is not known here yet."""
        try:
            plain = self._opened(text, self._challenges.open)
            kind, session, high, low, serial = _CHALLENGE.unpack(plain)
            return Challenge(ChallengeKind(kind), session, high << 32 | low, serial)
        except (ValueError, struct.error):
            raise ProofRefused(ProofReason.CHALLENGE) from None

    def name(self, session: bytes) -> str:
        """The session identifier of a bound session: 66 characters, which name its key to us and to nobody else."""
        return to_base64url(self._names.seal(session))

    def session(self, name: object) -> bytes:
        """The key of the session that a browser names; raises as :meth:`open` does."""
        try:
            session = self._opened(name, self._names.open)
        except ValueError:
            raise ProofRefused(ProofReason.FOREIGN) from None
        if len(session) != SESSION_KEY_BYTES:
            raise ProofRefused(ProofReason.FOREIGN)
        return session

    def _opened(self, text: object, opener: Callable[[bytes], bytes]) -> bytes:
        """Raises :class:`ValueError`, or :class:`TokenRejected` for an unknown key."""
        if isinstance(text, str) and len(text) > MAX_IDENTIFIER_CHARS:
            raise ValueError("too long")
        try:
            return opener(from_base64url(text))
        except TokenRejected as rejection:
            if rejection.reason is TokenReason.UNKNOWN_KEY:
                raise
            raise ValueError(rejection.reason.value) from None
