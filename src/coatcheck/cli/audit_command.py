"""``coatcheck audit``: what happened to sessions, on all web servers of a farm, in the order of time."""

from __future__ import annotations

import os
import time
from pathlib import Path

import click

from coatcheck.cli.answering import fail
from coatcheck.cli.running_farm import RUN_DIR
from coatcheck.errors import ConfigError

POLL_S = 0.2


@click.command()
@RUN_DIR
@click.option("--audit-dir", default=None, metavar="DIR", help="Where the farm keeps its audit log, if elsewhere.")
@click.option("--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option("--user", default=None, metavar="USER", help="What concerns this user alone.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as they are stored, a line of JSON each.")
def audit(run_dir: str | None, audit_dir: str | None, follow: bool, user: str | None, as_json: bool) -> None:
    """Show the audit log: who began, took and ended which session, from where and when."""
    from coatcheck.cli.tables import shown
    from coatcheck.farm.files.audit_files import AuditFiles, AuditLine

    base = Path(run_dir or os.environ.get("COATCHECK_RUN_DIR") or ".coatcheck")
    directory = Path(audit_dir or os.environ.get("COATCHECK_AUDIT_DIR") or base / "audit")
    if not directory.is_dir():
        fail(ConfigError(f"audit_dir: there is no directory {directory}; name that of the farm"))

    def show(line: AuditLine) -> None:
        if user is not None and line.record.user != user:
            return
        record = line.record
        words = [record.time, record.server, record.event, record.session or "-", shown(record.user) or "-"]
        click.echo(line.text if as_json else "  ".join([*words, shown(record.address) or "-", shown(record.detail)]))

    files = AuditFiles(directory)
    try:
        for line in files.so_far():
            show(line)
        while follow:
            for line in files.since():
                show(line)
            time.sleep(POLL_S)
    except OSError as error:
        fail(ConfigError(f"audit_dir: {directory}: {error.strerror}"))
    except KeyboardInterrupt:
        return
