"""What a put to two session servers costs the web server's CPU: our link against redis-py, paired.

Both clients run the same fenced script on the same two servers, in interleaved rounds of one process, with as many
puts in flight as ``--in-flight`` says. A put is complete when both servers have acknowledged it. The figure is CPU
time of this process per put (user + system, so the kernel work of its sockets is included), median and range over
the rounds. Usage::

    python benchmarks/store_put.py [--in-flight 32] [--rounds 9] [--puts 4000]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import importlib.util
import os
import secrets
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack
from pathlib import Path

from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.stores.port import Accepted, PutReply, Store
from coatcheck.stores.session_server_store import SessionServerStore
from coatcheck.stores.valkey import ValkeyStore
from coatcheck.stores.valkey_scripts import PUT

PAYLOAD = secrets.token_bytes(430)
SESSIONS = 256
LIFE_MS = 600_000
OWNER = b"bench-01"
MAX_IN_FLIGHT = 256

PutPair = Callable[[bytes, Version | None, Entry], Awaitable[None]]


class Both:
    """One future per put, resolved when both servers have acknowledged."""

    __slots__ = ("future", "missing")

    def __init__(self, future: asyncio.Future[None]) -> None:
        self.future = future
        self.missing = 2

    def __call__(self, reply: PutReply) -> None:
        if type(reply) is not Accepted:
            if not self.future.done():
                self.future.set_exception(RuntimeError(f"not accepted: {reply}"))
            return
        self.missing -= 1
        if not self.missing:
            self.future.set_result(None)


def through_link(stores: tuple[Store, Store]) -> PutPair:
    loop = asyncio.get_running_loop()
    first, second = stores

    async def put(key: bytes, seen: Version | None, new: Entry) -> None:
        future: asyncio.Future[None] = loop.create_future()
        both = Both(future)
        first.put(key, seen, new, both)
        second.put(key, seen, new, both)
        await future

    return put


def through_redis_py(ports: tuple[int, int]) -> PutPair:
    import redis.asyncio

    scripts = [redis.asyncio.Redis(port=port, max_connections=MAX_IN_FLIGHT).register_script(PUT) for port in ports]

    async def put_one(at: int, key: bytes, seen: bytes, raw: bytes) -> None:
        if await scripts[at](keys=[b"coatcheck:{farm}:" + key], args=[seen, LIFE_MS, raw, b"notices:"]) != 1:
            raise RuntimeError("not accepted")

    async def put(key: bytes, seen: Version | None, new: Entry) -> None:
        saw, raw = seen if seen else b"", new.encode()
        await asyncio.gather(put_one(0, key, saw, raw), put_one(1, key, saw, raw))

    return put


async def nothing(key: bytes, seen: Version | None, new: Entry) -> None:
    """The harness alone: its cost is subtracted."""
    await asyncio.sleep(0)


async def cpu_us_per_put(put: PutPair, in_flight: int, puts: int) -> float:
    keys = [secrets.token_bytes(16) for _ in range(SESSIONS)]
    share = puts // in_flight

    async def browser(number: int) -> None:
        mine = keys[number::in_flight]
        seen: dict[bytes, Version] = {}
        for at in range(share):
            key = mine[at % len(mine)]
            before = seen.get(key)
            version = before.next_write() if before else Version(1, OWNER, 0)
            await put(key, before, Entry(version, (version,), False, LIFE_MS, PAYLOAD))
            seen[key] = version

    gc.collect()
    began = time.process_time()
    await asyncio.gather(*[browser(number) for number in range(in_flight)])
    return (time.process_time() - began) / (share * in_flight) * 1e6


async def measure(in_flight: int, rounds: int, puts: int, ports: dict[str, tuple[int, int]]) -> None:
    servers = {
        "link, session servers": tuple(SessionServerStore(f"s{p}", "127.0.0.1", p) for p in ports["own"]),
        "link, Redis": tuple(ValkeyStore(f"r{p}", f"redis://127.0.0.1:{p}") for p in ports["redis"]),
    }
    for pair in servers.values():
        for store in pair:
            await store.open()
    ways: dict[str, PutPair] = {"harness alone": nothing}
    ways |= {name: through_link(pair) for name, pair in servers.items()}
    if importlib.util.find_spec("redis") is not None:
        ways["redis-py asyncio, Redis"] = through_redis_py(ports["redis"])
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds + 1):  # the first round warms up
        for name, put in ways.items():
            figures[name].append(await cpu_us_per_put(put, in_flight, puts))
    harness = statistics.median(figures["harness alone"][1:])
    print(f"\n{in_flight} in flight, {rounds} rounds of {puts} puts, two servers each, loop: {loop_name()}")
    print(f"{'':26} {'added CPU us/put':>17} {'min':>7} {'max':>7}")
    for name, values in figures.items():
        taken = values[1:]
        base = 0.0 if name == "harness alone" else harness
        print(f"{name:26} {statistics.median(taken) - base:17.1f} {min(taken) - base:7.1f} {max(taken) - base:7.1f}")
    for pair in servers.values():
        for store in pair:
            await store.aclose()


def loop_name() -> str:
    return type(asyncio.get_running_loop()).__module__.split(".")[0]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def start(stack: ExitStack, command: list[str], port: int) -> int:
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    stack.callback(process.wait)
    stack.callback(process.kill)
    deadline = time.monotonic() + 10
    while True:
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return port
        if time.monotonic() > deadline:
            raise SystemExit(f"{command[0]} does not listen")
        time.sleep(0.02)


def start_own(stack: ExitStack) -> int:
    port = free_port()
    command = [sys.executable, "-m", "coatcheck.session_server", "--listen", f"127.0.0.1:{port}"]
    return start(stack, command, port)


def start_redis(stack: ExitStack, folder: Path) -> int:
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    return start(stack, ["redis-server", *options, "--loglevel", "warning"], port)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--in-flight", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--puts", type=int, default=4000)
    parser.add_argument("--loop", choices=["asyncio", "uvloop"], default="uvloop")
    options = parser.parse_args()
    if not 1 <= options.in_flight <= MAX_IN_FLIGHT:
        parser.error(f"--in-flight: 1 to {MAX_IN_FLIGHT}")
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        ports = {
            "own": (start_own(stack), start_own(stack)),
            "redis": (start_redis(stack, folder), start_redis(stack, folder)),
        }
        if hasattr(os, "sched_setaffinity") and (os.cpu_count() or 1) > 1:
            os.sched_setaffinity(0, {0})  # one core, as a web server has
        story = measure(options.in_flight, options.rounds, options.puts, ports)
        if options.loop == "uvloop" and importlib.util.find_spec("uvloop") is not None:
            import uvloop

            uvloop.run(story)
        else:
            asyncio.run(story)


if __name__ == "__main__":
    main()
