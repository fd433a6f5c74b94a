"""Every setting, on every way in, with bad values: one line, the same on each, exit code 2; and a fuzz over it all."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import msgspec
import pytest
from click.testing import CliRunner
from hypothesis import example, given, settings
from hypothesis import strategies as st

from coatcheck import ConfigError, connect
from coatcheck.cli.commands import coatcheck
from coatcheck.farm.settings.configuration import GROUPS, SETTINGS, FarmSetting, load_settings
from coatcheck.farm.settings.farm_settings import FarmSettings
from coatcheck.options import MAX_SHOWN

KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"
SERVERS = ("redis://127.0.0.1:1", "redis://127.0.0.1:2")
OUTSIDE = {"session_server": SERVERS}
TLS = {"tls_certificate": "c.pem", "tls_key": "k.pem"}
OF_TLS_SHARING = ("tls_sharing", "tls_session_lifetime_s", "tls_ticket_period_s", "tls_fetch_timeout_s")
NAMES = [setting.parameter for setting in SETTINGS]
MAX_LINE = 400
WHERE = re.compile(r"^(\S+\.toml: \[[a-z]+\] )?[\w-]+: ")
"""The beginning of a line: how the setting is called where it was given."""

BAD = {
    "duration": ["soon", "-1", "1e3", "nan", "٣s", "9" * 500, ""],
    "int": ["two", "2.5", "-1", "99999999999999999999", "", "0x10"],
    "int | word": ["some", "0", "-3", "7", "ALL", ""],
    "float": ["many", "nan", "inf", ""],
    "bool": ["maybe", "2", "", "tru"],
    "choice": ["clos", "", "CLOSE", "a" * 500],
    "text": ["a\tb", "x\x1b[2J"],
}
BAD_LISTS = {"session_server": ["http://a", "redis://:hush@h:x"], "trusted_proxy": ["10.0.0.1/8", "everybody"]}
BAD_LISTS["reload_dir"] = ["src"]  # without reload


def kind_of(setting: FarmSetting) -> str:
    if setting.option.duration:
        return "duration"
    if setting.choices:
        return "choice"
    if setting.is_list:
        return "list"
    return {int: "int", float: "float", bool: "bool", str: "text"}.get(setting.kind, "int | word")


def bad_values(setting: FarmSetting) -> list[str]:
    return BAD_LISTS[setting.field] if setting.is_list else BAD[kind_of(setting)]


def refused(call: Callable[[], object]) -> str:
    """What a way in says, without the name by which the setting goes there."""
    with pytest.raises(ConfigError) as caught:
        call()
    return ending(str(caught.value))


def ending(line: str) -> str:
    assert "\n" not in line
    assert len(line) <= MAX_LINE
    assert "hush" not in line
    return WHERE.sub("", line)


def in_toml(setting: FarmSetting, value: object) -> str:
    return f"[{setting.table}]\n{setting.key} = {toml(value)}\n"


def toml(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return "nan" if math.isnan(value) else repr(value).removeprefix("+")
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace(
            "\x7f", "\\u007f"
        )  # surrogates are kept out by the strategy
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(toml(item) for item in value) + "]"
    return str(value)


def by_file(path: Path, setting: FarmSetting, value: object) -> Callable[[], FarmSettings]:
    path.write_text(in_toml(setting, value))
    return lambda: load_settings(path, {}, _beside(setting))


def _beside(setting: FarmSetting) -> dict[str, object]:
    """What the setting needs beside it."""
    if setting.field == "hsts_s" or setting.field in OF_TLS_SHARING:
        return {**OUTSIDE, **TLS}
    return {} if setting.field in ("session_server", "session_servers") else dict(OUTSIDE)


def by_flag(setting: FarmSetting, value: object) -> Callable[[], FarmSettings]:
    return lambda: load_settings(None, {}, {**_beside(setting), setting.parameter: value})


def by_environment(setting: FarmSetting, text: str) -> Callable[[], FarmSettings]:
    return lambda: load_settings(None, {setting.env: text}, _beside(setting))


def by_python(setting: FarmSetting, value: object) -> Callable[[], object]:
    """As a library's user: ``connect(theft=...)``, ``CookiePolicy(name=...)``; as whoever builds a farm: the struct."""
    given: dict[str, Any] = {setting.field: value}
    if setting.table == "session":
        return lambda: connect(*SERVERS, key=KEY, **given)
    if setting.table == "farm":
        given |= _beside(setting)
    return lambda: GROUPS[setting.table](**given)


