"""What a TLS session saves the server, made at the same server or at another one, and what a slow store stalls.

Server CPU time of a connection (handshake, a small request and response, close) that resumes, over that of one with a
full handshake in the same round; each kind in its own processes, in turn, one connection at a time: Python's own cache,
sessions shared over Redis in threads and on an event loop, and nginx with its own cache. Usage::

    python -m benchmarks.tls [--quick] [--write-results]
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import datetime
import json
import secrets
import shutil
import socket
import ssl
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from benchmarks.processes import OTHER_CORE, SERVER_CORE, Processes, cpu_us, environment, free_port
from benchmarks.report import table, write_section

KEY = secrets.token_urlsafe(32)
VERSIONS = {"TLS 1.2": ssl.TLSVersion.TLSv1_2, "TLS 1.3": ssl.TLSVersion.TLSv1_3}
KEYS = ("ECDSA P-256", "RSA-2048")
ROUNDS, CONNECTIONS = 9, 60
SLOW_STORE_S, AT_ONCE = 0.2, 20
TIMEOUT_S = 20.0
REQUEST = b"GET / HTTP/1.0\r\nHost: shop.test\r\n\r\n"
RESPONSE = b"HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx"


# -- the servers, in processes of their own --------------------------------------------------------------------


def serve(settings: dict[str, Any]) -> None:
    """A server with one context; answers each request with one byte."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(settings["certificate"])
    if settings["store"]:
        from coatcheck.tls import share_sessions

        share_sessions(
            context, store=settings["store"], server=settings["name"], keyring=settings["key"], required=True
        )
    if settings["mode"] == "threads":
        serve_in_threads(context, settings["port"])
    else:
        from coatcheck.tls import new_event_loop

        with asyncio.Runner(loop_factory=new_event_loop) as runner:
            runner.run(serve_on_a_loop(context, settings["port"], settings["watched"]))


def serve_in_threads(context: ssl.SSLContext, port: int) -> None:
    """A pool of one thread is enough for one connection at a time."""
    listener = socket.create_server(("127.0.0.1", port), backlog=512)
    while True:
        raw, _ = listener.accept()
        with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as tls:
            tls.recv(1024)
            tls.sendall(RESPONSE)
            tls.unwrap()


async def serve_on_a_loop(context: ssl.SSLContext, port: int, watched: bool) -> None:
    """Watched, it answers on a plain connection how long it stood still, at worst, since it was asked last."""
    worst = [0.0]

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError, asyncio.IncompleteReadError):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(RESPONSE)
            await writer.drain()
        writer.close()

    async def tell(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"%f\n" % worst[0])
        worst[0] = 0.0
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", port, ssl=context)
    if not watched:
        await server.serve_forever()
    await asyncio.start_server(tell, "127.0.0.1", port + 1)
    while True:
        before = time.perf_counter()
        await asyncio.sleep(0.001)
        worst[0] = max(worst[0], time.perf_counter() - before - 0.001)


NGINX = """
worker_processes 1; daemon off; pid {folder}/nginx.pid; error_log {folder}/error.log;
events {{ worker_connections 64; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/fastcgi; uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  server {{
    listen 127.0.0.1:{port} ssl; ssl_certificate {certificate}; ssl_certificate_key {certificate};
    ssl_protocols TLSv1.2 TLSv1.3; ssl_session_cache shared:S:1m; ssl_session_timeout 5m;
    location / {{ return 200 "x"; }}
  }}
}}
"""


# -- the clients -----------------------------------------------------------------------------------------------


@dataclass
class Kind:
    """A way to serve: the ports of its servers in turn, and the processes whose time is counted."""

    name: str
    ports: list[int]
    pids: list[int]
    full: Kind | None = None
    """Whose full handshakes it is compared with; ``None``: its own."""

    def cpu_s(self) -> float:
        """What the processes took so far."""
        return sum(cpu_us(pid) for pid in self.pids) / 1e6


def connect(port: int, context: ssl.SSLContext, session: ssl.SSLSession | None) -> tuple[ssl.SSLSession | None, bool]:
    """One connection; answers the session to come back with, and whether the one shown was resumed."""
    raw = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
    with context.wrap_socket(raw, server_hostname="shop.test", session=session) as tls:
        tls.sendall(REQUEST)
        tls.recv(1024)
        found = tls.session, bool(tls.session_reused)
        with contextlib.suppress(OSError):
            tls.unwrap()
        return found


