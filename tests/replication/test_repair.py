"""Bringing the copies back to their number (protocol section 9, mission B9)."""

from __future__ import annotations

import msgspec
import pytest

from coatcheck.errors import SessionUnavailable
from coatcheck.events import EventKind
from coatcheck.replication.cache import Copy
from coatcheck.replication.effects import Accepted
from coatcheck.replication.entry import Entry
from coatcheck.replication.repair import Repaired
from coatcheck.replication.version import Version, holds, with_write
from coatcheck.tokens.sealed import SealedToken
from replication.one_session import KEY, LIFE_MS, loaded, store
from replication.tiny_farm import Farm, WebServer


def repair(web: WebServer, token: SealedToken) -> Repaired:
    return web.exclusively(token.key, web.repairs.repair(token.key))


def versions(farm: Farm, token: SealedToken) -> list[object]:
    return [entry.version if entry else None for entry in farm.entries(token.key)]


def is_whole(farm: Farm, token: SealedToken) -> bool:
    """Whether the placed servers hold the same."""
    placed = versions(farm, token)[: farm.placement.wanted]
    return None not in placed and len(set(placed)) == 1


def test_nothing_is_repaired_where_nothing_is_wrong() -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    token = one.create(n=1)
    before = versions(farm, token)
    assert one.needing_repair() == []
    assert repair(two, token) is Repaired.WHOLE
    assert versions(farm, token) == before


def test_an_empty_farm_has_nothing_to_repair() -> None:
    farm = Farm()
    token = farm.web().create(n=1)
    for server in farm.servers.values():
        server.stored.clear()
    assert repair(farm.web(), token) is Repaired.NOTHING


@pytest.mark.parametrize("lost", [0, 1])
def test_b9_sessions_of_a_lost_server_are_copied_from_the_cache_to_the_next_one(lost: int) -> None:
    farm = Farm(servers=3)
    web = farm.web()
    token = web.create(n=1)
    server = farm.ranked(token.key)[lost]
    server.down = True
    server.stored.clear()
    web.repairs.lost_server(server.name)
    assert web.copies.cached(token.key, token.version) is None, "what it held is no longer taken for granted"
    assert web.needing_repair() == [token.key]
    assert web.copies.under_replicated.keys() == {token.key}
    assert repair(web, token) is Repaired.MENDED
    assert web.copies.under_replicated.keys() == set()
    assert [entry is not None for entry in farm.entries(token.key)] == [slot != lost for slot in range(3)]
    assert web.read(token) == {"n": 1}


def test_b9_both_session_servers_lost_their_data_and_the_caches_bring_it_back() -> None:
    farm = Farm()
    web = farm.web()
    tokens = [web.create(n=number) for number in range(20)]
    for server in farm.servers.values():
        server.stored.clear()
        web.repairs.lost_server(server.name)
    assert sorted(web.needing_repair()) == sorted(token.key for token in tokens)
    for token in tokens:
        assert repair(web, token) is Repaired.MENDED
        assert is_whole(farm, token)
    assert web.copies.under_replicated.keys() == set()
    other = farm.web()
    assert [other.read(token) for token in tokens] == [{"n": number} for number in range(20)]


def test_all_leases_are_voided_at_once_and_the_sessions_stay() -> None:
    farm = Farm()
    web = farm.web()
    tokens = [web.create(n=number) for number in range(20)]
    assert all(web.copies.cached(token.key, token.version) for token in tokens)
    web.copies.void_leases()
    held = [web.copies.cache.get(token.key) for token in tokens]
    assert not any(web.copies.cached(token.key, token.version) for token in tokens)
    assert {web.copies.leased_until(copy) for copy in held if copy is not None} == {0.0}
    farm.wait(0.001)
    assert [web.read(token) for token in tokens] == [{"n": number} for number in range(20)]
    assert all(web.copies.cached(token.key, token.version) for token in tokens), "asked again, each has earned one"


def test_what_cannot_be_mended_is_not_tried_again_and_again() -> None:
    """One of two session servers is away: there is nowhere to put the second copy."""
    farm = Farm()
    web = farm.web()
    tokens = [web.create(n=number) for number in range(20)]
    farm.servers["s1"].down = True
    web.repairs.lost_server("s1")
    assert web.needing_repair() == []
    assert web.copies.under_replicated.keys() == {token.key for token in tokens}, "but it is counted"
    farm.servers["s1"].down = False
    web.repairs.lost_server("s1")
    assert sorted(web.needing_repair()) == sorted(token.key for token in tokens)


