"""A farm of the mission's app, its browsers, and what its session servers hold, read with the farm's own key ring."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import msgspec

from coatcheck.farm.files.keys import load
from coatcheck.replication.entry import Entry
from coatcheck.replication.placement import Copies, Placement
from coatcheck.sessions.record import Record, decode_data, decode_record
from coatcheck.stores.port import Unreachable
from coatcheck.stores.session_server_store import SessionServerStore
from coatcheck.tokens.keyring import KeyRing, PayloadSealer
from coatcheck.tokens.sealed import SealedToken, TokenCodec
from farm.farm_process import Farm, eventually

COOKIE = "coatcheck"
ROUTE_COOKIE = "coatcheck-route"
FARM_NAME = "farm"
READ_TIMEOUT_S = 20.0
SCAN_STEP = 256
PLAIN: dict[str, Any] = {"verify": False, "trust_env": False}
"""Plain HTTP on loopback: a client need not load the certificates of the world."""

APP = """
import os
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

def answer(request):
    return JSONResponse({"data": dict(request.session), "server": os.environ["COATCHECK_SERVER"]})

async def read(request):
    return answer(request)

async def put(request):
    request.session[request.path_params["name"]] = await request.json()
    return answer(request)

async def delete(request):
    del request.session[request.path_params["name"]]
    return answer(request)

async def append(request):
    request.session.setdefault("nested", {}).setdefault("list", [])
    request.session["nested"]["list"].append(request.path_params["name"])
    return answer(request)

async def append_deep(request):
    # Only a nested value changes: the session's own methods see a read.
    request.session["nested"]["list"].append(request.path_params["name"])
    return answer(request)

async def logout(request):
    request.session.close()
    return JSONResponse({"server": os.environ["COATCHECK_SERVER"]})

app = Starlette(routes=[
    Route("/", read),
    Route("/{name}", put, methods=["PUT"]),
    Route("/{name}", delete, methods=["DELETE"]),
    Route("/logout", logout, methods=["POST"]),
    Route("/append/{name}", append, methods=["POST"]),
    Route("/append-deep/{name}", append_deep, methods=["POST"]),
])
"""


class Stored(msgspec.Struct, frozen=True):
    """One copy on one session server; ``record`` is opened with the key ring, ``None`` for a tombstone."""

    entry: Entry
    record: Record | None

    @property
    def closed(self) -> bool:
        return self.entry.closed

    @property
    def data(self) -> dict[str, Any] | None:
        return decode_data(self.record.data) if self.record is not None else None


Holdings = dict[str, dict[bytes, Stored]]
"""By session server: what it holds, by session key."""


class MissionFarm(Farm):
    """A running farm of the mission's app, with plain-HTTP cookies and patience for frozen and busy processes."""

    def __init__(self, directory: Path, arguments: tuple[str, ...]) -> None:
        (directory / "mission_app.py").write_text(APP)
        standard = ("mission_app:app", "--port", "0", "--insecure-localhost", "--stop-grace", "5")
        patience = ("--unresponsive-after", "60", "--store-timeout", "5s")
        super().__init__(directory, (*standard, *patience, *arguments), {})

    def wait_running(self) -> None:
        super().wait_running()
        keys = load(self.directory / ".coatcheck/keys.json")
        ring = KeyRing(keys.keys, keys.primary)
        self.ring = ring
        self._password = keys.session_server_password
        self._sealer = PayloadSealer(ring, FARM_NAME, os.urandom)
        self.codec = TokenCodec(ring, "anonymous", FARM_NAME, os.urandom)
        self._base = super().base

    @property
    def base(self) -> str:
        return self._base

    def names(self, group: str) -> list[str]:
        """The names of all processes of a group: ``web``, ``session`` or ``director``."""
        return [row["name"] for row in self.note()["processes"] if row["name"].startswith(f"{group}-")]

    def socket_of(self, name: str) -> str:
        """The path of the Unix socket that a process of the farm listens on."""
        address = str(next(row["address"] for row in self.note()["processes"] if row["name"] == name))
        assert address.startswith("unix:"), address
        return address.removeprefix("unix:")

    def url_of(self, server: str) -> str:
        """Where a client of :meth:`client` reaches one web server, past the director.

        All have one host, so that a browser shows its cookies to each; the port is the web server's number.
        """
        return f"http://127.0.0.1:{server.removeprefix('web-')}"

    def client(self, **options: Any) -> httpx.Client:
        """A client that reaches the director and, at :meth:`url_of`, each web server by its socket."""
        mounts = {self.url_of(name): httpx.HTTPTransport(uds=self.socket_of(name)) for name in self.names("web")}
        return httpx.Client(mounts=mounts, **options)

    def status(self) -> dict[str, Any]:
        """The status, once every process that is ready has answered (in time, which a busy one need not at once)."""

        def answered() -> dict[str, Any] | None:
            found = super(MissionFarm, self).status()
            rows = found["director"] + found["web_servers"] + found["session_servers"]
            return found if all(row["healthy"] for row in rows if row["state"] == "ready") else None

        found: dict[str, Any] = eventually(answered, "the answer of every process")
        return found

    def web_status(self) -> dict[str, dict[str, Any]]:
        return {row["name"]: row for row in self.status()["web_servers"]}

    def kill(self, *names: str) -> dict[str, int]:
        """SIGKILL, all at once; returns the pids that they had."""
        pids = {name: self.pid(name) for name in names}
        for pid in pids.values():
            os.kill(pid, signal.SIGKILL)
        return pids

    @contextlib.contextmanager
    def frozen(self, *names: str) -> Iterator[None]:
        """SIGSTOP at entry, SIGCONT at exit."""
        pids = [self.pid(name) for name in names]
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            yield
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)

    # -- what the session servers hold -----------------------------------------------------------

    def placement(self, copies: Copies) -> Placement:
        return Placement(self.names("session"), copies)

    def holdings(self, *servers: str) -> Holdings:
        """Everything that the given session servers (all, if none is given) hold, read from them directly."""
        return asyncio.run(self._holdings(list(servers) or self.names("session")))

    def copies_of(self, key: bytes, *servers: str) -> dict[str, Stored]:
        """The copies of one session, by session server."""
        found = self.holdings(*servers)
        return {server: held[key] for server, held in found.items() if key in held}

    async def _holdings(self, servers: list[str]) -> Holdings:
        return dict(zip(servers, await asyncio.gather(*(self._read(server) for server in servers)), strict=True))

    async def _read(self, server: str) -> dict[bytes, Stored]:
        store = SessionServerStore(
            server, path=self.socket_of(server), password=self._password, timeout_s=READ_TIMEOUT_S
        )
        await store.open()
        try:
            held: dict[bytes, Stored] = {}
            cursor, first = 0, True
            while cursor or first:
                cursor, keys = await _ask(store.scan, cursor, SCAN_STEP)
                first = False
                for key in keys:
                    entry = await _ask(store.get, key)
                    if entry is not None:
                        held[key] = self._opened(key, entry)
            return held
        finally:
            await store.aclose()

    def _opened(self, key: bytes, entry: Entry) -> Stored:
        body = self._sealer.unseal(key, entry.header(), entry.payload)
        return Stored(entry, None if entry.closed else decode_record(body))


