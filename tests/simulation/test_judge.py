"""What the judge excuses is the very write, branch, claim or moment that its reason is true of, and no other."""

from __future__ import annotations

import msgspec
import pytest

from coatcheck.events import EventKind
from coatcheck.replication.cache import Copy
from coatcheck.replication.effects import Put, Unreachable
from coatcheck.replication.entry import Entry, encode_header
from coatcheck.replication.version import Version
from coatcheck.sessions.mapping import session_of
from coatcheck.sessions.record import EMPTY_DATA, Record, decode_record, encode_record
from coatcheck.simulation.application import Attempt, Cookies
from coatcheck.simulation.bare.farm import BareFarm
from coatcheck.simulation.bare.web_server import ModelWebServer
from coatcheck.simulation.convergence import _check_live, _check_tombstones, _is_late_claim, check_convergence
from coatcheck.simulation.log import Ack, Close, OfferedVersion, SessionLog
from coatcheck.simulation.scenario import Scenario, draw
from coatcheck.simulation.schedule import EPOCH_MS
from coatcheck.simulation.trace import Trace
from coatcheck.tokens.chain import Chain, ChainLink
from coatcheck.tokens.sealed import SealedToken

KEY = bytes(16)
OWNER = b"W1-owner"
FIRST, SECOND = Version(1, OWNER, 1), Version(1, OWNER, 2)
LIFE_MS = 3_600_000


def scenario() -> Scenario:
    """Three session servers, two copies, quorums, and no fault but those of the test."""
    calm = draw(1, "calm")
    return msgspec.structs.replace(
        calm, session_servers=3, copies=2, durability="all", below_target="quorum", too_few_answers="refuse",
        grace_ms=60_000, idle_timeout_ms=LIFE_MS, absolute_timeout_ms=LIFE_MS, new_session_ms=0, rolled_back="close",
        faults=1,
    )  # fmt: skip


def entry(*history: Version) -> Entry:
    return Entry(history[-1], history, False, LIFE_MS, b"sealed")


@pytest.fixture
def farm() -> BareFarm:
    return BareFarm(scenario(), Trace(False))


def written(farm: BareFarm) -> SessionLog:
    """Two writes, both acknowledged by the first two session servers."""
    log = farm.ledger.log(KEY)
    log.created_ms, log.last_active = EPOCH_MS, farm.schedule.now
    for version in (FIRST, SECOND):
        log.blobs[version] = b""
        for server in list(farm.servers.values())[:2]:
            server.put(KEY, log.on[server.name].version if server.name in log.on else None, entry(version))
        log.acks[version] = Ack(farm.schedule.now, 2, OWNER)
    return log


def excuses(farm: BareFarm) -> list[str]:
    return [name for name in farm.ledger.counts if name.startswith("promise")]


def test_a_server_that_forgets_one_write_is_no_excuse_for_the_other(farm: BareFarm) -> None:
    log = written(farm)
    next(iter(farm.servers.values())).forget_some(1)
    assert set(log.forgotten) == {SECOND}
    farm.ledger._judge_fork(log, SECOND)
    assert (farm.ledger.violations, excuses(farm)) == ([], ["promise 1: fork, a server forgot this very write"])
    farm.ledger._judge_fork(log, FIRST)
    assert len(farm.ledger.violations) == 1


def test_a_server_that_is_restarted_with_all_it_had_has_forgotten_nothing(farm: BareFarm) -> None:
    log = written(farm)
    for server in farm.servers.values():
        farm.ledger.forgot(server)
    assert not log.forgotten
    assert not log.once_lost


def test_what_a_lapse_covered_is_lost_with_the_last_lapse(farm: BareFarm) -> None:
    log = written(farm)
    first, second = list(farm.servers.values())[:2]
    lapse = Entry(Version(2, OTHER, 0), (SECOND,), True, LIFE_MS, b"sealed", True)
    for server in (first, second):
        server.put(KEY, SECOND, lapse)
    first.forget_some(2)
    assert not log.lost
    second.forget_some(1)
    assert not log.lost, "it went back to the write itself"
    second.forget_some(1)
    assert log.lost == {SECOND}


