"""``make mutants``: plant each fault and see it noticed. Arguments: names of faults, patterns allowed; all without."""

from __future__ import annotations

import fnmatch
import os
import sys

from .mutant import Stale, load_all
from .runner import run_all

JOBS = 2


def main(wanted: list[str]) -> int:
    try:
        mutants = load_all()
    except Stale as stale:
        print(f"mutants: {stale}", file=sys.stderr)
        return 2
    unknown = [word for word in wanted if not any(fnmatch.fnmatchcase(mutant.name, word) for mutant in mutants)]
    if unknown:
        print(f"mutants: there is no {', '.join(unknown)}", file=sys.stderr)
        return 2
    chosen = [one for one in mutants if not wanted or any(fnmatch.fnmatchcase(one.name, word) for word in wanted)]
    jobs = int(os.environ.get("JOBS") or JOBS)
    return 1 if run_all(chosen, jobs, lambda line: print(line, flush=True)) else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
