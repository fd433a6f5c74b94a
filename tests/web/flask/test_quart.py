"""What Quart promises about sessions, through the real Quart."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest
import pytest_asyncio
import quart
from werkzeug.exceptions import HTTPException

import coatcheck.web.flask_session
from coatcheck import SessionMiddleware, connect
from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import ConfigError
from coatcheck.web.quart import SessionInterface

SECRET = "for-tests-only-for-tests-only-for-tests-001"


@pytest_asyncio.fixture
async def sessions() -> AsyncIterator[Sessions]:
    made = connect("memory://", key=SECRET)
    yield made
    await made.here().aclose()


@pytest.fixture
def app(sessions: Sessions) -> quart.Quart:
    return app_of(sessions)


def app_of(sessions: Sessions | None) -> quart.Quart:
    app = quart.Quart("shop")
    app.session_interface = SessionInterface(sessions)

    @app.get("/set/<value>")
    async def set_value(value: str) -> str:
        quart.session["value"] = value
        return ""

    @app.get("/permanent")
    async def permanent() -> str:
        quart.session.permanent = True
        quart.session["value"] = ("kept",)
        return ""

    @app.get("/get")
    async def get() -> str:
        return str(quart.session.get("value"))

    @app.get("/clear")
    async def clear() -> str:
        quart.session.clear()
        return ""

    @app.get("/pop")
    async def pop() -> str:
        quart.session.pop("value", None)
        return ""

    @app.get("/login/<user>")
    async def login(user: str) -> str:
        quart.session.regenerate(user)  # type: ignore[attr-defined]
        return ""

    @app.get("/nothing")
    async def nothing() -> str:
        return ""

    @app.get("/redirect")
    async def redirect() -> Any:
        quart.session["value"] = "redirected"
        await quart.flash("message")
        return quart.redirect("/get")

    @app.get("/stream/<int:length>")
    async def stream(length: int) -> quart.Response:
        @quart.stream_with_context
        async def body() -> AsyncIterator[str]:
            yield "a"
            quart.session["value"] = (length, "later")
            yield "b"

        response = quart.Response(body())
        if length:
            response.content_length = length
        return response

    @app.websocket("/ws")
    async def ws() -> None:
        while (said := await quart.websocket.receive()) != "end":
            await quart.websocket.send(str(quart.session.get("value")))
            quart.session["value"] = said

    return app


async def text(client: Any, path: str) -> str:
    answer = await client.get(path)
    assert answer.status_code == 200
    return str(await answer.get_data(as_text=True))


def set_cookie(answer: Any) -> str:
    found: list[str] = answer.headers.getlist("Set-Cookie")
    assert len(found) <= 1
    return found[0] if found else ""


@pytest.mark.asyncio
async def test_a_session_from_its_first_value_to_its_end(app: quart.Quart) -> None:
    client = app.test_client()
    cookie = set_cookie(await client.get("/set/1"))
    assert cookie.startswith("session=s.")
    assert cookie.endswith("; HttpOnly; Path=/")
    assert await text(client, "/get") == "1"
    assert set_cookie(await client.get("/login/ada")).startswith("session=l.")
    assert await text(client, "/get") == "1"
    thief = app.test_client()
    thief.set_cookie("localhost", "session", cookie.split(";")[0].partition("=")[2])
    assert await text(thief, "/get") == "None"
    assert "Max-Age=0" in set_cookie(await client.get("/clear"))
    assert await text(client, "/get") == "None"


@pytest.mark.asyncio
async def test_the_cookie_is_what_the_settings_say(app: quart.Quart) -> None:
    app.config.update(
        SESSION_COOKIE_NAME="shop", SESSION_COOKIE_PATH="/a", SESSION_COOKIE_SECURE=True, SESSION_COOKIE_SAMESITE="Lax"
    )
    cookie = set_cookie(await app.test_client().get("/permanent"))
    for part in ("shop=s.", "Path=/a", "Secure", "SameSite=Lax", "Expires="):
        assert part in cookie


@pytest.mark.asyncio
async def test_a_permanent_session_is_told_with_each_response(
    app: quart.Quart, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = app.test_client()
    first = set_cookie(await client.get("/permanent"))
    assert await text(client, "/get") == "('kept',)"
    answer = await client.get("/nothing")
    assert "Expires" in set_cookie(answer)
    assert answer.headers["Vary"] == "Cookie"
    app.permanent_session_lifetime = timedelta(seconds=80)
    time = coatcheck.web.flask_session.time.time
    monkeypatch.setattr("coatcheck.web.flask_session.time.time", lambda: time() + 91)
    stale = app.test_client()
    stale.set_cookie("localhost", "session", first.split(";")[0].partition("=")[2])
    assert await text(stale, "/get") == "None"


@pytest.mark.parametrize("length", [0, 2])
@pytest.mark.asyncio
async def test_a_stream_changes_the_session(app: quart.Quart, length: int) -> None:
    client = app.test_client()
    await client.get("/set/1")
    assert await text(client, f"/stream/{length}") == "ab"
    assert await text(client, "/get") == f"({length}, 'later')"


@pytest.mark.asyncio
async def test_redirects_and_messages(app: quart.Quart) -> None:
    @app.get("/messages")
    async def messages() -> list[str]:
        return quart.get_flashed_messages()  # type: ignore[return-value]

    client = app.test_client()
    await client.get("/redirect")
    assert await (await client.get("/messages")).get_json() == ["message"]
    assert await text(client, "/get") == "redirected"


@pytest.mark.asyncio
async def test_what_a_websocket_changes_is_stored_when_it_ends(app: quart.Quart) -> None:
    client = app.test_client()
    await client.get("/set/1")
    async with client.websocket("/ws") as socket:
        await socket.send("2")
        assert await socket.receive() == "1"
        await socket.send("end")
        async with asyncio.timeout(30):
            while await text(client, "/get") != "2":
                await asyncio.sleep(0.01)


@pytest.mark.asyncio
async def test_a_session_cannot_begin_in_a_websocket(app: quart.Quart, caplog: pytest.LogCaptureFixture) -> None:
    client = app.test_client()
    async with client.websocket("/ws") as socket:
        await socket.send("2")
        assert await socket.receive() == "None"
        await socket.send("end")
        async with asyncio.timeout(30):
            while "cannot begin" not in caplog.text:
                await asyncio.sleep(0.01)
    assert await text(client, "/get") == "None"


@pytest.mark.asyncio
async def test_a_test_may_change_the_session_of_its_client(app: quart.Quart) -> None:
    client = app.test_client()
    async with client.session_transaction() as session:
        assert len(session) == 0
        session["value"] = [42]
    assert await text(client, "/get") == "[42]"
    async with client.session_transaction() as session:
        assert session["value"] == [42]


@pytest.mark.asyncio
async def test_where_nobody_keeps_sessions() -> None:
    app = app_of(None)
    async with app.test_request_context("/"):
        assert quart.session.get("value") is None
        with pytest.raises(RuntimeError, match="session is unavailable"):
            quart.session["value"] = 1


def test_an_argument_of_the_wrong_kind() -> None:
    with pytest.raises(ConfigError, match="SessionInterface: sessions: of threads"):
        SessionInterface(connect("memory://", key=SECRET, driver="threads"))  # type: ignore[arg-type]


@pytest.mark.asyncio
async def test_what_was_not_stored_is_refused() -> None:
    away = connect("redis://127.0.0.1:1", key=SECRET, store_timeout_s=0.2)
    try:
        app = app_of(away)
        answer = await app.test_client().get("/redirect")
        assert (answer.status_code, answer.headers["Retry-After"], set_cookie(answer)) == (503, "1", "")
        assert "Location" not in answer.headers

        @app.errorhandler(503)
        async def busy(error: HTTPException) -> tuple[str, int]:
            return "we are busy", 503

        answer = await app.test_client().get("/set/1")
        assert await answer.get_data(as_text=True) == "we are busy"
        assert answer.headers["Cache-Control"] == "no-store"
        client = app.test_client()
        made = connect("memory://", key=SECRET)
        cookie = set_cookie(await app_of(made).test_client().get("/set/1"))
        await made.here().aclose()
        client.set_cookie("localhost", "session", cookie.split(";")[0].partition("=")[2])
        assert (await client.get("/get")).status_code == 503
        assert (await client.get("/nothing")).status_code == 200
    finally:
        await away.here().aclose()


@pytest.mark.asyncio
async def test_the_session_of_the_middleware_outside_is_the_apps(sessions: Sessions) -> None:
    app = app_of(None)
    app.asgi_app = SessionMiddleware(app.asgi_app, sessions)  # type: ignore[method-assign, assignment, arg-type]
    client = app.test_client()
    assert set_cookie(await client.get("/set/1")).startswith("coatcheck=")
    assert await text(client, "/get") == "1"
    assert await text(client, "/stream/0") == "ab"
    assert await text(client, "/get") == "(0, 'later')"
    await client.get("/login/ada")
    async with client.websocket("/ws") as socket:
        await socket.send("3")
        assert await socket.receive() == "(0, 'later')"
    await client.get("/clear")
    assert await text(client, "/get") == "None"


@pytest.mark.asyncio
async def test_the_sessions_are_closed_after_the_app_has_served(app: quart.Quart, sessions: Sessions) -> None:
    async with app.test_app() as served:
        await served.test_client().get("/set/1")
        assert sessions.here().status()["sessions"]
    assert app.after_serving_funcs
