"""B2: "Every web server has a local cache of the data of the sessions that it hosts."

While all session servers are frozen only the cache can answer. It may for the length of the lease, no longer: after
that another web server might have the newer state, so the farm fails closed.
"""

from __future__ import annotations

import time

import httpx
import pytest

from .conftest import StartFarm
from .crowd import Visitor, crowd_of
from .mission_farm import MissionFarm

LEASE_S = 3.0
# Longer than the lease: nobody notices before its end that the session servers are frozen.
STORE_TIMEOUT_S = 4.0
VISITORS = 6


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    times = ("--lease", f"{LEASE_S:g}s", "--store-timeout", f"{STORE_TIMEOUT_S:g}s")
    return start("--web", "2", "--session-servers", "2", *times)


def straight(farm: MissionFarm, visitor: Visitor, server: str) -> httpx.Response:
    """The visitor's cookies at this very web server, without the director."""
    cookies = "; ".join(f"{each.name}={each.value}" for each in visitor.browser.client.cookies.jar)
    with httpx.Client(verify=False, trust_env=False, timeout=20.0) as client:
        return client.get(f"http://{farm.address(server)}/", headers={"Cookie": cookies})


def test_served_from_the_cache_within_the_lease_and_not_after(farm: MissionFarm) -> None:
    with crowd_of(farm, VISITORS) as crowd:
        assert {visitor.server for visitor in crowd} == {"web-1", "web-2"}
        for visitor in crowd:
            visitor.put("fresh", "lease")
        hosts = [visitor.server for visitor in crowd]
        leased_at = time.monotonic()
        with farm.frozen(*farm.names("session")):
            rounds = 0
            while time.monotonic() - leased_at < LEASE_S / 2:
                assert [visitor.read() for visitor in crowd] == hosts
                rounds += 1
            assert rounds >= 3, "the cache answers at once"
            time.sleep(max(0.0, leased_at + LEASE_S - time.monotonic()))
            visitor = crowd[0]
            late = straight(farm, visitor, visitor.server)
            assert (late.status_code, late.text) == (503, "session unavailable: no_session_server_answers\n")
            assert "set-cookie" not in late.headers
        assert [visitor.read() for visitor in crowd] == hosts, "and nobody was logged out meanwhile"


def test_a_web_server_that_does_not_host_a_session_has_nothing_to_serve(farm: MissionFarm) -> None:
    with crowd_of(farm, 1) as (visitor,):
        other = next(name for name in farm.names("web") if name != visitor.server)
        with farm.frozen(*farm.names("session")):
            assert straight(farm, visitor, other).status_code == 503
            assert time.monotonic()
        assert visitor.read()


def test_each_cache_holds_what_its_web_server_hosts_and_nothing_else(farm: MissionFarm) -> None:
    before = {name: row["sessions"] for name, row in farm.web_status().items()}
    with crowd_of(farm, 8) as crowd:
        after = {name: row["sessions"] for name, row in farm.web_status().items()}
        for name in farm.names("web"):
            assert after[name] - before[name] == sum(visitor.server == name for visitor in crowd)
