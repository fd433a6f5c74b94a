"""A host's clock that jumps, and what is kept by it."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from coatcheck.host_clock import HeldClock
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.stores.port import ACCEPTED
from coatcheck.stores.sqlite import SqliteStore

HOUR_NS = 3_600_000_000_000
LIFE_MS = 30 * 60_000


def jump(monkeypatch: pytest.MonkeyPatch, by_ns: int) -> None:
    right = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: right() + by_ns)


@pytest.mark.parametrize("by_ns", [HOUR_NS, -HOUR_NS])
def test_a_jump_is_not_followed_at_once(by_ns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held = HeldClock()
    before_s = held.now_s()
    jump(monkeypatch, by_ns)
    assert 0 <= held.now_s() - before_s < 60


@pytest.mark.parametrize("by_ns", [HOUR_NS, -HOUR_NS])
def test_a_jump_of_the_hosts_clock_expires_nothing_in_sqlite(
    by_ns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = Entry(Version(1, b"AAA-0001", 1), (), False, LIFE_MS, b"payload")

    async def go() -> tuple[object, object, object]:
        store = SqliteStore("file", tmp_path / "sessions.db", HeldClock().now_s)
        await store.open()
        try:
            replies: list[object] = []
            for number in range(2):
                answered = asyncio.Event()

                def take(reply: object, answered: asyncio.Event = answered) -> None:
                    replies.append(reply)
                    answered.set()

                if number:
                    jump(monkeypatch, by_ns)
                store.put(bytes(15) + bytes([number]), None, entry, take)
                await answered.wait()
            found: list[object] = []
            answered = asyncio.Event()

            def got(reply: object) -> None:
                found.append(reply)
                answered.set()

            store.get(bytes(16), got)
            await answered.wait()
            return (*replies, found[0])
        finally:
            await store.aclose()

    first, second, found = asyncio.run(go())
    assert first == second == ACCEPTED
    assert isinstance(found, Entry)
    assert LIFE_MS - 60_000 < found.expires_in_ms <= LIFE_MS