def in_struct(setting: FarmSetting, value: object) -> Callable[[], object]:
    """The struct of the setting's table alone."""
    beside: dict[str, Any] = TLS if setting.field in OF_TLS_SHARING else {}
    return lambda: GROUPS[setting.table](**{setting.field: value}, **beside)


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_a_bad_value_gets_the_same_line_on_every_way_in(setting: FarmSetting, tmp_path: Path) -> None:
    for bad in bad_values(setting):
        value = [bad] if setting.is_list else bad
        lines = {
            refused(by_file(tmp_path / "farm.toml", setting, value)),
            refused(by_flag(setting, value)),
            refused(by_environment(setting, bad)),
            refused(by_python(setting, value)),
        }
        assert len(lines) == 1, lines


@pytest.mark.parametrize("setting", SETTINGS, ids=NAMES)
def test_serve_says_one_line_and_exits_with_2(setting: FarmSetting, tmp_path: Path) -> None:
    bad = bad_values(setting)[0]
    file = tmp_path / "farm.toml"
    file.write_text(in_toml(setting, [bad] if setting.is_list else bad))
    flag = [bad] if setting.field == "app" else [f"{setting.flag}={bad}"]
    ways: dict[str, tuple[list[str], dict[str, str | None]]] = {
        "file": (["app:app", "--config", str(file)] if setting.field != "app" else ["--config", str(file)], {}),
        "flag": (flag if setting.field == "app" else ["app:app", *flag], {}),
        "environment": ([] if setting.field == "app" else ["app:app"], {setting.env: bad}),
    }
    if setting.is_bool:
        del ways["flag"]  # it takes no value: click's own usage line, also with exit code 2
    for way, (arguments, environment) in ways.items():
        done = CliRunner().invoke(coatcheck, ["serve", *arguments], env=environment)
        assert done.exit_code == 2, (way, done.stderr)
        assert done.stdout == "", way
        assert done.stderr.count("\n") == 1, (way, done.stderr)
        assert done.stderr.startswith("coatcheck: "), (way, done.stderr)
        assert setting.key in done.stderr or setting.flag in done.stderr or setting.env in done.stderr


def test_an_unknown_name_is_refused_on_every_way_in_with_the_nearest(tmp_path: Path) -> None:
    for setting in SETTINGS:
        wrong = setting.key + "x"
        file = tmp_path / "farm.toml"
        file.write_text(f"[{setting.table}]\n{wrong} = 1\n")
        with pytest.raises(ConfigError, match=rf"\[{setting.table}\] has no setting '{wrong}'; did you mean '\w+'\?"):
            load_settings(file)
        with pytest.raises(ConfigError, match=rf"{setting.env}X: no setting has this name; did you mean"):
            load_settings(None, {setting.env + "X": "1"})
        if setting.table == "session":
            with pytest.raises(ConfigError, match=rf"{setting.field}x: connect has no setting .* did you mean '\w+'\?"):
                connect(*SERVERS, key=KEY, **{setting.field + "x": 1})


TEXTS = st.one_of(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=40),
    st.sampled_from([each for some in BAD.values() for each in some]),
    st.from_regex(r"\A-?[0-9]{1,20}(\.[0-9]{1,3})?(ms|s|m|h|d)?\Z"),
    st.sampled_from(
        ["close", "refuse", "all", "one", "async", "none", "strict", "true", "no", "0", "1", "2", "__Host-a"]
    ),
)
VALUES = st.one_of(
    TEXTS,
    st.booleans(),
    st.integers(-(10**30), 10**30),
    st.integers(-5, 100),
    st.floats(),
    st.lists(TEXTS, max_size=3),
    st.just({"a": 1}),
    st.dates().map(lambda day: day if day.year > 999 else date(2000, 1, 1)),
    st.none(),
)  # fmt: skip


