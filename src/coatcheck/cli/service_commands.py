"""``coatcheck service``: the session service, and the credentials of its callers."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any, Final

import click

from coatcheck.cli.answering import fail
from coatcheck.cli.options import some_setting_options
from coatcheck.errors import CoatcheckError, ConfigError

FILE: Final = click.Path(path_type=Path, dir_okay=False)
FARM_SETTINGS: Final = ("name", "keys_file", "run_dir", "session_server")
CONFIG = click.option("--config", type=FILE, metavar="FILE", help="The farm's TOML file.")


@click.group()
def service() -> None:
    """The session service: sessions over HTTP, for servers in any language and for proxies."""


@service.command()
@click.option("--listen", default="127.0.0.1:8100", show_default=True, metavar="HOST:PORT")
@click.option("--callers", type=FILE, required=True, metavar="FILE", help="Who may ask, and what for (TOML).")
@click.option("--signals", type=FILE, metavar="FILE", help="Whose logout signals are taken, who is told (TOML).")
@click.option("--tls-certificate", type=FILE, metavar="FILE", help="Speak HTTPS with this certificate chain (PEM).")
@click.option("--tls-key", type=FILE, metavar="FILE", help="The certificate's private key (PEM).")
@click.option("--tls-authority", type=FILE, metavar="FILE", help="Who signs the certificates of callers (PEM).")
@click.option("--tls-revoked", type=FILE, metavar="FILE", help="Those that were taken back (revoked.pem).")
@click.option("--allow-insecure", is_flag=True, help="Listen beyond this machine without TLS.")
@CONFIG
@some_setting_options(FARM_SETTINGS, ("session", "cookie"))
def serve(
    listen: str,
    callers: Path,
    signals: Path | None,
    tls_certificate: Path | None,
    tls_key: Path | None,
    tls_authority: Path | None,
    tls_revoked: Path | None,
    allow_insecure: bool,
    config: Path | None,
    **flags: Any,
) -> None:
    """Serve the sessions of a farm over HTTP; its OpenAPI document is at /openapi.json."""
    try:
        from coatcheck.service.serve import SessionServiceSettings, serve_sessions
    except ModuleNotFoundError as error:
        fail(ConfigError(f"{error.name} is missing; pip install 'coatcheck[service]'"), 2)
    from coatcheck.access import SessionAccess
    from coatcheck.stores.session_server_url import parse_session_servers

    try:
        settings, keys, key_file = _farm(config, flags)
        if not settings.session_server:
            raise ConfigError("session_server: name at least one; embedded ones are started by coatcheck serve")
        if settings.key_ring == "shared":
            raise ConfigError("key_ring: shared keys are in no file; start the service with coatcheck serve --service")
        access = SessionAccess(
            farm=settings.name,
            server=f"service-{os.uname().nodename}-{os.getpid()}",
            session_servers=parse_session_servers(settings.session_server),
            keys=keys.keys,
            primary_key=keys.primary,
            settings=settings.session,
            sites=settings.sites,
        )
        service_settings = SessionServiceSettings(
            listen=listen,
            callers=callers,
            certificate=tls_certificate,
            private_key=tls_key,
            authority=tls_authority,
            revoked=tls_revoked,
            insecure=allow_insecure,
            signals=signals,
        )
        serve_sessions(service_settings, access, settings.cookie, _started(settings.name), key_file)
    except CoatcheckError as error:
        fail(error, 2)


def _started(name: str) -> Any:
    return lambda url: click.echo(f"session service of {name} at {url}")


@service.command("credential")
@click.argument("caller")
@click.option("--generation", type=click.IntRange(1, 1_000_000), default=1, show_default=True)
@CONFIG
@some_setting_options(("name", "keys_file", "run_dir"), ())
def credential_of(caller: str, generation: int, config: Path | None, **flags: Any) -> None:
    """Print what opens the service for CALLER, whom its callers file must name."""
    from coatcheck.service.callers import credential
    from coatcheck.tokens.keyring import KeyRing

    try:
        settings, keys, _ = _farm(config, flags)
        text = credential(caller, generation, KeyRing(keys.keys, keys.primary), settings.name)
    except CoatcheckError as error:
        fail(error, 2)
    click.echo(text)


def _farm(config: Path | None, flags: dict[str, Any]) -> Any:
    """The farm's settings, its keys, and the file that changes them, if they come from one. Cookies are ``Secure``
    unless somebody says otherwise: who asks stands behind a proxy."""
    from coatcheck.farm.files.key_file import KeyFile
    from coatcheck.farm.files.keys import ENV, load, load_or_create
    from coatcheck.farm.settings.configuration import load_settings

    settings = load_settings(config, {"COATCHECK_INSECURE_LOCALHOST": "false", **os.environ}, flags)
    if os.environ.get(ENV):
        return settings, load_or_create(Path(), os.environ), None
    path = Path(settings.keys_file) if settings.keys_file else Path(settings.run_dir) / "keys.json"
    if not path.exists():
        raise ConfigError(f"keys_file: there is no {path}; the service needs the farm's keys, and makes none")
    keys = load(path)
    return settings, keys, KeyFile(path, keys, logging.getLogger("coatcheck.service").warning, led=True)
