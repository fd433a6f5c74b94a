"""Claims, leases and writes of one web server among others (protocol sections 3 to 5)."""

from __future__ import annotations

import pytest

from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind
from coatcheck.replication.cache import Copy
from coatcheck.replication.copies import Gone, Written
from coatcheck.replication.notice import Notice
from coatcheck.replication.policy import Durability
from coatcheck.replication.version import Version
from replication.one_session import KEY, load, loaded, promise, store, why
from replication.tiny_farm import Farm

# -- writing -------------------------------------------------------------------------------------


def test_a_write_is_on_the_placed_servers_before_it_is_acknowledged() -> None:
    farm = Farm(servers=3)
    web = farm.web()
    assert store(web, b"one") == Written(2, 2)
    first, second, third = farm.entries(KEY)
    assert first is not None
    assert first == second
    assert third is None
    assert b"one" not in first.payload
    assert store(web, b"two") == Written(2, 2)
    assert [entry.version.seq for entry in farm.entries(KEY) if entry] == [2, 2]


def test_one_is_acknowledged_when_one_has_it_and_goes_on_to_all() -> None:
    farm = Farm()
    web = farm.web()
    assert store(web, b"one", "one") == Written(1, 2)
    assert sum(entry is not None for entry in farm.entries(KEY)) == 1
    web.settle()
    assert sum(entry is not None for entry in farm.entries(KEY)) == 2
    assert web.copies.under_replicated.keys() == set()


def test_async_is_acknowledged_before_anyone_has_it() -> None:
    farm = Farm()
    web = farm.web()
    assert store(web, b"one", "async") == Written(0, 2)
    assert farm.entries(KEY) == [None, None]
    web.settle()
    assert all(entry is not None for entry in farm.entries(KEY))


def test_no_token_speaks_of_an_early_write_before_a_session_server_took_it() -> None:
    farm = Farm()
    web = farm.web()
    store(web, b"one")
    before = promise(web)
    store(web, b"two", "async")
    assert promise(web) == before
    web.settle()
    assert promise(web) != before


def test_a_server_that_is_down_is_passed_over_for_the_next_in_the_ranking() -> None:
    farm = Farm(servers=3)
    web = farm.web()
    farm.ranked(KEY)[0].down = True
    assert store(web, b"one") == Written(2, 2)
    assert [entry is not None for entry in farm.entries(KEY)] == [False, True, True]


def test_a_server_that_dies_of_the_put_is_replaced_by_the_next_in_the_ranking() -> None:
    farm = Farm(servers=3)
    web = farm.web()
    farm.ranked(KEY)[1].silent = True
    assert store(web, b"one") == Written(2, 2)
    assert [entry is not None for entry in farm.entries(KEY)] == [True, False, True]


def test_below_target_it_degrades_and_says_so() -> None:
    farm = Farm()
    web = farm.web()
    farm.ranked(KEY)[1].down = True
    assert store(web, b"one") == Written(1, 2)
    assert web.copies.under_replicated.keys() == {KEY}
    assert EventKind.BELOW_TARGET in web.kinds()
    assert web.copies.cached(KEY, promise(web)) is None, "a degraded put gives no lease"
    farm.ranked(KEY)[1].down = False
    assert store(web, b"two") == Written(2, 2)
    assert web.copies.under_replicated.keys() == set()


def test_below_target_it_refuses_if_asked_to() -> None:
    farm = Farm(below_target="refuse")
    web = farm.web()
    farm.ranked(KEY)[1].down = True
    with pytest.raises(SessionUnavailable) as caught:
        store(web, b"one")
    assert caught.value.reason is UnavailableReason.BELOW_TARGET
    assert web.copies.cache.get(KEY) is None


@pytest.mark.parametrize("durability", ["all", "one"])
def test_a_write_that_nobody_took_is_forgotten_and_its_number_never_used_again(durability: Durability) -> None:
    farm = Farm()
    web = farm.web()
    store(web, b"one")
    for server in farm.servers.values():
        server.forgets_answers = True
    with pytest.raises(SessionUnavailable) as caught:
        store(web, b"lost?", durability)
    assert caught.value.reason is UnavailableReason.NO_SERVER
    assert web.copies.cache.get(KEY) is None
    for server in farm.servers.values():
        server.forgets_answers = False
    used = [entry.version for entry in farm.entries(KEY) if entry]
    assert loaded(web).body == b"lost?", "the outcome was unknown; it had been stored"
    store(web, b"three")
    assert web.copies.cache.get(KEY).version not in used  # type: ignore[union-attr]


def test_a_write_of_a_superseded_owner_is_refused_and_changes_nothing() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    farm.notices = False
    store(one, b"one")
    loaded(two)
    store(two, b"two")
    assert store(one, b"late") is None
    assert one.copies.cache.get(KEY) is None
    assert loaded(one).body == b"two"


