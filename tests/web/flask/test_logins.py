"""Flask-Login, unmodified: logins, remembered ones, fresh ones, logouts and its session protection."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import flask
import flask_login
import pytest

from coatcheck import connect
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.web.flask import SessionInterface

SECRET = "for-tests-only-for-tests-only-for-tests-001"


REDIRECTED = (302, 303)


@pytest.fixture
def sessions() -> Iterator[ThreadedSessions]:
    made = connect("memory://", key=SECRET, driver="threads", rotate_after_s=0.05, grace_s=10)
    yield made
    made.close()


@pytest.fixture
def app(sessions: ThreadedSessions) -> flask.Flask:
    app = flask.Flask("members")
    app.testing = True
    app.secret_key = "for Flask-Login's own cookie, which remembers"
    app.session_interface = SessionInterface(sessions)
    logins = flask_login.LoginManager(app)
    logins.session_protection = "strong"
    logins.login_view = "please_log_in"

    class User(flask_login.UserMixin):
        def __init__(self, name: str) -> None:
            self.id = name

    logins.user_loader(User)

    @app.post("/login/<name>")
    def login(name: str) -> str:
        flask.flash(f"welcome {name}")
        flask_login.login_user(User(name), remember="remember" in flask.request.args)
        return ""

    @app.post("/logout")
    def logout() -> str:
        flask_login.logout_user()
        flask.flash("good bye")
        return ""

    @app.post("/confirm")
    def confirm() -> str:
        flask_login.confirm_login()
        return ""

    @app.post("/cart/<item>")
    def cart(item: str) -> str:
        flask.session.setdefault("cart", []).append(item)
        return ""

    @app.get("/")
    def index() -> dict[str, Any]:
        name = flask_login.current_user.get_id()
        return {
            "user": name,
            "named": flask.session.user,  # type: ignore[attr-defined]
            "cart": flask.session.get("cart"),
            "messages": flask.get_flashed_messages(),
        }

    @app.get("/members")
    @flask_login.login_required
    def members() -> str:
        return "for members"

    @app.get("/secret")
    @flask_login.fresh_login_required
    def secret() -> str:
        return "for who has just logged in"

    @app.get("/please-log-in")
    def please_log_in() -> str:
        return "please log in"

    return app


def who(client: Any) -> Any:
    return client.get("/").json["user"]


def cookie_of(client: Any, name: str) -> str:
    cookie = client.get_cookie(name)
    assert cookie is not None
    return str(cookie.value)


def token(client: Any) -> str:
    return cookie_of(client, "session")


def with_token(app: flask.Flask, value: str) -> Any:
    client = app.test_client()
    client.set_cookie("session", value)
    return client


def test_from_login_to_logout(app: flask.Flask) -> None:
    client = app.test_client()
    assert client.get("/members").status_code in REDIRECTED
    client.post("/cart/tea")
    client.post("/login/ada")
    messages = ["Please log in to access this page.", "welcome ada"]
    assert client.get("/").json == {"user": "ada", "named": "ada", "cart": ["tea"], "messages": messages}
    assert client.get("/members").text == "for members"
    assert client.get("/secret").status_code == 200, "the login is fresh"
    client.post("/logout")
    assert client.get("/").json == {"user": None, "named": None, "cart": ["tea"], "messages": ["good bye"]}
    assert client.get("/members").status_code in REDIRECTED


def test_a_session_planted_before_the_login_is_worth_nothing(app: flask.Flask) -> None:
    victim = app.test_client()
    victim.post("/cart/tea")
    planted = token(victim)
    victim.post("/login/ada")
    assert token(victim) != planted
    thief = with_token(app, planted)
    assert thief.get("/").json == {"user": None, "named": None, "cart": None, "messages": []}


def test_a_logout_is_final(app: flask.Flask, sessions: ThreadedSessions) -> None:
    client = app.test_client()
    client.post("/login/ada")
    stolen = token(client)
    assert len(sessions.sessions_of("ada")) == 1
    client.post("/logout")
    assert sessions.sessions_of("ada") == []
    assert with_token(app, stolen).get("/").json["messages"] == [], "nothing of it is there"
    assert who(client) is None


def test_another_user_finds_nothing_of_the_former_one(app: flask.Flask) -> None:
    client = app.test_client()
    client.post("/login/ada")
    client.post("/cart/tea")
    assert client.get("/").json["messages"] == ["welcome ada"]
    client.post("/login/bob")
    assert client.get("/").json == {"user": "bob", "named": "bob", "cart": None, "messages": ["welcome bob"]}
    assert client.get("/secret").status_code == 200, "fresh, and protected, as any login"


def test_a_login_with_a_name_that_is_not_kept(app: flask.Flask) -> None:
    client = app.test_client()
    client.post("/cart/tea")
    long = "x" * 2000
    client.post(f"/login/{long}")
    seen = client.get("/").json
    assert (seen["user"], seen["named"], seen["cart"]) == (long, None, None)


def test_who_is_remembered_comes_back_and_is_not_fresh(app: flask.Flask) -> None:
    app.config["SESSION_PROTECTION"] = "basic"  # "strong" refuses remembered logins, with Flask's own sessions too
    client = app.test_client()
    client.post("/login/ada?remember=1")
    assert client.get_cookie("remember_token") is not None
    client.delete_cookie("session")
    assert client.get("/").json["named"] == "ada"
    assert client.get("/members").status_code == 200
    assert client.get("/secret").status_code in (302, 303, 401)
    before = token(client)
    client.post("/confirm")
    assert client.get("/secret").status_code == 200
    assert who(with_token(app, before)) is None, "more rights, another session"
    client.post("/logout")
    assert client.get_cookie("remember_token") is None
    assert who(client) is None


def test_a_planted_session_is_not_taken_along_by_who_is_remembered(app: flask.Flask) -> None:
    app.config["SESSION_PROTECTION"] = "basic"
    victim = app.test_client()
    victim.post("/login/ada?remember=1")
    thief = app.test_client()
    thief.post("/cart/trap")
    victim.delete_cookie("session")
    victim.set_cookie("session", token(thief))
    assert who(victim) == "ada"
    assert who(thief) is None


def test_two_tabs_of_who_is_remembered_are_both_served(app: flask.Flask) -> None:
    """Both begin with the anonymous session of before, and log in at once."""
    app.config["SESSION_PROTECTION"] = "basic"
    together = Barrier(2)

    @app.get("/tab")
    def tab() -> str:
        name = str(flask_login.current_user.get_id())
        together.wait(30)
        return name

    browser = app.test_client()
    browser.post("/login/ada?remember=1")
    browser.delete_cookie("session")
    anonymous = app.test_client()
    anonymous.post("/cart/tea")
    remembered = cookie_of(browser, "remember_token")
    tabs = [with_token(app, token(anonymous)) for _ in range(2)]
    for one in tabs:
        one.set_cookie("remember_token", remembered)
    with ThreadPoolExecutor(2) as pool:
        answers = list(pool.map(lambda one: one.get("/tab"), tabs))
    assert [(answer.status_code, answer.text) for answer in answers] == [(200, "ada")] * 2
    for one in tabs:
        assert one.get("/").json["named"] == "ada"
        assert one.get("/").json["cart"] == ["tea"]


def test_strong_protection_ends_the_session_of_another_browser(app: flask.Flask) -> None:
    client = app.test_client()
    client.post("/login/ada")
    other = with_token(app, token(client))
    other.environ_base["HTTP_USER_AGENT"] = "another browser"
    assert other.get("/members").status_code in REDIRECTED
    assert who(client) is None, "it is over for both, as with Flask's own"


def test_parallel_requests_log_nobody_out_while_tokens_rotate(app: flask.Flask) -> None:
    """Two tabs of one browser, each with requests of its own, that share the cookies as they come."""
    app.config["SESSION_REFRESH_EACH_REQUEST"] = True
    browser = app.test_client()
    browser.post("/login/ada")
    jar = {"session": token(browser)}
    with browser.session_transaction() as session:
        session.permanent = True
    jar["session"] = token(browser)
    seen: set[Any] = set()
    statuses: set[int] = set()
    tokens: set[str] = set()

    def tab(number: int) -> None:
        for turn in range(25):
            client = with_token(app, jar["session"])
            answer = client.post(f"/cart/{number}-{turn}") if turn % 5 == 0 else client.get("/")
            statuses.add(answer.status_code)
            if turn % 5:
                seen.add(answer.json["user"])
            jar["session"] = token(client)
            tokens.add(jar["session"])

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(tab, range(4)))
    assert (seen, statuses) == ({"ada"}, {200})
    assert len(tokens) > 3, "tokens did rotate"
    assert len(with_token(app, jar["session"]).get("/").json["cart"]) > 0
