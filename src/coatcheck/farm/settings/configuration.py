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

from coatcheck.director.rules.settings import DirectorSettings
from coatcheck.errors import ConfigError
from coatcheck.farm.settings.farm_settings import FarmSettings
from coatcheck.farm.settings.moving_in import KEY as MOVING_IN
from coatcheck.farm.settings.moving_in import MovingInSettings, read_moving_in
from coatcheck.hand_off.sites import Site
from coatcheck.host_port import is_loopback
from coatcheck.options import Setting, nearest, read_value, settings_of, shown
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.settings import SessionSettings, default_copies

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

SITES: Final = "sites"
"""The table of tables that is no group of settings."""


class _SiteTable(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of them, as it is written."""

    origin: str
    paths: tuple[str, ...] = ()


_PREFIXES: Final = {"cookie": "cookie_"}


def _settings() -> tuple[FarmSetting, ...]:
    return tuple(
        FarmSetting(each.field, each.kind, each.option, each.default, table, _PREFIXES.get(table, ""))
        for table, group in GROUPS.items()
        for each in settings_of(group)
    )


SETTINGS: Final = _settings()
"""All options, in the order of the documentation."""


def load_settings(
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> FarmSettings:
    """Merge file, environment and flags (by parameter; ``None`` is not given), and check the whole.

    Raises:
        ConfigError: one line that names the setting and the mend.
    """
    settings, mistakes = try_settings(config, environ, flags)
    if settings is None:
        raise mistakes[0]
    return settings


def try_settings(
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
    flags: Mapping[str, object] | None = None,
) -> tuple[FarmSettings | None, list[ConfigError]]:
    """The same; instead of raising the first mistake, return all that were found and no settings."""
    reading = _SettingsReader()
    if config is not None:
        reading.file(config)
    reading.environment(environ or {})
    for setting in SETTINGS:
        value = (flags or {}).get(setting.parameter)
        if value is not None and value != ():
            reading.take(setting, value, setting.flag)
    if reading.mistakes:
        return None, reading.mistakes
    try:
        return _build(reading.values, tuple(reading.sites), reading.moving_in), []
    except ConfigError as error:
        return None, [error]


def _build(
    values: Mapping[str, tuple[FarmSetting, Any]], sites: tuple[Site, ...], moving_in: MovingInSettings | None
) -> FarmSettings:
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
    return FarmSettings(**farm, **groups, site_table=sites, moving_in=moving_in)


def _development_mode(farm: Mapping[str, Any], cookie: Mapping[str, Any]) -> bool:
    """Plain HTTP on this machine alone, and nobody said that a proxy is in front: then a ``Secure`` cookie would
    only mean that most clients show no session at all. It is announced at the start."""
    plain = not farm.get("tls_certificate") and not farm.get("trusted_proxy")
    return plain and is_loopback(farm.get("host", FarmSettings().host)) and not CookiePolicy(**cookie).needs_secure


class _SettingsReader:
    """What was given so far, and what of it was wrong."""

    def __init__(self) -> None:
        self.values: dict[str, tuple[FarmSetting, Any]] = {}
        """By parameter."""
        self.mistakes: list[ConfigError] = []
        self.sites: list[Site] = []
        self.moving_in: MovingInSettings | None = None

    def take(self, setting: FarmSetting, value: object, where: str) -> None:
        try:
            self.values[setting.parameter] = (setting, read_value(setting, value, where))
        except ConfigError as error:
            self.mistakes.append(error)

    def file(self, path: Path) -> None:
        try:
            document = _read_toml(path)
        except ConfigError as error:
            self.mistakes.append(error)
            return
        self._sites(path, document.pop(SITES, {}))
        for table, content in document.items():
            if table not in GROUPS or not isinstance(content, dict):
                self.mistakes.append(
                    ConfigError(f"{path}: unknown table or key {shown(table)!r}{nearest(table, [*GROUPS, SITES])}")
                )
                continue
            if table == "session" and MOVING_IN in content:
                self._moving_in(path, content.pop(MOVING_IN))
            known = {setting.key: setting for setting in SETTINGS if setting.table == table}
            for key, value in content.items():
                if key in known:
                    self.take(known[key], value, f"{path}: [{table}] {key}")
                    continue
                meant = _elsewhere(key) or nearest(key, known)
                self.mistakes.append(ConfigError(f"{path}: [{table}] has no setting {shown(key)!r}{meant}"))

    def _sites(self, path: Path, tables: object) -> None:
        """``[sites.NAME]``: for the file alone, as a table of all sites is no single value."""
        content: Any
        for name, content in tables.items() if isinstance(tables, dict) else [(SITES, tables)]:
            try:
                table = msgspec.convert(content, _SiteTable)
                self.sites.append(Site(name=name, origin=table.origin, paths=table.paths))
            except msgspec.ValidationError:
                self.mistakes.append(
                    ConfigError(
                        f'{path}: [{SITES}.{shown(name)}] has an origin, such as "https://shop.example", and paths, '
                        'such as ["/tickets/*"], and nothing else'
                    )
                )

    def _moving_in(self, path: Path, content: object) -> None:
        """``[session.moving_in]``: for the file alone, too."""
        try:
            self.moving_in = read_moving_in(content)
        except ConfigError as error:
            self.mistakes.append(ConfigError(f"{path}: [session.{MOVING_IN}] {error}"))

    def environment(self, environ: Mapping[str, str]) -> None:
        known = {setting.env: setting for setting in SETTINGS}
        for name, text in environ.items():
            if not name.startswith(ENV_PREFIX) or name in OTHER_ENV:
                continue
            if name in known:
                self.take(known[name], text.split() if known[name].is_list else text, name)
                continue
            meant = nearest(name, [*known, *OTHER_ENV], ENV_PREFIX)
            self.mistakes.append(ConfigError(f"{name}: no setting has this name{meant}"))


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); name an existing TOML file") from None
    if len(raw) > MAX_CONFIG_BYTES:
        raise ConfigError(f"{path}: larger than {MAX_CONFIG_BYTES} bytes; this is no farm.toml")
    try:
        return tomllib.loads(raw.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise ConfigError(f"{path}: not valid TOML: {str(error) or 'nested too deep'}") from None


def _elsewhere(key: str) -> str:
    """Where a key stands that was looked for in another table."""
    for setting in SETTINGS:
        if key in (setting.key, setting.prefix + setting.key):
            return f"; it is {setting.key!r} in [{setting.table}]"
    return ""
