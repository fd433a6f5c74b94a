"""Leases that go on while the links are heard: protocol section 4, rule by rule."""

from __future__ import annotations

import pytest

from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Gone
from coatcheck.replication.links import CHECK_EVERY_S, LONGEST_BEAT_S, SHORTEST_BEAT_S, Links
from coatcheck.replication.notice import EVERYBODY, Notice
from coatcheck.replication.placement import Placement
from coatcheck.replication.policy import ReplicationPolicy
from replication.one_session import KEY, load, loaded, promise, store, why
from replication.tiny_farm import Farm, WebServer


def hear(web: WebServer, *without: str) -> None:
    """Every link that is up has just been heard, but for those ``without``."""
    for name in web.farm.servers:
        if web.reachable(name) and name not in without:
            web.copies.links.heard(name, web.monotonic())


def serves(web: WebServer) -> bool:
    """Whether the session is served without asking anyone."""
    return web.copies.cached(KEY, promise(web)) is not None


def hosted(farm: Farm) -> WebServer:
    """A web server with a fresh lease of the session."""
    web = farm.web()
    store(web, b"one")
    hear(web)
    assert serves(web)
    return web


def later(web: WebServer, seconds: float) -> None:
    """Time passes, and every link is heard once a second."""
    while seconds > 0:
        web.farm.wait(min(seconds, 1.0))
        seconds -= 1.0
        hear(web)


def test_a_lease_goes_on_while_every_link_is_heard_and_is_checked_in_the_end() -> None:
    one = hosted(Farm(lease_s=2.0))
    later(one, CHECK_EVERY_S - 1)
    assert serves(one)
    later(one, 1.1)
    assert not serves(one), "who is never told anything asks all the same"
    loaded(one)
    later(one, 10)
    assert serves(one)


def test_it_ends_one_lease_after_any_link_was_heard_last() -> None:
    farm = Farm(servers=3, lease_s=2.0)
    one = hosted(farm)
    third = farm.ranked(KEY)[2]
    later(one, 5)
    for seconds in (1.9, 0.2):
        farm.wait(seconds)
        hear(one, third.name)
    assert not serves(one), "also where none of the copies is"
    hear(one)
    assert serves(one)


def test_the_moment_of_sending_counts() -> None:
    farm = Farm(lease_s=2.0)
    one = hosted(farm)
    farm.wait(5)
    for name in farm.servers:
        one.copies.links.heard(name, one.monotonic() - 2.0)
    assert not serves(one), "what was published since then may still be on its way"


@pytest.mark.parametrize("reachable", [True, False], ids=["made", "lost"])
def test_a_connection_that_is_made_or_lost_ends_all_leases_and_must_be_heard_itself(reachable: bool) -> None:
    farm = Farm(servers=3, lease_s=2.0)
    one = hosted(farm)
    third = farm.ranked(KEY)[2]
    third.down = not reachable
    one.repairs.lost_server(third.name)
    hear(one)
    assert not serves(one)
    farm.wait(0.01)
    loaded(one)
    later(one, 10)
    assert serves(one), "with a server away that was away when all were asked"
    if not reachable:
        third.down = False
        one.repairs.lost_server(third.name)
        farm.wait(0.01)
        loaded(one)
        farm.wait(2.1)
        hear(one, third.name)
        assert not serves(one), "the heart-beats of the connection before prove nothing"


def test_fewer_links_than_a_read_quorum_are_not_enough() -> None:
    farm = Farm(servers=4, lease_s=2.0)
    one = hosted(farm)
    for server in farm.ranked(KEY)[2:]:
        server.down = True
        one.repairs.lost_server(server.name)
    farm.wait(0.01)
    store(one, b"two")
    hear(one)
    assert serves(one), "the two that hold it acknowledged the write"
    later(one, 2.1)
    assert not serves(one), "two others may acknowledge somebody else's"


@pytest.mark.parametrize(
    ("servers", "copies", "policy", "goes_on"),
    [
        (1, 1, {}, True),
        (2, 2, {}, True),
        (2, 1, {}, False),
        (3, 1, {}, True),
        (3, 2, {}, True),
        (3, 2, {"too_few_answers": "serve"}, False),
        (2, 2, {"lease_s": 0.0}, False),
    ],
)
def test_where_a_lease_goes_on(servers: int, copies: int, policy: dict[str, object], goes_on: bool) -> None:
    farm = Farm(servers, copies, **({"lease_s": 2.0} | policy))
    one = farm.web()
    store(one, b"one")
    later(one, 3)
    assert serves(one) is goes_on
    assert one.copies.links.prolong is goes_on


