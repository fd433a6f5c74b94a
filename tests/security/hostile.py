"""Hostile bytes where strangers' bytes are read: cookies, tokens, RESP requests, HTTP heads, messages from site to
site, and requests to the session service.

    PYTHONPATH=tests python -m security.hostile --count 1000000 [--kind KIND] [--seed N]

Each input is random, or a genuine one that was damaged. None may raise, hang, make the process grow or open
anything; a failure prints the seed and the input.

A million of each, once, with seed 11 (Python 3.11, CPU time):

    cookie: 73,699 understood, 14.4 us each, slowest 0.4 ms, grew 0 KiB
    token: 3,008 understood, 5.0 us each, slowest 0.5 ms, grew 0 KiB
    resp: 267,055 understood, 15.4 us each, slowest 1.3 ms, grew 256 KiB
    http: 161,032 understood, 7.1 us each, slowest 0.4 ms, grew 0 KiB

And of these on a busy machine of half that speed (whole requests, of which the service answers each):

    ticket: 68,676 understood, 285 us each, slowest 95 ms, grew 4,528 KiB
    service-header: 284,716 understood, 344 us each, slowest 64 ms, grew 708 KiB
    service-body: 109,278 understood, 393 us each, slowest 60 ms, grew 1,504 KiB
"""

from __future__ import annotations

import argparse
import asyncio
import ipaddress
import os
import time
from collections.abc import Callable
from typing import Any

import in_hand
from coatcheck.director.rules.admission import Admission, AdmissionPolicy, is_within
from coatcheck.director.rules.forwarding import ClientAddress
from coatcheck.director.rules.http_body import ChunkedReader
from coatcheck.director.rules.http_framing import BadHead
from coatcheck.director.rules.request_head import RequestReader
from coatcheck.director.rules.response_head import parse_response_head
from coatcheck.drivers.sessions import Sessions
from coatcheck.events import Event
from coatcheck.session_server.connection import MAX_UNSENT_BYTES, SessionConnection
from coatcheck.session_server.state import SessionState
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.mapping import Session
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.keyring import KeyRing
from coatcheck.web.asgi import SessionMiddleware
from security.hostile_input import Report, run
from security.hostile_service_body import service_body
from security.hostile_service_head import service_header
from security.hostile_ticket import ticket

# -- what reads them ---------------------------------------------------------------------------------------


