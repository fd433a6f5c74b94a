"""The file of logout signals: whose are believed, and who is told of ours."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Final, Literal
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from coatcheck.errors import ConfigError
from coatcheck.host_port import is_loopback
from coatcheck.options import check_plain_name
from coatcheck.service.signals.event_tokens import ALGORITHMS, Form, Issuer, NamedBy
from coatcheck.service_kit.addresses import check_url
from coatcheck.service_kit.secret_file import secret_lines

MAX_FILE_BYTES: Final = 1 << 20
MAX_NAMED: Final = 32
"""Providers, and receivers."""
_PLAIN: Final = re.compile(r"[\x21-\x7e]{1,1024}")

Algorithm = Literal["ES256", "EdDSA"]


class IdentityProvider(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who may end sessions here. ``issuer`` and ``audience``: what its tokens say, to the letter. ``keys``: its JWK
    set, an address (HTTPS; HTTP on this machine) or a file beside this one. ``user``: which claim is the user's name
    here, if sessions are to be found by that: then all of that user end. ``untyped``: its logout tokens do not say by
    ``typ`` that they are such."""

    issuer: str
    audience: str
    keys: str
    algorithms: Annotated[tuple[str, ...], Meta(min_length=1)] = ("RS256",)
    user: NamedBy = ""
    untyped: bool = False

    def as_issuer(self) -> Issuer:
        return Issuer(self.issuer, self.audience, self.algorithms, self.user, self.untyped)

    @property
    def keys_are_in_a_file(self) -> bool:
        return "://" not in self.keys


class Transmitter(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who we are to receivers: ``issuer`` is the origin at which they find ``/.well-known/ssf-configuration``."""

    issuer: str
    algorithm: Algorithm = "ES256"


class Receiver(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Who is told. ``bearer_file``: what it wants in ``Authorization``, in a file for its owner alone."""

    url: str
    audience: str
    form: Form = "security-event"
    bearer_file: str = ""


class SignalSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The whole file."""

    providers: dict[str, IdentityProvider] = {}
    transmitter: Transmitter | None = None
    receivers: dict[str, Receiver] = {}


def read_signals(path: Path) -> SignalSettings:
    """Raises :class:`ConfigError`: one line."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        if len(raw) > MAX_FILE_BYTES:
            raise ConfigError(f"signals: {path} is larger than {MAX_FILE_BYTES} bytes")
        settings = msgspec.convert(tomllib.loads(raw.decode()), SignalSettings, strict=True)
    except OSError as error:
        raise ConfigError(f"signals: {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"signals: {path}: not valid TOML: {str(error) or 'nested too deep'}") from None
    except msgspec.ValidationError as error:
        raise ConfigError(f"signals: {path}: {error}") from None
    _check(settings)
    for name, provider in settings.providers.items():
        if provider.keys_are_in_a_file and not (path.parent / provider.keys).is_file():
            raise ConfigError(f"signals: providers.{name}: keys: there is no file {path.parent / provider.keys}")
    return settings


def bearer_of(receiver: Receiver, beside: Path) -> str:
    """What a receiver is shown; empty: nothing. Raises :class:`ConfigError`."""
    if not receiver.bearer_file:
        return ""
    lines = secret_lines(beside.parent / receiver.bearer_file, "signals: bearer_file")
    if len(lines) != 1 or not _PLAIN.fullmatch(lines[0]):
        raise ConfigError(f"signals: bearer_file: {receiver.bearer_file} holds one line, the token")
    return lines[0]


def weak_signals(settings: SignalSettings) -> Iterator[str]:
    """What works but protects less than it could: one line each."""
    for name, provider in settings.providers.items():
        where = f"signals: providers.{name}"
        if provider.keys_are_in_a_file:
            yield f"{where}: keys in a file do not follow the provider's rotation; give the address of its JWK set"
        if provider.user == "email":
            yield f'{where}: user = "email": an address that is given to somebody else ends his sessions; use "sub"'
        if provider.untyped:
            yield f"{where}: untyped: a logout token is told from other tokens by its event alone; drop it if you can"
        if provider.issuer.startswith("http:"):
            yield f"{where}: an issuer without TLS can be anybody on the way to it; use https"
    for name, receiver in settings.receivers.items():
        if receiver.url.startswith("http:"):
            yield f"signals: receivers.{name}: who reads this machine's loopback reads who is logged out; use https"


def _check(settings: SignalSettings) -> None:
    if not settings.providers and not settings.receivers:
        raise ConfigError("signals: name a provider, [providers.NAME], or a receiver, [receivers.NAME]")
    if len(settings.providers) > MAX_NAMED or len(settings.receivers) > MAX_NAMED:
        raise ConfigError(f"signals: at most {MAX_NAMED} providers and {MAX_NAMED} receivers")
    for name, provider in settings.providers.items():
        check_plain_name("signals: providers", name)
        _check_provider(f"signals: providers.{name}", provider)
    issuers = [(each.issuer, each.audience) for each in settings.providers.values()]
    if len(set(issuers)) != len(issuers):
        raise ConfigError("signals: providers: two of them have the same issuer and audience")
    if bool(settings.receivers) != (settings.transmitter is not None):
        raise ConfigError("signals: [transmitter] and [receivers.NAME] go together; give both or none")
    if settings.transmitter is not None:
        _check_origin(settings.transmitter.issuer)
    for name, receiver in settings.receivers.items():
        check_plain_name("signals: receivers", name)
        check_safe_url(f"signals: receivers.{name}: url", receiver.url)
        if not _PLAIN.fullmatch(receiver.audience):
            raise ConfigError(f"signals: receivers.{name}: audience: what its tokens are to say, without spaces")


def _check_provider(where: str, provider: IdentityProvider) -> None:
    check_url(f"{where}: issuer", provider.issuer)
    if not _PLAIN.fullmatch(provider.audience):
        raise ConfigError(f"{where}: audience: the client ID that the provider gave you, without spaces")
    for algorithm in provider.algorithms:
        if algorithm not in ALGORITHMS:
            raise ConfigError(f"{where}: algorithms: choose of {', '.join(ALGORITHMS)} (got {algorithm[:40]!r})")
    if provider.keys_are_in_a_file:
        if not provider.keys:
            raise ConfigError(f"{where}: keys: the address of its JWK set, or a file")
    else:
        check_safe_url(f"{where}: keys", provider.keys)


def check_safe_url(where: str, url: str) -> None:
    """Raises :class:`ConfigError` unless nobody on the way can change what is there: HTTPS, or this machine."""
    check_url(where, url)
    parts = urlsplit(url)
    if parts.scheme != "https" and not is_loopback(parts.hostname or ""):
        raise ConfigError(f"{where}: https is needed, but on this machine")


def _check_origin(issuer: str) -> None:
    check_safe_url("signals: transmitter: issuer", issuer)
    parts = urlsplit(issuer)
    if parts.path or parts.query:
        raise ConfigError("signals: transmitter: issuer: an origin such as https://shop.example, without a path")
