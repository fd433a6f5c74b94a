"""``coatcheck soap``: the provider to prove clients on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from coatcheck.cli.answering import fail, listen_option
from coatcheck.cli.meant import CommandGroup
from coatcheck.cli.running_farm import seconds_of
from coatcheck.errors import ConfigError

FILE = click.Path(path_type=Path, dir_okay=False)
RATE = click.FloatRange(0, 1)
MAX_DELAY_S = 30.0


@click.group(cls=CommandGroup)
def soap() -> None:
    """A SOAP web service with sessions, to prove clients on."""


@soap.command()
@listen_option("127.0.0.1:8300")
@click.option("--user", "users", multiple=True, metavar="NAME:PASSWORD", help="*: any name.  [default: SADMIN:SADMIN]")
@click.option("--users-file", type=FILE, metavar="FILE", help="NAME:PASSWORD, a line each.")
@click.option("--server", default="s1", show_default=True, metavar="NAME", help="Stateful sessions are tied to it.")
@click.option("--key-file", type=FILE, metavar="FILE", help="Seals the tokens; the same on all servers.")
@click.option("--token-timeout", default="15m", show_default=True, metavar="TIME", help="Older tokens are refused.")
@click.option("--idle", default="5m", show_default=True, metavar="TIME", help="Sessions without requests are closed.")
@click.option("--single-use", is_flag=True, help="Accept only the newest token of a session.")
@click.option(
    "--max-sessions-per-user",
    default=1000,
    show_default=True,
    type=click.IntRange(1),
    metavar="N",
    help="A login beyond it is refused.",
)
@click.option("--slow-login", default="0s", metavar="TIME", help="Each login takes that long.")
@click.option("--latency", default="0s", metavar="TIME", help="Each request takes that much longer.")
@click.option("--expire-rate", default=0.0, type=RATE, metavar="RATE", help="Tokens that are found expired.")
@click.option("--kill-rate", default=0.0, type=RATE, metavar="RATE", help="Requests that close a random session.")
@click.option("--fail-login-rate", default=0.0, type=RATE, metavar="RATE", help="Logins that are refused.")
@click.option("--fault-rate", default=0.0, type=RATE, metavar="RATE", help="Requests that end in a server fault.")
@click.option("--seed", type=int, metavar="N", help="Of the misbehaviour.")
@click.option("--public-url", metavar="URL", help="The address in the WSDL.  [default: as the client used it]")
@click.option("--admin-token-file", type=FILE, metavar="FILE", help="Serve /admin beyond this machine, too.")
def serve(listen: str, **flags: Any) -> None:
    """Serve it; the WSDL is at /soap?wsdl, the operator's switches at /admin/..."""
    try:
        from coatcheck.host_port import is_loopback, parse_host_port
        from coatcheck.service_kit.http_server import serve_app
        from coatcheck.soap_provider.app import SOAP_PATH, soap_app
        from coatcheck.soap_provider.configuration import read_secret
    except ModuleNotFoundError as error:
        fail(ConfigError(f"{error.name} is missing; pip install 'coatcheck[soap]'"), 2)
    try:
        file = flags["admin_token_file"]
        admin_token = read_secret(file, "admin-token-file") if file else None
        admin = admin_token is not None or is_loopback(parse_host_port(listen, "listen")[0])
        app = soap_app(_options(flags), admin_token=admin_token, admin=admin, public_url=flags["public_url"])
        serve_app(app, listen, lambda url: click.echo(f"SOAP provider at {url}{SOAP_PATH}?wsdl"))
    except ConfigError as error:
        fail(error, 2)


def _options(flags: dict[str, Any]) -> Any:
    from coatcheck.soap_provider.configuration import read_secret, read_users
    from coatcheck.soap_provider.misbehaviour import Misbehaviour
    from coatcheck.soap_provider.options import ProviderOptions
    from coatcheck.tokens.secret import parse_key

    rates = ("expire_rate", "kill_rate", "fail_login_rate", "fault_rate", "max_sessions_per_user")
    misbehaviour = Misbehaviour(
        latency_s=_delay("--latency", flags["latency"]),
        slow_login_s=_delay("--slow-login", flags["slow_login"]),
        **{name: flags[name] for name in rates},
    )
    users = read_users(flags["users"], flags["users_file"]) or {"SADMIN": "SADMIN"}
    key = flags["key_file"]
    return ProviderOptions(
        users=users,
        server=flags["server"],
        key=parse_key(read_secret(key, "key-file"), "key-file") if key else None,
        token_timeout_s=seconds_of("--token-timeout", flags["token_timeout"]),
        idle_s=seconds_of("--idle", flags["idle"]),
        single_use=flags["single_use"],
        misbehaviour=misbehaviour,
        seed=flags["seed"],
    )


def _delay(option: str, text: str) -> float:
    seconds = seconds_of(option, text)
    if seconds > MAX_DELAY_S:
        raise ConfigError(f"{option}: {MAX_DELAY_S:g}s at most (got {text!r})")
    return seconds
