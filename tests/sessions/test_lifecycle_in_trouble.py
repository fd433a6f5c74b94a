"""Sessions while session servers are away, behind, or have forgotten (protocol sections 4, 6 and 9)."""

from __future__ import annotations

import pytest

from coatcheck.errors import ConflictError, SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind
from coatcheck.replication.cache import Copy
from coatcheck.replication.copies import Written
from coatcheck.replication.effects import Exclusive, Flow
from coatcheck.replication.repair import Repair, Repaired
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.tokens.sealed import SealedToken
from replication.tiny_farm import Farm, WebServer


@pytest.mark.parametrize(("durability", "level"), [("async", 0), ("one", 1)])
def test_early_answers_carry_the_level_reached_and_are_settled_later(durability: str, level: int) -> None:
    farm = Farm(durability=durability)
    web = farm.web()
    token = web.create(n=1)
    session = web.opened(token)
    session["n"] = 2
    saved = web.save(session)
    assert saved.written == Written(level, 2)
    web.settle()
    newest = saved.issue.token if saved.issue else token
    assert farm.web().read(newest) == {"n": 2}
    assert len({entry.version for entry in farm.entries(token.key) if entry}) == 1


@pytest.mark.parametrize("durability", ["async", "one"])
def test_creation_and_rotation_wait_for_all_copies_whatever_the_durability(durability: str) -> None:
    farm = Farm(durability=durability)
    web = farm.web()
    saved = web.save(Session(n=1))
    assert saved.written == Written(2, 2)
    assert saved.issue is not None
    session = web.opened(saved.issue.token)
    session.rotate()
    rotated = web.save(session)
    assert rotated.written == Written(2, 2)
    assert rotated.issue is not None
    assert rotated.issue.token.session_id != saved.issue.token.session_id


def test_below_target_it_degrades_and_the_session_goes_on() -> None:
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    farm.servers["s1"].down = True
    session = web.opened(token)
    session["n"] = 2
    assert web.save(session).written == Written(1, 2)
    assert EventKind.BELOW_TARGET in web.kinds()
    assert web.copies.under_replicated.keys() == {token.key}


@pytest.mark.parametrize("verb", ["write", "create", "login"])
def test_below_target_it_refuses_if_asked_to(verb: str) -> None:
    farm = Farm(below_target="refuse")
    web = farm.web()
    token = web.create(n=1)
    session = Session(n=9) if verb == "create" else web.opened(token)
    session["n"] = 2
    if verb == "login":
        session.regenerate("ada")
    farm.servers["s1"].down = True
    with pytest.raises(SessionUnavailable) as caught:
        web.save(session)
    assert caught.value.reason is UnavailableReason.BELOW_TARGET


def test_with_too_few_answers_nobody_is_served_unless_the_operator_says_so() -> None:
    for policy, served in (("refuse", None), ("serve", {"n": 1})):
        farm = Farm(servers=3, too_few_answers=policy)
        token = farm.web().create(n=1)
        for server in farm.ranked(token.key)[1:]:
            server.silent = True
        if served is None:
            with pytest.raises(SessionUnavailable) as caught:
                farm.web().read(token)
            assert caught.value.reason is UnavailableReason.TOO_FEW_SERVERS
        else:
            assert farm.web().read(token) == served


def test_without_any_server_no_session_is_invented() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(n=1)
    for server in farm.servers.values():
        server.down = True
    with pytest.raises(SessionUnavailable):
        two.open(token)
    with pytest.raises(SessionUnavailable):
        two.create(n=1)


def rolled_back(policy: SessionPolicy) -> tuple[Farm, SealedToken]:
    """A token that was told of ``n=2``, and session servers that have gone back to ``n=1``."""
    farm = Farm(policy=policy)
    web = farm.web()
    token = web.create(n=1)
    backup = farm.backup()
    newest = web.write(token, n=2)
    farm.restore(backup)
    return farm, newest


def test_a_session_that_was_rolled_back_is_closed_and_reported() -> None:
    farm, token = rolled_back(SessionPolicy())
    web = farm.web()
    assert web.read(token) is None
    assert EventKind.SESSION_ROLLED_BACK in web.kinds()
    assert EventKind.SESSION_THEFT not in web.kinds()
    assert all(entry is not None and entry.closed for entry in farm.entries(token.key))


def test_a_session_that_was_rolled_back_may_be_accepted_and_gets_a_token_of_what_is_left() -> None:
    farm, token = rolled_back(SessionPolicy(rolled_back="accept"))
    web = farm.web()
    session = web.opened(token)
    assert session == {"n": 1}
    assert EventKind.SESSION_ROLLED_BACK in web.kinds()
    issue = web.save(session).issue
    assert issue is not None
    other = farm.web()
    assert other.read(issue.token) == {"n": 1}
    assert EventKind.SESSION_ROLLED_BACK not in other.kinds()