class Farm:
    """A middleware with some genuine sessions behind it, and an app that notes what it is given."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.events = 0
        stores = [MemoryStore(f"session-{n}", time.monotonic) for n in (1, 2)]
        ring = KeyRing([os.urandom(32)])
        self.sessions = Sessions(farm="farm", server_name="web", stores=stores, ring=ring, observer=self._count)
        self.middleware = SessionMiddleware(self._app, self.sessions, CookiePolicy(), route_tag="web")
        self.opened = False
        self.tokens: list[bytes] = []

    async def begin(self) -> None:
        await self.sessions.start()
        for number in range(4):
            session = Session()
            session["n"] = number
            if number % 2:
                session.regenerate("ada")
            issue = (await in_hand.saved(self.sessions, session)).issue
            assert issue is not None
            self.tokens.append(self.sessions.seal(issue))

    def request(self, header: bytes) -> bool:
        """One request; whatever the header says, it is answered and opens nothing that it does not prove."""
        self.opened = False
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "GET", "headers": [(b"cookie", header)]}
        self.loop.run_until_complete(self.middleware(scope, _receive, send))
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
        assert sent[0]["status"] == 200
        if self.opened:
            assert any(token in header for token in self.tokens), "a session was opened without its token"
        return self.opened

    def unseal(self, text: bytes) -> bool:
        opened = [in_hand.unsealed(self.sessions, text, login) for login in (False, True)]
        assert opened == [None, None] or text in self.tokens
        assert opened.count(None) >= 1, "no token serves both purposes"
        return opened != [None, None]

    def _count(self, event: Event) -> None:
        self.events += 1
        assert len(event.detail) < 200

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.opened = not scope["session"].is_new
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def _receive() -> Any:
    return {"type": "http.request", "body": b""}


def _with_farm(kind: str, count: int, seed: int) -> Report:
    with asyncio.Runner() as runner:
        farm = Farm(runner.get_loop())
        runner.run(farm.begin())
        try:
            if kind == "token":
                return run(kind, farm.tokens, farm.unseal, count, seed)
            anonymous, login = farm.tokens[0], farm.tokens[1]
            genuine = [
                b"__Host-coatcheck=" + anonymous,
                b"__Host-coatcheck-login=" + login,
                b"a=b; __Host-coatcheck=" + anonymous + b"; __Host-coatcheck-login=" + login + b"; c=d",
                b"__Host-coatcheck=" + login + b"; __Host-coatcheck-login=" + anonymous,
                b"__Host-coatcheck-route=web; __Host-coatcheck=" + anonymous,
            ]
            report = run(kind, genuine, farm.request, count, seed)
            for token in farm.tokens:
                assert in_hand.unsealed(farm.sessions, token, False) or in_hand.unsealed(farm.sessions, token, True)
            return report
        finally:
            runner.run(farm.sessions.aclose())


def cookie(count: int, seed: int) -> Report:
    """Cookie headers through the whole middleware."""
    return _with_farm("cookie", count, seed)


def token(count: int, seed: int) -> Report:
    """Texts to unseal, under both purposes."""
    return _with_farm("token", count, seed)


class Wire:
    """A transport that keeps nothing."""

    def __init__(self) -> None:
        self.written = 0
        self.closed = False

    def write(self, data: bytes) -> None:
        self.written += len(data)

    def close(self) -> None:
        self.closed = True

    abort = close

    def is_closing(self) -> bool:
        return self.closed

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, **limits: int) -> None:
        pass

    def pause_reading(self) -> None:
        pass

    resume_reading = pause_reading


def _request(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words)


def resp(count: int, seed: int) -> Report:
    """RESP requests of strangers and of members, through the session server's own connections."""
    key, entry = bytes(range(16)), b"\x01\x00" + b"\x00\x00\x00\x01" + b"server.." + b"\x00\x00\x00\x01" + b"\x00body"
    genuine = [
        _request(b"CC.GET", key),
        _request(b"CC.PUT", key, b"", b"60000", entry),
        _request(b"CC.PUT", key, entry[2:18], b"60000", entry[:17] + b"\x02" + entry[18:]),
        _request(b"HELLO", b"3", b"AUTH", b"default", b"secret"),
        _request(b"AUTH", b"secret"),
        _request(b"SCAN", b"0", b"COUNT", b"100"),
        _request(b"SUBSCRIBE", b"abc") + _request(b"PUBLISH", b"abc", b"message") + _request(b"UNSUBSCRIBE", b"abc"),
        _request(b"PING") * 3 + b"PING\r\nINFO\r\n",
        _request(b"CLIENT", b"SETNAME", b"x") + _request(b"COMMAND") + _request(b"PTTL", key) + _request(b"GET", key),
    ]
    states = [SessionState("s", password, time.monotonic, lambda: 0.0, 1024 * 1024) for password in ("", "secret")]

    def connect(at: int) -> tuple[SessionConnection, Wire]:
        connection, wire = SessionConnection(states[at], time.monotonic, lambda client: True), Wire()
        connection.connection_made(wire)  # type: ignore[arg-type]
        return connection, wire

    connections = [connect(0), connect(1)]

    def check(raw: bytes) -> bool:
        answered = False
        for at in (0, 1):
            connection, wire = connections[at]
            half, before = len(raw) // 2, wire.written
            for piece in (raw[:half], raw[half:]):
                connection.data_received(piece)
            assert wire.written - before < MAX_UNSENT_BYTES
            answered = answered or (wire.written > before and not wire.closed)
            # Half a request that waits for more would swallow the next input: each third one starts anew.
            if wire.closed or len(raw) % 3 == 0:
                connection.connection_lost(None)
                connections[at] = connect(at)
        assert len(states[0].clients) == len(states[1].clients) == 1
        assert states[0].table.held_bytes <= 1024 * 1024
        return answered

    return run("resp", genuine, check, count, seed)


