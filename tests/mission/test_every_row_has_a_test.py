"""Each behaviour that the mission claims has a test file of its own, or waits for a part that is not built yet."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

HERE = Path(__file__).parent

DUE = (
    "A1", "A2", "A3", "A4", "A5", "A6", "A7", "A8", "A9", "A10", "A11", "A12", "A13",
    "B1", "B2", "B3", "B4", "B6", "B7", "B8", "B9", "B10",
    "C1", "C2", "C3", "C4", "C5", "C6", "C7", "C8", "C9", "C10", "C11", "C12",
    "D1", "D2", "D3", "D4", "D5", "D6", "D7", "D8", "D9",
)  # fmt: skip

NOT_YET_DUE: dict[str, tuple[str, ...]] = {}
"""The parts that are not built yet, and the rows that wait for them."""


def row_of(file: Path) -> str:
    """``test_a04_new_token...py`` is about A4."""
    found = re.fullmatch(r"test_([a-d])(\d\d)_[a-z0-9_]+", file.stem)
    assert found is not None, f"{file.name}: a mission test is called test_<letter><two digits>_<behaviour>.py"
    return f"{found[1].upper()}{int(found[2])}"


FILES = {row_of(file): file for file in sorted(HERE.glob("test_[a-d][0-9]*.py"))}


def test_the_table_is_whole() -> None:
    waiting = [row for rows in NOT_YET_DUE.values() for row in rows]
    rows = [*DUE, *waiting]
    assert len(rows) == len(set(rows)), "each row once"
    # The mission has no row B5.
    expected = {"A": range(1, 14), "B": [n for n in range(1, 11) if n != 5], "C": range(1, 13), "D": range(1, 10)}
    assert set(rows) == {f"{letter}{number}" for letter, numbers in expected.items() for number in numbers}


def test_no_test_is_about_a_row_that_is_not_due() -> None:
    assert set(FILES) == set(DUE), "a part that is built moves its rows from NOT_YET_DUE to DUE"


@pytest.mark.parametrize("row", DUE)
def test_a_row_has_a_file_that_quotes_it_and_tests_it(row: str) -> None:
    tree = ast.parse(FILES[row].read_text())
    assert (ast.get_docstring(tree) or "").startswith(f'{row}: "'), "its docstring quotes the behaviour"
    tests = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
    assert tests
    for test in tests:
        assert any(isinstance(node, ast.Assert) for node in ast.walk(test)), f"{test.name} asserts something"
