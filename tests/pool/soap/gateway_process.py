"""A gateway in a process of its own, and upstreams that do as a test says."""

from __future__ import annotations

import contextlib
import http.server
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
from lxml import etree

from coatcheck.soap_provider import SERVICE_NS
from forked import CoatcheckProcess

from .wire import MEDIA_TYPE, SOAP, Reply, envelope, read

BEARER = "a-bearer-token-for-the-tests"
PASSWORD = "secret"
LOGIN = f"{{{SERVICE_NS}}}WhoAmI"
LOGOUT = f"{{{SERVICE_NS}}}Logout"


class GatewayProcess:
    """``coatcheck pool soap-gateway`` on a free port, for the user SADMIN."""

    def __init__(self, folder: Path, upstream: str, *arguments: str, password: str = PASSWORD) -> None:
        folder.mkdir(exist_ok=True)
        token_file, password_file = folder / "token", folder / "password"
        for file, text in ((token_file, BEARER), (password_file, password)):
            file.write_text(f"{text}\n")
            file.chmod(0o600)
        self.log = folder / "log"
        command = ["pool", "soap-gateway", "--listen", "127.0.0.1:0"]
        command += ["--token-file", str(token_file), "--password-file", str(password_file), "--user", "SADMIN"]
        command += ["--upstream", upstream, "--login-operation", LOGIN, *arguments]
        with self.log.open("ab") as errors:
            self.process = CoatcheckProcess(*command, stderr=errors)
        line = self.process.stdout.readline()
        if "SOAP gateway at" not in line:
            self.process.wait(60)
            raise AssertionError(f"the gateway did not start: {line} {self.log.read_text()}")
        self.url = line.split()[-1]
        self.http = httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {BEARER}"}, timeout=60)

    def post(self, body: str | bytes, content_type: str, path: str = "/", **headers: str) -> httpx.Response:
        content = body.encode() if isinstance(body, str) else body
        return self.http.post(path, content=content, headers={"Content-Type": content_type, **headers})

    def call(
        self, operation: str = "WhoAmI", arguments: dict[str, str] | None = None, version: str = SOAP, **headers: str
    ) -> Reply:
        """As a client that knows nothing of sessions; ``headers`` are session headers all the same."""
        return read(self.post(envelope(operation, arguments, version, **headers), MEDIA_TYPE[version]))

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


@dataclass
class Seen:
    """A request as an upstream got it."""

    operation: str
    token: str | None
    headers: dict[str, str]
    body: bytes


class OddUpstream:
    """A SOAP service that answers what a test says. Logins work: they get the token ``T1``, ``T2``, ..."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.seen: list[Seen] = []
        self.logins = 0
        self.behave: Callable[[http.server.BaseHTTPRequestHandler, Seen], None] = lambda handler, seen: None
        self._open: set[socket.socket] = set()
        upstream = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                upstream._open.add(self.connection)

            def finish(self) -> None:
                upstream._open.discard(self.connection)
                super().finish()

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                upstream._answer(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self._server.server_address[1]}/soap"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()

    def _answer(self, handler: http.server.BaseHTTPRequestHandler, body: bytes) -> None:
        root = etree.fromstring(body)
        token = next((each.text for each in root.iter() if etree.QName(each).localname == "SessionToken"), None)
        operation = etree.QName(root[-1][0]).localname
        if operation == "WhoAmI":
            self.logins += 1
            reply(handler, envelope("WhoAmIResponse", SessionToken=f"T{self.logins}", SessionType="Stateless"))
            return
        seen = Seen(operation, token, {name.lower(): value for name, value in handler.headers.items()}, body)
        self.seen.append(seen)
        self.behave(handler, seen)

    def end(self) -> None:
        self._server.shutdown()
        self._thread.join()
        for each in list(self._open):
            with contextlib.suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        self._server.server_close()


def reply(
    handler: http.server.BaseHTTPRequestHandler,
    body: str | bytes,
    status: int = 200,
    content_type: str = MEDIA_TYPE[SOAP],
    **headers: str,
) -> None:
    """Answer a request."""
    content = body.encode() if isinstance(body, str) else body
    handler.send_response(status)
    for name, value in {"Content-Type": content_type, "Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.end_headers()
    handler.wfile.write(content)


def fault(reason: str, token: str | None = None) -> str:
    """A fault of SOAP 1.1 with a reason, perhaps with a fresh token."""
    body = f"<e:Fault><faultcode>e:Client</faultcode><faultstring>no</faultstring><detail><Reason>{reason}</Reason>"
    made = envelope("X", SessionToken=token)
    return made.replace(f'<X xmlns="{SERVICE_NS}"></X>', f"{body}</detail></e:Fault>")
