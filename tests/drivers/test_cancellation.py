"""A request is cancelled at each turn of the event loop, one after another: nothing acknowledged is lost."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from coatcheck.events import EventKind
from coatcheck.sessions.mapping import Session

from .trade import begun, changed, opened, trade

MAX_TURNS = 40
"""A save needs fewer turns of the loop than that."""


def count(session: Session) -> None:
    session["n"] += 1


def uncount(session: Session) -> None:
    session["n"] -= 1


CHANGES: dict[str, Callable[[Session], Any]] = {
    "write": count,
    "write and rotate": lambda s: (count(s), s.rotate()),
    "login": lambda s: s.regenerate("ada"),
    "close": lambda s: s.close(),
}


async def cancelled_after(turns: int, task: asyncio.Task[Any]) -> bool:
    """Whether the cancellation came in time."""
    for _ in range(turns):
        await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    return task.cancelled()


@pytest.mark.parametrize("name", CHANGES)
@pytest.mark.parametrize("at", [0, 1])
@pytest.mark.parametrize("uneven", [False, True])
def test_cancelled_at_every_turn(name: str, at: int, uneven: bool) -> None:
    """``at``: the web server that hosts the session, or another one, which claims first."""

    async def story(turns: int) -> bool:
        async with trade() as farm:
            home, other = await farm.server(), await farm.server()
            issue = await begun(home)
            issue = await changed(home, issue, count)
            farm.stores[1].turns = 4 if uneven else 1
            task = asyncio.create_task(changed([home, other][at], issue, CHANGES[name]))
            in_time = await cancelled_after(turns, task)
            told = issue if in_time else task.result()
            for sessions in (home, other, home):
                session = await opened(sessions, told)
                if session is None:
                    assert name in ("login", "close"), "only what ends a session may have ended it"
                    continue
                assert session["n"] in (1, 2)
                assert in_time or name == "login" or session["n"] == 2
                before = session["n"]
                told = await changed(sessions, told, count)
                again = await opened(sessions, told)
                assert again is not None
                assert again["n"] == before + 1
                told = await changed(sessions, told, uncount)
            quiet = {EventKind.SESSION_FORKED, EventKind.SESSION_ROLLED_BACK, EventKind.SESSION_THEFT}
            assert not quiet & {event.kind for event in farm.events}
            return in_time

    for turns in range(MAX_TURNS):
        if not asyncio.run(story(turns)):
            assert turns > 2, "some cancellations came in the middle"
            return
    if name not in ("login", "close"):  # those wait for leases, which are real time
        pytest.fail(f"not done after {MAX_TURNS} turns")


def test_a_cancelled_beginning_leaves_no_session_that_anyone_could_open() -> None:
    async def story(turns: int) -> bool:
        async with trade() as farm:
            home = await farm.server()
            in_time = await cancelled_after(turns, asyncio.create_task(begun(home)))
            issue = await begun(home, n=7)
            assert await opened(home, issue) == {"n": 7}
            assert len(await home.list_sessions()) <= 2
            return in_time

    in_time = [asyncio.run(story(turns)) for turns in range(MAX_TURNS)]
    assert in_time[0]
    assert not in_time[-1]
