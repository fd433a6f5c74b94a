"""A farm from ``coatcheck serve``, and browsers that lose, repeat and copy what real ones do.

Browsers have the methods of those in ``two_servers.py``; requests go over real sockets, through the director, to the
web server that they name.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from coatcheck.farm.files.keys import load_or_create
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SealedToken, TokenCodec
from farm.farm_process import Farm

TIMEOUT_S = 60.0
"""For one answer; it costs nothing when things go well."""
TRIES, RETRY_S = 100, 0.2
"""Of a request that is refused for now."""
MAX_KEPT = 200
"""Connections without a request; the director lets one address have about a thousand."""
WEB_SERVERS = 2

APP = """
import asyncio, os
from starlette.applications import Starlette
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse
from starlette.routing import Route

SERVER = os.environ["COATCHECK_SERVER"]
begun = {}

def has_begun(request):
    return begun.setdefault(request.query_params["gate"], asyncio.Event())

def told(request, **more):
    session = request.session
    return JSONResponse({"user": session.user, "data": dict(session), "lost": session.lost, **more})

async def show(request):
    return told(request)

async def put(request):
    key = request.query_params.get("key", "n")
    request.session[key] = request.session.get(key, 0) + 1
    return told(request)

async def slow(request):
    has_begun(request).set()
    await request.body()
    if request.method == "POST":
        request.session["slow"] = "done"
    return told(request)

async def wait_begun(request):
    await has_begun(request).wait()
    del begun[request.query_params["gate"]]
    return PlainTextResponse("begun")

async def login(request):
    request.session.regenerate(request.query_params.get("user", "ada"))
    return told(request)

async def logout(request):
    request.session.close()
    return JSONResponse({"user": None, "data": {}})

async def devices(request):
    found = await request.session.devices()
    return JSONResponse([{"id": one.id, "this": one.current, "device": one.device} for one in found])

async def close_device(request):
    return JSONResponse({"closed": await request.session.close_device(request.query_params["id"])})

async def close_others(request):
    return JSONResponse({"closed": await request.session.close_other_devices()})

async def plain(request):
    return PlainTextResponse(SERVER)

async def headers(request):
    return JSONResponse({name: value for name, value in request.headers.items()})

async def breaks(request):
    request.session["secret"] = "4929-1234-5678-9012"
    raise RuntimeError("the app fails")

