"""Where a farm's settings come from: a TOML file, then the environment, then the command line.

The later one wins. Anything that is not understood is a :class:`~coatcheck.errors.ConfigError` whose one line
names the setting, where it was set, and the mend.
"""

from __future__ import annotations

import difflib
import ipaddress
import re
import tomllib
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, Literal, get_args, get_origin

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.farm.duration import format_duration, parse_duration
from coatcheck.farm.session_server_url import parse_session_server
from coatcheck.farm.settings import Copies, FarmSettings, Option

ENV_PREFIX: Final = "COATCHECK_"
OTHER_ENV: Final = frozenset({"COATCHECK_SERVER", "COATCHECK_KEYS"})
"""Variables of ours that are no settings: the web server's name for the app, and the key ring."""

MAX_CONFIG_BYTES: Final = 1 << 20
_WHOLE_NUMBER: Final = re.compile(r"-?[0-9]{1,18}")


class Setting(msgspec.Struct, frozen=True):
    """One option: a field of :class:`FarmSettings` and its names on the three ways in."""

    field: str
    kind: Any
    option: Option
    default: Any

    @property
    def key(self) -> str:
        """The name in ``farm.toml``; a duration carries its unit in the value, not in the name."""
        return self.field.removesuffix("_s") if self.option.duration else self.field

    @property
    def flag(self) -> str:
        return self.option.flag or "--" + self.key.replace("_", "-")

    @property
    def env(self) -> str:
        return self.option.env or ENV_PREFIX + self.key.upper()

    @property
    def is_bool(self) -> bool:
        return self.kind is bool

    @property
    def is_list(self) -> bool:
        return get_origin(self.kind) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        return get_args(self.kind) if get_origin(self.kind) is Literal else ()

    @property
    def default_text(self) -> str:
        """The default as one would write it."""
        if self.option.duration:
            return format_duration(self.default)
        if self.is_bool:
            return str(self.default).lower()
        return "" if self.default in ("", ()) else str(self.default)


def _settings() -> tuple[Setting, ...]:
    hints = typing.get_type_hints(FarmSettings, include_extras=True)
    found = []
    for field in msgspec.structs.fields(FarmSettings):
        kind, option = get_args(hints[field.name])
        found.append(Setting(field.name, kind, option, field.default))
    return tuple(found)


SETTINGS: Final = _settings()
"""All options, in the order of the documentation."""


def load_settings(
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> FarmSettings:
    """Merge file, environment and flags (by field name; ``None`` is not given), and check the whole.

    Raises:
        ConfigError: one line that names the setting and the mend.
    """
    values: dict[str, Any] = {}
    if config is not None:
        values |= _from_file(config)
    values |= _from_environment(environ or {})
    for setting in SETTINGS:
        value = (flags or {}).get(setting.field)
        if value is not None and value != ():
            values[setting.field] = parse_value(setting, value, setting.flag)
    settings = FarmSettings(**values)
    check(settings, chosen=frozenset(values))
    return settings if "insecure_localhost" in values else _with_development_mode(settings)


def _with_development_mode(settings: FarmSettings) -> FarmSettings:
    """Plain HTTP on this machine alone, and nobody said that a proxy is in front: then a ``Secure`` cookie would
    only mean that most clients show no session at all. It is announced at the start."""
    plain = not settings.tls_certificate and not settings.trusted_proxy
    return msgspec.structs.replace(settings, insecure_localhost=plain and is_loopback(settings.host))


def _from_file(path: Path) -> dict[str, Any]:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name an existing TOML file") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; this is no farm.toml")
    try:
        document = tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from None
    values: dict[str, Any] = {}
    tables = {setting.option.table for setting in SETTINGS}
    for table, content in document.items():
        if table not in tables or not isinstance(content, dict):
            raise ConfigError(f"{path}: unknown table or key {table!r}{_nearest(table, tables)}")
        known = {setting.key: setting for setting in SETTINGS if setting.option.table == table}
        for key, value in content.items():
            if key not in known:
                raise ConfigError(f"{path}: [{table}] has no setting {key!r}{_nearest(key, known)}")
            values[known[key].field] = parse_value(known[key], value, f"{path}: [{table}] {key}")
    return values


def _from_environment(environ: Mapping[str, str]) -> dict[str, Any]:
    known = {setting.env: setting for setting in SETTINGS}
    values: dict[str, Any] = {}
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX) or name in OTHER_ENV:
            continue
        if name not in known:
            raise ConfigError(f"{name}: no setting has this name{_nearest(name, [*known, *OTHER_ENV])}")
        value: object = text.split() if known[name].is_list else text
        values[known[name].field] = parse_value(known[name], value, name)
    return values


