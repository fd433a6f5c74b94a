"""One, two, nine and sixteen session servers, each a real one behind a socket of its own: every request is answered."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

import pytest

from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import SessionUnavailable
from coatcheck.session_server.server import SessionServer
from coatcheck.sessions.issuing import Issue
from coatcheck.stores.session_server_store import SessionServerStore
from coatcheck.tokens.keyring import KeyRing

from .trade import begun, changed, opened

PATIENCE_S = 30.0
"""For answers on a busy machine: how long they take is not what this is about."""
COUNTS = [1, 2, 9, 16]


class ManyServers:
    """Session servers on sockets of this event loop, and web servers that use them."""

    def __init__(self, count: int) -> None:
        self.servers = [SessionServer(f"session-{number}") for number in range(1, count + 1)]
        self.ring = KeyRing([os.urandom(32)])
        self.web: list[Sessions] = []

    async def web_server(self) -> Sessions:
        stores = [SessionServerStore(one.name, "127.0.0.1", one.port, timeout_s=PATIENCE_S) for one in self.servers]
        sessions = Sessions(farm="farm", server_name=f"web-{len(self.web)}", stores=stores, ring=self.ring)
        self.web.append(sessions)
        await sessions.open()
        deadline = time.monotonic() + PATIENCE_S
        while not all(sessions.status()["session_servers"].values()):
            assert time.monotonic() < deadline, "a session server is not reached"
            await asyncio.sleep(0.005)
        return sessions

    def holders(self, key: bytes) -> list[str]:
        now_ms = time.monotonic_ns() // 1_000_000
        return [one.name for one in self.servers if one._state.table.get(key, now_ms) is not None]


@asynccontextmanager
async def many(count: int) -> AsyncIterator[ManyServers]:
    farm = ManyServers(count)
    for server in farm.servers:
        await server.start()
    try:
        yield farm
    finally:
        for sessions in farm.web:
            await sessions.aclose()
        for server in farm.servers:
            await server.stop()


@pytest.mark.parametrize("count", COUNTS)
def test_sessions_are_opened_changed_moved_and_closed(count: int) -> None:
    async def story() -> None:
        async with many(count) as farm:
            one, other = await farm.web_server(), await farm.web_server()
            issues: Sequence[Issue] = [await begun(one, n=number) for number in range(8)]
            for number, issue in enumerate(issues):
                assert len(farm.holders(issue.token.key)) == min(2, count)
                one.copies.void_leases()
                assert await opened(one, issue) == {"n": number}, "read again after the lease"
                newest = await changed(one, issue, lambda session, to=number + 100: session.update(n=to))
                assert await opened(other, newest) == {"n": number + 100}, "moved to another web server"
                assert len(farm.holders(issue.token.key)) == min(2, count)
            ends = await asyncio.gather(*(other.close_key(issue.token.key) for issue in issues))
            assert all(end.complete and end.servers == count for end in ends)
            for issue in issues:
                assert await opened(one, issue) is None

    asyncio.run(story())


@pytest.mark.parametrize("count", [9, 16])
def test_they_go_on_with_one_session_server_less_and_refuse_with_two(count: int) -> None:
    """With two copies, of nine servers eight answers are a read quorum: one may be away."""

    async def story() -> None:
        async with many(count) as farm:
            web, other = await farm.web_server(), await farm.web_server()
            issues = [await begun(web, n=number) for number in range(6)]
            await farm.servers[0].stop()
            for number, issue in enumerate(issues):
                assert await opened(other, issue) == {"n": number}
            await farm.servers[1].stop()
            with pytest.raises(SessionUnavailable):
                await opened(web, issues[0])

    asyncio.run(story())
