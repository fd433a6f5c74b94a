"""Why a proof is refused: operators see the reason, clients do not."""

from __future__ import annotations

from enum import Enum

from coatcheck.errors import CoatcheckError


class ProofReason(Enum):
    """What is wrong with a proof; the value is its name in logs."""

    MISSING = "missing"
    MALFORMED = "malformed"
    TOO_LARGE = "too_large"
    TYPE = "wrong_type"
    ALGORITHM = "algorithm_not_allowed"
    KEY = "key_not_allowed"
    SIGNATURE = "wrong_signature"
    CHALLENGE = "challenge_not_ours"
    EXPIRED = "challenge_expired"
    FOREIGN = "challenge_for_something_else"
    USED = "challenge_used"


class ProofRefused(CoatcheckError):
    """A proof, or the key in it, proves nothing. Nothing has changed."""

    def __init__(self, reason: ProofReason) -> None:
        super().__init__(reason.value)
        self.reason = reason
