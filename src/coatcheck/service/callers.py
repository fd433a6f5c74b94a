"""Who may ask the session service, and what for: a TOML file of callers, their credentials, scopes and pace.

A credential is derived from the farm's key ring, so that the file holds no secret, all processes of a service know the
same ones, and none need be stored: ``NAME.GENERATION.MARK``. A caller is revoked by taking it out of the file, or by a
new generation, which voids the credentials of others.
"""

from __future__ import annotations

import re
import tomllib
from base64 import urlsafe_b64encode
from binascii import Error as BinasciiError
from binascii import a2b_base64
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from coatcheck.errors import ConfigError
from coatcheck.options import check_plain_name
from coatcheck.service_kit.addresses import check_url
from coatcheck.tokens.keyring import KeyedMac, KeyRing

SCOPES: Final = (
    "verify", "renew", "create", "update", "close", "hand-off", "list-user", "close-user", "events", "forward-auth",
)  # fmt: skip
MAX_CALLERS: Final = 1_000
MAX_FILE_BYTES: Final = 1 << 20
MARK_BYTES: Final = 32
MAX_CREDENTIAL_CHARS: Final = 512
BURST_S: Final = 2.0
"""A caller that was silent may ask for so long at once what it may ask in that time, and at least once."""

_FROM_URL: Final = bytes.maketrans(b"-_+/", b"+/!!")
_AUDIENCE: Final = re.compile(r"[\x21-\x7e]{1,256}")


