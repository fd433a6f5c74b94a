"""Where a farm's settings come from: a TOML file, then the environment, then the command line.

The later one wins. Anything that is not understood is a :class:`~coatcheck.errors.ConfigError` whose one line
names the setting, where it was set, and the mend. How a value is read stands in ``coatcheck/options.py``.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.farm.settings import DirectorSettings, FarmSettings, is_loopback
from coatcheck.options import Setting, nearest, read_value, settings_of
from coatcheck.sessions.settings import SessionSettings, default_copies
from coatcheck.web.cookies import CookiePolicy

ENV_PREFIX: Final = "COATCHECK_"
OTHER_ENV: Final = frozenset({"COATCHECK_SERVER", "COATCHECK_KEYS"})
"""Variables of ours that are no settings: the web server's name for the app, and the key ring."""

MAX_CONFIG_BYTES: Final = 1 << 20


class FarmSetting(Setting, frozen=True):
    """A setting of the farm and its names on the three ways in."""

    table: str = "farm"
    prefix: str = ""
    """Of the flag and the variable, where the table's name belongs to them: ``--cookie-name``."""

    @property
    def parameter(self) -> str:
        """The name among the flags that :func:`load_settings` is given."""
        return self.prefix + self.field

    @property
    def flag(self) -> str:
        return self.option.flag or "--" + (self.prefix + self.key).replace("_", "-")

    @property
    def env(self) -> str:
        return self.option.env or ENV_PREFIX + (self.prefix + self.key).upper()

    def of(self, settings: FarmSettings) -> Any:
        """The value that the farm's settings hold."""
        return getattr(settings if self.table == "farm" else getattr(settings, self.table), self.field)


GROUPS: Final[Mapping[str, type[msgspec.Struct]]] = {
    "farm": FarmSettings,
    "director": DirectorSettings,
    "session": SessionSettings,
    "cookie": CookiePolicy,
}
"""A table of the file, and the struct that it fills."""

_PREFIXES: Final = {"cookie": "cookie_"}


def _settings() -> tuple[FarmSetting, ...]:
    return tuple(
        FarmSetting(each.field, each.kind, each.option, each.default, table, _PREFIXES.get(table, ""))
        for table, group in GROUPS.items()
        for each in settings_of(group)
    )


SETTINGS: Final = _settings()
"""All options, in the order of the documentation."""

Values = dict[str, tuple[FarmSetting, Any]]
"""What was given, by parameter."""


def load_settings(
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> FarmSettings:
    """Merge file, environment and flags (by parameter; ``None`` is not given), and check the whole.

    Raises:
        ConfigError: one line that names the setting and the mend.
    """
    values: Values = {}
    if config is not None:
        values |= _from_file(config)
    values |= _from_environment(environ or {})
    for setting in SETTINGS:
        value = (flags or {}).get(setting.parameter)
        if value is not None and value != ():
            values[setting.parameter] = (setting, read_value(setting, value, setting.flag))
    return _build(values)


def _build(values: Values) -> FarmSettings:
    tables: dict[str, dict[str, Any]] = {table: {} for table in GROUPS}
    for setting, value in values.values():
        tables[setting.table][setting.field] = value
    farm = tables.pop("farm")
    if farm.get("session_server") and farm.get("session_servers"):
        raise ConfigError("session_servers: outside ones are given with session_server; drop one of the two")
    servers = len(farm.get("session_server", ())) or farm.get("session_servers", FarmSettings().session_servers)
    tables["session"].setdefault("copies", default_copies(servers))
    cookie = tables["cookie"]
    if "insecure_localhost" not in cookie:
        cookie["insecure_localhost"] = _development_mode(farm, cookie)
    groups: dict[str, Any] = {table: GROUPS[table](**fields) for table, fields in tables.items()}
    return FarmSettings(**farm, **groups)


def _development_mode(farm: Mapping[str, Any], cookie: Mapping[str, Any]) -> bool:
    """Plain HTTP on this machine alone, and nobody said that a proxy is in front: then a ``Secure`` cookie would
    only mean that most clients show no session at all. It is announced at the start."""
    plain = not farm.get("tls_certificate") and not farm.get("trusted_proxy")
    return plain and is_loopback(farm.get("host", FarmSettings().host)) and not CookiePolicy(**cookie).needs_secure


def _from_file(path: Path) -> Values:
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
    values: Values = {}
    for table, content in document.items():
        if table not in GROUPS or not isinstance(content, dict):
            raise ConfigError(f"{path}: unknown table or key {table!r}{nearest(table, GROUPS)}")
        known = {setting.key: setting for setting in SETTINGS if setting.table == table}
        for key, value in content.items():
            if key not in known:
                raise ConfigError(f"{path}: [{table}] has no setting {key!r}{_elsewhere(key) or nearest(key, known)}")
            setting = known[key]
            values[setting.parameter] = (setting, read_value(setting, value, f"{path}: [{table}] {key}"))
    return values


def _from_environment(environ: Mapping[str, str]) -> Values:
    known = {setting.env: setting for setting in SETTINGS}
    values: Values = {}
    for name, text in environ.items():
        if not name.startswith(ENV_PREFIX) or name in OTHER_ENV:
            continue
        if name not in known:
            raise ConfigError(f"{name}: no setting has this name{nearest(name, [*known, *OTHER_ENV])}")
        value: object = text.split() if known[name].is_list else text
        values[known[name].parameter] = (known[name], read_value(known[name], value, name))
    return values


def _elsewhere(key: str) -> str:
    """Where a key stands that was looked for in another table."""
    for setting in SETTINGS:
        if key in (setting.key, setting.prefix + setting.key):
            return f"; it is {setting.key!r} in [{setting.table}]"
    return ""
