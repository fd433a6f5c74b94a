"""Kills web servers at random under live TLS connections, as often as wanted::

    PYTHONPATH=tests python -m farm.live_kills --kills 1000 --seed 8

Prints what clients and directors saw, and ends with 1 if a client noticed anything.
"""

from __future__ import annotations

import argparse
import operator
import os
import random
import signal
import sys
import tempfile
import time
from pathlib import Path

from certificate import make_certificate

from .farm_process import Farm, eventually
from .live_crowd import LIVE_APP, LiveCrowd

WEB_SERVERS = 4
CLIENTS = 50


def arguments(certificate: tuple[Path, Path]) -> tuple[str, ...]:
    """Of a farm whose connections are taken over."""
    chain, key = map(str, certificate)
    tls = ("--tls-certificate", chain, "--tls-key", key, "--tls", "end-to-end", "--takeover")
    return ("live:app", "--port", "0", "--web", str(WEB_SERVERS), *tls)


def kill_at_random(farm: Farm, crowd: LiveCrowd, kills: int, draw: random.Random) -> None:
    """Kills web servers, but never the last that the director knows, nor three over one request (docs/takeover.md)."""
    killed: dict[str, int] = {}
    seen: list[list[int]] = []

    def several() -> list[str]:
        rows = [row for row in farm.note()["processes"] if row["name"].startswith("web-")]
        ready = [row["name"] for row in rows if row["state"] == "ready" and row["pid"] != killed.get(row["name"])]
        if len(ready) > 1:
            director = farm.status()["director"][0]
            healthy = {row["name"] for row in (director.get("details") or {}).get("servers", ()) if row["healthy"]}
            ready = [name for name in ready if name in healthy]
        return ready if len(ready) > 1 else []

    def all_served() -> bool:
        """Since the kill before the last, or a client has seen something, and is done."""
        return bool(crowd.problems) or all(map(operator.lt, seen[-2], crowd.answers))

    for _ in range(kills):
        if len(seen) > 1:
            eventually(all_served, "an answer for every client")
        name = draw.choice(eventually(several, "two web servers that take requests"))
        killed[name] = farm.pid(name)
        os.kill(killed[name], signal.SIGKILL)
        seen.append(list(crowd.answers))
        time.sleep(0.2 + draw.random() * 0.6)


def counts(farm: Farm) -> dict[str, int]:
    """What the director says of connections that lost their web server."""
    details = farm.healthy_status()["director"][0]["details"]
    return {name: details[name] for name in ("taken_over", "moved", "broken_off")}


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        certificate = make_certificate(folder)
        (folder / "live.py").write_text(LIVE_APP)
        farm = Farm(folder, arguments(certificate), {})
        try:
            farm.wait_running()
            with LiveCrowd(farm, certificate, CLIENTS, posts=False) as crowd:
                kill_at_random(farm, crowd, options.kills, random.Random(options.seed))
            print(
                f"{options.kills} kills, {crowd.answered} answers, {crowd.moved} changes of the server, {counts(farm)}"
            )
            print("\n".join(crowd.problems) or "no client noticed anything")
        finally:
            farm.end()
    return bool(crowd.problems)


if __name__ == "__main__":
    sys.exit(main())
