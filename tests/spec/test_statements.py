"""Every numbered statement of the specification is cited by a test, and says what MUST or MAY be."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
PAGES = TESTS.parents[1] / "docs" / "spec"
STATEMENT = re.compile(r"^\*\*([A-Z]\d+)\*\* (.+(?:\n(?!\*\*[A-Z]\d+\*\* ).+)*)", re.M)
WORDS = re.compile(r"\b(MUST NOT|MUST|SHOULD|MAY)\b")


def statements() -> dict[str, str]:
    found: dict[str, str] = {}
    for page in sorted(PAGES.glob("*.md")):
        for number, text in STATEMENT.findall(page.read_text()):
            assert number not in found, f"{number} stands twice"
            found[number] = text
    return found


def cited_in(source: str) -> set[str]:
    """The numbers in ``@cites(...)`` of the tests of a file."""
    cited: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.FunctionDef) or not node.name.startswith("test_"):
            continue
        for mark in node.decorator_list:
            if isinstance(mark, ast.Call) and isinstance(mark.func, ast.Name) and mark.func.id == "cites":
                cited |= {argument.value for argument in mark.args if isinstance(argument, ast.Constant)}
    return cited


def missing(numbers: set[str], cited: set[str]) -> tuple[set[str], set[str]]:
    """Statements without a test, and citations of nothing."""
    return numbers - cited, cited - numbers


STATEMENTS = statements()
CITED = set().union(*(cited_in(file.read_text()) for file in TESTS.glob("test_*.py")))


def test_every_statement_has_a_test_and_every_citation_a_statement() -> None:
    untested, unknown = missing(set(STATEMENTS), CITED)
    assert not untested, f"no test cites {sorted(untested)}"
    assert not unknown, f"cited, and in no page: {sorted(unknown)}"
    assert len(STATEMENTS) > 50


def test_a_statement_without_a_test_would_be_seen() -> None:
    assert missing({"K1", "K9"}, cited_in("@cites('K1', 'X1')\ndef test_it(): ...")) == ({"K9"}, {"X1"})


@pytest.mark.parametrize("number", sorted(STATEMENTS))
def test_a_statement_binds(number: str) -> None:
    assert WORDS.search(STATEMENTS[number]), f"{number} says nothing that MUST or MAY be"


def test_numbers_are_without_gaps() -> None:
    for letter in sorted({number[0] for number in STATEMENTS}):
        numbers = [int(number[1:]) for number in STATEMENTS if number[0] == letter]
        assert numbers == list(range(1, len(numbers) + 1)), letter
