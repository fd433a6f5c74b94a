"""What a proof must be to bind a session to a key, or to show that its browser is there (W3C DBSC, "proof JWT syntax").

Pure: time and what the record says are arguments; whoever calls it stores what follows, or nothing.
"""

from __future__ import annotations

from coatcheck.device.challenges import Challenge, ChallengeCodec, ChallengeKind
from coatcheck.device.jws import SignedProof, read_proof
from coatcheck.device.keys import DeviceKey
from coatcheck.device.refusals import ProofReason, ProofRefused


class Registration:
    """A proof that brings its key along. :meth:`key_for` judges all of it."""

    def __init__(self, text: str, codec: ChallengeCodec) -> None:
        """Raises :class:`ProofRefused`, and :class:`TokenRejected` as :meth:`ChallengeCodec.open` does."""
        self._proof = read_proof(text)
        self._challenge = codec.open(self._proof.payload.get("jti"))

    def key_for(self, session: bytes, now: int) -> DeviceKey:
        """The key that the session is to be bound to; ``now``: Unix ms. Raises :class:`ProofRefused`."""
        self._challenge.check(ChallengeKind.REGISTER, session, now)
        key = self._proof.own_key()
        self._proof.verify(key)
        return key


class KeyProof:
    """A proof by the key that a session is bound to. :meth:`check` judges all of it."""

    def __init__(self, text: str, codec: ChallengeCodec) -> None:
        """Raises as :class:`Registration` does."""
        self._proof: SignedProof = read_proof(text)
        if "jwk" in self._proof.header:
            raise ProofRefused(ProofReason.KEY)  # the key is the record's, whatever a proof brings along
        self._challenge: Challenge = codec.open(self._proof.payload.get("jti"))

    def check(self, session: bytes, name: str, key: DeviceKey, serial: int, now: int) -> None:
        """``name``: what the browser calls the session; ``key`` and ``serial``: as the record has them; ``now``: Unix
        ms. Raises :class:`ProofRefused`."""
        self._challenge.check(ChallengeKind.PROVE, session, now)
        if self._proof.payload.get("sub", name) != name:
            raise ProofRefused(ProofReason.FOREIGN)
        if self._challenge.serial != serial:
            raise ProofRefused(ProofReason.USED)
        self._proof.verify(key)
