"""B9: "A session server goes down: the web servers copy the sessions that it held, from their caches, to another
session server." """

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from farm.farm_process import eventually

from .conftest import StartFarm
from .crowd import Visitor, crowd_of, holders
from .mission_farm import Holdings, MissionFarm

VISITORS = 24


def gauge(status: dict[str, Any]) -> int:
    return sum(row["under_replicated"] or 0 for row in status["web_servers"])


def mended(status: dict[str, Any]) -> int:
    return sum(row["recopy"]["outcomes"].get("mended", 0) for row in status["web_servers"])


def copied(farm: MissionFarm, crowd: list[Visitor], count: int, *servers: str) -> Callable[[], Holdings | None]:
    """What the servers hold, once ``count`` of them hold each session with all its data."""

    def condition() -> Holdings | None:
        holdings = farm.holdings(*servers)
        return holdings if all(len(holders(holdings, visitor)) == count for visitor in crowd) else None

    return condition


def whole(farm: MissionFarm) -> Callable[[], dict[str, Any] | None]:
    def condition() -> dict[str, Any] | None:
        status = farm.status()
        rounds = [row["recopy"] for row in status["web_servers"]]
        return status if not gauge(status) and all(each["done"] == each["total"] for each in rounds) else None

    return condition


def move(farm: MissionFarm, visitor: Visitor) -> None:
    """From now on the visitor goes straight to the web server that does not host its session."""
    (elsewhere,) = {"web-1", "web-2"} - {visitor.server}
    visitor.browser.client.base_url = farm.url_of(elsewhere)


def test_from_the_caches_to_another_session_server(start: StartFarm) -> None:
    """One copy of each: after the death nothing but the web servers' caches has what it held."""
    farm = start("--web", "2", "--session-servers", "2", "--copies", "1", "--no-restart", "--lease", "1s")
    with crowd_of(farm, VISITORS) as crowd:
        before = farm.holdings()
        lost, other = farm.placement(1).ranking(crowd[0].key)
        moving = [visitor for visitor in crowd if holders(before, visitor) == {lost}]
        staying = [visitor for visitor in crowd if holders(before, visitor) == {other}]
        assert moving
        assert staying
        assert len(moving) + len(staying) == VISITORS
        assert mended(farm.status()) == 0

        farm.kill(lost)  # and no browser asks for anything

        after = eventually(copied(farm, crowd, 1, other), "the copying")
        for visitor in staying:
            unchanged = before[other][visitor.key].entry.version
            assert after[other][visitor.key].entry.version == unchanged, "the others are left alone"
        status = eventually(whole(farm), "the end of the copying")
        assert mended(status) >= len(moving), "progress is in the status"
        time.sleep(1.1)  # no lease is left: from here on the new copies must do
        assert [visitor.read() for visitor in crowd] == [visitor.server for visitor in crowd]
        for visitor in moving:
            move(farm, visitor)
        assert all(visitor.read() for visitor in moving), "another web server finds the new copies too"


def test_each_session_has_two_copies_again(start: StartFarm) -> None:
    farm = start("--web", "2", "--session-servers", "3", "--copies", "2", "--no-restart")
    with crowd_of(farm, VISITORS) as crowd:
        before = farm.holdings()
        lost = min(before, key=lambda name: len(before[name]))
        survivors = [name for name in farm.names("session") if name != lost]
        lacking = [visitor for visitor in crowd if lost in holders(before, visitor)]
        assert 0 < len(lacking) < VISITORS
        assert sum(len(held) for held in before.values()) == 2 * VISITORS

        farm.kill(lost)

        after = eventually(copied(farm, crowd, 2, *survivors), "the copying")
        assert sum(len(held) for held in after.values()) == 2 * VISITORS
        assert mended(eventually(whole(farm), "the end of the copying")) >= len(lacking)
        for visitor in crowd:
            visitor.put("after", "the death")
        holdings = farm.holdings(*survivors)
        assert all(holders(holdings, visitor) == set(survivors) for visitor in crowd)


def test_both_session_servers_lost_at_once(start: StartFarm) -> None:
    """Every copy is gone: the sessions come back from the caches as soon as a session server does."""
    farm = start("--web", "2", "--session-servers", "2", "--copies", "2")
    with crowd_of(farm, VISITORS) as crowd:
        holdings = farm.holdings()
        assert all(len(holders(holdings, visitor)) == 2 for visitor in crowd)

        pids = farm.kill("session-1", "session-2")

        for name, pid in pids.items():
            farm.wait_replaced(name, pid)
        eventually(copied(farm, crowd, 2), "the copying")  # no browser has asked for anything
        assert mended(eventually(whole(farm), "the end of the copying")) >= VISITORS
        assert [visitor.read() for visitor in crowd] == [visitor.server for visitor in crowd]
