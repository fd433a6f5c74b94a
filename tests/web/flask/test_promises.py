"""What Flask's documentation promises about sessions, line by line, through the real Flask."""

from __future__ import annotations

import re
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from email.utils import parsedate_to_datetime
from typing import Any

import flask
import pytest
from flask.json.tag import JSONTag
from flask.sessions import SessionInterface as FlasksOwn
from markupsafe import Markup

import coatcheck.web.flask_session
from coatcheck import connect
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.errors import ConfigError, SessionDataError
from coatcheck.web.flask import SessionInterface
from coatcheck.web.wsgi import SessionMiddleware

SECRET = "for-tests-only-for-tests-only-for-tests-001"


@pytest.fixture
def sessions() -> Iterator[ThreadedSessions]:
    made = connect("memory://", key=SECRET, driver="threads")
    yield made
    made.close()


@pytest.fixture
def outside(sessions: ThreadedSessions) -> flask.Flask:
    """An app under coatcheck's own middleware."""
    app = app_of(sessions)
    app.session_interface = SessionInterface()
    app.wsgi_app = SessionMiddleware(app.wsgi_app, sessions)  # type: ignore[method-assign, assignment]
    return app


@pytest.fixture
def app(sessions: ThreadedSessions) -> flask.Flask:
    return app_of(sessions)


def app_of(sessions: ThreadedSessions) -> flask.Flask:
    app = flask.Flask("shop")
    app.testing = True
    app.session_interface = SessionInterface(sessions)

    @app.get("/set/<value>")
    def set_value(value: str) -> str:
        flask.session["value"] = value
        return ""

    @app.get("/permanent")
    def permanent() -> str:
        flask.session.permanent = True
        flask.session["value"] = "kept"
        return ""

    @app.get("/get")
    def get() -> str:
        return str(flask.session.get("value"))

    @app.get("/pop")
    def pop() -> str:
        flask.session.pop("value", None)
        return ""

    @app.get("/clear")
    def clear() -> str:
        flask.session.clear()
        return ""

    @app.get("/append")
    def append() -> str:
        flask.session.setdefault("list", []).append(1)
        return str(flask.session["list"])

    @app.get("/append-below")
    def append_below() -> str:
        flask.session["list"].append(2)
        return ""

    @app.get("/login/<user>")
    def login(user: str) -> str:
        flask.session.regenerate(user)  # type: ignore[attr-defined]
        return ""

    @app.get("/nothing")
    def nothing() -> str:
        return ""

    return app


def set_cookie(answer: Any) -> str:
    found: list[str] = answer.headers.getlist("Set-Cookie")
    assert len(found) <= 1, found
    return found[0] if found else ""


# -- the cookie's name and attributes -------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "there", "not_there"),
    [
        ({}, r"session=s\.[^;]+; HttpOnly; Path=/$", "Secure|Domain|SameSite|Partitioned|Expires|Max-Age"),
        ({"SESSION_COOKIE_NAME": "shop"}, "^shop=", "session="),
        ({"SESSION_COOKIE_DOMAIN": "shop.test"}, "Domain=shop.test", "^$"),
        ({"SESSION_COOKIE_PATH": "/a"}, "Path=/a(;|$)", "^$"),
        ({"APPLICATION_ROOT": "/b"}, "Path=/b(;|$)", "^$"),
        ({"APPLICATION_ROOT": "/b", "SESSION_COOKIE_PATH": "/a"}, "Path=/a(;|$)", "/b"),
        ({"SESSION_COOKIE_HTTPONLY": False}, "Path", "HttpOnly"),
        ({"SESSION_COOKIE_SECURE": True}, "Secure", "^$"),
        ({"SESSION_COOKIE_SAMESITE": "Lax"}, "SameSite=Lax", "^$"),
        ({"SESSION_COOKIE_SAMESITE": "Strict"}, "SameSite=Strict", "^$"),
        ({"SERVER_NAME": "shop.test"}, "Path=/", "Domain"),
    ],
)
def test_the_cookie_is_what_the_settings_say(
    app: flask.Flask, settings: dict[str, Any], there: str, not_there: str
) -> None:
    app.config.update(settings)
    cookie = set_cookie(app.test_client().get("/set/1", base_url="http://shop.test"))
    assert re.search(there, cookie)
    assert not re.search(not_there, cookie)


