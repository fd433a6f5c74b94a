"""docs/security-checks.md: each number that is required has tests, and each test exists and starts real processes."""

from __future__ import annotations

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "security-checks.md"
REQUIRED = re.findall(
    r"\S+",
    "7.2.1 7.2.3 7.2.4 9.1.1 9.1.2 9.1.3 9.2.1 9.2.2 9.2.3 T1 T2 "
    "3.3.1 3.3.2 3.3.3 3.3.4 3.3.5 3.4.1 3.4.5 3.5.1 3.5.3 3.7.2 14.2.1 14.2.2 "
    "H1 H2 H3 H4 H5 H6 H7 H8 H9 7.1.1 7.1.2 7.3.1 7.3.2 7.4.1 7.4.2 7.4.3 7.4.5 7.5.2 10.4.5 "
    "14.2.7 16.2.1 16.2.2 16.2.5 16.4.1 16.5.1 16.5.2 16.5.3 O1 O2 S1 S2 S3 "
    "R1 R2 R3 R4 R5 R6 R7 R8 R9 R10 R11 R12 R13 R14",
)
ROWS = dict(re.findall(r"^\| ([A-Z]?[\d.]+) \| .* \| (\[test_.*) \|$", PAGE.read_text(), re.MULTILINE))
TESTS = re.compile(r"\[(test_\w+)(?:\[(\w+)\])?\]\(\.\./(tests/[\w/]+\.py)\)")
STARTERS = ("real_farm", "farm_process", "service_process", "two_farms", "PeerFarm", "session_server_url")
"""What starts processes: modules, and fixtures by their names."""


@cache
def source(path: Path) -> ast.Module:
    return ast.parse(path.read_text())


def functions(path: Path) -> set[str]:
    return {node.name for node in ast.walk(source(path)) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


def names(path: Path) -> set[str]:
    """Every name that the module imports, calls or takes as an argument."""
    found: set[str] = set()
    for node in ast.walk(source(path)):
        if isinstance(node, ast.ImportFrom):
            found |= {*(node.module or "").split("."), *(alias.name for alias in node.names)}
        elif isinstance(node, ast.Name):
            found.add(node.id)
        elif isinstance(node, ast.arg):
            found.add(node.arg)
    return found


def test_every_number_that_is_required_is_there_once() -> None:
    assert sorted(ROWS) == sorted(REQUIRED)
    assert len(re.findall(r"^\| [A-Z]?\d[\d.]* \|", PAGE.read_text(), re.MULTILINE)) == len(REQUIRED)


@pytest.mark.parametrize("number", REQUIRED)
def test_its_tests_exist_and_start_processes(number: str) -> None:
    cited = TESTS.findall(ROWS[number])
    assert cited
    assert ROWS[number] == ", ".join(re.findall(r"\[test_\w+(?:\[\w+\])?\]\([^)]+\)", ROWS[number])), "tests alone"
    for name, case, path in cited:
        file = ROOT / path
        assert name in functions(file), f"{path} has no {name}"
        if case:
            assert case in functions(file) | functions(ROOT / "tests/security/honest.py"), f"{name} has no case {case}"
        assert names(file) & set(STARTERS), f"{path} starts no process"


def test_every_numbered_test_of_the_farms_is_on_the_page() -> None:
    text = PAGE.read_text()
    missing = []
    for path in sorted((ROOT / "tests" / "security").glob("test_*_in_*.py")):
        missing += [name for name in functions(path) if name.startswith("test_") and f"[{name}" not in text]
    assert missing == []
