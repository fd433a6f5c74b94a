"""A director, web servers and session servers in one process, of which any web server dies at any step.

``PYTHONPATH=tests python -m web.durable_site --walks 100 --seed 8`` walks at random, and says so if a walk fails.

What runs is what ships: the director's machines, the middleware, the helper, the sessions. Between them stand wires
without sockets. A *step* is a word that passes between two of them; a web server that dies at a step never takes it,
and nothing that it does later reaches anybody.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import time
from collections.abc import Callable, Collection
from typing import Any, cast

import msgspec

from coatcheck import CookiePolicy, DurableWebSocket, SessionMiddleware, durable_websocket
from coatcheck.director.rules.actions import Order, Reach, ReleaseServer, ToClient, ToServer
from coatcheck.director.rules.connection import ProxiedConnection
from coatcheck.director.rules.durable_socket import DurableSocket
from coatcheck.director.rules.forwarding import ClientAddress
from coatcheck.director.rules.limits import Limits
from coatcheck.director.rules.routing import Check, ServerState, servers_of
from coatcheck.director.rules.server_half import Ending
from coatcheck.director.rules.traffic import Attend, Traffic
from coatcheck.director.rules.websocket_frames import (
    BINARY,
    CLOSE,
    TEXT,
    CloseFrame,
    Ping,
    WebSocketReader,
    WholeMessage,
    close_frame,
    frame,
)
from coatcheck.drivers.sessions import Sessions
from coatcheck.replication.entry import Entry
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.version import Version
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import GetReply, PutReply
from coatcheck.tokens.keyring import KeyRing
from coatcheck.web.open_websocket import SCOPE_KEY, OpenWebSocket

LEASE_S = 0.02
LONGEST_S = 30.0
REQUEST = (
    b"GET /talk HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
Handler = Callable[[DurableWebSocket], Any]


async def talk(socket: DurableWebSocket) -> None:
    """Counts, and answers a message once or twice."""
    await socket.accept()
    async for message in socket:
        count = socket.session.get("count", 0) + 1
        await asyncio.sleep(0)
        socket.session["count"] = count
        socket.session.setdefault("log", []).append(message)
        for n in range(answers_to(count)):
            socket.send(f"{count}.{n} {message}")


def answers_to(count: int) -> int:
    return (1, 2, 0, 1)[count % 4]


class Steps:
    """Counts the steps of a walk, and knows at which ones a web server dies."""

    def __init__(self, deaths: Collection[int]) -> None:
        self.count = 0
        self._deaths = deaths

    def next_is_death(self) -> bool:
        self.count += 1
        return self.count in self._deaths


class GatedStore:
    """A session server as one web server sees it: after its death nothing of it arrives there, and it hears nothing."""

    def __init__(self, store: MemoryStore, process: Process) -> None:
        self._store = store
        self._process = process

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    async def aclose(self) -> None:
        """The others still use it."""

    def get(self, key: bytes, reply: Callable[[GetReply], None]) -> None:
        if self._process.step():
            self._store.get(key, lambda told: reply(told) if self._process.step() else None)

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        if self._process.step():
            self._store.put(key, seen, new, lambda told: reply(told) if self._process.step() else None, notify)


class Process:
    """One life of a web server."""

    def __init__(self, site: Site, name: str, app: Handler) -> None:
        self._site = site
        self.name = name
        self.is_alive = True
        self.links: set[Link] = set()
        self.websockets: set[OpenWebSocket] = set()
        self.sessions = Sessions(
            farm="farm",
            server_name=name,
            stores=cast(Any, [GatedStore(store, self) for store in site.stores]),
            ring=site.ring,
            policy=site.policy,
            replication=ReplicationPolicy(lease_s=LEASE_S),
        )
        self.middleware = SessionMiddleware(
            durable_websocket(app), self.sessions, CookiePolicy(), durable_websockets=True
        )

    def step(self) -> bool:
        """Whether it is alive to take one more."""
        if self.is_alive and self._site.counts and self._site.steps.next_is_death():
            self.die()
        return self.is_alive

    def die(self) -> None:
        if self.is_alive:
            self.is_alive = False
            self._site.deaths += 1
            self._site.loop.call_soon(self._site.died, self)

    def drain(self) -> None:
        """What an operator's drain does to its WebSockets."""
        for websocket in self.websockets:
            self._site.spawn(websocket.hang_up())


