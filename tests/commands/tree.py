"""The commands of ``coatcheck`` as they are."""

from __future__ import annotations

from collections.abc import Iterator

import click

from coatcheck.cli.commands import coatcheck


def leaves(command: click.Command = coatcheck, *words: str) -> Iterator[tuple[str, click.Command]]:
    """Each command that does something, by the words that are typed for it."""
    if not isinstance(command, click.Group):
        yield " ".join(words), command
        return
    context = click.Context(command)
    for name in command.list_commands(context):
        below = command.get_command(context, name)
        assert below is not None
        yield from leaves(below, *words, name)