def test_an_honest_browser_is_accused_only_after_a_write_was_on_no_server(farm: BareFarm) -> None:
    log = written(farm)
    servers = list(farm.servers.values())
    servers[0].forget_all()
    farm.ledger._judge_theft(log)
    assert len(farm.ledger.violations) == 1, "the other copy had it all"
    servers[1].forget_some(1)
    assert log.once_lost == {SECOND}
    farm.ledger._judge_theft(log)
    assert (len(farm.ledger.violations), len(excuses(farm))) == (1, 1)


def test_a_chain_may_fork_only_where_somebody_went_on_alone(farm: BareFarm) -> None:
    log = written(farm)
    log.forked_by.add(OWNER)
    log.below_target = True
    for version in log.blobs:
        offer(farm, log, version)
    assert not farm.ledger.chain_may_fork(log), "somebody reported a fork, and a copy was missing: a quorum was there"
    log.acks[SECOND] = Ack(0.0, 1, OWNER)
    offer(farm, log, SECOND, servers=2)
    assert farm.ledger.chain_may_fork(log), "one of two session servers was enough for this write"


def test_a_chain_may_fork_where_one_forgot_a_write_and_the_others_that_have_it_were_away(farm: BareFarm) -> None:
    log, web = written(farm), farm.webs[0]
    first, second, third = farm.servers
    farm.servers[first].forget_some(1)
    web.answered[KEY] = (farm.schedule.now, {first: entry(FIRST), second: entry(SECOND), third: None})
    farm.ledger._note_out_of_sight(web, log, claim(FIRST))
    assert not farm.ledger.chain_may_fork(log), "one that has it answered"
    web.answered[KEY] = (farm.schedule.now, {first: entry(FIRST), third: None})
    farm.ledger._note_out_of_sight(web, log, claim(SECOND))
    assert not farm.ledger.chain_may_fork(log), "it goes on with that write"
    farm.ledger._note_out_of_sight(web, log, claim(FIRST))
    assert farm.ledger.chain_may_fork(log)


def test_what_nobody_forgot_is_out_of_nobodys_sight(farm: BareFarm) -> None:
    log, web = written(farm), farm.webs[0]
    web.answered[KEY] = (farm.schedule.now, dict.fromkeys(list(farm.servers)[2:]))
    farm.ledger._note_out_of_sight(web, log, claim(FIRST))
    assert not farm.ledger.chain_may_fork(log), (
        "both holders are away, and have all that they had: a quorum is to see to it"
    )


def test_a_provisional_tombstone_may_be_left_over_only_if_it_was_overruled_and_all_is_over(farm: BareFarm) -> None:
    log = written(farm)
    lapse = {"store-3": Entry(Version(2, OWNER, 0), (FIRST,), True, LIFE_MS, b"sealed", True)}

    def faults() -> int:
        _check_tombstones(farm, log, lapse)
        return len(farm.ledger.violations)

    log.accepted_by[Version(2, OWNER, 0)] = {"store-3"}
    log.last_active = farm.schedule.now - 2 * LIFE_MS / 1000
    assert faults() == 1, "nobody has claimed it since"
    log.accepted_by[Version(3, OWNER, 0)] = {"store-1"}
    assert faults() == 1
    log.last_active = farm.schedule.now
    log.created_ms = EPOCH_MS + int(farm.schedule.now * 1000)
    assert faults() == 2, "it is not over"


@pytest.mark.parametrize(
    ("damage", "is_over", "faults"), [("clocks", True, 0), ("clocks", False, 1), ("wide", True, 1)]
)
def test_a_provisional_tombstone_may_outlive_its_session_where_a_clock_was_ahead(
    farm: BareFarm, damage: str, is_over: bool, faults: int
) -> None:
    log = written(farm)
    servers = list(farm.servers.values())
    for server in servers:
        server.forget_all()
        server.expires_by_wall = True
    lapse = Entry(Version(2, OWNER, 0), (FIRST,), True, LIFE_MS, b"sealed", True)
    servers[2].put(KEY, None, lapse)
    farm.scenario = farm.ledger.scenario = msgspec.structs.replace(farm.scenario, damage=damage)
    log.issued[bytes(16)] = 0.0
    if is_over:
        log.last_active = farm.schedule.now - 2 * LIFE_MS / 1000
    before = len(farm.ledger.violations)
    check_convergence(farm)
    assert len(farm.ledger.violations) - before == faults


