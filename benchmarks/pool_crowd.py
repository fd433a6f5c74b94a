"""The outbound token pool under a crowd: many callers, few slots. Beside what promises nothing, in the same run.

``python -m benchmarks.pool_crowd [--quick] [--only NAME ...]`` prints Markdown. A round of each in
turn. Needs psycopg, psycopg_pool, redis, redis-server, and PostgreSQL's programs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib
import multiprocessing
import queue
import secrets
import sqlite3
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from typing import Any

import psycopg
import redis

from benchmarks.pool import NoConnection
from benchmarks.report import table
from coatcheck.pool import AsyncTokenPool, TokenPool

ROOT = Path(__file__).resolve().parents[1]
SLOTS = 4
USE_S = 0.02
CALLERS = 500
PROCESSES, CALLERS_EACH = 8, 25
TASKS = 100
IDEAL = SLOTS / USE_S
START_S = 1.5
"""What happens before is not counted."""

Lend = Callable[[], AbstractContextManager[Any]]
Shared = Callable[[str, str], Lend]


def stores() -> dict[str, Any]:
    """The contract suite's backends."""
    sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "contracts")]
    found: dict[str, Any] = importlib.import_module("token_store_backends").TOKEN_BACKENDS
    return found


@contextlib.contextmanager
def backend(name: str) -> Iterator[str]:
    running = stores()[name]()
    running.start()
    try:
        yield running.url
    finally:
        running.stop()


# -- what lends: ours, and what promises nothing


def ours(url: str, key: str) -> Lend:
    shared: dict[str, Any] = {"store": url, "key": bytes.fromhex(key), "name": key[:16]} if url else {}
    pool = TokenPool(
        lambda user: secrets.token_hex(8),
        per_user=SLOTS,
        max_uses=10**9,
        login_rate=None,
        wait=300,
        lease=300,
        **shared,
    )
    return lambda: pool.lease("SADMIN")


def bare_queue(url: str, key: str) -> Lend:
    """A queue in the process."""
    tokens: queue.Queue[int] = queue.Queue()
    for number in range(SLOTS):
        tokens.put(number)

    @contextlib.contextmanager
    def lend() -> Iterator[int]:
        token = tokens.get()
        try:
            yield token
        finally:
            tokens.put(token)

    return lend


def bare_blpop(url: str, key: str) -> Lend:
    """Twenty lines over ``BLPOP``: whoever dies keeps the token."""
    client = redis.Redis.from_url(url, max_connections=2 * CALLERS, socket_timeout=None)
    if client.set(f"{key}:made", 1, nx=True):
        client.rpush(key, *range(SLOTS))

    @contextlib.contextmanager
    def lend() -> Iterator[bytes]:
        found: Any = client.blpop([key], timeout=0)
        try:
            yield found[1]
        finally:
            client.rpush(key, found[1])

    return lend


def bare_sqlite(url: str, key: str) -> Lend:
    """A row per token; whoever finds none looks again after 1 to 10 ms."""
    path = url.removeprefix("sqlite:///") + ".bare"
    local = threading.local()
    with contextlib.closing(sqlite3.connect(path, timeout=30, isolation_level=None)) as first:
        first.execute("PRAGMA journal_mode=WAL")
        first.execute("CREATE TABLE IF NOT EXISTS token (number INTEGER PRIMARY KEY, taken INTEGER)")
        for number in range(SLOTS):
            first.execute("INSERT OR IGNORE INTO token VALUES (?, 0)", (number,))

    def connection() -> sqlite3.Connection:
        if not hasattr(local, "connection"):
            local.connection = sqlite3.connect(path, timeout=30, isolation_level=None)
            local.connection.execute("PRAGMA synchronous=NORMAL")
        return local.connection  # type: ignore[no-any-return]

    take = "UPDATE token SET taken=1 WHERE number=(SELECT number FROM token WHERE taken=0 LIMIT 1) RETURNING number"

    @contextlib.contextmanager
    def lend() -> Iterator[int]:
        pause_s = 0.001
        while not (rows := connection().execute(take).fetchall()):
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.01)
        try:
            yield rows[0][0]
        finally:
            connection().execute("UPDATE token SET taken=0 WHERE number=?", rows[0])

    return lend


