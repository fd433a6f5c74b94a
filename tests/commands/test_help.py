"""What the help of a command shows can be typed."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from coatcheck.cli.examples import EXAMPLES
from forked import run_coatcheck

from .tree import leaves

OF_ITS_OWN = {"simulate"}
"""Commands whose arguments are read by something else than click."""


COMMANDS = dict(leaves())
LINES = [line for told in EXAMPLES.values() for line, _ in told]


def test_every_command_has_examples() -> None:
    assert set(EXAMPLES) == set(COMMANDS)


@pytest.mark.parametrize("line", LINES)
def test_an_example_is_what_the_command_takes(line: str) -> None:
    words = shlex.split(re.split(r" > | \| ", re.sub(r"<\((.*)\)", r"\1", line))[0])
    words = words[words.index("coatcheck") + 1 :]
    name = max((each for each in COMMANDS if words[: len(each.split())] == each.split()), key=len)
    command, arguments = COMMANDS[name], words[len(name.split()) :]
    if name in OF_ITS_OWN:
        assert run_coatcheck(name, "-h").returncode == 0
        return
    given, left, _ = command.make_parser(click.Context(command)).parse_args(arguments)
    assert not left
    lacking = [each.name for each in command.params if each.required and each.name not in given]
    assert not lacking


def test_the_help_shows_them() -> None:
    told = run_coatcheck("keys", "rotate", "-h")
    assert told.stdout.endswith(
        "Examples:\n" + "".join(f"    {line}\n        {what}\n" for line, what in EXAMPLES["keys rotate"])
    ), told.stdout


def test_a_word_that_is_misspelt_is_answered_by_the_right_one(tmp_path: Path) -> None:
    for words, right in ((["statsu"], "'status'"), (["serve", "app:app", "--wbe", "3"], "'--web'")):
        told = run_coatcheck(*words)
        assert (told.returncode, f"Did you mean {right}?" in told.stderr) == (2, True)
