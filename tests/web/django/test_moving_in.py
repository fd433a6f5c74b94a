"""Sessions of Django's own engines continue here, each at its browser's first visit; nobody is logged out."""

from __future__ import annotations

import asyncio
import importlib
import io
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.contrib.sessions.backends import file
from django.contrib.sessions.models import Session as Row
from django.core.cache import cache
from django.core.exceptions import ImproperlyConfigured
from django.core.management import call_command
from django.core.management.base import SystemCheckError
from django.db import OperationalError, connections
from django.http import HttpRequest
from django.test import AsyncClient, Client, override_settings

from coatcheck import connect
from coatcheck.web.django import SessionMiddleware, SessionStore
from coatcheck.web.django.configuration import sessions
from coatcheck.web.django.former import LEFT, FormerEngine, FormerSessions
from coatcheck.web.moving_in import LEFT_FOR_S
from coatcheck.web.wsgi import SessionMiddleware as Outer

from .project.urls import todo
from .project.wsgi import application

COOKIE = "sessionid"
DJANGO = "django.contrib.sessions.backends"
ENGINES = ["db", "cache", "cached_db", "file", "signed_cookies"]
OURS = "coatcheck.web.django.SessionMiddleware"
DJANGOS = "django.contrib.sessions.middleware.SessionMiddleware"
SOON = "2999-01-01"


def moved(engine: str = "db", until: Any = SOON) -> Any:
    """The settings after the change."""
    moving_in = {"engine": f"{DJANGO}.{engine}", "until": until}
    return override_settings(COATCHECK={"session_servers": ["memory://"], "moving_in": moving_in})


def behind(first: str) -> Any:
    from django.conf import settings

    return override_settings(MIDDLEWARE=[first, *settings.MIDDLEWARE[1:]])


def before(engine: str = "db", what: Any = None) -> str:
    """The cookie of ada, who has logged in before the change."""
    with override_settings(SESSION_ENGINE=f"{DJANGO}.{engine}"), behind(DJANGOS):
        client = Client()
        client.get("/in?user=ada")
        client.get("/add")
        if what is not None:
            todo["do"] = what
            client.get("/do")
        return str(client.cookies[COOKIE].value)


def store_of(engine: str, key: str | None = None) -> Any:
    return importlib.import_module(f"{DJANGO}.{engine}").SessionStore(key)


@pytest.fixture(params=[OURS, DJANGOS], ids=["ours", "djangos"])
def first(request: pytest.FixtureRequest) -> Iterator[str]:
    with behind(request.param):
        yield str(request.param)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path) -> Iterator[None]:
    with override_settings(SESSION_FILE_PATH=str(tmp_path)), pytest.MonkeyPatch.context() as patch:
        patch.setattr(file.SessionStore, "_storage_path", str(tmp_path), raising=False)  # else it is known from before
        yield
    todo.clear()


def visiting(cookie: str, client: Any = None) -> Any:
    client = client or Client(raise_request_exception=False)
    client.cookies[COOKIE] = cookie
    return client


def ada() -> str:
    return str(User.objects.get(username="ada").pk)


# -- the first visit -------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ENGINES)
def test_who_was_logged_in_stays_so(engine: str, first: str) -> None:
    old = before(engine)
    with moved(engine):
        client = visiting(old)
        assert client.get("/who").json() == {"user": "ada", "cart": ["tea"], "said": ["welcome ada"]}
        ours = client.cookies[COOKIE].value
        assert ours.startswith("l."), "a session of ours, of somebody who is logged in"
        assert client.get("/who").json() == {"user": "ada", "cart": ["tea"], "said": []}
        assert {"user": ada(), "cart": ["tea"]}.items() <= named(ours).items()
        client.get("/out")
        assert client.get("/who").json()["user"] == ""
        assert visiting(ours).get("/who").json()["user"] == ""


def named(key: str) -> dict[str, Any]:
    found = sessions().find_by_token(key.encode())
    assert found is not None
    return {"user": found.user, **found}