def bare_skip_locked(url: str, key: str) -> Lend:
    """A row per token, ``FOR UPDATE SKIP LOCKED``; whoever finds none looks again after 1 to 10 ms."""
    local = threading.local()
    with psycopg.connect(url, autocommit=True) as first:
        first.execute("SELECT pg_advisory_lock(1)")
        first.execute("CREATE TABLE IF NOT EXISTS token (number int PRIMARY KEY, taken boolean)")
        for number in range(SLOTS):
            first.execute("INSERT INTO token VALUES (%s, false) ON CONFLICT DO NOTHING", (number,))

    def connection() -> Any:
        if not hasattr(local, "connection"):
            local.connection = psycopg.connect(url, autocommit=True)
        return local.connection

    free = "SELECT number FROM token WHERE NOT taken LIMIT 1 FOR UPDATE SKIP LOCKED"
    take = f"UPDATE token SET taken=true WHERE number=({free}) RETURNING number"

    @contextlib.contextmanager
    def lend() -> Iterator[int]:
        pause_s = 0.001
        while not (rows := connection().execute(take).fetchall()):
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, 0.01)
        try:
            yield rows[0][0]
        finally:
            connection().execute("UPDATE token SET taken=false WHERE number=%s", rows[0])

    return lend


BARE: dict[str, Shared] = {
    "memory": bare_queue,
    "redis": bare_blpop,
    "sqlite": bare_sqlite,
    "postgresql": bare_skip_locked,
}


# -- one process, and several


def crowd(lend: Lend, callers: int, seconds: float) -> tuple[int, float, float]:
    """Threads that borrow for ``USE_S`` again and again: uses, longest wait in s, CPU in s."""
    begin_at = time.time() + START_S
    ends_at = begin_at + seconds
    served = [0] * callers
    longest = [0.0] * callers

    def call(number: int) -> None:
        while time.time() < ends_at:
            asked_at = time.time()
            with lend():
                now = time.time()
                longest[number] = max(longest[number], now - asked_at if asked_at >= begin_at else 0.0)
                time.sleep(USE_S)
                served[number] += begin_at <= now < ends_at

    threads = [threading.Thread(target=call, args=(number,), daemon=True) for number in range(callers)]
    for thread in threads:
        thread.start()
    time.sleep(max(0.0, begin_at - time.time()))
    used_s = time.process_time()
    time.sleep(max(0.0, ends_at - time.time()))
    used_s = time.process_time() - used_s
    for thread in threads:
        thread.join(60)
    return sum(served), max(longest), used_s


def one_process(make: Shared, url: str, seconds: float) -> tuple[float, float, float]:
    """Uses per second, longest wait in s, CPU per use in ms."""
    lend = make(url, secrets.token_hex(32))
    uses, longest_s, used_s = crowd(lend, CALLERS, seconds)
    return uses / seconds, longest_s, used_s / max(1, uses) * 1_000


def member(make: Shared, url: str, key: str, seconds: float, together: Any, told: Any) -> None:
    lend = make(url, key)
    together.wait(120)
    told.put(crowd(lend, CALLERS_EACH, seconds))


def processes(make: Shared, url: str, seconds: float) -> tuple[float, float, float]:
    context = multiprocessing.get_context("spawn")
    told, key = context.Queue(), secrets.token_hex(32)
    make(url, key)
    arguments = (make, url, key, seconds, context.Barrier(PROCESSES), told)
    running = [context.Process(target=member, args=arguments) for _ in range(PROCESSES)]
    for process in running:
        process.start()
    found = [told.get(timeout=seconds + 120) for _ in running]
    for process in running:
        process.join(60)
    uses = sum(one[0] for one in found)
    least, most = min(one[0] for one in found), max(one[0] for one in found)
    print(f"<!-- {make.__name__}: uses by process {least} to {most} -->")
    return uses / seconds, max(one[1] for one in found), sum(one[2] for one in found) / max(1, uses) * 1_000


