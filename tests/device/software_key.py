"""A browser's key, and what it signs: an honest browser, and one that lies in a chosen way."""

from __future__ import annotations

import hmac
import json
from hashlib import sha256
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa, utils
from cryptography.hazmat.primitives.hashes import SHA256, SHA384

from coatcheck.device.keys import to_base64url


class SoftwareKey:
    """ES256, unless another curve or RSA is asked for."""

    def __init__(self, curve: ec.EllipticCurve | None = None, rsa_bits: int = 0, exponent: int = 65537) -> None:
        self._ec = None if rsa_bits else ec.generate_private_key(curve or ec.SECP256R1())
        self._rsa = rsa.generate_private_key(exponent, rsa_bits) if rsa_bits else None
        self.algorithm = "RS256" if rsa_bits else "ES256"

    @property
    def jwk(self) -> dict[str, Any]:
        if self._rsa is not None:
            public = self._rsa.public_key().public_numbers()
            return {"kty": "RSA", "n": number(public.n), "e": number(public.e)}
        assert self._ec is not None
        point = self._ec.public_key().public_numbers()
        size = (self._ec.key_size + 7) // 8
        name = {256: "P-256", 384: "P-384", 521: "P-521"}[self._ec.key_size]
        return {"kty": "EC", "crv": name, "x": number(point.x, size), "y": number(point.y, size)}

    def sign(self, signed: bytes) -> bytes:
        if self._rsa is not None:
            return self._rsa.sign(signed, padding.PKCS1v15(), SHA256())
        assert self._ec is not None
        size = (self._ec.key_size + 7) // 8
        digest = SHA256() if size == 32 else SHA384()
        r, s = utils.decode_dss_signature(self._ec.sign(signed, ec.ECDSA(digest)))
        return r.to_bytes(size, "big") + s.to_bytes(size, "big")

    def registration(self, challenge: str, **more: Any) -> str:
        header = {"alg": self.algorithm, "jwk": self.jwk, "typ": "dbsc+jwt", **more.pop("header", {})}
        return self.proof(header, {"jti": challenge, **more})

    def refresh(self, challenge: str, **more: Any) -> str:
        header = {"alg": self.algorithm, "typ": "dbsc+jwt", **more.pop("header", {})}
        return self.proof(header, {"jti": challenge, **more})

    def proof(self, header: dict[str, Any], payload: dict[str, Any]) -> str:
        signed = f"{encoded(header)}.{encoded(payload)}"
        return f"{signed}.{to_base64url(self.sign(signed.encode()))}"


def number(value: int, size: int = 0) -> str:
    return to_base64url(value.to_bytes(size or (value.bit_length() + 7) // 8, "big"))


def encoded(said: Any) -> str:
    return to_base64url(json.dumps(said).encode())


def unsigned(header: dict[str, Any], payload: dict[str, Any], secret: bytes | None = None) -> str:
    """``alg: none``, or "signed" with a secret that everybody knows."""
    signed = f"{encoded(header)}.{encoded(payload)}"
    return f"{signed}.{'' if secret is None else to_base64url(hmac.digest(secret, signed.encode(), sha256))}"
