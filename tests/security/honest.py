"""What honest browsers do with old tokens, many times over, in a farm of real processes: nobody may be accused.

    PYTHONPATH=tests python -m security.honest --times 10000 [--only NAME] [--at-once 24] [--seed N]

Each response carries a new token (``rotate_after`` 0), so that every request shows one that the farm has just replaced,
or is replacing. A story that goes wrong says its name and its number, from which its dice follow; a record of
``session.theft`` in the audit logs is a false theft.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NamedTuple

from .real_farm import Browser, RealFarm, shopper, token_ids

SETTINGS = ("--rotate-after", "0", "--grace", "60s", "--new-sessions-per-minute", "0", "--store-timeout", "2s")
"""A busy machine's session server is late, and not what is tested."""
TABS = 4
KILLED_TOGETHER = 500
"""Browsers that rotate while a session server dies: one death for so many."""
APART_S = 10.5
"""Between two deaths of one session server: the supervisor lets one wait that dies sooner."""

Story = Callable[[RealFarm, random.Random], Awaitable[None]]


def either(dice: random.Random) -> int:
    return dice.choice((1, 2))


async def moment(dice: random.Random) -> None:
    await asyncio.sleep(dice.choice((0, 0, dice.random() / 100)))


async def lose(browser: Browser, dice: random.Random) -> None:
    """A request whose answer does not arrive: it is lost on the way, or nobody waits for it."""
    if dice.random() < 0.5:
        await browser.send(either(dice), "GET")
    else:
        held = await browser.begin(either(dice), "GET")
        await moment(dice)
        held.cut()


async def parallel_tabs(farm: RealFarm, dice: random.Random) -> None:
    browser = await shopper(farm, either(dice))
    old = browser.token().session_id
    answers = await asyncio.gather(*(browser.served(1 + tab % 2, "GET") for tab in range(TABS)))
    assert [answer.data for answer in answers] == [{"n": 1}] * TABS
    assert len(token_ids(farm, answers) - {old}) == 1, "losers of the race get the winner's token"
    tab = browser.copy()
    tab.take(dice.choice(answers))
    assert (await tab.get(either(dice))).data == {"n": 1}


async def a_lost_response(farm: RealFarm, dice: random.Random) -> None:
    browser = await shopper(farm, either(dice))
    await lose(browser, dice)
    assert (await browser.get(either(dice))).data == {"n": 1}
    await lose(browser, dice)
    assert (await browser.put(either(dice))).data == {"n": 2}


async def a_late_answer(farm: RealFarm, dice: random.Random) -> None:
    browser = await shopper(farm, either(dice))
    late = await browser.served(either(dice), "GET")
    await browser.get(either(dice))
    await browser.get(either(dice))
    browser.take(late)
    assert (await browser.get(either(dice))).data == {"n": 1}


async def prefetch(farm: RealFarm, dice: random.Random) -> None:
    browser = await shopper(farm, either(dice))
    server = either(dice)
    prefetched, navigated = await asyncio.gather(browser.served(server, "GET"), browser.served(server, "GET"))
    browser.take(navigated)
    assert (await browser.put(either(dice))).data == {"n": 2}
    browser.take(prefetched)  # used only now, with the cookie of back then
    assert (await browser.get(either(dice))).data == {"n": 2}


async def a_slow_upload(farm: RealFarm, dice: random.Random) -> None:
    browser = await shopper(farm, either(dice))
    upload = await browser.begin_slow(either(dice), "POST")
    first = browser.token().session_id
    other = either(dice)
    for _ in range(2):
        assert (await browser.get(other)).data == {"n": 1}
    assert browser.token().session_id != first, "the token was replaced meanwhile"
    answer = await upload.finish(b"b")
    assert answer.status in (200, 409), answer.text
    assert token_ids(farm, [answer]).isdisjoint({first}), "a late answer brings no older token"
    browser.take(answer)
    stored = {"slow": "done"} if answer.status == 200 else {}
    found = (await browser.get(either(dice))).body
    assert found == {"user": None, "data": {"n": 1, **stored}, "lost": None}, f"{answer.status}, then {found}"


