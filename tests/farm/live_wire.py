"""Clients of TLS that do what no polite one does: read late, ask ahead, stop half-way, change keys all the time."""

from __future__ import annotations

import http.client
import json
import select
import socket
import ssl
from pathlib import Path
from typing import Any

from coatcheck.takeover.rules.tls_records import APPLICATION_DATA, HANDSHAKE, RecordSplitter
from coatcheck.takeover.rules.traffic_keys import SUITES, Epoch, RecordReader, RecordWriter

from .farm_process import DEADLINE_S, Farm, eventually

Certificate = tuple[Path, Path]
_SMALL_BUFFER = 1 << 14
_KEY_UPDATE = 24


def address(farm: Farm) -> tuple[str, int]:
    host, _, port = str(farm.note()["address"]).rpartition(":")
    return host, int(port)


def connected(farm: Farm) -> socket.socket:
    """A connection on which nothing was said."""
    plain = socket.socket()
    # The kernel holds little of what is not read.
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    plain.settimeout(DEADLINE_S)
    plain.connect(address(farm))
    return plain


def half_shaken(farm: Farm) -> socket.socket:
    """A connection whose client has said hello and got an answer, and says no more."""
    outgoing = ssl.MemoryBIO()
    context = ssl.create_default_context()
    try:
        context.wrap_bio(ssl.MemoryBIO(), outgoing, server_hostname=address(farm)[0]).do_handshake()
    except ssl.SSLWantReadError:
        pass
    plain = connected(farm)
    plain.sendall(outgoing.read())
    assert plain.recv(1), "the answer"
    return plain


def request(method: str, path: str, body: bytes = b"", **headers: str) -> bytes:
    lines = [f"{method} {path} HTTP/1.1", "Host: farm", *(f"{name}: {value}" for name, value in headers.items())]
    if method != "GET" and "Transfer-Encoding" not in headers:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


class Wire:
    """One connection, of which each step is the test's."""

    def __init__(
        self,
        farm: Farm,
        certificate: Certificate,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        *,
        hold_handshake: bool = False,
    ) -> None:
        """``hold_handshake``: hello was said and is answered, and :meth:`shake_hands` is still to come."""
        context = ssl.create_default_context(cafile=str(certificate[0]))
        context.maximum_version = version
        plain = connected(farm)
        self.socket = context.wrap_socket(
            plain, server_hostname=address(farm)[0], do_handshake_on_connect=False, suppress_ragged_eofs=False
        )
        self._lines = self.socket.makefile("rb")
        if hold_handshake:
            self.socket.setblocking(False)
            try:
                self.socket.do_handshake()
            except ssl.SSLWantReadError:
                select.select([self.socket], [], [], DEADLINE_S)
        else:
            self.shake_hands()

    def shake_hands(self) -> None:
        self.socket.settimeout(DEADLINE_S)
        self.socket.do_handshake()

    def send(self, data: bytes) -> None:
        self.socket.sendall(data)

    def answer(self) -> tuple[int, http.client.HTTPMessage, bytes]:
        """Status, headers and body. Raises ``EOFError`` if the connection ends instead, with a goodbye."""
        line = self._lines.readline()
        if not line:
            raise EOFError("the connection ended")
        headers = http.client.parse_headers(self._lines)
        return int(line.split()[1]), headers, self._lines.read(int(headers["content-length"]))

    def see(self, path: str = "/hello") -> dict[str, Any]:
        """What the app says of a request for this path."""
        self.send(request("GET", path))
        status, _, body = self.answer()
        assert status == 200, body
        found: dict[str, Any] = json.loads(body)
        return found

    def says_goodbye(self) -> bool:
        """Wait for the end: whether it comes as ``close_notify``."""
        try:
            return self._lines.read(1) == b""
        except (ssl.SSLError, OSError):
            return False

    @property
    def port(self) -> int:
        found: int = self.socket.getsockname()[1]
        return found

    def close(self) -> None:
        self._lines.close()
        self.socket.close()