def test_a_partitioned_cookie(app: flask.Flask) -> None:
    app.config.update(SESSION_COOKIE_PARTITIONED=True, SESSION_COOKIE_SECURE=True, SESSION_COOKIE_SAMESITE="None")
    client = app.test_client()
    known = hasattr(FlasksOwn, "get_cookie_partitioned")  # since Flask 3.1
    for path in ("/set/1", "/pop"):
        cookie = set_cookie(client.get(path, base_url="https://shop.test"))
        assert bool(re.search("Secure.*Partitioned", cookie)) == known


def test_the_cookie_is_deleted_with_the_attributes_that_it_was_set_with(app: flask.Flask) -> None:
    app.config.update(SESSION_COOKIE_NAME="shop", SESSION_COOKIE_DOMAIN="shop.test", SESSION_COOKIE_PATH="/a")
    client = app.test_client()
    where = {"base_url": "http://shop.test/a"}
    client.get("/set/1", **where)
    gone = set_cookie(client.get("/pop", **where))
    assert re.match("shop=; .*Expires=Thu, 01 Jan 1970.*Max-Age=0", gone)
    assert re.search("Domain=shop.test.*Path=/a", gone)


def test_an_attribute_that_is_no_such_thing_is_an_error_as_with_flask(app: flask.Flask) -> None:
    app.config["SESSION_COOKIE_SAMESITE"] = "invalid"
    with pytest.raises(ValueError, match="SameSite"):
        app.test_client().get("/set/1")
    app.testing = False
    app.config["PROPAGATE_EXCEPTIONS"] = False
    assert app.test_client().get("/set/1").status_code == 500


def test_an_interface_may_name_the_cookie_by_the_request(sessions: ThreadedSessions) -> None:
    class ByPath(SessionInterface):
        def get_cookie_name(self, app: flask.Flask) -> str:
            return "basket" if flask.request.path.startswith("/append") else "shop"

    app = app_of(sessions)
    app.session_interface = ByPath(sessions)
    client = app.test_client()
    client.get("/append")
    client.get("/set/1")
    assert client.get("/append").text == "[1, 1]"
    assert {client.get_cookie("basket") is None, client.get_cookie("shop") is None} == {False}


def test_there_is_one_cookie_before_and_after_a_login(app: flask.Flask) -> None:
    client = app.test_client()
    client.get("/set/1")
    planted = client.get_cookie("session")
    assert planted is not None
    login = set_cookie(client.get("/login/ada"))
    assert login.startswith("session=l.")
    assert client.get("/get").text == "1"
    thief = app.test_client()
    thief.set_cookie("session", planted.value)
    assert thief.get("/get").text == "None", "the session of before the login is over"


def test_a_cookie_of_somebody_else_is_passed_over(app: flask.Flask) -> None:
    client = app.test_client()
    client.get("/set/1")
    mine = client.get_cookie("session")
    assert mine is not None
    both = f"session=eyJ2YWx1ZSI6IjIifQ.aaaa.bbbb; session={mine.value}"
    asking = app.test_client(use_cookies=False)
    assert asking.get("/get", headers={"Cookie": both}).text == "1"
    assert asking.get("/get", headers={"Cookie": "session=eyJ2YWx1ZSI6IjIifQ.aaaa.bbbb"}).text == "None"


def test_two_apps_of_one_host_keep_out_of_each_others_way(sessions: ThreadedSessions) -> None:
    shop, admin = app_of(sessions), app_of(sessions)
    shop.config["SESSION_COOKIE_NAME"], admin.config["SESSION_COOKIE_NAME"] = "shop", "admin"
    client, other = shop.test_client(), admin.test_client()
    client.get("/set/1")
    cookie = client.get_cookie("shop")
    assert cookie is not None
    other.set_cookie("shop", cookie.value)
    assert other.get("/get").text == "None"
    other.get("/set/2")
    assert client.get("/get").text == "1"


# -- how long -------------------------------------------------------------------------------------


def test_a_permanent_session_is_kept_for_its_lifetime(app: flask.Flask) -> None:
    app.permanent_session_lifetime = timedelta(days=7)
    cookie = set_cookie(app.test_client().get("/permanent"))
    found = re.search("Expires=([^;]+)", cookie)
    assert found is not None
    left = parsedate_to_datetime(found[1]) - datetime.now(UTC)
    assert timedelta(days=6, hours=23, minutes=59) < left < timedelta(days=7, minutes=1)


