"""A signed proof as it comes: a JWS in compact form, with two JSON objects in it (RFC 7515; DBSC "proof JWT syntax").

Nothing here is believed before the signature was verified with a key of an allowed kind.
"""

from __future__ import annotations

import json
from typing import Any, Final, NoReturn

import msgspec

from coatcheck.device.keys import ALGORITHMS, DeviceKey, from_base64url, read_jwk
from coatcheck.device.refusals import ProofReason, ProofRefused

PROOF_TYPE: Final = "dbsc+jwt"
MAX_PROOF_CHARS: Final = 8192
"""Of a proof. The largest honest one, with an RSA key of 4096 bits and its signature, has 2,000."""


class SignedProof(msgspec.Struct, frozen=True):
    """A proof that was taken apart. ``header`` and ``payload`` are what somebody says, until :meth:`verify` returns."""

    header: dict[str, Any]
    payload: dict[str, Any]
    signed: bytes
    signature: bytes

    @property
    def algorithm(self) -> str:
        """One of :data:`ALGORITHMS`."""
        algorithm: str = self.header["alg"]
        return algorithm

    def own_key(self) -> DeviceKey:
        """The key that it brings along (of a registration); raises :class:`ProofRefused` if it has none that may be."""
        jwk = self.header.get("jwk")
        if not isinstance(jwk, dict):
            raise ProofRefused(ProofReason.KEY)
        return read_jwk(jwk, self.algorithm)

    def verify(self, key: DeviceKey) -> None:
        """Raises :class:`ProofRefused` unless ``key`` has signed it, by its own algorithm and no other."""
        if self.algorithm != key.algorithm:
            raise ProofRefused(ProofReason.ALGORITHM)
        key.verify(self.signature, self.signed)


def read_proof(text: str) -> SignedProof:
    """Take a proof apart. Raises :class:`ProofRefused`, and nothing else, for any text of any length."""
    if len(text) > MAX_PROOF_CHARS:
        raise ProofRefused(ProofReason.TOO_LARGE)
    parts = text.split(".")
    if len(parts) != 3:
        raise ProofRefused(ProofReason.MALFORMED)
    try:
        header, payload = (_json_object(from_base64url(part)) for part in parts[:2])
        signature = from_base64url(parts[2])
        signed = f"{parts[0]}.{parts[1]}".encode("ascii")
    except (ValueError, RecursionError):
        raise ProofRefused(ProofReason.MALFORMED) from None
    if header.get("typ") != PROOF_TYPE:
        raise ProofRefused(ProofReason.TYPE)
    if header.get("alg") not in ALGORITHMS:
        raise ProofRefused(ProofReason.ALGORITHM)
    if "crit" in header or "b64" in header:
        raise ProofRefused(ProofReason.MALFORMED)  # extensions that must be understood, and are not
    return SignedProof(header, payload, signed, signature)


def _json_object(raw: bytes) -> dict[str, Any]:
    """Raises :class:`ValueError` for what is no JSON object in UTF-8, or says one thing twice (RFC 7515 section 4)."""
    found = json.loads(raw.decode("utf-8"), object_pairs_hook=_without_doubles, parse_constant=_refuse)
    if not isinstance(found, dict):
        raise ValueError("no object")
    return found


def _without_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice")
    return found


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no JSON")
