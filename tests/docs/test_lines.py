"""Lines of prose have 120 characters at most, and what breaks them changes nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest

from wrapping import ROOT, WIDTH, long_lines, pages, read, wrapped

LONG = "word " * 40
KEPT = {
    "code": f"```\n{LONG}\n```\n",
    "a table": f"| a | b |\n|---|---|\n| {LONG} | {LONG} |\n",
    "an indented block": f"Text.\n\n    {LONG}\n",
    "a heading": f"# {LONG.strip()}\n",
    "a hard line break": f"{LONG.strip()}\\\nnext line\n",
}
BROKEN = {
    "a paragraph": f"{LONG}\n",
    "a list": f"* {LONG}\n  * {LONG}\n    {LONG}\n\n  {LONG}\n* next\n",
    "a numbered list": f"10. {LONG}\n11. {LONG}\n",
    "a quotation": f"> {LONG}\n> {LONG}\n",
    "a link": f"{LONG}[{LONG}](page.md#{'a' * 90}) {LONG}\n",
    "code within": f"{'x' * 110} ``a `code` span`` {LONG}\n",
    "emphasis": f"{LONG} **{LONG.strip()}** *{LONG.strip()}*\n",
    "a dash where a line begins": f"{'x ' * 60}- {LONG}\n",
    "a number where a line begins": f"{'x ' * 60}1. {LONG}\n",
    "a hash where a line begins": f"{'x ' * 60}# {LONG}\n",
    "a bar where a line begins": f"{'x ' * 60}| {LONG}\n",
    "equals signs where a line begins": f"{'x ' * 60}=== {LONG}\n",
    "HTML": f"{'x ' * 55}<a href='http://127.0.0.1/?a=b c'>{LONG}</a>\n",
}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_no_line_of_prose_is_too_long(page: Path) -> None:
    assert list(long_lines(page.read_text())) == [], f"make wrap breaks lines at {WIDTH}"


@pytest.mark.parametrize("text", KEPT.values(), ids=KEPT)
def test_what_is_no_prose_stays(text: str) -> None:
    assert wrapped(text) == text


@pytest.mark.parametrize("text", BROKEN.values(), ids=BROKEN)
def test_prose_is_broken_and_reads_the_same(text: str) -> None:
    assert list(long_lines(text))
    new = wrapped(text)
    assert list(long_lines(new)) == []
    assert read(new) == read(text)
    assert wrapped(new) == new


def test_a_line_within_the_width_is_left_as_it_was_written() -> None:
    text = "One sentence.\nAnother one.\n\n* an item\n  of two lines\n"
    assert wrapped(text) == text


def test_long_lines_are_found_after_code_too() -> None:
    text = f"````\n```\n{LONG}\n```\n````\n\n{LONG}\n"
    assert list(long_lines(text)) == [7]
