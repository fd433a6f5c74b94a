"""B4: "The subsets may be disjoint." """

from __future__ import annotations

import pytest

from farm.farm_process import eventually

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


def test_they_are_disjoint_again_after_a_session_server_was_restarted(start: StartFarm) -> None:
    farm = start("--web", "2", "--session-servers", "3", "--copies", "1")
    with crowd_of(farm, VISITORS) as crowd:
        before = keys_held(farm.holdings())
        moved = before["session-1"]
        assert len(moved) > 2
        (pid,) = farm.kill("session-1").values()

        def stand_ins() -> bool:
            """The web servers have copied what it held, from their caches, to the others."""
            held = keys_held(farm.holdings("session-2", "session-3"))
            return moved <= held["session-2"] | held["session-3"]

        eventually(stand_ins, "copies that stand in")

        def is_back() -> bool:
            row = next(row for row in farm.status()["session_servers"] if row["name"] == "session-1")
            return bool(row["healthy"]) and row["pid"] != pid

        eventually(is_back, "the restart of session-1")

        def as_before() -> bool:
            return keys_held(farm.holdings()) == before

        eventually(as_before, "every session on its own server, and nowhere else")
        for visitor in crowd:
            visitor.put("after", "the restart")
        assert keys_held(farm.holdings()) == before
