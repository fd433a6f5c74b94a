"""What many hosted sessions, and many session servers, cost a web server: memory, pauses and CPU, in one process.

``python -m benchmarks.scale [--quick] [--write-results]`` prints Markdown. The session servers are in the memory of the
same process and answer at once, so that figures are the web server's alone. A pause is the CPU time
of one callback of the event loop: another program on the same core makes none.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import os
import random
import subprocess
import sys
import time
from operator import truediv
from pathlib import Path
from statistics import median

from benchmarks.report import table, write_section
from coatcheck.drivers.sessions import Sessions
from coatcheck.farm.processes.web_process import GC_THRESHOLD
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.record import Record, encode_data, encode_record
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.chain import Chain, ChainLink
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SealedToken

DATA = {"user": "a" * 20, "cart": "x" * 390}
"""430 bytes as JSON."""
ENCODED = encode_data(DATA)
FEW = 1000
"""Sessions that are hosted at first, and that the requests are for: as many whatever number is hosted."""
TOGETHER = 50
"""Sessions that come in one callback of the event loop while the others are hosted."""
CONCURRENT, REQUESTS, ROUNDS = 32, 3200, 15
WATCHED_S, RECOPIED_S, LIMIT_S = 12.0, 12.0, 1800.0
HOUR_MS = 3_600_000
LEASE_S = 600.0
"""So long that no read asks the session servers: what a question costs is in the other tables."""


class Pauses:
    """Measures every callback of the event loop while it is on."""

    def __init__(self) -> None:
        self._run = asyncio.Handle._run
        self._window: object = None
        self.greatest_ms = 0.0

    def start(self) -> None:
        self.greatest_ms = 0.0
        window = self._window = object()
        run, clock = self._run, time.thread_time

        def measured(handle: asyncio.Handle) -> None:
            began = clock()
            run(handle)
            if self._window is window:  # else it stopped the measuring, and went on with something else
                self.greatest_ms = max(self.greatest_ms, (clock() - began) * 1000)

        asyncio.Handle._run = measured  # type: ignore[method-assign]

    def stop(self) -> float:
        asyncio.Handle._run = self._run  # type: ignore[method-assign]
        self._window = None
        return self.greatest_ms


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def host(sessions: Sessions) -> SealedToken:
    """Let the web server host one session more, as if it had just been stored and then shown; answers its token."""
    copies, now_ms, key = sessions.copies, int(time.time() * 1000), os.urandom(16)
    link = ChainLink(os.urandom(16), now_ms)
    record = Record(ENCODED, now_ms, now_ms + 1, None, Chain(link))
    copy = copies.create(key)
    version = copy.version.next_write()
    copy.contact = copies.puts.contact
    copy.stored_on(copies.placement.ranking(key)[: copies.placement.wanted], version)
    copy.wrote(version, (version,), encode_record(record), now_ms + HOUR_MS)
    copies.cache.add(copy)
    copies.cache.keep_decoded(copy, record)
    copies.puts.earn_lease(copy, time.monotonic() + random.random(), copies.placement.wanted)
    copy.shown_at = now_ms + random.randrange(1000, 2000)
    copy.review_at = copy.shown_at + 60_000
    return SealedToken(key, link.session_id, now_ms, copy.promised)


def put_in_stores(sessions: Sessions, stores: list[MemoryStore], keys: list[bytes]) -> None:
    """Put on the session servers what is hosted, past the driver."""
    copies = sessions.copies
    for key in keys:
        copy = copies.cache.get(key)
        assert copy is not None
        entry = copies.puts.sealed(copy)
        for store in stores:
            if copy.is_on(store.name):
                store.put(key, None, entry, lambda reply: None)


class Browsers:
    """One for each of some sessions: each keeps its cookie."""

    def __init__(self, sessions: Sessions, tokens: list[SealedToken]) -> None:
        self._sessions = sessions
        name = sessions.transport.anonymous.name
        self._cookies = [name + b"=" + sessions.seal(Issue(token, False)) for token in tokens]

    async def _visit(self, browser: int, write: bool) -> None:
        opened = await self._sessions.open(self._cookies[browser])
        assert opened.session["cart"] == DATA["cart"]
        if write:
            opened.session["n"] = opened.session.get("n", 0) + 1
        answer = await self._sessions.finish(opened)
        for name, value in answer.headers:
            if name.lower() == b"set-cookie":
                self._cookies[browser] = value.partition(b";")[0]

    async def request_us(self, write: bool) -> float:
        """CPU of one request without its HTTP and its app (microseconds)."""
        began = time.process_time()
        for start in range(0, REQUESTS, CONCURRENT):
            some = [number % len(self._cookies) for number in range(start, start + CONCURRENT)]
            await asyncio.gather(*(self._visit(browser, write) for browser in some))
        return (time.process_time() - began) / REQUESTS * 1e6


async def started(servers: int) -> tuple[Sessions, list[MemoryStore]]:
    stores = [MemoryStore(f"session-{n}", time.monotonic, max_bytes=1 << 36) for n in range(1, servers + 1)]
    policy = ReplicationPolicy(max_sessions=10**6, lease_s=LEASE_S)
    ring = KeyRing([os.urandom(32)])
    sessions = Sessions(farm="bench", server_name="web-1", stores=stores, ring=ring, replication=policy)
    await sessions.start()
    gc.collect()  # as a web server of a farm does when it has started
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 10, 10)
    return sessions, stores


async def medians(crowds: dict[str, Browsers], first: str) -> dict[str, float]:
    """CPU of a read and of a write for each of these, in turns; and its ratio to that of ``first``, round by round."""
    found = {}
    for what in ("read", "write"):
        rounds: dict[str, list[float]] = {name: [] for name in crowds}
        for _ in range(ROUNDS + 1):
            for name, browsers in crowds.items():
                rounds[name].append(await browsers.request_us(write=what == "write"))
        for name, taken in rounds.items():
            found[f"{name}_{what}_us"] = median(taken[1:])
            found[f"{name}_{what}_ratio"] = median(map(truediv, taken[1:], rounds[first][1:]))
    return found


async def measure_few(*counts: int) -> dict[str, float]:
    return await medians({str(servers): await few(servers) for servers in counts}, "2")


async def few(servers: int) -> Browsers:
    """The browsers of a web server that hosts no session but theirs."""
    sessions, stores = await started(servers)
    tokens = [host(sessions) for _ in range(FEW)]
    put_in_stores(sessions, stores, [token.key for token in tokens])
    return Browsers(sessions, tokens)


async def measure_many(count: int, servers: int) -> dict[str, float]:
    beside = await few(servers)
    sessions, stores = await started(servers)
    pauses, found, tokens = Pauses(), dict[str, float](), list[SealedToken]()
    before, objects = resident_bytes(), len(gc.get_objects())
    pauses.start()
    for number in range(count):
        token = host(sessions)
        if number % (count // FEW) == 0:
            tokens.append(token)
        if number % TOGETHER == 0:
            await asyncio.sleep(0)
    found["growing_ms"] = pauses.stop()
    gc.collect()
    found["bytes"] = (resident_bytes() - before) / count
    found["objects"] = (len(gc.get_objects()) - objects) / count
    began = time.thread_time()
    gc.collect()
    found["collection_ms"] = (time.thread_time() - began) * 1000
    put_in_stores(sessions, stores, [token.key for token in tokens])
    browsers = Browsers(sessions, tokens)
    found |= await medians({"many": browsers, "few": beside}, "few")
    pauses.start()
    await browsers.request_us(write=False)
    await browsers.request_us(write=True)
    await asyncio.sleep(WATCHED_S)
    found["steady_ms"] = pauses.stop()
    pauses.start()
    used, since = time.process_time(), time.monotonic()
    await stores[0].aclose()
    while time.monotonic() - since < RECOPIED_S:
        await asyncio.sleep(0.2)
    found["loss_ms"] = pauses.stop()
    mended = sessions.status()["recopy"]["outcomes"].get("mended", 0)
    found["recopied_per_cpu_s"] = mended / (time.process_time() - used)
    return found


def in_a_process(*numbers: int) -> dict[str, float]:
    words = [sys.executable, "-m", "benchmarks.scale", "--one", *map(str, numbers)]
    done = subprocess.run(words, stdout=subprocess.PIPE, text=True, timeout=LIMIT_S, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    print(numbers, found, file=sys.stderr, flush=True)
    return found


def many_sessions(count: int) -> str:
    found = in_a_process(count, 3)
    rows = [[text, f"{found[name]:{form}}"] for name, (text, form) in OF_MANY.items()]
    return table([f"{count:,} hosted sessions of 430 bytes, 3 session servers", ""], rows)


def many_servers() -> str:
    counts = (1, 2, 9, 16)
    found = in_a_process(*counts)
    rows = []
    for servers in counts:
        cells = [str(servers)]
        for what in ("read", "write"):
            cells += [f"{found[f'{servers}_{what}_us']:.1f}", f"{found[f'{servers}_{what}_ratio']:.2f}"]
        rows.append(cells)
    return table(["session servers", "read (µs)", "of that with 2", "write (µs)", "of that with 2"], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="50,000 sessions instead of 400,000")
    parser.add_argument("--write-results", action="store_true")
    parser.add_argument("--one", nargs="+", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        many = options.one[0] > FEW
        found = asyncio.run(measure_many(*options.one) if many else measure_few(*options.one))
        print(json.dumps(found), flush=True)
        os._exit(0)
    text = "\n\n".join([many_sessions(50_000 if options.quick else 400_000), many_servers()])
    print(text)
    if options.write_results:
        write_section("scale", text)


OF_MANY = {
    "bytes": ("resident bytes for each", ".0f"),
    "objects": ("objects for each that the garbage collector visits", ".2f"),
    "collection_ms": ("a full garbage collection (ms)", ".1f"),
    "many_read_us": ("a read (µs)", ".1f"),
    "many_read_ratio": ("of that of a web server that hosts 1,000, in turns", ".2f"),
    "many_write_us": ("a write (µs)", ".1f"),
    "many_write_ratio": ("of that of a web server that hosts 1,000, in turns", ".2f"),
    "growing_ms": ("greatest pause while they came, 50 in one callback (ms)", ".1f"),
    "steady_ms": ("greatest pause with requests and without (ms)", ".1f"),
    "loss_ms": ("greatest pause when a session server is lost (ms)", ".1f"),
    "recopied_per_cpu_s": ("copied again in a second of CPU, session server included", ".0f"),
}

if __name__ == "__main__":
    main()
