"""Sessions of before continue here: Flask's and Starlette's signed cookies, and Flask-Session's Redis."""

from __future__ import annotations

import json
import logging
import pickle
import uuid
import warnings
from base64 import b64encode
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime, timedelta
from typing import Any

import flask
import flask_login
import flask_session
import pytest
import quart
import redis
from itsdangerous import Signer, TimestampSigner

from coatcheck import connect
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.errors import ConfigError
from coatcheck.web.flask import SessionInterface
from coatcheck.web.moving_in import LEFT_FOR_S, FlaskCookie, FlaskSessionRedis, MovingIn, StarletteCookie
from coatcheck.web.quart import SessionInterface as QuartSessionInterface
from coatcheck.web.wsgi import SessionMiddleware

SECRET = "for-tests-only-for-tests-only-for-tests-001"
APP_SECRET = "the app's own SECRET_KEY"
SOON = date(2999, 1, 1)


@pytest.fixture
def sessions() -> Iterator[ThreadedSessions]:
    made = connect("memory://", key=SECRET, driver="threads")
    yield made
    made.close()


def an_app() -> flask.Flask:
    app = flask.Flask("members")
    app.secret_key = APP_SECRET
    logins = flask_login.LoginManager(app)

    class User(flask_login.UserMixin):
        def __init__(self, name: str) -> None:
            self.id = name

    logins.user_loader(User)

    @app.post("/login/<name>")
    def login(name: str) -> str:
        flask.session["cart"] = ["tea"]
        flask_login.login_user(User(name))
        return ""

    @app.post("/logout")
    def logout() -> str:
        flask_login.logout_user()
        flask.session.clear()
        return ""

    @app.post("/store/<name>")
    def store(name: str) -> str:
        flask.session["value"] = {"tuple": (1, 2), "uuid": uuid.UUID(int=1), "huge": 2**70}[name]
        return ""

    @app.get("/")
    def index() -> dict[str, Any]:
        return {
            "user": flask_login.current_user.get_id(),
            "cart": flask.session.get("cart"),
            "value": repr(flask.session.get("value")),
            "named": getattr(flask.session, "user", None),
        }

    @app.get("/nothing")
    def nothing() -> str:
        return ""

    return app


def moved(sessions: ThreadedSessions, *former: Any, until: date = SOON) -> flask.Flask:
    app = an_app()
    app.session_interface = SessionInterface(sessions, former=former, until=until)
    return app


def with_cookies(app: flask.Flask, cookies: Mapping[str, str]) -> Any:
    client = app.test_client()
    for name, value in cookies.items():
        client.set_cookie(name, value)
    return client


def cookie_of(client: Any, name: str = "session") -> str:
    cookie = client.get_cookie(name)
    assert cookie is not None
    return str(cookie.value)


def before(app: flask.Flask | None = None) -> Any:
    client = (app or an_app()).test_client()
    client.post("/login/ada")
    return client


# -- Flask's signed cookie ------------------------------------------------------------------------


def test_who_was_logged_in_stays_so(sessions: ThreadedSessions) -> None:
    app = moved(sessions, FlaskCookie(APP_SECRET))
    client = with_cookies(app, {"session": cookie_of(before())})
    assert client.get("/nothing").status_code == 200
    assert cookie_of(client).startswith("l."), "moved in by the first visit, whatever that looks at"
    assert client.get("/").json == {"user": "ada", "cart": ["tea"], "value": "None", "named": "ada"}
    assert len(sessions.sessions_of("ada")) == 1
    client.post("/logout")
    assert client.get("/").json["user"] is None
    assert client.get_cookie("session") is None


def test_who_logs_in_at_the_first_visit_finds_nothing_of_another(sessions: ThreadedSessions) -> None:
    old = before()
    old.post("/store/tuple")
    client = with_cookies(moved(sessions, FlaskCookie(APP_SECRET)), {"session": cookie_of(old)})
    client.post("/login/bob")
    shown = client.get("/").json
    assert (shown["user"], shown["named"], shown["value"]) == ("bob", "bob", "None")


def test_values_move_in_as_what_they_were(sessions: ThreadedSessions) -> None:
    for name, shown in (("tuple", "(1, 2)"), ("uuid", repr(uuid.UUID(int=1)))):
        old = an_app().test_client()
        old.post(f"/store/{name}")
        client = with_cookies(moved(sessions, FlaskCookie(APP_SECRET)), {"session": cookie_of(old)})
        for _ in range(2):
            assert client.get("/").json["value"] == shown


def test_the_old_cookie_is_cleared(sessions: ThreadedSessions) -> None:
    app = moved(sessions, FlaskCookie(APP_SECRET, cookie="old"))
    client = with_cookies(app, {"old": cookie_of(before())})
    assert client.get("/").json["user"] == "ada"
    assert client.get_cookie("old") is None
    assert client.get("/").json["user"] == "ada"


