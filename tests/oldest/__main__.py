"""Install the oldest version of each framework beside the newest, and run its adapter's tests with it.

``PYTHONPATH=tests python -m oldest [NAME ...]``; exit code 1 if a test fails.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile

from .versions import TESTED, oldest


def run(name: str, folder: str) -> bool:
    wanted = f"{name}=={oldest(name)}"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--target", folder, wanted], check=True)
    beside = {**os.environ, "PYTHONPATH": f"{folder}:{os.environ.get('PYTHONPATH', '')}"}
    found = f"import importlib.metadata as m; print(m.version({name!r}))"
    said = subprocess.run([sys.executable, "-c", found], env=beside, check=True, capture_output=True, text=True)
    print(f"== {name} {said.stdout.strip()}", flush=True)
    tests = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTED[name]]
    return subprocess.run(tests, env=beside, check=False).returncode == 0


def main(names: list[str]) -> int:
    failed = []
    for name in names or TESTED:
        with tempfile.TemporaryDirectory() as folder:
            if not run(name, folder):
                failed.append(name)
    print("failed: " + ", ".join(failed) if failed else "all pass")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
