"""The director's rules without a socket, driven at random: clients, web servers and time do whatever a seed says.

The shell here does what a real one does and nothing else, and holds the machines to their promises at every step.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final

from coatcheck.director.rules.actions import (
    AtEnd,
    CloseUnused,
    DropHandshake,
    Order,
    Reach,
    ReleaseServer,
    ToClient,
    ToServer,
    TunnelOrder,
    TunnelSide,
)
from coatcheck.director.rules.connection import ProxiedConnection
from coatcheck.director.rules.deadlines import LIMIT_OF, DeadlineKind
from coatcheck.director.rules.delivery import IDEMPOTENT_METHODS
from coatcheck.director.rules.forwarding import ClientAddress
from coatcheck.director.rules.limits import Limits
from coatcheck.director.rules.routing import Check, Health, servers_of
from coatcheck.director.rules.server_half import Ending
from coatcheck.director.rules.traffic import Attend, ConnectFault, Traffic
from coatcheck.director.rules.transitions import TRANSITIONS, ConnectionEvent, State
from coatcheck.director.rules.tunnel import Tunnel

READ: Final = 160
"""Bytes that one event carries at most."""
HIGH_WATER: Final = 60
LIMITS: Final = Limits(
    max_head_bytes=400, max_response_head_bytes=300, kept_body_bytes=200, held_response_bytes=120, max_waiting=2,
    max_connections=6, max_connections_per_address=5, max_websockets=1, max_idle_upstream=2, rate_window_s=4.0,
    header_timeout_s=10.0, keep_alive_timeout_s=20.0, first_byte_timeout_s=15.0, body_timeout_s=25.0,
    hold_response_s=8.0, linger_s=1.0,
    no_server_wait_s=3.0, resend_after_s=5.0, upstream_idle_s=4.0, websocket_timeout_s=50.0, tunnel_drain_s=10.0,
)  # fmt: skip
LONGEST_LIFE_S: Final = 400.0
"""After the last event every connection must have ended by then, on its deadlines alone."""
UNSENT_MOST: Final = HIGH_WATER + LIMITS.held_response_bytes + LIMITS.max_response_head_bytes + 5 * READ
ALLOWED_DEADLINES: Final = {
    State.IDLE: {DeadlineKind.HEADER, DeadlineKind.IDLE},
    State.HEAD: {DeadlineKind.HEADER, DeadlineKind.IDLE},
    State.PARKED: {DeadlineKind.QUEUE, DeadlineKind.NO_SERVER},
    State.CONNECTING: {DeadlineKind.ANSWER, DeadlineKind.BODY},
    State.SENT: {DeadlineKind.ANSWER, DeadlineKind.BODY},
    State.HELD: {DeadlineKind.HELD},
    State.REPLYING: {DeadlineKind.RESPONSE, DeadlineKind.BODY},
    State.LINGERING: {DeadlineKind.LINGER},
    State.CLOSING: {DeadlineKind.LINGER, DeadlineKind.HEADER},
}
seen: set[tuple[ConnectionEvent, State, State]] = set()
"""Every transition that was walked in this process."""


class WatchedConnection(ProxiedConnection):
    """The shipped machine; each event is held to the table."""

    __slots__ = ()


def _watch(event: ConnectionEvent) -> None:
    shipped = getattr(ProxiedConnection, event.value)

    def watched(self: WatchedConnection, *arguments: Any, **named: Any) -> None:
        before = self.state
        shipped(self, *arguments, **named)
        assert self.state in TRANSITIONS[event][before], (event, before, self.state)
        seen.add((event, before, self.state))

    setattr(WatchedConnection, event.value, watched)


for _event in ConnectionEvent:
    _watch(_event)


@dataclass
class WebServer:
    """The truth about a web server, which the director cannot see."""

    alive: bool = True
    blocked: bool = False


@dataclass(eq=False)
class Link:
    """A connection to a web server."""

    index: int
    owner: Client | None = None
    inbox: bytearray = field(default_factory=bytearray)
    unread: int = 0
    answered: bool = False
    full: bool = False
    reading: bool = True
    gone: bool = False
    rest: list[bytes] = field(default_factory=list)
    """What is still to come of a response that has begun."""
    ends: bool = False
    """Whether it has ended its side of a tunnel."""
    tunnel: Tunnel | None = None


@dataclass(eq=False)
class Client:
    """A browser, and the shell of its connection."""

    walk: Walk
    machine: WatchedConnection
    out: bytearray = field(default_factory=bytearray)
    requests: list[tuple[int, bytes]] = field(default_factory=list)
    """Number and method of each request whose head has been sent, in order."""
    to_send: bytearray = field(default_factory=bytearray)
    unsent: int = 0
    full: bool = False
    reading: bool = True
    connecting: Reach | None = None
    link: Link | None = None
    going_on: int = 0
    ended: bool = False
    closing: bool = False
    aborted: bool = False
    sent_eof: bool = False
    garbage: bool = False
    refused: bool = False
    """Whether there was no room for it."""
    lost: bool = False
    performing: bool = False
    tunnel: Tunnel | None = None

    def perform(self) -> None:
        if self.performing:
            return
        self.performing = True
        for action in self.machine.actions:
            self._do(action)
        self.machine.actions.clear()
        self.performing = False
        self.walk.flush()

    def _do(self, action: Any) -> None:
        if isinstance(action, ToClient):
            self.write(action.data)
        elif isinstance(action, ToServer):
            assert self.link is not None
            self.walk.write_to_server(self.link, action.data)
        elif isinstance(action, Reach):
            assert self.link is None and self.connecting is None
            link = None if action.fresh else self.walk.unused(action.server.index, certain=action.certain)
            if link is None:
                self.connecting = action
            else:
                self.attach(link, reused=True)
        elif isinstance(action, ReleaseServer):
            link, self.link = self.link, None
            assert link is not None
            link.owner = None
            if action.keep and not link.gone and not link.rest:
                self.walk.pools[link.index].append(link)
            else:
                link.gone = True
        else:
            self._obey(action)

    def _obey(self, order: Order) -> None:
        link = self.link
        if order is Order.LEAVE_SERVER:
            self.link = self.connecting = None
            if link is not None:
                link.owner, link.gone = None, True
        elif order in (Order.PAUSE_SERVER, Order.RESUME_SERVER):
            assert link is not None and link.reading is (order is Order.PAUSE_SERVER)
            link.reading = order is Order.RESUME_SERVER
        elif order in (Order.PAUSE_CLIENT, Order.RESUME_CLIENT):
            assert self.reading is (order is Order.PAUSE_CLIENT), "paused or resumed twice"
            self.reading = order is Order.RESUME_CLIENT
        elif order is Order.END_CLIENT:
            self.ended = True
        elif order is Order.CLOSE_CLIENT:
            self.closing = True
        elif order in (Order.ABORT_CLIENT, Order.RESET_CLIENT):
            self.closing = self.aborted = True
        elif order is Order.GO_ON:
            self.going_on += 1
        else:
            assert order is Order.JOIN and link is not None
            self.tunnel = link.tunnel = self.machine.join()
            self.walk.tunnels[self.tunnel] = (self, link)
            self.walk.perform_tunnel(self.tunnel)

    def attach(self, link: Link, *, reused: bool) -> None:
        self.link = link
        link.owner, link.answered = self, False
        link.inbox.clear()
        self.machine.connected(reused=reused, full=link.full)

    def write(self, data: bytes) -> None:
        assert not self.ended and not self.closing, "written after the end"
        self.out += data
        self.unsent += len(data)
        if self.unsent > HIGH_WATER and not self.full and not self.walk.tells_late:
            self.tell_of_fullness()

    def tell_of_fullness(self) -> None:
        if self.unsent > HIGH_WATER and not self.full:
            self.full = True
            if self.tunnel is not None:
                self.tunnel.full(TunnelSide.CLIENT)
            else:
                self.machine.client_full(self.unsent)


class Walk:
    """One farm of two web servers, a few clients, and a director."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.now = 1000.0
        self.servers = [WebServer(), WebServer()]
        self.states = servers_of([("web-0", "t0"), ("web-1", "t1")])
        for state in self.states:
            state.health = Health.HEALTHY
        self.traffic = Traffic(LIMITS, self.states, self.now, max_connections=LIMITS.max_connections, tls=False)
        self.clients: list[Client] = []
        self.pools: list[list[Link]] = [[], []]
        self.tunnels: dict[Tunnel, tuple[Client, Link]] = {}
        self.lost_ends: set[Link] = set()
        """Web servers' ends of tunnels that are known to be gone."""
        self.executed: dict[int, int] = {}
        self.methods: dict[int, bytes] = {}
        self.flushing = False
        self.stopping = False
        deeds: list[tuple[Callable[[], None], float]] = [
            (self.arrive, 3), (self.ask, 8), (self.send, 20), (self.take, 6), (self.eof, 0.7), (self.vanish, 0.5),
            (self.connect, 9), (self.serve, 15), (self.go_on_answering, 10), (self.read, 5), (self.cut, 1),
            (self.check, 3), (self.mishap, 1), (self.pass_time, 3), (self.go_on, 5), (self.talk_in_tunnels, 1),
            (self.end_of_closed, 5), (self.speak_unasked, 0.2), (self.tell_of_fullness, 4), (self.freeze, 0.5),
            (self.pass_time_to_a_deadline, 0.7), (self.die, 0.2),
        ]  # fmt: skip
        self.deeds = [deed for deed, _ in deeds]
        # Each walk has more of some deeds and less of others: rare meetings become likely in some of the walks.
        self.weights = [weight * rng.choice([0.1, 1, 1, 4]) for _, weight in deeds]
        self.tells_late = rng.random() < 0.5
        """Whether a full buffer is reported only later, as TLS transports do."""

    # The shell

    def flush(self) -> None:
        if self.flushing:
            return
        self.flushing = True
        for action in self.traffic.actions:
            if isinstance(action, Attend):
                if isinstance(action.member, Tunnel):
                    self.perform_tunnel(action.member)
                else:
                    next(client for client in self.clients if client.machine is action.member).perform()
            elif isinstance(action, CloseUnused):
                for pool in self.pools if action.server is None else [self.pools[action.server.index]]:
                    pool.clear()
            assert not isinstance(action, DropHandshake)
        self.traffic.actions.clear()
        self.flushing = False

    def perform_tunnel(self, tunnel: Tunnel) -> None:
        client, link = self.tunnels[tunnel]
        for action in tunnel.actions:
            if isinstance(action, ToClient):
                if not client.closing:
                    client.write(action.data)
            elif isinstance(action, ToServer):
                if not link.gone:
                    self.write_to_server(link, action.data)
            else:
                self._order_tunnel(client, link, action)
        tunnel.actions.clear()

    def _order_tunnel(self, client: Client, link: Link, action: AtEnd) -> None:
        at_client = action.side is TunnelSide.CLIENT
        if action.order in (TunnelOrder.PAUSE, TunnelOrder.RESUME):
            end: Client | Link = client if at_client else link
            end.reading = action.order is TunnelOrder.RESUME
        elif action.order is TunnelOrder.END:
            if at_client:
                client.ended = True
        elif at_client:
            client.closing = True
            client.aborted |= action.order is TunnelOrder.ABORT
        else:
            link.gone = True

    def unused(self, index: int, *, certain: bool) -> Link | None:
        pool = self.pools[index]
        while pool:
            link = pool.pop()
            if not link.gone and (not certain or self.servers[index].alive):
                return link
        return None

    def write_to_server(self, link: Link, data: bytes) -> None:
        link.inbox += data
        link.unread += len(data)
        assert link.unread <= UNSENT_MOST + LIMITS.max_head_bytes, "more is buffered for a web server than named"
        if link.unread > HIGH_WATER and not link.full:
            link.full = True
            if link.tunnel is not None:
                link.tunnel.full(TunnelSide.SERVER)
            elif link.owner is not None:
                link.owner.machine.server_full()

    # What happens

    def step(self) -> None:
        self.rng.choices(self.deeds, self.weights)[0]()
        self.check_promises()

    def some(self, clients: list[Client]) -> Client | None:
        return self.rng.choice(clients) if clients else None

    def open_clients(self) -> list[Client]:
        return [client for client in self.clients if not client.lost]

    def talking(self) -> list[Client]:
        return [client for client in self.open_clients() if not client.closing and client.tunnel is None]

    def reachable(self) -> list[Client]:
        return [client for client in self.open_clients() if not client.aborted and client.tunnel is None]

    def arrive(self) -> None:
        if len(self.clients) >= 12:
            return
        address = ClientAddress(self.rng.choice(["192.0.2.1", "192.0.2.2"]), tls=False, trusted=())
        machine = WatchedConnection(self.traffic, address, can_half_close=self.rng.random() < 0.8)
        client = Client(self, machine)
        self.clients.append(client)
        machine.opened()
        client.perform()
        client.refused = bool(client.out)

    def ask(self) -> None:
        client = self.some([c for c in self.talking() if not c.sent_eof and not c.garbage])
        if client is None or len(client.to_send) > 1500:
            return
        rng, number = self.rng, len(self.methods)
        method = rng.choice([b"GET", b"GET", b"HEAD", b"PUT", b"POST", b"PATCH"])
        version = b"1.0" if rng.random() < 0.1 else b"1.1"
        head = b"%b /n%d HTTP/%b\r\nHost: a\r\n" % (method, number, version)
        roll = rng.random()
        body = b""
        if roll < 0.05 and version == b"1.1":
            method, head = b"GET", b"GET /n%d HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\n" % number
            head += b"Upgrade: websocket\r\n"
        elif roll < 0.25:
            body = b"b" * rng.choice([1, 150, 700])
            head += b"Content-Length: %d\r\n" % len(body)
            head += rng.choice([b"", b"Expect: 100-continue\r\n"])
        elif roll < 0.35 and version == b"1.1":
            body = b"96\r\n" + b"c" * 150 + b"\r\n" + rng.choice([b"0\r\n\r\n", b"zz\r\n"])
            client.garbage = b"zz" in body
            head += b"Transfer-Encoding: chunked\r\n"
        elif roll < 0.4:
            head = head.replace(b"/n", b"/.well-known/coatcheck/n")
        elif roll < 0.43:
            client.garbage = True
            head = rng.choice([b"\x00\x01 nonsense\r\n", b"GET /x HTTP/1.1\r\n", b"X" * 500])
        head += rng.choice([b"", b"", b"", b"Connection: close\r\n", b"Connection: keep-alive\r\n"])
        if rng.random() < 0.4:
            head += b"Cookie: coatcheck-route=t%d\r\n" % rng.randrange(2)
        self.methods[number] = method
        client.requests.append((number, method))
        client.to_send += head + b"\r\n" + body

    def send(self) -> None:
        client = self.some([c for c in self.reachable() if c.to_send and c.reading and not c.sent_eof])
        if client is not None:
            size = self.rng.choice([1, 20, READ, READ, READ])
            data = bytes(client.to_send[:size])
            del client.to_send[:size]
            client.machine.client_bytes(data)
            client.perform()

    def take(self) -> None:
        client = self.some([c for c in self.open_clients() if c.unsent])
        if client is None:
            return
        client.unsent = self.rng.choice([0, client.unsent // 2, client.unsent - 1])
        if client.full and client.unsent <= HIGH_WATER // 4:
            client.full = False
            if client.tunnel is not None:
                client.tunnel.ready(TunnelSide.CLIENT)
                self.perform_tunnel(client.tunnel)
            else:
                client.machine.client_ready()
                client.perform()

    def tell_of_fullness(self) -> None:
        client = self.some([c for c in self.open_clients() if c.unsent > HIGH_WATER and not c.full])
        if client is not None:
            client.tell_of_fullness()
            if client.tunnel is not None:
                self.perform_tunnel(client.tunnel)
            else:
                client.perform()

    def eof(self) -> None:
        client = self.some([c for c in self.reachable() if c.reading and not c.sent_eof])
        if client is not None:
            client.sent_eof = True
            client.machine.client_eof()
            client.perform()

    def vanish(self) -> None:
        client = self.some([c for c in self.open_clients() if c.tunnel is None])
        if client is not None:
            self.lose(client)

    def lose(self, client: Client) -> None:
        client.lost = True
        if client.tunnel is not None:
            client.tunnel.lost(TunnelSide.CLIENT)
            self.perform_tunnel(client.tunnel)
        else:
            client.machine.client_lost()
            client.perform()

    def end_of_closed(self) -> None:
        """What was closed is gone when its bytes have left."""
        client = self.some([c for c in self.open_clients() if c.closing and (c.aborted or not c.unsent)])
        if client is not None:
            self.lose(client)

    def connect(self) -> None:
        client = self.some([c for c in self.open_clients() if c.connecting is not None])
        if client is None:
            return
        reach, client.connecting = client.connecting, None
        assert reach is not None
        server = self.servers[reach.server.index]
        if server.alive and self.rng.random() < 0.9:
            client.attach(Link(reach.server.index), reused=False)
        else:
            fault = ConnectFault.REFUSED if not server.alive else self.rng.choice(list(ConnectFault))
            client.machine.not_connected(self.traffic.connect_failed(reach.server, fault, "so the seed said"))
        client.perform()

    def links(self) -> list[Link]:
        return [c.link for c in self.open_clients() if c.link is not None and c.tunnel is None]

    def serve(self) -> None:
        """A web server reads a request, carries it out, and begins its answer."""
        links = [link for link in self.links() if self.fit(link) and not link.answered and b"\r\n\r\n" in link.inbox]
        if not links:
            return
        link = self.rng.choice(links)
        match = re.match(rb"([A-Z]+) /n(\d+) ", link.inbox)
        assert match is not None, bytes(link.inbox[:80])
        number, whole = int(match[2]), self.is_whole(bytes(link.inbox))
        if not whole and self.rng.random() < 0.8:
            if b"Expect:" in link.inbox and self.rng.random() < 0.5:
                self.give(link, b"HTTP/1.1 100 Continue\r\n\r\n")
            return
        self.executed[number] = self.executed.get(number, 0) + 1
        link.answered = True
        pieces = self.answer(number, match[1], b"Upgrade: websocket" in link.inbox)
        link.rest = pieces[1:]
        self.give(link, pieces[0])

    def is_whole(self, request: bytes) -> bool:
        head, _, body = request.partition(b"\r\n\r\n")
        length = re.search(rb"Content-Length: (\d+)", head)
        if b"chunked" in head:
            return body.endswith(b"0\r\n\r\n")
        return length is None or len(body) == int(length[1])

    def answer(self, number: int, method: bytes, websocket: bool) -> list[bytes]:
        rng, mark = self.rng, b"id:%d;" % number
        roll = rng.random()
        if websocket and roll < 0.7:
            upgrade = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
            return [upgrade + rng.choice([b"", b"first"])]
        if roll < 0.05:
            return [rng.choice([b"HTTP/9 nonsense\r\n\r\n", b"H" * READ, b"HTTP/1.1 101 No\r\n\r\n"])]
        if roll < 0.1:
            return [b"HTTP/1.1 204 No Content\r\n\r\n"]
        hints = b"HTTP/1.1 103 Early Hints\r\n\r\n" if rng.random() < 0.1 else b""
        if roll < 0.2:
            whole = hints + b"HTTP/1.1 200 OK\r\n\r\n" + (b"" if method == b"HEAD" else mark + b"z" * 50)
            return [*self.pieces(whole), b""]
        if roll < 0.35:
            chunks = b"%x\r\n%b\r\n96\r\n%b\r\n0\r\n\r\n" % (len(mark), mark, b"y" * 150)
            chunks = chunks.replace(b"96\r\n", b"no\r\n") if rng.random() < 0.1 else chunks
            body = b"" if method == b"HEAD" else chunks
            return self.pieces(hints + b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + body)
        body = mark + b"x" * rng.choice([0, 20, 90, 90, 90, 600])
        close = rng.choice([b"", b"", b"Connection: close\r\n"])
        surplus = b"surplus" if rng.random() < 0.03 and method != b"HEAD" else b""
        head = hints + b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%b\r\n" % (len(body), close)
        return self.pieces(head + (b"" if method == b"HEAD" else body) + surplus)

    def pieces(self, whole: bytes) -> list[bytes]:
        size = self.rng.choice([30, 30, READ])
        return [whole[at : at + size] for at in range(0, len(whole), size)]

    def fit(self, link: Link) -> bool:
        server = self.servers[link.index]
        return server.alive and not server.blocked and link.reading and not link.gone

    def give(self, link: Link, data: bytes) -> None:
        owner = link.owner
        if owner is None or link.gone:
            return
        if data:
            owner.machine.server_bytes(data)
        else:
            self.end_link(link, Ending.CLEAN)
        owner.perform()

    def go_on_answering(self) -> None:
        links = [link for link in self.links() if self.fit(link) and link.rest]
        if links:
            link = self.rng.choice(links)
            self.give(link, link.rest.pop(0))

    def read(self) -> None:
        links = [link for link in self.links() if link.unread and self.fit(link)]
        if links:
            link = self.rng.choice(links)
            link.unread = 0
            if link.full and link.owner is not None:
                link.full = False
                link.owner.machine.server_ready()
                link.owner.perform()

    def end_link(self, link: Link, ending: Ending) -> None:
        link.gone = True
        if link.owner is not None:
            link.owner.machine.server_ended(ending)

    def cut(self) -> None:
        links = self.links()
        if links:
            link = self.rng.choice(links)
            owner = link.owner
            self.end_link(link, self.rng.choice(list(Ending)))
            if owner is not None:
                owner.perform()

    def speak_unasked(self) -> None:
        self.traffic.heard(self.rng.choice(self.states))
        self.flush()

    def check(self) -> None:
        index = self.rng.randrange(2)
        server = self.servers[index]
        shown = Check.REFUSED if not server.alive else Check.SILENT if server.blocked else Check.PASSED
        self.traffic.health_checked(self.states[index], shown)
        self.flush()

    def mishap(self) -> None:
        rng, index = self.rng, self.rng.randrange(2)
        server, state = self.servers[index], self.states[index]
        roll = rng.random()
        if roll < 0.3:
            server.blocked = not server.blocked
        elif roll < 0.55 and server.alive:
            server.alive = server.blocked = False
            if rng.random() < 0.5:
                self.traffic.server_died(state)
                self.flush()
            for link in self.links():
                if link.index == index and link.owner is not None:
                    owner = link.owner
                    self.end_link(link, rng.choice([Ending.CLEAN, Ending.RESET]))
                    owner.perform()
        elif roll < 0.85:
            server.alive = True
        elif roll < 0.97:
            self.traffic.set_draining(state, draining=not state.draining)
            self.flush()
        elif rng.random() < 0.3:
            self.stopping = True
            self.traffic.stop()
            self.flush()
        elif self.traffic.make_room():
            self.flush()

    def pass_time(self) -> None:
        seconds = self.rng.choice([0.1, 0.1, 0.5, 2.0, 6.0, 12.0])
        for _ in range(2):
            self.tick(seconds / 2)

    def pass_time_to_a_deadline(self) -> None:
        client = self.some([c for c in self.reachable() if c.machine.due_at < self.now + 100])
        if client is not None:
            self.tick(max(0.1, client.machine.due_at - self.now))

    def freeze(self) -> None:
        """A web server that has a request is blocked, and that is noticed."""
        links = [link for link in self.links() if self.servers[link.index].alive]
        if links:
            index = self.rng.choice(links).index
            self.servers[index].blocked = True
            for _ in range(2):
                self.traffic.health_checked(self.states[index], Check.SILENT)
                self.flush()
            self.tick(self.rng.choice([0.1, LIMITS.resend_after_s]))

    def die(self) -> None:
        """A web server that has a request dies, and the supervisor says so before its connections do."""
        links = self.links()
        if links:
            link = self.rng.choice(links)
            self.servers[link.index].alive = self.servers[link.index].blocked = False
            self.traffic.server_died(self.states[link.index])
            self.flush()

    def tick(self, seconds: float) -> None:
        self.now += seconds
        unsent = {client.machine: client.unsent for client in self.clients}
        self.traffic.tick(self.now, lambda member: unsent[member])  # type: ignore[index]
        self.flush()

    def go_on(self) -> None:
        client = self.some([c for c in self.clients if c.going_on and c.tunnel is None])
        if client is not None:
            client.going_on -= 1
            client.machine.go_on()
            client.perform()

    def talk_in_tunnels(self) -> None:
        if not self.tunnels:
            return
        tunnel, (client, link) = self.rng.choice(list(self.tunnels.items()))
        roll = self.rng.random()
        if link.gone or roll < 0.1:
            self.lose_server_end(tunnel, link)
        elif client.lost:
            return
        elif roll < 0.5 and client.reading and not client.sent_eof:
            tunnel.came(TunnelSide.CLIENT, b"frame")
        elif roll < 0.9 and link.reading and not link.ends:
            tunnel.came(TunnelSide.SERVER, b"frame")
        elif roll < 0.95 and not link.ends:
            link.ends = True
            tunnel.ended(TunnelSide.SERVER)
        elif not client.sent_eof:
            client.sent_eof = True
            tunnel.ended(TunnelSide.CLIENT)
        self.perform_tunnel(tunnel)

    def lose_server_end(self, tunnel: Tunnel, link: Link) -> None:
        link.gone = True
        if link not in self.lost_ends:
            self.lost_ends.add(link)
            tunnel.lost(TunnelSide.SERVER)
            self.perform_tunnel(tunnel)

    # What must hold

    def check_promises(self) -> None:
        in_flight = [0, 0]
        for client in self.clients:
            machine = client.machine
            if client.tunnel is not None:
                joined = not client.lost and self.tunnels[client.tunnel][1] not in self.lost_ends
                in_flight[client.tunnel.server.index] += joined
                continue
            assert not machine.actions, "something was left undone"
            if machine.server is not None:
                in_flight[machine.server.index] += 1
            self._check_state(client)
            self._check_buffers(client)
        assert [state.in_flight for state in self.states] == in_flight
        parked = {client.machine for client in self.clients if client.machine.state is State.PARKED}
        assert set(self.traffic.waiting) == parked and len(parked) <= LIMITS.max_waiting
        held = sum(client.tunnel is None for client in self.open_clients()) + len(self.traffic.tunnels)
        assert self.traffic.admission.connections == held
        for number, times in self.executed.items():
            most = 2 if self.methods[number] in IDEMPOTENT_METHODS else 1
            assert times <= most, f"request {number} was carried out {times} times"

    def _check_state(self, client: Client) -> None:
        machine, state = client.machine, client.machine.state
        assert client.lost is (state is State.CLOSED)
        assert (client.connecting is not None) is (state is State.CONNECTING)
        assert (client.link is not None) is (state in (State.SENT, State.HELD, State.REPLYING))
        assert client.closing is (state is State.CLOSING) or client.lost
        if state is State.CLOSED:
            return
        deadline = machine.deadline
        kinds = ALLOWED_DEADLINES[state] | ({DeadlineKind.CLIENT_TAKES} if client.full else set())
        assert deadline.kind in kinds, (state, deadline)
        assert deadline.why
        if not (state is State.CLOSING and client.aborted):
            assert deadline.at <= self.now + getattr(LIMITS, LIMIT_OF[deadline.kind]) + max(
                LIMITS.body_timeout_s, LIMITS.keep_alive_timeout_s
            )
        if state is State.HEAD and not client.full:
            assert client.going_on or machine._due is DeadlineKind.HEADER, "a head that is not whole must have its own"

    def _check_buffers(self, client: Client) -> None:
        machine = client.machine
        assert len(machine._stream.buffer) <= LIMITS.max_head_bytes + READ
        assert sum(map(len, machine._held)) <= LIMITS.held_response_bytes + LIMITS.max_response_head_bytes
        assert len(machine._response._buffer) <= LIMITS.max_response_head_bytes
        if machine.is_under_way and machine._kept is not None:
            assert sum(map(len, machine._kept)) <= LIMITS.kept_body_bytes + 2 * READ
        assert client.unsent <= UNSENT_MOST or self.tells_late, "more is buffered for a client than named"

    def let_all_end(self) -> None:
        """Nothing happens any more but time: every connection must end, and every request be answered or broken."""
        self.traffic.stop()
        self.flush()
        ends_at = self.now + LONGEST_LIFE_S
        while (self.open_clients() or self.traffic.tunnels) and self.now < ends_at:
            self.tick(0.5)
            for client in self.open_clients():
                while client.going_on and client.tunnel is None:
                    client.going_on -= 1
                    client.machine.go_on()
                    client.perform()
                if client.closing and (client.aborted or not client.full):
                    self.lose(client)
            for tunnel, (_, link) in self.tunnels.items():
                if link.gone:
                    self.lose_server_end(tunnel, link)
            self.check_promises()
        assert not self.open_clients(), [client.machine.deadline for client in self.open_clients()]
        assert not any(state.in_flight for state in self.states)
        assert not self.traffic.connections and not self.traffic.waiting and not self.traffic.tunnels
        for client in self.clients:
            if not client.refused:
                self.check_answers(client)

    def check_answers(self, client: Client) -> None:
        """Each request has one answer at most, in order, and none has another one's."""
        out, asked = bytes(client.out), list(client.requests)
        while out:
            match = re.match(rb"HTTP/1\.1 (\d{3})[^\r]*\r\n", out)
            assert match is not None, out[:100]
            head, separator, rest = out.partition(b"\r\n\r\n")
            if not separator:
                return  # Broken off.
            status = int(match[1])
            if 100 <= status < 200:
                out = rest
                if status == 101:
                    return
                continue
            if not asked:
                assert status in (400, 408, 429, 431, 503), "an answer that nobody asked for"
                return
            number, method = asked.pop(0)
            if status in (400, 408, 431):
                return  # A refusal is the last answer, and may have a body even if the head began with HEAD.
            length = re.search(rb"(?i)content-length: (\d+)", head)
            body, out = rest, b""
            if method == b"HEAD" or status == 204:
                body, out = b"", rest
            elif length is not None:
                body, out = rest[: int(length[1])], rest[int(length[1]) :]
            elif b"chunked" in head:
                end = rest.find(b"0\r\n\r\n")
                body, out = (rest, b"") if end < 0 else (rest[: end + 5], rest[end + 5 :])
            for found in re.findall(rb"id:(\d+);", body):
                assert int(found) == number, f"request {number} got the answer of {int(found)}"


def walk(rng: random.Random, steps: int) -> None:
    """Take so many random steps, and then let everything end."""
    farm = Walk(rng)
    farm.arrive()
    for _ in range(steps):
        farm.step()
    farm.let_all_end()
