"""B10: "Subsets may overlap: every session is copied to two different session servers." """

from __future__ import annotations

from itertools import combinations

import pytest

from .conftest import StartFarm
from .crowd import crowd_of, holders, keys_held
from .mission_farm import MissionFarm

VISITORS = 30


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "3", "--copies", "2")


def test_exactly_the_two_that_the_placement_says(farm: MissionFarm) -> None:
    placement = farm.placement(2)
    with crowd_of(farm, VISITORS) as crowd:
        for round_number in range(2):
            holdings = farm.holdings()
            held = keys_held(holdings)
            for visitor in crowd:
                first, second, _ = placement.ranking(visitor.key)
                assert holders(holdings, visitor) == {first, second}
                assert {server for server, keys in held.items() if visitor.key in keys} == {first, second}
            for one, other in combinations(held, 2):
                assert held[one] & held[other], f"{one} and {other} overlap"
                assert held[one] != held[other]
            assert sum(len(keys) for keys in held.values()) == 2 * VISITORS
            for visitor in crowd:
                visitor.put("round", round_number)


def test_also_after_it_has_moved_to_another_web_server(farm: MissionFarm) -> None:
    placement = farm.placement(2)
    with crowd_of(farm, 8) as crowd:
        for visitor in crowd:
            other = next(name for name in farm.names("web") if name != visitor.server)
            visitor.browser.client.base_url = farm.url_of(other)
            visitor.put("moved", other)
        holdings = farm.holdings()
        for visitor in crowd:
            assert holders(holdings, visitor) == set(placement.ranking(visitor.key)[:2])