def test_a_session_that_is_permanent_no_more_goes_with_the_browser(app: flask.Flask) -> None:
    @app.get("/not-permanent")
    def not_permanent() -> str:
        flask.session.permanent = False
        return ""

    client = app.test_client()
    assert "Expires" in set_cookie(client.get("/permanent"))
    assert "Expires" not in set_cookie(client.get("/not-permanent"))
    assert client.get("/get").text == "kept"


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """The clock by which the age of a token is taken is so many seconds ahead."""
    time = coatcheck.web.flask_session.time.time

    def go(seconds: float) -> None:
        monkeypatch.setattr("coatcheck.web.flask_session.time.time", lambda: time() + seconds)

    return go


@pytest.mark.parametrize("permanent", [True, False])
def test_a_cookie_older_than_the_lifetime_is_not_taken(
    app: flask.Flask, later: Callable[[float], None], permanent: bool
) -> None:
    app.permanent_session_lifetime = timedelta(seconds=80)
    client = app.test_client()
    client.get("/permanent" if permanent else "/set/kept")
    cookie = client.get_cookie("session")
    assert cookie is not None
    later(79)
    assert app.test_client(use_cookies=False).get("/get", headers={"Cookie": f"session={cookie.value}"}).text == "kept"
    later(91)
    stale = app.test_client()
    stale.set_cookie("session", cookie.value)
    assert stale.get("/get").text == "None"
    stale.get("/set/new")
    assert stale.get("/get").text == "None", "the clock is ahead of the new one, too"


def test_a_session_in_use_is_kept_for_longer(app: flask.Flask, later: Callable[[float], None]) -> None:
    app.permanent_session_lifetime = timedelta(seconds=80)
    client = app.test_client()
    first = set_cookie(client.get("/permanent"))
    later(70)
    second = set_cookie(client.get("/get"))
    assert first.split(";")[0] != second.split(";")[0], "a token of its own, which is as old as this request"


@pytest.mark.parametrize("permanent", [True, False])
@pytest.mark.parametrize("refresh", [True, False])
def test_who_is_told_with_each_response(app: flask.Flask, permanent: bool, refresh: bool) -> None:
    app.config["SESSION_REFRESH_EACH_REQUEST"] = refresh
    client = app.test_client()
    client.get("/permanent" if permanent else "/set/kept")
    client.get("/get")  # now it is known that this browser keeps cookies, and its session is stored for longer
    for path in ("/get", "/nothing"):
        answer = client.get(path)
        assert bool(set_cookie(answer)) == (permanent and refresh)
        if permanent and refresh:
            assert answer.headers["Vary"] == "Cookie"
            assert "Expires" in set_cookie(answer)


def test_a_file_that_caches_may_keep_is_left_to_them(app: flask.Flask) -> None:
    @app.get("/file")
    def file() -> flask.Response:
        return flask.send_file(__file__, max_age=3600)

    client = app.test_client()
    client.get("/permanent")
    client.get("/get")
    answer = client.get("/file")
    assert set_cookie(answer) == ""
    assert answer.cache_control.public


def test_regenerate_can_remember(app: flask.Flask) -> None:
    @app.get("/remember/<int:yes>")
    def remember(yes: int) -> str:
        flask.session.regenerate("ada", remember=bool(yes))  # type: ignore[attr-defined]
        return f"{flask.session.permanent} {flask.session.remember} {sorted(flask.session)}"  # type: ignore[attr-defined]

    client = app.test_client()
    answer = client.get("/remember/1")
    assert answer.text == "True True ['_permanent']"
    assert "Expires" in set_cookie(answer)
    assert "Expires" not in set_cookie(client.get("/remember/0"))


# -- new, modified, accessed ----------------------------------------------------------------------


