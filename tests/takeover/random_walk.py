"""Live take-over without a socket: shipped machines and shells, real TLS clients, and whatever a seed lets go wrong.

``python -m takeover.random_walk --seed 7`` (with ``PYTHONPATH=tests``) walks again as seed 7 does; ``--walks 1000``
walks with fresh seeds until one fails.
"""

from __future__ import annotations

import argparse
import logging
import random
import re
import secrets
import ssl
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, cast
from unittest import mock

from coatcheck.director.io import server_link
from coatcheck.director.io.relay import Relay
from coatcheck.director.io.server_link import LinkOwner, ServerLink, ServerPool
from coatcheck.director.options import DirectorOptions, WebServer
from coatcheck.director.rules.routing import Check, ServerState
from coatcheck.director.rules.traffic import ConnectFault
from coatcheck.takeover.io import tls_transport
from coatcheck.takeover.io.live_entrance import InnerLink, LiveEntrance
from coatcheck.takeover.io.passing_door import PassedClient
from coatcheck.takeover.rules.passing import PassedConnection
from coatcheck.takeover.rules.passing_state import Addresses
from coatcheck.takeover.rules.tls_records import APPLICATION_DATA, HANDSHAKE, HEADER_BYTES
from coatcheck.takeover.rules.traffic_keys import RecordWriter
from coatcheck.tokens.keyring import KeyRing
from tls.farm import make_certificates

from .machine_room import Clock, End, Kernel, Process, Wire, ends, joined
from .peers import MemoryClient

RING: Final = bytes(range(32))
SERVERS: Final = 3
WAIT_S: Final = 2.0
ONCE: Final = ("POST",)
_TELLING: Final = HEADER_BYTES + 12
"""So many bytes of a record tell which one it is."""
_FORM = re.compile(rb"(\d+)@([a-z0-9.]+);")


class WrongWalk(AssertionError):
    """A promise was broken."""


def must(holds: object, why: object) -> None:
    if not holds:
        raise WrongWalk(str(why))


# What was sealed, and left


class Seals:
    """Every record that was sealed, by key and nonce; and those that left the process that sealed them."""

    def __init__(self) -> None:
        self._sealed: dict[bytes, tuple[bytes, int, int, bytes]] = {}
        self._left: dict[tuple[bytes, int], set[tuple[int, bytes]]] = {}
        self.shared = 0

    def sealed(self, writer: RecordWriter, kind: int, content: bytes, record: bytes) -> None:
        place = writer.epoch.secret, writer.position - 1 - writer.epoch.first
        self._sealed[record[:_TELLING]] = (*place, kind, bytes(content))

    def watch(self, wire: Wire) -> None:
        """Note what a web server gives to the kernel; a part of a record is enough."""
        held, size = bytearray(), 0

        def accepted(data: bytes) -> None:
            nonlocal size
            held.extend(data)
            while len(held) >= (size or _TELLING):
                if not size:
                    size = HEADER_BYTES + int.from_bytes(held[3:5], "big")
                    if held[0] == APPLICATION_DATA and bytes(held[:_TELLING]) in self._sealed:
                        self._has_left(*self._sealed[bytes(held[:_TELLING])])
                if len(held) < size:
                    return
                del held[:size]
                size = 0

        wire.accepted = accepted

    def _has_left(self, secret: bytes, nonce: int, kind: int, content: bytes) -> None:
        there = self._left.setdefault((secret, nonce), set())
        there.add((kind, content))
        updates = {each for each in there if each[0] == HANDSHAKE}
        self.shared += len(there) > 1
        must(len(there - updates) <= 1 and len(updates) <= 1, f"one key and nonce for {len(there)} different records")


# The app


@dataclass
class Request:
    number: int
    method: str
    size: int
    """Of what it asks for."""
    body: int
    tagged: bool = False
    keyed: bool = False

    @property
    def may_be_repeated(self) -> bool:
        return self.keyed or self.method not in ONCE

    def encoded(self) -> bytes:
        head = (
            f"{self.method} /{self.number}/{self.size}/{'tagged' if self.tagged else 'plain'} HTTP/1.1\r\nHost: a\r\n"
        )
        head += f"Content-Length: {self.body}\r\n" if self.body else ""
        head += f"Idempotency-Key: {self.number}\r\n" if self.keyed else ""
        return head.encode() + b"\r\n" + bytes(self.body)