def _nearest(name: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else "; see docs/operations.md for the list"


def parse_value(setting: Setting, value: object, where: str) -> Any:
    """Read one value, as TOML type or as text.

    Raises:
        ConfigError: wrong type or out of bounds; ``where`` begins the line.
    """
    try:
        parsed = _PARSERS[_kind(setting)](setting, value)
        _check_bounds(setting, parsed)
    except ValueError as error:
        # A list may hold URLs with passwords.
        got = "" if setting.is_list else f" (got {value!r})"
        raise ConfigError(f"{where}: {error}{got}") from None
    return parsed


def _kind(setting: Setting) -> str:
    if setting.option.duration:
        return "duration"
    if setting.kind == Copies:
        return "copies"
    if setting.choices:
        return "choice"
    return "list" if setting.is_list else setting.kind.__name__


def _parse_int(setting: Setting, value: object) -> int:
    if isinstance(value, str) and _WHOLE_NUMBER.fullmatch(value.strip()):
        return int(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    raise ValueError("write a whole number")


def _parse_bool(setting: Setting, value: object) -> bool:
    if isinstance(value, bool):
        return value
    words = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False}
    words["0"] = False
    if isinstance(value, str) and value.strip().lower() in words:
        return words[value.strip().lower()]
    raise ValueError("write true or false")


def _parse_str(setting: Setting, value: object) -> str:
    if not isinstance(value, str) or any(ord(character) < 32 for character in value):
        raise ValueError("write a string without control characters")
    return value


def _parse_choice(setting: Setting, value: object) -> str:
    if not isinstance(value, str) or value not in setting.choices:
        raise ValueError("choose one of " + ", ".join(setting.choices))
    return value


def _parse_copies(setting: Setting, value: object) -> Copies:
    if value == "all":
        return "all"
    try:
        return _parse_int(setting, value)
    except ValueError:
        raise ValueError('write a whole number or "all"') from None


def _parse_list(setting: Setting, value: object) -> tuple[str, ...]:
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple)) or not all(isinstance(item, str) for item in value):
        raise ValueError("write a list of strings")
    return tuple(value)


_PARSERS: Final[Mapping[str, typing.Callable[[Setting, object], Any]]] = {
    "duration": lambda setting, value: parse_duration(value),
    "int": _parse_int,
    "bool": _parse_bool,
    "str": _parse_str,
    "choice": _parse_choice,
    "copies": _parse_copies,
    "list": _parse_list,
}


def _check_bounds(setting: Setting, value: Any) -> None:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return
    write = format_duration if setting.option.duration else str
    minimum, maximum = setting.option.minimum, setting.option.maximum
    if minimum is not None and value < minimum:
        raise ValueError(f"must be at least {write(minimum)}")
    if maximum is not None and value > maximum:
        raise ValueError(f"must be at most {write(maximum)}")


def check(settings: FarmSettings, chosen: frozenset[str] = frozenset()) -> None:
    """Refuse values that cannot work together.

    Raises:
        ConfigError: the first such pair, and the mend.
    """
    servers = len(settings.session_server) or settings.session_servers
    if settings.session_server and "session_servers" in chosen and settings.session_servers:
        raise ConfigError("session_servers: outside ones are given with session_server; drop one of the two")
    names = [parse_session_server(item, at).name for at, item in enumerate(settings.session_server, 1)]
    if len(set(names)) != len(names):
        raise ConfigError("session_server: two have the same name; give each its own, as NAME=URL")
    if servers == 0:
        raise ConfigError("session_servers: at least 1 is needed, or give session_server URLs")
    if settings.copies != "all" and settings.copies > servers:
        more = "give" if settings.session_server else "start"
        mend = f"set copies to {servers}{' or less' if servers > 1 else ''}, or {more} {settings.copies} of them"
        raise ConfigError(f"copies: {settings.copies} copies need as many session servers, not {servers}; {mend}")
    if settings.rotate_after_s == 0 and settings.grace_s == 0 and settings.theft != "refuse":
        raise ConfigError('theft: rotate_after 0 with grace 0 accuses parallel requests; set theft = "refuse"')
    if settings.grace_s == 0 and settings.theft != "refuse":
        raise ConfigError('grace: 0 needs theft = "refuse", or honest parallel requests are taken for theft')
    if settings.idle_timeout_s > settings.absolute_timeout_s:
        raise ConfigError("idle_timeout: longer than absolute_timeout; shorten it or raise absolute_timeout")
    if settings.insecure_localhost and not is_loopback(settings.host):
        raise ConfigError(f"insecure_localhost: only for a loopback host, not {settings.host!r}; drop one of them")
    if settings.hsts_s and not settings.tls_certificate:
        raise ConfigError("hsts: only with tls_certificate; without it the proxy that speaks TLS has to say so")
    _check_names(settings)
    for network in settings.trusted_proxy:
        try:
            ipaddress.ip_network(network)
        except ValueError as error:
            raise ConfigError(f"trusted_proxy: {error}; write a network such as 10.0.0.0/8, or an address") from None


def _check_names(settings: FarmSettings) -> None:
    for field, value in (("name", settings.name), ("cookie_name", settings.cookie_name)):
        if not value or len(value) > 64 or not all(c.isascii() and (c.isalnum() or c in "-_") for c in value):
            raise ConfigError(f"{field}: 1 to 64 letters, digits, - or _ (got {value!r})")
    if bool(settings.tls_certificate) != bool(settings.tls_key):
        raise ConfigError("tls_certificate: needs tls_key, and tls_key needs tls_certificate; give both or none")
    if not settings.host:
        raise ConfigError("host: name an address, such as 127.0.0.1 or 0.0.0.0")
    if not settings.run_dir:
        raise ConfigError("run_dir: name a directory")


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach the host."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
