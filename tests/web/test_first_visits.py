"""Sessions of Starlette's own middleware and of starsessions continue under coatcheck's, at the first visit."""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import date
from typing import Any

import pytest
import redis
import starsessions
from redis.asyncio import Redis as AsyncRedis
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware as StarlettesMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket
from starsessions.stores.redis import RedisStore

from coatcheck import CookiePolicy, SessionMiddleware, connect
from coatcheck.errors import ConfigError
from coatcheck.web.moving_in import LEFT_FOR_S, MovingIn, StarletteCookie, StarsessionsRedis

SECRET = "for-tests-only-for-tests-only-for-tests-001"
APP_SECRET = "the app's own key"
SOON = date(2999, 1, 1)


async def look(request: Request) -> Response:
    return JSONResponse({"data": dict(request.session), "user": getattr(request.session, "user", None)})


async def login(request: Request) -> Response:
    request.session.update(user="ada", cart=["tea"])
    return Response()


async def logout(request: Request) -> Response:
    request.session.clear()
    return Response()


async def login_bob(request: Request) -> Response:
    request.session["theme"] = "dark"
    request.session.regenerate("bob")
    return Response()


async def fail(request: Request) -> Response:
    raise ValueError


async def plain(request: Request) -> Response:
    return Response("plain")