async def _ask(method: Callable[..., None], *arguments: object) -> Any:
    future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    method(*arguments, future.set_result)
    reply = await future
    assert not isinstance(reply, Unreachable), f"a session server does not answer: {reply.why}"
    return reply


class Browser:
    """A browser: one client through the director, or straight at one web server of the farm."""

    def __init__(self, farm: MissionFarm, server: str | None = None, timeout_s: float = 60.0) -> None:
        self._farm = farm
        base = farm.base if server is None else farm.url_of(server)
        self.client = farm.client(base_url=base, timeout=timeout_s, **PLAIN)

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.client.close()

    # -- requests --------------------------------------------------------------------------------

    def request(self, method: str, path: str, **more: Any) -> httpx.Response:
        response = self.client.request(method, path, **more)
        assert response.status_code == 200, f"{method} {path}: {response.status_code} {response.text}"
        return response

    def put(self, name: str, value: Any) -> dict[str, Any]:
        answer: dict[str, Any] = self.request("PUT", f"/{name}", json=value).json()
        return answer

    def read(self) -> dict[str, Any]:
        answer: dict[str, Any] = self.request("GET", "/").json()
        return answer

    # -- the cookie ------------------------------------------------------------------------------

    @property
    def cookie(self) -> str:
        """The sealed token that this browser holds."""
        held = [each.value for each in self.client.cookies.jar if each.name == COOKIE]
        assert len(held) == 1, f"the browser holds {len(held)} session cookies"
        assert held[0]
        return held[0]

    @property
    def token(self) -> SealedToken:
        """The cookie's content, opened with the farm's key ring."""
        return self._farm.codec.open(self.cookie.encode())

    @property
    def key(self) -> bytes:
        return self.token.key


def show(farm: MissionFarm, cookie: str, server: str | None = None) -> httpx.Response:
    """One GET of a browser that holds this cookie and nothing else, at the director or at one web server."""
    base = farm.base if server is None else farm.url_of(server)
    with farm.client(timeout=60.0, **PLAIN) as client:
        return client.get(f"{base}/", headers={"Cookie": f"{COOKIE}={cookie}"})


def new_cookie(response: httpx.Response) -> str | None:
    """The session cookie that a response sets, if it sets one."""
    for header in response.headers.get_list("set-cookie"):
        name, _, rest = header.partition("=")
        if name == COOKIE:
            return str(rest.partition(";")[0])
    return None
