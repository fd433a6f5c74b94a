"""Who a request is from, said in a signed header to the server behind a proxy (mission A12).

A JWS of compact form (RFC 7515) with the claims of a JWT (RFC 7519), signed by Ed25519 (RFC 8037). The keys are derived
from the farm's key ring: every process signs alike, whoever verifies needs only what ``/v1/jwks`` publishes, and what
he has forges nothing.
"""

from __future__ import annotations

from base64 import urlsafe_b64encode
from collections.abc import Mapping
from hashlib import sha256
from typing import Any, Final

import jwt
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from coatcheck.errors import CoatcheckError
from coatcheck.tokens.keyring import KeyRing

ALGORITHM: Final = "EdDSA"
TYPE: Final = "coatcheck-session+jwt"
LIFE_S: Final = 30
"""Long enough for the way from the proxy to the server behind it, and clocks that disagree a little."""
MAX_CHARS: Final = 6_000
"""What common servers take in one header, with room for others."""


class AssertionTooLarge(CoatcheckError):
    """The claims do not fit into a header."""


class Signer:
    """Makes signed headers. ``farm``: who says it (``iss``)."""

    def __init__(self, ring: KeyRing, farm: str) -> None:
        self._farm = farm
        self.use(ring)

    def use(self, ring: KeyRing) -> None:
        """Sign with what this ring seals with, from now on."""
        secrets, primary = ring.derived(f"session assertions\x00{self._farm}")
        keys = [Ed25519PrivateKey.from_private_bytes(secret) for secret in secrets]
        self._key = keys[primary]
        self.jwks = [_jwk(key) for key in keys]
        """The public keys, as RFC 7517 and RFC 8037 write them: of all keys of the ring, so that the one that signs
        next is known before it does."""
        self._headers = {"kid": self.jwks[primary]["kid"], "typ": TYPE}

    def sign(self, audience: str, user: str, session: str, claims: Mapping[str, Any], now_s: int) -> str:
        """For this audience alone, and for :data:`LIFE_S` seconds. ``claims``: JSON. Raises
        :class:`AssertionTooLarge`."""
        payload = {
            "iss": f"coatcheck:{self._farm}",
            "aud": audience,
            "sub": user,
            "sid": session,
            "iat": now_s,
            "exp": now_s + LIFE_S,
            "claims": dict(claims),
        }
        text = jwt.encode(payload, self._key, algorithm=ALGORITHM, headers=self._headers)
        if len(text) > MAX_CHARS:
            raise AssertionTooLarge(f"a signed header of {len(text)} characters; at most {MAX_CHARS}")
        return text


def _jwk(key: Ed25519PrivateKey) -> dict[str, str]:
    raw = key.public_key().public_bytes_raw()
    x = urlsafe_b64encode(raw).rstrip(b"=").decode()
    return {"kty": "OKP", "crv": "Ed25519", "alg": ALGORITHM, "use": "sig", "kid": sha256(raw).hexdigest()[:16], "x": x}