def wait_stalled(*wires: Wire) -> None:
    """Wait until the director's kernel takes no more of what these do not read."""
    pairs, seen = {(wire.socket.getpeername()[1], wire.port) for wire in wires}, [[0]] * 10

    def are_stalled() -> bool:
        seen.append(_unsent(pairs))
        return len(seen[-1]) == len(pairs) and all(seen[-1]) and all(one == seen[-1] for one in seen[-10:])

    try:
        eventually(are_stalled, "connections that take no more")
    except AssertionError as late:
        raise AssertionError(f"of {len(pairs)} connections there wait, in bytes: {seen[-3:]}") from late


def _unsent(pairs: set[tuple[int, int]]) -> list[int]:
    """Bytes that a kernel has for the clients of these connections (ports of the server and of the client).

    A port of a client alone names no connection: a closed one of another server may have had it a moment ago.
    """
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    ports = ((int(row[1].partition(":")[2], 16), int(row[2].partition(":")[2], 16)) for row in rows)
    return [int(row[4].partition(":")[0], 16) for row, pair in zip(rows, ports, strict=True) if pair in pairs]


class KeyChanger:
    """A client of TLS 1.3 with a record layer of its own behind OpenSSL's handshake: it can change its key at will."""

    def __init__(self, farm: Farm, certificate: Certificate, folder: Path) -> None:
        """``folder``: where the secrets of its handshake are written down."""
        log = folder / "client-secrets"
        log.unlink(missing_ok=True)
        context = ssl.create_default_context(cafile=str(certificate[0]))
        context.minimum_version = ssl.TLSVersion.TLSv1_3
        context.keylog_filename = str(log)
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        tls = context.wrap_bio(incoming, outgoing, server_hostname=address(farm)[0])
        self._plain = connected(farm)
        done = False
        while not done:
            try:
                tls.do_handshake()
                done = True
            except ssl.SSLWantReadError:
                pass
            self._plain.sendall(outgoing.read())
            if not done:
                incoming.write(self._plain.recv(1 << 16))
        told = dict(line.split()[::2] for line in log.read_text().splitlines() if not line.startswith("#"))
        cipher = tls.cipher()
        assert cipher is not None
        suite = SUITES[cipher[0]]
        self._writer = RecordWriter(suite, Epoch(0, 0, bytes.fromhex(told["CLIENT_TRAFFIC_SECRET_0"])), 0)
        self._reader = RecordReader(suite, Epoch(0, 0, bytes.fromhex(told["SERVER_TRAFFIC_SECRET_0"])), 0)
        self._splitter = RecordSplitter()
        self._records = self._splitter.feed(incoming.read())
        self.updates = 0
        """KeyUpdates of the web server's."""

    def send(self, data: bytes) -> None:
        self._plain.sendall(self._writer.seal(APPLICATION_DATA, data))

    def update_key(self, *, ask: bool) -> None:
        """``ask``: the web server is to change its key, too."""
        self._plain.sendall(self._writer.seal(HANDSHAKE, bytes((_KEY_UPDATE, 0, 0, 1, ask))))
        self._writer.update()

    def record(self) -> tuple[int, bytes]:
        """The next record of the web server's: its inner type, and its content."""
        while not self._records:
            data = self._plain.recv(1 << 16)
            assert data, "the connection ended"
            self._records = self._splitter.feed(data)
        kind, content = self._reader.open(self._records.pop(0))
        if kind == HANDSHAKE and content[0] == _KEY_UPDATE:
            self.updates += 1
            self._reader.update()
        return kind, content

    def answer(self) -> tuple[bytes, dict[str, Any]]:
        """The first line of a response of the app, and what it says."""
        said = b""
        while not said.endswith(b"}"):
            kind, content = self.record()
            assert kind in (APPLICATION_DATA, HANDSHAKE), (kind, content, said)
            said += content if kind == APPLICATION_DATA else b""
        head, _, body = said.partition(b"\r\n\r\n")
        return head.split(b"\r\n")[0], json.loads(body)

    def close(self) -> None:
        self._plain.close()
