"""Each side judges what the other has made: ``python -m spec.exchange --count 100000`` in ``tests``."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .product import Case, Maker, answer

VERIFIER = Path(__file__).parent / "verifier" / "main.mjs"
TIMEOUT_S = 3600


def node() -> str:
    """The interpreter; the Makefile installs it."""
    found = shutil.which("node") or shutil.which("nodejs")
    assert found is not None, "node is missing: apt-get install nodejs"
    return found


def verifier_says(cases: Iterable[Case]) -> list[Any]:
    """The verifier's answers to these cases."""
    with tempfile.TemporaryFile() as asked:
        asked.writelines(json.dumps(case).encode() + b"\n" for case in cases)
        asked.seek(0)
        done = subprocess.run(
            [node(), str(VERIFIER), "answer"], stdin=asked, stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S
        )
    return [json.loads(line) for line in done.stdout.splitlines()]


def verifier_makes(seed: int | str, count: int) -> list[dict[str, Any]]:
    """Cases of the verifier's, each with its answer."""
    arguments = [node(), str(VERIFIER), "make", str(seed), str(count)]
    done = subprocess.run(arguments, stdout=subprocess.PIPE, check=True, timeout=TIMEOUT_S)
    return [json.loads(line) for line in done.stdout.splitlines()]


def outcome(ask: Case, said: Any) -> str:
    """What kind of case this was, to be counted."""
    if not isinstance(said, dict):
        return str(ask["kind"])
    return f"{ask['kind']} {said.get('refused') or said.get('verdict') or 'yes'}"


def exchange(seed: int, count: int) -> Counter[str]:
    """``count`` cases of each side, judged by the other; counts what kinds there were.

    Raises ``AssertionError`` where the two sides differ.
    """
    kinds: Counter[str] = Counter()
    ours = list(Maker(seed).cases(count))
    theirs = verifier_says(ours)
    assert len(theirs) == len(ours)
    for ask, said in zip(ours, theirs, strict=True):
        assert answer(ask) == said, f"made here, judged there otherwise: {ask}: {answer(ask)} and {said}"
        kinds[f"made here: {outcome(ask, said)}"] += 1
    for each in verifier_makes(seed, count):
        ask, said = each["ask"], each["answer"]
        assert answer(ask) == said, f"made there, judged here otherwise: {ask}: {said} and {answer(ask)}"
        kinds[f"made there: {outcome(ask, said)}"] += 1
    return kinds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    for kind, count in sorted(exchange(arguments.seed, arguments.count).items()):
        sys.stdout.write(f"{count:8} {kind}\n")


if __name__ == "__main__":
    main()
