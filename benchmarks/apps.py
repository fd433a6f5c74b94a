"""The apps under test: one small app, and the session middlewares around it. ``VARIANT`` chooses one.

Every variant freezes what start-up made (``gc.freeze``), as a farm's web server does.
"""

from __future__ import annotations

import contextlib
import gc
import os
from collections.abc import AsyncIterator
from typing import Any

from coatcheck.drivers.sessions import Sessions
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.stores.port import Store
from coatcheck.tokens.keyring import KeyRing
from coatcheck.web.asgi import SessionMiddleware

SECRET = "a benchmark's secret of 32 bytes"
HEAD = [(b"content-type", b"text/plain; charset=utf-8"), (b"content-length", b"2")]


def fresh() -> dict[str, Any]:
    """A session of 430 bytes (JSON)."""
    cart = [{"sku": f"sku-{number:06d}", "quantity": number % 5 + 1, "price": 1990 + number} for number in range(6)]
    return {
        "user": "u-1844674407",
        "name": "Ada, Countess Lovelace",
        "theme": "dark",
        "locale": "en_GB",
        "cart": cart,
        "n": 0,
    }


def touch(path: str, session: dict[str, Any]) -> str:
    if path == "/rw":
        session["n"] = session.get("n", 0) + 1
    elif path == "/ro":
        session.get("n")
    elif path == "/count":
        return str(session.get("n", 0))
    else:
        session.update(fresh())
    return "ok"


# -- coatcheck -----------------------------------------------------------------------------------


def open_stores() -> list[Store]:
    """``STORES``: ``session-server`` or ``redis`` and the ports."""
    kind, *ports = os.environ["STORES"].split()
    if kind == "redis":
        from coatcheck.stores.valkey import ValkeyStore

        return [ValkeyStore(f"s{port}", f"redis://127.0.0.1:{port}") for port in ports]
    from coatcheck.stores.session_server_store import SessionServerStore

    return [SessionServerStore(f"s{port}", "127.0.0.1", int(port)) for port in ports]


def coatcheck_options() -> dict[str, Any]:
    """As a farm's web server has them: two copies, durability ``all``, the route cookie."""
    sessions = Sessions(farm="bench", server_name="web-1", stores=open_stores(), ring=KeyRing([SECRET.encode()]))
    return {"sessions": sessions, "cookies": CookiePolicy(insecure_localhost=True), "route_tag": "web-1"}


def freeze() -> None:
    """What start-up made lives as long as the process: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(int(os.environ.get("GC_THRESHOLD", "700")), 10, 10)


# -- Starlette -----------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def frozen(app: Any) -> AsyncIterator[None]:
    freeze()
    yield


def starlette_app(peer: str) -> Any:
    from starlette.applications import Starlette
    from starlette.middleware import Middleware
    from starlette.requests import Request
    from starlette.responses import PlainTextResponse, Response
    from starlette.routing import Route

    async def bare(request: Request) -> Response:
        return PlainTextResponse("ok")

    async def with_session(request: Request) -> Response:
        return PlainTextResponse(touch(request.scope["path"], request.session))

    layers: list[Middleware] = []
    if peer == "signed":
        from starlette.middleware.sessions import SessionMiddleware as SignedCookie

        layers = [Middleware(SignedCookie, secret_key=SECRET)]
    elif peer == "starsessions":
        from redis.asyncio import Redis
        from starsessions import SessionAutoloadMiddleware
        from starsessions import SessionMiddleware as Starsessions
        from starsessions.stores.redis import RedisStore

        store = RedisStore(connection=Redis(port=int(os.environ["STORES"].split()[1]), max_connections=512))
        layers = [Middleware(Starsessions, store=store, lifetime=3600, cookie_https_only=False)]
        layers.append(Middleware(SessionAutoloadMiddleware))
    elif peer == "coatcheck":
        layers = [Middleware(SessionMiddleware, **coatcheck_options())]
    answer = with_session if layers else bare
    routes = [Route(path, answer) for path in ("/start", "/ro", "/rw", "/count")]
    return Starlette(routes=routes, middleware=layers, lifespan=frozen)


# -- raw ASGI ------------------------------------------------------------------------------------


async def raw(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "lifespan":
        await lifespan(receive, send)
        return
    body = b"ok"
    if "session" in scope:
        body = touch(scope["path"], scope["session"]).encode()
    headers = HEAD if len(body) == 2 else [HEAD[0], (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


async def lifespan(receive: Any, send: Any) -> None:
    while True:
        message = await receive()
        if message["type"] == "lifespan.startup":
            freeze()
        await send({"type": f"{message['type']}.complete"})
        if message["type"] == "lifespan.shutdown":
            return


def raw_app(peer: str) -> Any:
    if peer == "signed":
        from starlette.middleware.sessions import SessionMiddleware as SignedCookie

        signed = SignedCookie(raw, secret_key=SECRET)

        async def ends_lifespan(scope: Any, receive: Any, send: Any) -> None:
            await (raw if scope["type"] == "lifespan" else signed)(scope, receive, send)

        return ends_lifespan
    return SessionMiddleware(raw, **coatcheck_options()) if peer == "coatcheck" else raw


def counter() -> Any:
    """The app of :mod:`benchmarks.kill`, which a farm gives its sessions."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

    async def answer(request: Request) -> Response:
        path = request.scope["path"]
        touch(path, request.session)
        return JSONResponse(request.session.get("n"))

    paths = ("/start", "/ro", "/rw", "/count")
    return Starlette(routes=[Route(path, answer, methods=["GET", "POST"]) for path in paths])


def make(variant: str) -> Any:
    """``starlette-signed``, ``raw-coatcheck`` and so on."""
    frame, _, peer = variant.partition("-")
    return starlette_app(peer) if frame == "starlette" else raw_app(peer)


if "VARIANT" in os.environ:
    app = make(os.environ["VARIANT"])