ALL = ["GET", "POST"]
app = Starlette(routes=[
    Route("/", show, methods=ALL), Route("/put", put, methods=["POST"]), Route("/slow", slow, methods=ALL),
    Route("/begun", wait_begun), Route("/login", login, methods=["POST"]), Route("/logout", logout, methods=["POST"]),
    Route("/devices", devices), Route("/close-device", close_device, methods=ALL),
    Route("/close-others", close_others, methods=ALL), Route("/plain", plain), Route("/headers", headers),
    Route("/breaks", breaks, methods=ALL),
])
"""
NOT_SECURE = ("--insecure-localhost",)


class Answer:
    """``cookies``: what it sets; an empty value deletes. ``lines``: its Set-Cookie headers as they stand."""

    def __init__(self, status: int, headers: list[tuple[str, str]], raw: bytes) -> None:
        self.status = status
        self.headers = headers
        self.text = raw.decode(errors="replace")
        self.lines = self.all("set-cookie")
        self.cookies: dict[str, str] = {}
        for line in self.lines:
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = "" if "max-age=0" in line.lower().replace(" ", "") else value

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found == name]

    def one(self, name: str) -> str:
        return ", ".join(self.all(name))

    @property
    def body(self) -> Any:
        assert self.one("content-type").startswith("application/json"), f"{self.status} {self.text}"
        return json.loads(self.text)

    @property
    def data(self) -> Any:
        return self.body["data"]

    @property
    def user(self) -> Any:
        return self.body["user"]


class Wire:
    """Kept connections to one address; as many at once as are asked for."""

    def __init__(self, host: str, port: int, tls: ssl.SSLContext | None = None) -> None:
        self._address = (host, port)
        self._tls = tls
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def exchange(self, request: bytes) -> Answer:
        """On a kept connection if there is one; if that was closed meanwhile, on another one (RFC 9112, 9.3.1)."""
        while self._idle:
            reader, writer = self._idle.pop()
            if reader.at_eof() or writer.is_closing():
                continue
            try:
                writer.write(request)
                return await Held(self, reader, writer).finish()
            except ConnectionResetError:
                continue
            except asyncio.IncompleteReadError as closed:
                if closed.partial:
                    raise
        return await (await self.begin(request)).finish()

    async def begin(self, request: bytes) -> Held:
        """On a connection of its own."""
        name = "127.0.0.1" if self._tls else None
        async with asyncio.timeout(TIMEOUT_S):
            reader, writer = await asyncio.open_connection(*self._address, ssl=self._tls, server_hostname=name)
            writer.write(request)
            await writer.drain()
        return Held(self, reader, writer)

    def keep(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if len(self._idle) < MAX_KEPT:
            self._idle.append((reader, writer))
        else:
            writer.close()

    def close(self) -> None:
        for _, writer in self._idle:
            writer.close()
        self._idle = []


class Held:
    """A request whose answer is not read yet, and whose body may not be complete."""

    def __init__(self, wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._wire, self._reader, self._writer = wire, reader, writer

    async def finish(self, rest: bytes = b"") -> Answer:
        async with asyncio.timeout(TIMEOUT_S):
            self._writer.write(rest)
            lines = (await self._reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
            pairs = (line.partition(":") for line in lines[1:] if line)
            headers = [(name.strip().lower(), value.strip()) for name, _, value in pairs]
            fields = dict(headers)
            if fields.get("transfer-encoding", "").lower() == "chunked":
                body = b""
                while size := int((await self._reader.readuntil(b"\r\n")).split(b";")[0], 16):
                    body += (await self._reader.readexactly(size + 2))[:-2]
                await self._reader.readuntil(b"\r\n")
            else:
                body = await self._reader.readexactly(int(fields.get("content-length", "0")))
        if fields.get("connection", "").lower() == "close":
            self._writer.close()
        else:
            self._wire.keep(self._reader, self._writer)
        return Answer(int(lines[0].split(" ", 2)[1]), headers, body)

    def cut(self) -> None:
        """Nobody reads the answer."""
        self._writer.transport.abort()


class RealFarm:
    """Web servers 1 and 2 of a running farm. ``wire`` belongs to one event loop: :meth:`told` makes one for a story."""

    def __init__(self, directory: Path, *arguments: str, secure: bool = False, **env: str) -> None:
        (directory / "checked.py").write_text(APP)
        standard = ("checked:app", "--port", "0", "--stop-grace", "5", "--web", str(WEB_SERVERS))
        self.farm = Farm(directory, (*standard, *(() if secure else NOT_SECURE), *arguments), env)
        self.directory = directory
        self.tls: ssl.SSLContext | None = None
        self.prefix = "__Host-" if secure else ""
        self.routes: dict[int, str] = {}
        self.wire: Wire = Wire("", 0)

    @property
    def cookie(self) -> str:
        return f"{self.prefix}coatcheck"

    @property
    def login_cookie(self) -> str:
        return f"{self.prefix}coatcheck-login"

    def wait(self) -> None:
        self.farm.wait_running()
        asyncio.run(self._learn_routes())

    async def _learn_routes(self) -> None:
        with self.connected():
            while len(self.routes) < WEB_SERVERS:  # without a route the director takes turns
                answer = await self.wire.exchange(request_bytes("GET", "/plain", {}, {}))
                name = next(name for name in answer.cookies if name.endswith("-route"))
                self.routes[int(answer.text.removeprefix("web-"))] = f"{name}={answer.cookies[name]}"

    @contextmanager
    def connected(self) -> Iterator[None]:
        host, port = self.farm.note()["address"].rsplit(":", 1)
        self.wire = Wire(host, int(port), self.tls)
        try:
            yield
        finally:
            self.wire.close()

    @cached_property
    def ring(self) -> KeyRing:
        """The farm's own, from its run directory."""
        return KeyRing(list(load_or_create(self.directory / ".coatcheck" / "keys.json", {}).keys))

    def codec(self, login: bool = False, ring: KeyRing | None = None, farm: str = "farm") -> TokenCodec:
        return TokenCodec(ring or self.ring, "login" if login else "anonymous", farm, os.urandom)

    def audit(self) -> list[dict[str, Any]]:
        """The audit records of all web servers, as they lie in the files."""
        files = sorted((self.directory / ".coatcheck" / "audit").glob("*.jsonl*"))
        found = [json.loads(line) for path in files for line in path.read_text().splitlines()]
        return sorted(found, key=lambda record: str(record["time"]))

    def thefts(self) -> list[dict[str, Any]]:
        return [record for record in self.audit() if record["event"] == "session.theft"]

    def end(self) -> None:
        self.farm.end()


