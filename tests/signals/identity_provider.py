"""An identity provider of the tests: a real HTTP server with a JWK set, and tokens that are signed by hand.

Nothing here uses the library that verifies: else both could be wrong alike.
"""

from __future__ import annotations

import hmac
import json
import os
import threading
import time
from base64 import urlsafe_b64encode
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

LOGOUT = "http://schemas.openid.net/event/backchannel-logout"
REVOKED = "https://schemas.openid.net/secevent/caep/event-type/session-revoked"
AUDIENCE = "shop-client"


def b64(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


def number(value: int) -> str:
    return b64(value.to_bytes((value.bit_length() + 7) // 8))


class Key:
    """A private key and its JWK; ``algorithm``: RS256, ES256 or EdDSA."""

    def __init__(self, algorithm: str, kid: str) -> None:
        self.algorithm, self.kid = algorithm, kid
        self.private: Any
        members: dict[str, str]
        if algorithm == "RS256":
            self.private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
            public = self.private.public_key().public_numbers()
            members = {"kty": "RSA", "n": number(public.n), "e": number(public.e)}
        elif algorithm == "ES256":
            self.private = ec.generate_private_key(ec.SECP256R1())
            at = self.private.public_key().public_numbers()
            members = {"kty": "EC", "crv": "P-256", "x": b64(at.x.to_bytes(32)), "y": b64(at.y.to_bytes(32))}
        else:
            self.private = ed25519.Ed25519PrivateKey.generate()
            members = {"kty": "OKP", "crv": "Ed25519", "x": b64(self.private.public_key().public_bytes_raw())}
        self.jwk = {**members, "kid": kid, "use": "sig", "alg": algorithm}

    def sign(self, text: bytes) -> bytes:
        """RFC 7518, sections 3.3 and 3.4; RFC 8037, section 3.1."""
        if self.algorithm == "RS256":
            return bytes(self.private.sign(text, padding.PKCS1v15(), hashes.SHA256()))
        if self.algorithm == "ES256":
            r, s = decode_dss_signature(self.private.sign(text, ec.ECDSA(hashes.SHA256())))
            return r.to_bytes(32) + s.to_bytes(32)
        return bytes(self.private.sign(text))

    def public_pem(self) -> bytes:
        pem = self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return bytes(pem)


def compact(header: dict[str, Any], claims: Any, key: Key | None, secret: bytes = b"") -> str:
    """A JWS of compact form (RFC 7515); without a key, an HMAC with ``secret``, or no signature."""
    body = f"{b64(json.dumps(header).encode())}.{b64(json.dumps(claims).encode())}"
    signature = b""
    if key is not None:
        signature = key.sign(body.encode())
    elif secret:
        signature = hmac.digest(secret, body.encode(), sha256)
    return f"{body}.{b64(signature)}"


class IdentityProvider:
    """``published``: its JWK set, now. ``status``, ``delay_s``, ``raw``: how it misbehaves."""

    def __init__(self, algorithm: str = "RS256") -> None:
        self.key = Key(algorithm, "first")
        self.published = [self.key.jwk]
        self.fetches = 0
        self.status, self.delay_s = 200, 0.0
        self.raw: bytes | None = None
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                provider.fetches += 1
                time.sleep(provider.delay_s)
                body = provider.raw or json.dumps({"keys": provider.published}).encode()
                self.send_response(provider.status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                """Not on the terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.issuer = f"http://127.0.0.1:{self._server.server_port}/realms/shop"
        self.keys_url = f"{self.issuer}/certs"

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def rotate(self, kid: str) -> None:
        """Sign with another key from now on; only that one is published."""
        self.key = Key(self.key.algorithm, kid)
        self.published = [self.key.jwk]

    def settings(self, name: str = "idp", **more: str) -> str:
        """Its table in the file of signals."""
        values = {"issuer": self.issuer, "audience": AUDIENCE, "keys": self.keys_url, **more}
        lines = [f'{key} = "{value}"' for key, value in values.items()]
        return "\n".join([f"[providers.{name}]", *lines, f'algorithms = ["{self.key.algorithm}"]', ""])

    def id_token(self, sid: str | None = None, sub: str | None = None) -> dict[str, Any]:
        """The claims that an app has verified at the login."""
        now = int(time.time())
        claims = {"iss": self.issuer, "aud": AUDIENCE, "exp": now + 300, "iat": now, "sid": sid, "sub": sub}
        return {name: value for name, value in claims.items() if value is not None}

    def logout_claims(self, **changed: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": AUDIENCE, "iat": now, "exp": now + 120, "jti": os.urandom(8).hex(),
            "events": {LOGOUT: {}},
        }  # fmt: skip
        return {name: value for name, value in (claims | changed).items() if value is not None}

    def event_claims(self, subject: Any, **changed: Any) -> dict[str, Any]:
        now = int(time.time())
        claims = {
            "iss": self.issuer, "aud": AUDIENCE, "iat": now, "jti": os.urandom(8).hex(), "sub_id": subject,
            "events": {REVOKED: {"event_timestamp": now, "initiating_entity": "admin"}},
        }  # fmt: skip
        return {name: value for name, value in (claims | changed).items() if value is not None}

    def sign(self, claims: Any, typ: str | None = "logout+jwt", **header: Any) -> str:
        whole = {"alg": self.key.algorithm, "kid": self.key.kid, "typ": typ} | header
        return compact({name: value for name, value in whole.items() if value is not None}, claims, self.key)

    def logout_token(self, **changed: Any) -> str:
        return self.sign(self.logout_claims(**changed))

    def event_token(self, subject: Any, **changed: Any) -> str:
        return self.sign(self.event_claims(subject, **changed), "secevent+jwt")
