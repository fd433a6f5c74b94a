"""The page of all commands says what the commands are."""

from __future__ import annotations

from .reference import PAGE, page


def test_the_page_of_commands_is_as_they_are() -> None:
    assert PAGE.read_text() == page(), "make reference"