def test_a_stall_ends_it() -> None:
    one = hosted(Farm(lease_s=2.0))
    later(one, 5)
    one.copies.void_leases()
    hear(one)
    assert not serves(one)


def test_a_notice_ends_it_whatever_its_epoch() -> None:
    farm = Farm(lease_s=2.0)
    one = hosted(farm)
    two = farm.web()
    later(one, 5)
    assert loaded(two).body == b"one"
    hear(one)
    assert not serves(one)


def test_a_notice_of_a_session_that_is_not_cached_spoils_what_is_under_way() -> None:
    """The cache has no room for it: while its owner writes, somebody else takes it, and the notice finds no copy."""
    farm = Farm(lease_s=2.0, max_sessions=1)
    one, two = farm.two_webs()
    store(one, b"one")
    rival = loaded(two)
    held = loaded(one)

    def crowded_out() -> None:
        farm.wait(0.001)
        one.copies.cache.drop(KEY)
        one.copies.on_message(Notice(KEY, rival.version, False))

    one.during_put = [crowded_out]
    one.run(one.copies.write(held, b"two", one.now_ms(), one.now_ms() + 60_000, "all"))
    hear(one)
    assert not serves(one)


def test_a_claim_goes_to_further_servers_when_one_that_showed_a_copy_falls_silent() -> None:
    """One copy of two is out of its sight: another owner may have a lease on any two servers, so three must know."""
    farm = Farm(servers=5, lease_s=2.0)
    one, two = farm.two_webs()
    store(one, b"one")
    first, second, *others = farm.ranked(KEY)

    def falls_silent() -> None:
        second.silent = True

    two.during_put = [lambda: None, falls_silent]
    assert loaded(two).body == b"one"
    holders = [server for server in (first, *others) if (entry := server.entry(KEY)) and entry.version.epoch == 2]
    assert len(holders) == 4, "every pair of the five has one of them"


def test_a_claim_that_too_few_could_hear_of_is_none() -> None:
    farm = Farm(servers=4, lease_s=2.0, max_tries=1)
    one, two = farm.two_webs()
    store(one, b"one")
    _, second, third, fourth = farm.ranked(KEY)

    def fall_silent() -> None:
        second.silent = fourth.silent = True

    two.during_put = [lambda: None, fall_silent]
    assert why(two).value
    assert third.entry(KEY) is not None, "two have it, as many as a write needs"
    assert two.copies.cache.get(KEY) is None


@pytest.mark.parametrize(
    ("servers", "copies", "needed"), [(3, 2, 2), (4, 2, 3), (3, 1, 3), (5, 3, 3), (2, 2, 1), (1, 1, 1)]
)
def test_a_close_is_effective_when_every_lease_rests_on_one_that_holds_it(
    servers: int, copies: int, needed: int
) -> None:
    farm = Farm(servers, copies, lease_s=2.0)
    one = hosted(farm)
    assert one.run(one.copies.close(KEY)) == Closed(servers, servers, needed)
    assert load(one) is Gone.CLOSED


def test_owners_that_others_showed_hear_of_a_close_by_the_step_that_stores_it() -> None:
    """From the server that held nothing, too: what the owner stored on the others may be gone by then."""
    farm = Farm(servers=3, lease_s=2.0)
    one, two = farm.two_webs()
    store(one, b"one")
    assert two.run(two.copies.close(KEY)) == Closed(3, 3, 2)
    assert [server.notified for server in farm.ranked(KEY)] == [[one.server_id]] * 3


def test_where_no_copy_is_left_everybody_hears_of_a_close() -> None:
    """All session servers were flushed, and no connection broke: nobody knows who serves the session on."""
    farm = Farm(servers=3, lease_s=2.0)
    one, two = farm.two_webs()
    store(one, b"one")
    promised = promise(one)
    for server in farm.servers.values():
        server.stored.clear()
    assert one.copies.cached(KEY, promised) is not None
    assert two.run(two.copies.close(KEY)) == Closed(3, 3, 2)
    assert [server.notified for server in farm.servers.values()] == [[EVERYBODY]] * 3
    assert one.copies.cached(KEY, promised) is None


def test_beats_are_four_to_a_lease_and_bounded() -> None:
    world = Farm().web()
    placement = Placement(["s1", "s2"], 2)
    beats = {lease_s: Links(placement, ReplicationPolicy(lease_s=lease_s), world).beat_s for lease_s in (0.1, 2, 3600)}
    assert beats == {0.1: SHORTEST_BEAT_S, 2: 0.5, 3600: LONGEST_BEAT_S}