async def talk(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_json(dict(websocket.session))
    await websocket.close()


ROUTES = [Route(f"/{view.__name__}", view) for view in (look, login, login_bob, logout, fail, plain)]
ADA = {"data": {"user": "ada", "cart": ["tea"]}, "user": "ada"}
NOBODY: dict[str, Any] = {"data": {}, "user": None}


def an_app(*middleware: Middleware) -> Starlette:
    return Starlette(routes=[*ROUTES, WebSocketRoute("/talk", talk)], middleware=middleware)


def moving_in(*former: Any, until: date = SOON) -> MovingIn:
    return MovingIn(former, until, user=lambda content: content.get("user"))


def moved(*former: Any, where: str = "memory://", **named: Any) -> TestClient:
    app = an_app()
    app.add_middleware(
        SessionMiddleware,
        sessions=connect(where, key=SECRET, store_timeout_s=0.2),
        moving_in=moving_in(*former, **named),
    )
    return TestClient(app, "https://testserver", raise_server_exceptions=False)


def signed() -> str:
    client = TestClient(an_app(Middleware(StarlettesMiddleware, secret_key=APP_SECRET)))
    client.get("/login")
    return str(client.cookies["session"])


def names(client: TestClient) -> set[str]:
    return {cookie.name for cookie in client.cookies.jar}


def show(client: TestClient, value: str) -> None:
    client.cookies.set("session", value, domain="testserver.local", path="/")


# -- Starlette's signed cookie ---------------------------------------------------------------------


def test_who_was_logged_in_stays_so() -> None:
    with moved(StarletteCookie(APP_SECRET)) as client:
        show(client, signed())
        assert client.get("/plain").text == "plain"
        assert names(client) == {"coatcheck-login"}, "the old cookie is cleared"
        for _ in range(2):
            assert client.get("/look").json() == ADA
        client.get("/logout")
        assert client.get("/look").json() == NOBODY


def test_who_logs_in_at_the_first_visit_finds_nothing_of_another() -> None:
    with moved(StarletteCookie(APP_SECRET)) as client:
        show(client, signed())
        client.get("/login_bob")
        assert client.get("/look").json() == {"data": {"theme": "dark"}, "user": "bob"}


def test_a_websocket_may_be_the_first_visit() -> None:
    with moved(StarletteCookie(APP_SECRET)) as client:
        show(client, signed())
        with client.websocket_connect("/talk") as websocket:
            assert websocket.receive_json() == ADA["data"]


@pytest.mark.parametrize("cookie", ["nonsense", "forged"])
def test_a_forged_cookie_gives_a_fresh_session(cookie: str) -> None:
    with moved(StarletteCookie("another key")) as client:
        show(client, signed() if cookie == "forged" else cookie)
        assert client.get("/look").json() == NOBODY
        client.get("/login")
        assert client.get("/look").json()["data"] == ADA["data"]


def test_nobody_moves_in_after_the_end() -> None:
    with moved(StarletteCookie(APP_SECRET), until=date(2001, 1, 1)) as client:
        show(client, signed())
        assert client.get("/look").json() == NOBODY


def test_a_logout_is_not_undone_by_the_old_cookie() -> None:
    old = signed()
    with moved(StarletteCookie(APP_SECRET)) as client:
        show(client, old)
        client.get("/logout")
        assert names(client) == set()
        show(client, old)
        client.get("/look")
        ours = client.cookies["coatcheck-login"]
        client.get("/logout")
        client.cookies.set("coatcheck-login", ours, domain="testserver.local", path="/")
        show(client, old)
        assert client.get("/look").json() == NOBODY


def test_a_view_that_fails_moves_nothing() -> None:
    with moved(StarletteCookie(APP_SECRET)) as client:
        show(client, signed())
        assert client.get("/fail").status_code == 500
        assert names(client) == {"session"}
        assert client.get("/look").json() == ADA


def test_it_is_left_only_when_it_is_stored_here() -> None:
    left: list[str] = []

    class Watched(StarletteCookie):
        def leave(self, cookies: Any) -> None:
            left.append(cookies["session"])

    old = signed()
    for where, status in (("redis://127.0.0.1:1", 503), ("memory://", 200)):
        with moved(Watched(APP_SECRET), where=where) as client:
            show(client, old)
            assert client.get("/look").status_code == status
            assert left == ([old] if status == 200 else [])
            assert ("session" in names(client)) == (status == 503)


# -- starsessions ----------------------------------------------------------------------------------


@contextmanager
def with_starsessions(client: redis.Redis, **named: Any) -> Iterator[TestClient]:
    connection = AsyncRedis(port=client.connection_pool.connection_kwargs["port"])
    app = an_app(
        Middleware(starsessions.SessionMiddleware, store=RedisStore(connection=connection), lifetime=3600, **named),
        Middleware(starsessions.SessionAutoloadMiddleware),
    )
    with TestClient(app, "https://testserver") as browser:
        yield browser
        assert browser.portal is not None
        browser.portal.call(connection.aclose)


def test_starsessions(redis_server: redis.Redis) -> None:
    with with_starsessions(redis_server) as client:
        client.get("/login")
        old = str(client.cookies["session"])
    key = f"starsessions.{old}"
    assert redis_server.ttl(key) > LEFT_FOR_S
    with moved(StarsessionsRedis(redis_server)) as client:
        show(client, old)
        for _ in range(2):
            assert client.get("/look").json() == ADA
        assert names(client) == {"coatcheck-login"}
        assert 0 < redis_server.ttl(key) <= LEFT_FOR_S
        client.cookies.clear()
        show(client, old)
        assert client.get("/look").json() == ADA, "a request that runs beside the first one"


def test_a_pickle_is_refused(redis_server: redis.Redis, caplog: pytest.LogCaptureFixture) -> None:
    class Pickles(starsessions.Serializer):
        def serialize(self, data: Any) -> bytes:
            return pickle.dumps(data)

        def deserialize(self, data: bytes) -> Any:
            return pickle.loads(data) if data else {}  # as the app of before did

    with with_starsessions(redis_server, serializer=Pickles()) as client:
        client.get("/login")
        old = str(client.cookies["session"])
    with moved(StarsessionsRedis(redis_server)) as client:
        show(client, old)
        assert client.get("/look").json() == NOBODY
    assert "StarsessionsRedis: a session is stored as a pickle, which is not read here" in caplog.text


def test_while_the_store_of_before_is_away_the_visit_is_refused(caplog: pytest.LogCaptureFixture) -> None:
    with moved(StarsessionsRedis(redis.Redis(port=1, socket_timeout=1))) as client:
        show(client, "x")
        answer = client.get("/look")
        assert answer.status_code == 503
        assert "the_store_of_former_sessions_does_not_answer" in answer.text
        assert names(client) == {"session"}
    assert "moving in: StarsessionsRedis does not answer: " in caplog.text


# -- arguments -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (["session"], "moving_in: MovingIn"),
        (moving_in(StarletteCookie(APP_SECRET, cookie="__Host-coatcheck")), "a cookie of before is called __Host-coat"),
    ],
)
def test_an_argument_of_the_wrong_kind(given: Any, line: str) -> None:
    with pytest.raises(ConfigError, match=line):
        SessionMiddleware(an_app(), connect("memory://", key=SECRET), cookies=CookiePolicy(), moving_in=given)


def test_nothing_stands_in_between_where_nothing_is_said() -> None:
    app = an_app()
    assert SessionMiddleware(app, connect("memory://", key=SECRET)).app is app
