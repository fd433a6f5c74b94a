"""Not seen is not gone: no session that a session server still holds ends because others could not see it.

Protocol section 6. A farm of two web servers and three session servers is cut in two; both sides go on; then
the cut heals.
"""

from __future__ import annotations

from typing import Any

import pytest

from coatcheck.errors import SessionUnavailable
from coatcheck.events import EventKind
from coatcheck.replication.closes import Lapsed
from coatcheck.replication.copies import Gone
from coatcheck.replication.version import Version, holds
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.tokens.sealed import SealedToken
from replication.one_session import KEY, load, loaded, promise, store
from replication.tiny_farm import Farm, WebServer

IDLE = SessionPolicy(idle_timeout_ms=60_000, absolute_timeout_ms=3_600_000)


def cut(farm: Farm, near: WebServer, far: WebServer, key: bytes, alone: int) -> None:
    """``near`` is left with the session server at place ``alone`` of the ranking, ``far`` with the two others."""
    names = [server.name for server in farm.ranked(key)]
    far.cut = {names[alone]}
    near.cut = set(names) - far.cut


def heal(*webs: WebServer) -> None:
    for web in webs:
        web.cut = set()


def ask(web: WebServer, token: SealedToken) -> Any:
    """What the browser gets: the data, ``None`` for an anonymous request, or the refusal's reason."""
    try:
        return web.read(token)
    except SessionUnavailable as unavailable:
        return unavailable.reason.value


@pytest.mark.parametrize("alone", [0, 1, 2])
def test_a_partition_of_the_default_farm_ends_no_session(alone: int) -> None:
    farm = Farm(servers=3)
    a, b = farm.two_webs()
    tokens = [a.create(n=0) for _ in range(6)]
    kept = []
    for token in tokens:
        cut(farm, a, b, token.key, alone)
        try:
            kept.append((a.write(token, n=1), {"n": 1}))
        except SessionUnavailable:
            kept.append((token, {"n": 0}))
        farm.wait(3)
        ask(b, kept[-1][0])
        heal(a, b)
    for token, data in kept:
        for web in (b, a):
            assert ask(web, token) in (data, {"n": 1})


@pytest.mark.parametrize("alone", [0, 1, 2])
def test_a_write_acknowledged_on_one_side_survives_a_look_from_the_other(alone: int) -> None:
    farm = Farm(servers=3, below_target="degrade")
    a, b = farm.two_webs()
    token = a.create(n=0)
    cut(farm, a, b, token.key, alone)
    newer = a.write(token, n=1)
    farm.wait(3)
    assert ask(b, newer) != {"n": 0}
    assert EventKind.SESSION_ROLLED_BACK not in b.kinds()
    heal(a, b)
    assert ask(b, newer) == {"n": 1}
    assert ask(a, newer) == {"n": 1}


def test_with_two_session_servers_and_two_cuts_neither() -> None:
    farm = Farm(servers=2)
    a, b = farm.two_webs()
    token = a.create(n=0)
    a.cut, b.cut = {"s1"}, {"s2"}
    newer = a.write(token, n=1)
    farm.wait(3)
    assert ask(b, newer) != {"n": 0}
    heal(a, b)
    assert ask(b, newer) == {"n": 1}


def test_an_old_copy_that_expires_takes_no_newer_one_with_it() -> None:
    """The time-out is judged on an old copy, while another session server holds later activity."""
    farm = Farm(servers=3, policy=IDLE, below_target="degrade")
    a, b = farm.two_webs()
    token = a.create(n=0)
    farm.wait(40)
    assert ask(a, token) == {"n": 0}  # asks, and earns a lease
    cut(farm, a, b, token.key, 2)
    newer = a.write(token, n=1)
    farm.wait(40)
    assert ask(b, token) != {"n": 0}
    heal(a, b)
    assert ask(b, newer) == {"n": 1}


def test_of_two_branches_the_one_that_covers_the_token_makes_a_fork_and_no_loss() -> None:
    farm = Farm(servers=3, below_target="degrade", too_few_answers="serve")
    a, b = farm.two_webs()
    token = a.create(n=0)
    cut(farm, a, b, token.key, 2)
    ours = a.write(token, a=1)
    theirs = b.write(token, b=1)
    heal(a, b)
    c = farm.web()
    for newest in (ours, theirs):
        assert ask(c, newest) is not None
    assert EventKind.SESSION_FORKED in c.kinds()
    assert EventKind.SESSION_ROLLED_BACK not in c.kinds()
    assert not any(entry is not None and entry.closed for entry in farm.entries(token.key))


def test_the_close_of_what_is_lost_leaves_the_other_branch_of_a_fork() -> None:
    farm = Farm(servers=3, below_target="degrade", too_few_answers="serve")
    a, b = farm.two_webs()
    token = a.create(n=0)
    cut(farm, a, b, token.key, 2)
    kept = a.write(token, a=1)
    theirs = b.write(token, b=1)
    backup = farm.backup()
    newer = a.write(kept, a=2)
    farm.restore(backup)
    heal(a, b)
    c = farm.web()
    assert ask(c, newer) is None, "what it promises is in neither branch"
    assert EventKind.SESSION_ROLLED_BACK in c.kinds()
    assert ask(c, kept) == {"n": 0, "a": 1}, "what the closed branch did not cover lives on"
    assert Version.unpack(theirs.version) > Version.unpack(kept.version), "which was not the newest"


