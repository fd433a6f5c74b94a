"""A real browser behind a balancer: headless Chromium resumes at servers that did not make its sessions."""

from __future__ import annotations

import base64
import hashlib
import html
import json
import os
import shutil
import socket
import subprocess
import time
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from coatcheck.tls.client_hello import MAX_HELLO_BYTES, ClientHello, read_client_hello
from coatcheck.tls.session_id import SessionIds
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.secret import parse_key

from .farm import HOST, KEY, PATIENCE_S, VERSIONS, Balancer, Server, Servers

IDS = SessionIds(KeyRing([parse_key(KEY, "key")]), "farm", "", os.urandom)
VISITS = 5
BROWSER_PATIENCE_S = 3 * PATIENCE_S
"""It starts a dozen processes."""
PAGE = """<!doctype html><body><script>
(async () => {
  const said = [];
  for (let visit = 0; visit < VISITS; visit++)
    said.push(await (await fetch("/" + visit, {cache: "no-store"})).json());
  document.body.textContent = JSON.stringify(said);
})().catch(wrong => document.body.textContent = JSON.stringify(String(wrong)));
</script>""".replace("VISITS", str(VISITS))


class Browsing:
    """One run of the browser: the page, then its visits, each on a connection of its own, at the servers in turn."""

    def __init__(self, servers: list[Server]) -> None:
        self._servers = servers
        self._overheard = -1
        self.connections: list[bool] = []
        """For each, whether it offered a session of the farm's."""
        self.balancer = Balancer([server.port for server in servers], self._arrives)

    def overhear(self, number: int) -> None:
        """Somebody who listens shows what this connection offers before it does, at the server that made it."""
        self._overheard = number

    def close(self) -> None:
        self.balancer.close()

    def _arrives(self, number: int, connection: socket.socket) -> None:
        for server in self._servers:
            server.settle()  # what the connection before has made is stored
        data, hello = whole_hello(connection)
        self.connections.append(any(IDS.read(offer) for offer in hello.offers))
        if number == self._overheard:
            maker = self._servers[(number - 1) % len(self._servers)]
            with socket.create_connection(("127.0.0.1", maker.port), PATIENCE_S) as listener:
                listener.sendall(data)
                assert listener.recv(65536)

    def run(self, certificates: Path, folder: Path) -> list[dict[str, Any]]:
        browser = shutil.which("chromium-headless-shell") or shutil.which("chromium")
        assert browser is not None, "chromium is missing: apt-get install chromium-headless-shell"
        command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--dump-dom"]
        command += [f"--user-data-dir={folder / 'profile'}", f"--host-resolver-rules=MAP {HOST} 127.0.0.1"]
        command += [f"--ignore-certificate-errors-spki-list={pin(certificates / 'server.pem')}"]
        # Time stands still for the page while it waits for the network: the budget is no bound on that.
        command += ["--virtual-time-budget=10000", f"https://{HOST}:{self.balancer.port}/page"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=BROWSER_PATIENCE_S, check=False)
        assert "[{" in done.stdout, done.stdout + done.stderr
        body = done.stdout.partition("<body>")[2].partition("</body>")[0]
        said: list[dict[str, Any]] = json.loads(html.unescape(body))
        return said


def whole_hello(connection: socket.socket) -> tuple[bytes, ClientHello]:
    until = time.monotonic() + PATIENCE_S
    while time.monotonic() < until:
        data = connection.recv(MAX_HELLO_BYTES, socket.MSG_PEEK)
        hello = read_client_hello(data)
        if isinstance(hello, ClientHello):
            return data, hello
        assert data, "the browser went away"
        time.sleep(0.002)
    raise AssertionError("there is no ClientHello")


def pin(path: Path) -> str:
    """How Chromium is told to trust a server's key."""
    key = x509.load_pem_x509_certificate(path.read_bytes()).public_key()
    digest = hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()
    return base64.b64encode(digest).decode()


MODES = pytest.mark.parametrize("mode", ["uvloop", "stand-in-threads"])


@MODES
@pytest.mark.parametrize("version", VERSIONS)
def test_it_resumes_at_the_other_server_with_every_visit(
    version: str, mode: str, certificates: Path, redis_url: str, servers: Servers, tmp_path: Path
) -> None:
    with closing(Browsing(servers(redis_url, mode, page=PAGE, newest=version))) as browsing:
        said = browsing.run(certificates, tmp_path)
    assert [visit["version"] for visit in said] == [f"TLSv{version}"] * VISITS
    assert [visit["server"] for visit in said] == ["web-2", "web-1", "web-2", "web-1", "web-2"]
    assert [visit["reused"] for visit in said] == [True] * VISITS
    assert browsing.connections == [False] + [True] * VISITS


@MODES
def test_as_the_second_taker_of_its_own_session_it_makes_a_full_handshake(
    mode: str, certificates: Path, redis_url: str, servers: Servers, tmp_path: Path
) -> None:
    with closing(Browsing(servers(redis_url, mode, page=PAGE, newest="1.3"))) as browsing:
        browsing.overhear(3)
        said = browsing.run(certificates, tmp_path)
    assert browsing.connections == [False] + [True] * VISITS, "it offered one each time"
    assert [visit["reused"] for visit in said] == [True, True, False, True, True]
