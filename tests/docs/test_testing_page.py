"""docs/testing.md is run as a user would run it: its files in a folder, and pytest."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import coatcheck.errors

ROOT = Path(__file__).parents[2]
SOURCE = Path(coatcheck.errors.__file__).parents[1]
PAGE = ROOT / "docs" / "testing.md"
FILE = re.compile(r"```python\n# (\w+\.py)\n(.*?)```", re.S)


def test_the_pages_tests_pass(tmp_path: Path) -> None:
    files = dict(FILE.findall(PAGE.read_text()))
    assert PAGE.read_text().count("```python") == len(files) == 3
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    written = sum(text.count("def test_") for text in files.values())
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTEST", "SESSION"))}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error::ResourceWarning"],
        cwd=tmp_path, env=environment | {"PYTHONPATH": str(SOURCE)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{written} passed" in done.stdout
    assert "skipped" not in done.stdout