def test_new_modified_and_accessed(app: flask.Flask) -> None:
    seen: list[tuple[bool, bool, bool]] = []

    @app.after_request
    def look(response: flask.Response) -> flask.Response:
        seen.append((flask.session.new, flask.session.modified, flask.session.accessed))
        return response

    client = app.test_client()
    for path in ("/nothing", "/get", "/set/1", "/get", "/nothing"):
        client.get(path)
    accessed = [one[2] for one in seen]
    assert [one[:2] for one in seen] == [(True, False), (True, False), (True, True), (False, False), (False, False)]
    assert accessed[1:4] == [True, True, True]
    assert isinstance(app.session_interface.session_class(), flask.sessions.SessionMixin)


def test_a_change_in_a_nested_value_is_stored_without_a_word(app: flask.Flask) -> None:
    client = app.test_client()
    client.get("/append")
    client.get("/append-below")
    assert client.get("/append").text == "[1, 2, 1]"


def test_what_is_said_to_be_unmodified_is_not_stored(app: flask.Flask) -> None:
    @app.get("/unmodified")
    def unmodified() -> str:
        flask.session["list"].append(3)
        flask.session["value"] = "changed"
        flask.session.modified = False
        return ""

    @app.get("/modified-after-all")
    def modified() -> str:
        flask.session.modified = False
        flask.session["list"].append(4)
        flask.session.modified = True
        return ""

    client = app.test_client()
    client.get("/append")
    client.get("/unmodified")
    assert client.get("/get").text == "None"
    client.get("/modified-after-all")
    assert client.get("/append").text == "[1, 4, 1]"


def test_modified_by_hand_sends_the_cookie(app: flask.Flask) -> None:
    @app.get("/modified")
    def modified() -> str:
        flask.session.modified = True
        return ""

    client = app.test_client()
    client.get("/set/1")
    assert set_cookie(client.get("/modified"))
    assert set_cookie(client.get("/set/1")), "though it is what was there"


# -- the end --------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/pop", "/clear"])
@pytest.mark.parametrize("login", [True, False])
def test_an_emptied_session_is_forgotten(app: flask.Flask, path: str, login: bool) -> None:
    client = app.test_client()
    client.get("/set/1")
    if login:
        client.get("/login/ada")
    cookie = client.get_cookie("session")
    assert cookie is not None
    answer = client.get(path)
    assert "Max-Age=0" in set_cookie(answer)
    assert answer.headers["Vary"] == "Cookie"
    assert client.get_cookie("session") is None
    stolen = app.test_client()
    stolen.set_cookie("session", cookie.value)
    assert stolen.get("/get").text == "None"


def test_an_anonymous_session_that_was_emptied_is_there_for_who_runs_beside(app: flask.Flask) -> None:
    """A page that shows a message empties the session; another one that is under way may have filled it meanwhile."""
    client = app.test_client()
    client.get("/set/1")
    cookie = client.get_cookie("session")
    assert cookie is not None
    client.get("/pop")
    beside = app.test_client()
    beside.set_cookie("session", cookie.value)
    assert beside.get("/set/2").status_code == 200
    assert beside.get("/get").text == "2"


def test_a_session_of_a_user_may_hold_nothing(app: flask.Flask) -> None:
    @app.get("/who")
    def who() -> str:
        return str(flask.session.user)  # type: ignore[attr-defined]

    client = app.test_client()
    client.get("/login/ada")
    assert client.get("/who").text == "ada"
    client.get("/clear")
    assert client.get("/who").text == "None"


def test_an_empty_session_is_no_session(app: flask.Flask) -> None:
    client = app.test_client()
    assert set_cookie(client.get("/nothing")) == set_cookie(client.get("/get")) == ""


# -- what caches are told -------------------------------------------------------------------------


def test_vary_stands_there_once(app: flask.Flask) -> None:
    @app.get("/vary/<path:others>")
    def vary(others: str) -> flask.Response:
        response = flask.Response()
        response.vary.update(others.split("/"))
        flask.session["test"] = "test"
        return response

    client = app.test_client()
    for path, header in [
        ("/set/1", "Cookie"),
        ("/get", "Cookie"),
        ("/vary/Cookie", "Cookie"),
        ("/vary/Accept-Encoding/Accept-Language", "Accept-Encoding, Accept-Language, Cookie"),
        ("/clear", "Cookie"),
    ]:
        assert client.get(path).headers.getlist("Vary") == [header]
    assert "Vary" not in client.get("/nothing").headers


