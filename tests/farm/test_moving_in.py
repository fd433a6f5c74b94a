"""``[session.moving_in]``: who was logged in by the framework's own sessions stays so under ``coatcheck serve``."""

from __future__ import annotations

import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import flask_session
import httpx
import pytest
import redis
import starsessions
from redis.asyncio import Redis as AsyncRedis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware as StarlettesMiddleware
from starlette.testclient import TestClient
from starsessions.stores.redis import RedisStore

from coatcheck.errors import ConfigError
from coatcheck.farm.processes.moving_in import moving_in_of
from coatcheck.farm.settings.configuration import load_settings
from coatcheck.farm.settings.moving_in import MovingInSettings
from coatcheck.web.moving_in import LEFT_FOR_S
from web import conftest

from . import moving_apps
from .farm_process import SOURCE, Command, Farm, environment, eventually
from .moving_apps import APP_SECRET

TESTS = Path(__file__).parents[1]
OPERATIONS = Path(__file__).parents[2] / "docs" / "operations.md"
UNTIL = "until = 2999-01-01\n"
redis_server = conftest.redis_server


def of_starlette(middleware: Any, **named: Any) -> str:
    app: Starlette = moving_apps.starlette_app()
    app.user_middleware.insert(0, Middleware(middleware, **named))
    with TestClient(app, "https://testserver") as client:
        client.get("/enter")
        return str(client.cookies["session"])


def of_flask(monkeypatch: pytest.MonkeyPatch, client: redis.Redis | None = None) -> str:
    monkeypatch.setattr(moving_apps, "OWN", True)
    app = moving_apps.flask_app()
    if client is not None:
        app.config.update(SESSION_TYPE="redis", SESSION_REDIS=client)
        flask_session.Session(app)
    browser = app.test_client()
    browser.get("/enter")
    return str(browser.get_cookie("session").value)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Farm]]:
    farms: list[Farm] = []

    def started(app: str, table: str, **env: str) -> Farm:
        (tmp_path / "farm.toml").write_text(f"[session.moving_in]\n{table}")
        arguments = (f"farm.moving_apps:{app}", "--factory", "--config", "farm.toml", "--web", "2", "--port", "0")
        farm = Farm(tmp_path, arguments, {"PYTHONPATH": f"{SOURCE}:{TESTS}", "FOLDER": str(tmp_path), **env})
        farms.append(farm)
        farm.wait_running()
        return farm

    yield started
    for each in farms:
        each.end()


def comes_along(
    farm: Farm, old: str, is_left: Callable[[], bool], cookie: str = "session", named: str = "ada", **more: Any
) -> None:
    """A browser with the old cookie alone: it is logged in at once, and so after the death of that web server.

    ``is_left``: whether the session of before is about to end.
    """
    expected = {"user": "ada", "cart": ["tea"], **more}
    with httpx.Client(base_url=farm.base, cookies={cookie: old}, timeout=60) as browser:
        first = browser.get("/look")
        at = first.json()["at"]
        assert first.json() | {"named": named} == {**expected, "named": named, "at": at}
        cleared = [line for line in first.headers.get_list("set-cookie") if line.startswith(f'{cookie}=""')]
        assert len(cleared) == 1 and "Max-Age=0" in cleared[0], first.headers
        assert "coatcheck-login" in browser.cookies
        browser.cookies.delete(cookie)
        eventually(is_left, "the end of the session of before")
        os.kill(farm.pid(at), signal.SIGKILL)
        second = browser.get("/look").json()
        assert second == {**expected, "named": named, "at": second["at"]} and second["at"] != at
        stolen = dict(browser.cookies)
        browser.get("/leave")
        assert browser.get("/look").json()["user"] is None
    assert httpx.get(f"{farm.base}/look", cookies=stolen, timeout=60).json()["user"] is None


def nothing_is_there() -> bool:
    """Of a session that was a signed cookie."""
    return True


# -- one farm for each store ---------------------------------------------------------------------------


def test_from_starlettes_middleware(start: Callable[..., Farm], tmp_path: Path) -> None:
    old = of_starlette(StarlettesMiddleware, secret_key=APP_SECRET)
    secret = tmp_path / "secret"
    secret.write_text(f"{APP_SECRET}\n")
    secret.chmod(0o600)
    farm = start("starlette_app", f'from = "starlette"\n{UNTIL}secret_file = "secret"\nuser = "user"\n')
    comes_along(farm, old, nothing_is_there)
    forged = of_starlette(StarlettesMiddleware, secret_key="another")
    assert httpx.get(f"{farm.base}/look", cookies={"session": forged}, timeout=60).json()["user"] is None


