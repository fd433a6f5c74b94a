"""Who must answer, who is believed, and what a close does (protocol sections 3 to 6)."""

from __future__ import annotations

import pytest

from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind
from coatcheck.replication.cache import Copy
from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Copies, Gone, Written
from coatcheck.replication.effects import Unreachable
from coatcheck.replication.entry import Entry
from coatcheck.replication.placement import Copies as CopiesWanted
from coatcheck.replication.placement import Placement
from coatcheck.replication.policy import Durability
from coatcheck.replication.repair import Repair, Repaired
from coatcheck.replication.version import Version
from replication.one_session import KEY, load, loaded, promise, store, why
from replication.tiny_farm import Farm

# -- what counts -----------------------------------------------------------------------------------


@pytest.mark.parametrize("withdrawn", [True, False])
def test_a_write_counts_what_is_there_at_one_moment(withdrawn: bool) -> None:
    """A slow write is taken by one session server, then by another one that has nothing any more: meanwhile a rival
    found the fork, went on with its own branch, and replaced the first of the two."""
    farm = Farm(servers=3)
    farm.notices = False
    one, two = farm.two_webs()
    store(one, b"one")
    first, second, third = farm.ranked(KEY)
    two.cut = {second.name}
    loaded(two)
    store(two, b"two")

    def rival_goes_on() -> None:
        farm.wait(farm.replication.lease_s + 1)
        first.silent, two.cut = False, set()
        assert loaded(two, promise(two)).body == b"two"
        first.silent = True
        if withdrawn:
            third.stored.clear()

    first.silent = True
    one.during_put = [lambda: None, rival_goes_on]
    assert store(one, b"three") is None
    assert EventKind.SESSION_FORKED in two.kinds()


def test_what_a_claim_found_counts_only_where_it_still_is() -> None:
    """A refused write is found by the claim that follows; a rival claims the session before it is acknowledged."""
    farm = Farm(servers=3)
    farm.notices = False
    one, two = farm.two_webs()
    store(one, b"one")
    copy = loaded(one)
    assert one.run(one.copies.still_has(copy, "all")) == Written(2, 2)
    loaded(two)
    assert one.run(one.copies.still_has(copy, "all")) is None
    assert one.copies.cache.get(KEY) is None


def test_a_stand_in_for_a_lost_server_still_counts() -> None:
    farm = Farm(servers=3)
    one = farm.web()
    store(one, b"one")
    farm.ranked(KEY)[0].silent = True
    assert store(one, b"two") == Written(2, 2)


@pytest.mark.parametrize("durability", ["all", "one"])
@pytest.mark.parametrize("heard", ["before the stand-in is asked", "while the stand-in is asked"])
def test_no_stand_in_counts_once_a_rival_was_heard_of(heard: str, durability: Durability) -> None:
    """The one session server of a session took a rival's claim, whose notice arrived, and answers the slow owner no
    more: what holds nothing of the session would take its write, and the write would be forked away."""
    farm = Farm(servers=3, copies=1)
    one, two = farm.two_webs()
    store(one, b"one")
    first = farm.ranked(KEY)[0]

    def rival_claims() -> None:
        first.silent = False
        loaded(two)
        first.silent = True

    def goes_silent() -> None:
        first.silent = True

    early = heard == "before the stand-in is asked"
    one.during_put = [rival_claims] if early else [goes_silent, rival_claims]
    assert store(one, b"two", durability) is None
    assert any(server.entry(KEY) for server in farm.ranked(KEY)[1:]) is not early
    first.silent = False
    assert loaded(one).body == loaded(two).body


# -- who answers ---------------------------------------------------------------------------------


def test_no_answer_at_all_fails_closed() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    for server in farm.servers.values():
        server.silent = True
    assert why(two) is UnavailableReason.NO_SERVER


@pytest.mark.parametrize(
    ("servers", "copies", "silent", "too_few"),
    [
        (2, 2, 1, False),
        (2, 1, 1, False),
        (3, 2, 1, False),
        (3, 2, 2, True),
        (3, 1, 1, True),
        (5, 2, 1, False),
        (5, 2, 2, True),
        (5, "all", 2, False),
        (5, "all", 3, True),
    ],
)
def test_how_many_must_answer(servers: int, copies: CopiesWanted, silent: int, too_few: bool) -> None:
    """With three or more: so many that one of them must have the newest acknowledged write."""
    farm = Farm(servers=servers, copies=copies)
    one, two = farm.two_webs()
    store(one, b"one")
    for server in farm.ranked(KEY)[servers - silent :]:
        server.silent = True
    if too_few:
        assert why(two) is UnavailableReason.TOO_FEW_SERVERS
    else:
        assert loaded(two).body == b"one"