class Link:
    """A connection from the director to a web server, and the ASGI server at its other end."""

    def __init__(self, site: Site, process: Process) -> None:
        self._site = site
        self.process = process
        self._head = b""
        self._reader = WebSocketReader(masked=True, max_bytes=1 << 22)
        self._events: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.is_cut = self._begun = self._accepted = self._closed = False
        process.links.add(self)

    def feed(self, data: bytes) -> None:
        if self.is_cut or not self.process.is_alive:
            return
        if not self._begun:
            self._head += data
            head, end, data = self._head.partition(b"\r\n\r\n")
            if not end:
                return
            self._begun = True
            self._site.spawn(self._serve(head))
        self._reader.feed(data)
        while (event := self._reader.next()) is not None:
            if isinstance(event, WholeMessage):
                self._events.put_nowait({"type": "websocket.receive", "bytes": event.data})
            elif isinstance(event, CloseFrame):
                self._events.put_nowait({"type": "websocket.disconnect", "code": event.code})

    def cut(self) -> None:
        """The director has let go of it."""
        self.is_cut = True
        self.process.links.discard(self)
        self._events.put_nowait({"type": "websocket.disconnect", "code": 1006})

    async def _serve(self, head: bytes) -> None:
        lines = [line.partition(b": ") for line in head.split(b"\r\n")[1:]]
        scope = {
            "type": "websocket", "path": "/talk", "query_string": b"", "http_version": "1.1",
            "headers": [(name.lower(), value) for name, _, value in lines], "asgi": {"version": "3.0"},
        }  # fmt: skip
        self._events.put_nowait({"type": "websocket.connect"})
        websocket = OpenWebSocket(self._receive, self._send)
        scope[SCOPE_KEY] = websocket
        self.process.websockets.add(websocket)
        try:
            await self.process.middleware(scope, websocket.receive, websocket.send)
        finally:
            self.process.websockets.discard(websocket)
        if not self._closed and self._accepted:
            await self._send({"type": "websocket.close", "code": 1000})

    async def _receive(self) -> Any:
        event = await self._events.get()
        if not self.process.step():
            await asyncio.Event().wait()
        return event

    async def _send(self, message: Any) -> None:
        if not self.process.step():
            await asyncio.Event().wait()
        if message["type"] == "websocket.accept":
            self._accepted = True
            lines = [b"HTTP/1.1 101 Switching Protocols", b"Upgrade: websocket", b"Connection: Upgrade"]
            lines += [b"%b: %b" % header for header in message.get("headers", ())]
            self._say(b"\r\n".join(lines) + b"\r\n\r\n")
        elif message["type"] == "websocket.close":
            self._closed = True
            if self._accepted:
                self._say(close_frame(message.get("code", 1000), message.get("reason") or ""))
            else:
                self._say(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
        elif message.get("text") is not None:
            self._say(frame(TEXT, message["text"].encode()))
        else:
            self._say(frame(BINARY, message["bytes"]))

    def _say(self, data: bytes) -> None:
        if not self.is_cut:
            self._site.loop.call_soon(self._site.server_says, self, data)


class Site:
    """``deaths``: the steps at which a web server dies; each is replaced at once."""

    def __init__(
        self, app: Handler = talk, deaths: Collection[int] = (), *, limits: Limits | None = None,
        policy: SessionPolicy | None = None, web_servers: int = 3,
    ) -> None:  # fmt: skip
        self.loop = asyncio.get_running_loop()
        self.app = app
        self.policy = policy or SessionPolicy()
        self.steps = Steps(deaths)
        self.counts = False
        """Whether steps count: from the moment on that the client has its 101."""
        self.deaths = 0
        self.ring = KeyRing([os.urandom(32)])
        self.stores = [MemoryStore(f"session-{n}", time.monotonic) for n in (1, 2)]
        self.states = servers_of([(f"web-{n}", f"tag{n}") for n in range(1, web_servers + 1)])
        self.processes = {state.name: Process(self, state.name, app) for state in self.states}
        self.traffic = Traffic(limits or Limits(), self.states, self.loop.time(), max_connections=100, tls=False)
        for state in self.states:
            self.traffic.health_checked(state, Check.PASSED)
        self.machine: Any = ProxiedConnection(
            self.traffic, ClientAddress("127.0.0.1", tls=False, trusted=()), can_half_close=True
        )
        self.link: Link | None = None
        self.tasks: set[asyncio.Task[Any]] = set()
        self._performing = self.client_is_gone = False
        self._head = b""
        self._reader = WebSocketReader(masked=False, max_bytes=1 << 22)
        self.answers: list[str | bytes] = []
        self.closed: CloseFrame | None = None
        self.something = asyncio.Event()
        self.cookies = b""

    def spawn(self, work: Any) -> None:
        task = self.loop.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # The director's shell

    def perform(self) -> None:
        if self._performing:
            return
        self._performing = True
        machine = self.machine
        for action in machine.actions:
            if isinstance(action, ToClient):
                self._client_hears(action.data)
            elif isinstance(action, ToServer):
                if self.link is not None:
                    self.link.feed(action.data)
            elif isinstance(action, Reach):
                self.loop.call_soon(self._reached, machine, action.server)
            elif isinstance(action, ReleaseServer) or action is Order.LEAVE_SERVER:
                self._cut()
            elif action is Order.JOIN:
                self.machine = machine.join()
                self.counts = True
            elif action in (Order.CLOSE_CLIENT, Order.ABORT_CLIENT, Order.RESET_CLIENT):
                self.loop.call_soon(self.client_leaves)
        machine.actions.clear()
        self._performing = False
        if machine is not self.machine:
            self.perform()
        self._attend()

    def _attend(self) -> None:
        actions = list(self.traffic.actions)
        self.traffic.actions.clear()
        if any(isinstance(action, Attend) and action.member is self.machine for action in actions):
            self.perform()

    def _reached(self, machine: Any, server: ServerState) -> None:
        if machine is self.machine and machine.server is server and self.link is None:
            self.link = Link(self, self.processes[server.name])
            machine.connected(reused=False, full=False)
            self.perform()

    def _cut(self) -> None:
        link, self.link = self.link, None
        if link is not None:
            link.cut()

    def server_says(self, link: Link, data: bytes) -> None:
        if link is self.link:
            self.machine.server_bytes(data)
            self.perform()

    def died(self, process: Process) -> None:
        self.processes[process.name] = Process(self, process.name, self.app)
        if self.link is not None and self.link.process is process:
            self.machine.server_ended(Ending.BROKEN)
            self.perform()

    async def tick(self) -> None:
        while True:
            await asyncio.sleep(0.002)
            self.traffic.tick(self.loop.time(), lambda member: 0)
            self._attend()
            if self.machine.actions:
                self.perform()

    # The client

    def client_says(self, data: bytes) -> None:
        if not self.client_is_gone:
            self.machine.client_bytes(data)
            self.perform()

    def say(self, message: str | bytes) -> None:
        text = isinstance(message, str)
        data = message.encode() if isinstance(message, str) else message
        self.client_says(frame(TEXT if text else BINARY, data, masked=True))

    def client_leaves(self) -> None:
        if not self.client_is_gone:
            self.client_is_gone = True
            self.machine.client_lost()
            self.perform()

    def _client_hears(self, data: bytes) -> None:
        if not self._head.endswith(b"\r\n\r\n"):
            self._head, end, data = (self._head + data).partition(b"\r\n\r\n")
            self._head += end
            if b"\r\nset-cookie: " in self._head.lower():
                self.cookies = self._head.lower().partition(b"\r\nset-cookie: ")[2]
        self._reader.feed(data)
        while (event := self._reader.next()) is not None:
            if isinstance(event, WholeMessage):
                self.answers.append(event.data.decode() if event.is_text else event.data)
            elif isinstance(event, CloseFrame):
                self.closed = event
                if self.machine is not None:
                    self.loop.call_soon(self.client_says, frame(CLOSE, b"\x03\xe8", masked=True))
            elif isinstance(event, Ping):
                self.loop.call_soon(self.client_says, frame(0xA, event.data, masked=True))
        self.something.set()

    @property
    def head(self) -> bytes:
        """The response to the handshake, as the client got it."""
        return self._head

    async def until(self, condition: Callable[[], Any], what: str) -> None:
        async with asyncio.timeout(LONGEST_S):
            while not condition():
                await asyncio.sleep(0.001)
        assert condition(), what

    async def has_heard(self, count: int) -> None:
        await self.until(lambda: len(self.answers) >= count or self.closed, "the answers")

    async def opened(self) -> None:
        self.machine.opened()
        self.perform()
        self.spawn(self.tick())
        self.client_says(REQUEST)
        await self.until(lambda: self._head.endswith(b"\r\n\r\n"), "the handshake")

    async def closes(self) -> None:
        """The client says good-bye, and all that it has said before reaches the app."""
        self.client_says(frame(CLOSE, b"\x03\xe8", masked=True))
        await self.until(lambda: not self.traffic.tunnels, "the end")

    async def stored(self) -> Any:
        """The session's record, as whoever comes next finds it."""
        reader = Process(self, "reader", self.app)
        self.counts = False
        await reader.sessions.start()
        (row,) = await reader.sessions.list_sessions(10)
        shown = await reader.sessions.show(bytes.fromhex(row.key))
        assert shown is not None
        return msgspec.structs.asdict(shown)["data"]

    async def end(self) -> None:
        self.counts = False
        for task in list(self.tasks):
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def random_walk(seed: int, messages: int = 8) -> Site:
    """Several deaths, and for odd seeds drains, wherever the seed says."""
    dice = random.Random(seed)
    deaths = {dice.randrange(1, 200) for _ in range(dice.randrange(1, 6))}
    return await walk(deaths, messages, dice if seed % 2 else None)


async def walk(deaths: Collection[int], messages: int = 6, drains: random.Random | None = None) -> Site:
    """A client says so many messages, some behind each other, and leaves; web servers die at these steps.

    Judged: it gets each answer once and in order, and each message counts once.
    """
    site = Site(deaths=deaths)
    try:
        await site.opened()
        assert isinstance(site.machine, DurableSocket)
        expected: list[str] = []
        for n in range(messages):
            site.say(f"m{n}")
            expected += [f"{n + 1}.{k} m{n}" for k in range(answers_to(n + 1))]
            if drains is not None and drains.random() < 0.3 and site.machine.server is not None:
                site.processes[site.machine.server.name].drain()
            if n % 3 != 1:
                await site.has_heard(len(expected))
        await site.has_heard(len(expected))
        assert site.closed is None, site.closed
        await site.closes()
        assert site.answers == expected
        data = await site.stored()
        assert data == {"count": messages, "log": [f"m{n}" for n in range(messages)]}
        return site
    finally:
        await site.end()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--walks", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    deaths = resumed = 0
    for seed in range(options.seed, options.seed + options.walks):
        try:
            site = asyncio.run(random_walk(seed))
        except BaseException:
            print(f"the walk with seed {seed} failed")
            raise
        deaths += site.deaths
        resumed += site.traffic.resumed_websockets
    print(
        f"{options.walks} walks: {deaths} deaths, {resumed} times another web server went on; nothing lost or doubled"
    )


if __name__ == "__main__":
    main()