def request_bytes(
    method: str, path: str, cookies: Mapping[str, str], headers: Mapping[str, str], body: int = 0
) -> bytes:
    """Without its body, which has ``body`` bytes."""
    lines = [f"{method} {path} HTTP/1.1", "host: 127.0.0.1", f"content-length: {body}"]
    if cookies:
        lines.append("cookie: " + "; ".join(f"{name}={value}" for name, value in cookies.items()))
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode("latin-1")


class Browser:
    """A cookie jar. ``send`` leaves it as it is: the response may be lost; ``get`` and ``post`` take the answer."""

    def __init__(self, farm: RealFarm, jar: Mapping[str, str] | None = None) -> None:
        self.farm = farm
        self.jar = dict(jar or {})

    def request(self, server: int, method: str, path: str, headers: Mapping[str, str], body: int = 0) -> bytes:
        route, _, where = self.farm.routes[server].partition("=")
        return request_bytes(method, path, {**self.jar, route: where}, headers, body)

    async def send(self, server: int, method: str, path: str = "/", **headers: str) -> Answer:
        return await self.farm.wire.exchange(self.request(server, method, path, headers))

    async def served(self, server: int, method: str, path: str = "/") -> Answer:
        """The same; where nothing was promised (503, Retry-After), the browser tries again."""
        for _ in range(TRIES):
            answer = await self.send(server, method, path)
            if answer.status != 503:
                break
            await asyncio.sleep(RETRY_S)
        return answer

    async def begin(self, server: int, method: str, path: str = "/", body: int = 0) -> Held:
        return await self.farm.wire.begin(self.request(server, method, path, {}, body))

    async def begin_slow(self, server: int, method: str) -> Held:
        """The app has begun with it, and waits for the second of its body's two bytes."""
        gate = os.urandom(8).hex()
        held = await self.farm.wire.begin(self.request(server, method, f"/slow?gate={gate}", {}, 2) + b"a")
        begun = await Browser(self.farm).send(server, "GET", f"/begun?gate={gate}")
        assert begun.text == "begun", f"{begun.status} {begun.text}"
        return held

    def take(self, answer: Answer) -> Answer:
        for name, value in answer.cookies.items():
            if value:
                self.jar[name] = value
            else:
                self.jar.pop(name, None)
        return answer

    async def get(self, server: int, path: str = "/") -> Answer:
        return self.take(await self.served(server, "GET", path))

    async def post(self, server: int, path: str) -> Answer:
        return self.take(await self.served(server, "POST", path))

    async def put(self, server: int) -> Answer:
        return await self.post(server, "/put")

    def copy(self) -> Browser:
        """Somebody else with the same cookies: a thief, or another tab before either has an answer."""
        return Browser(self.farm, self.jar)

    def token(self, login: bool = False) -> SealedToken:
        name = self.farm.login_cookie if login else self.farm.cookie
        return self.farm.codec(login).open(self.jar[name].encode())


def token_ids(farm: RealFarm, answers: Iterable[Answer]) -> set[bytes]:
    """The IDs of the anonymous tokens that the answers carry."""
    codec = farm.codec()
    return {
        codec.open(answer.cookies[farm.cookie].encode()).session_id
        for answer in answers
        if farm.cookie in answer.cookies
    }


async def shopper(farm: RealFarm, server: int = 1) -> Browser:
    """A browser with a session that holds ``n = 1``."""
    browser = Browser(farm)
    answer = await browser.put(server)
    assert answer.data == {"n": 1}
    return browser