def test_a_session_that_is_nowhere_is_reported_as_lost() -> None:
    farm = Farm()
    token = farm.web().create(n=1)
    for server in farm.servers.values():
        server.stored.clear()
    web = farm.web()
    assert web.read(token) is None
    assert web.kinds() == [EventKind.SESSION_NOT_FOUND]


def test_events_never_name_the_key_of_a_session() -> None:
    farm, token = rolled_back(SessionPolicy())
    web = farm.web()
    web.read(token)
    assert web.events
    for event in web.events:
        for secret in (token.key, token.session_id):
            assert secret.hex() not in event.session + event.detail
            assert repr(secret) not in event.session + event.detail


@pytest.mark.parametrize("again", ["at once", "after the background repair"])
def test_a_logout_that_others_cannot_hear_of_is_refused_and_goes_on_in_the_background(again: str) -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    token = one.create(n=1)
    session = one.opened(token)
    for server in farm.ranked(token.key)[:2]:
        server.silent = True  # the two that hold the session
    session.close()
    with pytest.raises(SessionUnavailable) as caught:
        one.save(session)
    assert caught.value.reason is UnavailableReason.TOO_FEW_SERVERS
    assert EventKind.SESSION_CLOSED not in one.kinds(), "nobody is told that it is closed"
    for web in (one, two):
        with pytest.raises(SessionUnavailable):
            web.read(token)
    for server in farm.ranked(token.key)[:2]:
        server.silent = False
    if again == "after the background repair":
        one.run(_repaired(one, token.key))
    for web in (one, two, farm.web()):
        assert web.read(token) is None
    assert all(entry is not None and entry.final for entry in farm.entries(token.key))


def _repaired(web: WebServer, key: bytes) -> Flow[Repaired]:
    return (yield Exclusive(key, Repair(web.copies).repair(key)))


@pytest.mark.parametrize("flushed", [1, 2])
def test_a_write_brings_a_cached_session_back_to_servers_that_were_flushed(flushed: int) -> None:
    """Their keys are gone while the connections stand, so nobody was told; the cache has the session all the same."""
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    for server in farm.ranked(token.key)[:flushed]:
        server.stored.clear()
    newer = web.write(token, m=2)
    assert farm.web().read(newer) == {"n": 1, "m": 2}


def test_a_write_that_nobody_took_leaves_the_acknowledged_state_where_it_may_be_the_last() -> None:
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    session = web.opened(token)
    session["n"] = 2
    for server in farm.servers.values():
        server.silent = True
        server.stored.clear()  # they are restarted, and have lost everything
    with pytest.raises(SessionUnavailable):
        web.save(session)
    for server in farm.servers.values():
        server.silent = False
    farm.wait(3)
    assert web.read(token) == {"n": 1}
    assert farm.web().read(token) == {"n": 1}


def test_a_write_that_a_claim_saved_is_acknowledged_with_enough_copies_or_not_at_all() -> None:
    """Its answers were lost, a rival claimed it, and it was claimed back where one session server was left."""
    farm = Farm(servers=3, too_few_answers="serve")
    one, two = farm.two_webs()
    token = one.create(n=1)
    first, second, third = farm.ranked(token.key)
    session = one.opened(token)
    session["n"] = 2
    first.forgets_answers = second.silent = True

    def rival() -> None:
        first.forgets_answers = False
        assert two.read(token) == {"n": 2}

    def left_alone() -> None:
        second.down = third.down = True

    one.during_put = [lambda: None, rival, left_alone]
    with pytest.raises(SessionUnavailable) as caught:
        one.save(session)
    assert caught.value.reason is UnavailableReason.BELOW_TARGET
    assert not one.during_put


def test_a_session_that_was_claimed_while_it_was_created_is_not_refused_to_its_maker() -> None:
    """One of its two session servers is slow; meanwhile another web server claims what has arrived."""
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    session = Session({"n": 1})

    def claimed() -> None:
        key = next(key for server in farm.servers.values() for key in server.stored)
        assert isinstance(two.run(two.copies.load(key, None)), Copy)

    def one_is_slow() -> None:
        next(iter(farm.servers.values())).silent = True

    one.during_put = [one_is_slow, claimed]
    try:
        saved = one.save(session)
    except ConflictError:
        pytest.fail("its maker is refused")
    assert not one.during_put
    assert saved.written == Written(2, 2)
    assert saved.issue is not None
    assert one.read(saved.issue.token) == {"n": 1}


def test_a_mark_that_a_browser_has_moved_on_changes_no_byte_of_what_is_stored() -> None:
    policy = SessionPolicy(rotate_after_ms=4_000, grace_ms=1_000)
    farm = Farm(policy=policy)
    web = farm.web()
    first = web.create(n=1)
    farm.wait(5)
    second = web.write(first, n=2)
    assert second != first
    second = web.write(second, n=3)
    copy = web.copies.cache.get(first.key)
    assert copy is not None
    for _ in range(6):
        farm.wait(1)
        body = copy.body
        web.read(second)
        assert web.copies.cache.get(first.key) is copy
        if copy.marks is not None:
            break
    assert copy.marks is not None
    assert copy.body == body
