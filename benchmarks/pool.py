"""The outbound token pool: against other pools in process, against a login for each call, and shared under kills.

``python -m benchmarks.pool [--quick] [--write-results] [--json FILE]`` prints Markdown. Peers are measured in the same
run, a round of each in turn; figures are medians of the rounds. Needs psycopg, psycopg_pool, SQLAlchemy, redis and
redis-server.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import multiprocessing
import random
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from psycopg.pq import TransactionStatus
from psycopg_pool import ConnectionPool
from sqlalchemy.pool import QueuePool

from benchmarks.report import table, write_section
from coatcheck.pool import AsyncTokenPool, TokenPool

BORROWER = Path(__file__).resolve().parents[1] / "tests" / "pool" / "borrower.py"
LOGIN_S = 0.1

Round = Callable[[int], float]


# -- in process: what a lease and a release cost


class NoConnection:
    """What psycopg_pool and SQLAlchemy hand out here: nothing, so that only the pool is measured."""

    closed = False
    _pool: Any = None
    _created_at = _expire_at = 0.0

    class pgconn:
        transaction_status = TransactionStatus.IDLE

    @classmethod
    def connect(cls, *_: Any, **__: Any) -> NoConnection:
        return cls()

    def close(self) -> None: ...

    _close = rollback = commit = close


def timed(work: Callable[[int], None]) -> Round:
    def run(count: int) -> float:
        began = time.perf_counter()
        work(count)
        return (time.perf_counter() - began) / count * 1e6

    return run


def in_process_rounds() -> dict[str, Round]:
    pool = TokenPool(lambda user: "token", validity="expiry")
    awaited = AsyncTokenPool(lambda user: "token", validity="expiry")
    theirs: Any = ConnectionPool("", connection_class=NoConnection, min_size=2, max_size=4, open=True)
    theirs.wait(10)
    connect_nowhere: Any = NoConnection.connect
    alchemy = QueuePool(connect_nowhere, pool_size=5, reset_on_return=None)

    def ours(count: int) -> None:
        lease = pool.lease
        for _ in range(count):
            with lease("SADMIN"):
                pass

    async def ours_awaited(count: int) -> None:
        lease = awaited.lease
        for _ in range(count):
            async with lease("SADMIN"):
                pass

    def psycopg(count: int) -> None:
        getconn, putconn = theirs.getconn, theirs.putconn
        for _ in range(count):
            putconn(getconn())

    def sqlalchemy(count: int) -> None:
        connect = alchemy.connect
        for _ in range(count):
            connect().close()

    def bare(count: int) -> None:
        free, leased, lock = ["token"], {}, threading.Lock()
        for number in range(count):
            with lock:
                leased[number] = free.pop()
            with lock:
                free.append(leased.pop(number))

    return {
        "coatcheck, `with pool.lease(user)`": timed(ours),
        "coatcheck, `async with pool.lease(user)`": timed(lambda count: asyncio.run(ours_awaited(count))),
        "psycopg_pool, getconn and putconn": timed(psycopg),
        "SQLAlchemy QueuePool, connect and close": timed(sqlalchemy),
        "a list, a dict and a lock: nothing promised": timed(bare),
    }


def in_process(quick: bool) -> dict[str, float]:
    """Microseconds for a lease and a release, by pool."""
    rounds = in_process_rounds()
    found: dict[str, list[float]] = {name: [] for name in rounds}
    for _ in range(7 if quick else 31):
        for name, run in rounds.items():
            gc.collect()
            run(200)
            found[name].append(run(3_000))
    return {name: median(values) for name, values in found.items()}


# -- calls per second, against a login for each call


def upstream(port: int, network_s: float) -> None:
    """Answers lines: a login takes ``LOGIN_S``, a call nothing; every answer is late by the network."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            await asyncio.sleep(network_s + (LOGIN_S if line.startswith(b"LOGIN") else 0.0))
            writer.write(secrets.token_hex(16).encode() + b"\n")

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", port)
        async with server:
            await server.serve_forever()

    asyncio.run(main())


class Caller:
    """A connection of its own, as each thread of a client has."""

    def __init__(self, port: int) -> None:
        self.connection = socket.create_connection(("127.0.0.1", port), timeout=10)
        self.lines = self.connection.makefile("rb")

    def ask(self, line: bytes) -> str:
        self.connection.sendall(line)
        return self.lines.readline().decode().strip()

    def close(self) -> None:
        self.lines.close()
        self.connection.close()


