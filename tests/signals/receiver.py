"""Somebody who is told of logouts: a real HTTP server that may be slow, broken or away, and verifies by hand."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from base64 import urlsafe_b64decode
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple
from urllib.parse import parse_qs

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

DEADLINE_S = 60.0


def raw_of(text: str) -> bytes:
    return urlsafe_b64decode(text + "=" * (-len(text) % 4))


class Got(NamedTuple):
    """One request. ``token`` as it was sent."""

    token: str
    kind: str
    authorization: str
    at: float

    @property
    def header(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(raw_of(self.token.split(".")[0]))
        return found

    @property
    def claims(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(raw_of(self.token.split(".")[1]))
        return found

    def verified(self, jwks: dict[str, Any]) -> dict[str, Any]:
        """The claims, after the signature was checked with the key that the header names."""
        body, _, signature = self.token.rpartition(".")
        [key] = [each for each in jwks["keys"] if each["kid"] == self.header["kid"]]
        assert key["alg"] == self.header["alg"]
        raw = raw_of(signature)
        if key["kty"] == "OKP":
            ed25519.Ed25519PublicKey.from_public_bytes(raw_of(key["x"])).verify(raw, body.encode())
        else:
            x, y = (int.from_bytes(raw_of(key[name])) for name in "xy")
            public = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
            der = encode_dss_signature(int.from_bytes(raw[:32]), int.from_bytes(raw[32:]))
            public.verify(der, body.encode(), ec.ECDSA(hashes.SHA256()))
        return self.claims


class Receiver:
    """``statuses``: what the next requests are answered, then ``status``; ``delay_s`` before each answer."""

    def __init__(self, port: int = 0) -> None:
        self.got: list[Got] = []
        self.status, self.delay_s = 202, 0.0
        self.statuses: list[int] = []
        self.filler = b""
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                kind = self.headers["Content-Type"]
                token = parse_qs(body)["logout_token"][0] if "urlencoded" in kind else body
                got = Got(token, kind, self.headers.get("Authorization", ""), time.monotonic())
                receiver.got.append(got)
                status = receiver.statuses.pop(0) if receiver.statuses else receiver.status
                time.sleep(receiver.delay_s)
                self.send_response(status)
                self.send_header("Location", f"http://127.0.0.1:{receiver.port}/elsewhere")
                self.end_headers()
                with contextlib.suppress(ConnectionError):  # who asked need not read it all
                    self.wfile.write(receiver.filler)

            def log_message(self, *_: Any) -> None:
                """Not on the terminal."""

        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
        self._server.daemon_threads = True
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        self.port = self._server.server_port
        self.url = f"http://127.0.0.1:{self.port}/told"

    def settings(self, issuer: str, form: str, **more: str) -> str:
        values = {"url": self.url, "audience": "receiver", "form": form, **more}
        lines = [f'{key} = "{value}"' for key, value in values.items()]
        return "\n".join(["[transmitter]", f'issuer = "{issuer}"', "[receivers.other]", *lines, ""])

    def wait(self, count: int) -> list[Got]:
        deadline = time.monotonic() + DEADLINE_S
        while len(self.got) < count:
            assert time.monotonic() < deadline, f"{len(self.got)} of {count} came"
            time.sleep(0.02)
        assert len(self.got) == count
        return self.got

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
