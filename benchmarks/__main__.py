"""Every benchmark, one after the other; renews the tables of RESULTS.md, except with ``--quick``."""

from __future__ import annotations

import subprocess
import sys

from benchmarks.processes import ROOT, environment

BENCHMARKS = [
    # Module, its arguments, and those for a short look.
    ("benchmarks.middleware", ["--write-results"], ["--quick"]),
    ("benchmarks.scale", ["--write-results"], ["--quick"]),
    ("benchmarks.kill", ["--write-results"], ["--quick"]),
    ("benchmarks.director", ["--write-results"], ["--rounds", "1"]),
    ("benchmarks.tls", ["--write-results"], ["--quick"]),
    ("benchmarks.takeover", ["--write-results"], ["--quick"]),
    ("benchmarks.service", ["--write-results"], ["--quick"]),
    ("benchmarks.behind_nginx", ["--write-results"], ["--quick"]),
    ("benchmarks.frameworks", ["--write-results"], ["--quick"]),
    ("benchmarks.pool", ["--write-results"], ["--quick"]),
    ("benchmarks.pool_crowd", [], ["--quick"]),
]


def main() -> int:
    failed = []
    for module, arguments, quick in BENCHMARKS:
        print(f"\n== {module}", flush=True)
        command = [sys.executable, "-m", module, *(quick if "--quick" in sys.argv else arguments)]
        if subprocess.run(command, cwd=ROOT, env=environment(), check=False).returncode:
            failed.append(module)
    if failed:
        print(f"\nfailed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
