"""Sessions for threads, awaited on event loops: several loops, threads beside them, a stop, too many, too long."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from coatcheck import SessionUnavailable, connect
from coatcheck.drivers import background_thread
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.sessions.answer import OneCookie
from coatcheck.sessions.mapping import Session

KEY = "AbcdEfgh0123_-AbcdEfgh0123_-AbcdEfgh0123_-A"


@pytest.fixture
def sessions() -> Iterator[ThreadedSessions]:
    made = connect("memory://", key=KEY, driver="threads")
    yield made
    made.close()


async def visit(sessions: ThreadedSessions, shown: bytes) -> bytes:
    opened = await sessions.aopen(shown, None, OneCookie())
    opened.session["n"] = opened.session.get("n", 0) + 1
    answer = await sessions.afinish(opened, 200, [])
    assert not answer.refused
    assert answer.token is not None
    return answer.token


def test_requests_of_several_loops_and_of_threads_have_one_session(sessions: ThreadedSessions) -> None:
    shown = b""
    for _ in range(3):
        shown = asyncio.run(visit(sessions, shown))
    opened = sessions.open(shown, None, OneCookie())
    assert opened.session["n"] == 3
    opened.session["n"] = 4
    answer = sessions.finish(opened)
    assert answer.token
    found = sessions.find_by_token(answer.token)
    assert found is not None
    assert found["n"] == 4


def test_store_find_and_close_by_token(sessions: ThreadedSessions) -> None:
    async def story() -> None:
        session = Session(a=1)
        text = await sessions.astore_now(session)
        assert await sessions.afind_by_token(text) == {"a": 1}
        await sessions.aclose_by_token(text)
        assert await sessions.afind_by_token(text) is None

    asyncio.run(story())


@pytest.fixture
def gate(sessions: ThreadedSessions, monkeypatch: pytest.MonkeyPatch) -> threading.Event:
    """While it is closed, nothing is found."""
    opened = threading.Event()

    async def find(text: bytes) -> Any:
        while not opened.is_set():
            await asyncio.sleep(0.01)
        return None

    monkeypatch.setattr(sessions._sessions, "find_by_token", find)
    return opened


async def until_asking(sessions: ThreadedSessions, count: int) -> None:
    """Until so many wait for an answer."""
    async with asyncio.timeout(60):
        while (background := sessions._background) is None or len(background._calls) < count:
            await asyncio.sleep(0.005)


def test_a_loop_goes_on_while_it_waits(sessions: ThreadedSessions, gate: threading.Event) -> None:
    async def story() -> None:
        asking = asyncio.ensure_future(sessions.afind_by_token(b"x"))
        await until_asking(sessions, 1)
        assert not asking.done()
        gate.set()
        assert await asking is None

    asyncio.run(story())


@pytest.mark.usefixtures("gate")
def test_a_stop_refuses_who_waits(sessions: ThreadedSessions) -> None:
    async def story() -> None:
        asking = asyncio.ensure_future(sessions.afind_by_token(b"x"))
        await until_asking(sessions, 1)
        await asyncio.to_thread(sessions.close)
        with pytest.raises(SessionUnavailable, match="stopping"):
            await asking

    asyncio.run(story())


@pytest.mark.usefixtures("gate")
def test_nobody_waits_for_ever(sessions: ThreadedSessions, monkeypatch: pytest.MonkeyPatch) -> None:
    async def story() -> None:
        monkeypatch.setattr(background_thread, "LONGEST_WAIT_S", 0.05)
        with pytest.raises(SessionUnavailable, match="does_not_answer"):
            await sessions.afind_by_token(b"x")

    asyncio.run(story())


def test_so_many_wait_at_once_and_no_more(
    sessions: ThreadedSessions, gate: threading.Event, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def story() -> None:
        monkeypatch.setattr(background_thread, "MAX_WAITING", 2)
        asking = [asyncio.ensure_future(sessions.afind_by_token(b"x")) for _ in range(2)]
        await until_asking(sessions, 2)
        with pytest.raises(SessionUnavailable):
            await sessions.afind_by_token(b"x")
        gate.set()
        assert await asyncio.gather(*asking) == [None, None]

    asyncio.run(story())


@pytest.mark.usefixtures("gate")
def test_who_goes_away_leaves_nothing_running(sessions: ThreadedSessions) -> None:
    async def story() -> None:
        asking = asyncio.ensure_future(sessions.afind_by_token(b"x"))
        await until_asking(sessions, 1)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    asyncio.run(story())
    background = sessions._background
    assert background is not None
    assert not background._calls
