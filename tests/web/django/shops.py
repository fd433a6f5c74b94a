"""One small shop in each framework, with the framework's own sessions or with coatcheck's, called without a server.

A shop is a web server of a farm: others of the same farm share what the framework shares, or the session server.
"""

from __future__ import annotations

import asyncio
import io
import json
import sys
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from pathlib import Path
from typing import Any, Literal

import aiohttp
import aiohttp_session
import flask
import litestar
import quart
from aiohttp import web
from aiohttp.test_utils import TestServer
from aiohttp_session.cookie_storage import EncryptedCookieStorage
from django.contrib.auth import login, logout
from django.contrib.auth.models import User
from django.core.wsgi import get_wsgi_application
from django.db import connections
from django.http import HttpRequest, JsonResponse
from django.test import override_settings
from django.urls import path as django_path
from litestar.middleware.session.server_side import ServerSideSessionConfig
from litestar.stores.file import FileStore
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.sessions import SessionMiddleware as StarlettesMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from coatcheck import SessionMiddleware, connect
from coatcheck.web.aiohttp import setup
from coatcheck.web.django import configuration
from coatcheck.web.flask import SessionInterface
from coatcheck.web.litestar import ServerSideSession
from coatcheck.web.quart import SessionInterface as QuartSessionInterface

Side = Literal["itself", "coatcheck"]
BROWSERS_TAKE = 4096
"""Bytes of a cookie with its name and attributes; browsers leave a longer one out."""
MUCH = "".join(f"{number * 2654435761 % 2**32:08x}" for number in range(2500))
"""20,000 bytes that no compression makes a cookie of."""
KINDS = [(1, 2), datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)]


class Farm:
    """What the web servers of one farm share. ``during``: what happens while a slow request waits."""

    def __init__(self, folder: Path, side: Side) -> None:
        self.folder = folder
        self.side = side
        self.during: Callable[[], Awaitable[Any]] = lambda: asyncio.sleep(0)
        self.webs = 0
        self.ending: list[Callable[[], Awaitable[Any]]] = []

    def sessions(self, keys: list[str], **more: Any) -> Any:
        found = connect(f"sqlite:///{self.folder}/sessions.db", key=keys, rotate_after_s=0, grace_s=0.1, **more)
        self.ending.append(found.aclose if not more else partial(asyncio.to_thread, found.close))
        return found

    def act(self, session: Any, what: str) -> dict[str, Any]:
        """What a request does to a session that is a dict."""
        match what.partition("-"):
            case ("login", _, _):
                if self.side == "coatcheck":
                    session.regenerate("ada")
                session["user"] = "ada"
            case ("logout", _, _):
                (session.close if self.side == "coatcheck" else session.clear)()
            case ("put", _, key):
                session[key] = {"much": MUCH, "kinds": KINDS}.get(key, True)
        return self.seen(session, session.get("user"))

    def seen(self, session: Any, user: str | None) -> dict[str, Any]:
        keys = sorted(key for key in ("a", "b", "much", "kinds") if key in session)
        kept = session.get("kinds") == KINDS and type(session["kinds"][0]) is tuple
        return {"user": user, "keys": keys, "much": session.get("much") == MUCH, "kinds": kept}


class Browser:
    """Keeps cookies as browsers do; each tab of it is one more request at once."""

    def __init__(self, cookies: dict[str, str] | None = None) -> None:
        self.cookies = dict(cookies or {})

    async def get(self, shop: Any, what: str) -> dict[str, Any]:
        """What the shop shows; nothing, if it fails."""
        header = "; ".join(f"{name}={value}" for name, value in self.cookies.items())
        status, lines, body = await shop.call(f"/{what}", header)
        for line in lines:
            self._take(line)
        if status != 200:
            print(f"/{what}: {status}", bytes(body)[:500])  # shown with a test that fails
        return json.loads(body) if status == 200 else {}

    def _take(self, line: str) -> None:
        pair, *attributes = line.split(";")
        name, _, value = pair.partition("=")
        said = dict(each.strip().lower().partition("=")[::2] for each in attributes)
        if said.get("max-age") == "0" or ("expires" in said and _is_over(said["expires"])):
            self.cookies.pop(name.strip(), None)
        elif len(line) <= BROWSERS_TAKE:
            self.cookies[name.strip()] = value.strip().strip('"')


def _is_over(expires: str) -> bool:
    return parsedate_to_datetime(expires) < datetime.now(UTC)


# -- how an app is called -------------------------------------------------------------------------------

Answer = tuple[int, list[str], bytes]


