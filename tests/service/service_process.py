"""The session service in a process of its own, as an operator starts it, and callers in front of it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import httpx

from coatcheck.service.callers import credential
from coatcheck.service.client import SessionClient
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.secret import parse_key
from forked import CoatcheckProcess

KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"
RING = KeyRing([parse_key(KEY, "test")])
FARM = "shop"
CALLERS = """
[shop]
scopes = ["verify", "renew", "create", "update", "close", "list-user", "close-user", "events"]
[reader]
scopes = ["verify"]
[hasty]
scopes = ["verify"]
requests_per_minute = 60
[moved]
scopes = ["verify"]
generation = 2
[proxy]
scopes = ["forward-auth"]
audience = "https://shop.example"
claims = ["role", "seen", "raw"]
[site]
scopes = ["forward-auth"]
audience = "https://shop.example"
claims = ["role"]
login_url = "https://shop.example/login?from=proxy"
[legacy]
scopes = ["verify"]
certificate = "legacy.example"
"""


def credential_of(name: str, generation: int = 1) -> str:
    return credential(name, generation, RING, FARM)


def environment(**more: str) -> dict[str, str]:
    """Ours without settings of a farm, with its keys."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("COATCHECK_")}
    return {**clean, "COATCHECK_KEYS": KEY, **more}


class ServiceProcess:
    """``coatcheck service serve`` on a free port, in ``folder``."""

    def __init__(
        self, folder: Path, *arguments: str, store: str = "", callers: str = CALLERS, **variables: str
    ) -> None:
        self.folder = folder
        (folder / "callers.toml").write_text(callers)
        store = store or f"sqlite:///{folder / 'sessions.db'}"
        self.log = folder / f"log-{os.urandom(3).hex()}"
        command = ["service", "serve", "--listen", "127.0.0.1:0"]
        command += ["--callers", str(folder / "callers.toml"), "--name", FARM, "--session-server", store, *arguments]
        if "--tls-authority" not in arguments:
            (folder / "callers.toml").write_text(callers.replace('certificate = "legacy.example"', ""))
        with self.log.open("ab") as errors:
            self.process = CoatcheckProcess(*command, stderr=errors, env=environment(**variables), cwd=folder)
        line = self.process.stdout.readline()
        if " at http" not in line:
            self.process.wait(60)
            raise AssertionError(f"the service did not start: {line} {self.log.read_text()}")
        self.url = line.split()[-1]
        self.http = httpx.Client(base_url=self.url, timeout=90, headers=self.of("shop"), trust_env=False)

    def of(self, caller: str, generation: int = 1) -> dict[str, str]:
        return {"Authorization": f"Bearer {credential_of(caller, generation)}"}

    def client(self, caller: str = "shop") -> SessionClient:
        return SessionClient(self.url, credential_of(caller))

    def ask(self, path: str, caller: str = "shop", **body: Any) -> httpx.Response:
        return self.http.post(f"/v1/sessions{path}", json=body, headers=self.of(caller))

    def login(self, user: str = "ada", **data: Any) -> str:
        """The browser's cookie after a login."""
        made = self.ask("", user=user, data=data)
        assert made.status_code == 201, made.text
        cookie: str = made.json()["cookie"]
        return cookie

    def auth(self, cookie: str, caller: str = "proxy", path: str = "", **headers: str) -> httpx.Response:
        given = {**self.of(caller), "Cookie": cookie, **headers}
        return self.http.get(f"/v1/forward-auth{path}", headers=given)

    def end(self) -> int:
        self.http.close()
        self.process.terminate()
        try:
            status = self.process.wait(60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            status = self.process.wait(60)
        self.process.stdout.close()
        return status