class Caller(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """One table of the file.

    ``scopes``: what it may ask. ``requests_per_minute``: its pace on each process of the service. ``certificate``: a
    DNS name in its certificate, which opens the service then, and its credential does not. ``generation``: of its
    credential. ``audience``, ``claims``, ``login_url``: of forward-auth; whom the signed header is for, which keys of
    the session's data stand in it, and where a browser without a login is sent (without it, 401).
    """

    scopes: tuple[str, ...]
    requests_per_minute: Annotated[int, Meta(ge=1, le=10_000_000)] = 60_000
    certificate: str = ""
    generation: Annotated[int, Meta(ge=1, le=1_000_000)] = 1
    audience: str = ""
    claims: tuple[str, ...] = ()
    login_url: str = ""
    name: str = ""


class Pace:
    """A token bucket: ``requests_per_minute``, and :data:`BURST_S` of them at once."""

    def __init__(self, requests_per_minute: int) -> None:
        self._per_s = requests_per_minute / 60
        self._most = max(1.0, self._per_s * BURST_S)
        self._left = self._most
        self._filled_at = 0.0

    def take(self, now_s: float) -> float:
        """Seconds to wait for the next request; 0: this one may go on. ``now_s`` never goes back."""
        if self._filled_at:
            self._left = min(self._most, self._left + (now_s - self._filled_at) * self._per_s)
        self._filled_at = now_s
        if self._left < 1:
            return (1 - self._left) / self._per_s
        self._left -= 1
        return 0.0


class Callers:
    """All of them. ``farm``: credentials of another farm open nothing here, though it had the same keys."""

    def __init__(self, callers: Mapping[str, Caller], ring: KeyRing, farm: str) -> None:
        """Raises :class:`ConfigError` for a caller that cannot be."""
        self._take(callers, _mac(ring, farm))

    def replaced_by(self, callers: Mapping[str, Caller]) -> Callers:
        """Others in their place, who are known by the same keys. Who is there again with the same pace has left of it
        what it had. Raises :class:`ConfigError`."""
        others = Callers.__new__(Callers)
        others._take(callers, self._mac)
        for name, caller in others._callers.items():
            before = self._callers.get(name)
            if before is not None and before.requests_per_minute == caller.requests_per_minute:
                others._paces[name] = self._paces[name]
        return others

    def _take(self, callers: Mapping[str, Caller], mac: KeyedMac) -> None:
        if not 1 <= len(callers) <= MAX_CALLERS:
            raise ConfigError(f"callers: 1 to {MAX_CALLERS} of them are needed, not {len(callers)}")
        self._mac = mac
        self._callers = {name: msgspec.structs.replace(caller, name=name) for name, caller in callers.items()}
        for each in self._callers.values():
            _check(each)
        self._by_certificate: dict[str, Caller] = {}
        for each in self._callers.values():
            if each.certificate and self._by_certificate.setdefault(each.certificate, each) is not each:
                raise ConfigError(f"callers: two of them have the certificate {each.certificate}")
        self._paces = {name: Pace(caller.requests_per_minute) for name, caller in self._callers.items()}

    def __repr__(self) -> str:
        return f"<Callers, {len(self._callers)}>"

    def of_credential(self, text: str) -> Caller | None:
        """Whose credential this is; ``None``: nobody's, or of a caller that is bound to a certificate."""
        found = self._claimed(text)
        if found is None:
            return None
        caller, mark = found
        return caller if self._mac.is_ours(_marked(caller.name, caller.generation), mark) else None

    def may_be_of_another_key(self, text: str | None) -> bool:
        """Whether nothing but its mark speaks against a credential: a key that we do not know may have made that."""
        return text is not None and self._claimed(text) is not None

    def _claimed(self, text: str) -> tuple[Caller, bytes] | None:
        """Who this credential says that it is of, and its mark; ``None`` if it is none."""
        name, _, rest = text.partition(".")
        generation, _, mark = rest.partition(".")
        caller = self._callers.get(name)
        if caller is None or caller.certificate:
            return None
        if len(text) > MAX_CREDENTIAL_CHARS or generation != str(caller.generation):
            return None
        try:
            raw = a2b_base64(mark.encode("ascii").translate(_FROM_URL) + b"=", strict_mode=True)
        except (BinasciiError, UnicodeEncodeError):
            return None
        if urlsafe_b64encode(raw).rstrip(b"=").decode() != mark:
            return None  # bits that decoding drops: a credential has one spelling
        return (caller, raw) if len(raw) == MARK_BYTES else None

    def of_certificate(self, dns_names: frozenset[str]) -> Caller | None:
        """Whose certificate this is, by the DNS names in it."""
        found = [self._by_certificate[name] for name in dns_names if name in self._by_certificate]
        return found[0] if len(found) == 1 else None

    def wait_s(self, caller: Caller, now_s: float) -> float:
        """Counts a request of this caller; seconds to wait if it asks too often, else 0."""
        return self._paces[caller.name].take(now_s)

    @property
    def have_certificates(self) -> bool:
        """Whether one of them is known by its certificate."""
        return bool(self._by_certificate)


def credential(name: str, generation: int, ring: KeyRing, farm: str) -> str:
    """What opens the service for the caller of this name. Raises :class:`ConfigError` for a name that is none."""
    check_plain_name("caller", name)
    mark = urlsafe_b64encode(_mac(ring, farm).mark(_marked(name, generation), MARK_BYTES)).rstrip(b"=")
    return f"{name}.{generation}.{mark.decode()}"


def read_callers(path: Path) -> dict[str, Caller]:
    """The tables of a file, by name. Raises :class:`ConfigError`."""
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_FILE_BYTES + 1)
        document = tomllib.loads(raw.decode())
    except OSError as error:
        raise ConfigError(f"callers: {path} cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"callers: {path}: not valid TOML: {str(error) or 'nested too deep'}") from None
    if len(raw) > MAX_FILE_BYTES:
        raise ConfigError(f"callers: {path} is larger than {MAX_FILE_BYTES} bytes")
    try:
        return {name: msgspec.convert(table, Caller, strict=True) for name, table in document.items()}
    except msgspec.ValidationError as error:
        raise ConfigError(f"callers: {path}: {error}") from None


def _mac(ring: KeyRing, farm: str) -> KeyedMac:
    return ring.mac("session service caller", farm)


def _marked(name: str, generation: int) -> bytes:
    return f"{name}\x00{generation}".encode()


def _check(caller: Caller) -> None:
    check_plain_name("callers: name", caller.name)
    where = f"callers: {caller.name}"
    for scope in caller.scopes:
        if scope not in SCOPES:
            raise ConfigError(f"{where}: there is no scope {scope!r}; choose of {', '.join(SCOPES)}")
    if not caller.scopes:
        raise ConfigError(f"{where}: scopes: at least one is needed, or the caller could do nothing")
    if "forward-auth" not in caller.scopes:
        if caller.audience or caller.claims or caller.login_url:
            raise ConfigError(f"{where}: audience, claims and login_url are of the scope forward-auth")
    elif not _AUDIENCE.fullmatch(caller.audience):
        raise ConfigError(f"{where}: audience: forward-auth needs one, such as https://shop.example")
    if caller.login_url:
        check_url(f"{where}: login_url", caller.login_url)
