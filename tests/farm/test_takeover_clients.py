"""Clients of every kind on connections that outlive their web server: streams, WebSockets, old ones and rude ones."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed

from certificate import make_certificate
from websocket_over_tls import WebSocketOverTls, websocket_over_tls

from .farm_process import DEADLINE_S, Farm, eventually
from .live_crowd import LIVE_APP, client
from .live_kills import counts
from .live_wire import Certificate, Wire, address, request

APP = (
    LIVE_APP
    + """
from starlette.responses import StreamingResponse
from starlette.routing import WebSocketRoute

async def login(request):
    request.session.regenerate("ada")
    return JSONResponse(os.environ["COATCHECK_SERVER"])

async def logout(request):
    request.session.close()
    return JSONResponse(os.environ["COATCHECK_SERVER"])

async def events(request):
    async def pieces():
        yield f"data: {os.environ['COATCHECK_SERVER']}\\n\\n"
        while not os.path.exists("no-more-events"):
            await asyncio.sleep(0.1)
            yield ": still here\\n\\n"
        yield "data: the end\\n\\n"
    return StreamingResponse(pieces(), media_type="text/event-stream")

async def talk(websocket):
    await websocket.accept()
    await websocket.send_text(os.environ["COATCHECK_SERVER"])
    async for text in websocket.iter_text():
        await websocket.send_text(text + "!")