def test_a_page_with_a_cookie_is_never_stored_by_caches(app: flask.Flask) -> None:
    @app.get("/public")
    def public() -> flask.Response:
        response = flask.Response("x")
        response.cache_control.public = True
        flask.session.get("value")
        return response

    client = app.test_client()
    assert client.get("/set/1").headers["Cache-Control"] == "no-store"
    assert client.get("/public").headers["Cache-Control"] == "no-store", "a token leaves"
    assert client.get("/public").headers["Cache-Control"] == "public", "it is the app's own word"
    assert "Cache-Control" not in client.get("/nothing").headers


# -- values ---------------------------------------------------------------------------------------

VALUES: dict[str, Any] = {
    "tuple": (1, 2, (3, [4])),
    "bytes": b"\xff",
    "markup": Markup("<html>"),
    "uuid": uuid.UUID("12345678-1234-5678-1234-567812345678"),
    "datetime": datetime(2026, 7, 1, 12, 30, 15, 250_000, tzinfo=UTC),
    "list": [(1,), {"a": (2,)}],
    "dict": {"a": {"b": [uuid.UUID(int=7)]}},
    "looks like a tag": {" t": "not-a-tuple"},
    "looks like a tagged one": {" di": {" t__": 1}},
    "empty": [(), [], {}, "", None],
    "numbers": [1, 1.5, True, -(2**63)],
}


def same(one: Any, other: Any) -> bool:
    if type(one) is not type(other):
        return False
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    return bool(one == other)


@pytest.mark.parametrize("name", VALUES)
def test_a_value_comes_back_as_what_it_was(app: flask.Flask, name: str) -> None:
    found: list[Any] = []

    @app.get("/store")
    def store() -> str:
        flask.session["what"] = VALUES[name]
        return ""

    @app.get("/load")
    def load() -> str:
        found.append(flask.session["what"])
        return ""

    @app.get("/beside")
    def beside() -> str:
        flask.session["other"] = 1
        return ""

    client = app.test_client()
    for path in ("/store", "/load", "/beside", "/load"):
        client.get(path)
    for value in found:
        assert same(value, VALUES[name]), value
    assert len(found) == 2
    assert set_cookie(client.get("/load")) == "", "what comes back is what is stored: nothing was changed"


def test_a_time_of_another_zone_is_the_same_and_one_of_none_is_utc(app: flask.Flask) -> None:
    zone = timezone(timedelta(hours=2))
    with app.test_client() as client:
        with client.session_transaction() as session:
            session["here"] = datetime(2026, 7, 1, 14, tzinfo=zone)
            session["nowhere"] = datetime(2026, 7, 1, 12)
        with client.session_transaction() as session:
            assert session["here"] == session["nowhere"] == datetime(2026, 7, 1, 12, tzinfo=UTC)


def test_an_app_may_have_tags_of_its_own(app: flask.Flask) -> None:
    class TagOrderedDict(JSONTag):
        __slots__ = ("serializer",)
        key = " od"

        def check(self, value: Any) -> bool:
            return isinstance(value, OrderedDict)

        def to_json(self, value: Any) -> Any:
            return [[key, self.serializer.tag(inner)] for key, inner in value.items()]

        def to_python(self, value: Any) -> Any:
            return OrderedDict(value)

    app.session_interface.serializer.register(TagOrderedDict, index=0)  # type: ignore[attr-defined]
    client = app.test_client()
    with client.session_transaction() as session:
        session["what"] = OrderedDict(b=1, a=(2,))
    with client.session_transaction() as session:
        assert same(session["what"], OrderedDict(b=1, a=(2,)))


def test_a_user_who_takes_anothers_place_finds_no_value_of_the_others(app: flask.Flask) -> None:
    client = app.test_client()
    client.get("/login/ada")
    with client.session_transaction() as session:
        session.update(VALUES)
    client.get("/login/bob")
    with client.session_transaction() as session:
        assert dict(session) == {}


def test_another_server_reads_the_record(app: flask.Flask, sessions: ThreadedSessions) -> None:
    client = app.test_client()
    with client.session_transaction() as session:
        session["cart"] = {"tea": 2}
        session["pair"] = (1, "a")
        session["at"] = datetime(2026, 7, 1, tzinfo=UTC)
    [info] = sessions.list_sessions()
    key = sessions.find(info.id)
    assert key is not None
    shown = sessions.show(key)
    assert shown is not None
    assert shown.data == {"cart": {"tea": 2}, "pair": [1, "a"], "at": datetime(2026, 7, 1, tzinfo=UTC)}