def outcome(call: Callable[[], object], pick: Callable[[Any], object]) -> tuple[str, object]:
    """What came of it: the value that holds now, or the line without its beginning. Any other error is a fault."""
    try:
        return ("holds", pick(call()))
    except ConfigError as error:
        return ("refused", ending(str(error)))


@settings(max_examples=400, deadline=None)
@given(st.sampled_from(SETTINGS), TEXTS)
@example(next(each for each in SETTINGS if each.field == "lease_s"), "9" * 300)
def test_fuzz_text_means_the_same_as_flag_variable_and_struct(setting: FarmSetting, text: str) -> None:
    if setting.is_list or setting.field in ("copies", "insecure_localhost"):
        return  # lists are split differently; the other two depend on more than themselves
    found = [
        outcome(by_flag(setting, text), setting.of),
        outcome(by_environment(setting, text), setting.of),
        outcome(in_struct(setting, text), lambda group: getattr(group, setting.field)),
    ]
    assert found[0] == found[1]
    assert found[0] == found[2]


@settings(max_examples=400, deadline=None)
@given(setting=st.sampled_from(SETTINGS), value=VALUES)
def test_fuzz_typed_values_mean_the_same_in_file_and_struct(
    tmp_path_factory: pytest.TempPathFactory, setting: FarmSetting, value: object
) -> None:
    if setting.field in ("copies", "insecure_localhost", "session_server", "session_servers"):
        return
    in_python = outcome(in_struct(setting, value), lambda group: getattr(group, setting.field))
    if value is None or isinstance(value, dict):
        assert in_python[0] == "refused"
        return
    if isinstance(value, int) and abs(value) >= 1 << 63:
        return  # TOML has 64 bits
    file = tmp_path_factory.getbasetemp() / "fuzz.toml"
    assert outcome(by_file(file, setting, value), setting.of) == in_python


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(SETTINGS), VALUES, max_size=6))
def test_fuzz_any_mixture_is_taken_whole_or_refused_with_one_line(chosen: dict[FarmSetting, Any]) -> None:
    try:
        found = load_settings(None, {}, {setting.parameter: value for setting, value in chosen.items()})
    except ConfigError as error:
        ending(str(error))
        return
    rebuilt = msgspec.structs.replace(found)  # judged once more
    assert rebuilt == found
    for setting in SETTINGS:
        if setting not in chosen and setting.field not in ("insecure_localhost", "copies"):
            assert setting.of(found) == setting.default


def test_a_refused_value_is_shown_short() -> None:
    with pytest.raises(ConfigError) as caught:
        connect(*SERVERS, key=KEY, theft="x" * 100_000)  # type: ignore[arg-type]
    assert len(str(caught.value)) < MAX_SHOWN + 100


@settings(max_examples=150, deadline=None)
@given(
    urls=st.lists(st.one_of(TEXTS, st.sampled_from(["memory://", "sqlite:///s.db", *SERVERS]), st.none()), max_size=3),
    key=st.one_of(VALUES, st.just(KEY), st.binary(max_size=40), st.lists(st.one_of(st.just(KEY), VALUES), max_size=3)),
    given_options=st.dictionaries(
        st.sampled_from([*NAMES, "farm", "server", "thef"]).filter(lambda name: name != "key"), VALUES, max_size=3
    ),
)
def test_fuzz_connect_opens_or_refuses_with_one_line(urls: list[Any], key: Any, given_options: dict[str, Any]) -> None:
    try:
        connect(*urls, key=key, **given_options)
    except ConfigError as error:
        line = str(error)
        assert "\n" not in line
        assert len(line) <= MAX_LINE
        assert KEY not in line
