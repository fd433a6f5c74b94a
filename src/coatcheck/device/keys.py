"""The public key of a browser: which kinds are allowed, how it is stored, what it is called (RFC 7517, 7518, 7638)."""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error as BinasciiError
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final, Literal

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1, EllipticCurvePublicNumbers
from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicNumbers
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from coatcheck.device.refusals import ProofReason, ProofRefused

Algorithm = Literal["ES256", "RS256"]
ALGORITHMS: Final[tuple[Algorithm, ...]] = ("ES256", "RS256")
"""What the specification has; no other one is ever looked at, least of all ``none`` or one with a shared secret."""
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 4096
RSA_EXPONENT: Final = 65537
"""The one that browsers and their security chips use."""
COORDINATE_BYTES: Final = 32
_SECRET_MEMBERS: Final = frozenset({"d", "p", "q", "dp", "dq", "qi", "oth", "k"})
"""Members that only a private or a shared key has (RFC 7518 section 6)."""


class DeviceKey(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``public``: of ES256 the point, ``x ‖ y``, 64 bytes; of RS256 the modulus, big-endian, 256 to 512 bytes.

    Made by :func:`read_jwk` alone, or read from a record that had one.
    """

    algorithm: str
    public: bytes

    @property
    def thumbprint(self) -> str:
        """The key's name, 43 characters (RFC 7638 section 3, with SHA-256)."""
        if self.algorithm == "ES256":
            x, y = self.public[:COORDINATE_BYTES], self.public[COORDINATE_BYTES:]
            text = f'{{"crv":"P-256","kty":"EC","x":"{to_base64url(x)}","y":"{to_base64url(y)}"}}'
        else:
            text = f'{{"e":"AQAB","kty":"RSA","n":"{to_base64url(self.public)}"}}'
        return to_base64url(sha256(text.encode()).digest())

    def verify(self, signature: bytes, signed: bytes) -> None:
        """Raises :class:`ProofRefused` unless this key has made the signature (RFC 7518 sections 3.3 and 3.4)."""
        try:
            if self.algorithm == "ES256":
                _verify_es256(self.public, signature, signed)
            else:
                numbers = RSAPublicNumbers(RSA_EXPONENT, int.from_bytes(self.public, "big"))
                numbers.public_key().verify(signature, signed, PKCS1v15(), SHA256())
        except (InvalidSignature, ValueError):
            raise ProofRefused(ProofReason.SIGNATURE) from None


def _verify_es256(public: bytes, signature: bytes, signed: bytes) -> None:
    if len(signature) != 2 * COORDINATE_BYTES:
        raise InvalidSignature
    r, s = (int.from_bytes(half, "big") for half in (signature[:COORDINATE_BYTES], signature[COORDINATE_BYTES:]))
    _point(public).public_key().verify(encode_dss_signature(r, s), signed, ECDSA(SHA256()))


def _point(public: bytes) -> EllipticCurvePublicNumbers:
    x, y = (int.from_bytes(half, "big") for half in (public[:COORDINATE_BYTES], public[COORDINATE_BYTES:]))
    return EllipticCurvePublicNumbers(x, y, SECP256R1())


def read_jwk(jwk: Mapping[str, Any], algorithm: str) -> DeviceKey:
    """The key of a JWK that is to verify ``algorithm``.

    Raises :class:`ProofRefused` for any other algorithm, type or curve, a point that is not on the curve, an RSA
    modulus of fewer than 2048 or more than 4096 bits, another exponent than 65537, and a private key.
    """
    if algorithm not in ALGORITHMS:
        raise ProofRefused(ProofReason.ALGORITHM)
    if not _SECRET_MEMBERS.isdisjoint(jwk) or jwk.get("alg", algorithm) != algorithm or jwk.get("use", "sig") != "sig":
        raise ProofRefused(ProofReason.KEY)
    try:
        public = _ec_point(jwk) if algorithm == "ES256" else _rsa_modulus(jwk)
    except (ValueError, TypeError, BinasciiError):
        raise ProofRefused(ProofReason.KEY) from None
    return DeviceKey(algorithm, public)


def _ec_point(jwk: Mapping[str, Any]) -> bytes:
    if jwk.get("kty") != "EC" or jwk.get("crv") != "P-256":
        raise ValueError
    x, y = from_base64url(jwk.get("x")), from_base64url(jwk.get("y"))
    if len(x) != COORDINATE_BYTES or len(y) != COORDINATE_BYTES:
        raise ValueError
    _point(x + y).public_key()  # refuses what is not on the curve
    return x + y


def _rsa_modulus(jwk: Mapping[str, Any]) -> bytes:
    if jwk.get("kty") != "RSA" or from_base64url(jwk.get("e")) != RSA_EXPONENT.to_bytes(3, "big"):
        raise ValueError
    modulus = from_base64url(jwk.get("n"))
    number = int.from_bytes(modulus, "big")
    # Without zeros in front (RFC 7518 section 2), so that a key has one thumbprint.
    if not modulus[:1].strip(b"\0") or not MIN_RSA_BITS <= number.bit_length() <= MAX_RSA_BITS:
        raise ValueError
    RSAPublicNumbers(RSA_EXPONENT, number).public_key()  # refuses what is no modulus
    return modulus


def to_base64url(raw: bytes) -> str:
    """Without padding (RFC 7515 section 2)."""
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def from_base64url(text: object) -> bytes:
    """The reverse; raises :class:`ValueError` for anything that :func:`to_base64url` does not write."""
    if not isinstance(text, str):
        raise ValueError("no text")
    # Characters that are none are skipped by the decoder, and bits that it drops may be anything.
    raw = urlsafe_b64decode(text.encode() + b"=" * (-len(text) % 4))
    if to_base64url(raw) != text:
        raise ValueError("not as it is written")
    return raw
