"""Every benchmark, one after the other; renews the tables of RESULTS.md. ``--quick`` for a shorter look."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.processes import ROOT, environment

BENCHMARKS = [
    ["benchmarks.middleware", "--write-results"],
    ["benchmarks.kill", "--write-results"],
    ["benchmarks.director"],
]


def main() -> int:
    more = [argument for argument in sys.argv[1:] if argument == "--quick"]
    failed = []
    for module, *arguments in BENCHMARKS:
        print(f"\n== {module}", flush=True)
        command = [sys.executable, "-m", module, *arguments, *more]
        if subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode:
            failed.append(module)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