def test_a_put_that_a_server_did_not_take_is_known_to_need_a_look() -> None:
    farm = Farm(servers=3)
    web = farm.web()
    token = web.create(n=1)
    assert web.repairs.known() == []
    farm.ranked(token.key)[0].silent = True
    token = web.write(token, n=2)
    assert web.repairs.known() == [token.key]
    farm.ranked(token.key)[0].silent = False
    assert repair(web, token) is Repaired.MENDED
    assert not web.repairs.needs(token.key)
    assert web.repairs.known() == []


def test_what_was_put_before_contact_was_lost_is_no_longer_taken_for_granted() -> None:
    """The acknowledgement of one server arrives, that server restarts empty, then the other one answers."""
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)

    def restarted_meanwhile() -> None:
        farm.wait(0.001)
        web.repairs.lost_server("s1")

    web.during_put = [restarted_meanwhile]
    token = web.write(token, n=2)
    farm.servers["s1"].stored.clear()
    assert web.lifecycle.open_cached(token, False) is None, "no lease was earned"
    assert web.needing_repair() == [token.key]
    assert repair(web, token) is Repaired.MENDED
    assert is_whole(farm, token)


def test_a_server_that_came_back_empty_is_filled_by_anyone_without_a_claim() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(n=1)
    owner = versions(farm, token)[0]
    farm.servers["s1"].stored.clear()
    assert repair(two, token) is Repaired.MENDED
    assert versions(farm, token) == [owner, owner]
    assert two.copies.cache.get(token.key) is None, "repairing is not hosting"
    assert one.read(token) == {"n": 1}


@pytest.mark.parametrize("ahead", ["s1", "s2"])
def test_a_session_server_whose_clock_is_ahead_shortens_no_life_elsewhere(ahead: str) -> None:
    """Its entries have little life left; a claim or a repair that copied it would end the session in a few minutes."""
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(n=1)
    for name, server in farm.servers.items():
        entry, ends_at = server.stored[token.key]
        server.stored[token.key] = (entry, ends_at - 28 * 60_000 * (name == ahead))
    assert two.read(token) == {"n": 1}, "claimed"
    assert repair(one, token) in (Repaired.WHOLE, Repaired.MENDED)
    farm.wait(6 * 60)
    assert two.read(token) == {"n": 1}
    for server in farm.servers.values():
        stored = server.entry(token.key)
        assert stored is not None
        assert stored.expires_in_ms > 20 * 60_000


def test_a_server_that_came_back_stale_is_brought_up_to_date() -> None:
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    stale = farm.backup()[0]
    newest = web.write(token, n=2)
    farm.servers["s1"].stored = stale
    assert repair(farm.web(), token) is Repaired.MENDED
    assert is_whole(farm, token)
    assert farm.web().read(newest) == {"n": 2}


def test_a_server_that_is_still_away_leaves_it_partial_and_the_gauge_says_so() -> None:
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    farm.servers["s1"].down = True
    web.repairs.lost_server("s1")
    assert repair(web, token) is Repaired.PARTIAL
    assert web.copies.under_replicated.keys() == {token.key}
    farm.servers["s1"].down = False
    assert web.needing_repair() == [token.key]
    assert repair(web, token) is Repaired.MENDED
    assert web.copies.under_replicated.keys() == set()


def test_the_gauge_hears_of_sessions_that_moved_away_and_were_mended_there() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(n=1)
    farm.servers["s1"].down = True
    one.repairs.lost_server("s1")
    assert not one.repairs.needs(token.key), "there is nowhere to copy it to"
    farm.servers["s1"].down = False
    two.write(token, n=2)
    one.copies.cache.drop(token.key)
    assert one.needing_repair() == [token.key]
    assert repair(one, token) is Repaired.WHOLE
    assert one.copies.under_replicated.keys() == set()
    assert one.needing_repair() == []


def test_nobody_answers_so_nothing_is_decided() -> None:
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    for server in farm.servers.values():
        server.silent = True
    with pytest.raises(SessionUnavailable):
        repair(web, token)
    assert web.copies.cache.get(token.key) is not None


def test_a_tombstone_is_spread() -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    token = one.create(n=1)
    lost = farm.ranked(token.key)[0]
    lost.down = True
    session = one.opened(token)
    session.close()
    closed = one.save(session).closed
    assert closed is not None
    assert not closed.complete
    lost.down = False
    assert repair(two, token) is Repaired.MENDED
    assert all(entry is not None and entry.closed for entry in farm.entries(token.key))


def test_an_unfinished_close_is_taken_up_again_even_if_those_that_had_it_forgot() -> None:
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    stale = farm.backup()
    farm.servers["s1"].down = True
    session = web.opened(token)
    session.close()
    web.save(session)
    farm.servers["s1"].down = False
    farm.restore(stale)
    assert web.needing_repair() == [token.key]
    assert repair(web, token) is Repaired.MENDED
    assert all(entry is not None and entry.closed for entry in farm.entries(token.key))
    assert web.needing_repair() == []


