"""B9: "A session server goes down: the web servers copy the sessions that it held, from their caches, to another
session server." With one copy on three servers serving goes on after that, if the operator says so."""

from __future__ import annotations

import time

import pytest

from farm.farm_process import eventually

from .conftest import StartFarm
from .crowd import crowd_of, holders
from .mission_farm import MissionFarm

CROWD = 12


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    flags = ("--copies", "1", "--too-few-answers", "serve", "--no-restart", "--lease", "200ms")
    return start("--web", "2", "--session-servers", "3", *flags)


def test_the_sessions_of_the_lost_server_are_copied_to_another_one_and_all_go_on(farm: MissionFarm) -> None:
    with crowd_of(farm, CROWD) as visitors:
        (lost,) = holders(farm.holdings(), visitors[0])
        survivors = [name for name in farm.names("session") if name != lost]
        farm.kill(lost)

        def copied() -> bool:
            held = farm.holdings(*survivors)
            return all(len(holders(held, visitor)) == 1 for visitor in visitors)

        eventually(copied, "the copying")
        time.sleep(0.3)  # every lease is over
        for visitor in visitors:
            visitor.read()
            visitor.put("later", 1)