def test_from_flasks_cookie(start: Callable[..., Farm], monkeypatch: pytest.MonkeyPatch) -> None:
    old = of_flask(monkeypatch)
    farm = start("flask_app", f'from = "flask"\n{UNTIL}secret_env = "FLASK_SECRET"\n', FLASK_SECRET=APP_SECRET)
    comes_along(farm, old, nothing_is_there, bold="Markup")


def test_from_flask_session(
    start: Callable[..., Farm], monkeypatch: pytest.MonkeyPatch, redis_server: redis.Redis
) -> None:
    old = of_flask(monkeypatch, redis_server)
    farm = start("flask_app", f'from = "flask-session"\n{UNTIL}redis_env = "REDIS"\n', REDIS=url_of(redis_server))
    comes_along(farm, old, lambda: 0 < redis_server.ttl(f"session:{old}") <= LEFT_FOR_S, bold="NoneType")


def test_from_starsessions(start: Callable[..., Farm], redis_server: redis.Redis) -> None:
    asynchronous: Any = AsyncRedis.from_url(url_of(redis_server))
    app: Starlette = moving_apps.starlette_app()
    app.user_middleware[:] = [
        Middleware(starsessions.SessionMiddleware, store=RedisStore(connection=asynchronous), lifetime=3600),
        Middleware(starsessions.SessionAutoloadMiddleware),
    ]
    with TestClient(app, "https://testserver") as client:
        client.get("/enter")
        old = str(client.cookies["session"])
    farm = start("starlette_app", f'from = "starsessions"\n{UNTIL}redis = "{url_of(redis_server)}"\nuser = "user"\n')
    comes_along(farm, old, lambda: 0 < redis_server.ttl(f"starsessions.{old}") <= LEFT_FOR_S)


def url_of(client: redis.Redis) -> str:
    return f"redis://127.0.0.1:{client.connection_pool.connection_kwargs['port']}"


def in_django(folder: Path, engine: str) -> str:
    """A project that has its own sessions, and the cookie of who has logged in there."""
    code = "from farm.moving_apps import *; django_app(); print(old_cookie_of_django())"
    env = environment(PYTHONPATH=f"{SOURCE}:{TESTS}", FOLDER=str(folder), OWN=engine)
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_from_djangos_database(start: Callable[..., Farm], tmp_path: Path) -> None:
    old = in_django(tmp_path, "db")
    farm = start("django_app", f'from = "django"\n{UNTIL}engine = "django.contrib.sessions.backends.db"\n')

    def is_left() -> bool:
        with sqlite3.connect(tmp_path / "shop.db") as database:
            rows = database.execute("select expire_date from django_session where session_key = ?", [old]).fetchall()
        ends = datetime.fromisoformat(rows[0][0]).replace(tzinfo=UTC)
        return ends - datetime.now(UTC) <= timedelta(seconds=LEFT_FOR_S)

    comes_along(farm, old, is_left, "sessionid", named="1")


# -- what is wrong is said in one line -------------------------------------------------------------------

STARLETTE = f'from = "starlette"\n{UNTIL}'
STARSESSIONS = f'from = "starsessions"\n{UNTIL}'