def test_what_really_is_lost_is_still_reported_and_closed() -> None:
    farm = Farm(servers=3)
    a, b = farm.two_webs()
    token = a.create(n=0)
    backup = farm.backup()
    newer = a.write(token, n=1)
    farm.restore(backup)
    assert ask(b, newer) is None
    assert EventKind.SESSION_ROLLED_BACK in b.kinds()
    assert ask(b, token) is None, "the old state is not served to anyone"


def test_a_close_that_nobody_willed_yields_to_a_write_that_it_did_not_know() -> None:
    farm = Farm(servers=3)
    a, b = farm.two_webs()
    token = a.create(n=0)
    backup = farm.backup()
    newer = a.write(token, n=1)
    names = [server.name for server in farm.ranked(token.key)]
    kept = farm.servers[names[0]].stored[token.key]
    farm.restore(backup)
    assert ask(b, newer) is None  # closed: all three answered, none had it
    farm.servers[names[0]].stored[token.key] = kept  # a stale reply, a lie, a server restored from its backup
    assert ask(b, newer) == {"n": 1}
    promised = Version.unpack(newer.version)
    for server in farm.ranked(token.key):
        entry = server.entry(token.key)
        assert entry is None or (not entry.closed and holds(entry.history, promised))


# -- compare-and-set, and who hears of it ----------------------------------------------------------


def test_a_time_out_that_a_write_overtakes_closes_nothing() -> None:
    """Between the look and the tombstone another web server stores a write."""
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    judged = loaded(one).history
    two.during_put = [lambda: store(one, b"two")]
    assert two.exclusively(KEY, two.copies.lapse(KEY, judged)) is Lapsed.CLOSED
    assert one.copies.cache.get(KEY) is not None
    assert loaded(farm.web(), promise(one)).body == b"two"


def test_a_time_out_is_judged_again_on_what_all_show() -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    judged = loaded(one).history
    store(one, b"two")
    assert two.exclusively(KEY, two.copies.lapse(KEY, judged)) is Lapsed.USED
    assert not any(entry is not None and entry.closed for entry in farm.entries(KEY))


def test_a_time_out_of_which_nothing_is_found_is_no_time_out_while_a_server_is_away() -> None:
    """The cache said that its time was over; who has what was written since then does not answer."""
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    judged = loaded(one).history
    holder, other, _ = farm.ranked(KEY)
    del other.stored[KEY]
    holder.down = True
    assert two.exclusively(KEY, two.copies.lapse(KEY, judged)) is Lapsed.UNHEARD
    holder.down = False
    assert loaded(farm.web(), promise(one)).body == b"one"


def test_a_provisional_tombstone_is_spread_only_over_what_it_covers() -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    judged = loaded(one).history
    last = farm.ranked(KEY)[2].name
    assert two.exclusively(KEY, two.copies.lapse(KEY, judged)) is Lapsed.CLOSED
    tombstone = farm.servers[last].stored.pop(KEY)
    assert load(two) is Gone.CLOSED
    assert farm.servers[last].stored[KEY][0].version == tombstone[0].version, "where nothing is, it is put"
    assert not two.copies.cache.is_closed(KEY), "who closes only what it covers has not closed for ever"


def test_a_willed_close_takes_the_place_of_a_provisional_one() -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    assert two.exclusively(KEY, two.copies.lapse(KEY, loaded(one).history)) is Lapsed.CLOSED
    assert one.exclusively(KEY, one.copies.close(KEY)).complete
    assert all(entry is not None and entry.final for entry in farm.entries(KEY))


def test_a_claim_put_where_nothing_was_is_told_to_the_owner_that_others_showed() -> None:
    """The owner is cut off from the servers that hold its copy, and hears through the one that held nothing."""
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    first, second, third = farm.ranked(KEY)
    two.cut = {first.name}
    assert loaded(two).body == b"one"
    assert second.notified == third.notified == [one.server_id]
    assert one.copies.cached(KEY, promise(one)) is None
    assert second.entry(KEY) is not None


def test_a_claim_that_fails_keeps_the_last_copy_there_is() -> None:
    """All session servers went back to an older state; the newest one is in a cache alone, and its claim fails."""
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    loaded(two)
    backup = farm.backup()
    loaded(one)
    store(one, b"two")
    promised = promise(one)
    farm.restore(backup)

    def all_fall_silent() -> None:
        for server in farm.servers.values():
            server.silent = True

    one.during_put = [all_fall_silent]
    farm.wait(10)
    with pytest.raises(SessionUnavailable):
        load(one, promised)
    for server in farm.servers.values():
        server.silent = False
    assert loaded(one, promised).body == b"two"


def test_what_moves_between_two_looks_is_not_lost() -> None:
    """A copy is on its way from a server that was asked late to one that was asked early: neither showed it."""
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    store(one, b"one")
    promised = promise(one)
    kept = [server.stored.pop(KEY) for server in farm.ranked(KEY)[:2]]

    def arrive() -> None:
        for server, row in zip(farm.ranked(KEY)[:2], kept, strict=True):
            server.stored[KEY] = row

    two.during_pause = [arrive]
    assert loaded(two, promised).body == b"one"
    assert EventKind.SESSION_NOT_FOUND not in two.kinds()
