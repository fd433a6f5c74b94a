"""Replay cases for rotation in farms of real processes: each with the outcome that docs/protocol.md, 7 promises.

The honest ones are a slice of what ``honest.py`` does ten thousand times. Thieves need time, so they go about it
together: a farm with a grace of a second, and a browser that moves on in steps of more than that.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from coatcheck.events import public_id

from .conftest import StartRealFarm
from .honest import DEATHS, SETTINGS, STORIES, deaths, many
from .real_farm import Browser, RealFarm, shopper

TIMES = 12
GRACE_S = 1.0
STEP_S = 1.2 * GRACE_S
"""Longer than the grace; a busy machine makes it longer still."""
STEPS = 4
"""Show the successor, again a grace later, again a grace later, and be sure of it."""
EMPTY: dict[str, int] = {}

Outcomes = dict[str, BaseException | None]


@pytest.fixture(scope="module")
def patient(start_farm: StartRealFarm) -> RealFarm:
    return start_farm(*SETTINGS)


@pytest.mark.parametrize("name", STORIES)
def test_honest(name: str, patient: RealFarm) -> None:
    async def story() -> None:
        with patient.connected():
            await many(patient, name, TIMES, at_once=TIMES, seed=7)

    asyncio.run(story())
    assert patient.thefts() == []


def test_honest_while_a_session_server_dies(patient: RealFarm) -> None:
    async def story() -> None:
        with patient.connected():
            await deaths(patient, TIMES, at_once=TIMES, seed=7)

    asyncio.run(story())
    assert patient.thefts() == [], DEATHS


def test_a_thief_inside_the_grace_cannot_be_told_apart(patient: RealFarm) -> None:
    async def story() -> None:
        with patient.connected():
            victim = await shopper(patient)
            thief = victim.copy()
            for _ in range(3):
                assert (await victim.get(1)).data == {"n": 1}
                assert (await thief.get(2)).data == {"n": 1}
            await victim.post(1, "/logout")
            assert (await thief.get(2)).data == EMPTY, "but a closed session ends it"

    asyncio.run(story())
    assert patient.thefts() == []


async def active(browser: Browser, server: int = 1) -> None:
    for _ in range(STEPS):
        await asyncio.sleep(STEP_S)
        await browser.get(server)


async def robbed(farm: RealFarm) -> tuple[Browser, Browser, str]:
    """The victim, the thief, and what the audit log calls their session."""
    victim = await shopper(farm)
    return victim, victim.copy(), public_id(victim.token().key)


def accused(farm: RealFarm, session: str) -> bool:
    return any(record["session"] == session for record in farm.thefts())


async def before_the_victim(farm: RealFarm) -> None:
    victim, thief, session = await robbed(farm)
    await active(thief, 2)
    assert not accused(farm, session)
    assert (await victim.get(1)).data == EMPTY
    assert accused(farm, session)
    for server in (1, 2):
        assert (await thief.get(server)).data == EMPTY, "the session is closed for both"


async def after_the_victim(farm: RealFarm) -> None:
    victim, thief, session = await robbed(farm)
    await active(victim)
    assert not accused(farm, session)
    assert (await thief.get(2)).data == EMPTY
    assert accused(farm, session)
    for server in (1, 2):
        assert (await victim.get(server)).data == EMPTY


async def alternating_in_spells(farm: RealFarm) -> None:
    victim, thief, session = await robbed(farm)
    await active(thief, 2)
    await active(victim)
    assert accused(farm, session)
    assert (await thief.get(2)).data == (await victim.get(1)).data == EMPTY


async def alternating_request_by_request(farm: RealFarm) -> None:
    """At a slower pace than the grace they cannot keep in step."""
    victim, thief, session = await robbed(farm)
    for _ in range(12):
        for browser in (thief, victim):
            await asyncio.sleep(STEP_S)
            if (await browser.get(1)).data == EMPTY:
                assert accused(farm, session)
                return
    raise AssertionError("nobody noticed")


async def in_the_grace_and_found_later(farm: RealFarm) -> None:
    victim, thief, session = await robbed(farm)
    await victim.get(1)
    await victim.get(1)
    assert (await thief.get(2)).data == {"n": 1}, "it is retired, and its browser has not moved on for a grace"
    assert not accused(farm, session)
    await active(victim)
    assert (await thief.get(2)).data == EMPTY, "both are active again"
    assert accused(farm, session)


async def nobody_after_a_long_sleep(farm: RealFarm) -> None:
    browser, _, session = await robbed(farm)
    await browser.send(1, "GET")  # the answer is lost
    await asyncio.sleep(3 * STEP_S)
    assert (await browser.get(2)).data == {"n": 1}
    late = await browser.send(2, "GET")
    for _ in range(2):
        await browser.get(2)
    browser.take(late)
    await asyncio.sleep(3 * STEP_S)
    assert (await browser.get(2)).data == {"n": 1}
    assert not accused(farm, session)


THEFTS: dict[str, Callable[[RealFarm], Awaitable[None]]] = {
    story.__name__: story
    for story in (
        before_the_victim, after_the_victim, alternating_in_spells, alternating_request_by_request,
        in_the_grace_and_found_later, nobody_after_a_long_sleep,
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(start_farm: StartRealFarm) -> Outcomes:
    farm = start_farm("--rotate-after", "0", "--grace", f"{GRACE_S:g}s")

    async def all_of_them() -> list[BaseException | None]:
        with farm.connected():
            return await asyncio.gather(*(story(farm) for story in THEFTS.values()), return_exceptions=True)

    return dict(zip(THEFTS, asyncio.run(all_of_them()), strict=True))


@pytest.mark.parametrize("name", THEFTS)
def test_a_thief(name: str, outcomes: Outcomes) -> None:
    if (wrong := outcomes[name]) is not None:
        raise wrong