def page(number: int, server: str, size: int) -> bytes:
    unit = f"{number}@{server};".encode()
    return (unit * (size // len(unit) + 1))[:size]


class App:
    """What a web server's own director has before it: one connection to the app."""

    def __init__(self, server: Server, link: ServerLink) -> None:
        self.server = server
        self.link = link
        self._in = b""
        self.out: list[bytes] = []
        self._begun: int | None = None
        self._paused = self._closing = False
        link.connection_made(cast(Any, self))

    def write(self, data: bytes) -> None:
        self._in += data
        while b"\r\n\r\n" in self._in:
            head, _, rest = self._in.partition(b"\r\n\r\n")
            method, path, _ = head.split(b"\r\n")[0].split(b" ")
            number, size, kind = path.decode()[1:].split("/")
            farm = self.server.farm
            if self._begun != int(number):
                self._begun = int(number)
                farm.carried_out(int(number), method.decode())
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body = int(length[1]) if length else 0
            if len(rest) < body:
                return
            self._in, self._begun = rest[body:], None
            self._answer(int(number), method.decode(), int(size), tagged=kind == "tagged")

    def _answer(self, number: int, method: str, size: int, *, tagged: bool) -> None:
        farm, name = self.server.farm, self.server.name
        head = f"HTTP/1.1 200 OK\r\nServer: {name}\r\nContent-Length: {size}\r\n"
        head += f'ETag: "{number}"\r\n' if tagged else ""
        body = b"" if method == "HEAD" else page(number, "any" if tagged else name, size)
        whole = head.encode() + b"\r\n" + body
        while whole:
            cut = farm.size_of_piece(len(whole))
            self.out.append(whole[:cut])
            whole = whole[cut:]

    def step(self) -> bool:
        if self.out and not self._paused and not self._closing:
            self.link.data_received(self.out.pop(0))
            return True
        return False

    def close(self) -> None:
        if not self._closing:
            self._closing = True
            self.server.apps.remove(self)
            self.server.process.loop.call_soon(self.link.connection_lost, None)

    abort = close

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        self._paused = True

    def resume_reading(self) -> None:
        self._paused = False

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def get_write_buffer_size(self) -> int:
        return 0

    def get_extra_info(self, name: str, default: object = None) -> object:
        return default


# Web servers and the director


class AppLink(ServerLink):
    """The kernel has nothing on it that the app has not just said."""

    def is_quiet(self) -> bool:
        return not self.is_gone


class ServerRelay(Relay):
    """The shell of a web server's own director; the app is had at once."""

    server: Server

    def connect(self, pool: ServerPool, owner: LinkOwner) -> Any:
        pending = object()
        self.server.process.loop.call_soon(self._connected, pool, owner, pending)
        return pending

    def _connected(self, pool: ServerPool, owner: LinkOwner, pending: object) -> None:
        if owner.connecting is not pending:
            return
        owner.connecting = None
        link = AppLink(self.options, pool)
        self.server.apps.append(App(self.server, link))
        owner.attach(link, reused=False)
        owner.perform()


class Server:
    """A process that ends TLS."""

    def __init__(self, farm: Walk, name: str) -> None:
        self.farm = farm
        self.name = name
        self.process = Process(name, farm.clock)
        self.apps: list[App] = []
        options = DirectorOptions(servers=(WebServer("app", "127.0.0.1", 1, "app"),), **farm.bounds)
        self.relay = ServerRelay(options, cast(Any, self.process.loop))
        self.relay.server = self
        self.relay.traffic.health_checked(self.relay.traffic.servers[0], Check.PASSED)
        self.relay.flush()
        self.entrance = LiveEntrance(self.relay, farm.new_context(), KeyRing([RING]), "farm")

    def kill(self) -> None:
        self.process.kill()
        self.entrance.abort()


class DirectorRelay(Relay):
    """The shell of the director that passes connections on; when a link is had, the walk decides."""

    walk: Walk

    def connect(self, pool: ServerPool, owner: LinkOwner) -> Any:
        pending = object()
        self.walk.connects.append((pool, owner, pending))
        return pending


# Clients


@dataclass(eq=False)
class Client:
    walk: Walk
    tls: MemoryClient
    to_director: Wire
    from_director: Wire
    end: End
    machine: PassedConnection
    asked: list[Request] = field(default_factory=list)
    unsent: bytes = b""
    """Plain bytes of requests that are still to be sent."""
    wire_unsent: bytes = b""
    got: bytes = b""
    done: list[int] = field(default_factory=list)
    over: bool = False
    """Its connection has ended."""
    shaken: bool = False
    disturbed: bool = False
    """A web server was killed while it had this connection."""
    gone: bool = False

    def send(self) -> bool:
        if self.over or self.gone:
            return False
        if self.unsent and self.shaken and not self.wire_unsent:
            rng = self.walk.rng
            size = rng.choice([len(self.unsent), rng.randint(1, len(self.unsent)), 3000])
            piece, self.unsent = self.unsent[:size], self.unsent[size:]
            self.wire_unsent += self.tls.write(piece)
        if not self.wire_unsent:
            return False
        sent = self.to_director.accept(self.wire_unsent)
        self.wire_unsent = self.wire_unsent[sent:]
        return sent > 0

    def read(self, size: int) -> bool:
        if self.over or self.gone:
            return False
        if not self.from_director.queue:
            if self.from_director.ended:
                self.over = True
                return True
            return False
        data = bytes(self.from_director.queue[:size])
        del self.from_director.queue[:size]
        if not self.shaken:
            said = self.tls.handshake(data)
            self.wire_unsent += said
            try:
                self.tls.tls.getpeercert(True)
                self.shaken = self.tls.tls.version() is not None and self.tls.tls.cipher() is not None
            except ValueError:
                return True
            if not self.shaken:
                return True
            data = b""
        try:
            self.got += self.tls.take(data)
        except ssl.SSLError as error:
            raise WrongWalk(f"the client's TLS: {error}") from error
        self.wire_unsent += self.tls.said()
        if self.tls.closed:
            self.over = True
        self.check_answers()
        return True

    def check_answers(self) -> None:
        while self.asked:
            head, separator, rest = self.got.partition(b"\r\n\r\n")
            if not separator:
                return
            request, lines = self.asked[0], head.split(b"\r\n")
            must(re.fullmatch(rb"HTTP/1\.1 \d{3} [ -~]+", lines[0]), f"that is no answer: {head[:80]!r}")
            status = int(lines[0][9:12])
            length = re.search(rb"(?i)\r\ncontent-length: (\d+)", head)
            must(length, f"no length: {head!r}")
            assert length is not None
            size = 0 if request.method == "HEAD" else int(length[1])
            if len(rest) < size:
                if status == 200:
                    self._check_body(request, rest)
                return
            body, self.got = rest[:size], rest[size:]
            del self.asked[0]
            self.walk.counts[f"{status}"] += 1
            if status == 200:
                must(int(length[1]) == request.size, "an answer to something else")
                self._check_body(request, body)
                self.done.append(request.number)
            else:
                must(status == 502 and self.disturbed, f"{status} for {request}")
                must(not request.may_be_repeated or self.walk.kills > 1, f"{status} for {request}")
        must(not self.got, f"an answer that nobody asked for: {self.got[:80]!r}")
        # In the midst of pipelined requests no one is answered for good; then all are.
        self.walk.answered.update(self.done)
        self.done.clear()

    def _check_body(self, request: Request, body: bytes) -> None:
        found = _FORM.match(body)
        if found is None:
            return
        number, server = int(found[1]), found[2].decode()
        must(number == request.number, f"the answer of {number} for {request}")
        must(body == page(number, server, request.size)[: len(body)], f"wrong bytes in the answer of {request}")
        must(not request.tagged or server == "any", "a page of no tag")

    @property
    def is_done(self) -> bool:
        return self.over or self.gone or not (self.asked or self.unsent or self.wire_unsent)


class Walk:
    """A farm of three web servers, one director, a few clients; ``calm``: web servers are drained, and never killed."""

    def __init__(self, seed: int, new_context: Callable[[], ssl.SSLContext], *, calm: bool = False) -> None:
        rng = self.rng = random.Random(f"{seed} {calm}")
        self.calm = calm
        self.new_context = new_context
        self.clock = Clock()
        self.counts: Counter[str] = Counter()
        self.kills = 0
        self.numbers = 0
        self.executed: Counter[int] = Counter()
        self.methods: dict[int, Request] = {}
        self.answered: set[int] = set()
        self.seals = Seals()
        self.connects: list[tuple[ServerPool, LinkOwner, object]] = []
        self.bounds: dict[str, Any] = {
            "held_response_bytes": rng.choice([100, 5000, 64 * 1024]), "buffer_bytes": rng.choice([2000, 64 * 1024]),
            "kept_body_bytes": 64 * 1024, "max_websockets": 1, "reserved_descriptors": 1,
            "keep_alive_timeout_s": 1000.0, "header_timeout_s": 1000.0, "tls_handshake_timeout_s": 1000.0,
            "body_timeout_s": 1000.0,
        }  # fmt: skip
        self.max_kept_bytes = 1 << 17 if calm else rng.choice([3000, 40_000, 1 << 17])
        self.link_capacity = rng.choice([600, 20_000, 1 << 18])
        self.director = Process("director", self.clock)
        names = tuple(f"web-{number}" for number in range(SERVERS))
        options = DirectorOptions(
            servers=tuple(WebServer(name, "127.0.0.1", 1, name) for name in names),
            no_server_wait_s=WAIT_S,
            **self.bounds,
        )
        self.relay = DirectorRelay(options, cast(Any, self.director.loop))
        self.relay.walk = self
        self.outcomes: Counter[str] = Counter()
        self.servers: list[Server | None] = [None] * SERVERS
        self.generation = 0
        self.dead: list[int] = []
        """Web servers that have died, and the supervisor has not said so."""
        for index in range(SERVERS):
            self.start(index)
        self.clients: list[Client] = []
        deeds: list[tuple[Callable[[], object], float]] = [
            (self.arrive, 1.5), (self.ask, 5), (self.client_sends, 12), (self.client_reads, 12),
            (self.director_reads, 20), (self.director_writes, 10), (self.server_moves, 25), (self.connect, 8),
            (self.app, 15), (self.kill, 0.35), (self.tell, 3), (self.restart, 1), (self.drain, 0.4),
            (self.all_move, 6), (self.pass_time, 2), (self.update_key, 0.7), (self.vanish, 0.1),
        ]  # fmt: skip
        if calm:
            deeds = [(deed, weight) for deed, weight in deeds if deed not in (self.kill, self.tell)]
        self.deeds = [deed for deed, _ in deeds]
        self.weights = [weight * rng.choice([0.2, 1, 1, 3]) for _, weight in deeds]

    # The farm

    def start(self, index: int) -> None:
        self.generation += 1
        self.servers[index] = Server(self, f"web.{index}.{self.generation}")
        state = self.relay.traffic.servers[index]
        self.relay.traffic.health_checked(state, Check.PASSED)
        self.relay.flush()

    def size_of_piece(self, whole: int) -> int:
        """How much of a response the app gives at once."""
        return self.rng.choice([whole, self.rng.randint(1, whole), 200])

    def carried_out(self, number: int, method: str) -> None:
        request = self.methods[number]
        self.executed[number] += 1
        must(number not in self.answered, f"{request} was answered, and is carried out again")
        most = 6 if request.may_be_repeated else 1
        must(self.executed[number] <= most, f"{request} was carried out {self.executed[number]} times")

    def arrive(self) -> None:
        if len(self.clients) < 4:
            self.enter(self.rng.choice([500, 5000, 1 << 18]))

    def enter(self, capacity: int) -> Client:
        """A client connects."""
        there, back = Wire(capacity), Wire(capacity)
        end = End(self.director, there, back)
        traffic = self.relay.traffic
        guest = traffic.enter("192.0.2.1")
        machine = PassedConnection(
            traffic, guest, Addresses(("192.0.2.1", 4), ("192.0.2.2", 443)), self.max_kept_bytes, self.outcomes
        )
        client = Client(self, MemoryClient(), there, back, end, machine)
        client.wire_unsent = client.tls.handshake()
        self.clients.append(client)
        end.begin(PassedClient(self.relay, machine))
        return client

    def one(self) -> Client | None:
        return self.rng.choice(self.clients) if self.clients else None

    def ask(self) -> None:
        client, rng = self.one(), self.rng
        if client is None or len(client.asked) >= 3 or client.over or client.gone:
            return
        self.numbers += 1
        method = rng.choice(["GET", "GET", "GET", "PUT", "POST", "POST", "HEAD"])
        request = Request(
            self.numbers, method, rng.choice([3, 200, 5000, 30_000]),
            rng.choice([0, 5, 2000, 30_000]) if method in ("PUT", "POST") else 0,
            tagged=method in ("GET", "HEAD") and rng.random() < 0.4, keyed=method == "POST" and rng.random() < 0.3,
        )  # fmt: skip
        self.methods[request.number] = request
        client.asked.append(request)
        client.unsent += request.encoded()

    def client_sends(self) -> None:
        client = self.one()
        if client is not None:
            client.send()

    def client_reads(self) -> None:
        client = self.one()
        if client is not None:
            client.read(self.chunk())

    def chunk(self) -> int:
        """How much of what is there arrives at once."""
        return self.rng.choice([1, 30, 300, 5000, 1 << 18, 1 << 18, 1 << 18])

    def update_key(self) -> None:
        client = self.one()
        if client is not None and client.shaken and not client.over and not client.wire_unsent:
            client.wire_unsent += client.tls.update_key(requested=self.rng.random() < 0.5)

    def vanish(self) -> None:
        client = self.one()
        if client is not None and not client.over:
            client.gone = True
            client.to_director.ended = client.from_director.deaf = True

    def director_reads(self) -> None:
        live = [end for end in self.director.ends if not end.is_over]
        if live:
            self.rng.choice(live).read_some(self.chunk())

    def director_writes(self) -> None:
        for end in self.director.ends:
            end.write_some()
        self.director.loop.turn()

    def server_moves(self) -> None:
        server = self.rng.choice(self.servers)
        if server is None:
            return
        live = [end for end in server.process.ends if not end.is_over]
        if live:
            end = self.rng.choice(live)
            end.write_some()
            end.read_some(self.chunk())
        if self.rng.random() < 0.7:
            server.process.loop.turn()

    def app(self) -> None:
        server = self.rng.choice(self.servers)
        if server is not None and server.apps:
            self.rng.choice(server.apps).step()

    def connect(self) -> bool:
        if not self.connects:
            return False
        pool, owner, pending = self.connects.pop(self.rng.randrange(len(self.connects)))
        if owner.connecting is not pending:
            return True
        owner.connecting = None
        server = self.servers[pool.state.index]
        if server is None:
            failure = self.relay.traffic.connect_failed(pool.state, ConnectFault.REFUSED, "")
            self.relay.flush()
            owner.machine.not_connected(failure)
        else:
            here, there = joined(self.director, server.process, self.link_capacity)
            self.seals.watch(there._out)
            link = ServerLink(self.relay.options, pool)
            here.begin(link)
            there.begin(InnerLink(server.entrance))
            owner.attach(link, reused=False)
        owner.perform()
        return True

    def kill(self) -> None:
        self.kill_one(self.rng.randrange(SERVERS))

    def kill_one(self, index: int) -> None:
        """A web server dies."""
        server = self.servers[index]
        if server is None:
            return
        state = self.relay.traffic.servers[index]
        for client in self.clients:
            client.disturbed |= client.machine.server is state
        self.kills += 1
        server.kill()
        self.servers[index] = None
        self.dead.append(index)

    def tell(self) -> None:
        """The supervisor says that a process has ended, whatever the director has read of it."""
        if self.dead:
            self.relay.traffic.server_died(self.relay.traffic.servers[self.dead.pop()])
            self.relay.flush()

    def restart(self) -> None:
        index = self.rng.randrange(SERVERS)
        if index not in self.dead and self.servers[index] is None:
            self.start(index)

    def restart_all(self) -> None:
        """Whoever has died is there again."""
        self.dead.clear()
        for index, server in enumerate(self.servers):
            if server is None:
                self.start(index)

    def drain(self) -> None:
        state = self.rng.choice(list(self.relay.traffic.servers))
        draining = not state.draining and sum(not other.draining for other in self.relay.traffic.servers) > 1
        self.set_draining(state, draining=draining)

    def set_draining(self, state: ServerState, *, draining: bool) -> None:
        self.relay.traffic.set_draining(state, draining=draining)
        if draining:
            for member in list(self.relay.traffic.connections):
                if member.server is state:
                    cast(PassedConnection, member).draining()
                    self.relay.performers[member]()
        self.relay.flush()

    def pass_time(self) -> None:
        self.clock.now += self.rng.choice([0.01, 0.1, 0.5])
        self.tick()

    def tick(self) -> None:
        self.relay.tick(self.clock.now)
        for server in self.servers:
            if server is not None:
                server.relay.tick(self.clock.now)

    # What must hold

    def check(self) -> None:
        for client in self.clients:
            carried = client.machine.carried
            kept = sum(len(record) for _, record in carried._kept)
            must(kept <= self.max_kept_bytes, f"{kept} bytes are kept of {self.max_kept_bytes}")
            must(carried._kept_bytes >= kept, "it is counted wrongly")
            must(not (self.calm and client.over), "a drain has closed a connection")
        self.clients = [client for client in self.clients if not (client.over or client.gone)]

    def step(self) -> None:
        self.rng.choices(self.deeds, self.weights)[0]()
        self.check()

    def run(self, steps: int) -> Counter[str]:
        with self.watched():
            for _ in range(steps):
                self.step()
            everybody = list(self.clients)
            self.let_all_end()
            for client in everybody:
                must(client.is_done, f"neither answered nor broken off: {client.asked[:1]} {client.machine.state}")
        self.counts.update(self.outcomes)
        self.counts["requests"] += self.numbers
        self.counts["kills"] += self.kills
        self.counts["shared places"] += self.seals.shared
        return self.counts

    @contextmanager
    def watched(self) -> Iterator[None]:
        shipped, seals = RecordWriter.seal, self.seals

        def seal(sealer: RecordWriter, kind: int, content: bytes) -> bytes:
            record = shipped(sealer, kind, content)
            seals.sealed(sealer, kind, content, record)
            return record

        modules = [tls_transport, server_link]
        patches = [mock.patch.object(module, "os", Kernel) for module in modules]
        patches.append(mock.patch.object(RecordWriter, "seal", seal))
        for patch in patches:
            patch.start()
        try:
            yield
        finally:
            for patch in patches:
                patch.stop()
            for server in self.servers:
                if server is not None:
                    server.kill()
            ends.clear()

    def let_all_end(self) -> None:
        """Nothing goes wrong any more: whatever is under way comes to its end."""
        while self.dead:
            self.tell()
        for index, server in enumerate(self.servers):
            self.set_draining(self.relay.traffic.servers[index], draining=False)
            if server is None:
                self.start(index)
        idle = 0
        while idle < 60:
            moved = self.all_move()
            self.check()
            idle = 0 if moved else idle + 1
            if not moved:
                self.clock.now += 1.0
                self.tick()

    def all_move(self, *, apps: bool = True) -> bool:
        moved = False
        for client in list(self.clients):
            moved |= client.send()
            moved |= client.read(1 << 18)
        while self.connect():
            moved = True
        for process in [self.director, *(server.process for server in self.servers if server is not None)]:
            for end in list(process.ends):
                moved |= end.write_some() | end.read_some(1 << 18)
            moved |= process.loop.turn()
        for server in self.servers:
            for app in list(server.apps) if server is not None and apps else []:
                moved |= app.step()
        return moved


def walk(seed: int, certificate: Path, steps: int = 800, *, calm: bool = False) -> Counter[str]:
    """Take so many random steps, and then let everything come to its end. Raises :class:`WrongWalk`."""
    try:
        return Walk(seed, lambda: server_context(certificate), calm=calm).run(steps)
    except Exception as error:
        error.add_note(
            f"to walk again: PYTHONPATH=tests python -m takeover.random_walk --seed {seed}{' --calm' * calm}"
        )
        raise


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int)
    parser.add_argument("--walks", type=int, default=1)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--calm", action="store_true")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        make_certificates(Path(folder))
        counts: Counter[str] = Counter()
        for _ in range(arguments.walks):
            seed = secrets.randbelow(1 << 40) if arguments.seed is None else arguments.seed
            counts += walk(seed, Path(folder) / "server.pem", arguments.steps, calm=arguments.calm)
    print(dict(sorted(counts.items())))
    return 0


def server_context(certificate: Path) -> ssl.SSLContext:
    """Of one web server: each has a log of keys of its own."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate)
    return context


if __name__ == "__main__":
    sys.exit(main())
