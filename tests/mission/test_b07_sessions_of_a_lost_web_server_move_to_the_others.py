"""B7: "A web server goes down: its sessions move to the others, and each one's data is fetched from a session
server." """

from __future__ import annotations

import pytest

from .conftest import StartFarm
from .crowd import crowd_of, holders
from .mission_farm import MissionFarm

VISITORS = 24


@pytest.fixture
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "3", "--session-servers", "2", "--no-restart")


def test_they_go_on_elsewhere_with_all_their_data(farm: MissionFarm) -> None:
    with crowd_of(farm, VISITORS) as crowd:
        lost = crowd[0].server
        moving = [visitor for visitor in crowd if visitor.server == lost]
        staying = [visitor for visitor in crowd if visitor.server != lost]
        assert len(moving) >= 4
        survivors = {name for name in farm.names("web") if name != lost}
        before = farm.web_status()
        owners = {visitor.key: owner(farm, visitor.key) for visitor in crowd}

        farm.kill(lost)
        hosts = {visitor.key: visitor.read() for visitor in moving}

        assert set(hosts.values()) == survivors, "shared out among those that are left"
        for visitor in staying:
            assert visitor.read() == visitor.server
        after = farm.web_status()
        for name in survivors:
            # Nothing but a session server could have given them: no other process ever had these sessions.
            arrived = sum(host == name for host in hosts.values())
            assert after[name]["sessions"] == before[name]["sessions"] + arrived
        for visitor in moving:
            epoch, server_id = owner(farm, visitor.key)
            assert epoch > owners[visitor.key][0], "the session has been claimed"
            assert server_id != owners[visitor.key][1]
        for visitor in staying:
            assert owner(farm, visitor.key) == owners[visitor.key], "the others were left alone"


def test_and_they_live_on_there(farm: MissionFarm) -> None:
    with crowd_of(farm, VISITORS // 2) as crowd:
        farm.kill(crowd[0].server)
        for visitor in crowd:
            visitor.put("after", "the death")
            assert visitor.read() == visitor.server
        holdings = farm.holdings()
        for visitor in crowd:
            assert holders(holdings, visitor) == set(farm.names("session"))
    events = [row["events"] for row in farm.status()["web_servers"] if row["healthy"]]
    assert len(events) == 2
    for unwanted in ("session.rolled_back", "session.forked", "session.theft", "session.not_found"):
        assert not any(unwanted in each for each in events)


def owner(farm: MissionFarm, key: bytes) -> tuple[int, bytes]:
    """Epoch and server ID of the session's owner, on which all session servers agree."""
    (version,) = {copy.entry.version for copy in farm.copies_of(key).values()}
    return version.epoch, version.server_id
