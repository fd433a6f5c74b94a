"""``request.session`` behaves as Starlette's: the same app, the same requests, under both middlewares."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.middleware.sessions import SessionMiddleware as StarletteMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from coatcheck.drivers.sessions import Sessions
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.keyring import KeyRing
from coatcheck.web.asgi import SessionMiddleware

DATA = {"n": 1, "name": "Ada", "cart": [{"sku": "tea"}], "flags": {"dark": True}, "none": None, "empty": ""}
Step = Callable[[Any], Any]
QUIET = "quiet"
"""What a step returns whose session cannot be shown."""

SAME: dict[str, Step] = {
    "read nothing": lambda s: None,
    "get": lambda s: [s.get("n"), s.get("absent"), s.get("absent", 7)],
    "item": lambda s: s["name"],
    "missing item": lambda s: s["absent"],
    "in": lambda s: ["n" in s, "absent" in s],
    "len, bool": lambda s: [len(s), bool(s)],
    "iterate": lambda s: list(s),
    "keys, values, items": lambda s: [list(s.keys()), list(s.values()), list(s.items())],
    "compare": lambda s: [s == DATA, s != DATA, s == {}],
    "copy": lambda s: s.copy(),
    "or": lambda s: s | {"n": 2},
    "set": lambda s: s.__setitem__("n", 2),
    "set new": lambda s: s.__setitem__("new", {"a": [1, 2.5, True, None, "x"]}),
    "set the same": lambda s: s.__setitem__("n", 1),
    "set unicode": lambda s: s.update({"ключ": "🧥 ça va", "": "\x00\x1f\u2028"}),
    "set large": lambda s: s.__setitem__("large", "x" * 2000),
    "set numbers": lambda s: s.update(big=2**62, small=-(2**62), float=1e300, zero=-0.0),
    "set tuple": lambda s: s.__setitem__("pair", (1, (2, 3))),
    "del": lambda s: s.__delitem__("n"),
    "del missing": lambda s: s.__delitem__("absent"),
    "pop": lambda s: s.pop("n"),
    "pop default": lambda s: s.pop("absent", 3),
    "pop missing": lambda s: s.pop("absent"),
    "popitem": lambda s: s.popitem(),
    "setdefault": lambda s: [s.setdefault("n", 5), s.setdefault("new", 5)],
    "update": lambda s: s.update({"n": 3}, name="Bob"),
    "ior": lambda s: s.__ior__({"n": 4}) and None,
    "clear": lambda s: s.clear(),
    "clear, then set": lambda s: (s.clear(), s.update(fresh=1))[0],
    "swap whole": lambda s: (s.update(cart=[*s["cart"], "x"]), s["cart"])[1],
    "flags": lambda s: [s.accessed, s.modified],
    "flags after a read": lambda s: [s.get("n"), s.accessed, s.modified],
    "flags after a write": lambda s: [s.update(n=2), s.accessed, s.modified],
    "mark": lambda s: [s.mark_modified(), s.accessed, s.modified],
}
NESTED: dict[str, Step] = {
    "append": lambda s: s["cart"].append("x"),
    "deep": lambda s: s["cart"][0].update(sku="coffee"),
    "nested pop": lambda s: s["flags"].pop("dark"),
    "through setdefault": lambda s: s.get("cart").clear(),
}
NOT_STORABLE: dict[str, Any] = {
    "object": object(),
    "set": {1j},
    "function": print,
    "date as a key": {"in": {datetime(2026, 1, 1): 1}},
    "self": None,
    "deep": None,
}


def endpoints(step: Step, framework: str) -> Any:
    async def start(request: Request) -> JSONResponse:
        request.session.update(DATA)
        return JSONResponse(None)

    async def do(request: Request) -> JSONResponse:
        try:
            told = step(request.session)
        except KeyError as error:
            told = f"KeyError {error}"
        return JSONResponse(QUIET if told == QUIET else [told, dict(request.session)])

    async def read(request: Request) -> JSONResponse:
        return JSONResponse(dict(request.session))

    if framework == "fastapi":
        api = FastAPI()
        for path, endpoint in (("/start", start), ("/do", do), ("/read", read)):
            api.add_api_route(path, endpoint, methods=["POST"], response_model=None)
        return api
    routes = [Route(path, call, methods=["POST"]) for path, call in (("/start", start), ("/do", do), ("/read", read))]
    return Starlette(routes=routes)


async def visit(app: Any) -> list[Any]:
    """What a browser sees of ``/start``, ``/do`` and ``/read``."""
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    seen: list[Any] = []
    async with httpx.AsyncClient(transport=transport, base_url="https://farm.example") as client:
        for path in ("/start", "/do", "/read"):
            response = await client.post(path)
            seen.append(response.json() if response.status_code == 200 else response.status_code)
    return seen


def theirs(step: Step, framework: str = "starlette") -> list[Any]:
    app = StarletteMiddleware(endpoints(step, framework), secret_key="s" * 32, https_only=True)
    return asyncio.run(visit(app))


def ours(step: Step, framework: str = "starlette") -> list[Any]:
    async def story() -> list[Any]:
        stores = [MemoryStore(name, time.monotonic) for name in ("one", "two")]
        sessions = Sessions(farm="f", server_name="w", stores=stores, ring=KeyRing([os.urandom(32)]))
        try:
            return await visit(SessionMiddleware(endpoints(step, framework), sessions, CookiePolicy()))
        finally:
            await sessions.aclose()

    return asyncio.run(story())


@pytest.mark.parametrize("name", SAME)
def test_the_same_as_starlette(name: str) -> None:
    seen = ours(SAME[name])
    assert seen == theirs(SAME[name])
    assert len(seen) == 3


@pytest.mark.parametrize("name", ["get", "set new", "clear", "pop missing"])
def test_the_same_under_fastapi(name: str) -> None:
    assert ours(SAME[name], "fastapi") == theirs(SAME[name], "fastapi") == ours(SAME[name])


@pytest.mark.parametrize("name", NESTED)
def test_nested_changes_are_noticed_which_starlette_does_not(name: str) -> None:
    _, done, read = ours(NESTED[name])
    assert read == done[1] != DATA
    assert theirs(NESTED[name])[2] == DATA


def test_a_session_larger_than_a_cookie_is_no_matter() -> None:
    big = "x" * 200_000
    assert ours(lambda s: s.update(big=big))[2]["big"] == big


def unstorable(name: str) -> Any:
    if name == "deep":
        deep: list[Any] = []
        for _ in range(500):
            deep = [deep]
        return deep
    if name == "self":
        loop: list[Any] = []
        loop.append(loop)
        return loop
    return NOT_STORABLE[name]


@pytest.mark.parametrize("name", NOT_STORABLE)
def test_what_cannot_be_stored_is_an_error_for_both_and_changes_nothing(name: str) -> None:
    def step(session: Any) -> str:
        session["bad"] = unstorable(name)
        return QUIET

    assert ours(step) == [None, 500, DATA]
    if name != "deep":  # 500 lists in each other are much for Starlette's cookie too, but it takes them
        assert theirs(step) == [None, 500, DATA]


def broken(session: Any) -> str:
    session["half"] = "done"
    raise RuntimeError("in the middle of it")


def test_what_a_request_did_before_it_failed_is_not_kept_as_in_starlette() -> None:
    app = endpoints(broken, "starlette")
    app.add_middleware(StarletteMiddleware, secret_key="s" * 32, https_only=True)
    assert ours(broken) == asyncio.run(visit(app)) == [None, 500, DATA]


def test_a_logout_counts_even_if_the_request_fails_after_it() -> None:
    def step(session: Any) -> str:
        session.close()
        raise RuntimeError("after the logout")

    assert ours(step) == [None, 500, {}]


@pytest.mark.parametrize(
    ("value", "back"),
    [(b"bytes", b"bytes"), ({1: "one"}, {1: "one"}), (datetime(2026, 1, 1, tzinfo=UTC),) * 2, (2**63, 2**63)],
)
def test_more_than_json_can_be_stored(value: Any, back: Any) -> None:
    found: list[Any] = []

    def step(session: Any) -> str:
        session["value"] = value
        return "stored"

    async def story() -> None:
        stores = [MemoryStore(name, time.monotonic) for name in ("one", "two")]
        sessions = Sessions(farm="f", server_name="w", stores=stores, ring=KeyRing([os.urandom(32)]))

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if not found:
                found.append(step(scope["session"]))
            else:
                found.append(scope["session"]["value"])
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b""})

        transport = httpx.ASGITransport(SessionMiddleware(app, sessions, CookiePolicy()))
        async with httpx.AsyncClient(transport=transport, base_url="https://farm.example") as client:
            await client.get("/")
            await client.get("/")
        await sessions.aclose()

    asyncio.run(story())
    assert found == ["stored", back]
    assert type(found[1]) is type(back)
