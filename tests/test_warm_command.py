"""A command that was forked says and does what one does that an operator's shell starts."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from warm_command import run

BEARER = "a-bearer-token-for-the-tests"


@pytest.mark.parametrize(
    "words",
    [
        "pool serve --token-file bearer",
        "pool soap-gateway --token-file bearer --user A --upstream http://127.0.0.1:1/ --login-operation {urn:x}A",
        "soap serve",
        "service serve --callers bearer --name shop --session-server sqlite:///s.db",
    ],
)
def test_a_forked_command_is_no_other(words: str, tmp_path: Path) -> None:
    (tmp_path / "bearer").write_text(BEARER)
    (tmp_path / "bearer").chmod(0o600)
    command = [*words.split(), "--listen", "nonsense"]
    cold = subprocess.run(
        [sys.executable, "-m", "coatcheck.cli", *command], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    warm = run(*command, cwd=tmp_path)
    assert (warm.returncode, warm.stdout, warm.stderr) == (cold.returncode, cold.stdout, cold.stderr)
    assert cold.returncode == 2 and cold.stderr.startswith("coatcheck: ")
