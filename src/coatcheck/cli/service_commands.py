"""``coatcheck service``: the session service, and the credentials of its callers."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from coatcheck.cli.answering import fail, listen_option
from coatcheck.cli.meant import CommandGroup
from coatcheck.cli.options import CONFIG, some_setting_options
from coatcheck.cli.running_farm import ask
from coatcheck.errors import CoatcheckError, ConfigError

if TYPE_CHECKING:
    from coatcheck.farm.files.key_file import KeyFile
    from coatcheck.farm.files.keys import FarmKeys
    from coatcheck.farm.settings.farm_settings import FarmSettings
    from coatcheck.farm.supervision.ring_copy import RingCopy

FILE: Final = click.Path(path_type=Path, dir_okay=False)
FARM_SETTINGS: Final = ("name", "keys_file", "run_dir", "session_server")


@click.group(cls=CommandGroup)
def service() -> None:
    """The session service: sessions over HTTP, for servers in any language and for proxies."""


@service.command()
@listen_option("127.0.0.1:8100")
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
        settings = _settings(config, flags)
        keys, key_file = _given_keys(settings)
        if not settings.session_server:
            raise ConfigError("session_server: name at least one; embedded ones are started by coatcheck serve")
        copy = _ring_copy(settings, keys)
        if settings.key_ring == "shared" or copy.read() is not None:
            raise ConfigError(
                "key_ring: shared keys are in no file; start the service with coatcheck serve --service (or delete "
                f"{copy.path}, if this farm shares its key ring no more)"
            )
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
@click.option(
    "--generation",
    type=click.IntRange(1, 1_000_000),
    default=1,
    show_default=True,
    metavar="N",
    help="Which one the callers file asks for.",
)
@CONFIG
@some_setting_options(("name", "keys_file", "run_dir"), ())
def credential_of(caller: str, generation: int, config: Path | None, **flags: Any) -> None:
    """Print what opens the service for CALLER, whom its callers file must name.

    A farm that runs in the run directory is asked. Otherwise it is made with the keys of the key file, or with the ring
    that machines share, of which the run directory has a copy.
    """
    from coatcheck.farm.files.run_directory import RunDirectory

    try:
        settings = _settings(config, flags)
        if RunDirectory(Path(settings.run_dir)).is_in_use():
            named = {"caller": caller, "generation": generation, "name": settings.name, **_named_keys(settings)}
            text = ask(settings.run_dir, {"op": "service.credential", **named})["credential"]
        else:
            text = _credential(settings, caller, generation)
    except CoatcheckError as error:
        fail(error, 2)
    click.echo(text)


def _credential(settings: FarmSettings, caller: str, generation: int) -> str:
    """Of a farm that does not run here."""
    from coatcheck.farm.supervision.ring_copy import keys_of
    from coatcheck.service.callers import credential
    from coatcheck.tokens.keyring import KeyRing

    keys, _ = _given_keys(settings)
    copy = _ring_copy(settings, keys)
    shared = copy.read()
    if shared is not None:
        keys = keys_of(shared, keys)
    elif settings.key_ring == "shared":
        raise ConfigError(
            f"key_ring: the keys of a shared ring are in no file, and there is no {copy.path}; print the credential "
            "where the farm runs, with its --run-dir"
        )
    return credential(caller, generation, KeyRing(keys.keys, keys.primary), settings.name)


def _settings(config: Path | None, flags: dict[str, Any]) -> FarmSettings:
    """The farm's settings. Cookies are ``Secure`` unless somebody says otherwise: who asks stands behind a proxy."""
    from coatcheck.farm.settings.configuration import load_settings

    return load_settings(config, {"COATCHECK_INSECURE_LOCALHOST": "false", **os.environ}, flags)


def _given_keys(settings: FarmSettings) -> tuple[FarmKeys, KeyFile | None]:
    """The keys that the farm was given, and the file that changes them, if they come from one."""
    from coatcheck.farm.files.key_file import KeyFile
    from coatcheck.farm.files.keys import ENV, load, load_or_create

    if os.environ.get(ENV):
        return load_or_create(Path(), os.environ), None
    path = Path(settings.keys_file) if settings.keys_file else Path(settings.run_dir) / "keys.json"
    if not path.exists():
        raise ConfigError(f"keys_file: there is no {path}; the service needs the farm's keys, and makes none")
    keys = load(path)
    return keys, KeyFile(path, keys, logging.getLogger("coatcheck.service").warning, led=True)


def _named_keys(settings: FarmSettings) -> dict[str, Any]:
    """Which keys were named, for a farm that judges whether they are its own; of secrets, their names alone."""
    from coatcheck.farm.files.keys import ENV, key_name, load_or_create

    if os.environ.get(ENV):
        return {"key_names": [key_name(key) for key in load_or_create(Path(), os.environ).keys]}
    return {"keys_file": str(Path(settings.keys_file).absolute())} if settings.keys_file else {}


def _ring_copy(settings: FarmSettings, given: FarmKeys) -> RingCopy:
    """The ring that machines share, if this is one of them."""
    from coatcheck.farm.supervision.ring_copy import RingCopy

    return RingCopy(settings.name, given, Path(settings.run_dir))