def spend(kind: Kind, context: ssl.SSLContext, connections: int, resume: bool) -> float:
    """Server CPU seconds of each connection. Raises ``RuntimeError`` if what should be resumed is not."""
    session: ssl.SSLSession | None = None
    if resume:
        for port in kind.ports:
            session, _ = connect(port, context, session)
            time.sleep(0.01)
    began, resumed = kind.cpu_s(), 0
    for number in range(connections):
        after, reused = connect(kind.ports[number % len(kind.ports)], context, session)
        resumed += reused
        session = after if resume else None
    took = kind.cpu_s() - began
    if resume and resumed < connections * 0.9:
        raise RuntimeError(f"{kind.name}: {resumed} of {connections} were resumed")
    return took / connections


def make_certificate(folder: Path, kind: str) -> Path:
    """A self-signed certificate with its key."""
    key = ec.generate_private_key(ec.SECP256R1()) if kind.startswith("ECDSA") else rsa.generate_private_key(65537, 2048)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "shop.test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("shop.test")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    encoding = serialization.Encoding.PEM
    private = key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = folder / f"{kind.split()[0].split('-')[0]}.pem"
    path.write_bytes(certificate.public_bytes(encoding) + private)
    return path


def start_all(processes: Processes, folder: Path, certificate: Path, store: str) -> list[Kind]:
    """One process for Python alone, two for each way to share, and nginx where it is installed."""
    label = certificate.stem

    def start(name: str, mode: str, where: str, number: int = 1) -> tuple[int, int]:
        port = _two_free_ports()
        settings = {
            "certificate": str(certificate), "store": where, "mode": mode, "name": f"web-{number}", "key": KEY,
            "port": port, "watched": False,
        }  # fmt: skip
        command = [sys.executable, "-m", "benchmarks.tls", "--serve", json.dumps(settings)]
        return port, processes.start(f"{label} {name} {number}", command, port, SERVER_CORE)

    def kind(name: str, mode: str, where: str, servers: int, full: Kind | None = None) -> Kind:
        started = [start(name, mode, where, number + 1) for number in range(servers)]
        return Kind(name, [port for port, _ in started], [pid for _, pid in started], full)

    threads = kind("own cache, threads", "threads", "", 1)
    loop = kind("own cache, event loop", "loop", "", 1)
    kinds = [
        threads,
        kind("shared, threads", "threads", store, 2, threads),
        loop,
        kind("shared, event loop", "loop", store, 2, loop),
    ]
    if shutil.which("nginx"):
        port = free_port()
        place = folder / f"nginx-{label}"
        place.mkdir()
        (place / "nginx.conf").write_text(NGINX.format(folder=place, port=port, certificate=certificate))
        command = ["nginx", "-p", str(place), "-c", str(place / "nginx.conf")]
        master = processes.start(f"{label} nginx", command, port, SERVER_CORE)
        children = Path(f"/proc/{master}/task/{master}/children").read_text().split()
        kinds.append(Kind("nginx, own cache", [port], [int(child) for child in children]))
    return kinds


def _two_free_ports() -> int:
    while True:
        port = free_port()
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port + 1)):
            return port


def compare(
    kinds: list[Kind], context: ssl.SSLContext, rounds: int, connections: int
) -> dict[str, tuple[float, float]]:
    """By kind: the microseconds of a full handshake, and the median ratio of a resumption to it."""
    full: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    ratio: dict[str, list[float]] = {kind.name: [] for kind in kinds}
    for _ in range(rounds):
        for kind in kinds:
            took = spend(kind.full or kind, context, connections, resume=False)
            full[kind.name].append(took)
            ratio[kind.name].append(spend(kind, context, connections, resume=True) / took)
    return {name: (statistics.median(full[name]) * 1e6, statistics.median(ratio[name])) for name in full}


# -- a slow store ----------------------------------------------------------------------------------------------


def delay(port: int, to: int) -> None:
    """A way to Redis whose answers take :data:`SLOW_STORE_S`, once a line on standard input has come."""
    slow = [0.0]

    def pour(one: socket.socket, other: socket.socket, is_answer: bool) -> None:
        with contextlib.suppress(OSError):
            while piece := one.recv(65536):
                if is_answer:
                    time.sleep(slow[0])
                other.sendall(piece)
            other.close()

    def accept(listener: socket.socket) -> None:
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", to))
            for pair in ((client, server, False), (server, client, True)):
                threading.Thread(target=pour, args=pair, daemon=True).start()

    threading.Thread(target=accept, args=(socket.create_server(("127.0.0.1", port)),), daemon=True).start()
    sys.stdin.readline()
    slow[0] = SLOW_STORE_S
    sys.stdin.readline()