# -- claiming ------------------------------------------------------------------------------------


def test_a_claim_changes_the_owner_and_nothing_else() -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    before = one.copies.cache.get(KEY)
    assert before is not None
    copy = loaded(two, promise(one))
    assert copy.body == b"one"
    assert copy.history == before.history
    assert copy.version.epoch == before.version.epoch + 1
    assert copy.version.seq == 0
    assert copy.version.server_id == two.server_id
    assert [entry.version for entry in farm.entries(KEY) if entry] == [copy.version] * 2


def test_a_claim_goes_to_every_server_that_showed_a_copy() -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    farm.ranked(KEY)[0].down = True
    store(one, b"one")
    farm.ranked(KEY)[0].down = False
    copy = loaded(two)
    assert [entry.version for entry in farm.entries(KEY) if entry] == [copy.version] * 3


def test_an_epoch_that_was_tried_is_never_used_again_whatever_became_of_it() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    backup = farm.backup()
    for server in farm.servers.values():
        server.forgets_answers = True
    assert why(two) is UnavailableReason.NO_SERVER
    for server in farm.servers.values():
        server.forgets_answers = False
    farm.restore(backup)
    assert loaded(two).version.epoch == 3


def test_nobody_takes_a_session_that_is_nowhere() -> None:
    assert load(Farm().web()) is Gone.ABSENT


def test_the_owner_hears_of_a_claim_and_asks_before_it_serves_again() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    assert one.copies.cached(KEY, promise(one)) is not None
    loaded(two)
    assert one.copies.cached(KEY, promise(one)) is None
    store(two, b"two")
    assert loaded(one).body == b"two"


def test_without_notices_a_cached_copy_is_served_for_one_lease_at_most() -> None:
    farm = Farm(lease_s=2.0)
    one, two = farm.two_webs()
    farm.notices = False
    store(one, b"one")
    loaded(two)
    store(two, b"two")
    farm.wait(1.9)
    old = one.copies.cached(KEY, promise(one))
    assert old is not None
    assert old.body == b"one", "read-your-writes is kept by the token, not by the clock"
    assert one.copies.cached(KEY, promise(two)) is None, "the token knows of the newer write"
    farm.wait(0.2)
    assert one.copies.cached(KEY, promise(one)) is None


def test_without_a_lease_every_read_asks() -> None:
    farm = Farm(lease_s=0.0)
    web = farm.web()
    store(web, b"one")
    assert web.copies.cached(KEY, promise(web)) is None
    assert loaded(web).version.epoch == 1, "asking is no new claim"


def test_a_put_begun_before_a_notice_came_earns_no_lease() -> None:
    farm = Farm()
    web = farm.web()

    def notice() -> None:
        farm.wait(0.001)
        web.copies.on_message(Notice(KEY, Version(9, b"w99RRRRR", 0), False))

    store(web, b"one")
    web.during_put = [notice]
    store(web, b"two")
    assert web.copies.cached(KEY, promise(web)) is None
    store(web, b"three")
    assert web.copies.cached(KEY, promise(web)) is not None


def test_a_session_that_is_closed_while_it_is_created_earns_no_lease() -> None:
    """Its copy is nowhere yet, but in the hands of the flow that stores it."""
    farm = Farm()
    web = farm.web()

    def closed_elsewhere() -> None:
        farm.wait(0.001)
        assert web.copies.on_message(Notice(KEY, Version(9, b"w99RRRRR", 0), True)) is None

    web.during_put = [closed_elsewhere]
    store(web, b"one")
    assert web.copies.cached(KEY, promise(web)) is None
    store(web, b"two")
    assert web.copies.cached(KEY, promise(web)) is not None


def test_a_forged_notice_of_a_close_costs_a_look_and_no_more() -> None:
    """Notices are not sealed: a session server that lies ends no session, for a tombstone must be shown."""
    farm = Farm()
    web, _ = farm.two_webs()
    store(web, b"one")
    web.copies.on_message(Notice(KEY, Version(9, b"w99RRRRR", 0), True))
    assert web.copies.cached(KEY, promise(web)) is None
    assert loaded(web).body == b"one"
    assert web.copies.cached(KEY, promise(web)) is not None


def test_echoes_of_our_own_claims_and_notices_of_other_sessions_change_nothing() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    copy = loaded(two)
    assert two.copies.on_message(Notice(KEY, copy.version, False)) is None
    assert two.copies.on_message(Notice(KEY, Version(9, two.server_id + b"RRRRR", 0), False)) is None
    assert two.copies.on_message(Notice(b"x" * 16, Version(9, b"w99RRRRR", 0), False)) is None
    assert two.copies.cached(KEY, copy.promised) is copy


