"""Sessions on stores in memory whose replies come when the loop gets round to them, and a book of all puts."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import in_hand
from coatcheck.drivers.sessions import Sessions
from coatcheck.events import Event
from coatcheck.replication.entry import Entry, encode_header
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.replication.version import Version
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import GetReply, PutReply
from coatcheck.tokens.keyring import KeyRing, PayloadSealer

LEASE_S = 0.05


class BookedStore(MemoryStore):
    """Takes a put at once; the reply takes ``turns`` of the event loop. Asserts that no version has two payloads."""

    turns = 1

    def __init__(self, name: str, book: dict[tuple[bytes, Version], tuple[bool, bytes]], sealer: PayloadSealer) -> None:
        super().__init__(name, time.monotonic)
        self.book, self.sealer = book, sealer
        self.puts = 0

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        self.puts += 1
        header = encode_header(new.version, new.history, new.closed)
        written = (new.closed, self.sealer.unseal(key, header, new.payload))
        assert self.book.setdefault((key, new.version), written) == written, "two payloads under one version"
        super().put(key, seen, new, self._later(reply), notify)

    def get(self, key: bytes, reply: Callable[[GetReply], None]) -> None:
        super().get(key, self._later(reply))

    def _later(self, reply: Callable[[Any], None]) -> Callable[[Any], None]:
        loop = asyncio.get_running_loop()

        def after(turns: int, answer: Any) -> None:
            if turns:
                loop.call_soon(after, turns - 1, answer)
            else:
                reply(answer)

        return lambda answer: after(self.turns, answer)


class Trade:
    """Web servers that share ``stores``."""

    def __init__(self, stores: int, policy: SessionPolicy, replication: ReplicationPolicy) -> None:
        self.book: dict[tuple[bytes, Version], tuple[bool, bytes]] = {}
        self.ring = KeyRing([os.urandom(32)])
        sealer = PayloadSealer(self.ring, "farm", os.urandom)
        self.stores = [BookedStore(f"session-{n}", self.book, sealer) for n in range(1, stores + 1)]
        self.policy, self.replication = policy, replication
        self.events: list[Event] = []
        self.servers: list[Sessions] = []

    async def server(self) -> Sessions:
        sessions = Sessions(
            farm="farm",
            server_name=f"web-{len(self.servers) + 1}",
            stores=self.stores,
            ring=self.ring,
            policy=self.policy,
            replication=self.replication,
            observer=self.events.append,
        )
        self.servers.append(sessions)
        await sessions.start()
        return sessions


@asynccontextmanager
async def trade(
    stores: int = 2, *, policy: SessionPolicy | None = None, replication: ReplicationPolicy | None = None
) -> AsyncIterator[Trade]:
    made = Trade(stores, policy or SessionPolicy(), replication or ReplicationPolicy(lease_s=LEASE_S))
    try:
        yield made
    finally:
        for sessions in made.servers:
            await sessions.aclose()


async def begun(sessions: Sessions, **data: Any) -> Issue:
    """A new session; what its browser holds."""
    session = Session()
    session.update(data or {"n": 0})
    issue = (await in_hand.saved(sessions, session)).issue
    assert issue is not None
    return issue


async def opened(sessions: Sessions, issue: Issue) -> Session | None:
    return await in_hand.opened(sessions, issue.token, issue.login)


async def changed(sessions: Sessions, issue: Issue, change: Callable[[Session], object]) -> Issue:
    """One request of a browser: open, change, save; what the browser holds afterwards."""
    session = await opened(sessions, issue)
    assert session is not None
    change(session)
    return (await in_hand.saved(sessions, session)).issue or issue