async def call_wsgi(app: Any, path: str, cookies: str) -> Answer:
    """In a thread of its own, as a server's."""
    environ = {
        "REQUEST_METHOD": "GET", "PATH_INFO": path, "SCRIPT_NAME": "", "QUERY_STRING": "",
        "SERVER_NAME": "shop.example",
        "SERVER_PORT": "443", "SERVER_PROTOCOL": "HTTP/1.1", "REMOTE_ADDR": "10.0.0.1", "HTTP_HOST": "shop.example",
        "HTTP_COOKIE": cookies, "wsgi.version": (1, 0), "wsgi.url_scheme": "https", "wsgi.input": io.BytesIO(),
        "wsgi.errors": sys.stderr, "wsgi.multithread": True, "wsgi.multiprocess": True, "wsgi.run_once": False,
    }  # fmt: skip
    said: list[Any] = []

    def run() -> bytes:
        body = app(environ, lambda status, headers, exc_info=None: said.extend([status, headers]))
        try:
            return b"".join(body)
        finally:
            getattr(body, "close", lambda: None)()

    body = await asyncio.to_thread(run)
    return int(said[0][:3]), [value for name, value in said[1] if name.lower() == "set-cookie"], body


async def call_asgi(app: Any, path: str, cookies: str) -> Answer:
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "https",
        "path": path, "raw_path": path.encode(), "root_path": "", "query_string": b"", "client": ("10.0.0.1", 1),
        "server": ("shop.example", 443), "headers": [(b"host", b"shop.example"), (b"cookie", cookies.encode())],
        "state": {}, "extensions": {},
    }  # fmt: skip
    sent: list[Any] = []
    asked = [{"type": "http.request", "body": b"", "more_body": False}]
    hung_up: asyncio.Future[Any] = asyncio.get_running_loop().create_future()

    async def receive() -> Any:
        return asked.pop() if asked else await hung_up

    async def send(message: Any) -> None:
        sent.append(message)

    try:
        await app(scope, receive, send)
    except TypeError:  # what cannot be stored; a server answers 500
        return 500, [], b""
    lines = [value.decode() for name, value in sent[0]["headers"] if name.lower() == b"set-cookie"]
    return sent[0]["status"], lines, b"".join(message.get("body", b"") for message in sent[1:])


class Shop:
    """An app of this interface."""

    def __init__(self, farm: Farm, keys: list[str]) -> None:
        self.farm = farm
        self.keys = keys
        farm.webs += 1
        self.name = f"web-{farm.webs}"
        self.app: Any = self.make()

    def make(self) -> Any:
        raise NotImplementedError

    async def call(self, path: str, cookies: str) -> Answer:
        return await call_asgi(self.app, path, cookies)

    async def act(self, session: Any, what: str) -> dict[str, Any]:
        session.get("user")
        if what.startswith("slow-"):
            await self.farm.during()
            what = what.removeprefix("slow-")
        return self.farm.act(session, what)


# -- the frameworks --------------------------------------------------------------------------------------


class DjangoShop(Shop):
    """Its own: the engine of the database, with ``login`` and ``logout``."""

    def make(self) -> Any:
        self.loop = asyncio.get_running_loop()
        ours = self.farm.side == "coatcheck"
        place = f"sqlite:///{self.farm.folder}/sessions.db"
        self.settings: Any = {
            "SECRET_KEY": self.keys[0],
            "SECRET_KEY_FALLBACKS": self.keys[1:],
            "ROOT_URLCONF": type("urls", (), {"urlpatterns": [django_path("<what>", self.view)]}),
            "SESSION_ENGINE": "coatcheck.web.django" if ours else "django.contrib.sessions.backends.db",
            "MIDDLEWARE": [
                "coatcheck.web.django.SessionMiddleware"
                if ours
                else "django.contrib.sessions.middleware.SessionMiddleware",
                "django.contrib.auth.middleware.AuthenticationMiddleware",
            ],
            "COATCHECK": {"session_servers": [place], "server": self.name, "rotate_after_s": 0, "grace_s": 0.1},
        }
        if ours:
            self.farm.ending.append(self.close)
        with override_settings(**self.settings):
            return get_wsgi_application()

    async def close(self) -> None:
        """The sessions that these settings have made in this process."""
        for known in [known for known in configuration._made if str(self.farm.folder) in known]:
            await asyncio.to_thread(configuration._made.pop(known).close)

    async def call(self, path: str, cookies: str) -> Answer:
        with override_settings(**self.settings):
            return await call_wsgi(self._run, path, cookies)

    def _run(self, environ: Any, start: Any) -> Any:
        try:
            return [b"".join(self.app(environ, start))]
        finally:
            connections.close_all()

    def view(self, request: HttpRequest, what: str) -> JsonResponse:
        request.session.get("user")
        if what.startswith("slow-"):
            asyncio.run_coroutine_threadsafe(self.farm.during(), self.loop).result()
            what = what.removeprefix("slow-")
        if what == "login":
            login(request, User.objects.get(username="ada"))
        elif what == "logout":
            logout(request)
        elif what.startswith("put-"):
            self.farm.act(request.session, what)
        return JsonResponse(self.farm.seen(request.session, request.user.get_username() or None))


