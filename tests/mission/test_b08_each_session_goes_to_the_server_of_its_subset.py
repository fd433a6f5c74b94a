"""B8: "Each session is copied to the one session server that its subset says." """

from __future__ import annotations

from hashlib import blake2b

import pytest

from .conftest import StartFarm
from .crowd import crowd_of, holders, keys_held
from .mission_farm import MissionFarm

VISITORS = 24


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "3", "--copies", "1")


def server_of_its_subset(key: bytes, names: list[str]) -> str:
    """As docs/formats.md says; the farm is not asked."""
    return max(names, key=lambda name: blake2b(key, key=name.encode(), digest_size=8).digest())


def test_exactly_the_one_that_the_placement_says(farm: MissionFarm) -> None:
    names = farm.names("session")
    with crowd_of(farm, VISITORS) as crowd:
        for round_number in range(2):
            holdings = farm.holdings()
            for visitor in crowd:
                first = server_of_its_subset(visitor.key, names)
                assert holders(holdings, visitor) == {first}
                assert [server for server, keys in keys_held(holdings).items() if visitor.key in keys] == [first]
            for visitor in crowd:
                visitor.put("round", round_number)


def test_also_after_it_has_moved_to_another_web_server(farm: MissionFarm) -> None:
    names = farm.names("session")
    with crowd_of(farm, 8) as crowd:
        for visitor in crowd:
            other = next(name for name in farm.names("web") if name != visitor.server)
            visitor.browser.client.base_url = farm.url_of(other)
            visitor.put("moved", other)
        holdings = farm.holdings()
        for visitor in crowd:
            assert holders(holdings, visitor) == {server_of_its_subset(visitor.key, names)}
