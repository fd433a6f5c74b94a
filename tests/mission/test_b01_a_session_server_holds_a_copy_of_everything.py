"""B1: "Web servers host sessions; the director routes each request to the server hosting its session; a session
server holds a copy of all session data of all web servers." """

from __future__ import annotations

from collections import Counter

import pytest

from .conftest import StartFarm
from .crowd import crowd_of, holders, keys_held
from .mission_farm import MissionFarm

VISITORS = 24
SERVERS = 3


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "3", "--session-servers", str(SERVERS), "--copies", "all")


def test_hosting_routing_and_full_copies(farm: MissionFarm) -> None:
    before = {name: row["requests"] for name, row in farm.web_status().items()}
    with crowd_of(farm, VISITORS) as crowd:
        hosts = {visitor.key: visitor.server for visitor in crowd}
        assert set(hosts.values()) == {"web-1", "web-2", "web-3"}, "all web servers host sessions"
        for round_number in range(3):
            for visitor in crowd:
                if round_number == 1:
                    visitor.put("round", round_number)
                assert visitor.read() == hosts[visitor.key], "routed to the server that hosts it"
        holdings = farm.holdings()
        every_key = {visitor.key for visitor in crowd}
        assert sorted(holdings) == farm.names("session")
        assert all(keys == every_key for keys in keys_held(holdings).values())
        for visitor in crowd:
            assert holders(holdings, visitor) == set(farm.names("session")), "each with all of the data"
        hosted = Counter(hosts.values())
    status = farm.web_status()
    assert {name: row["sessions"] for name, row in status.items()} == dict(hosted)
    # Two requests that made each session, three reads and one write: and none went to another server first.
    assert {name: row["requests"] - before[name] for name, row in status.items()} == {
        name: 6 * count for name, count in hosted.items()
    }
    entries = {row["name"]: row["entries"] for row in farm.status()["session_servers"]}
    assert entries == dict.fromkeys(farm.names("session"), VISITORS)
