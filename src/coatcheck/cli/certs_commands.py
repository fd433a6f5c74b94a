"""``coatcheck certs``: a farm's own certificate authority, for TLS between its servers."""

from __future__ import annotations

from pathlib import Path

import click

from coatcheck.cli.answering import JSON, fail, json_text
from coatcheck.cli.meant import CommandGroup
from coatcheck.cli.running_farm import seconds_of
from coatcheck.cli.tables import text_table
from coatcheck.errors import ConfigError

DAY_S = 86_400.0
DIR = click.option("--dir", "folder", default="certs", metavar="DIR", help="Where it is.  [default: certs]")


@click.group(cls=CommandGroup)
def certs() -> None:
    """The farm's certificate authority: make it, issue, revoke, list."""


@certs.command("init")
@DIR
@click.option("--name", default="farm", metavar="TEXT", help="The farm's name.  [default: farm]")
@click.option("--lifetime", default=None, metavar="TIME", help="How long it lives, in whole days.  [default: 3650d]")
def certs_init(folder: str, name: str, lifetime: str | None) -> None:
    """Make an authority in a new folder. Its key stays there: no server needs it."""
    from coatcheck.tls.authority import AUTHORITY_DAYS, Authority

    try:
        Authority.make(Path(folder), name, _days(lifetime, AUTHORITY_DAYS))
    except ConfigError as error:
        fail(error, 2)
    click.echo(f"{folder}/authority.pem: for every server; keep {folder}/authority.key to yourself")
    click.echo(f"next: coatcheck certs issue web-1 --dir {folder}")


@certs.command("issue")
@click.argument("server")
@DIR
@click.option("--address", "addresses", multiple=True, metavar="IP", help="An address that it covers, too.")
@click.option("--lifetime", default=None, metavar="TIME", help="How long it lives, in whole days.  [default: 365d]")
@JSON
def certs_issue(server: str, folder: str, addresses: tuple[str, ...], lifetime: str | None, as_json: bool) -> None:
    """Make a certificate and a key for SERVER, in one file."""
    from coatcheck.tls.authority import SERVER_DAYS, Authority

    try:
        path = Authority(Path(folder)).issue(server, addresses, _days(lifetime, SERVER_DAYS))
    except ConfigError as error:
        fail(error, 2)
    click.echo(json_text({"server": server, "file": str(path)}) if as_json else f"{path}: for {server} alone")


@certs.command("revoke")
@click.argument("server")
@DIR
@JSON
def certs_revoke(server: str, folder: str, as_json: bool) -> None:
    """Take back all certificates of SERVER; bring revoked.pem to every server."""
    from coatcheck.tls.authority import Authority

    try:
        count = Authority(Path(folder)).revoke(server)
    except ConfigError as error:
        fail(error, 2)
    words = f"{count} revoked; bring {folder}/revoked.pem to every server, which reads it when it changes"
    click.echo(json_text({"revoked": count, "file": f"{folder}/revoked.pem"}) if as_json else words)


@certs.command("ls")
@DIR
@JSON
def certs_ls(folder: str, as_json: bool) -> None:
    """List what was issued."""
    from coatcheck.tls.authority import Authority

    try:
        issued = Authority(Path(folder)).issued()
    except ConfigError as error:
        fail(error, 2)
    if as_json:
        click.echo(json_text(issued))
        return
    rows = [[one.name, one.serial[:16], one.until[:10], "revoked" if one.revoked else ""] for one in issued]
    click.echo(text_table(["server", "serial", "until", ""], rows))


def _days(lifetime: str | None, default: int) -> int:
    """Whole days; how many may be is for the authority to say."""
    if lifetime is None:
        return default
    days = seconds_of("--lifetime", lifetime) / DAY_S
    if not days.is_integer():
        raise ConfigError(f"--lifetime: whole days, such as 365d (got {lifetime!r})")
    return int(days)
