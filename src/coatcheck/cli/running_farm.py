"""Asking a running farm, which its run directory names."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any, Final

import click

from coatcheck.cli.answering import fail
from coatcheck.errors import CoatcheckError, ConfigError

RUN_DIR = click.option(
    "--run-dir", default=None, metavar="DIR", help="The farm's run directory.  [default: .coatcheck]"
)


COMPLETION_TIMEOUT_S: Final = 1.0


def _control_socket(run_dir: str | None) -> Path:
    from coatcheck.farm.files.run_directory import CONTROL_SOCKET

    return Path(run_dir or os.environ.get("COATCHECK_RUN_DIR") or ".coatcheck").absolute() / CONTROL_SOCKET


def complete_server(context: click.Context, _: click.Parameter, begun: str) -> list[str]:
    """The web servers of the farm whose names begin so; none where no farm answers."""
    from coatcheck.farm.control.asking import call_farm

    try:
        answers = list(
            call_farm(_control_socket(context.params.get("run_dir")), {"op": "status"}, COMPLETION_TIMEOUT_S)
        )
    except CoatcheckError:
        return []
    names = [server["name"] for server in answers[-1]["status"]["web_servers"]]
    return [name for name in names if name.startswith(begun)]


def ask(
    run_dir: str | None, message: dict[str, Any], timeout_s: float = 15.0, show_progress: bool = False
) -> dict[str, Any]:
    """Ask the farm of this run directory; its refusal ends the command with one line."""
    from coatcheck.farm.control.asking import call_farm

    answer: dict[str, Any] = {}
    try:
        for answer in call_farm(_control_socket(run_dir), message, timeout_s):
            if show_progress and "progress" in answer and sys.stderr.isatty():
                click.echo(f"{message.get('server', '')}: {answer['progress']}", err=True)
    except CoatcheckError as error:
        fail(error)
    return answer


def seconds_of(option: str, text: str) -> float:
    """The value of an option that is a length of time; another one ends the command with one line."""
    from coatcheck.duration import parse_duration

    try:
        return parse_duration(text)
    except ValueError as error:
        fail(ConfigError(f"{option}: {error}"), 2)
