"""``make network-test``: runs of some minutes each, with a seed of its own, until the time is over."""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import tempfile
import time
from pathlib import Path

from .run import BROWSERS, Run

RUN_S = 300.0
"""Of one run; then the farms start afresh."""


def main(arguments: list[str]) -> int:
    parser = argparse.ArgumentParser(prog="python -m network")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long in all (5)")
    parser.add_argument("--seed", type=int, default=0, help="of the first run; each further one adds 1 (the time)")
    parser.add_argument("--browsers", type=int, default=BROWSERS, help=f"how many ({BROWSERS})")
    parser.add_argument("--keep", type=Path, help="a folder for the stories of all runs")
    options = parser.parse_args(arguments)
    seed = options.seed or int(time.time())
    left_s, broken = options.minutes * 60, 0
    while left_s > 0:
        length_s = min(RUN_S, left_s)
        folder = Path(tempfile.mkdtemp(prefix="cc-n-")) if options.keep is None else options.keep / f"seed-{seed}"
        folder.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(Run(seed, length_s, folder, options.browsers).run())
        for line in report.lines():
            print(line, flush=True)
        if report.broken:
            print(f"story: {folder}/network.jsonl; again: python -m network --seed {seed} --minutes {length_s / 60:g}")
        elif options.keep is None:
            shutil.rmtree(folder)
        broken += len(report.broken)
        left_s -= length_s
        seed += 1
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
