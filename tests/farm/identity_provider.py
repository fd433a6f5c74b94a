"""An OAuth identity provider as small as a test needs: it knows who asks, and gives each code out once."""

from __future__ import annotations

import base64
import hashlib
import http.server
import json
import secrets
import threading
from typing import Any
from urllib.parse import parse_qs, urlencode, urlsplit

USER = "ada"


class IdentityProvider:
    """Everybody who comes to ``/authorize`` is ``ada`` and agrees; PKCE (RFC 7636) is demanded."""

    def __init__(self) -> None:
        provider = self
        self.challenges: dict[str, str] = {}
        """Of each code that was given out and not used."""

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                asked = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
                code = secrets.token_urlsafe()
                provider.challenges[code] = asked["code_challenge"]
                back = urlencode({"code": code, "state": asked["state"]})
                self.send_response(302)
                self.send_header("Location", f"{asked['redirect_uri']}?{back}")
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"])).decode()
                asked = {name: values[0] for name, values in parse_qs(body).items()}
                challenge = provider.challenges.pop(asked["code"], None)
                digest = hashlib.sha256(asked["code_verifier"].encode()).digest()
                if challenge == base64.urlsafe_b64encode(digest).rstrip(b"=").decode():
                    self._say(200, {"access_token": "for-tests-only", "token_type": "Bearer", "user": USER})
                else:
                    self._say(400, {"error": "invalid_grant"})

            def _say(self, status: int, words: dict[str, Any]) -> None:
                content = json.dumps(words).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.base = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> IdentityProvider:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
