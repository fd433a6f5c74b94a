"""B4: "The subsets may be disjoint." """

from __future__ import annotations

import pytest

from .conftest import StartFarm
from .crowd import crowd_of, keys_held
from .mission_farm import MissionFarm

VISITORS = 30


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "3", "--copies", "1")


def test_no_session_is_on_two_session_servers(farm: MissionFarm) -> None:
    with crowd_of(farm, VISITORS) as crowd:
        for round_number in range(2):
            one, two, three = keys_held(farm.holdings()).values()
            assert not one & two
            assert not one & three
            assert not two & three
            assert one | two | three == {visitor.key for visitor in crowd}
            assert min(len(one), len(two), len(three)) > 0
            if not round_number:
                # Changes, from either web server, leave them where they are.
                for number, visitor in enumerate(crowd):
                    visitor.browser.client.base_url = farm.url_of(farm.names("web")[number % 2])
                    visitor.put("changed", number)
