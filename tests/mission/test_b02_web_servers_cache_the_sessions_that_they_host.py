"""B2: "Every web server has a local cache of the data of the sessions that it hosts."

While all session servers are frozen only the cache can answer. It may for one lease after they were heard last, no
longer: after that another web server might have the newer state, so the farm fails closed. While they are heard nobody
asks them about a session, however long nobody came.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from farm.farm_process import eventually

from .conftest import StartFarm
from .crowd import Visitor, crowd_of
from .mission_farm import MissionFarm

LEASE_S = 3.0
# Longer than the lease: nobody notices before its end that the session servers are frozen.
STORE_TIMEOUT_S = 4.0
VISITORS = 6
STALLED_ROUNDS = 5
REFUSAL = (503, "session unavailable: no_session_server_answers\n")


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    times = ("--lease", f"{LEASE_S:g}s", "--store-timeout", f"{STORE_TIMEOUT_S:g}s")
    return start("--web", "2", "--session-servers", "2", *times)


def straight(farm: MissionFarm, visitor: Visitor, server: str) -> httpx.Response:
    """The visitor's cookies at this very web server, without the director."""
    cookies = "; ".join(f"{each.name}={each.value}" for each in visitor.browser.client.cookies.jar)
    with farm.client(verify=False, trust_env=False, timeout=60.0) as client:
        return client.get(f"{farm.url_of(server)}/", headers={"Cookie": cookies})


def unless_stalled(farm: MissionFarm, story: Callable[[], None]) -> bool:
    """The story is of web servers that run. One that stood still gives its leases up: then it is told once more."""
    for _ in range(STALLED_ROUNDS):
        before = stalls(farm)
        try:
            story()
            return True
        except AssertionError:
            if stalls(farm) == before:
                raise
    raise AssertionError(f"a web server stood still in each of {STALLED_ROUNDS} rounds")


def stalls(farm: MissionFarm) -> dict[str, int]:
    return {name: row["stalls"] for name, row in farm.web_status().items()}


def test_served_from_the_cache_within_the_lease_and_not_after(farm: MissionFarm) -> None:
    assert unless_stalled(farm, lambda: served_within_the_lease_and_not_after(farm))


def served_within_the_lease_and_not_after(farm: MissionFarm) -> None:
    with crowd_of(farm, VISITORS) as crowd, ThreadPoolExecutor(1) as thread:
        assert {visitor.server for visitor in crowd} == {"web-1", "web-2"}
        for visitor in crowd:
            visitor.put("fresh", "lease")
        visitor, hosts = crowd[0], [visitor.server for visitor in crowd]
        (other,) = {"web-1", "web-2"} - {visitor.server}
        with farm.frozen(*farm.names("session")):
            leased_at = time.monotonic()  # their last heart-beat was sent before
            elsewhere = thread.submit(straight, farm, visitor, other)
            rounds = 0
            while time.monotonic() - leased_at < LEASE_S / 2:
                assert [visitor.read() for visitor in crowd] == hosts
                rounds += 1
            assert rounds >= 3, "the cache answers at once"
            time.sleep(max(0.0, leased_at + LEASE_S - time.monotonic()))
            late = straight(farm, visitor, visitor.server)
            assert (late.status_code, late.text) == REFUSAL
            assert "set-cookie" not in late.headers
            not_hosting = elsewhere.result()
            assert (not_hosting.status_code, not_hosting.text) == REFUSAL, "it has no cached copy to serve"
        for host in crowd:
            eventually(lambda host=host: straight(farm, host, host.server).status_code == 200, "the thaw")
        assert [visitor.read() for visitor in crowd] == hosts, "nobody was logged out meanwhile"


def test_after_a_long_pause_nobody_is_asked_as_long_as_the_session_servers_are_heard(farm: MissionFarm) -> None:
    assert unless_stalled(farm, lambda: served_after_a_long_pause(farm))


def served_after_a_long_pause(farm: MissionFarm) -> None:
    with crowd_of(farm, VISITORS) as crowd:
        hosts = [visitor.server for visitor in crowd]
        time.sleep(3 * LEASE_S)
        with farm.frozen(*farm.names("session")):
            assert [visitor.read() for visitor in crowd] == hosts


def test_a_logout_elsewhere_is_seen_within_a_lease_though_nobody_asks(farm: MissionFarm) -> None:
    with crowd_of(farm, 1) as crowd:
        visitor = crowd[0]
        (other,) = {"web-1", "web-2"} - {visitor.server}
        time.sleep(2 * LEASE_S)
        cookies = "; ".join(f"{each.name}={each.value}" for each in visitor.browser.client.cookies.jar)
        assert straight(farm, visitor, visitor.server).json()["data"] == visitor.data
        with farm.client(verify=False, trust_env=False, timeout=60.0) as client:
            told = client.post(f"{farm.url_of(other)}/logout", headers={"Cookie": cookies})
        assert told.json() == {"server": other}
        assert straight(farm, visitor, visitor.server).json()["data"] == {}, "at once when it was told"


def test_each_cache_holds_what_its_web_server_hosts_and_nothing_else(farm: MissionFarm) -> None:
    before = {name: row["sessions"] for name, row in farm.web_status().items()}
    with crowd_of(farm, 8) as crowd:
        after = {name: row["sessions"] for name, row in farm.web_status().items()}
        for name in farm.names("web"):
            assert after[name] - before[name] == sum(visitor.server == name for visitor in crowd)
