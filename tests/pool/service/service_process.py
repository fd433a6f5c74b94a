"""The pool's HTTP service in a process of its own, as an operator starts it, and a caller in another language."""

from __future__ import annotations

import ssl
import subprocess
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from forked import CoatcheckProcess

BEARER = "a-bearer-token-for-the-tests"
KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"
START_TIMEOUT_S = 30


class ServiceProcess:
    """``coatcheck pool serve`` on a free port. ``folder`` has its files: token, key, log."""

    def __init__(self, folder: Path, *arguments: str, trust: Path | None = None) -> None:
        self.folder = folder
        self.token_file = folder / "token"
        self.token_file.write_text(f"# callers\n{BEARER}\nanother-bearer-token-that-is-accepted\n")
        self.key_file = folder / "key"
        self.key_file.write_text(KEY)
        for secret in (self.token_file, self.key_file):
            secret.chmod(0o600)
        self.log = folder / "log"
        command = ["pool", "serve", "--listen", "127.0.0.1:0", "--token-file", str(self.token_file), *arguments]
        with self.log.open("ab") as errors:
            self.process = CoatcheckProcess(*command, stderr=errors)
        line = self.process.stdout.readline()
        if " at http" not in line:
            self.process.wait(START_TIMEOUT_S)
            raise AssertionError(f"the service did not start: {line} {self.log.read_text()}")
        self.url = line.split()[-1]
        self.http = httpx.Client(
            base_url=self.url,
            headers={"Authorization": f"Bearer {BEARER}"},
            timeout=90,
            verify=True if trust is None else ssl.create_default_context(cafile=trust),
        )

    def checkout(self, user: str = "ANN", **asked: Any) -> httpx.Response:
        return self.http.post(f"/v1/users/{quote(user, safe='')}/checkout", json=asked)

    def end_lease(self, lease: str, how: str = "checkin", **asked: Any) -> httpx.Response:
        return self.http.post(f"/v1/leases/{lease}/{how}", json=asked)

    def signed_in(self, token: str = "T1", user: str = "ANN") -> dict[str, Any]:
        """Check out, log in as the caller, and have the lease."""
        login = self.checkout(user)
        assert login.status_code == 201, login.text
        lease: dict[str, Any] = self.end_lease(login.json()["lease"], "complete", token=token).json()
        return lease

    def stats(self, user: str = "ANN") -> dict[str, Any]:
        found: dict[str, Any] = self.http.get("/v1/stats").json()["users"][user]
        return found

    def end(self) -> int:
        self.http.close()
        self.process.terminate()
        try:
            status = self.process.wait(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait(60)
        self.process.stdout.close()
        return status