def test_a_session_server_that_is_back_just_after_the_look_refuses_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its link broke and was made again: the look had no answer from it, and yet it is reachable."""
    farm = Farm(servers=3, lease_s=0.0)
    one = farm.web()
    store(one, b"one")
    back, third = farm.ranked(KEY)[1:]
    monkeypatch.setattr(back, "get", lambda key: Unreachable("connection lost"))
    try:
        assert loaded(one).body == b"one"
    except SessionUnavailable as refused:
        pytest.fail(f"refused: {refused}")
    assert third.entry(KEY) is not None, "it stands in for the one that did not answer"
    assert EventKind.BELOW_TARGET not in one.kinds()


def test_operators_may_serve_while_too_few_answer() -> None:
    farm = Farm(servers=3, too_few_answers="serve")
    one, two = farm.two_webs()
    store(one, b"one")
    for server in farm.ranked(KEY)[1:]:
        server.down = True
    assert loaded(two).body == b"one"
    assert EventKind.BELOW_TARGET in two.kinds()


def test_a_tombstone_is_believed_even_if_too_few_answer() -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    one.run(one.copies.close(KEY))
    for server in farm.ranked(KEY)[:2]:
        server.silent = True
    assert why(two) is UnavailableReason.TOO_FEW_SERVERS
    assert two.copies.cache.is_closed(KEY), "nothing is served; whether the close holds elsewhere is not known yet"
    for server in farm.ranked(KEY)[:2]:
        server.silent = False
    assert load(two) is Gone.CLOSED
    assert KEY not in two.copies.partly_closed


def test_a_close_that_no_read_quorum_need_meet_is_not_told_until_it_is() -> None:
    """The closer reaches one session server of three, and it is not one of the two that hold the session."""
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    first, second, third = farm.ranked(KEY)
    first.silent = second.silent = True
    closed = one.run(one.copies.close(KEY))
    assert (closed.holds, closed.needed, closed.effective) == (1, 2, False)
    first.silent = second.silent = False
    third.silent = True
    assert isinstance(load(two), Copy), "elsewhere nobody has heard of it"
    first.silent = second.silent = True
    third.silent = False
    for _ in range(2):
        assert why(one) is UnavailableReason.TOO_FEW_SERVERS, "asked again it is still not told"
    assert one.run(Repair(one.copies).repair(KEY)) is Repaired.PARTIAL
    first.silent = False
    began_ms = farm.now_ms
    assert load(one) is Gone.CLOSED, "two of three have it"
    assert farm.now_ms - began_ms >= one.copies.policy.lease_s * 1000, "and nobody serves from a lease any more"
    assert load(two) is Gone.CLOSED
    assert KEY in one.copies.closing, "the third one still lacks it"
    second.silent = False
    assert one.run(Repair(one.copies).repair(KEY)) is Repaired.MENDED
    assert KEY not in one.copies.closing and KEY not in one.copies.partly_closed


@pytest.mark.parametrize(("servers", "silent", "effective"), [(1, 0, True), (2, 1, True), (3, 1, True), (3, 2, False)])
def test_how_many_tombstones_make_a_close_effective(servers: int, silent: int, effective: bool) -> None:
    farm = Farm(servers=servers)
    one = farm.web()
    store(one, b"one")
    for server in farm.ranked(KEY)[:silent]:
        server.silent = True
    assert one.run(one.copies.close(KEY)).effective is effective


# -- corrupt and forged entries ------------------------------------------------------------------


def bend(farm: Farm, server: int, **changes: object) -> None:
    entry = farm.ranked(KEY)[server].entry(KEY)
    assert entry is not None
    parts = {name: getattr(entry, name) for name in ("version", "history", "closed", "expires_in_ms", "payload")}
    farm.ranked(KEY)[server].set(KEY, Entry(**(parts | changes)))


FORGERIES = {
    "payload": {"payload": b"garbage"},
    "a higher version": {"version": Version(99, b"w99RRRRR", 7)},
    "a richer history": {"history": (Version(1, b"w99RRRRR", 7),)},
    "all of these": {"version": Version(99, b"w99RRRRR", 7), "history": (Version(9, b"w99RRRRR", 7),), "payload": b""},
}


@pytest.mark.parametrize("changes", FORGERIES.values(), ids=FORGERIES.keys())
@pytest.mark.parametrize("server", [0, 1])
def test_what_one_session_server_forges_is_not_believed(server: int, changes: dict[str, object]) -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    promised = promise(one)
    bend(farm, server, **changes)
    assert loaded(two, promised).body == b"one"
    assert loaded(two, promised).body == b"one"


@pytest.mark.parametrize("server", [0, 1])
@pytest.mark.parametrize(("servers", "level"), [(2, 1), (3, 2)])
def test_a_forged_tombstone_closes_nothing_and_blocks_its_own_server_alone(
    servers: int, level: int, server: int
) -> None:
    farm = Farm(servers=servers)
    one, two = farm.two_webs()
    store(one, b"one")
    promised = promise(one)
    bend(farm, server, closed=True)
    assert loaded(two, promised).body == b"one"
    assert store(two, b"two") == Written(level, 2)
    assert store(two, b"three") == Written(level, 2)
    assert EventKind.CORRUPT_ENTRY in two.kinds()


@pytest.mark.parametrize("server", [0, 1])
def test_a_corrupt_payload_is_reported_and_replaced(server: int) -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    bend(farm, server, payload=b"garbage", version=Version(1, b"w99RRRRR", 7), history=(Version(1, b"w99RRRRR", 7),))
    copy = loaded(two)
    assert copy.body == b"one"
    assert EventKind.CORRUPT_ENTRY in two.kinds()
    assert [entry.version for entry in farm.entries(KEY) if entry] == [copy.version] * 2


def test_corrupt_everywhere_is_absent_not_an_invented_session() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    for server in (0, 1):
        bend(farm, server, payload=b"garbage")
    assert load(two) is Gone.ABSENT
    assert two.kinds().count(EventKind.CORRUPT_ENTRY) == 2


def test_another_sessions_entry_is_not_taken_for_this_one() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    for server in farm.servers.values():
        entry = server.entry(KEY)
        assert entry is not None
        server.set(b"x" * 16, entry)
    assert two.run(two.copies.load(b"x" * 16, None)) is Gone.ABSENT


# -- closing -------------------------------------------------------------------------------------


def test_a_close_puts_a_tombstone_on_every_server() -> None:
    farm = Farm(servers=4)
    one, two = farm.two_webs()
    store(one, b"one")
    assert one.run(one.copies.close(KEY)) == Closed(4, 4, 3)
    lives = [entry.expires_in_ms for entry in farm.entries(KEY) if entry is not None and entry.closed]
    assert lives == [one.copies.policy.tombstone_ms] * 4, "it outlives every token of the session"
    assert load(two) is Gone.CLOSED
    assert two.copies.cache.is_closed(KEY)
    assert one.copies.cache.get(KEY) is None


def test_closing_twice_is_harmless() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    first = one.run(one.copies.close(KEY))
    before = farm.entries(KEY)
    assert one.run(one.copies.close(KEY)) == two.run(two.copies.close(KEY)) == first
    assert [entry.version for entry in farm.entries(KEY) if entry] == [entry.version for entry in before if entry]


def test_what_never_existed_can_be_closed() -> None:
    farm = Farm()
    web = farm.web()
    assert web.run(web.copies.close(KEY)).complete
    assert load(web) is Gone.CLOSED


def test_a_close_says_how_far_it_came_and_whoever_sees_it_spreads_it() -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    lost = farm.ranked(KEY)[0]
    lost.down = True
    closed = one.run(one.copies.close(KEY))
    assert closed == Closed(2, 3, 2)
    assert not closed.complete
    assert EventKind.CLOSE_INCOMPLETE in one.kinds()
    assert KEY in one.copies.closing
    lost.down = False
    assert load(two) is Gone.CLOSED
    assert all(entry is not None and entry.closed for entry in farm.entries(KEY))


def test_a_close_that_nobody_took_is_no_close() -> None:
    farm = Farm()
    web = farm.web()
    store(web, b"one")
    for server in farm.servers.values():
        server.silent = True
    with pytest.raises(SessionUnavailable):
        web.run(web.copies.close(KEY))


def test_a_close_by_the_sole_owner_waits_for_nobody() -> None:
    farm = Farm()
    web = farm.web()
    store(web, b"one")
    before = farm.now_ms
    web.run(web.copies.close(KEY))
    assert farm.now_ms == before


@pytest.mark.parametrize(("notices", "waits_ms"), [(True, 0), (False, 2_020)])
def test_a_close_by_a_new_owner_waits_until_the_former_one_cannot_serve(notices: bool, waits_ms: int) -> None:
    farm = Farm(lease_s=2.0)
    one, two = farm.two_webs()
    farm.notices = notices
    store(one, b"one")
    loaded(two)
    before = farm.now_ms
    two.run(two.copies.close(KEY))
    assert farm.now_ms - before == waits_ms
    assert one.copies.cached(KEY, bytes(16)) is None


def test_a_close_by_one_who_never_owned_it_waits_a_lease() -> None:
    farm = Farm(lease_s=2.0)
    one, two = farm.two_webs()
    farm.notices = False
    store(one, b"one")
    before = farm.now_ms
    two.run(two.copies.close(KEY))
    assert farm.now_ms - before == 2_020, "a lease, and a hundredth for clocks that drift"
    assert one.copies.cached(KEY, bytes(16)) is None


def test_a_repeated_close_waits_for_a_lease_that_was_earned_where_the_tombstone_was_missing() -> None:
    farm = Farm(servers=2, copies=1, lease_s=2.0)
    one, two = farm.two_webs()
    farm.notices = False
    store(one, b"one")
    placed, other = farm.ranked(KEY)
    one.cut, two.cut = {placed.name}, {other.name}
    assert two.run(two.copies.close(KEY)).holds == 1
    store(one, b"two")
    two.cut = set()
    assert one.copies.cached(KEY, bytes(16)) is not None
    assert two.run(two.copies.close(KEY)).complete
    assert one.copies.cached(KEY, bytes(16)) is None


def test_the_life_of_a_tombstone_does_not_grow_by_spreading() -> None:
    farm = Farm(servers=3, tombstone_ms=10_000)
    one, two = farm.two_webs()
    store(one, b"one")
    lost = farm.ranked(KEY)[2]
    lost.down = True
    one.run(one.copies.close(KEY))
    lost.down = False
    farm.wait(6)
    assert load(two) is Gone.CLOSED
    entry = lost.entry(KEY)
    assert entry is not None
    assert entry.expires_in_ms <= 4_000


def test_the_life_of_a_tombstone_does_not_grow_by_retrying() -> None:
    farm = Farm(servers=3, tombstone_ms=10_000)
    web = farm.web()
    store(web, b"one")
    lost = farm.ranked(KEY)[2]
    lost.down = True
    assert web.run(web.copies.close(KEY)).effective
    farm.wait(6)
    assert not web.run(web.copies.close_again(KEY)).complete
    lives = [entry.expires_in_ms for entry in farm.entries(KEY) if entry is not None and entry.closed]
    assert len(lives) == 2 and max(lives) <= 4_000


@pytest.mark.parametrize("away", [1, 2])
def test_a_close_that_stays_unfinished_is_given_up_when_all_that_it_forbids_has_ended(away: int) -> None:
    """A session server is away for longer than a tombstone lives; the close was effective before, or was not."""
    farm = Farm(servers=3, tombstone_ms=10_000)
    web = farm.web()
    store(web, b"one")
    for server in farm.ranked(KEY)[:away]:
        server.down = True
    assert web.run(web.copies.close(KEY)).effective == (away == 1)
    for _ in range(3):
        assert KEY in web.needing_repair()
        assert web.run(web.repairs.repair(KEY)) is Repaired.PARTIAL
        farm.wait(2)
    farm.wait(4)
    assert KEY not in web.needing_repair(), "or it would be retried, and counted as closing, for ever"
    assert not web.copies.closing and not web.copies.partly_closed
    farm.wait(10)
    assert web.run(web.repairs.repair(KEY)) is Repaired.NOTHING


def test_no_server_comes_back_with_a_closed_session() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    store(one, b"one")
    stale = farm.backup()[0]
    one.run(one.copies.close(KEY))
    farm.servers["s1"].stored = stale
    assert load(two) is Gone.CLOSED
    assert all(entry is not None and entry.closed for entry in farm.entries(KEY))


# -- the constructor -----------------------------------------------------------------------------


@pytest.mark.parametrize("server_id", [b"", b"ab", b"abcd"])
def test_a_server_id_has_three_bytes(server_id: bytes) -> None:
    web = Farm().web()
    with pytest.raises(ValueError, match="3 bytes"):
        Copies(server_id, Placement(["s1"], 1), web.copies.policy, web.copies.sealer, web)


def test_what_is_remembered_of_tries_and_closes_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Copies, "MAX_TRIED", 5)
    monkeypatch.setattr(Copies, "MAX_CLOSING", 5)
    farm = Farm(lease_s=0.0)
    web = farm.web()
    farm.servers["s1"].down = True
    for number in range(20):
        web.run(web.copies.close(number.to_bytes(16, "big")))
    assert len(web.copies._tried) == 5
    assert list(web.copies.closing) == [number.to_bytes(16, "big") for number in range(15, 20)]


def test_a_write_of_less_than_a_quorum_is_refused_by_default() -> None:
    farm = Farm(servers=3)
    web = farm.web()
    store(web, b"one")
    promised = promise(web)
    for server in farm.ranked(KEY)[1:]:
        server.silent = True
    with pytest.raises(SessionUnavailable) as caught:
        store(web, b"two")
    assert caught.value.reason is UnavailableReason.BELOW_TARGET
    for server in farm.ranked(KEY)[1:]:
        server.silent = False
    assert loaded(farm.web(), promised).body in (b"one", b"two"), "nothing was promised, nothing is lost"


def test_who_acknowledges_early_does_not_wait_for_a_quorum() -> None:
    farm = Farm(servers=3, durability="one")
    web = farm.web()
    store(web, b"one")
    for server in farm.ranked(KEY)[1:]:
        server.silent = True
    assert store(web, b"two", "one") is not None
