"""``coatcheck keys``: making, listing, rotating and revoking the keys of a farm, running or stopped."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from coatcheck.cli.answering import JSON, fail, json_text
from coatcheck.cli.meant import CommandGroup
from coatcheck.cli.running_farm import RUN_DIR, ask, seconds_of
from coatcheck.cli.tables import text_table
from coatcheck.errors import ConfigError

if TYPE_CHECKING:
    from coatcheck.farm.files.keys import FarmKeys

KEYS_TIMEOUT_S = 90.0
KEYS_FILE = click.option(
    "--keys-file",
    default=None,
    metavar="FILE",
    help="Of a farm that keeps its keys elsewhere, above all a stopped one.",
)


@click.group(cls=CommandGroup)
def keys() -> None:
    """The key ring: make a key, list, rotate, revoke."""


@keys.command("new")
def keys_new() -> None:
    """Print a new key; nothing is changed."""
    click.echo(secrets.token_urlsafe(32))


@keys.command("ls")
@RUN_DIR
@KEYS_FILE
@JSON
def keys_ls(run_dir: str | None, keys_file: str | None, as_json: bool) -> None:
    """List the keys by name: their states, how many sessions each has sealed, which machines lack it.

    A key is announced (all open with it), active (it seals), retiring (it opens only), revoked.
    """
    rows = _Ring(run_dir, keys_file).rows()
    if as_json:
        click.echo(json_text(rows))
        return
    cells = [
        (
            row["key"],
            row["state"],
            "" if row["sessions"] is None else row["sessions"],
            ", ".join(row.get("unaware", ())),
        )
        for row in rows
    ]
    click.echo(text_table(("key", "state", "sessions", "not known to"), cells))


@keys.command("rotate")
@RUN_DIR
@KEYS_FILE
@click.option("--timeout", "timeout", default="30s", show_default=True, metavar="TIME", help="For all to accept it.")
@click.option("--announce", is_flag=True, help="Let the new key open, and seal with it at the next rotate.")
@JSON
def keys_rotate(run_dir: str | None, keys_file: str | None, timeout: str, announce: bool, as_json: bool) -> None:
    """Seal with a new key. Every server accepts it first; the old keys open until they are revoked."""
    timeout_s = seconds_of("--timeout", timeout)
    ring = _Ring(run_dir, keys_file)
    name, late = ring.announce(timeout_s) if announce else ring.rotate(timeout_s)
    if as_json:
        click.echo(json_text({"key": name, "state": "announced" if announce else "active", "late": late}))
    elif announce:
        click.echo(f"{name} is announced: it opens, and seals from the next rotate on")
    else:
        click.echo(f"{name} seals; the older keys open until they are revoked")
    for server in late:
        does = "does not open with it" if announce else "seals with the old key"
        click.echo(f"{server} could not be told yet: it {does} until it is told", err=True)


@keys.command("revoke")
@click.argument("key")
@RUN_DIR
@KEYS_FILE
@click.option("--yes", is_flag=True, help="Do not ask.")
@JSON
def keys_revoke(key: str, run_dir: str | None, keys_file: str | None, yes: bool, as_json: bool) -> None:
    """Drop a key: what only KEY (a name that `keys ls` shows) can open is lost."""
    ring = _Ring(run_dir, keys_file)
    row = ring.row(key)
    count = "sessions, nobody can count how many," if row["sessions"] is None else f"{row['sessions']} sessions"
    click.echo(
        f"revoking {key} ends {count} that were not written since another key seals, and logs out browsers", err=as_json
    )
    click.echo("whose cookie it sealed: those that were away since then", err=as_json)
    if not yes:
        click.confirm("revoke it?", abort=True, err=as_json)
    late = ring.revoke(key)
    click.echo(json_text({"revoked": key, "late": late}) if as_json else f"{key} is revoked")
    for server in late:
        click.echo(f"{server} could not be told yet: it opens with the key until it is told", err=True)


class _Ring:
    """The keys of a farm: through its supervisor while it runs, else in the file."""

    def __init__(self, run_dir: str | None, keys_file: str | None) -> None:
        from coatcheck.farm.files.run_directory import RunDirectory

        directory = Path(run_dir or os.environ.get("COATCHECK_RUN_DIR") or ".coatcheck")
        self._run_dir = run_dir
        self._directory = RunDirectory(directory)
        self._file = Path(keys_file) if keys_file else self._directory.keys_file
        # A running farm refuses a file that is not its own: two would be named, and one of them be left as it is.
        self._named = {"keys_file": str(self._file.absolute())} if keys_file else {}

    def _runs(self) -> bool:
        """Asked before each step, for a farm may start or stop while a question waits for its answer."""
        if self._directory.is_in_use():
            return True
        if not self._file.exists():
            fail(ConfigError(f"keys: there is no {self._file}; name a farm's --run-dir"), 2)
        return False

    def rows(self) -> list[dict[str, Any]]:
        from coatcheck.farm.files.keys import load

        if self._runs():
            rows: list[dict[str, Any]] = self._ask({"op": "keys.ls"})["keys"]
            return rows
        try:
            return [{**row, "sessions": None} for row in load(self._file).rows()]
        except ConfigError as error:
            fail(error, 2)

    def row(self, name: str) -> dict[str, Any]:
        """One of them, which may be revoked."""
        rows = self.rows()
        found = next((row for row in rows if row["key"] == name), None)
        if found is None:
            known = ", ".join(row["key"] for row in rows)
            fail(ConfigError(f"keys: there is no key {name!r}; choose one of {known}"), 2)
        if found["state"] == "active":
            fail(ConfigError(f"keys: {name} is the key that seals; rotate first"), 2)
        return found

    def rotate(self, timeout_s: float) -> tuple[str, list[str]]:
        if self._runs():
            answer = self._ask({"op": "keys.rotate", "timeout_s": timeout_s}, 2 * timeout_s)
            return answer["key"], answer["late"]
        return self._change(lambda keys: keys.announcing().sealing_with_newest()), []

    def announce(self, timeout_s: float) -> tuple[str, list[str]]:
        if self._runs():
            answer = self._ask({"op": "keys.announce", "timeout_s": timeout_s}, 2 * timeout_s)
            return answer["key"], answer["late"]
        return self._change(lambda keys: keys.announcing()), []

    def revoke(self, name: str) -> list[str]:
        if self._runs():
            late: list[str] = self._ask({"op": "keys.revoke", "key": name})["late"]
            return late
        self._change(lambda keys: keys.without(keys.index_of(name)))
        return []

    def _change(self, change: Callable[[FarmKeys], FarmKeys]) -> str:
        """Change the keys as they are now, and not as they were shown; the name of the newest one."""
        from coatcheck.farm.files.key_file import KeyFileLock
        from coatcheck.farm.files.keys import key_name, load, save

        try:
            self._own()
            with KeyFileLock(self._file) as lock:
                for pause_s in lock.pauses():
                    time.sleep(pause_s)
                changed = change(load(self._file))
                save(self._file, changed)
        except ConfigError as error:
            fail(error, 2)
        return key_name(changed.keys[-1])

    def _own(self) -> None:
        """A ring that machines share is changed where one of them runs: its file only opens it."""
        from coatcheck.farm.files.run_directory import RING_FILE

        if (self._directory.path / RING_FILE).exists():
            raise ConfigError(
                f"keys: this farm shares its key ring ({RING_FILE}); do it where it runs, or delete that copy to "
                "change the file"
            )

    def _ask(self, message: dict[str, Any], more_s: float = 0.0) -> dict[str, Any]:
        return ask(self._run_dir, {**message, **self._named}, timeout_s=KEYS_TIMEOUT_S + more_s)