def test_a_browser_that_shows_a_session_of_ours_moves_in_no_more(sessions: ThreadedSessions) -> None:
    app = moved(sessions, FlaskCookie(APP_SECRET, cookie="old"))
    former = cookie_of(before())
    client = with_cookies(app, {"old": former})
    client.get("/")
    ours = cookie_of(client)
    client.post("/logout")
    late = with_cookies(app, {"old": former, "session": ours})
    assert late.get("/").json["user"] is None, "a logout is not undone by the old cookie"


@pytest.mark.parametrize("until", [date(2001, 1, 1), datetime(2001, 1, 1), datetime(2001, 1, 1, tzinfo=UTC)])
def test_nobody_moves_in_after_the_end(sessions: ThreadedSessions, until: date) -> None:
    app = moved(sessions, FlaskCookie(APP_SECRET), until=until)
    assert with_cookies(app, {"session": cookie_of(before())}).get("/").json["user"] is None


def test_the_end_is_the_beginning_of_the_day() -> None:
    now = [0.0]
    last = datetime(2026, 12, 1, tzinfo=UTC).timestamp()
    moving = MovingIn([FlaskCookie(APP_SECRET)], date(2026, 12, 1), clock=lambda: now[0])
    now[0] = last - 1
    assert not moving.is_over()
    now[0] = last
    assert moving.is_over()
    assert moving.find({"session": cookie_of(before())}) is None


def test_an_old_key_reads_and_another_does_not(sessions: ThreadedSessions) -> None:
    former = cookie_of(before())
    for key, user in (([b"a new one", APP_SECRET], "ada"), ("another", None)):
        app = moved(sessions, FlaskCookie(key))  # type: ignore[arg-type]
        assert with_cookies(app, {"session": former}).get("/").json["user"] == user


def test_a_cookie_that_was_too_old_for_flask_is_too_old_here(sessions: ThreadedSessions) -> None:
    app = moved(sessions, FlaskCookie(APP_SECRET, max_age=timedelta(seconds=-1)))
    assert with_cookies(app, {"session": cookie_of(before())}).get("/").json["user"] is None


def test_what_cannot_be_stored_is_logged_and_begins_a_fresh_session(
    sessions: ThreadedSessions, caplog: pytest.LogCaptureFixture
) -> None:
    old = an_app().test_client()
    old.post("/store/huge")
    client = with_cookies(moved(sessions, FlaskCookie(APP_SECRET)), {"session": cookie_of(old)})
    assert client.get("/").json["value"] == "None"
    assert "moving in: the session cannot be stored" in caplog.text
    client.post("/login/bob")
    assert client.get("/").json["user"] == "bob"


def test_under_the_middleware_outside(sessions: ThreadedSessions) -> None:
    app = an_app()
    app.session_interface = SessionInterface(former=[FlaskCookie(APP_SECRET)], until=SOON)
    app.wsgi_app = SessionMiddleware(app.wsgi_app, sessions)  # type: ignore[method-assign, assignment]
    client = with_cookies(app, {"session": cookie_of(before())})
    for _ in range(2):
        assert client.get("/").json == {"user": "ada", "cart": ["tea"], "value": "None", "named": "ada"}


def test_quart() -> None:
    import asyncio

    async def story() -> None:
        sessions = connect("memory://", key=SECRET)
        app = quart.Quart("members")
        app.session_interface = QuartSessionInterface(sessions, former=[FlaskCookie(APP_SECRET)], until=SOON)

        @app.get("/")
        async def index() -> dict[str, Any]:
            return {"cart": quart.session.get("cart"), "user": quart.session.user}  # type: ignore[attr-defined]

        client = app.test_client()
        client.set_cookie("localhost", "session", cookie_of(before()))
        for _ in range(2):
            assert await (await client.get("/")).get_json() == {"cart": ["tea"], "user": "ada"}
        await sessions.here().aclose()

    asyncio.run(story())


# -- Starlette's ----------------------------------------------------------------------------------


def starlettes(secret: str, data: Any) -> str:
    return TimestampSigner(secret).sign(b64encode(json.dumps(data).encode())).decode()


def test_starlettes_signed_cookie(sessions: ThreadedSessions, caplog: pytest.LogCaptureFixture) -> None:
    app = moved(sessions, StarletteCookie("starlette's key"))
    client = with_cookies(app, {"session": starlettes("starlette's key", {"cart": ["milk"]})})
    assert client.get("/").json["cart"] == ["milk"]
    for cookie in (starlettes("another", {"cart": ["milk"]}), "nonsense", starlettes("starlette's key", {})):
        assert with_cookies(app, {"session": cookie}).get("/").json["cart"] is None
    assert caplog.text == ""
    broken = TimestampSigner("starlette's key").sign(b"no JSON").decode()
    assert with_cookies(app, {"session": broken}).get("/").json["cart"] is None
    assert "what the cookie holds is not Starlette's" in caplog.text
    caplog.clear()
    assert with_cookies(app, {"session": starlettes("starlette's key", [1])}).get("/").json["cart"] is None
    assert "StarletteCookie: what stands there is no mapping" in caplog.text


