"""Borrowers killed at random, an upstream that expires tokens and kills sessions at random, four sessions per user.

    python tests/pool/chaos.py --seconds 60 [--store redis|postgresql|sqlite|URL]

Exits 0 only if the limit was never exceeded, no token was in two hands, no waiter starved, and no call failed for a
reason that is the pool's.
"""

from __future__ import annotations

import argparse
import json
import random
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path.insert(0, str(HERE.parent))

from forked import ForkedProcess  # noqa: E402
from pool.borrower import POOL  # noqa: E402
from pool.chaos_borrower import PER_USER, UPSTREAM_IDLE_S, WAIT_S  # noqa: E402
from pool.soap.provider_process import ProviderProcess  # noqa: E402
from ports import free_port  # noqa: E402

LOADED = (*POOL, "coatcheck.pool.adapters.zeep", "zeep")
BORROWERS = 4
THREADS = 4
USERS = 3
KILL_EVERY_S = (0.6, 2.0)
LEAST_KILLS = 3
START_S = 30
SETTLE_S = 1.0
SILENT_CALLS = 5
"""So many calls without one that went well are a starved caller; one or two, an upstream's fault before a kill."""


@dataclass
class Outcome:
    """What happened, and what of it must not."""

    calls: int = 0
    kills: int = 0
    longest_s: float = 0.0
    upstream_faults: int = 0
    pool_failures: list[str] = field(default_factory=list)
    silent_callers: list[str] = field(default_factory=list)
    provider: dict[str, Any] = field(default_factory=dict)

    def counter(self, name: str) -> int:
        return int(self.provider["counters"].get(name, 0))

    def wrongs(self) -> list[str]:
        """Everything that must not have happened."""
        found = [f"a call failed because of the pool: {failure}" for failure in self.pool_failures[:10]]
        found += [f"{caller} never got through" for caller in self.silent_callers]
        if self.provider["peak_sessions_per_user"] > PER_USER:
            found.append(f"the upstream had {self.provider['peak_sessions_per_user']} sessions of one user")
        if self.counter("fault.TooManySessions"):
            found.append(f"the upstream refused {self.counter('fault.TooManySessions')} logins beyond its limit")
        if self.counter("fault.SessionBusy"):
            found.append(f"{self.counter('fault.SessionBusy')} times a session was in two hands")
        stale = self.counter("fault.TokenExpired") - self.counter("expired")
        if stale:
            found.append(f"{stale} tokens were used that had been replaced")
        if self.longest_s > WAIT_S:
            found.append(f"a call took {self.longest_s} s")
        return found

    def summary(self) -> str:
        names = ("logins", "logouts", "expired", "killed")
        counters = ", ".join(f"{name} {self.counter(name)}" for name in names)
        return (
            f"{self.calls} calls, {self.kills} borrowers killed, longest call {self.longest_s:.2f} s, "
            f"peak {self.provider['peak_sessions_per_user']} sessions per user; upstream: {counters}; "
            f"{self.upstream_faults} calls failed at the upstream, {len(self.pool_failures)} in the pool"
        )


@contextmanager
def own_redis(folder: Path) -> Iterator[str]:
    """A Redis of our own."""
    port = free_port()
    command = ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + START_S
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.terminate()
        server.wait(60)


@contextmanager
def own_postgresql() -> Iterator[str]:
    """A PostgreSQL of our own, as the contract suite starts it."""
    sys.path.append(str(HERE.parent / "contracts"))
    from token_store_backends import PostgresqlBackend

    backend = PostgresqlBackend()
    backend.start()
    try:
        yield backend.url
    finally:
        backend.stop()


def _end(process: ForkedProcess) -> None:
    process.kill()
    process.wait(60)
    process.stdout.close()