@pytest.mark.parametrize(
    ("by_owner", "ahead_ms", "short_ms", "faults"),
    [
        (True, 120, 120, 0),
        (True, 120, 125, 1),  # by more than its owner's time was ahead
        (True, 0, 120, 1),  # its owner's time was right in each put
        (False, 120, 120, 1),  # who copies it goes by the life that is shown, not by a time of its own
        (True, 10_000, 1000, 0),
        (True, 10_000, 1005, 1),  # no late answer that is heeded makes a time wrong by more than a second
    ],
)
def test_a_copy_is_put_again_with_a_shorter_life_only_if_its_owners_time_is_ahead_then(
    farm: BareFarm, monkeypatch: pytest.MonkeyPatch, by_owner: bool, ahead_ms: int, short_ms: int, faults: int
) -> None:
    owner, other = farm.webs[:2]
    version = Version(1, owner.server_id + bytes(5), 0)
    put_short(farm, owner, version, "store-1", 0)
    assert not farm.ledger.violations
    sender = owner if by_owner else other
    monkeypatch.setattr(sender, "now_ms", lambda: EPOCH_MS + ahead_ms)
    put_short(farm, sender, version, "store-2", short_ms)
    assert len(farm.ledger.violations) == faults


@pytest.mark.parametrize(
    ("seq", "behind_ms", "short_ms", "faults"),
    [
        (0, 50, 50, 0),
        (0, 50, 55, 1),  # by more than its owner's time was behind
        (0, 10_000, 1000, 0),
        (0, 10_000, 1005, 1),  # no late answer that is heeded makes a time wrong by more than a second
        (1, 50, 50, 1),  # the end of a write stands in its own record, and is not reckoned from a life that was shown
    ],
)
def test_a_copy_has_a_shorter_life_if_its_owners_time_was_behind_when_it_claimed(
    farm: BareFarm, monkeypatch: pytest.MonkeyPatch, seq: int, behind_ms: int, short_ms: int, faults: int
) -> None:
    owner = farm.webs[0]
    version = Version(1, owner.server_id + bytes(5), seq)
    with monkeypatch.context() as then:
        then.setattr(owner, "now_ms", lambda: EPOCH_MS - behind_ms)
        put_short(farm, owner, version, "store-1", 0)
    assert not farm.ledger.violations
    put_short(farm, owner, version, "store-2", short_ms)
    assert len(farm.ledger.violations) == faults


@pytest.mark.parametrize(
    ("was_shown", "seq", "short_ms", "faults"),
    [
        (True, 0, 120, 0),
        (True, 0, 125, 1),  # by more than what it was shown lacks
        (False, 0, 120, 1),  # its owner has not seen the copy that lacks something
        (True, 1, 120, 1),  # a write begins a life of its own
    ],
)
def test_a_claim_lacks_what_the_copy_lacked_that_it_goes_on_from(
    farm: BareFarm, monkeypatch: pytest.MonkeyPatch, was_shown: bool, seq: int, short_ms: int, faults: int
) -> None:
    before, owner = farm.webs[:2]
    with monkeypatch.context() as then:
        then.setattr(before, "now_ms", lambda: EPOCH_MS + 120)
        shown = put_short(farm, before, Version(1, before.server_id + bytes(5), 0), "store-1", 120)
    owner.answered[KEY] = (0.0, {"store-1": shown if was_shown else None})
    put_short(farm, owner, Version(2, owner.server_id + bytes(5), seq), "store-2", short_ms)
    assert len(farm.ledger.violations) == faults


