"""B3: "Two or more session servers each hold a copy for a subset of the sessions." """

from __future__ import annotations

import pytest

from .conftest import StartFarm
from .crowd import crowd_of, holders, keys_held
from .mission_farm import MissionFarm

VISITORS = 30


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "3", "--copies", "1")


def test_each_has_a_part_and_together_they_have_all(farm: MissionFarm) -> None:
    with crowd_of(farm, VISITORS) as crowd:
        holdings = farm.holdings()
        everything = {visitor.key for visitor in crowd}
        for server, keys in keys_held(holdings).items():
            assert keys, f"{server} holds some of the sessions"
            assert keys < everything, f"{server} does not hold all of them"
        assert set().union(*keys_held(holdings).values()) == everything
        for visitor in crowd:
            assert holders(holdings, visitor), "with all of its data"
        entries = {row["name"]: row["entries"] for row in farm.status()["session_servers"]}
        assert entries == {server: len(held) for server, held in holdings.items()}
        # Whoever hosts a session, its copy is found: the other web server reads every one of them.
        for visitor in crowd:
            other = next(name for name in farm.names("web") if name != visitor.server)
            visitor.browser.client.base_url = farm.url_of(other)
            assert visitor.read() == other
