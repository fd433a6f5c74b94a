"""What a read costs after a pause, against a hot one: the web server's CPU, with real session servers.

Sessions are read in rounds: hot (each was read a moment before), after a pause with the links heard, and after the same
pause with leases that do not go on, so that every session is checked at all session servers. The figure is CPU time of
this process per read (user + system), without a web framework. Usage::

    python -m benchmarks.pause [--pause 10] [--sessions 2000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import statistics
import time

from benchmarks.processes import Processes
from coatcheck.drivers.sessions import Sessions
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.stores.session_server_store import SessionServerStore
from coatcheck.tokens.keyring import KeyRing

DATA = {"cart": ["tea", "coffee"], "notes": "x" * 380}


class Readers:
    """One web server, and browsers that only read."""

    def __init__(self, ports: list[int]) -> None:
        self.sessions = Sessions(
            farm="bench",
            server_name="web",
            stores=[SessionServerStore(f"s{n}", "127.0.0.1", port) for n, port in enumerate(ports)],
            ring=KeyRing([os.urandom(32)]),
            cookies=CookiePolicy(),
        )
        self.cookies: list[bytes] = []

    async def begin(self, count: int) -> None:
        await self.sessions.start()
        for _ in range(count):
            opened = await self.sessions.open()
            opened.session.update(DATA)
            answer = await self.sessions.finish(opened)
            self.cookies.append(answer.cookies[0][1].partition(b";")[0])

    async def read_all(self) -> float:
        """CPU microseconds per read."""
        gc.collect()
        began = time.process_time()
        for number, cookie in enumerate(self.cookies):
            if not number % 50:
                await asyncio.sleep(0)  # an event loop that stands still hears nobody
            opened = await self.sessions.open(cookie)
            assert opened.session["notes"] == DATA["notes"]
            await self.sessions.finish(opened)
        return (time.process_time() - began) / len(self.cookies) * 1e6

    @property
    def stalls(self) -> int:
        """How often this process stood still for so long that it trusts no lease: then nothing is measured."""
        guard = self.sessions._stall_guard
        return guard.stalls if guard is not None else 0


async def measure(ports: list[int], pause_s: float, count: int, rounds: int) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {"hot": [], "after the pause": [], "after the pause, checked": []}
    readers = Readers(ports)
    await readers.begin(count)
    links = readers.sessions.copies.links
    await readers.read_all()  # the first return of a browser is written down
    while len(found["hot"]) < rounds:
        await readers.read_all()
        stalls = readers.stalls
        found["hot"].append(await readers.read_all())
        await asyncio.sleep(pause_s)
        found["after the pause"].append(await readers.read_all())
        links.prolong = False
        await asyncio.sleep(pause_s)
        found["after the pause, checked"].append(await readers.read_all())
        links.prolong = True
        await asyncio.sleep(2 * links.beat_s)
        if readers.stalls != stalls:
            print("this process was stopped by others for a quarter of a second: the round is left out", flush=True)
            for figures in found.values():
                figures.pop()
    await readers.sessions.aclose()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pause", type=float, default=10.0)
    parser.add_argument("--sessions", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with Processes() as processes:
        ports = [processes.start_session_server(f"s{number}")[0] for number in range(2)]
        found = asyncio.run(measure(ports, options.pause, options.sessions, options.rounds))
    hot = statistics.median(found["hot"])
    for name, figures in found.items():
        middle = statistics.median(figures)
        print(
            f"{name:26s} {middle:7.1f} µs a read ({middle / hot:.2f} of hot; {min(figures):.1f} to {max(figures):.1f})"
        )


if __name__ == "__main__":
    main()
