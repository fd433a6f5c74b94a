"""B9: "A session server goes down: the web servers copy the sessions that it held, from their caches, to another
session server." With one copy on three servers serving goes on after that, if the operator says so."""

from __future__ import annotations

import time

import pytest

from .conftest import StartFarm
from .crowd import crowd_of, holders
from .mission_farm import MissionFarm

CROWD = 12


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    flags = ("--copies", "1", "--too-few-answers", "serve", "--no-restart", "--lease", "200ms")
    return start("--web", "2", "--session-servers", "3", *flags)


def test_the_sessions_of_the_lost_server_are_copied_to_another_one_and_all_go_on(farm: MissionFarm) -> None:
    lost, *survivors = farm.names("session")
    with crowd_of(farm, CROWD) as visitors:
        held = farm.holdings(*farm.names("session"))
        assert any(holders(held, visitor) == {lost} for visitor in visitors), "the lost server held some"
        farm.kill(lost)
        deadline = time.monotonic() + 10
        while any(len(holders(farm.holdings(*survivors), visitor)) != 1 for visitor in visitors):
            assert time.monotonic() < deadline, "a session was not copied again"
            time.sleep(0.1)
        time.sleep(0.3)  # every lease is over
        for visitor in visitors:
            visitor.read()
            visitor.put("later", 1)