@pytest.mark.parametrize("epoch", [0, 1, 2, 9])
def test_any_notice_of_another_owner_ends_the_lease_whatever_its_epoch(epoch: int) -> None:
    """A close takes its epoch from an older look than our own claim may have had; a rival claims with the same."""
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    copy = loaded(two)
    assert copy.version.epoch == 2
    assert two.copies.on_message(Notice(KEY, Version(epoch, b"w99RRRRR", 5), False)) is not None
    assert two.copies.cached(KEY, copy.promised) is None
    farm.wait(0.001)
    assert loaded(two) is copy, "a look, and the lease is earned again"
    assert two.copies.cached(KEY, copy.promised) is copy


def test_a_lease_counts_from_sending_the_put_not_from_its_acknowledgement() -> None:
    farm = Farm(lease_s=2.0)
    web = farm.web()
    web.during_put = [lambda: farm.wait(1.5)]
    store(web, b"one")
    assert web.copies.cached(KEY, promise(web)) is not None
    farm.wait(0.5)
    assert web.copies.cached(KEY, promise(web)) is None


def test_after_a_stall_nothing_is_served_unchecked_and_what_was_sent_before_it_earns_no_lease() -> None:
    farm = Farm()
    web = farm.web()
    store(web, b"one")
    web.copies.void_leases()
    assert web.copies.cached(KEY, promise(web)) is None

    def stall() -> None:
        farm.wait(0.3)
        web.copies.void_leases()

    web.during_put = [stall]
    store(web, b"two")
    assert web.copies.cached(KEY, promise(web)) is None
    farm.wait(0.001)
    store(web, b"three")
    assert web.copies.cached(KEY, promise(web)) is not None


def test_of_two_rival_claims_one_wins_and_the_other_goes_on_from_it() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    owner = farm.web()
    store(owner, b"one")
    one.during_put = [lambda: loaded(two)]
    assert loaded(one).body == b"one"
    owners = {entry.version.server_id for entry in farm.entries(KEY) if entry}
    assert owners == {one.server_id}
    assert [entry.version.epoch for entry in farm.entries(KEY) if entry] == [3, 3]


def test_rivals_without_end_are_given_up_after_a_bounded_number_of_tries() -> None:
    farm = Farm(max_tries=5)
    one, two = farm.two_webs()
    store(two, b"one")
    rivals = 0

    def rival() -> None:
        nonlocal rivals
        rivals += 1
        third = farm.web()
        third.run(third.copies.load(KEY, None))

    one.during_put = [rival] * 1000
    assert why(one) is UnavailableReason.CONTENDED
    assert rivals == 5


def test_a_server_that_came_back_empty_or_stale_does_not_make_us_forget() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    stale = farm.backup()[0]
    store(one, b"two")
    farm.servers["s1"].stored = stale
    assert loaded(two, promise(one)).body == b"two"
    farm.servers["s2"].stored = {}
    assert loaded(one, promise(two)).body == b"two"
    assert len({entry.version for entry in farm.entries(KEY) if entry}) == 1
    assert EventKind.SESSION_ROLLED_BACK not in one.kinds() + two.kinds()


@pytest.mark.parametrize("accept", [False, True])
def test_a_lost_write_is_reported_and_served_only_if_the_operator_says_so(accept: bool) -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    backup = farm.backup()
    store(one, b"two")
    farm.restore(backup)
    found = two.run(two.copies.load(KEY, promise(one), accept_rollback=accept))
    assert EventKind.SESSION_ROLLED_BACK in two.kinds()
    if accept:
        assert isinstance(found, Copy)
        assert found.body == b"one"
    else:
        assert found is Gone.ROLLED_BACK
        assert load(two, promise(one)) is Gone.CLOSED


def test_a_session_whose_copies_were_all_lost_comes_back_from_the_cache() -> None:
    farm = Farm()
    web = farm.web()
    store(web, b"one")
    promised = promise(web)
    for server in farm.servers.values():
        server.stored = {}
    farm.wait(10)
    assert loaded(web, promised).body == b"one"
    assert all(entry is not None for entry in farm.entries(KEY))


def test_two_branches_are_reported_and_joined_by_the_claim() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"base")
    s1, s2 = farm.servers.values()
    s1.down = True
    loaded(two)
    store(two, b"branch two")
    s1.down, s2.down = False, True
    farm.notices = False
    loaded(one)
    store(one, b"branch one")
    store(one, b"branch one again")
    s2.down = False
    three = farm.web()
    found = loaded(three)
    assert EventKind.SESSION_FORKED in three.kinds()
    assert found.body in (b"branch two", b"branch one again")
    assert {entry.version for entry in farm.entries(KEY) if entry} == {found.version}