class FlaskShop(Shop):
    """Its own: the signed cookie."""

    def make(self) -> Any:
        self.loop = asyncio.get_running_loop()
        app = flask.Flask("shop")
        app.config.update(SECRET_KEY=self.keys[0], SECRET_KEY_FALLBACKS=self.keys[1:])
        if self.farm.side == "coatcheck":
            app.session_interface = SessionInterface(self.farm.sessions(self.keys, driver="threads"))
        app.get("/<what>")(self.view)
        return app

    def view(self, what: str) -> dict[str, Any]:
        flask.session.get("user")
        if what.startswith("slow-"):
            asyncio.run_coroutine_threadsafe(self.farm.during(), self.loop).result()
            what = what.removeprefix("slow-")
        return self.farm.act(flask.session, what)

    async def call(self, path: str, cookies: str) -> Answer:
        return await call_wsgi(self.app, path, cookies)


class QuartShop(Shop):
    """Its own: the signed cookie."""

    def make(self) -> Any:
        app = quart.Quart("shop")
        app.config.update(SECRET_KEY=self.keys[0], SECRET_KEY_FALLBACKS=self.keys[1:])
        if self.farm.side == "coatcheck":
            app.session_interface = QuartSessionInterface(self.farm.sessions(self.keys))
        app.get("/<what>")(self.view)
        return app

    async def view(self, what: str) -> dict[str, Any]:
        return await self.act(quart.session, what)


class StarletteShop(Shop):
    """Its own: the signed cookie of its middleware, which FastAPI has as well."""

    def make(self) -> Any:
        if self.farm.side == "coatcheck":
            middleware = Middleware(SessionMiddleware, sessions=self.farm.sessions(self.keys))
        else:
            middleware = Middleware(StarlettesMiddleware, secret_key=self.keys[0])
        return Starlette(routes=[Route("/{what}", self.view)], middleware=[middleware])

    async def view(self, request: Request) -> JSONResponse:
        return JSONResponse(await self.act(request.session, request.path_params["what"]))


class LitestarShop(Shop):
    """Its own: ``ServerSideSessionConfig``, in files."""

    def make(self) -> Any:
        files = FileStore(self.farm.folder / "sessions", create_directories=True)
        config: Any = ServerSideSessionConfig()
        if self.farm.side == "coatcheck":
            config = ServerSideSession(self.farm.sessions(self.keys))

        @litestar.get("/{what:str}")
        async def view(request: litestar.Request[Any, Any, Any], what: str) -> dict[str, Any]:
            return await self.act(request.session, what)

        return litestar.Litestar(
            [view], middleware=[config.middleware], stores={"sessions": files}, openapi_config=None
        )


class AiohttpShop(Shop):
    """Its own: the encrypted cookie of ``aiohttp_session``."""

    def make(self) -> Any:
        self.server: TestServer | None = None
        app = web.Application()
        if self.farm.side == "coatcheck":
            setup(app, self.farm.sessions(self.keys))
        else:
            aiohttp_session.setup(app, EncryptedCookieStorage(self.keys[0].encode()[:32]))
        app.add_routes([web.get("/{what}", self.view)])
        return app

    async def view(self, request: web.Request) -> web.Response:
        if self.farm.side == "coatcheck":
            session = request["session"]
        else:
            session = await aiohttp_session.get_session(request)
        return web.json_response(await self.act(session, request.match_info["what"]))

    async def call(self, path: str, cookies: str) -> Answer:
        if self.server is None:
            self.server = TestServer(self.app)
            await self.server.start_server()
            self.farm.ending.insert(0, self.server.close)
        headers = {"Cookie": cookies} if cookies else {}
        jar = aiohttp.DummyCookieJar()
        async with (
            aiohttp.ClientSession(cookie_jar=jar, max_line_size=1 << 16, max_field_size=1 << 16) as client,
            client.get(self.server.make_url(path), headers=headers) as answer,
        ):
            return answer.status, answer.headers.getall("Set-Cookie", []), await answer.read()


SHOPS: dict[str, type[Shop]] = {
    "Django": DjangoShop,
    "Flask": FlaskShop,
    "Quart": QuartShop,
    "Starlette, FastAPI": StarletteShop,
    "Litestar": LitestarShop,
    "aiohttp": AiohttpShop,
}
