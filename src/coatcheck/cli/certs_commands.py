"""``coatcheck certs``: a farm's own certificate authority, for TLS between its servers."""

from __future__ import annotations

from pathlib import Path

import click

from coatcheck.cli.answering import JSON, fail, json_text
from coatcheck.cli.tables import text_table
from coatcheck.errors import ConfigError

DIR = click.option("--dir", "folder", default="certs", metavar="DIR", help="Where it is.  [default: certs]")


@click.group()
def certs() -> None:
    """The farm's certificate authority: make it, issue, revoke, list."""


@certs.command("init")
@DIR
@click.option("--farm", default="farm", metavar="NAME", help="Whose authority it is.  [default: farm]")
@click.option("--days", type=int, default=None, help="How long it lives.  [default: 3650]")
def certs_init(folder: str, farm: str, days: int | None) -> None:
    """Make an authority in a new folder. Its key stays there: no server needs it."""
    from coatcheck.tls.authority import AUTHORITY_DAYS, Authority

    try:
        Authority.make(Path(folder), farm, AUTHORITY_DAYS if days is None else days)
    except ConfigError as error:
        fail(error, 2)
    click.echo(f"{folder}/authority.pem: for every server; keep {folder}/authority.key to yourself")
    click.echo(f"next: coatcheck certs issue web-1 --dir {folder}")


@certs.command("issue")
@click.argument("server")
@DIR
@click.option("--address", "addresses", multiple=True, metavar="IP", help="An address that it covers, too.")
@click.option("--days", type=int, default=None, help="How long it lives.  [default: 365]")
def certs_issue(server: str, folder: str, addresses: tuple[str, ...], days: int | None) -> None:
    """Make a certificate and a key for SERVER, in one file."""
    from coatcheck.tls.authority import SERVER_DAYS, Authority

    try:
        path = Authority(Path(folder)).issue(server, addresses, SERVER_DAYS if days is None else days)
    except ConfigError as error:
        fail(error, 2)
    click.echo(f"{path}: for {server} alone")


@certs.command("revoke")
@click.argument("server")
@DIR
def certs_revoke(server: str, folder: str) -> None:
    """Take back all certificates of SERVER; bring revoked.pem to every server."""
    from coatcheck.tls.authority import Authority

    try:
        count = Authority(Path(folder)).revoke(server)
    except ConfigError as error:
        fail(error, 2)
    click.echo(f"{count} revoked; bring {folder}/revoked.pem to every server, which reads it when it changes")


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