@pytest.mark.parametrize("engine", ENGINES)
def test_an_async_view(engine: str, first: str) -> None:
    old = before(engine)

    async def visit() -> None:
        client = visiting(old, AsyncClient())
        assert (await client.get("/aadd")).json() == ["tea", "tea"]
        assert client.cookies[COOKIE].value.startswith("l.")
        assert (await client.get("/aadd")).json() == ["tea", "tea", "tea"]
        assert (await client.get("/who")).json()["user"] == "ada"

    with moved(engine):
        asyncio.run(visit())


def test_our_middleware_moves_it_whatever_the_view_looks_at() -> None:
    old = before()
    with moved():
        answer = visiting(old).get("/plain")
    assert answer.cookies[COOKIE].value.startswith("l.")
    assert answer["Cache-Control"] == "no-store"


def test_the_old_session_is_left_for_a_minute_and_then_gone(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for engine in ("db", "cache", "cached_db", "file"):
        old = before(engine)
        with moved(engine):
            visiting(old).get("/who")
            left = store_of(engine, old)
            assert left.load().get(LEFT, {}).get("until", 0) > time.time(), "it is still there"
            assert left.load()[LEFT]["until"] <= time.time() + LEFT_FOR_S
            assert left.get_expiry_age() <= LEFT_FOR_S
            beside = visiting(old)
            assert beside.get("/who").json()["user"] == "ada", "a request that runs beside the first one"
            assert LEFT not in named(beside.cookies[COOKIE].value)
            assert beside.cookies[COOKIE]["max-age"] == 14 * 86400
            with monkeypatch.context() as later:
                now = time.time()
                later.setattr(
                    "coatcheck.web.django.former.time", type("Later", (), {"time": lambda moment=now: moment + 61})
                )
                assert visiting(old).get("/who").json()["user"] == ""
            assert not store_of(engine).exists(old)


def test_clearsessions_clears_the_store_of_before() -> None:
    old = before()
    with moved():
        visiting(old).get("/who")
        Row.objects.filter(session_key=old).update(expire_date=datetime(2001, 1, 1, tzinfo=UTC))
        call_command("clearsessions")
    assert not Row.objects.filter(session_key=old).exists()


@pytest.mark.parametrize("expiry", [300, 0])
def test_what_set_expiry_was_told_is_kept(first: str, expiry: int) -> None:
    old = before(what=lambda request: request.session.set_expiry(expiry))
    with moved():
        for _ in range(2):
            client = visiting(old)
            client.get("/who")
            assert client.cookies[COOKIE]["max-age"] == (expiry or "")
            assert named(client.cookies[COOKIE].value)["_session_expiry"] == expiry


@pytest.mark.parametrize("engine", ENGINES)
def test_a_forged_key_gives_a_fresh_session(engine: str, first: str) -> None:
    for key in ("0" * 32, "short", "a/../b", "x" * 200, "s.nonsense", "l.nonsense"):
        with moved(engine):
            finds_nothing(key)


def finds_nothing(key: str) -> None:
    client = visiting(key)
    assert client.get("/who").json() == {"user": "", "cart": None, "said": []}
    assert client.get("/add").json() == ["tea"]
    assert client.cookies[COOKIE].value.startswith("s.")


def test_an_expired_session_gives_a_fresh_one(first: str) -> None:
    for engine in ("db", "file", "signed_cookies"):
        old = before(engine, lambda request: request.session.set_expiry(-1))
        with moved(engine), override_settings(SESSION_COOKIE_AGE=-1 if engine == "signed_cookies" else 1209600):
            assert visiting(old).get("/who").json()["user"] == ""


def test_a_session_whose_signature_is_wrong_gives_a_fresh_one(first: str) -> None:
    for engine in ("db", "signed_cookies"):
        old = before(engine)
        with moved(engine), override_settings(SECRET_KEY="another one, of which the old engine knows nothing"):
            assert visiting(old).get("/who").json()["user"] == ""


def test_a_changed_password_ends_it(first: str) -> None:
    old = before()
    user = User.objects.get(username="ada")
    was = user.password
    try:
        user.set_password("another")
        user.save()
        with moved():
            assert visiting(old).get("/who").json()["user"] == ""
    finally:
        User.objects.filter(pk=user.pk).update(password=was)


@pytest.mark.parametrize("until", ["2001-01-01", date(2001, 1, 1), "2001-01-01T12:00:00+00:00"])
def test_after_the_end_it_is_not_looked_at(until: Any, first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    old = before()
    asked: list[object] = []
    monkeypatch.setattr(FormerEngine, "read", lambda self, cookies: asked.append(cookies))
    with moved(until=until):
        assert visiting(old).get("/who").json()["user"] == ""
    assert asked == []


def test_a_session_of_ours_is_never_looked_for_there(monkeypatch: pytest.MonkeyPatch, first: str) -> None:
    asked: list[object] = []
    monkeypatch.setattr(FormerEngine, "read", lambda self, cookies: asked.append(cookies))
    with moved():
        client = Client()
        client.get("/in?user=ada")
        key = client.cookies[COOKIE].value
        client.get("/out")
        visiting(key).get("/who")
    assert asked == []


# -- logouts, failures, outages --------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["db", "cache", "cached_db", "file"])
def test_a_logout_at_the_first_visit_ends_it_at_once(engine: str, first: str) -> None:
    old = before(engine)
    with moved(engine):
        client = visiting(old)
        client.get("/out")
        assert client.cookies[COOKIE].value == ""
        assert not store_of(engine).exists(old)
        assert visiting(old).get("/who").json()["user"] == ""


def test_a_login_of_another_at_the_first_visit_has_nothing_of_it(first: str) -> None:
    old = before()
    with moved():
        client = visiting(old)
        client.get("/in?user=bob")
        assert client.get("/who").json() == {"user": "bob", "cart": None, "said": ["welcome bob"]}
        assert not store_of("db").exists(old)
        assert named(client.cookies[COOKIE].value)["user"] == str(User.objects.get(username="bob").pk)


def test_a_login_of_the_same_user_goes_on_with_it(first: str) -> None:
    old = before()
    with moved():
        client = visiting(old)
        client.get("/in?user=ada")
        assert client.get("/who").json()["cart"] == ["tea"]


def test_a_session_emptied_at_the_first_visit_is_not_full_again(first: str) -> None:
    old = before()
    todo["do"] = lambda request: [request.session["cart"], request.session.clear()]
    with moved():
        client = visiting(old)
        client.get("/do")
        assert client.get("/who").json() == {"user": "", "cart": None, "said": []}


def test_a_view_that_fails_moves_nothing(first: str) -> None:
    old = before()

    def fail(request: HttpRequest) -> None:
        assert request.session["cart"] == ["tea"]
        raise ValueError

    todo["do"] = fail
    with moved():
        client = visiting(old)
        assert client.get("/do").status_code == 500
        assert client.cookies[COOKIE].value == old
        assert client.get("/who").json()["user"] == "ada"


def test_it_is_left_only_when_it_is_stored_here(first: str) -> None:
    old = before()
    away = {
        "session_servers": ["redis://127.0.0.1:1"],
        "store_timeout_s": 0.2,
        "moving_in": {"engine": f"{DJANGO}.db", "until": SOON},
    }
    with override_settings(COATCHECK=away):
        client = visiting(old)
        try:
            assert client.get("/who").status_code == (503 if first == OURS else 500)
        finally:
            sessions().close()
        assert client.cookies[COOKIE].value == old
    assert LEFT not in store_of("db", old).load()
    with moved():
        assert client.get("/who").json()["user"] == "ada"


def test_while_the_store_of_before_is_away_the_visit_is_refused(
    first: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: Any, **__: Any) -> Any:
        raise OperationalError("the database is away")

    for engine in ("db", "cache"):
        old = before(engine)
        with moved(engine):
            client = visiting(old)
            with monkeypatch.context() as outage:
                outage.setattr(Row.objects, "get", fails)
                outage.setattr(type(cache._connections[cache._alias]), "get", fails)
                answer = client.get("/who")
                assert answer.status_code == (503 if first == OURS else 500)
                if first == OURS:
                    assert answer.content == b"session: the_store_of_former_sessions_does_not_answer\n"
            assert "moving in: FormerEngine does not answer: OperationalError" in caplog.text
            assert client.cookies[COOKIE].value == old
            assert client.get("/who").json()["user"] == "ada", "nobody is logged out by it"


def test_what_cannot_be_stored_is_logged(first: str, caplog: pytest.LogCaptureFixture) -> None:
    def fill(request: HttpRequest) -> None:
        request.session["much"] = "x" * 20_000_000

    old = before(what=fill)
    with moved():
        assert visiting(old).get("/who").json()["user"] == ""
    assert "moving in: the session has 20000250 bytes; at most" in caplog.text


# -- two at once, and a layer outside --------------------------------------------------------------


def test_two_first_visits_at_once(first: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both have read the old session when the first of them leaves it."""
    old = before()
    both = Barrier(2, timeout=60)
    read = FormerEngine.read

    def read_together(self: FormerEngine, cookies: Any) -> Any:
        found = read(self, cookies)
        both.wait()
        return found

    def visit(_: int) -> Any:
        client = visiting(old)
        try:
            said = client.get("/who").json()
            monkeypatch.setattr(FormerEngine, "read", read)
            return said["user"], client.get("/who").json()["user"], client.cookies[COOKIE].value
        finally:
            connections.close_all()

    with moved():
        monkeypatch.setattr(FormerEngine, "read", read_together)
        with ThreadPoolExecutor(2) as pool:
            seen = list(pool.map(visit, range(2)))
    assert [one[:2] for one in seen] == [("ada", "ada")] * 2
    assert seen[0][2] != seen[1][2]


def test_under_a_layer_outside() -> None:
    old = before()
    outer = connect("memory://", key="for-tests-only-for-tests-only-for-tests-001", driver="threads")
    handled = Outer(application, outer)

    def ask(path: str, cookie: str) -> tuple[str, list[str], bytes]:
        said: list[Any] = []
        environ = {
            "REQUEST_METHOD": "GET", "PATH_INFO": path, "SERVER_NAME": "x", "SERVER_PORT": "80",
            "wsgi.errors": sys.stderr, "wsgi.input": io.BytesIO(), "wsgi.url_scheme": "http", "HTTP_COOKIE": cookie,
            "REMOTE_ADDR": "127.0.0.1",
        }  # fmt: skip

        def start(status: str, headers: Any, exc_info: Any = None) -> Any:
            said.extend([status, headers])

        body = handled(environ, start)
        return said[0], [value.strip() for name, value in said[1] if name.lower() == "set-cookie"], b"".join(body)

    with override_settings(COATCHECK={"moving_in": {"engine": f"{DJANGO}.db", "until": SOON}}):
        try:
            status, cookies, body = ask("/who", f"{COOKIE}={old}")
            assert status == "200 OK", body
            assert b'"user": "ada"' in body
            cleared = [one for one in cookies if one.startswith(f'{COOKIE}="";')]
            ours = [one.partition(";")[0] for one in cookies if "-login=" in one]
            assert (len(cleared), len(ours)) == (1, 1), cookies
            assert b'"user": "ada"' in ask("/who", ours[0])[2]
            assert len(outer.sessions_of(ada())) == 1
        finally:
            outer.close()


# -- settings --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ("django.contrib.sessions.backends.db", "moving_in: a dict of 'engine'"),
        ({"engine": f"{DJANGO}.db"}, "moving_in: a dict of 'engine'"),
        ({"engine": "no.such.engine", "until": SOON}, "'no.such.engine' is no session engine"),
        ({"engine": "coatcheck.web.django", "until": SOON}, "is not the session engine of before"),
        ({"engine": f"{DJANGO}.db", "until": "soon"}, "until: a date, such as '2027-03-01', not 'soon'"),
        ({"engine": f"{DJANGO}.db", "until": 7}, "until: a date or a datetime, not int"),
        ({"engine": f"{DJANGO}.db", "until": None}, "say until when"),
    ],
)
def test_wrong_settings(given: Any, line: str) -> None:
    with override_settings(COATCHECK={"session_servers": ["memory://"], "moving_in": given}):
        with pytest.raises(ImproperlyConfigured, match=line):
            SessionMiddleware(lambda request: None)
        with pytest.raises(SystemCheckError, match=r"coatcheck\.E001"):
            call_command("check", "--tag", "security")


def test_with_nothing_said_nobody_moves_in(first: str) -> None:
    old = before()
    assert visiting(old).get("/who").json()["user"] == ""
    assert FormerSessions().is_over()
    assert not SessionStore(old).exists(old)
