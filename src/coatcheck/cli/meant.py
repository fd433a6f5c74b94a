"""Groups of commands that say which one was probably meant, whatever release of click there is."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Final

import click

from coatcheck.cli.examples import EXAMPLES

MAX_MEANT: Final = 3
"""Commands that are named to somebody who mistyped one."""


class CommandGroup(click.Group):
    """One whose unknown command is answered by those that are like it, here or in another group."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does it, but for the answer to an unknown one."""
        name = arguments[0]
        if self.get_command(context, name) is None and not context.resilient_parsing and name[:1].isalnum():
            found = meant(name, self.list_commands(context))
            context.fail(f"No such command {name!r}.{did_you_mean(found)}")
        return super().resolve_command(context, arguments)


def meant(name: str, known: Sequence[str]) -> list[str]:
    """The commands that are probably meant by ``name``: of the same group, else of any, by its last word."""
    near = difflib.get_close_matches(name, known, MAX_MEANT)
    return near or sorted(words for words in EXAMPLES if words.split()[-1] == name)[:MAX_MEANT]


def did_you_mean(found: Sequence[str]) -> str:
    """The end of a line about an unknown word; empty if nothing is like it."""
    return f" Did you mean {' or '.join(repr(each) for each in found)}?" if found else ""
