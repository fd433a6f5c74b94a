"""What live take-over costs: bytes per second of its record layer beside OpenSSL's, and the wait when a server dies.

Records: CPU time in one process to seal and to open, each size in turn with OpenSSL's memory BIOs. The wait: a farm of
two web servers, one of which is killed, and at once a request on a connection to it; with ``--takeover`` on that very
connection, without it on a new one, after a full handshake. Usage::

    python -m benchmarks.takeover [--quick] [--write-results]
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import signal
import ssl
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.processes import environment
from benchmarks.report import table, write_section
from benchmarks.tls import make_certificate
from coatcheck.takeover.rules.tls_records import MAX_PLAINTEXT_BYTES
from coatcheck.takeover.rules.traffic_keys import SUITES, Epoch, RecordReader, RecordWriter

SIZES = (100, 1024, 16 * 1024, 256 * 1024)
ROUNDS, BYTES_A_ROUND = 9, 8 << 20
DEATHS = 25
TIMEOUT_S = 60.0
APP = """
import os

async def app(scope, receive, send):
    assert scope["type"] == "http"
    body = os.environ["COATCHECK_SERVER"].encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(body))]})
    await send({"type": "http.response.body", "body": body})
"""


# -- records -----------------------------------------------------------------------------------------------------


class OpenSsl:
    """Two ends of one connection, in memory."""

    def __init__(self, certificate: Path) -> None:
        serves = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        serves.load_cert_chain(certificate)
        asks = ssl.create_default_context(cafile=str(certificate))
        self._to_server, self._to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._server = serves.wrap_bio(self._to_server, self._to_client, server_side=True)
        self._client = asks.wrap_bio(self._to_client, self._to_server, server_hostname="shop.test")
        for _ in range(4):
            for end in (self._client, self._server):
                with contextlib.suppress(ssl.SSLWantReadError):
                    end.do_handshake()
        found = self._server.cipher()
        self.suite = found[0] if found is not None else ""
        with contextlib.suppress(ssl.SSLWantReadError):
            self._client.read(1)
        self._sealed = b""

    def seal(self, data: bytes) -> None:
        self._server.write(data)
        self._sealed = self._to_client.read()

    def open(self, size: int) -> None:
        self._to_client.write(self._sealed)
        while size:
            size -= len(self._client.read(size))


class Ours:
    """The record layer of a connection that another server can go on with."""

    def __init__(self, suite: str) -> None:
        secret = os.urandom(SUITES[suite].secret_bytes)
        self._writer = RecordWriter(SUITES[suite], Epoch(0, 0, secret), 0)
        self._reader = RecordReader(SUITES[suite], Epoch(0, 0, secret), 0)
        self._sealed: list[bytes] = []

    def seal(self, data: bytes) -> None:
        pieces = range(0, len(data), MAX_PLAINTEXT_BYTES)
        self._sealed = [self._writer.seal(23, data[at : at + MAX_PLAINTEXT_BYTES]) for at in pieces]
        b"".join(self._sealed)

    def open(self, size: int) -> None:
        opened = [self._reader.open(record)[1] for record in self._sealed]
        assert sum(map(len, opened)) == size


def cpu_of(ends: OpenSsl | Ours, size: int, total: int) -> tuple[float, float]:
    """CPU seconds to seal, and to open, ``total`` bytes in pieces of ``size``."""
    data = os.urandom(size)
    sealing = opening = 0.0
    for _ in range(max(1, total // size)):
        began = time.process_time()
        ends.seal(data)
        sealed = time.process_time()
        ends.open(size)
        sealing += sealed - began
        opening += time.process_time() - sealed
    return sealing, opening


def measure_records(certificate: Path, rounds: int, total: int) -> str:
    peer = OpenSsl(certificate)
    rows = []
    for size in SIZES:
        ours, ratios, speeds = Ours(peer.suite), [], []
        for _ in range(rounds):
            theirs, mine = cpu_of(peer, size, total), cpu_of(ours, size, total)
            ratios.append((theirs[0] / mine[0], theirs[1] / mine[1]))
            speeds.append((total / mine[0] / 1e6, total / mine[1] / 1e6))
        cells = [statistics.median(column) for pairs in (ratios, speeds) for column in zip(*pairs, strict=True)]
        rows.append([f"{size:,}", f"**{cells[0]:.2f}**", f"**{cells[1]:.2f}**", f"{cells[2]:,.0f}", f"{cells[3]:,.0f}"])
    heads = ["bytes at once", "sealing, over OpenSSL's", "opening, over OpenSSL's", "sealing, MB/s", "opening, MB/s"]
    return f"Speed of the record layer, {peer.suite}, one process:\n\n{table(heads, rows)}"


# -- deaths ------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def farm(folder: Path, certificate: Path, *arguments: str) -> Iterator[Callable[[], dict[str, Any]]]:
    """A farm of two web servers; answers what reads its ``farm.json``."""
    (folder / "bench_app.py").write_text(APP)
    command = [sys.executable, "-m", "coatcheck.cli", "serve", "bench_app:app", "--port", "0", "--web", "2"]
    command += ["--tls-certificate", str(certificate), "--tls-key", str(certificate), "--tls", "end-to-end", *arguments]
    run_dir = folder / "-".join(["run", *arguments])
    process = subprocess.Popen(
        [*command, "--run-dir", str(run_dir)], cwd=folder, env=environment(), stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )  # fmt: skip

    def note() -> dict[str, Any]:
        with contextlib.suppress(OSError, ValueError):
            found: dict[str, Any] = json.loads((run_dir / "farm.json").read_text())
            return found
        return {"state": "starting", "processes": []}

    try:
        wait_for(lambda: note()["state"] == "running")
        yield note
    finally:
        process.terminate()
        process.wait(TIMEOUT_S)


def wait_for(condition: Callable[[], bool]) -> None:
    until = time.monotonic() + TIMEOUT_S
    while not condition():
        if time.monotonic() > until:
            raise RuntimeError("the farm is not there")
        time.sleep(0.01)


def ask(connection: http.client.HTTPSConnection) -> str:
    connection.request("GET", "/")
    return connection.getresponse().read().decode()


def one_death(note: Callable[[], dict[str, Any]], context: ssl.SSLContext, *, taken_over: bool) -> float:
    """Milliseconds from the request behind a death to its answer."""

    def ready() -> bool:
        rows = [row for row in note()["processes"] if row["name"].startswith("web-")]
        return bool(rows) and all(row["state"] == "ready" for row in rows)

    wait_for(ready)
    time.sleep(0.6)  # both are in with the director again
    address = note()["address"]
    connection = http.client.HTTPSConnection(address, context=context, timeout=TIMEOUT_S)
    name = ask(connection)
    first = connection.sock
    pid = next(row["pid"] for row in note()["processes"] if row["name"] == name)
    os.kill(pid, signal.SIGKILL)
    began = time.perf_counter()
    try:
        answered = ask(connection)
    except (OSError, http.client.HTTPException):
        connection.close()
        answered = ask(connection)
    took = (time.perf_counter() - began) * 1e3
    if answered == name or (connection.sock is first) is not taken_over:
        raise RuntimeError(
            f"{answered} answered, and {name} was killed; the same connection: {connection.sock is first}"
        )
    connection.close()
    return took


def measure_deaths(folder: Path, certificate: Path, deaths: int) -> str:
    context = ssl.create_default_context(cafile=str(certificate))
    context.check_hostname = False
    waits: dict[bool, list[float]] = {True: [], False: []}
    with farm(folder, certificate, "--takeover") as over, farm(folder, certificate) as plain:
        for _ in range(deaths):
            for taken_over, note in ((True, over), (False, plain)):
                waits[taken_over].append(one_death(note, context, taken_over=taken_over))
    over_ms, new_ms = (statistics.median(waits[kind]) for kind in (True, False))
    ratio = statistics.median(a / b for a, b in zip(waits[True], waits[False], strict=True))
    row = [f"{over_ms:.1f}", f"{new_ms:.1f}", f"**{ratio:.2f}**", f"{max(waits[True]):.1f} / {max(waits[False]):.1f}"]
    heads = ["taken over, ms", "a new connection, ms", "ratio, median of pairs", "worst, ms"]
    return f"From the request behind a death to its answer, loopback, {deaths} deaths each:\n\n{table(heads, [row])}"


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--write-results", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate = make_certificate(folder, "ECDSA P-256")
        records = measure_records(
            certificate, 3 if options.quick else ROUNDS, BYTES_A_ROUND // (8 if options.quick else 1)
        )
        print(records, flush=True)
        deaths = measure_deaths(folder, certificate, 3 if options.quick else DEATHS)
        print(deaths, flush=True)
    if options.write_results:
        write_section("takeover", f"{records}\n\n{deaths}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
