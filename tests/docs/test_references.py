"""What code and docs cite exists: rows of the mission, sections of the protocol and the threat model, files, RFCs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PROMISES = (DOCS / "promises.md").read_text()
ROWS = dict(re.findall(r"^\| ([A-DN]\d+) \| .* \| (stands|in part|planned) \|.*\|$", PROMISES, re.MULTILINE))

SUMMARY = r"(?P<list>\d+(?:(?:, | and | to )\d+)*)"
SECTIONS = {
    "protocol.md": re.compile(r"\b[Pp]rotocol(?:\.md)?\]?(?:\([^)]*\))?,? (?:sections? )?" + SUMMARY),
    "threat-model.md": re.compile(r"\b[Tt]hreat model,? (?:sections? )?" + SUMMARY),
}
ROW_LIST = re.compile(r"\bmission (?:rows? )?([A-DN]\d+(?:(?:, | and | to |-)[A-DN]\d+)*)")


FOLDERS = ("src", "tests", "benchmarks", "examples")


def sources() -> Iterator[Path]:
    for folder in FOLDERS:
        yield from (path for path in (ROOT / folder).rglob("*.py") if path != Path(__file__))
    yield from DOCS.glob("*.md")
    yield from ROOT.glob("*.md")


TEXTS = {path: re.sub(r"\s+(?:#\s+)?", " ", path.read_text()) for path in sources()}


def spread(text: str) -> list[str]:
    """``A2 to A4, A6`` is A2, A3, A4, A6; numbers alone are spread in the same way."""
    found: list[str] = []
    for part in re.split(r", | and ", text):
        first, _, last = re.sub(" to |-", "~", part).partition("~")
        letter = first.rstrip("0123456789")
        numbers = range(int(first.lstrip(letter)), int((last or first).lstrip(letter)) + 1)
        found += [f"{letter}{number}" for number in numbers]
    return found


def cited(pattern: re.Pattern[str], group: int | str) -> dict[str, list[str]]:
    """What is cited, and where."""
    places: dict[str, list[str]] = {}
    for path, text in TEXTS.items():
        for found in pattern.finditer(text):
            for each in spread(found[group]):
                places.setdefault(each, []).append(str(path.relative_to(ROOT)))
    return places


def test_every_row_that_is_cited_is_in_the_table_of_promises() -> None:
    places = cited(ROW_LIST, 1)
    assert len(places) > 20
    assert {row: where for row, where in places.items() if row not in ROWS} == {}


@pytest.mark.parametrize("name", SECTIONS)
def test_every_section_that_is_cited_has_its_number(name: str) -> None:
    there = set(re.findall(r"^## (\d+)\. ", (DOCS / name).read_text(), re.MULTILINE))
    assert [str(number) for number in range(1, len(there) + 1)] == sorted(there, key=int)
    places = cited(SECTIONS[name], "list")
    assert places
    assert {number: where for number, where in places.items() if number not in there} == {}


def test_every_page_that_is_named_exists() -> None:
    pages = {path.name for folder in (*FOLDERS, "docs") for path in (ROOT / folder).rglob("*.md")}
    pages |= {path.name for path in ROOT.glob("*.md")}
    missing = []
    for path, text in TEXTS.items():
        if path.suffix == ".py" and "src" in path.parts:
            names = re.findall(r"(?<![\w/{}*.-])((?:docs/)?[A-Za-z-]+\.md)\b", text)
            missing += [f"{path.name}: {name}" for name in names if Path(name).name not in pages]
    assert missing == []


def test_no_text_that_is_not_here_is_cited() -> None:
    pattern = re.compile(r"\bissues? (?:\"|#\d)|\bmission [A-Z](?![\w-])|\.\./shared|security\.md(?!\))")
    found = [f"{path.name}: {hit}" for path, text in TEXTS.items() for hit in pattern.findall(text)]
    assert [each for each in found if not each.startswith("SECURITY.md")] == []


def test_rfcs_and_checks_of_the_asvs_are_cited_by_number() -> None:
    wrong = []
    for path, text in TEXTS.items():
        wrong += [f"{path.name}: {hit}" for hit in re.findall(r"(?<!an )\bRFC(?! ?\d{3,5}(?:bis)?\b).{0,12}", text)]
        wrong += [f"{path.name}: {hit}" for hit in re.findall(r"\bASVS(?! \d+(?:\.\d+)*\b).{0,12}", text)]
    assert wrong == []


def test_what_stands_has_tests_and_what_is_planned_has_none() -> None:
    assert len(ROWS) > 60
    for row, state, tests in re.findall(r"^\| ([A-DN]\d+) \| .* \| ([a-z ]+) \|(.*)\|$", PROMISES, re.MULTILINE):
        links = re.findall(r"\]\(\.\./([^)]+)\)", tests)
        assert bool(links) == (state != "planned"), row
        assert [link for link in links if not (ROOT / link).is_file()] == [], row
    in_folder = {path.name for path in (ROOT / "tests/mission").glob("test_[a-d][0-9]*.py")}
    assert in_folder == set(re.findall(r"tests/mission/(test_\w+\.py)", PROMISES))