async def two_servers_rotating(farm: RealFarm, dice: random.Random) -> None:
    browser = await shopper(farm, either(dice))
    for _ in range(2):
        answers = await asyncio.gather(browser.served(1, "GET"), browser.served(2, "GET"))
        assert [answer.data for answer in answers] == [{"n": 1}] * 2
        assert len(token_ids(farm, answers) - {browser.token().session_id}) == 1
        browser.take(dice.choice(answers))


async def delivered_twice(farm: RealFarm, dice: random.Random) -> None:
    browser = await shopper(farm, either(dice))
    first, second = either(dice), either(dice)
    if dice.random() < 0.5:
        once, twice = await browser.served(first, "POST", "/put"), await browser.served(second, "POST", "/put")
        assert (once.data["n"], twice.data["n"]) == (2, 3), "what a request does twice is the app's to know"
    else:
        once, twice = await asyncio.gather(*(browser.served(at, "POST", "/put") for at in (first, second)))
        assert {once.status, twice.status} <= {200, 409}
    tokens = token_ids(farm, [once, twice]) - {browser.token().session_id}
    assert len(tokens) == 1, "the same successor"
    browser.take(once if once.status == 200 else twice)
    assert (await browser.get(either(dice))).data["n"] in (2, 3)


async def back_button(farm: RealFarm, dice: random.Random) -> None:
    browser = await shopper(farm, either(dice))
    page = await browser.get(either(dice))
    assert page.one("cache-control") == "no-store", "so the browser asks again"
    assert (await browser.put(either(dice))).data == {"n": 2}
    assert (await browser.get(either(dice))).data == {"n": 2}, "it asks with the newest cookie"
    await browser.post(either(dice), "/logout")
    assert (await browser.get(either(dice))).body == {"user": None, "data": {}, "lost": None}


async def logout_racing_a_slow_request(farm: RealFarm, dice: random.Random) -> None:
    browser = await shopper(farm, either(dice))
    stale, method = browser.copy(), dice.choice(("GET", "POST"))
    slow = await browser.begin_slow(either(dice), method)
    out = await browser.post(either(dice), "/logout")
    assert out.cookies[farm.cookie] == ""
    late = await slow.finish(b"b")
    assert late.status == 409 or (late.status == 200 and method == "GET"), "a new token is a write, too"
    assert farm.cookie not in late.cookies
    for server in (1, 2):
        assert (await stale.get(server)).data == {}, "a slow request does not undo a logout"


async def login_racing_an_old_token(farm: RealFarm, dice: random.Random) -> None:
    browser, user = await shopper(farm, either(dice)), f"user-{dice.getrandbits(64):x}"
    before = browser.copy()
    slow = await browser.begin_slow(either(dice), dice.choice(("GET", "POST")))
    answer = await browser.post(either(dice), f"/login?user={user}")
    assert answer.status == 200, f"{answer.status} {answer.text}"
    logged_in = browser.jar[farm.login_cookie]
    late = await slow.finish(b"b")
    assert farm.login_cookie not in late.cookies, "a late answer touches the anonymous cookie alone"
    browser.take(late)
    assert browser.jar[farm.login_cookie] == logged_in, "it is the same login"
    found = (await browser.get(either(dice))).body
    assert found == {"user": user, "data": {"n": 1}, "lost": None}, found
    stale = (await before.get(either(dice))).body
    assert stale == {"user": None, "data": {}, "lost": None}, stale


STORIES: dict[str, Story] = {
    story.__name__.replace("_", "-"): story
    for story in (
        parallel_tabs, a_lost_response, a_late_answer, prefetch, a_slow_upload, two_servers_rotating, delivered_twice,
        back_button, logout_racing_a_slow_request, login_racing_an_old_token,
    )
}  # fmt: skip
DEATHS = "a-session-server-dies"


class Told(NamedTuple):
    name: str
    times: int
    seconds: float
    false_thefts: int

    def __str__(self) -> str:
        return f"{self.name}: {self.times} times, {self.false_thefts} false thefts, {self.seconds:.0f} s"