def put_short(farm: BareFarm, web: ModelWebServer, version: Version, server: str, short_ms: int) -> Entry:
    """A web server puts a copy on one session server, with a life that is shorter than its record says."""
    body = encode_record(Record(EMPTY_DATA, EPOCH_MS, EPOCH_MS, None, Chain(ChainLink(bytes(16), EPOCH_MS))))
    payload = web.sealer.seal(KEY, encode_header(version, (), False), body)
    life_ms = decode_record(body).expires_at(web.lifecycle.policy) - EPOCH_MS
    entry = Entry(version, (), False, life_ms - short_ms, payload)
    attempt = Attempt(1, "read", None, Cookies(None, None), 0.0)
    farm.ledger.putting(web, attempt, Put(KEY, entry, {server: None}))
    farm.servers[server].put(KEY, None, entry)
    return entry


def test_an_early_end_is_excused_only_if_the_newest_write_is_lost(farm: BareFarm) -> None:
    log = written(farm)
    servers = list(farm.servers.values())
    log.lose([FIRST])
    farm.ledger._judge_expiry(farm.webs[0], log)
    assert len(farm.ledger.violations) == 1, "a server still has the newest"
    servers[0].forget_all()
    servers[1].forget_some(1)
    farm.ledger._judge_expiry(farm.webs[0], log)
    assert len(farm.ledger.violations) == 1
    assert not log.reported(EventKind.SESSION_EXPIRED)


# -- forks: which branch, whose claim, and when ------------------------------------------------------------------------

OTHER = b"W2-owner"
CLAIM, RIVAL = Version(2, OTHER, 0), Version(2, OTHER, 1)


def claim(*history: Version, version: Version = CLAIM) -> Entry:
    return Entry(version, history, False, LIFE_MS, b"sealed")


def forks(farm: BareFarm, log: SessionLog, *, reported: bool = True) -> None:
    """A web server that has seen SECOND somewhere goes on from FIRST, and puts that over SECOND."""
    web = farm.webs[0]
    web.answered[KEY] = (farm.schedule.now, {"store-1": entry(SECOND)})
    if reported:
        log.events.append((farm.schedule.now, web.server_id, EventKind.SESSION_FORKED))
    farm.ledger._note_branches(web, log, claim(RIVAL))


def offer(farm: BareFarm, log: SessionLog, version: Version, servers: int = 3) -> None:
    log.offers[version] = OfferedVersion(farm.schedule.now, servers)


def test_a_claim_gives_up_what_it_saw_if_it_said_so(farm: BareFarm) -> None:
    log = written(farm)
    forks(farm, log, reported=False)
    assert not log.gives_up(OTHER, SECOND)
    forks(farm, log)
    assert log.gives_up(OTHER, SECOND)
    assert not log.gives_up(OTHER, Version(1, OWNER, 3)), "a write that it did not see"
    assert not log.gives_up(OWNER, SECOND), "another claim"


def test_a_fork_that_was_reported_once_excuses_no_later_loss(farm: BareFarm) -> None:
    log = written(farm)
    forks(farm, log)
    log.forked_by.add(farm.webs[0].server_id)
    third = Version(1, OWNER, 3)
    log.blobs[third] = b""
    server = next(iter(farm.servers.values()))
    server.put(KEY, SECOND, entry(third))
    server.put(KEY, third, claim(RIVAL))
    assert len(farm.ledger.violations) == 1
    assert "no fork was reported" in farm.ledger.violations[0]


def test_a_write_that_is_put_again_after_a_fork_is_forked_away_no_more(farm: BareFarm) -> None:
    log = written(farm)
    forks(farm, log)
    first, second = list(farm.servers.values())[:2]
    for server in (first, second):
        server.put(KEY, SECOND, claim(RIVAL))
    assert SECOND in log.forked_away
    first.put(KEY, CLAIM, entry(SECOND))
    assert SECOND in log.forked_away, "what comes late is not put again"
    farm.schedule.now += 1.0
    again = Version(3, OWNER, 0)
    offer(farm, log, again)
    second.put(KEY, CLAIM, claim(SECOND, version=again))
    assert SECOND not in log.forked_away


