"""Web servers and session servers in one thread: flows run to their end at once, and time passes when they pause.

Deterministic, without sockets or sleep. A test freezes, empties or bends a session server, and lets other
web servers act between two puts of a flow.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, TypeVar

from coatcheck.errors import CoatcheckError
from coatcheck.events import Event, EventKind
from coatcheck.replication.copies import Copies
from coatcheck.replication.effects import (
    Accepted,
    Acknowledge,
    Detach,
    Exclusive,
    Flow,
    FreshKeys,
    Get,
    GetReply,
    Gotten,
    Pause,
    Put,
    PutReply,
    Refused,
    Rest,
    Settled,
    Tell,
    Together,
    Unreachable,
    as_flow,
)
from coatcheck.replication.entry import Entry
from coatcheck.replication.notice import EVERYBODY, Notice, decode_message
from coatcheck.replication.placement import Copies as CopiesWanted
from coatcheck.replication.placement import Placement
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.put_rule import Verdict, judge_entries, servers_to_notify
from coatcheck.replication.repair import Repair
from coatcheck.replication.version import Version
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.saving import Saved
from coatcheck.tokens.keyring import KeyRing, PayloadSealer
from coatcheck.tokens.sealed import SealedToken

T = TypeVar("T")
START_MS = 1_800_000_000_000


ROUTINE = frozenset(
    {
        EventKind.SESSION_CREATED,
        EventKind.SESSION_LOGIN,
        EventKind.SESSION_REGENERATED,
        EventKind.SESSION_ROTATED,
    }
)


class SessionServer:
    """Keeps what the put rule accepts. ``down``: known to be away. ``silent``: away, and nobody knows yet.
    ``forgets_answers``: takes puts, but its answers are lost."""

    def __init__(self, farm: Farm, name: str) -> None:
        self.farm = farm
        self.name = name
        self.down = self.silent = self.forgets_answers = False
        self.stored: dict[bytes, tuple[Entry, int]] = {}
        self.notified: list[bytes] = []
        """The web servers that it has sent a notice to."""

    def entry(self, key: bytes) -> Entry | None:
        entry, expires_at = self.stored.get(key, (None, 0))
        left = expires_at - self.farm.now_ms
        if entry is None or left <= 0:
            return None
        return Entry(entry.version, entry.history, entry.closed, left, entry.payload, entry.provisional)

    def get(self, key: bytes) -> GetReply:
        return Unreachable() if self.down or self.silent else self.entry(key)

    def put(self, key: bytes, seen: Version | None, new: Entry, notify: bytes) -> PutReply:
        if self.down or self.silent:
            return Unreachable()
        stored = self.entry(key)
        verdict = judge_entries(stored, seen, new)
        if verdict is Verdict.REFUSED:
            return Refused(stored)
        self.set(key, new)
        for server_id in servers_to_notify(verdict, None if stored is None else stored.header(), notify):
            self.notified.append(server_id)
            self.farm.deliver(server_id, Notice(key, new.version, new.closed).encode())
        return Unreachable("answer lost") if self.forgets_answers else Accepted()

    def set(self, key: bytes, entry: Entry) -> None:
        self.stored[key] = entry, self.farm.now_ms + entry.expires_in_ms


class WebServer:
    """One web server: also its own surroundings, and the one who answers its flows."""

    def __init__(self, farm: Farm, number: int) -> None:
        self.farm = farm
        self.events: list[Event] = []
        self.server_id = b"w%02d" % number
        self._random = random.Random(number)
        self.during_put: list[Callable[[], object]] = []
        """What others do while each of the next puts is on its way."""
        self.during_pause: list[Callable[[], object]] = []
        """What others do while each of its next pauses lasts."""
        self.background: list[_Run] = []
        self.running: set[bytes] = set()
        self.cut: set[str] = set()
        """The session servers that this web server cannot reach, and it knows."""
        sealer = PayloadSealer(farm.ring, "farm", self.random_bytes)
        self.copies = Copies(self.server_id, farm.placement, farm.replication, sealer, self)
        self.lifecycle = Lifecycle(self.copies, farm.policy)
        self.repairs = Repair(self.copies)

    # -- its surroundings

    def needing_repair(self) -> list[bytes]:
        """The sessions that a repair in the background would look at now."""
        return list(filter(self.repairs.needs, dict.fromkeys(self.repairs.every())))

    def now_ms(self) -> int:
        return self.farm.now_ms

    def monotonic(self) -> float:
        return self.farm.now_ms / 1000

    def random_bytes(self, count: int) -> bytes:
        return self._random.randbytes(count)

    def jitter(self) -> float:
        return 0.5

    def reachable(self, server: str) -> bool:
        return server not in self.cut and not self.farm.servers[server].down

    def report(self, event: Event) -> None:
        self.events.append(event)

    # -- what the tests call

    def run(self, work: Flow[T] | Exclusive) -> T:
        result: T = _Run(self, as_flow(work)).go()
        return result

    def exclusively(self, key: bytes, flow: Flow[T]) -> T:
        def outer() -> Flow[T]:
            result: T = yield Exclusive(key, flow)
            return result

        return self.run(outer())

    def settle(self) -> None:
        """Let what was acknowledged early go on to its end."""
        while self.background:
            self.background.pop().go()

    def open(self, token: SealedToken, login: bool = False) -> Session | None:
        return self.lifecycle.open_cached(token, login) or self.run(self.lifecycle.open(token, login))

    def opened(self, token: SealedToken, login: bool = False) -> Session:
        session = self.open(token, login)
        assert session is not None, [event.detail for event in self.events]
        return session

    def save(self, session: Session) -> Saved:
        saved = self.lifecycle.finish(session)
        return saved if isinstance(saved, Saved) else self.run(saved)

    def create(self, **data: Any) -> SealedToken:
        saved = self.save(Session(data))
        assert saved.issue is not None
        return saved.issue.token

    def write(self, token: SealedToken, **data: Any) -> SealedToken:
        """One request that sets some keys; returns what the browser holds afterwards."""
        session = self.opened(token)
        session.update(data)
        saved = self.save(session)
        return saved.issue.token if saved.issue else token

    def read(self, token: SealedToken, login: bool = False) -> dict[str, Any] | None:
        """What an app finds; ``None`` if the token opens nothing."""
        session = self.open(token, login)
        return None if session is None else dict(session)

    def kinds(self) -> list[EventKind]:
        """What was reported, but for what is audited of a session that goes well."""
        return [event.kind for event in self.events if event.kind not in ROUTINE]


class Farm:
    """``servers`` session servers and as many web servers as are asked for."""

    def __init__(
        self,
        servers: int = 2,
        copies: CopiesWanted = 2,
        policy: SessionPolicy | None = None,
        **replication: Any,
    ) -> None:
        self.now_ms = START_MS
        self.policy = policy or SessionPolicy()
        replication = {"tombstone_ms": self.policy.tombstone_ms, "linger_ms": self.policy.linger_ms} | replication
        self.replication = ReplicationPolicy(**replication)
        self.ring = KeyRing([b"A" * 32])
        self.servers = {name: SessionServer(self, name) for name in [f"s{n}" for n in range(1, servers + 1)]}
        self.placement = Placement(list(self.servers), copies)
        self.webs: list[WebServer] = []
        self.notices = True
        """Whether messages between web servers arrive."""

    def web(self) -> WebServer:
        self.webs.append(WebServer(self, len(self.webs) + 1))
        return self.webs[-1]

    def two_webs(self) -> tuple[WebServer, WebServer]:
        return self.web(), self.web()

    def wait(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)

    def ranked(self, key: bytes) -> list[SessionServer]:
        """The session servers, best first for this session."""
        return [self.servers[name] for name in self.placement.ranking(key)]

    def entries(self, key: bytes) -> list[Entry | None]:
        return [server.entry(key) for server in self.ranked(key)]

    def tell(self, effect: Tell) -> None:
        self.deliver(effect.server_id, effect.message)

    def deliver(self, server_id: bytes, raw: bytes) -> None:
        for web in self.webs:
            if server_id in (web.server_id, EVERYBODY) and self.notices:
                answer = web.copies.on_message(decode_message(raw))
                if answer is not None:
                    self.deliver(answer.server_id, answer.message)

    def backup(self) -> list[dict[bytes, tuple[Entry, int]]]:
        return [dict(server.stored) for server in self.servers.values()]

    def restore(self, backup: list[dict[bytes, tuple[Entry, int]]]) -> None:
        """All session servers restart with an old state."""
        for server, stored in zip(self.servers.values(), backup, strict=True):
            server.stored = dict(stored)


def _outcome(web: WebServer, flow: Flow[Any]) -> Any:
    try:
        return _Run(web, flow).go()
    except CoatcheckError as error:
        return error


class _Run:
    """One flow on its way; stops when it acknowledges early, to be continued by :meth:`WebServer.settle`."""

    def __init__(self, web: WebServer, flow: Flow[Any], early: bool = False) -> None:
        self.web = web
        self.flows: list[tuple[Flow[Any], bytes | None]] = [(flow, None)]
        self.early = early
        self.answer: Any = None
        self.failure: Exception | None = None

    def go(self) -> Any:
        while True:
            flow = self.flows[-1][0]
            try:
                effect = flow.send(self.answer) if self.failure is None else flow.throw(self.failure)
            except StopIteration as end:
                self._ended(end.value, None)
            except Exception as error:  # noqa: BLE001 - it belongs to the flow that asked for this one
                self._ended(None, error)
            else:
                self.answer = self.failure = None
                if isinstance(effect, Acknowledge):
                    if self.early:
                        self.early = False
                        self.web.background.append(self)
                        return effect.result
                elif isinstance(effect, Exclusive):
                    assert effect.key not in self.web.running, "a flow waits for itself"
                    self.web.running.add(effect.key)
                    self.flows.append((effect.flow, effect.key))
                else:
                    self._do(effect)
                continue
            if not self.flows:
                if self.failure is not None:
                    raise self.failure
                return self.answer

    def _ended(self, answer: Any, failure: Exception | None) -> None:
        self.answer, self.failure = answer, failure
        _, key = self.flows.pop()
        if key is not None:
            self.web.running.discard(key)

    def _do(self, effect: Any) -> None:
        web, farm = self.web, self.web.farm
        if isinstance(effect, Get):
            self.answer = Gotten(web.monotonic(), {name: self._get(name, effect.key) for name in effect.servers})
        elif isinstance(effect, Put):
            self.answer = self._put(effect)
        elif isinstance(effect, Rest):
            settled = effect.settled
            for put, name in settled.pending:
                settled.replies[name] = self._offer(put, name)
            settled.pending = None
            self.answer = settled
        elif isinstance(effect, Pause):
            farm.wait(effect.seconds)
            if web.during_pause:
                web.during_pause.pop(0)()
        elif isinstance(effect, Tell):
            farm.tell(effect)
        elif isinstance(effect, FreshKeys):
            self.answer = True
        elif isinstance(effect, Together):
            self.answer = [_outcome(web, flow) for flow in effect.flows]
        else:
            assert isinstance(effect, Detach)
            try:
                self.answer = _Run(web, effect.flow, early=True).go()
            except Exception as error:  # noqa: BLE001 - the flow re-raises what it does not expect
                self.failure = error

    def _get(self, name: str, key: bytes) -> GetReply:
        return Unreachable() if name in self.web.cut else self.web.farm.servers[name].get(key)

    def _offer(self, put: Put, name: str) -> PutReply:
        if name in self.web.cut:
            return Unreachable()
        return self.web.farm.servers[name].put(put.key, put.seen[name], put.entry, put.notify)

    def _put(self, effect: Put) -> Settled:
        settled, waiting = Settled(self.web.monotonic(), {}), list(effect.seen)
        if self.web.during_put:
            self.web.during_put.pop(0)()
        while waiting and (effect.enough is None or settled.accepted() < effect.enough):
            name = waiting.pop(0)
            settled.replies[name] = self._offer(effect, name)
        settled.pending = [(effect, name) for name in waiting] or None
        return settled