# -- Flask-Session's Redis ------------------------------------------------------------------------


def with_flask_session(client: redis.Redis, **settings: Any) -> flask.Flask:
    app = an_app()
    app.config.update(SESSION_TYPE="redis", SESSION_REDIS=client, **settings)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        flask_session.Session(app)
    return app


@pytest.mark.parametrize(
    ("settings", "secret_key"),
    [({}, None), ({"SESSION_SERIALIZATION_FORMAT": "json"}, None), ({"SESSION_USE_SIGNER": True}, APP_SECRET)],
)
def test_flask_sessions_redis(
    sessions: ThreadedSessions, redis_server: redis.Redis, settings: dict[str, Any], secret_key: str | None
) -> None:
    old = before(with_flask_session(redis_server, **settings))
    shown = cookie_of(old)
    key = "session:" + (shown.rpartition(".")[0] if secret_key else shown)
    assert redis_server.ttl(key) > LEFT_FOR_S
    app = moved(sessions, FlaskSessionRedis(redis_server, secret_key=secret_key))
    client = with_cookies(app, {"session": shown})
    for _ in range(2):
        assert client.get("/").json == {"user": "ada", "cart": ["tea"], "value": "None", "named": "ada"}
    assert cookie_of(client).startswith("l.")
    assert 0 < redis_server.ttl(key) <= LEFT_FOR_S, "it ends there, though not for who runs beside"
    beside = with_cookies(app, {"session": shown})
    assert beside.get("/").json["user"] == "ada"
    forged = Signer("another", salt="flask-session", key_derivation="hmac").sign(shown).decode()
    assert with_cookies(app, {"session": forged}).get("/").json["user"] is None


def test_a_pickle_is_refused(
    sessions: ThreadedSessions, redis_server: redis.Redis, caplog: pytest.LogCaptureFixture
) -> None:
    redis_server.set("session:one", pickle.dumps({"cart": ["tea"]}))
    redis_server.set("session:two", b"\xc1 nonsense")
    app = moved(sessions, FlaskSessionRedis(redis_server))
    assert with_cookies(app, {"session": "one"}).get("/").json["cart"] is None
    assert "a session is stored as a pickle, which is not read here" in caplog.text
    assert with_cookies(app, {"session": "two"}).get("/").json["cart"] is None
    assert "neither as MessagePack nor as JSON" in caplog.text
    assert redis_server.exists("session:one") == 1


def test_while_a_store_of_before_is_away_the_visit_is_refused(
    sessions: ThreadedSessions, caplog: pytest.LogCaptureFixture
) -> None:
    away = redis.Redis(port=1, socket_timeout=1)
    client = with_cookies(moved(sessions, FlaskSessionRedis(away)), {"session": "x"})
    assert client.get("/").status_code == 503, "a moment's outage logs nobody out"
    assert cookie_of(client) == "x"
    assert "moving in: FlaskSessionRedis does not answer: " in caplog.text


def test_a_store_of_before_that_cannot_be_left_is_logged(
    sessions: ThreadedSessions, caplog: pytest.LogCaptureFixture
) -> None:
    class Stubborn:
        cookie = "session"

        def read(self, cookies: Mapping[str, str]) -> Mapping[str, Any]:
            return {"cart": ["tea"]}

        def leave(self, cookies: Mapping[str, str]) -> None:
            raise ConnectionError

    caplog.set_level(logging.WARNING)
    client = with_cookies(moved(sessions, Stubborn()), {"session": "x"})
    assert client.get("/").json["cart"] == ["tea"]
    assert "moving in: Stubborn: cannot be left" in caplog.text


def test_a_session_of_before_is_left_only_when_it_is_stored_here() -> None:
    left: list[str] = []

    class Watched:
        cookie = "old"

        def read(self, cookies: Mapping[str, str]) -> Mapping[str, Any]:
            return {"cart": ["tea"]}

        def leave(self, cookies: Mapping[str, str]) -> None:
            left.append(cookies["old"])

    away = connect("redis://127.0.0.1:1", key=SECRET, driver="threads", store_timeout_s=0.2)
    here = connect("memory://", key=SECRET, driver="threads")
    try:
        client = with_cookies(moved(away, Watched()), {"old": "x"})
        assert client.get("/").status_code == 503
        assert left == []
        assert client.get_cookie("old") is not None
        with_cookies(moved(here, Watched()), {"old": "y"}).get("/")
        assert left == ["y"]
    finally:
        away.close()
        here.close()


@pytest.mark.parametrize(
    ("former", "until", "line"),
    [
        ([FlaskCookie(APP_SECRET)], None, "former: say until when"),
        ([FlaskCookie(APP_SECRET)], "2027-01-01", "until: a date or a datetime, not str"),
        (["session"], SOON, "former: readers, such as FlaskCookie"),
    ],
)
def test_an_argument_of_the_wrong_kind(sessions: ThreadedSessions, former: Any, until: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        SessionInterface(sessions, former=former, until=until)