def stall(processes: Processes, certificate: Path, redis_port: int, context: ssl.SSLContext) -> tuple[float, float]:
    """How long the loop stood still at worst, and how long all took, when many resume at once over a slow store."""
    way = free_port()
    command = [sys.executable, "-m", "benchmarks.tls", "--delay", json.dumps([way, redis_port])]
    delayed = subprocess.Popen(command, env=environment(), stdin=subprocess.PIPE, text=True)
    try:
        assert delayed.stdin is not None
        _wait_for(way)
        ports = []
        for number in (1, 2):
            port = _two_free_ports()
            settings = {
                "certificate": str(certificate), "store": f"redis://127.0.0.1:{way}", "mode": "loop",
                "name": f"slow-{number}", "key": KEY, "port": port, "watched": True,
            }  # fmt: skip
            serving = [sys.executable, "-m", "benchmarks.tls", "--serve", json.dumps(settings)]
            processes.start(f"slow {port}", serving, port, SERVER_CORE)
            ports.append(port)
        sessions = [connect(ports[0], context, None)[0] for _ in range(AT_ONCE)]
        delayed.stdin.write("slow\n")
        delayed.stdin.flush()
        time.sleep(0.3)
        _ask_stall(ports[1])
        resumed: list[bool] = []

        def resume(session: ssl.SSLSession | None) -> None:
            resumed.append(connect(ports[1], context, session)[1])

        threads = [threading.Thread(target=resume, args=(session,)) for session in sessions]
        began = time.perf_counter()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        took = time.perf_counter() - began
        if not all(resumed):
            raise RuntimeError(f"{sum(resumed)} of {AT_ONCE} were resumed over the slow store")
        return _ask_stall(ports[1]), took
    finally:
        delayed.kill()
        delayed.wait()


def _ask_stall(port: int) -> float:
    with socket.create_connection(("127.0.0.1", port + 1), TIMEOUT_S) as asked:
        return float(asked.recv(100))


def _wait_for(port: int) -> None:
    until = time.monotonic() + TIMEOUT_S
    while True:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1.0):
            return
        if time.monotonic() > until:
            raise RuntimeError(f"nobody listens at port {port}")
        time.sleep(0.02)


# -- all of it -------------------------------------------------------------------------------------------------


def measure(rounds: int, connections: int, say: Callable[[str], None]) -> str:
    rows, stalls = [], []
    with tempfile.TemporaryDirectory() as place, Processes() as processes:
        folder, redis_port = Path(place), free_port()
        processes.start_redis("redis", OTHER_CORE, redis_port)
        for key in KEYS:
            certificate = make_certificate(folder, key)
            kinds = start_all(processes, folder, certificate, f"redis://127.0.0.1:{redis_port}")
            for name, version in VERSIONS.items():
                context = ssl.create_default_context(cafile=certificate)
                context.minimum_version = context.maximum_version = version
                found = compare(kinds, context, rounds, connections)
                rows.append(
                    [key, name, f"{found[kinds[0].name][0]:.0f} µs", *[f"{found[kind.name][1]:.2f}" for kind in kinds]]
                )
                say("  ".join(rows[-1]))
                if key == KEYS[0]:
                    worst_s, took_s = stall(processes, certificate, redis_port, context)
                    stalls.append(f"{name}: {worst_s * 1e3:.1f} ms, all {AT_ONCE} after {took_s * 1e3:.0f} ms")
                    say(stalls[-1])
    heads = ["key", "version", "a full handshake", *[kind.name for kind in kinds]]
    note = (
        f"Medians of {rounds} rounds of {connections} connections, one at a time; each resumption over a full "
        "handshake of the same round, of a server that shares nothing. Shared: every connection goes to the other one "
        f"of two servers.\n\nA store {SLOW_STORE_S * 1e3:.0f} ms away, {AT_ONCE} resumptions at once on one event "
        f"loop; it stood still at worst for: {'; '.join(stalls)}."
    )
    return f"{table(heads, rows)}\n\n{note}"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.tls", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a short look")
    parser.add_argument("--write-results", action="store_true", help="renew benchmarks/RESULTS.md")
    parser.add_argument("--serve", help=argparse.SUPPRESS)
    parser.add_argument("--delay", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        serve(json.loads(arguments.serve))
        return 0
    if arguments.delay:
        delay(*json.loads(arguments.delay))
        return 0
    rounds, connections = (2, 20) if arguments.quick else (ROUNDS, CONNECTIONS)
    text = measure(rounds, connections, lambda line: print(line, flush=True))
    print(text)
    if arguments.write_results:
        write_section("tls", text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