posts = [Route(f"/{call.__name__}", call, methods=["POST"]) for call in (login, logout)]
app.router.routes[:0] = [*posts, Route("/events", events), WebSocketRoute("/talk", talk)]
"""
)
Start = Callable[..., Farm]


@pytest.fixture
def start(tmp_path: Path, farm: Start, certificate: Certificate) -> Start:
    (tmp_path / "live.py").write_text(APP)
    tls = ("--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1]), "--no-insecure-localhost")
    end = ("--tls", "end-to-end", "--takeover", "--session-servers", "1")
    return lambda *arguments: farm(*tls, *end, *arguments, app="live:app")


def kill(farm: Farm, name: str) -> None:
    os.kill(farm.pid(name), signal.SIGKILL)


def trusting(certificate: Certificate) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(certificate[0]))


def base(farm: Farm) -> str:
    return f"https://{farm.note()['address']}"


# Streams


class Events:
    """A client of server-sent events, one connection for all it asks."""

    def __init__(self, farm: Farm, certificate: Certificate) -> None:
        self.wire = Wire(farm, certificate)
        self.wire.send(request("GET", "/events"))
        self.seen = b""

    def read_until(self, words: bytes) -> None:
        while words not in self.seen:
            piece = self.wire.socket.recv(1 << 12)
            if not piece:
                raise EOFError("the stream ended with a goodbye")
            self.seen += piece

    @property
    def server(self) -> str:
        self.read_until(b"data: web-")
        return self.seen.partition(b"data: ")[2][:5].decode()


def test_events_come_when_they_are_sent_and_break_off_visibly_with_their_web_server(
    start: Start, certificate: Certificate
) -> None:
    farm = start("--web", "2")
    events, beside = Events(farm, certificate), client(farm, certificate)
    server = events.server
    events.read_until(b": still here")
    assert beside.see()["server"] == server
    kill(farm, server)
    # An EventSource connects again after an error, and after an end as well; but it must not take this for a whole one.
    with pytest.raises(OSError, match=r"."):
        events.read_until(b"0\r\n\r\n")
    assert beside.see()["server"] != server
    assert beside.is_the_first
    assert Events(farm, certificate).server != server


def test_a_drain_waits_for_a_stream_and_moves_its_connection_then(
    start: Start, tmp_path: Path, certificate: Certificate
) -> None:
    farm = start("--web", "2", "--drain-timeout", "60s")
    events, beside = Events(farm, certificate), client(farm, certificate)
    server = events.server
    said: list[str] = []
    draining = threading.Thread(target=lambda: said.append(farm.run("drain", server).stdout))
    draining.start()
    eventually(lambda: beside.see()["server"] != server, "the move of an idle connection")
    events.seen = b""
    events.read_until(b": still here")
    assert said == []
    (tmp_path / "no-more-events").touch()
    events.read_until(b"data: the end\n\n\r\n0\r\n\r\n")
    draining.join(DEADLINE_S)
    assert "is drained and stopped" in said[0]
    assert events.wire.see()["server"] != server, "its connection goes on elsewhere"
    assert farm.run("admit", server).returncode == 0
    assert counts(farm)["broken_off"] == 0


# WebSockets, and what is open when its session ends


@pytest.fixture
def websocket(certificate: Certificate) -> Iterator[Callable[..., WebSocketOverTls]]:
    with contextlib.ExitStack() as opened:

        def one(farm: Farm, cookies: str = "") -> WebSocketOverTls:
            where = f"wss://{farm.note()['address']}/talk"
            headers = {"cookie": cookies} if cookies else {}
            return opened.enter_context(websocket_over_tls(where, trusting(certificate), headers))

        yield one


def test_a_websocket_breaks_with_its_web_server_and_a_drain_ends_it_with_1012(
    start: Start, certificate: Certificate, websocket: Callable[..., WebSocketOverTls]
) -> None:
    farm = start("--web", "2")
    one, other = websocket(farm), websocket(farm)
    server = str(one.recv(DEADLINE_S))
    assert other.recv(DEADLINE_S) == server
    one.send("a")
    assert one.recv(DEADLINE_S) == "a!"
    assert "is drained and stopped" in farm.run("drain", server).stdout
    for each in (one, other):
        with pytest.raises(ConnectionClosed) as closed:
            each.recv(DEADLINE_S)
        assert closed.value.rcvd is not None and closed.value.rcvd.code == 1012
    late = websocket(farm)
    heir = str(late.recv(DEADLINE_S))
    assert heir != server
    assert farm.run("admit", server).returncode == 0
    kill(farm, heir)
    with pytest.raises(ConnectionClosed) as closed:
        late.recv(DEADLINE_S)
    assert closed.value.rcvd is None, "nobody said goodbye"


def test_a_logout_ends_what_is_open_and_its_connection_goes_on(
    start: Start, certificate: Certificate, websocket: Callable[..., WebSocketOverTls]
) -> None:
    farm = start("--web", "2", "--lease", "8s")
    with httpx.Client(base_url=base(farm), verify=trusting(certificate), timeout=DEADLINE_S) as browser:
        browser.post("/login").raise_for_status()
        cookies = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        socket_of_session = websocket(farm, cookies)
        server = socket_of_session.recv(DEADLINE_S)
        streaming = Wire(farm, certificate)
        streaming.send(request("GET", "/events", Cookie=cookies))
        assert b"200 OK" in streaming.socket.recv(1 << 12)
        assert str(server).startswith("web-")
        began = time.monotonic()
        browser.post("/logout").raise_for_status()
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                socket_of_session.recv(DEADLINE_S)
        assert closed.value.rcvd is not None
        assert (closed.value.rcvd.code, closed.value.rcvd.reason) == (1008, "session closed")
        said = b""
        while not said.endswith(b"0\r\n\r\n"):
            piece = streaming.socket.recv(1 << 12)
            assert piece, said
            said += piece
        assert time.monotonic() - began < 8
        assert streaming.see()["path"] == "/hello"


# Clients of other kinds


def curl(certificate: Certificate, *words: str, **how: Any) -> subprocess.CompletedProcess[bytes]:
    found = shutil.which("curl")
    assert found is not None, "curl is missing: apt-get install curl"
    command = [found, "--silent", "--show-error", "--cacert", str(certificate[0]), *words]
    return subprocess.run(command, capture_output=True, timeout=DEADLINE_S, check=False, **how)


def test_http_1_0_is_answered_and_said_goodbye_to(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "2")
    done = curl(certificate, "--http1.0", "--include", f"{base(farm)}/hello", f"{base(farm)}/big/1/untagged")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(b" 200 OK\r\n") == 2
    old = Wire(farm, certificate)
    old.send(b"GET /hello HTTP/1.0\r\n\r\n")
    status, headers, body = old.answer()
    assert (status, headers["connection"], json.loads(body)["path"]) == (200, "close", "/hello")
    assert old.says_goodbye()
    # A stream has no length, and chunks were not known then: its end is the goodbye.
    stream = Wire(farm, certificate)
    stream.send(b"GET /events HTTP/1.0\r\n\r\n")
    seen = b""
    while b": still here" not in seen:
        seen += stream.socket.recv(1 << 12)
    assert b"transfer-encoding" not in seen.lower()
    kept = Wire(farm, certificate)
    kept.send(b"GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
    assert kept.answer()[0] == 200


def test_a_client_that_waits_for_100_continue_gets_it(start: Start, certificate: Certificate, tmp_path: Path) -> None:
    farm = start("--web", "2")
    (tmp_path / "body").write_bytes(b"x" * 3_000_000)
    upload = ("--header", "Expect: 100-continue", "--expect100-timeout", "50", "--data-binary", f"@{tmp_path}/body")
    began = time.monotonic()
    done = curl(certificate, "--verbose", *upload, f"{base(farm)}/hello")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["body"] == 3_000_000
    assert b"HTTP/1.1 100 Continue" in done.stderr
    assert time.monotonic() - began < 50
    # And if the web server dies between the two, another one says it for itself.
    wire = Wire(farm, certificate)
    server = wire.see()["server"]
    wire.send(b"PUT /hello HTTP/1.1\r\nHost: farm\r\nContent-Length: 5\r\nExpect: 100-continue\r\n\r\n")
    assert wire.socket.recv(1 << 12).startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
    kill(farm, server)
    said = b""
    while not said.endswith(b"\r\n\r\n"):
        piece = wire.socket.recv(1 << 12)
        assert piece, "the connection ended"
        said += piece
    assert said == b"HTTP/1.1 100 Continue\r\n\r\n"
    wire.send(b"12345")
    status, _, body = wire.answer()
    assert (status, json.loads(body)["body"]) == (200, 5)


@pytest.mark.parametrize("how", ["close_notify", "fin"])
def test_who_has_said_all_that_it_will_say(start: Start, certificate: Certificate, how: str) -> None:
    """With TLS that is the end of the connection (RFC 8446 section 6.1 lets a server go on; web servers do not)."""
    farm = start("--web", "1")
    wire = Wire(farm, certificate)
    wire.send(request("GET", "/slow/0.5"))
    if how == "fin":
        wire.socket.shutdown(socket.SHUT_WR)
    else:
        with contextlib.suppress(OSError):
            wire.socket.unwrap()
    eventually(lambda: farm.healthy_status()["director"][0]["details"]["connections"] == 0, "its end")
    assert client(farm, certificate).see()["path"] == "/hello"


def test_openssl_asks_once_and_closes(start: Start, certificate: Certificate) -> None:
    """As people try a server by hand."""
    farm = start("--web", "1")
    host, port = address(farm)
    words = ["openssl", "s_client", "-connect", f"{host}:{port}", "-quiet", "-CAfile", str(certificate[0])]
    asked = b"GET /hello HTTP/1.0\r\n\r\n"
    done = subprocess.run(words, input=asked, capture_output=True, timeout=DEADLINE_S, check=False)
    assert b'"path":"/hello"' in done.stdout, done.stderr


def test_a_frameworks_client_keeps_its_connection(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "2")
    patient = httpx.Limits(keepalive_expiry=None)  # it gives an idle connection up after 5 s, unless told
    with httpx.Client(base_url=base(farm), verify=trusting(certificate), timeout=DEADLINE_S, limits=patient) as browser:
        first = browser.get("/hello")
        here = first.extensions["network_stream"].get_extra_info("client_addr")
        assert browser.post("/count").json() == {"count": 1}
        kill(farm, first.json()["server"])
        # If anything came on the idle connection now, it would be closed, and nobody would be told.
        eventually(lambda: counts(farm)["taken_over"] == 1, "the other web server")
        assert browser.post("/count").json() == {"count": 2}
        last = browser.get("/hello")
        assert last.extensions["network_stream"].get_extra_info("client_addr") == here
        assert last.json()["server"] != first.json()["server"]


@pytest.mark.parametrize("server", ["granian"])
def test_another_http_server_behind_it(start: Start, certificate: Certificate, server: str) -> None:
    farm = start("--web", "2", "--server", server)
    one = client(farm, certificate)
    before = one.see()
    assert (before["scheme"], before["client"]) == ("https", "127.0.0.1")
    old = farm.pid(before["server"])
    os.kill(old, signal.SIGKILL)
    after = one.see()
    assert (after["server"] != before["server"], after["scheme"], after["client"]) == (True, "https", "127.0.0.1")
    assert json.loads(one.ask("POST", "/count")[1]) == {"count": 1}
    farm.wait_replaced(before["server"], old)
    assert farm.run("drain", after["server"]).returncode == 0
    assert one.see()["server"] == before["server"]
    assert one.is_the_first


@pytest.mark.parametrize(
    ("listen", "reach"), [("::1", ["::1"]), ("::", ["::1", "127.0.0.1"]), ("0.0.0.0", ["127.0.0.1"])]
)
def test_over_ipv6_and_over_both(
    start: Start, tmp_path_factory: pytest.TempPathFactory, listen: str, reach: list[str]
) -> None:
    folder = tmp_path_factory.mktemp("both")
    certificate = make_certificate(folder, "::1", "127.0.0.1")
    farm = start(
        "--web", "2", "--host", listen, "--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1])
    )
    port = int(str(farm.note()["address"]).rpartition(":")[2])
    for host in reach:
        where = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
        with httpx.Client(base_url=where, verify=trusting(certificate), timeout=DEADLINE_S) as browser:
            first = browser.get("/hello")
            assert first.json()["client"] == host
            here = first.extensions["network_stream"].get_extra_info("client_addr")
            kill(farm, first.json()["server"])
            last = browser.get("/hello")
            assert last.json()["server"] != first.json()["server"]
            assert last.json()["client"] == host
            assert last.extensions["network_stream"].get_extra_info("client_addr") == here
        eventually(lambda: all(row["healthy"] for row in farm.status()["web_servers"]), "their return")