def test_a_lapse_may_be_undone_only_by_a_claim_that_saw_what_it_lacks(farm: BareFarm) -> None:
    log = written(farm)
    server = next(iter(farm.servers.values()))
    lapse = Entry(Version(3, b"W3-owner", 0), (SECOND,), True, LIFE_MS, b"", True)
    server.put(KEY, SECOND, lapse)
    log.forked_by.add(farm.webs[0].server_id)
    log.forked_away[RIVAL] = 0.0
    server.put(KEY, lapse.version, claim(SECOND, version=Version(4, OTHER, 0)))
    assert len(farm.ledger.violations) == 1, "whoever once reported a fork, of whatever is gone"
    server.put(KEY, Version(4, OTHER, 0), lapse)
    log.given_up[OTHER] = [(RIVAL,)]
    server.put(KEY, lapse.version, claim(SECOND, version=Version(4, OTHER, 0)))
    assert len(farm.ledger.violations) == 1
    assert len(excuses(farm)) == 1


def test_a_lapse_destroys_no_branch_that_it_does_not_cover(farm: BareFarm) -> None:
    log = written(farm)
    log.forked_away[SECOND] = 0.0
    server = next(iter(farm.servers.values()))
    server.put(KEY, SECOND, Entry(Version(3, OTHER, 0), (FIRST,), True, LIFE_MS, b"", True))
    assert len(farm.ledger.violations) == 1


def test_only_a_write_of_a_list_of_two_excuses_the_fork_that_it_makes(farm: BareFarm) -> None:
    log = written(farm)
    earlier = Version(1, OWNER, 0)
    log.blobs[earlier] = log.blobs[RIVAL] = b""
    log.acks[earlier] = Ack(0.0, 1, OWNER)
    offer(farm, log, earlier, servers=2)
    offer(farm, log, RIVAL, servers=3)
    branches = (FIRST, SECOND), (FIRST, RIVAL)
    farm.ledger._judge_fork(log, SECOND, *branches)
    assert len(farm.ledger.violations) == 1, "both branches have that one"
    log.acks[RIVAL] = Ack(0.0, 1, OTHER)
    offer(farm, log, RIVAL, servers=2)
    farm.ledger._judge_fork(log, SECOND, *branches)
    assert (len(farm.ledger.violations), len(excuses(farm))) == (1, 1)


def test_who_forgot_a_claim_may_take_the_branch_that_it_had_ended(farm: BareFarm) -> None:
    log = written(farm)
    log.blobs[RIVAL] = b""
    first = next(iter(farm.servers.values()))
    first.put(KEY, SECOND, claim(SECOND))
    farm.ledger._judge_fork(log, SECOND, (FIRST, SECOND), (FIRST, RIVAL))
    assert len(farm.ledger.violations) == 1, "it has the claim"
    first.forget_some(1)
    farm.ledger._judge_fork(log, SECOND, (FIRST, SECOND), (FIRST, RIVAL))
    assert (len(farm.ledger.violations), len(excuses(farm))) == (1, 1)
    farm.ledger._judge_fork(log, SECOND, (FIRST, SECOND), (FIRST, Version(3, OTHER, 1)))
    assert len(farm.ledger.violations) == 2, "that was another claim"


# -- what was lost when it was looked for ------------------------------------------------------------------------------


def test_a_session_that_came_back_after_the_look_was_on_no_server_at_the_look(farm: BareFarm) -> None:
    log = written(farm)
    web, (first, second, third) = farm.webs[0], farm.servers.values()
    third.put(KEY, None, entry(FIRST))
    third.forget_all()
    assert log.forgotten, "but others have it"
    farm.schedule.now += 1.0
    web.answered[KEY] = (farm.schedule.now, {})
    farm.schedule.now += 0.1
    third.put(KEY, None, entry(SECOND))
    del first.entries[KEY], second.entries[KEY]  # it moved
    farm.ledger._judge_not_found(web, log)
    assert len(farm.ledger.violations) == 1
    third.forget_all()
    web.answered[KEY] = (farm.schedule.now, {})
    farm.schedule.now += 0.1
    first.put(KEY, None, entry(SECOND))
    farm.ledger._judge_not_found(web, log)
    assert (len(farm.ledger.violations), len(excuses(farm))) == (1, 1)