def calls_per_second(port: int, callers: int, seconds: float, *, pooled: bool) -> float:
    """How many calls so many threads make in a second."""
    local = threading.local()
    pool = TokenPool(lambda user: local.caller.ask(b"LOGIN\n"), per_user=callers, login_rate=None, max_uses=1_000_000)
    counts = [0] * callers
    if pooled:
        local.caller = Caller(port)
        held = [pool.lease("SADMIN").acquire() for _ in range(callers)]
        for lease in held:
            lease.release()  # warm, as it is from the second call on
        local.caller.close()
    until = time.monotonic() + seconds

    def call(number: int) -> None:
        caller = local.caller = Caller(port)
        while time.monotonic() < until:
            if pooled:
                with pool.lease("SADMIN") as lease:
                    lease.renew(caller.ask(b"CALL " + lease.token.encode() + b"\n"))
            else:
                token = caller.ask(b"LOGIN\n")
                caller.ask(b"CALL " + token.encode() + b"\n")
            counts[number] += 1
        caller.close()

    threads = [threading.Thread(target=call, args=(number,)) for number in range(callers)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return sum(counts) / (time.monotonic() - began)


def calls(quick: bool) -> list[dict[str, float]]:
    """Calls per second with the pool and with a login for each call, alternating, by network and callers."""
    found: list[dict[str, float]] = []
    for network_ms in (0, 20):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        server = multiprocessing.get_context("spawn").Process(target=upstream, args=(port, network_ms / 1000))
        server.start()
        try:
            wait_for(port)
            for callers in (1, 8):
                rates: dict[bool, list[float]] = {True: [], False: []}
                for _ in range(1 if quick else 3):
                    for pooled in (True, False):
                        rate = calls_per_second(port, callers, 1.0 if quick else 3.0, pooled=pooled)
                        rates[pooled].append(rate)
                with_pool, with_logins = median(rates[True]), median(rates[False])
                found.append({"network_ms": network_ms, "callers": callers, "pool": with_pool, "logins": with_logins})
        finally:
            server.terminate()
            server.join(10)
    return found


def wait_for(port: int) -> None:
    deadline = time.monotonic() + 20
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if time.monotonic() > deadline:
            raise TimeoutError("the server does not listen")
        time.sleep(0.02)


# -- shared by processes, under kills


def shared(quick: bool) -> list[dict[str, float]]:
    """Uses per second of one Redis pool by 1 and by 8 processes, the latter also while they are killed."""
    server_path = shutil.which("valkey-server") or shutil.which("redis-server")
    if server_path is None:
        raise FileNotFoundError("redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [server_path, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    found: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL, cwd=folder)
        try:
            wait_for(port)
            seconds = 4.0 if quick else 12.0
            for use_ms in (0, 20):
                for processes, kills in ((1, False), (8, False), (8, True)):
                    url = f"redis://127.0.0.1:{port}/{len(found)}"  # a database of its own for each round
                    found.append(shared_round(url, folder, use_ms, processes, kills, seconds))
        finally:
            server.kill()
            server.wait(10)
    return found


def shared_round(url: str, folder: str, use_ms: int, processes: int, kills: bool, seconds: float) -> dict[str, float]:
    books = tempfile.mkdtemp(dir=folder)
    key = secrets.token_hex(32)
    dice = random.Random(7)

    def borrow(until: float) -> subprocess.Popen[str]:
        left_s = max(0.1, until - time.monotonic())
        words = [url, key, books, str(left_s), "1s", "8", str(use_ms / 1000), "1"]
        return subprocess.Popen([sys.executable, str(BORROWER), *words], stdout=subprocess.PIPE, text=True)

    until = time.monotonic() + seconds + 1.0
    running = [borrow(until) for _ in range(processes)]
    readers: list[threading.Thread] = []
    texts: list[str] = []

    def read(process: subprocess.Popen[str]) -> None:
        thread = threading.Thread(target=lambda: texts.append(process.communicate()[0]))
        thread.start()
        readers.append(thread)

    for process in running:
        read(process)
    killed = 0
    while kills and time.monotonic() < until - 1.0:
        time.sleep(dice.uniform(0.3, 0.7))
        victim = running.pop(0)
        victim.kill()
        killed += 1
        running.append(borrow(until))
        read(running[-1])
    for reader in readers:
        reader.join(60)
    text = "".join(texts)
    return {
        "use_ms": use_ms,
        "processes": processes,
        "kills": killed,
        "uses_per_s": text.count("used") / seconds,
        "double_uses": text.count("DOUBLE"),
        "starved": text.count("STARVED"),
    }


# -- report


def rows_of(found: list[dict[str, float]], names: tuple[str, ...]) -> list[list[str]]:
    return [[f"{row[name]:,.0f}" if row[name] >= 100 else f"{row[name]:.3g}" for name in names] for row in found]


def markdown(results: dict[str, Any]) -> str:
    rows = [[name, f"{micros:.2f}"] for name, micros in results["in_process_us"].items()]
    call_heads = ["network, ms", "callers", "with the pool", "a login for each call", "ratio", "ratio to one caller"]
    calls = rows_of(results["calls"], ("network_ms", "callers", "pool", "logins", "ratio", "ratio_to_one"))
    heads = ["a use takes, ms", "processes", "kills", "uses per s", "ratio to one", "double uses", "starved"]
    names = ("use_ms", "processes", "kills", "uses_per_s", "ratio", "double_uses", "starved")
    return "\n".join(
        [
            "Lease and release in process, median:\n",
            table(["pool", "µs"], rows),
            "\nCalls per second; a login takes 100 ms; last column: over one caller with a login for each call.\n",
            table(call_heads, calls),
            "\nOne Redis pool, one user, 8 slots:\n",
            table(heads, rows_of(results["shared"], names)),
        ]
    )


def measure(quick: bool) -> dict[str, Any]:
    """All of it, as plain numbers."""
    results: dict[str, Any] = {"in_process_us": in_process(quick), "calls": calls(quick), "shared": shared(quick)}
    for row in results["calls"]:
        alone = next(other for other in results["calls"] if other["network_ms"] == row["network_ms"])
        row["ratio"] = row["pool"] / row["logins"]
        row["ratio_to_one"] = row["pool"] / alone["logins"]
    for row in results["shared"]:
        alone = next(other for other in results["shared"] if other["use_ms"] == row["use_ms"])
        row["ratio"] = row["uses_per_s"] / alone["uses_per_s"]
    return results


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes; figures for orientation")
    parser.add_argument("--json", type=Path, help="write the numbers there as well")
    parser.add_argument("--write-results", action="store_true", help="renew the tables in RESULTS.md")
    arguments = parser.parse_args()
    results = measure(arguments.quick)
    print(markdown(results))
    if arguments.write_results:
        write_section("pool", markdown(results))
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=2) + "\n")


if __name__ == "__main__":
    main()
