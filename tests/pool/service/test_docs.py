"""The commands in the pages about the pool exist, with their flags; so do the addresses."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from coatcheck.pool.service.routes import OPERATIONS

DOCS = Path(__file__).parents[3] / "docs"
PAGES = ("soap.md", "soap-gateway.md", "pool-service.md")
LINES = sorted({line for page in PAGES for line in re.findall(r"^coatcheck (.*)$", (DOCS / page).read_text(), re.M)})


@pytest.mark.parametrize("line", LINES)
def test_documented_commands_and_their_flags_exist(line: str) -> None:
    words = line.split("#")[0].split()
    command = [sys.executable, "-m", "coatcheck.cli", *words[:2], "--help"]
    shown = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout
    for flag in (word for word in words if word.startswith("--")):
        assert flag in shown, f"coatcheck {line}: no {flag}"


def test_every_address_is_documented() -> None:
    page = (DOCS / "pool-service.md").read_text()
    for operation in OPERATIONS:
        assert operation.path in page, operation.path