def test_a_rollback_is_accepted_only_without_those_that_were_asked(farm: BareFarm) -> None:
    log = written(farm)
    farm.ledger.scenario = msgspec.structs.replace(farm.scenario, rolled_back="accept")
    web, first = farm.webs[0], next(iter(farm.servers.values()))
    lost = f"token {SECOND}, newest copy {FIRST}"
    farm.schedule.now += 1.0
    web.answered[KEY] = (farm.schedule.now, {})
    farm.ledger._judge_rollback(web, log, lost)
    assert (farm.ledger.violations, len(excuses(farm))) == ([], 1), "neither answered"
    web.answered[KEY] = (farm.schedule.now, {first.name: None})
    farm.ledger._judge_rollback(web, log, lost)
    assert len(farm.ledger.violations) == 1, "it had the write when it was asked"
    first.forget_all()
    farm.schedule.now += 1.0
    first.put(KEY, None, entry(SECOND))
    farm.ledger._judge_rollback(web, log, lost)
    assert len(farm.ledger.violations) == 1, "it got the write since"


def forked_away_and_back(farm: BareFarm, *, put_again: bool = False, looked_s: float = 1.0) -> SessionLog:
    """A write lost a reported fork, and a web server looked ``looked_s`` later, when no session server had it: then a
    put of it comes to the third one, late or because somebody has ``put_again``."""
    farm.ledger.scenario = msgspec.structs.replace(farm.scenario, copies=1)  # so that there are no quorums
    log = written(farm)
    web, (first, second, third) = farm.webs[0], farm.servers.values()
    offer(farm, log, SECOND)
    farm.schedule.now += 1.0
    forks(farm, log)
    for server in (first, second):
        server.put(KEY, SECOND, claim(RIVAL))
    farm.schedule.now += looked_s
    web.answered[KEY] = (farm.schedule.now, {first.name: claim(RIVAL), second.name: claim(RIVAL), third.name: None})
    web.had[KEY] = (RIVAL,)
    farm.schedule.now += 0.1
    if put_again:
        log.offers[SECOND].until = farm.schedule.now + web.TIMEOUT_S
    third.put(KEY, None, entry(SECOND))
    return log


ROLLED_BACK = f"token {SECOND}, newest copy {RIVAL}"


def test_a_write_that_was_forked_away_may_come_back_late_after_its_loss_was_found(farm: BareFarm) -> None:
    log = forked_away_and_back(farm)
    before = excuses(farm)
    farm.ledger._judge_rollback(farm.webs[0], log, ROLLED_BACK)
    assert (farm.ledger.violations, len(excuses(farm))) == ([], len(before) + 1)


def test_a_write_that_came_back_in_time_is_rolled_back_by_nobody(farm: BareFarm) -> None:
    farm.ledger._judge_rollback(farm.webs[0], forked_away_and_back(farm, put_again=True), ROLLED_BACK)
    assert len(farm.ledger.violations) == 1, "somebody has put it again, and waits for the answer"


def test_a_write_that_was_forked_away_after_the_look_was_there_to_be_seen(farm: BareFarm) -> None:
    farm.ledger._judge_rollback(farm.webs[0], forked_away_and_back(farm, looked_s=-0.5), ROLLED_BACK)
    assert len(farm.ledger.violations) == 1


@pytest.mark.parametrize("shown", [entry(SECOND), Unreachable("no answer in time")])
def test_a_write_that_was_shown_or_may_have_been_is_not_rolled_back(farm: BareFarm, shown: Entry | Unreachable) -> None:
    log, web = forked_away_and_back(farm), farm.webs[0]
    web.answered[KEY][1][list(farm.servers)[2]] = shown
    farm.ledger._judge_rollback(web, log, ROLLED_BACK)
    assert len(farm.ledger.violations) == 1