@pytest.mark.parametrize("value", [object(), {1j}, 2**64])
def test_what_cannot_be_stored_is_an_error(app: flask.Flask, value: object) -> None:
    @app.get("/store")
    def store() -> str:
        flask.session["what"] = value
        return ""

    client = app.test_client()
    with pytest.raises(SessionDataError, match="what"):
        client.get("/store")
    app.testing = False
    app.config["PROPAGATE_EXCEPTIONS"] = False
    answer = client.get("/store")
    assert (answer.status_code, set_cookie(answer)) == (500, "")


def test_what_is_nested_too_deep_is_an_error(app: flask.Flask) -> None:
    @app.get("/store")
    def store() -> str:
        value: list[Any] = []
        for _ in range(5000):
            value = [value]
        flask.session["what"] = value
        return ""

    with pytest.raises(SessionDataError, match="too deep"):
        app.test_client().get("/store")


# -- no session at all ----------------------------------------------------------------------------


def test_where_nobody_keeps_sessions_they_are_empty_and_say_so() -> None:
    app = flask.Flask("shop")
    app.session_interface = SessionInterface()
    with app.test_request_context():
        assert flask.session.get("value") is None
        for change in (lambda: flask.session.__setitem__("a", 1), lambda: flask.session.pop("a"), flask.session.clear):
            with pytest.raises(RuntimeError, match=r"session is unavailable.*connect\(.*SessionMiddleware"):
                change()
    with app.test_client() as client, pytest.raises(RuntimeError, match="did not open"), client.session_transaction():
        pass


def test_no_secret_key_is_needed(app: flask.Flask) -> None:
    assert app.secret_key is None
    client = app.test_client()
    client.get("/set/1")
    assert client.get("/get").text == "1"


def test_an_argument_of_the_wrong_kind() -> None:
    with pytest.raises(ConfigError, match="SessionInterface: sessions: of an event loop; a Flask app needs connect"):
        SessionInterface(connect("memory://", key=SECRET))  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"SessionInterface: sessions: what connect\(..., driver='threads'\) returns"):
        SessionInterface("sqlite:///s.db")  # type: ignore[arg-type]


# -- where sessions are used ----------------------------------------------------------------------


def test_a_test_may_change_the_session_of_its_client(app: flask.Flask) -> None:
    with app.test_client() as client:
        with client.session_transaction() as session:
            assert len(session) == 0
            session["value"] = [42]
        assert client.get("/get").text == "[42]"
        with client.session_transaction() as session:
            assert session["value"] == [42]
        assert client.get("/nothing").status_code == 200
        assert flask.session["value"] == [42], "a test may look at the session of the last request"


def test_messages_are_flashed(app: flask.Flask) -> None:
    @app.get("/flash")
    def flash() -> str:
        flask.flash(Markup("<b>one</b>"))
        flask.flash("two", "error")
        return ""

    @app.get("/flashed")
    def flashed() -> str:
        return repr(flask.get_flashed_messages(with_categories=True))

    client = app.test_client()
    client.get("/flash")
    assert client.get("/flashed").text == repr([("message", Markup("<b>one</b>")), ("error", "two")])
    assert client.get("/flashed").text == "[]"
    assert client.get_cookie("session") is None


def test_the_session_is_saved_after_all_else(app: flask.Flask) -> None:
    @app.after_request
    def count(response: flask.Response) -> flask.Response:
        flask.session["n"] = flask.session.get("n", 0) + 1
        return response

    @app.get("/n")
    def n() -> str:
        return str(flask.session.get("n", 0))

    client = app.test_client()
    assert [client.get("/n").text for _ in range(3)] == ["0", "1", "2"]


@pytest.mark.parametrize("length", [True, False])
def test_a_stream_reads_and_changes_the_session(app: flask.Flask, length: bool) -> None:
    @app.get("/stream")
    def stream() -> flask.Response:
        @flask.stream_with_context
        def body() -> Iterator[str]:
            yield flask.session["value"]
            flask.session["value"] = (2, "later")
            yield "b"

        response = flask.Response(body())
        if length:
            response.content_length = 2
        return response

    client = app.test_client()
    client.get("/set/a")
    assert client.get("/stream").text == "ab"
    assert client.get("/get").text == "(2, 'later')"