def http(count: int, seed: int) -> Report:
    """Heads of requests and responses, and chunked bodies, through the director's readers."""
    host = b"Host: farm.example\r\nUser-Agent: x"
    genuine = [
        b"GET / HTTP/1.1\r\n" + host,
        b"POST /cart?x=1 HTTP/1.1\r\n" + host + b"\r\nContent-Length: 5\r\nCookie: coatcheck-route=web-1; a=b",
        b"GET http://farm.example/x HTTP/1.1\r\n" + host + b"\r\nConnection: keep-alive, x-a\r\nX-A: 1",
        b"POST / HTTP/1.1\r\n" + host + b"\r\nTransfer-Encoding: chunked\r\nExpect: 100-continue",
        b"GET /ws HTTP/1.1\r\n" + host + b"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nX-Forwarded-For: ::1",
        b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\nContent-Type: text/plain\r\nSet-Cookie: a=b",
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade",
        b"HTTP/1.0 304 Not Modified\r\nConnection: close\r\nKeep-Alive: 5\r\nTransfer-Encoding: chunked",
        b"5\r\nhello\r\n3;x=y\r\nabc\r\n0\r\nTrailer: x\r\n\r\nGET / HTTP/1.1\r\n",
    ]
    reader = RequestReader(100)

    def check(raw: bytes) -> bool:
        any_understood = False
        for read in (reader.read, lambda head: parse_response_head(head, 100), _chunks):
            try:
                understood = read(raw)
            except BadHead as refused:
                assert 400 <= refused.status < 600
                continue
            any_understood = any_understood or bool(understood)
        return any_understood

    return run("http", genuine, check, count, seed)


def _chunks(raw: bytes) -> bytes:
    body = ChunkedReader()
    half = len(raw) // 2
    payload = b"".join([*body.feed(raw[:half]), *(() if body.done else body.feed(raw[half:]))])
    assert len(payload) <= len(raw)
    return payload


def forwarded(count: int, seed: int) -> Report:
    """X-Forwarded-For and its kin, as a trusted proxy passes them on from anybody."""
    trusted = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))
    genuine = [
        b"X-Forwarded-For: 192.0.2.1, 10.0.0.1\r\nX-Forwarded-Proto: https",
        b"X-Forwarded-For: [2001:db8::1]:443, fd00::1\r\nForwarded: for=192.0.2.1",
        b"x-forwarded-for: 10.0.0.1\r\nX-Forwarded-For: 198.51.100.7:80\r\nX-Real-IP: 192.0.2.1",
        b"X-Forwarded-For: ::ffff:192.0.2.1\r\nX-Forwarded-Host: shop.test",
    ]
    reader = RequestReader(100)
    proxy = ClientAddress("10.0.0.9", tls=False, trusted=trusted)
    admission = Admission(AdmissionPolicy(100, 10, 10, 10))

    def check(raw: bytes) -> bool:
        try:
            fields = reader.read(b"GET / HTTP/1.1\r\nHost: a\r\n" + raw).fields
        except BadHead:
            return False
        client = proxy.client_behind(fields)
        assert client is None or not is_within(client, trusted), "a trusted proxy is no client"
        assert proxy.block(fields).count(b"\r\n") == 5
        guest = admission.enter(client, is_connection=False)
        guest.leave()
        assert (admission.connections, admission.addresses) == (0, 0)
        return client is not None

    return run("forwarded", genuine, check, count, seed)


KINDS: dict[str, Callable[[int, int], Report]] = {
    "cookie": cookie,
    "token": token,
    "resp": resp,
    "http": http,
    "forwarded": forwarded,
    "ticket": ticket,
    "service-header": service_header,
    "service-body": service_body,
}


def main() -> None:
    parser = argparse.ArgumentParser(description="Hostile bytes for every reader of strangers' bytes.")
    parser.add_argument("--count", type=int, default=20_000, help="inputs of each kind")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given again")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    for kind in options.kind or KINDS:
        print(KINDS[kind](options.count, options.seed), flush=True)


if __name__ == "__main__":
    main()
