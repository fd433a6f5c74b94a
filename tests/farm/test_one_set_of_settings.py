"""One set of settings: a wrong value gets the same line whichever way it comes in (file, flag, environment, Python)."""

from __future__ import annotations

import typing

import msgspec
import pytest

from coatcheck import ConfigError, connect
from coatcheck.director.options import DirectorOptions, WebServer
from coatcheck.director.rules.settings import DirectorSettings
from coatcheck.duration import Duration
from coatcheck.farm.settings.configuration import GROUPS, SETTINGS, load_settings
from coatcheck.options import settings_of
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.sessions.policy import Merge, SessionPolicy
from coatcheck.sessions.settings import SessionArguments, SessionSettings

KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"theft": "clos"}, "theft: choose one of close, refuse, report (got 'clos')"),
        ({"durability": "al"}, "durability: choose one of async, one, all (got 'al')"),
        ({"lease_s": -1}, "lease_s: a duration is finite and not negative (got '-1')"),
        ({"copies": 7}, "copies: 7 copies need as many session servers, not 2; set copies to 2 or less, or "),
        ({"grace_s": 0}, 'grace: 0 needs theft = "refuse", or honest parallel requests are taken for theft'),
        ({"thef": "close"}, "thef: connect has no setting of this name; did you mean 'theft'?"),
        ({"cookie_name": "shop"}, "cookie_name: connect has no setting of this name"),
        ({"idle_timeout_s": "2d"}, "idle_timeout: longer than absolute_timeout"),
    ],
)  # fmt: skip
def test_connect_refuses_what_the_farm_refuses(options: dict[str, object], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        connect("redis://127.0.0.1:1", "redis://127.0.0.1:2", key=KEY, **options)  # type: ignore[arg-type]
    assert str(refused.value).startswith(line)
    assert "\n" not in str(refused.value)


def test_the_names_that_a_type_checker_sees_are_the_settings() -> None:
    arguments = typing.get_type_hints(SessionArguments)
    assert list(arguments) == [setting.field for setting in settings_of(SessionSettings)]
    for setting in settings_of(SessionSettings):
        kind = setting.kind | Merge if setting.field == "conflict" else setting.kind
        assert arguments[setting.field] == (Duration if setting.option.duration else kind), setting.field


def test_every_default_is_equal_everywhere() -> None:
    # The rules know no short life of their own: it is an operator's guard against floods.
    assert SessionSettings(new_session_life_s=0).policy() == SessionPolicy()
    assert SessionSettings().replication() == ReplicationPolicy()
    settings = load_settings()
    for setting in SETTINGS:
        if setting.field != "insecure_localhost":
            assert setting.of(settings) == setting.default == getattr(GROUPS[setting.table](), setting.field)
    sessions = connect("redis://127.0.0.1:1", "redis://127.0.0.1:2", key=KEY)
    assert sessions.lifecycle.policy == settings.session.policy()
    assert sessions.copies.placement.wanted == settings.session.copies
    policy = sessions.lifecycle.policy
    of_the_farm = msgspec.structs.replace(
        settings.session.replication(), tombstone_ms=policy.tombstone_ms, linger_ms=policy.linger_ms
    )
    assert sessions.copies.policy == of_the_farm


@pytest.mark.parametrize("servers", [1, 2, 5])
def test_copies_not_said_are_two_or_as_many_as_there_are(servers: int) -> None:
    farm = load_settings(None, {}, {"session_servers": str(servers)})
    library = connect(*(f"redis://127.0.0.1:{at}" for at in range(1, servers + 1)), key=KEY)
    assert farm.session.copies == library.copies.placement.wanted == min(2, servers)


def test_the_director_goes_by_the_very_settings_of_the_farm() -> None:
    """Each is stated once: the director's options take the settings over, and state none of them again."""
    names = {field.name for field in msgspec.structs.fields(DirectorSettings)}
    assert issubclass(DirectorOptions, DirectorSettings) and len(names) > 20
    for kind in DirectorOptions.__mro__:
        if kind is not DirectorSettings:
            assert not names & set(vars(kind).get("__annotations__", ())), kind
    settings = DirectorSettings(first_byte_timeout_s=7.0, resend_after_s=3.0, max_websockets=9)
    server = WebServer("web-1", "127.0.0.1", 1, "tag")
    options = DirectorOptions(servers=(server,), **msgspec.structs.asdict(settings))
    assert {name: getattr(options, name) for name in names} == msgspec.structs.asdict(settings)
