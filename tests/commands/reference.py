"""Makes docs/commands.md of the commands themselves: ``make reference``."""

from __future__ import annotations

import inspect
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import click

from coatcheck.cli.examples import EXAMPLES
from coatcheck.simulation.command import parser as simulate_parser

from .tree import leaves

PAGE: Final = Path(__file__).parents[2] / "docs/commands.md"
HEAD: Final = """# Commands

Every command, with its flags. This page is made of the commands themselves (`make reference`);
`coatcheck COMMAND -h` says the same. Settings of `serve` can also stand in a file or the environment:
[every option](operations.md#every-option).

Completion: `coatcheck completion bash|zsh|fish` prints what a shell reads to complete commands, flags, their values,
files, and the web servers of a farm.
"""


def page() -> str:
    """The text of the page."""
    return "\n".join([HEAD, *(line for words, command in leaves() for line in _section(words, command))])


def _section(words: str, command: click.Command) -> Iterator[str]:
    yield f"## {words}\n"
    yield _paragraphs(inspect.cleandoc(command.help or "")) + "\n"
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    usage = ["coatcheck", words, *(each.make_metavar(click.Context(command)) for each in arguments)]
    yield f"```\n{' '.join(usage)}\n```\n"
    options = [each for each in command.params if isinstance(each, click.Option) and not each.hidden]
    rows = [_row(command, each) for each in options] if words != "simulate" else list(_simulate_rows())
    if rows:
        yield "| flag | |\n|---|---|"
        yield from rows
        yield ""
    yield "```"
    yield from (f"{line}    # {what}" for line, what in EXAMPLES[words])
    yield "```\n"


def _paragraphs(text: str) -> str:
    parts = (" ".join(part.split()) for part in text.split("\n\n"))
    return "\n\n".join(textwrap.fill(part, 120, break_long_words=False, break_on_hyphens=False) for part in parts)


def _row(command: click.Command, option: click.Option) -> str:
    record = option.get_help_record(click.Context(command))
    assert record is not None
    flags, words = (" ".join(part.split()).replace("|", "\\|") for part in record)
    return f"| `{flags}` | {words} |"


def _simulate_rows() -> Iterator[str]:
    """Its arguments are read by argparse."""
    for action in simulate_parser()._actions:
        flags = ", ".join(reversed(action.option_strings))
        value = action.metavar or "|".join(action.choices or ())
        told = [f"{flags} {value}".strip(), action.help or ""]
        shown, words = (each.replace("|", "\\|") for each in told)
        yield f"| `{shown}` | {words} |"


if __name__ == "__main__":
    PAGE.write_text(page())