@pytest.mark.parametrize(
    ("table", "line"),
    [
        (f"from = 'flusk'\n{UNTIL}", "from: choose one of starlette, flask, flask-session, starsessions, django"),
        ("from = 'flask'", "until: say until when, by a day such as 2027-01-31"),
        ("from = 'flask'\nuntil = 2027-01-31T10:00:00", "until: say until when"),
        (f"{STARLETTE}secret = 'x'", "secret: there is no such setting; did you mean 'secret_env'?"),
        (f"{STARLETTE}secret_file = 'a'\nsecret_env = 'B'", "secret_file: secret_env says where it is, too; drop one"),
        (f"{STARLETTE}secret_file = 3", "secret_file: expected str, got int"),
        (f"{STARLETTE}secret_env = 'a b'", "secret_env: the name of an environment variable (got 'a b')"),
        (f"{STARLETTE}secret_env = 'COATCHECK_X'", "secret_env: web servers are given no variable that begins with"),
        (STARLETTE, "secret_file: sessions from starlette are read by it; give secret_file or secret_env"),
        (f"{STARLETTE}redis = 'redis://a'", "redis: sessions from starlette have no such setting; drop it"),
        (f"{STARLETTE}secret_env = 'A'\nmax_age = 'soon'", "max_age: write a duration"),
        (f"{STARLETTE}secret_env = 'A'\nmax_age = 0", "max_age: with 0 no session of before would be taken"),
        (f"{STARSESSIONS}redis = 'http://a'", "redis: the URL begins with one of redis://"),
        (f"{STARSESSIONS}redis = 'redis://:hush@a'", "redis: it holds a password; put the URL into a variable"),
        (f"from = 'django'\n{UNTIL}", "engine: sessions from django are read by it; give engine"),
    ],
)
def test_a_mistake_in_the_file(tmp_path: Path, table: str, line: str) -> None:
    file = tmp_path / "farm.toml"
    file.write_text(f"[session.moving_in]\n{table}\n")
    with pytest.raises(ConfigError) as caught:
        load_settings(file)
    assert str(caught.value).startswith(f"{file}: [session.moving_in] {line}")
    assert "\n" not in str(caught.value) and "hush" not in str(caught.value)


def test_the_operations_guide_shows_a_table_that_can_be_read(tmp_path: Path) -> None:
    shown = re.findall(r"```toml\n(\[session\.moving_in\].*?)```", OPERATIONS.read_text(), re.S)
    assert len(shown) == 1
    file = tmp_path / "farm.toml"
    file.write_text(shown[0])
    secret = "starlette-secret"
    expected = MovingInSettings(store="starlette", until=date(2027, 1, 31), secret_file=secret, user="user")
    assert load_settings(file).moving_in == expected


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"secret_file": "nowhere"}, "secret_file: cannot read nowhere: No such file"),
        ({"secret_file": "open"}, "secret_file: others can read open; run chmod 600 on it"),
        ({"secret_file": "empty"}, "secret_file: empty holds no line"),
        ({"secret_file": "two"}, "secret_file: it holds one line, the secret_key"),
        ({"secret_env": "NOWHERE"}, "secret_env: the environment has no NOWHERE; set it where the farm is started"),
        ({"store": "starsessions", "redis_env": "HUSH"}, "redis_env: HUSH: no URL of a Redis"),
    ],
)
def test_a_secret_that_is_not_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], line: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HUSH", "hush")
    for name, text, mode in (("open", "a\n", 0o644), ("empty", "# none\n", 0o600), ("two", "a\nb\n", 0o600)):
        Path(name).write_text(text)
        Path(name).chmod(mode)
    named: Any = {"store": "starlette", "until": date(2999, 1, 1), **given}
    with pytest.raises(ConfigError) as caught:
        moving_in_of(MovingInSettings(**named))
    assert str(caught.value).startswith(f"moving_in: {line}")
    assert "hush" not in str(caught.value)


def test_until_is_the_beginning_of_that_day_in_utc(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET", APP_SECRET)
    for until, over in ((date(2001, 1, 1), True), (date(2999, 1, 1), False)):
        found = moving_in_of(MovingInSettings(store="flask", until=until, secret_env="SECRET"))
        assert found is not None
        assert found.is_over() is over


@pytest.mark.parametrize(
    ("app", "table", "line"),
    [
        ("django_app", f'from = "django"\n{UNTIL}engine = "x"', "moving_in: engine: 'x' is no session engine"),
        ("starlette_app", f'{STARLETTE}secret_env = "LANG"\ncookie = "coatcheck"', "called coatcheck, as ours"),
    ],
)
def test_a_mistake_is_said_at_the_start(tmp_path: Path, app: str, table: str, line: str) -> None:
    (tmp_path / "farm.toml").write_text(f"[session.moving_in]\n{table}\n")
    arguments = (f"farm.moving_apps:{app}", "--factory", "--config", "farm.toml", "--port", "0", "--web", "1")
    env = {"PYTHONPATH": f"{SOURCE}:{TESTS}", "FOLDER": str(tmp_path), "LANG": "C.UTF-8"}
    done = Command(tmp_path).run("serve", *arguments, **env)
    assert done.returncode == 2
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("coatcheck: ") and line in last, done.stderr
