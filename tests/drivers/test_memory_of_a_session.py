"""What one more hosted session takes in a web server: bytes, and objects for the garbage collector to visit.

The sessions are made, read and written as browsers do it, by three session servers that take everything.
"""

from __future__ import annotations

import asyncio
import gc
import time
import tracemalloc
from collections.abc import Callable

import pytest

from coatcheck.drivers.sessions import Sessions
from coatcheck.replication.cache import Cache
from coatcheck.replication.entry import Entry
from coatcheck.replication.placement import Placement
from coatcheck.replication.version import Version
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import ACCEPTED, PutReply
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import TokenCodec

SESSIONS = 1500
DATA = {"user": "a" * 20, "cart": "x" * 390}
"""430 bytes as JSON."""
MAX_BYTES = 1050
MIN_BYTES = 900
"""Less would be so good that the bound is to be lowered."""


class TakesAll(MemoryStore):
    """Says that it has stored everything, and keeps nothing."""

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        asyncio.get_running_loop().call_soon(reply, ACCEPTED)


async def visit(sessions: Sessions, cookie: bytes, n: int | None) -> bytes:
    """One request that writes (``n``), or reads (``None``); answers what the browser shows with the next."""
    opened = await sessions.open(cookie)
    if n is None:
        assert opened.session["cart"] == DATA["cart"]
    else:
        opened.session.update(DATA, n=n)
    told = (await sessions.finish(opened)).headers
    pairs = [value.partition(b";")[0] for name, value in told if name.lower() == b"set-cookie"]
    return b"; ".join(pairs) or cookie


async def three_visits(sessions: Sessions, browsers: int) -> None:
    for _ in range(browsers):
        cookie = await visit(sessions, b"", 1)
        cookie = await visit(sessions, cookie, None)
        cookie = await visit(sessions, cookie, 2)
        await visit(sessions, cookie, None)


async def grown_by() -> tuple[float, float]:
    """Bytes and tracked objects for each session more."""
    stores = [TakesAll(f"session-{number}", time.monotonic) for number in range(1, 4)]
    sessions = Sessions(farm="farm", server_name="web-1", stores=stores, ring=KeyRing([bytes(32)]), in_memory=True)
    await sessions.start()
    tracemalloc.start()
    try:
        await three_visits(sessions, 200)
        gc.collect()
        before, tracked, hosted = tracemalloc.get_traced_memory()[0], len(gc.get_objects()), len(sessions.copies.cache)
        await three_visits(sessions, SESSIONS)
        gc.collect()
        assert len(sessions.copies.cache) - hosted == SESSIONS
        grown = tracemalloc.get_traced_memory()[0] - before
        return grown / SESSIONS, (len(gc.get_objects()) - tracked) / SESSIONS
    finally:
        tracemalloc.stop()
        await sessions.aclose()


@pytest.fixture
def _small_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept for a bounded number of sessions is full before the counting begins."""
    monkeypatch.setattr(Cache, "MAX_DECODED", 64)
    monkeypatch.setattr(Placement, "MAX_CACHED", 64)
    monkeypatch.setattr(TokenCodec, "MAX_REMEMBERED", 64)
    monkeypatch.setattr("coatcheck.sessions.opening.MAX_SHARED", 64)


@pytest.mark.usefixtures("_small_bounds")
def test_a_hosted_session_is_small_and_no_work_for_the_collector() -> None:
    size, tracked = asyncio.run(grown_by())
    assert size <= MAX_BYTES, f"{size:.0f} bytes for each session"
    assert size >= MIN_BYTES, f"only {size:.0f} bytes: lower MAX_BYTES"
    assert tracked < 0.02, f"{tracked:.2f} objects of each session are visited by every full collection"