def test_a_stream_that_begins_a_session_says_that_it_cannot(app: flask.Flask) -> None:
    @app.get("/stream")
    def stream() -> Any:
        @flask.stream_with_context
        def body() -> Iterator[str]:
            yield "a"
            flask.session["value"] = 1

        return body()

    with pytest.raises(coatcheck.CoatcheckError, match="before the response starts"):
        app.test_client().get("/stream", buffered=True)


def test_a_body_is_closed_once_it_has_left(app: flask.Flask) -> None:
    closed: list[str] = []

    class Body:
        def __iter__(self) -> Iterator[bytes]:
            yield b"x"

        def close(self) -> None:
            closed.append("closed")

    @app.get("/body")
    def body() -> flask.Response:
        return flask.Response(Body())  # type: ignore[arg-type]

    assert app.test_client().get("/body", buffered=True).text == "x"
    assert closed == ["closed"]


def test_a_file_is_sent_as_it_is(app: flask.Flask) -> None:
    @app.get("/file")
    def file() -> flask.Response:
        flask.session["value"] = 1
        return flask.send_file(__file__)

    client = app.test_client()
    answer = client.get("/file")
    assert answer.headers["Cache-Control"] == "no-store"
    assert "def test_a_file" in answer.text
    assert client.get("/get").text == "1"


def test_contexts_may_be_nested(app: flask.Flask) -> None:
    with app.test_request_context():
        flask.session["value"] = "outer"
        with app.test_request_context():
            assert "value" not in flask.session
            flask.session["value"] = "inner"
        assert flask.session["value"] == "outer"


def test_what_is_torn_down_sees_the_session(app: flask.Flask) -> None:
    seen: list[Any] = []

    @app.teardown_request
    def teardown(error: BaseException | None) -> None:
        seen.append(flask.session.get("value"))

    client = app.test_client()
    client.get("/set/1")
    assert seen == ["1"]


def test_a_request_that_fails_keeps_nothing(app: flask.Flask) -> None:
    app.testing = False
    app.config["PROPAGATE_EXCEPTIONS"] = False

    @app.get("/fail")
    def fail() -> str:
        flask.session["value"] = "changed"
        raise ZeroDivisionError

    client = app.test_client()
    client.get("/set/1")
    assert client.get("/fail").status_code == 500
    assert client.get("/get").text == "1"


# -- under coatcheck's middleware -----------------------------------------------------------------


def test_the_session_of_the_middleware_outside_is_the_apps(outside: flask.Flask) -> None:
    @outside.get("/stream")
    def stream() -> Any:
        @flask.stream_with_context
        def body() -> Iterator[str]:
            yield "a"
            flask.session["value"] = ("streamed",)

        return body()

    client = outside.test_client()
    assert set_cookie(client.get("/set/1")).startswith("coatcheck=")
    assert client.get("/get").text == "1"
    assert client.get("/append").text == "[1]"
    client.get("/append-below")
    assert client.get("/append").text == "[1, 2, 1]"
    assert client.get("/stream").text == "a"
    assert client.get("/get").text == "('streamed',)"
    login = client.get("/login/ada").headers.getlist("Set-Cookie")
    assert [one.partition("=")[0] for one in login] == ["coatcheck-login", "coatcheck"]
    client.get("/clear")
    assert client.get("/get").text == "None"


def test_permanent_is_said_to_the_middleware_outside(outside: flask.Flask) -> None:
    @outside.get("/remember")
    def remember() -> str:
        flask.session.regenerate("ada", remember=True)  # type: ignore[attr-defined]
        return repr(sorted(flask.session))

    client = outside.test_client()
    answer = client.get("/remember")
    assert "Max-Age" in answer.headers.getlist("Set-Cookie")[0]
    assert answer.text == "['_permanent']"


def test_an_old_cookie_is_not_taken_under_the_middleware_either(
    outside: flask.Flask, later: Callable[[float], None]
) -> None:
    outside.permanent_session_lifetime = timedelta(seconds=80)
    client = outside.test_client()
    client.get("/set/1")
    later(91)
    assert client.get("/get").text == "None"
    later(0)
    client.get("/set/2")
    assert client.get("/get").text == "2"