async def many(farm: RealFarm, name: str, times: int, at_once: int, seed: int) -> None:
    """The story ``times`` times, ``at_once`` of them at any moment."""
    numbers = iter(range(times))

    async def one_after_the_other() -> None:
        for number in numbers:
            try:
                await STORIES[name](farm, random.Random(f"{name} {seed} {number}"))
            except Exception as wrong:
                raise AssertionError(f"{name}, seed {seed}, number {number}: {wrong!r}") from wrong

    try:
        async with asyncio.TaskGroup() as together:
            for _ in range(min(at_once, times)):
                together.create_task(one_after_the_other())
    except ExceptionGroup as failed:
        raise failed.exceptions[0] from None


class Rotating:
    """A browser that takes a new token with every answer, while a session server dies. Its session may not end."""

    def __init__(self, browser: Browser, dice: random.Random) -> None:
        self.browser = browser
        self.dice = dice

    async def ask(self) -> None:
        answer = await self.browser.get(either(self.dice))
        assert answer.data == {"n": 1}, answer.text

    async def go_on(self, dead: asyncio.Event) -> None:
        while not dead.is_set():
            await self.ask()
        await self.ask()


async def deaths(farm: RealFarm, times: int, at_once: int, seed: int) -> None:
    """``times`` browsers, each of which rotates while a session server dies by SIGKILL."""
    dice = random.Random(f"{DEATHS} {seed}")
    born = {name: time.monotonic() for name in ("session-1", "session-2")}
    for first in range(0, times, KILLED_TOGETHER):
        victim = ("session-1", "session-2")[first // KILLED_TOGETHER % 2]
        count = min(KILLED_TOGETHER, times - first)
        browsers = [Rotating(await shopper(farm, either(dice)), dice) for _ in range(count)]
        if first:
            await asyncio.sleep(max(0.0, born[victim] + APART_S - time.monotonic()))
        dead = asyncio.Event()
        bound = asyncio.Semaphore(max(1, at_once))

        async def rotate(one: Rotating, dead: asyncio.Event = dead, bound: asyncio.Semaphore = bound) -> None:
            async with bound:
                await one.ask()
            await one.go_on(dead)

        async with asyncio.TaskGroup() as together:
            for one in browsers:
                together.create_task(rotate(one))
            await asyncio.sleep(0.2 + dice.random())
            pid = farm.farm.pid(victim)
            os.kill(pid, signal.SIGKILL)
            await asyncio.sleep(dice.random())
            dead.set()
        await asyncio.to_thread(farm.farm.wait_replaced, victim, pid)
        born[victim] = time.monotonic()
        for one in browsers:
            await one.ask()
        await asyncio.to_thread(farm.farm.healthy_status)


def tell(name: str, directory: Path, times: int, at_once: int, seed: int) -> Told:
    """A farm for one story; raises AssertionError if any of its browsers was not served as the documents say."""
    directory.mkdir()
    farm = RealFarm(directory, *SETTINGS)
    try:
        farm.wait()
        began = time.monotonic()
        run = deaths(farm, times, at_once, seed) if name == DEATHS else many(farm, name, times, at_once, seed)

        async def all_of_it() -> None:
            with farm.connected():
                await run

        asyncio.run(all_of_it())
        assert "Traceback" not in farm.farm.log, farm.farm.log
        return Told(name, times, time.monotonic() - began, len(farm.thefts()))
    finally:
        farm.end()


def main() -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--times", type=int, default=100)
    options.add_argument("--only", choices=[*STORIES, DEATHS], action="append")
    options.add_argument("--at-once", type=int, default=24)
    options.add_argument("--seed", type=int, default=1)
    chosen = options.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # whoever ends this ends its farm
    accused = 0
    with tempfile.TemporaryDirectory() as directory:
        for name in chosen.only or [*STORIES, DEATHS]:
            told = tell(name, Path(directory, name), chosen.times, chosen.at_once, chosen.seed)
            print(told, flush=True)
            accused += told.false_thefts
    return 1 if accused else 0


if __name__ == "__main__":
    sys.exit(main())
