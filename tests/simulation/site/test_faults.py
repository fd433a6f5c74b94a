"""Faults are guards: what they break is broken in their block and whole after it; the shipped code notices each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager

import msgspec
import pytest

from coatcheck.simulation.scenario import draw
from coatcheck.simulation.site.faults import SiteFaults
from coatcheck.simulation.site.site import ShippedFarm
from coatcheck.simulation.trace import Trace
from coatcheck.simulation.world.world import SimulatedWorld


class Town:
    """Two web servers, three session servers, one browser that does what it is told."""

    def __init__(self, world: SimulatedWorld) -> None:
        scenario = msgspec.structs.replace(
            draw(2, "calm"), web_servers=2, session_servers=3, copies=2, browsers=1, lease_s=2.0, stickiness=1.0,
            durability="all", below_target="quorum", too_few_answers="refuse", real_seal=True, retries=False,
        )  # fmt: skip
        self.site = ShippedFarm(scenario, Trace(True), world)
        self.site.ledger.disturbed = True
        self.faults = SiteFaults(self.site)
        self.browser = self.site.browsers[0]
        self.world = world

    def ask(self, kind: str = "write") -> str:
        """What one request is told."""
        self.browser.send(kind)  # type: ignore[arg-type]
        self.world.run(7, lambda: not self.browser.outstanding)
        return self.site.trace.lines[-1]

    def holders(self) -> list[str]:
        return [name for name, server in self.site.servers.items() if server.entries]

    def reachable(self) -> dict[str, bool]:
        return {
            f"{web.name} {name}": web.copies.world.reachable(name) for web in self.site.webs for name in web.servers
        }


@pytest.fixture
def town() -> Iterator[Town]:
    world = SimulatedWorld(3, lambda text, error: pytest.fail(f"{text} {error!r}"))
    with world.running():
        town = Town(world)
        assert "200" in town.ask()
        yield town
        assert town.site.ledger.violations == []


def test_all_is_well_without_a_fault(town: Town) -> None:
    assert all(town.reachable().values())
    assert len(town.holders()) == 2
    assert "200" in town.ask("read")


Guard = Callable[[Town], AbstractContextManager[None]]
AWAY: dict[str, Guard] = {
    "killed": lambda town: town.faults.store_down("store-1"),
    "without power": lambda town: town.faults.store_down("store-1", power=True),
    "frozen": lambda town: town.faults.frozen(town.site.servers["store-1"]),
    "cut off": lambda town: town.faults.cut(town.faults.across(["store-1"])),
    "heard by nobody": lambda town: town.faults.cut([("store-1", "web-1"), ("store-1", "web-2")]),
    "hearing nobody": lambda town: town.faults.cut([("web-1", "store-1"), ("web-2", "store-1")]),
}


@pytest.mark.parametrize("how", AWAY)
def test_a_session_server_that_is_away_is_found_out_and_found_again(town: Town, how: str) -> None:
    with AWAY[how](town):
        town.world.run(2)
        lost = {name for name, up in town.reachable().items() if not up}
        assert lost == {"web-1 store-1", "web-2 store-1"}
        assert "200" in town.ask()
        assert "200" in town.ask("read")
    town.world.run(4)
    assert all(town.reachable().values())
    town.world.run(10)
    assert len(town.holders()) == 2


def test_two_of_three_away_are_too_few(town: Town) -> None:
    with town.faults.cut(town.faults.across(["store-1", "store-2"])):
        town.world.run(1)
        assert "503" in town.ask()
    town.world.run(3)
    assert "200" in town.ask()


def test_a_frozen_web_server_trusts_no_lease_when_it_goes_on(town: Town) -> None:
    web = town.browser.web
    town.ask("read")
    with town.faults.frozen(web):
        town.browser.send("read")
        town.world.run(1)
        assert town.browser.outstanding
    town.world.run(1)
    assert web.sessions._stall_guard.stalls == 1
    assert "after asking" in next(line for line in reversed(town.site.trace.lines) if " serves " in line)


def test_frozen_twice_is_thawed_once(town: Town) -> None:
    server = town.site.servers["store-2"]
    with town.faults.frozen(server):
        with town.faults.frozen(server):
            pass
        assert server.frozen
    assert not server.frozen


def test_a_killed_web_server_is_another_one_when_it_comes_back(town: Town) -> None:
    web = town.browser.web
    index = town.site.webs.index(web)
    with town.faults.web_down(index):
        assert "200" in town.ask("read")
        assert town.browser.web is not web
    town.world.run(3)
    assert town.site.webs[index].ready
    assert town.site.webs[index].server_id != web.server_id


@pytest.mark.parametrize(("comes_back", "left"), [("whole", 1), ("empty", 0), ("stale", 0)])
def test_what_a_restarted_session_server_has(town: Town, comes_back: str, left: int) -> None:
    name = town.holders()[0]
    with town.faults.cut(town.faults.across([name])), town.faults.store_down(name, comes_back):
        assert len(town.site.servers[name].entries) == 1
    assert len(town.site.servers[name].entries) == left
    town.world.run(12)
    assert len(town.holders()) == 2


def test_who_refuses_writes_and_who_is_full(town: Town) -> None:
    one, other = town.holders()
    with town.faults.refuses_writes(one), town.faults.full(other):
        town.ask()
        assert not town.site.servers[one].look(town.site.servers[one].entries[0]).version.seq > 1  # type: ignore[union-attr]
    town.world.run(8)
    assert "200" in town.ask()


def test_a_slow_link_and_a_wrong_clock_change_no_answer(town: Town) -> None:
    links = town.faults.between("web-1", "store-1") + town.faults.between("web-2", "store-1")
    with town.faults.slow(links, 5_000), town.faults.wrong_clock(town.site.servers["store-2"], 3_600_000):
        town.world.run(5)
        assert "200" in town.ask()
        assert abs(town.browser.web.now_ms() - town.world.schedule.now * 1000 - 1_700_000_000_000) < 5
    assert not town.world.wire.bytes_per_s


def test_a_guard_ends_with_its_block_also_when_that_fails(town: Town) -> None:
    with pytest.raises(KeyError), town.faults.cut(town.faults.across(["store-1"])):
        raise KeyError
    assert not town.world.wire.cut
