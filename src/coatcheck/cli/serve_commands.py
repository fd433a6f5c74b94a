"""The commands that take the settings of a farm."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import click

from coatcheck.cli.answering import JSON, fail, json_text
from coatcheck.cli.opening import OPEN, open_in_browser
from coatcheck.cli.options import CONFIG, setting_options
from coatcheck.errors import ConfigError


@click.command()
@click.argument("app", required=False)
@CONFIG
@OPEN
@setting_options
def serve(app: str | None, config: Path | None, open_page: bool, **flags: Any) -> None:
    """Serve an ASGI or WSGI app, unmodified, from a whole farm.

    APP is MODULE:ATTRIBUTE, imported from the current directory; without it, DJANGO_SETTINGS_MODULE names a Django
    project. Flags win over COATCHECK_* variables, which
    win over the file.
    """
    from coatcheck.farm.serve import run_farm
    from coatcheck.farm.settings.configuration import load_settings
    from coatcheck.farm.supervision.console import Console

    try:
        settings = load_settings(config, os.environ, {"app": app, **flags})
        if not settings.app and not os.environ.get("DJANGO_SETTINGS_MODULE"):
            raise ConfigError("app: name the app to serve, such as: coatcheck serve app:app")
    except ConfigError as error:
        fail(error, 2)
    console = Console(log_format=settings.log_format)
    raise SystemExit(run_farm(settings, console, when_ready=open_in_browser if open_page else None))


@click.command()
@click.argument("app", required=False)
@CONFIG
@JSON
@setting_options
def check(app: str | None, config: Path | None, as_json: bool, **flags: Any) -> None:
    """Say what is wrong or weak about a configuration, without starting anything.

    Takes what `serve` takes. A line per finding; exit code 2 if something is wrong, 1 if something is weak, else 0.
    """
    from coatcheck.farm.check import check_configuration, exit_code

    findings = list(check_configuration(config, os.environ, {"app": app, **flags}))
    if as_json:
        click.echo(json_text([{"level": finding.level, "line": finding.line} for finding in findings]))
    else:
        click.echo("\n".join(map(str, findings)) or "nothing is wrong or weak")
    raise SystemExit(exit_code(findings))