def test_a_write_that_the_own_copy_has_is_not_rolled_back(farm: BareFarm) -> None:
    log, web = forked_away_and_back(farm), farm.webs[0]
    web.had[KEY] = (SECOND,)
    farm.ledger._judge_rollback(web, log, ROLLED_BACK)
    assert len(farm.ledger.violations) == 1


def test_a_write_that_one_server_had_all_along_is_not_rolled_back(farm: BareFarm) -> None:
    log, web = forked_away_and_back(farm), farm.webs[0]
    log.has_since[list(farm.servers)[2], SECOND] = web.answered[KEY][0] - 0.1
    farm.ledger._judge_rollback(web, log, ROLLED_BACK)
    assert len(farm.ledger.violations) == 1


def test_a_write_that_no_fork_took_is_not_rolled_back(farm: BareFarm) -> None:
    log = forked_away_and_back(farm)
    log.forked_away.clear()
    farm.ledger._judge_rollback(farm.webs[0], log, ROLLED_BACK)
    assert len(farm.ledger.violations) == 1


def test_a_rollback_of_what_is_being_closed_is_accepted_only_out_of_sight(farm: BareFarm) -> None:
    log = written(farm)
    farm.ledger.scenario = msgspec.structs.replace(farm.scenario, rolled_back="accept")
    web, (first, second, _) = farm.webs[0], farm.servers.values()
    for server in (first, second):
        server.put(KEY, SECOND, Entry(Version(2, OTHER, 0), (SECOND,), True, LIFE_MS, b"sealed"))
    lost = f"token {SECOND}, newest copy {FIRST}"
    web.answered[KEY] = (farm.schedule.now, {})
    farm.ledger._judge_rollback(web, log, lost)
    assert (farm.ledger.violations, len(excuses(farm))) == ([], 1), "neither answered"
    web.answered[KEY] = (farm.schedule.now, {second.name: None})
    farm.ledger._judge_rollback(web, log, lost)
    assert len(farm.ledger.violations) == 1, "one answered, and knows of the tombstone"


def test_a_claim_came_late_if_its_sender_waited_no_more(farm: BareFarm) -> None:
    log = written(farm)
    first, second = list(farm.servers.values())[:2]
    offer(farm, log, CLAIM)
    first.put(KEY, SECOND, claim(SECOND))
    placed = {server.name: server.look(KEY) for server in (first, second)}
    assert not _is_late_claim(farm, log, placed)
    farm.schedule.now += 1.0
    first.put(KEY, CLAIM, claim(SECOND))
    assert _is_late_claim(farm, log, placed)


def test_a_late_put_is_no_sign_that_somebody_noticed_what_had_vanished(farm: BareFarm) -> None:
    """A put that waits in the network while a session server forgets all is stored there when it arrives."""

    def difference(*, silently: bool = True, late: bool = True) -> int:
        farm.ledger.violations.clear()
        log = farm.ledger.log(KEY)
        log.issued[b"token"] = farm.schedule.now
        first = farm.servers[farm.placement.ranking(KEY)[0]]
        offer(farm, log, FIRST)
        first.forget_all(silently=silently)
        farm.schedule.now += 1.0 if late else 0.0
        first.put(KEY, None, entry(FIRST))
        _check_live(farm, log, {name: held for name, one in farm.servers.items() if (held := one.look(KEY))})
        return len(farm.ledger.violations)

    log = farm.ledger.log(KEY)
    for version in (FIRST, SECOND):
        log.blobs[version] = b""
        for name in farm.placement.ranking(KEY)[:2]:
            farm.servers[name].put(KEY, FIRST if version is SECOND else None, entry(version))
    assert difference() == 0
    assert difference(late=False) == 1, "whoever put it then saw that there was nothing"
    assert difference(silently=False) == 1, "a session server that ends is noticed"


# -- closes that too few session servers hold --------------------------------------------------------------------------

