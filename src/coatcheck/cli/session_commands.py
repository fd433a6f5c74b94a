"""``coatcheck sessions``: of a running farm, or of session servers that are named, whoever serves there."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from coatcheck.cli.answering import JSON, fail, json_text
from coatcheck.cli.meant import CommandGroup
from coatcheck.cli.options import CONFIG
from coatcheck.cli.running_farm import RUN_DIR, ask
from coatcheck.errors import CoatcheckError, ConfigError

TIMEOUT_S = 90.0
Command = TypeVar("Command", bound=Callable[..., Any])


def where(command: Command) -> Command:
    """Add the options that say whose sessions are meant."""
    for option in (
        CONFIG,
        click.option("--keys-file", metavar="FILE", help="The web servers' key ring, or COATCHECK_KEYS."),
        click.option("--name", metavar="TEXT", help="The farm's name.  [default: farm]"),
        click.option(
            "--session-server", multiple=True, metavar="[NAME=]URL", help="Ask these session servers, and no farm."
        ),
        RUN_DIR,
    ):
        command = option(command)
    return command


@click.group(cls=CommandGroup)
def sessions() -> None:
    """Look at sessions, and close them.

    Of the farm of a run directory; with --session-server, or a --config that names any, of the web servers that use
    these: give all of them, by the names that those web servers know them by, and the settings of their sessions.
    """


@sessions.command("ls")
@where
@JSON
@click.option("--user", default=None, metavar="USER", help="Those of this user alone, with their devices.")
@click.option(
    "--limit", type=click.IntRange(1, 10_000), default=100, show_default=True, metavar="N", help="So many at most."
)
def sessions_ls(as_json: bool, user: str | None, limit: int, **place: Any) -> None:
    """List sessions."""
    from coatcheck.cli.tables import sessions_table, user_sessions_table

    answer = _ask(place, {"op": "sessions.ls", "limit": limit, "user": user})
    found = answer["sessions"]
    table = sessions_table if user is None else user_sessions_table
    click.echo(json_text(found) if as_json else table(found, time.time()) or "no sessions")
    if answer["more"]:
        click.echo(f"coatcheck: there are more than these {len(found)} sessions; --limit shows up to 10000", err=True)


@sessions.command("show")
@click.argument("key", metavar="ID")
@where
def sessions_show(key: str, **place: Any) -> None:
    """Show one session, as JSON."""
    found = _ask(place, {"op": "sessions.show", "key": key})["session"]
    if found is None:
        fail(ConfigError(f"there is no session {key}"))
    click.echo(json_text(found))


@sessions.command("close")
@click.argument("key", metavar="ID", required=False)
@where
@click.option("--user", default=None, metavar="USER", help="All sessions of this user.")
@click.option("--all", "everybody", is_flag=True, help="All sessions of everybody, logged in or not.")
@JSON
def sessions_close(key: str | None, user: str | None, everybody: bool, as_json: bool, **place: Any) -> None:
    """Close one session on every server; or all of a user, or everybody's."""
    if sum((key is not None, user is not None, everybody)) != 1:
        fail(ConfigError("sessions close: name one session by its ID, or give --user USER, or --all"), 2)
    if everybody:
        _ask(place, {"op": "sessions.close", "all": True})
        click.echo(json_text({"closed": "all"}) if as_json else "closed, all sessions of everybody")
        return
    if user is not None:
        closed = _ask(place, {"op": "sessions.close", "user": user})["closed"]
        click.echo(json_text(closed) if as_json else f"{closed['closed']} sessions closed")
        if closed["closing"]:
            fail(CoatcheckError(f"{closed['closing']} more are closing: too few session servers answer; try again"))
        return
    if _ask(place, {"op": "sessions.show", "key": key})["session"] is None:
        fail(ConfigError(f"there is no session {key}"))
    one = _ask(place, {"op": "sessions.close", "key": key})["closed"]
    state = "closed" if one["holds"] == one["servers"] else "closing"
    words = f"{state}, {one['holds']} of {one['servers']} session servers"
    click.echo(json_text({"state": state, **one}) if as_json else words)


def _ask(place: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    """Ask the farm, or the session servers themselves; a refusal ends the command with one line."""
    run_dir = place.pop("run_dir", None)
    if not any(place.values()):
        return ask(run_dir, message, timeout_s=TIMEOUT_S)
    from coatcheck.farm.operations.outside import answer_outside

    config = place.get("config")
    try:
        return answer_outside(config, os.environ, {name: place[name] for name in place if name != "config"}, message)
    except CoatcheckError as error:
        fail(error)
