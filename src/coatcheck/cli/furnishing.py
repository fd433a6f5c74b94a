"""What every command has without saying so: examples at the end of its help, and files that a shell completes."""

from __future__ import annotations

from typing import Final

import click
from click.shell_completion import CompletionItem

from coatcheck.cli.examples import EXAMPLES


class _PathText(click.types.StringParamType):
    """Any text, which a shell completes as it does paths; what is there is for the command to judge."""

    def __init__(self, kind: str) -> None:
        self._kind = kind

    def shell_complete(self, context: click.Context, parameter: click.Parameter, begun: str) -> list[CompletionItem]:
        """The shell knows the paths (click: the types ``file`` and ``dir``)."""
        return [CompletionItem(begun, type=self._kind)]


_PATHS: Final = {"FILE": _PathText("file"), "DIR": _PathText("dir")}
"""By the word that the help has for the value."""


def furnish(command: click.Command, words: str) -> None:
    """Furnish a command, and those below it. ``words``: what is typed for it behind ``coatcheck``."""
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            below = command.get_command(context, name)
            if below is not None:
                furnish(below, f"{words} {name}")
        return
    told = [f"  {line}\n      {what}" for line, what in EXAMPLES.get(words, ())]
    if told:
        command.epilog = "\n".join(["\b", "Examples:", *told])
    for parameter in command.params:
        if isinstance(parameter, click.Option) and parameter.type is click.STRING and parameter.metavar in _PATHS:
            parameter.type = _PATHS[parameter.metavar]