# -- asyncio: what a pair costs while others wait


async def awaited_pairs(tasks: int, pairs: int) -> dict[str, float]:
    """Microseconds for a lease and a release, with so many tasks on ``SLOTS`` slots."""
    from psycopg_pool import AsyncConnectionPool

    class Nothing(NoConnection):
        @classmethod
        async def connect(cls, *_: Any, **__: Any) -> Nothing:  # type: ignore[override]
            return cls()

        async def close(self) -> None: ...  # type: ignore[override]

    mine = AsyncTokenPool(lambda user: "token", per_user=SLOTS, validity="expiry", login_rate=None, wait=300)
    nowhere: Any = Nothing
    theirs: Any = AsyncConnectionPool(
        "", connection_class=nowhere, min_size=SLOTS, max_size=SLOTS, open=False, timeout=300
    )
    await theirs.open(wait=True)

    async def ours_once() -> None:
        async with mine.lease("SADMIN"):
            await asyncio.sleep(0)

    async def theirs_once() -> None:
        connection = await theirs.getconn()
        await asyncio.sleep(0)
        await theirs.putconn(connection)

    async def round_of(once: Any) -> float:
        async def repeat() -> None:
            for _ in range(pairs):
                await once()

        began = time.process_time()
        await asyncio.gather(*(repeat() for _ in range(tasks)))
        return (time.process_time() - began) / (tasks * pairs) * 1e6

    found: dict[str, list[float]] = {"coatcheck": [], "psycopg_pool": []}
    for _ in range(5):
        found["coatcheck"].append(await round_of(ours_once))
        found["psycopg_pool"].append(await round_of(theirs_once))
    await theirs.close()
    await mine.close()
    return {name: median(values) for name, values in found.items()}


# -- report


def measure(seconds: float, names: list[str]) -> list[list[str]]:
    rows = []
    for name in names:
        with backend(name) if name != "memory" else contextlib.nullcontext("") as url:
            for kind, run in (("one process", one_process), ("8 processes", processes)):
                if name == "memory" and run is processes:
                    continue
                for lender, make in (("coatcheck", ours), (BARE[name].__name__, BARE[name])):
                    rate, longest_s, cpu_ms = run(make, url, seconds)
                    numbers = [f"{rate:.0f}", f"{rate / IDEAL:.2f}", f"{longest_s:.1f}", f"{cpu_ms:.2f}"]
                    rows.append([name, kind, lender, *numbers])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few seconds of each")
    parser.add_argument("--only", nargs="*", choices=list(BARE), default=list(BARE))
    arguments = parser.parse_args()
    heads = ["store", "callers", "pool", "uses per s", "of the ideal", "longest wait, s", "CPU per use, ms"]
    rows = measure(4.0 if arguments.quick else 15.0, arguments.only)
    pairs = asyncio.run(awaited_pairs(TASKS, 20 if arguments.quick else 100))
    found = "\n".join(
        [
            f"{SLOTS} slots, a use takes {USE_S * 1_000:.0f} ms: ideally {IDEAL:.0f} a second. One process has"
            f" {CALLERS} callers, each of 8 has {CALLERS_EACH}.\n",
            table(heads, rows),
            f"\nasyncio, {TASKS} tasks on {SLOTS} slots, CPU of a lease and a release:\n",
            table(["pool", "µs"], [[name, f"{micros:.1f}"] for name, micros in pairs.items()]),
        ]
    )
    print(found)


if __name__ == "__main__":
    main()
