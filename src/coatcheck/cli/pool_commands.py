"""``coatcheck pool``: the outbound-token pool as a service, and what operators do with pools."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import click

from coatcheck.cli.answering import JSON, fail, json_text, listen_option
from coatcheck.cli.meant import CommandGroup
from coatcheck.cli.tables import shown, text_table
from coatcheck.errors import CoatcheckError, ConfigError

FILE = click.Path(path_type=Path, dir_okay=False)
WATCH_EVERY_S = 1.0
FOLLOW_EVERY_S = 0.2
Command = TypeVar("Command", bound=Callable[..., Any])


@click.group(cls=CommandGroup)
def pool() -> None:
    """Outbound session tokens: a service for programs in any language, and what operators need."""


def store_options(command: Command) -> Command:
    """Which pool: a store and its key."""
    for option in reversed(
        (
            click.option("--store", metavar="URL", help="sqlite:///FILE, redis://..., postgresql://..."),
            click.option("--key-file", type=FILE, metavar="FILE", help="Seals tokens in the store; a key a line."),
            click.option(
                "--name", default="default", show_default=True, metavar="TEXT", help="Tells pools in one store apart."
            ),
        )
    ):
        command = option(command)
    return command


def target_options(command: Command) -> Command:
    """Which pool to ask: a store, or a service."""
    for option in reversed(
        (
            click.option("--url", metavar="URL", help="Of a service: http://127.0.0.1:8200"),
            click.option("--token-file", type=FILE, metavar="FILE", help="The bearer token for --url; its first line."),
            click.option("--ca-file", type=FILE, metavar="FILE", help="Trust these certificates for --url."),
        )
    ):
        command = option(command)
    return store_options(command)


def serving_options(*flags: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """``flags``, and what everything that serves a pool takes: its store, its limits, who may ask, and TLS."""

    def add(command: Command) -> Command:
        for option in reversed(
            (
                click.option(
                    "--token-file", type=FILE, required=True, metavar="FILE", help="Bearer tokens of callers."
                ),
                *flags,
                click.option("--login-command", metavar="COMMAND", help='Logs in: JSON in, {"token": "..."} out.'),
                click.option("--login-url", metavar="URL", help="Logs in: the same by POST."),
                click.option("--logout-command", metavar="COMMAND", help="Logs out: JSON on its input."),
                click.option("--logout-url", metavar="URL", help="Logs out."),
                click.option(
                    "--per-user", default=4, show_default=True, metavar="N", help="Sessions of one user, at most."
                ),
                click.option(
                    "--max-uses", default=500, show_default=True, metavar="N", help="Leases of one token, at most."
                ),
                click.option("--ttl", default="15m", show_default=True, metavar="TIME", help="Life after each use."),
                click.option("--lease", default="60s", show_default=True, metavar="TIME", help="How long one is kept."),
                click.option("--wait", default="10s", show_default=True, metavar="TIME", help="For a free token."),
                click.option("--login-timeout", default="30s", show_default=True, metavar="TIME", help="For a login."),
                click.option("--login-rate", default="60/1m", show_default=True, metavar="N/TIME", help="Of one user."),
                click.option(
                    "--on-error",
                    type=click.Choice(["drop", "return"]),
                    default="drop",
                    show_default=True,
                    help="With the token of a call that failed.",
                ),
                click.option("--audit-file", type=FILE, metavar="FILE", help="Who borrowed what; see `pool audit`."),
                click.option("--anomaly", multiple=True, metavar="NAME=N/TIME", help="What stands out; see the docs."),
                click.option("--tls-certificate", type=FILE, metavar="FILE", help="Speak HTTPS with this chain (PEM)."),
                click.option("--tls-key", type=FILE, metavar="FILE", help="The certificate's private key (PEM)."),
                click.option("--allow-insecure", is_flag=True, help="Go beyond this machine without TLS."),
            )
        ):
            command = option(command)
        return store_options(command)

    return add


POOL_FLAGS = ("per_user", "max_uses", "ttl", "lease", "wait", "login_timeout", "login_rate", "on_error")


@pool.command()
@listen_option("127.0.0.1:8200")
@serving_options()
def serve(**flags: Any) -> None:
    """Serve a pool over HTTP; its OpenAPI document is at /openapi.json. Without a login of its own, callers log in."""
    try:
        from coatcheck.pool.service.serve import ServiceSettings, serve_pool
    except ModuleNotFoundError as error:
        missing(error)
    serve_it(serve_pool, ServiceSettings, flags, f"pool {flags['name']} at")


def serve_it(serve: Callable[..., None], kind: Any, flags: dict[str, Any], words: str) -> None:
    """``kind``: of the settings, which are called as their flags are. ``words``: what is printed before the URL."""
    try:
        settings = kind(**{name: flags[name] for name in kind.__struct_fields__})
        options = {**_store(flags), **{name: flags[name] for name in POOL_FLAGS}, **_audit(flags)}
        serve(settings, options, lambda url: click.echo(f"{words} {url}"))
    except CoatcheckError as error:
        fail(error, 2)


OPERATION = "{NAMESPACE}NAME"


@pool.command("soap-gateway")
@listen_option("127.0.0.1:8400")
@click.option("--upstream", required=True, metavar="URL", help="The SOAP service.")
@click.option("--user", required=True, metavar="USER", help="Who calls it.")
@click.option("--password-file", type=FILE, metavar="FILE", help="Of this user; one line.")
@serving_options(
    click.option("--login-operation", metavar=OPERATION, help="Logs in: called with user and password in the headers."),
    click.option("--logout-operation", metavar=OPERATION, help="Logs out: called with the token in the headers."),
)
@click.option("--soap", type=click.Choice(["1.1", "1.2"]), default="1.1", show_default=True, help="Of these two.")
@click.option(
    "--session-type", default="Stateless", show_default=True, metavar="TYPE", help="Or ServerDetermine, Stateful."
)
@click.option("--session-namespace", metavar="URI", help="Of the session headers.")
@click.option("--expired-fault", multiple=True, metavar="NAME=TEXT", help="In a fault that refuses a token.")
@click.option("--timeout", default="30s", show_default=True, metavar="TIME", help="For a call.")
@click.option("--upstream-ca-file", type=FILE, metavar="FILE", help="Trust these certificates for the upstream.")
@click.option("--public-url", metavar="URL", help="The gateway's address in the WSDL.  [default: as it was asked]")
def soap_gateway(**flags: Any) -> None:
    """Put session tokens into the SOAP calls of clients that know nothing of sessions."""
    try:
        from coatcheck.pool.soap.gateway_serve import GatewaySettings, serve_gateway
    except ModuleNotFoundError as error:
        missing(error, "soap")
    serve_it(serve_gateway, GatewaySettings, flags, "SOAP gateway at")


@pool.command("ls")
@target_options
@click.option("--user", metavar="USER", help="Only this one.")
@JSON
@click.option("--watch", is_flag=True, help="Show it again every second until Ctrl-C.")
def ls(user: str | None, as_json: bool, watch: bool, **target: Any) -> None:
    """List every slot: whose, in which state, tokens masked."""
    with opened(target) as asked:
        try:
            while True:
                rows = told(lambda: asked.tokens(user))
                if watch and not as_json:
                    click.clear()
                click.echo(json_text(rows) if as_json else tokens_table(rows))
                if not watch:
                    return
                time.sleep(WATCH_EVERY_S)
        except KeyboardInterrupt:
            return


def tokens_table(rows: Sequence[Any]) -> str:
    """A line for each slot."""
    columns = ("user", "token", "id", "state", "uses", "expires in", "fencing", "deadline in")
    cells = [
        (
            row.user,
            row.token,
            row.token_id,
            row.state,
            row.uses,
            _seconds(row.expires_in_s),
            row.fencing,
            _seconds(row.deadline_in_s),
        )
        for row in rows
    ]
    return text_table(columns, cells) if cells else "no tokens"


@pool.command()
@target_options
@JSON
def stats(as_json: bool, **target: Any) -> None:
    """Show the numbers of each user."""
    import msgspec

    with opened(target) as asked:
        found = told(asked.stats)
        if as_json:
            click.echo(json_text(found))
            return
        if not found.users:
            click.echo("no users")
            return
        columns = [name.removesuffix("_total") for name in next(iter(found.users.values())).__struct_fields__]
        cells = [[user, *msgspec.structs.astuple(row)] for user, row in sorted(found.users.items())]
        click.echo(text_table(["user", *columns], cells))


@pool.command()
@click.argument("user")
@click.argument("token_id", type=click.IntRange(1), required=False)
@click.option("--soft", is_flag=True, help="What is in use may be used on, and is dropped when it is given back.")
@target_options
@JSON
def remove(user: str, token_id: int | None, soft: bool, as_json: bool, **target: Any) -> None:
    """Drop one token of USER, or all of them, also those in use."""
    with opened(target) as asked:
        count = told(lambda: asked.remove(user, token_id, soft=soft))
    click.echo(json_text({"removed": count}) if as_json else f"{count} removed")


@pool.command()
@click.argument("user")
@store_options
@JSON
def reset(user: str, as_json: bool, **target: Any) -> None:
    """Forget all that holds USER up in a store: tokens, leases, failed logins, the rate of logins.

    For a user who is locked up, after a wrong clock, say. The upstream may still count the sessions of the tokens.
    """
    with opened({**target, "url": None}) as asked:
        count = told(lambda: asked.reset(user))
    click.echo(json_text({"reset": user, "removed": count}) if as_json else f"{user} is reset; {count} removed")


@pool.command("clean-up")
@target_options
@JSON
def clean_up(as_json: bool, **target: Any) -> None:
    """Drop expired tokens, and those of callers that never came back."""
    with opened(target) as asked:
        count = told(asked.clean_up)
    click.echo(json_text({"removed": count}) if as_json else f"{count} removed")


@pool.command()
@click.option(
    "--audit-dir",
    type=click.Path(path_type=Path, file_okay=False, exists=True),
    required=True,
    metavar="DIR",
    help="Where the audit files (*.jsonl) are.",
)
@click.option("--user", metavar="USER", help="Only this one's tokens.")
@click.option("--caller", metavar="CALLER", help="Only what this one did.")
@click.option("--follow", is_flag=True, help="Go on with what happens from now on, until Ctrl-C.")
@click.option("--json", "as_json", is_flag=True, help="Print the records as they are stored, a line of JSON each.")
def audit(audit_dir: Path, user: str | None, caller: str | None, follow: bool, as_json: bool) -> None:
    """Show who borrowed which token when, in the order of time."""
    from coatcheck.farm.files.audit_files import AuditFiles
    from coatcheck.pool import PoolAuditRecord

    files = AuditFiles(audit_dir, PoolAuditRecord)
    try:
        while True:
            for line in files.since():
                record = line.record
                if user in (None, record.user) and caller in (None, record.caller):
                    click.echo(line.text if as_json else _audited(record))
            if not follow:
                return
            time.sleep(FOLLOW_EVERY_S)
    except OSError as error:
        fail(ConfigError(f"{audit_dir}: {error.strerror}"))
    except KeyboardInterrupt:
        return


def _audited(record: Any) -> str:
    words = [record.time, record.server, record.event, shown(record.user) or "-", shown(record.caller) or "-"]
    numbers = [str(record.token or "-"), str(record.lease or "-")]
    return "  ".join([*words, *numbers, shown(record.detail)]).rstrip()


@contextmanager
def opened(target: dict[str, Any]) -> Iterator[Any]:
    """What answers the questions: a store, or a service."""
    try:
        from coatcheck.pool.service.operator import open_service, open_store
    except ModuleNotFoundError as error:
        missing(error)
    # It would tell each attempt to connect; the command tells what came of them.
    logging.getLogger("psycopg.pool").setLevel(logging.CRITICAL)
    with ExitStack() as stack:
        try:
            if bool(target["url"]) == bool(target["store"]):
                raise ConfigError("give --store or --url")
            if target["url"]:
                asked: Any = stack.enter_context(open_service(target["url"], target["token_file"], target["ca_file"]))
            else:
                asked = stack.enter_context(open_store(_existing(_store(target))))
        except ConfigError as error:
            fail(error, 2)
        except CoatcheckError as error:
            fail(error)
        yield asked


def _store(flags: dict[str, Any]) -> dict[str, Any]:
    from coatcheck.pool.service.operator import read_keys

    keys = read_keys(flags["key_file"])
    if flags["store"] is None:
        if keys is not None:
            raise ConfigError("key-file: it seals what a store keeps; give --store as well")
        return {"name": flags["name"]}
    return {"name": flags["name"], "store": flags["store"], "key": keys}


def _audit(flags: dict[str, Any]) -> dict[str, Any]:
    """Who is told of what, and what stands out; an audit counts by itself."""
    from coatcheck.pool import PoolAuditLog

    if flags["audit_file"] is None and not flags["anomaly"]:
        return {}
    thresholds: dict[str, str | None] = {}
    for each in flags["anomaly"]:
        name, equals, text = each.partition("=")
        if not equals:
            raise ConfigError('anomaly: write a name and a threshold, as "users_per_caller=50/1m", or "...=none"')
        thresholds[name] = None if text == "none" else text
    log = None if flags["audit_file"] is None else PoolAuditLog(flags["audit_file"])
    return {"anomalies": thresholds, **({} if log is None else {"on_audit": log.write})}


def _existing(options: dict[str, Any]) -> dict[str, Any]:
    """Whoever asks what is in a file, or drops something from it, means a file that is there."""
    from coatcheck.pool.stores.address import sqlite_path

    path = sqlite_path(options["store"])
    if path is not None and not path.is_file():
        raise ConfigError(f"store: there is no file {path}")
    return options


def told(question: Callable[[], Any]) -> Any:
    """The answer; what went wrong ends the command with one line."""
    try:
        return question()
    except (CoatcheckError, ValueError) as error:
        fail(error)


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.0f}s"


def missing(error: ModuleNotFoundError, extra: str = "pool-service") -> NoReturn:
    """Say which extra brings a module."""
    if error.name is None or error.name.startswith("coatcheck"):
        raise error
    fail(ConfigError(f"{error.name} is missing; pip install 'coatcheck[{extra}]'"), 2)
