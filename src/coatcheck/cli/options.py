"""The flags of ``serve``, made from the settings themselves, so that no option is without a flag."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from coatcheck.farm.settings.configuration import SETTINGS, FarmSetting

Command = TypeVar("Command", bound=Callable[..., Any])
CONFIG = click.option(
    "--config", type=click.Path(path_type=Path), metavar="FILE", help="Read settings from this TOML file."
)


def setting_options(command: Command) -> Command:
    """Add a flag for each setting but ``app``, which is an argument.

    Values stay as typed; the configuration reads them, so that file, environment and flags agree.
    """
    for setting in reversed(SETTINGS):
        if setting.field != "app":
            command = _option(setting)(command)
    return command


def some_setting_options(farm: Sequence[str], tables: Sequence[str]) -> Callable[[Command], Command]:
    """Flags for these settings of the farm, and for all of these tables."""

    def add(command: Command) -> Command:
        for setting in reversed(SETTINGS):
            if setting.field in farm if setting.table == "farm" else setting.table in tables:
                command = _option(setting)(command)
        return command

    return add


def _option(setting: FarmSetting) -> Callable[[Command], Command]:
    words = setting.option.words.replace("`", "")
    if setting.default_text and not setting.is_bool:
        words += f"  [default: {setting.default_text}]"
    if setting.is_bool:
        flag = f"{setting.flag}/--no-{setting.flag.removeprefix('--')}"
        words += f"  [default: {'on' if setting.default else 'off'}]"
        return click.option(flag, setting.parameter, default=None, help=words)
    metavar = setting.option.metavar or ("|".join(setting.choices) if setting.choices else _metavar(setting))
    choices = [CompletionItem(choice) for choice in setting.choices]
    return click.option(
        setting.flag,
        setting.parameter,
        default=None,
        multiple=setting.is_list,
        metavar=metavar,
        help=words,
        shell_complete=partial(_begun, choices) if choices else None,
    )


def _begun(
    choices: Sequence[CompletionItem], _: click.Context, __: click.Parameter, begun: str
) -> list[CompletionItem]:
    return [choice for choice in choices if choice.value.startswith(begun)]


def _metavar(setting: FarmSetting) -> str:
    if setting.option.duration:
        return "TIME"
    return "TEXT" if setting.kind is str else "N"
