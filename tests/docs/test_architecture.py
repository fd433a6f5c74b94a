"""ARCHITECTURE.md names places in the code: each is there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
HOUSE = ROOT / "src/coatcheck"
TEXT = (ROOT / "ARCHITECTURE.md").read_text()
QUESTIONS = TEXT.split("## Fifteen questions")[1].split("\n## ")[0]


def test_every_place_of_a_decision_exists() -> None:
    table = TEXT.split("## Where else is it decided?")[1].split("\n## ")[0] + QUESTIONS
    missing = []
    for row in table.splitlines():
        place = None
        for quoted in re.findall(r"`([^`]+)`", row):
            if quoted.endswith((".py", ".lua", ".md", "/")):
                place = ROOT / quoted if quoted.startswith("docs/") else HOUSE / quoted
                missing += [] if place.exists() else [quoted]
            elif place is not None and place.is_file() and not quoted.startswith("__"):
                name = quoted.rsplit(".", 1)[-1]
                missing += (
                    [] if re.search(rf"\b(def|class) {name}\b", place.read_text()) else [f"{place.name} {quoted}"]
                )
    assert table.count(".py") > 20
    assert missing == []


def test_each_of_the_fifteen_questions_is_answered_in_at_most_three_files() -> None:
    rows = [row.strip("|").split(" | ") for row in QUESTIONS.splitlines() if row.startswith("| ")][1:]
    assert len(rows) == 15
    for question, answer, where in rows:
        assert question.strip().endswith("?")
        assert len(answer) > 40
        assert 1 <= len(re.findall(r"`[\w/-]+\.(?:py|md)`", where)) <= 3, question


def test_the_tree_names_every_room() -> None:
    tree = TEXT.split("```")[1]
    rooms = {path.name for path in HOUSE.iterdir() if path.is_dir() and (path / "__init__.py").exists()}
    assert rooms == set(re.findall(r"^  (\w+)/", tree, re.MULTILINE))


def test_the_tree_names_only_files_that_exist() -> None:
    """What stands in parentheses explains; the other words of a room's list are its files and folders."""
    tree = TEXT.split("```")[1].split("\ntests/")[0]
    missing = []
    for room, words in re.findall(r"^  (\w+)/ +(.*(?:\n {10,}.*)*)", tree, re.MULTILINE):
        listed = re.sub(r"\([^)]*\)", "", words).split(": ", 1)[-1]
        for name in re.findall(r"(?<![\w/.])(\w+_\w+)(?![\w/])", listed):
            missing += [] if list((HOUSE / room).rglob(f"{name}*")) else [f"{room}/{name}"]
    assert missing == []
