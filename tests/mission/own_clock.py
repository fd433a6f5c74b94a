"""The sessions of one web server in this process, on a clock that the test sets."""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from coatcheck.drivers.sessions import Sessions
from coatcheck.events import Event, EventKind
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SealedToken
from in_hand import opened, saved


class OwnClock:
    """``now_ms`` is what the web server takes for the time; the session servers keep everything meanwhile."""

    def __init__(self, policy: SessionPolicy, servers: int) -> None:
        self.now_ms = 1_763_700_000_000
        self.events: list[Event] = []
        self.stores = [MemoryStore(f"session-{n}", time.monotonic) for n in range(1, servers + 1)]
        self.ring = KeyRing([os.urandom(32)])
        self.sessions = Sessions(
            farm="farm",
            server_name="web-1",
            stores=self.stores,
            ring=self.ring,
            policy=policy,
            observer=self.events.append,
        )
        self.sessions.copies.world.now_ms = lambda: self.now_ms  # type: ignore[method-assign]

    async def create(self) -> SealedToken:
        session = Session()
        session["cart"] = "tea"
        issue = (await saved(self.sessions, session)).issue
        assert issue is not None
        return issue.token

    @asynccontextmanager
    async def another_server(self) -> AsyncIterator[Sessions]:
        """A web server that has cached nothing: all that it knows, it has from the session servers."""
        sessions = Sessions(
            farm="farm", server_name="web-2", stores=self.stores, ring=self.ring, policy=self.sessions.lifecycle.policy
        )
        sessions.copies.world.now_ms = lambda: self.now_ms  # type: ignore[method-assign]
        await sessions.start()
        try:
            yield sessions
        finally:
            await sessions.aclose()

    async def open(self, token: SealedToken, sessions: Sessions | None = None) -> Session | None:
        """As the middleware does it: from the cache, else with the session servers."""
        sessions = sessions or self.sessions
        return await opened(sessions, token)

    async def use(self, token: SealedToken) -> SealedToken:
        """One request; returns what the browser holds afterwards."""
        session = await self.open(token)
        assert session is not None
        issue = (await saved(self.sessions, session)).issue
        return token if issue is None else issue.token

    def kinds(self) -> list[EventKind]:
        return [event.kind for event in self.events]


@asynccontextmanager
async def own_clock(policy: SessionPolicy, servers: int = 2) -> AsyncIterator[OwnClock]:
    clock = OwnClock(policy, servers)
    await clock.sessions.start()
    try:
        yield clock
    finally:
        await clock.sessions.aclose()
