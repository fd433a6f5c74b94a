"""docs/frameworks.md: what sessions of each framework promise, and what coatcheck's do; each cell is executed.

It stands where Django is set up.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from .shops import SHOPS, Browser, Farm, Shop, Side

PAGE = (Path(__file__).parents[3] / "docs" / "frameworks.md").read_text()
LINES = re.search(r"<!-- promises -->\n\n(.*?)\n\n", PAGE, re.S)
assert LINES is not None
HEAD, _, *ROWS = [[cell.strip() for cell in line.strip("|").split("|")] for line in LINES[1].splitlines()]
NEW, OLD = "new-for-tests-only-for-tests-only-for-tests", "old-for-tests-only-for-tests-only-for-tests"
POLLS, PAUSE_S = 40, 0.05
"""Far longer than the grace of 0.1 s."""

Make = Callable[..., Shop]


async def log_in(browser: Browser, shop: Shop) -> None:
    assert (await browser.get(shop, "login"))["user"] == "ada"


async def put_b(browser: Browser, shop: Shop) -> None:
    assert (await browser.get(shop, "put-b"))["keys"] == ["b"]


async def log_out(browser: Browser, shop: Shop) -> None:
    assert (await browser.get(shop, "logout"))["user"] is None


async def two_tabs(farm: Farm, make: Make) -> bool:
    shop, browser = make(), Browser()
    farm.during = lambda: log_in(browser, shop)
    await browser.get(shop, "slow-put-a")
    return (await browser.get(shop, "look")).get("user") == "ada"


async def copied_cookie(farm: Farm, make: Make) -> bool:
    shop, browser = make(), Browser()
    await log_in(browser, shop)
    thief = Browser(browser.cookies)
    assert (await thief.get(shop, "look"))["user"] == "ada"
    await log_out(browser, shop)
    return (await thief.get(shop, "look")).get("user") is None


async def slow_request(farm: Farm, make: Make) -> bool:
    shop, browser = make(), Browser()
    await log_in(browser, shop)
    farm.during = lambda: log_out(browser, shop)
    await browser.get(shop, "slow-put-a")
    return (await browser.get(shop, "look")).get("user") is None


async def two_writes(farm: Farm, make: Make) -> bool:
    shop, browser = make(), Browser()
    await log_in(browser, shop)
    farm.during = lambda: put_b(browser, shop)
    await browser.get(shop, "slow-put-a")
    return (await browser.get(shop, "look"))["keys"] == ["a", "b"]


async def death(farm: Farm, make: Make) -> bool:
    shop, browser = make(), Browser()
    await log_in(browser, shop)
    await browser.get(shop, "put-a")
    return (await browser.get(make(), "look"))["keys"] == ["a"]


def is_out(seen: dict[str, object]) -> bool:
    """Whether the shop has answered, and knows nobody; who could not be answered is not logged out."""
    return bool(seen) and seen["user"] is None


async def stolen_cookie(farm: Farm, make: Make) -> bool:
    shop, browser = make(), Browser()
    await log_in(browser, shop)
    thief = Browser(browser.cookies)
    for key in ("put-a", "put-b", "look"):
        assert (await browser.get(shop, key))["user"] == "ada"
    for _ in range(POLLS):
        if is_out(await Browser(thief.cookies).get(shop, "look")):
            break
        await asyncio.sleep(PAUSE_S)
    return is_out(await browser.get(shop, "look"))


async def much(farm: Farm, make: Make) -> bool:
    shop, browser = make(), Browser()
    await log_in(browser, shop)
    await browser.get(shop, "put-much")
    return bool((await browser.get(shop, "look"))["much"])


async def another_key(farm: Farm, make: Make) -> bool:
    browser = Browser()
    await log_in(browser, make([OLD]))
    return (await browser.get(make([NEW, OLD]), "look")).get("user") == "ada"


async def kinds(farm: Farm, make: Make) -> bool:
    shop, browser = make(), Browser()
    await browser.get(shop, "put-kinds")
    return bool((await browser.get(shop, "look"))["kinds"])


STORIES: dict[str, Callable[[Farm, Make], Awaitable[bool]]] = {
    "Two tabs come for the first time, one logs in, the other is answered last: logged in": two_tabs,
    "A cookie that was copied before the logout opens nothing after it": copied_cookie,
    "A slow request that began before the logout does not undo it": slow_request,
    "Two requests at once write different keys: both are kept": two_writes,
    "A web server dies: another one has all that was answered": death,
    "An old cookie that was stolen comes back: the session ends": stolen_cookie,
    "20,000 bytes are kept": much,
    "The secret key is replaced, the former one still opens: logged in": another_key,
    "A tuple and a datetime come back as what they were": kinds,
}


def test_the_table_has_each_framework_and_each_promise_once() -> None:
    assert [name.split(" (")[0] for name in HEAD[1:]] == list(SHOPS)
    assert [row[0] for row in ROWS] == list(STORIES)
    assert all(re.fullmatch(r"(yes|no) / (yes|no)", cell) for row in ROWS for cell in row[1:])


@pytest.mark.parametrize("side", ["itself", "coatcheck"])
@pytest.mark.parametrize("framework", SHOPS)
@pytest.mark.parametrize("row", ROWS, ids=[story.__name__ for story in STORIES.values()])
def test_each_cell(row: list[str], framework: str, side: Side, tmp_path: Path) -> None:
    cell = row[1 + list(SHOPS).index(framework)]
    said = cell.split(" / ")[side == "coatcheck"]

    async def tell() -> bool:
        farm = Farm(tmp_path, side)
        try:
            return await STORIES[row[0]](farm, lambda keys=None: SHOPS[framework](farm, keys or [OLD]))
        finally:
            for end in farm.ending:
                await end()

    assert ("yes" if asyncio.run(tell()) else "no") == said
