"""Every command of ``coatcheck``. What is heavy is imported by the command that needs it."""

from __future__ import annotations

import time
from importlib import import_module
from importlib.util import find_spec
from typing import Final

import click

from coatcheck.cli.answering import JSON, fail, json_text
from coatcheck.cli.furnishing import furnish
from coatcheck.cli.meant import CommandGroup
from coatcheck.cli.opening import OPEN, open_in_browser
from coatcheck.cli.running_farm import RUN_DIR, ask, complete_server, seconds_of
from coatcheck.errors import ConfigError

_A_COMPILED_MODULE = "coatcheck.tokens.sealed"
_MODULES: Final = {
    "audit": "audit_command",
    "certs": "certs_commands",
    "check": "serve_commands",
    "completion": "completion_command",
    "keys": "key_commands",
    "metrics": "metrics_command",
    "pool": "pool_commands",
    "serve": "serve_commands",
    "service": "service_commands",
    "sessions": "session_commands",
    "soap": "soap_commands",
    "tls": "tls_commands",
}
"""Commands of other modules, each of which is imported when it is asked for."""


class _Commands(CommandGroup):
    """Those of this module, and those of :data:`_MODULES`."""

    def list_commands(self, context: click.Context) -> list[str]:
        return sorted([*super().list_commands(context), *_MODULES])

    def get_command(self, context: click.Context, name: str) -> click.Command | None:
        if name not in _MODULES:
            command = super().get_command(context, name)
        else:
            command = getattr(import_module(f"coatcheck.cli.{_MODULES[name]}"), name)
        if command is not None:
            furnish(command, name)
        return command


def _build() -> str:
    found = find_spec(_A_COMPILED_MODULE)
    return " (pure Python)" if found is None or str(found.origin).endswith(".py") else " (compiled)"


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="coatcheck", message=f"coatcheck %(version)s{_build()}")
def coatcheck() -> None:
    """Session management for web farms: leave your session anywhere, pick it up anywhere."""


@coatcheck.command()
@click.option("--tour", is_flag=True, help="Tell the story without hands, and exit 0 only if nothing was lost.")
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8000,
    show_default=True,
    metavar="N",
    help="The port of the shop, or the next free one.",
)
@click.option("--shoppers", type=click.IntRange(1, 500), default=40, show_default=True, metavar="N", help="For --tour.")
@OPEN
@JSON
@click.option("--run-dir", default=None, metavar="DIR", help="By default a directory of its own, removed at the end.")
def demo(tour: bool, port: int, shoppers: int, open_page: bool, as_json: bool, run_dir: str | None) -> None:
    """Start a farm with the demo shop: three web servers, two session servers.

    What the tour found is a table, or JSON.
    """
    from coatcheck.demo import run_demo

    if as_json and not tour:
        fail(ConfigError("--json is for what --tour finds"), 2)
    shown = (lambda report: json_text(report) + "\n") if as_json else None
    when_ready = open_in_browser if open_page else None
    raise SystemExit(run_demo(port, run_dir, shoppers if tour else None, when_ready, shown))


@coatcheck.command()
@RUN_DIR
@JSON
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
def status(run_dir: str | None, as_json: bool, watch: bool) -> None:
    """Show every process: name, pid, address, health, sessions, copies, requests, restarts."""
    from coatcheck.cli.tables import status_table

    while True:
        found = ask(run_dir, {"op": "status"})["status"]
        if watch and not as_json:
            click.clear()
        click.echo(json_text(found) if as_json else status_table(found))
        if not watch:
            return
        try:
            time.sleep(1)
        except KeyboardInterrupt:
            return


@coatcheck.command()
@click.argument("server", shell_complete=complete_server)
@RUN_DIR
@click.option("--timeout", "timeout_s", default=None, metavar="TIME", help="For open requests.")
@JSON
def drain(server: str, run_dir: str | None, timeout_s: str | None, as_json: bool) -> None:
    """Take a web server out: no new requests, the open ones are finished, then it stops."""
    wait_s = seconds_of("--timeout", timeout_s) if timeout_s is not None else None
    # The farm keeps the time; our own limit is only for a farm that hangs.
    message = {"op": "drain", "server": server, "timeout_s": wait_s}
    answer = ask(run_dir, message, timeout_s=(86_400 if wait_s is None else wait_s) + 60, show_progress=True)
    words = f"{answer['drained']} is drained and stopped ({answer['seconds']:g} s)"
    click.echo(json_text({"drained": answer["drained"], "seconds": answer["seconds"]}) if as_json else words)


@coatcheck.command()
@click.argument("server", shell_complete=complete_server)
@RUN_DIR
@JSON
def admit(server: str, run_dir: str | None, as_json: bool) -> None:
    """Put a drained web server back to work."""
    admitted = ask(run_dir, {"op": "admit", "server": server}, timeout_s=120)["admitted"]
    click.echo(json_text({"admitted": admitted}) if as_json else f"{admitted} takes requests")


@coatcheck.command(
    context_settings={"ignore_unknown_options": True, "help_option_names": []},
    add_help_option=False,
)
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def simulate(arguments: tuple[str, ...]) -> None:
    """Run the protocol in a seeded world of faults."""
    main = getattr(import_module("coatcheck.simulation"), "main", None)
    if main is None:
        fail(ConfigError("this build has no simulation"))
    raise SystemExit(main(list(arguments)))