def test_a_fork_is_reported_and_ended_by_a_claim() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    farm.notices = False
    token = one.create(n=0)
    s1, s2 = farm.servers.values()
    s1.down = True
    two.write(token, n=2)
    s1.down, s2.down = False, True
    one.write(token, n=1)
    one.write(token, n=11)
    s2.down = False
    three = farm.web()
    assert repair(three, token) is Repaired.MENDED
    assert EventKind.SESSION_FORKED in three.kinds()
    assert is_whole(farm, token)


def test_repair_gives_way_to_who_is_writing() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(n=1)
    farm.servers["s1"].stored.clear()
    newest = []
    two.during_put = [lambda: newest.append(one.write(token, n=2))]
    assert repair(two, token) is Repaired.CONTENDED
    assert farm.web().read(newest[0]) == {"n": 2}


def test_a_corrupt_copy_is_replaced_by_a_whole_one() -> None:
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    bent = farm.servers["s1"].entry(token.key)
    assert bent is not None
    farm.servers["s1"].set(token.key, Entry(bent.version.next_write(), bent.history, False, 99_000, b"garbage"))
    other = farm.web()
    assert repair(other, token) is Repaired.MENDED
    assert EventKind.CORRUPT_ENTRY in other.kinds()
    assert is_whole(farm, token)
    assert farm.web().read(token) == {"n": 1}


def test_what_no_other_copy_contradicts_is_no_fork() -> None:
    """The newest state is in a cache alone, and what the session servers show is a former owner's older one."""
    farm = Farm()
    one, two = farm.two_webs()
    token = two.create(n=1)
    backup = farm.backup()
    token = one.write(token, n=2)
    farm.restore(backup)
    assert repair(one, token) is Repaired.MENDED
    assert one.read(token) == two.read(token) == {"n": 2}
    assert EventKind.SESSION_FORKED not in one.kinds() + two.kinds()


def test_a_session_that_moved_is_hosted_by_one_web_server() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(n=1)
    other = one.create(n=7)
    assert (one.copies.cache.hosted(), two.copies.cache.hosted()) == (2, 0)
    token = two.write(token, n=2)
    assert (one.copies.cache.hosted(), two.copies.cache.hosted()) == (1, 1)
    assert one.read(token) == {"n": 2}
    assert (one.copies.cache.hosted(), two.copies.cache.hosted()) == (2, 0)
    assert one.read(other) == {"n": 7}
    # A false notice, which anyone with access to a session server could send, moves nothing for long.
    two.write(token, n=3)
    farm.notices = False
    one.read(other)
    assert one.copies.cache.hosted() == 1


def test_a_claim_that_was_given_up_and_came_late_is_brought_to_the_other_copy() -> None:
    """It lay in a broken connection; its sender went on with the copy that it had."""
    farm = Farm(servers=3)
    web = farm.web()
    store(web, b"one")
    own = loaded(web)
    first, second, _ = farm.ranked(KEY)
    late = web.copies.puts.sealed(
        Copy(KEY, Version(own.version.epoch + 1, own.version.owner, 0), own.history, own.body)
    )
    late = msgspec.structs.replace(late, expires_in_ms=LIFE_MS)
    assert second.put(KEY, own.version, late, b"") == Accepted()
    assert web.needing_repair() == [KEY]
    web.run(web.repairs.repair(KEY))
    assert first.entry(KEY) == second.entry(KEY)
    assert web.needing_repair() == []
    assert loaded(web).body == b"one"


def test_a_write_that_was_given_up_and_came_late_to_a_stand_in_is_found_by_the_scan() -> None:
    """The stand-in was away when the session was claimed from the cache: nothing was known of what it has."""
    farm = Farm(servers=2, copies=1)
    web = farm.web()
    home, stand_in = farm.ranked(KEY)
    home.down = True
    store(web, b"one")
    home.down, stand_in.down = False, True
    web.repairs.lost_server(stand_in.name)
    web.exclusively(KEY, web.repairs.repair(KEY))
    version = Version(1, loaded(web).history[-1].owner, 2)
    late = Copy(KEY, version, with_write((), version), b"two")
    late.expires_at = farm.now_ms + LIFE_MS
    stand_in.set(KEY, web.copies.puts.sealed(late))
    stand_in.down = False
    web.repairs.lost_server(stand_in.name)
    assert web.repairs.unknown(home.name, [KEY]) == []
    assert web.repairs.unknown(stand_in.name, [KEY]) == [KEY]
    web.exclusively(KEY, web.repairs.repair(KEY))
    kept = home.entry(KEY)
    assert kept is not None
    assert holds(kept.history, version)