class Crowd:
    """The borrowers' processes; one that is killed is replaced."""

    def __init__(self, store: str, wsdl: str, folder: Path) -> None:
        self._arguments = (store, wsdl)
        self._folder = folder
        self._started = 0
        self._running: list[ForkedProcess] = []
        self.kills = 0

    def start_one(self) -> None:
        output = self._folder / f"borrower-{self._started}.jsonl"
        self._started += 1
        command = [str(HERE / "chaos_borrower.py"), *self._arguments, str(output), str(THREADS), str(USERS)]
        with (self._folder / f"{output.stem}.log").open("wb") as log:
            self._running.append(ForkedProcess(*command, loaded=LOADED, stderr=log))

    def kill_one(self, dice: random.Random) -> None:
        victim = self._running.pop(dice.randrange(len(self._running)))
        assert victim.poll() is None, "a borrower ended by itself; its log has the reason"
        _end(victim)
        self.kills += 1

    def end(self) -> None:
        for process in self._running:
            _end(process)

    def survivors(self) -> int:
        return len(self._running)


def run_chaos(seconds: float, store: str, folder: Path, seed: int) -> Outcome:
    """Let it run, then read what was written down."""
    dice = random.Random(seed)
    with ExitStack() as stack:
        if store == "redis":
            store = stack.enter_context(own_redis(folder))
        elif store == "postgresql":
            store = stack.enter_context(own_postgresql())
        elif store == "sqlite":
            store = f"sqlite:///{folder / 'tokens.db'}"
        provider = ProviderProcess(
            *("--user", "*:secret", "--max-sessions-per-user", str(PER_USER), "--idle", str(UPSTREAM_IDLE_S)),
            *("--expire-rate", "0.02", "--kill-rate", "0.02", "--slow-login", "0.05", "--latency", "0.03"),
            *("--single-use", "--seed", str(seed)),
            log=folder / "provider.log",
        )
        stack.callback(provider.end)
        crowd = Crowd(store, provider.wsdl, folder)
        stack.callback(crowd.end)
        for _ in range(BORROWERS):
            crowd.start_one()
        deadline = time.monotonic() + START_S
        while sum(1 for _ in folder.glob("*.jsonl")) < BORROWERS and time.monotonic() < deadline:
            time.sleep(0.1)
        ends_at = time.monotonic() + seconds
        # On a slow machine it goes on until enough were killed.
        while (now := time.monotonic()) < ends_at or (crowd.kills < LEAST_KILLS and now < ends_at + START_S):
            time.sleep(dice.uniform(*KILL_EVERY_S))
            crowd.kill_one(dice)
            crowd.start_one()
        time.sleep(SETTLE_S)
        crowd.end()
        return read_outcome(folder, crowd.kills, provider.admin("stats"))


def read_outcome(folder: Path, kills: int, provider: dict[str, Any]) -> Outcome:
    """From the borrowers' lines; a line that a kill cut off does not count."""
    outcome = Outcome(kills=kills, provider=provider)
    for file in sorted(folder.glob("*.jsonl")):
        succeeded: set[str] = set()
        asked: Counter[str] = Counter()
        for line in file.read_text().splitlines():
            try:
                call = json.loads(line)
            except ValueError:
                continue
            outcome.calls += 1
            outcome.longest_s = max(outcome.longest_s, call["took_s"])
            asked[call["caller"]] += 1
            if call["error"] is None:
                succeeded.add(call["caller"])
            elif call["by_pool"]:
                outcome.pool_failures.append(call["error"])
            else:
                outcome.upstream_faults += 1
        often = {caller for caller, calls in asked.items() if calls >= SILENT_CALLS}
        outcome.silent_callers += sorted(often - succeeded)
    return outcome


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--store", default="redis", help="redis, postgresql or sqlite (one of its own), or a URL")
    parser.add_argument("--seed", type=int, default=random.randrange(2**31))
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="coatcheck-chaos-"))
    try:
        outcome = run_chaos(options.seconds, options.store, folder, options.seed)
        print(outcome.summary())
        for wrong in outcome.wrongs():
            print(f"WRONG: {wrong}")
        print(f"seed {options.seed}")
        return 1 if outcome.wrongs() else 0
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    raise SystemExit(main())
