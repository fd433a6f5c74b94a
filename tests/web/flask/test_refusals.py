"""What an app answers while a session cannot be had, or could not be stored."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import flask
import pytest
from werkzeug.exceptions import HTTPException

from coatcheck import connect
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.web.flask import SessionInterface

SECRET = "for-tests-only-for-tests-only-for-tests-001"


def app_of(sessions: ThreadedSessions) -> flask.Flask:
    app = flask.Flask("shop")
    app.session_interface = SessionInterface(sessions)

    @app.get("/set")
    def set_value() -> flask.Response:
        flask.session["value"] = 1
        response = flask.Response("stored")
        response.headers["X-Secret"] = "1"
        return response

    @app.get("/get")
    def get() -> str:
        return str(flask.session.get("value"))

    @app.get("/swallows")
    def swallows() -> str:
        try:
            return "as if nobody were there" if flask.session.get("value") is None else "known"
        except HTTPException:
            return "as if nobody were there"

    @app.get("/public")
    def public() -> str:
        return "for all"

    return app


@pytest.fixture
def away() -> Iterator[ThreadedSessions]:
    """Nobody answers."""
    made = connect("redis://127.0.0.1:1", key=SECRET, driver="threads", store_timeout_s=0.2)
    yield made
    made.close()


@pytest.fixture
def here() -> Iterator[ThreadedSessions]:
    made = connect("memory://", key=SECRET, driver="threads")
    yield made
    made.close()


def shows_a_session(app: flask.Flask, here: ThreadedSessions) -> Any:
    browser = app_of(here).test_client()
    browser.get("/set")
    cookie = browser.get_cookie("session")
    assert cookie is not None
    client = app.test_client()
    client.set_cookie("session", cookie.value)
    return client


def is_refused(answer: Any, status: int = 503) -> bool:
    return (
        answer.status_code == status
        and answer.headers["Cache-Control"] == "no-store"
        and "Set-Cookie" not in answer.headers
        and "X-Secret" not in answer.headers
    )


@pytest.mark.parametrize("path", ["/get", "/set", "/swallows"])
def test_a_page_that_asks_for_a_session_out_of_reach_is_refused(
    away: ThreadedSessions, here: ThreadedSessions, path: str
) -> None:
    client = shows_a_session(app_of(away), here)
    answer = client.get(path)
    assert is_refused(answer), answer.text
    assert answer.headers["Retry-After"] == "1"
    assert "nobody" not in answer.text


def test_a_page_that_asks_for_none_is_served(away: ThreadedSessions, here: ThreadedSessions) -> None:
    answer = shows_a_session(app_of(away), here).get("/public")
    assert (answer.status_code, answer.text) == (200, "for all")


def test_what_was_not_stored_is_not_said_to_be(away: ThreadedSessions) -> None:
    answer = app_of(away).test_client().get("/set")
    assert is_refused(answer)
    assert "stored" not in answer.text
    assert answer.headers["Retry-After"] == "1"


def test_a_refusal_looks_as_the_apps_own_errors(away: ThreadedSessions, here: ThreadedSessions) -> None:
    app = app_of(away)

    @app.errorhandler(503)
    def busy(error: HTTPException) -> tuple[str, int]:
        return "we are busy", 503

    assert app.test_client().get("/set").text == "we are busy"
    answer = shows_a_session(app, here).get("/get")
    assert answer.text == "we are busy"
    assert is_refused(answer)


@pytest.mark.parametrize("path", ["/get", "/set"])
def test_an_error_page_may_look_at_the_session(away: ThreadedSessions, here: ThreadedSessions, path: str) -> None:
    app = app_of(away)
    app.secret_key = "for nothing"

    @app.errorhandler(503)
    def busy(error: HTTPException) -> tuple[str, int]:
        page = "{{ session.get('value') }} {{ get_flashed_messages() }} we are busy"
        return flask.render_template_string(page), 503

    answer = shows_a_session(app, here).get(path)
    assert answer.text == "None [] we are busy"
    assert is_refused(answer)


def test_an_error_page_that_fails_is_replaced(away: ThreadedSessions) -> None:
    app = app_of(away)

    @app.errorhandler(503)
    def busy(error: HTTPException) -> str:
        raise ZeroDivisionError

    assert is_refused(app.test_client().get("/set"))


def test_a_change_that_came_too_late_is_refused(here: ThreadedSessions) -> None:
    app = app_of(here)
    ended: list[bool] = []

    @app.get("/too-late")
    def too_late() -> str:
        flask.session["value"] = 2
        [info] = here.list_sessions()
        key = here.find(info.id)
        assert key is not None
        ended.append(here.close_key(key).effective)
        return "stored"

    client = app.test_client()
    client.get("/set")
    answer = client.get("/too-late")
    assert ended == [True]
    assert is_refused(answer, 409)
    assert client.get("/get").text == "None"


def test_too_many_new_sessions_of_one_client() -> None:
    few = connect("memory://", key=SECRET, driver="threads", new_sessions_per_minute=1, new_sessions_burst=1)
    try:
        app = app_of(few)
        known = {"REMOTE_ADDR": "203.0.113.7"}
        statuses = [app.test_client().get("/set", environ_base=known).status_code for _ in range(3)]
        assert statuses[0] == 200
        assert statuses[-1] == 429
    finally:
        few.close()