TOMBSTONE = Entry(Version(2, OTHER, 0), (FIRST,), True, LIFE_MS, b"sealed")


def served(farm: BareFarm, log: SessionLog, earned_s: float, *, by_own_look: bool = False) -> None:
    """A request is served what its web server hosts, whose lease was earned so long ago."""
    web, ledger, now = farm.webs[0], farm.ledger, farm.schedule.now
    copy = Copy(KEY, FIRST, (FIRST,), b"")
    copy.record = Record(EMPTY_DATA, EPOCH_MS, EPOCH_MS, None, Chain(ChainLink(bytes(16), EPOCH_MS)))
    copy.lease_until = now - earned_s + farm.scenario.lease_s
    log.blobs[FIRST] = EMPTY_DATA
    web.checked[KEY] = now - earned_s
    token = SealedToken(KEY, bytes(16), EPOCH_MS, copy.promised)
    attempt = Attempt(1, "read", farm.browsers[0], Cookies(), now)
    attempt.moment = ledger.moment()
    ledger.looking(web, KEY, attempt if by_own_look else None)
    ledger.opened(web, attempt, token, session_of(copy, token, False, None, {}), now)


def closed(farm: BareFarm, *names: str) -> SessionLog:
    """A session of one copy, on the third session server; its close has reached these, and was told as incomplete."""
    farm.scenario = farm.ledger.scenario = msgspec.structs.replace(farm.scenario, copies=1)
    placement = farm.webs[0].copies.placement
    placement.wanted = placement.write_quorum = 1
    placement.read_quorum = 3
    log = farm.ledger.log(KEY)
    farm.servers["store-3"].put(KEY, None, entry(FIRST))
    farm.schedule.now += 1.0
    for name in names:
        farm.servers[name].put(KEY, FIRST, TOMBSTONE)
    log.closes.append(Close(farm.ledger.moment(), 0.0, farm.schedule.now, set(names), complete=False))
    farm.schedule.now += 1.0
    return log


def sees(farm: BareFarm, asked_s: float, *names: str) -> None:
    """The newest look of its web server, begun so long ago, got an answer from these alone."""
    replies = {name: server.look(KEY) for name, server in farm.servers.items()}
    away = {name: Unreachable("cut off") for name in replies if name not in names}
    farm.webs[0].answered[KEY] = (farm.schedule.now - asked_s, replies | away)


def test_a_lease_that_another_earned_while_a_request_waited_is_judged_as_one(farm: BareFarm) -> None:
    log = closed(farm, "store-1")
    sees(farm, 0.1, "store-3")
    served(farm, log, 0.1)
    assert (farm.ledger.violations, excuses(farm)) == ([], ["promise 3: the close was reported as incomplete"])
    served(farm, log, 0.1, by_own_look=True)
    assert len(farm.ledger.violations) == 1, "who asks needs a read quorum, and each has the tombstone"
    assert "no read quorum misses" in farm.ledger.violations[0]


def test_an_incomplete_close_excuses_no_lease_of_who_was_shown_its_tombstone(farm: BareFarm) -> None:
    log = closed(farm, "store-1")
    sees(farm, 0.1, "store-1", "store-3")
    served(farm, log, 0.2)
    assert not farm.ledger.violations, "it was earned before that look"
    served(farm, log, 0.1)
    assert len(farm.ledger.violations) == 1
    assert "saw a tombstone's holder" in farm.ledger.violations[0]


def test_an_incomplete_close_excuses_no_lease_on_session_servers_that_have_its_tombstone(farm: BareFarm) -> None:
    log = closed(farm, "store-3")
    served(farm, log, 1.1)
    assert not farm.ledger.violations, "it was earned before the tombstone came there"
    served(farm, log, 0.9)
    assert len(farm.ledger.violations) == 1
    assert "on session servers that have its tombstone" in farm.ledger.violations[0]
    farm.servers["store-2"].put(KEY, None, entry(FIRST))
    served(farm, log, 0.0)
    assert len(farm.ledger.violations) == 1, "it has moved to one that has none"
