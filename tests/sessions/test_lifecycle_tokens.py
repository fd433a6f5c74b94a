"""Rotation, theft and expiry of sessions, on two web servers (protocol section 7, mission A7 and A8)."""

from __future__ import annotations

from typing import Any

import pytest

from coatcheck.errors import SessionUnavailable
from coatcheck.events import EventKind
from coatcheck.replication.cache import Cache
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.tokens.chain import Shown
from coatcheck.tokens.sealed import SealedToken
from in_hand import must_save
from replication.tiny_farm import START_MS, Farm, WebServer

ROTATE_S = GRACE_S = 60


def request(web: WebServer, token: SealedToken) -> SealedToken:
    """One request that only reads; returns what the browser holds after the answer."""
    issue = web.save(web.opened(token)).issue
    return issue.token if issue else token


def closed_everywhere(farm: Farm, token: SealedToken) -> bool:
    return all(entry is not None and entry.closed for entry in farm.entries(token.key))


# -- rotation ------------------------------------------------------------------------------------


def test_a_token_is_replaced_when_it_is_old_enough_and_not_before() -> None:
    farm = Farm()
    web = farm.web()
    first = web.create(n=1)
    farm.wait(ROTATE_S - 1)
    assert request(web, first) == first
    farm.wait(1)
    second = request(web, first)
    assert second.key == first.key
    assert second.session_id != first.session_id
    assert second.timestamp == farm.now_ms
    assert request(web, second)[:2] == second[:2]


def test_after_a_lost_answer_the_same_successor_is_told_again() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    first = one.create(n=1)
    farm.wait(ROTATE_S)
    lost = request(one, first)
    assert request(one, first) == lost
    again = request(two, first)
    assert again[:3] == lost[:3]
    assert one.opened(again)._request.verdict is Shown.NEXT


def test_two_servers_that_rotate_at_once_mint_one_successor() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    first = one.create(n=1)
    farm.wait(ROTATE_S)
    sessions = one.opened(first), two.opened(first)
    issues = one.save(sessions[0]).issue, two.save(sessions[1]).issue
    assert issues[0] is not None
    assert issues[1] is not None
    assert issues[0].token[:3] == issues[1].token[:3]


def test_rotating_by_hand_gives_a_new_token_at_once() -> None:
    web = Farm().web()
    first = web.create(n=1)
    session = web.opened(first)
    session.rotate()
    saved = web.save(session)
    assert saved.issue is not None
    assert saved.issue.token.session_id != first.session_id
    assert web.read(saved.issue.token) == {"n": 1}


def test_a_successor_leaves_only_after_it_is_stored() -> None:
    farm = Farm()
    web = farm.web()
    first = web.create(n=1)
    farm.wait(ROTATE_S)
    session = web.opened(first)
    for server in farm.servers.values():
        server.silent = True
    with pytest.raises(SessionUnavailable):
        web.save(session)
    for server in farm.servers.values():
        server.silent = False
    assert farm.web().read(first) == {"n": 1}


def test_parallel_tabs_with_one_old_token_are_all_served_and_told_the_newest_if_they_write() -> None:
    """Who only reads has the newest token already, or has no right to it; who writes must learn the new version."""
    farm = Farm()
    webs = farm.two_webs()
    first = webs[0].create(n=1)
    farm.wait(ROTATE_S)
    second = request(webs[0], first)
    request(webs[0], second)
    for n, web in enumerate((*webs, *webs)):
        farm.wait(1)
        assert request(web, first) == first
        told = web.write(first, n=n)
        assert told[:3] == second[:3]
        assert told.version != second.version


def test_whoever_writes_with_a_token_that_was_replaced_long_ago_learns_the_version_and_no_newer_token() -> None:
    farm = Farm()
    web = farm.web()
    first = web.create(n=1)
    farm.wait(ROTATE_S)
    second = request(web, first)
    request(web, second)
    farm.wait(GRACE_S)
    request(web, second)
    farm.wait(1)
    told = web.write(first, n=2)
    assert told[:3] == first[:3]
    assert told.version != first.version
    assert farm.web().read(told) == {"n": 2}


def test_a_browser_whose_newer_cookie_was_overwritten_gets_a_token_of_its_own() -> None:
    """And whoever has the newer one meanwhile is found: only one of the two can be honest."""
    farm = Farm()
    web = farm.web()
    first = web.create(n=1)
    farm.wait(ROTATE_S)
    second = request(web, first)
    request(web, second)
    farm.wait(2 * GRACE_S + 1)
    own = request(web, first)
    assert own.session_id not in (first.session_id, second.session_id)
    farm.wait(GRACE_S + 1)
    assert web.kinds().count(EventKind.SESSION_THEFT) == 0
    assert web.read(second) is None
    assert web.kinds().count(EventKind.SESSION_THEFT) == 1


# -- theft ---------------------------------------------------------------------------------------


def stolen(policy: SessionPolicy) -> tuple[Farm, SealedToken, SealedToken]:
    """A token that its browser gave up more than a grace ago, and the one that it holds."""
    farm = Farm(policy=policy)
    web = farm.web()
    booty = web.create(n=1)
    farm.wait(ROTATE_S)
    held = request(web, request(web, booty))
    farm.wait(GRACE_S + 1)
    held = request(web, request(web, held))
    farm.wait(GRACE_S + 1)
    return farm, booty, request(web, held)


@pytest.mark.parametrize(
    ("theft", "thief", "victim"),
    [("close", None, None), ("refuse", None, {"n": 1}), ("report", {"n": 1}, {"n": 1})],
)
def test_a_token_that_was_given_up_comes_back(theft: Any, thief: Any, victim: Any) -> None:
    farm, booty, held = stolen(SessionPolicy(theft=theft))
    web = farm.web()
    assert web.read(booty) == thief
    assert web.kinds().count(EventKind.SESSION_THEFT) == 1
    assert farm.web().read(held) == victim
    assert closed_everywhere(farm, held) is (theft == "close")


def test_that_a_browser_has_moved_on_is_remembered_though_its_session_was_not_used_since(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is stored with the next write only; until then the web server knows it, decoded or not."""
    monkeypatch.setattr(Cache, "MAX_DECODED", 1)
    farm = Farm(policy=SessionPolicy(theft="refuse"))
    web = farm.web()
    booty = web.create(n=1)
    farm.wait(ROTATE_S)
    held = request(web, request(web, booty))
    farm.wait(GRACE_S + 1)
    session = web.opened(held)
    web.read(web.create(n=2))
    copy = session._request.copy_held
    assert copy is not None
    assert copy.record is None, "only that of the other session is decoded"
    assert session.user is None
    farm.wait(GRACE_S + 1)
    assert web.read(booty) is None
    assert web.kinds().count(EventKind.SESSION_THEFT) == 1


def test_who_is_served_under_report_gets_no_newer_token_by_writing() -> None:
    farm, booty, held = stolen(SessionPolicy(theft="report"))
    web = farm.web()
    session = web.opened(booty)
    session["n"] = 2
    web.save(session)
    assert farm.web().read(held) == {"n": 2}
    assert web.kinds().count(EventKind.SESSION_THEFT) == 1


@pytest.mark.parametrize("change", [{"session_id": b"x" * 16}, {"timestamp": START_MS - 1}])
def test_id_and_timestamp_are_compared_with_the_record(change: dict[str, Any]) -> None:
    farm = Farm(policy=SessionPolicy(theft="refuse"))
    token = farm.web().create(n=1)
    assert farm.web().read(token._replace(**change)) is None
    assert farm.web().read(token) == {"n": 1}


def test_a_token_that_is_not_covered_is_rolled_back_never_theft() -> None:
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    backup = farm.backup()
    farm.wait(ROTATE_S)
    newest = request(web, request(web, token))
    newest = web.write(newest, n=2)
    farm.restore(backup)
    other = farm.web()
    assert other.read(newest) is None
    assert EventKind.SESSION_ROLLED_BACK in other.kinds()
    assert EventKind.SESSION_THEFT not in other.kinds()


def test_accepting_a_rollback_serves_a_token_that_the_old_chain_has_never_seen() -> None:
    farm = Farm(policy=SessionPolicy(rolled_back="accept"))
    web = farm.web()
    token = web.create(n=1)
    backup = farm.backup()
    farm.wait(ROTATE_S)
    newest = web.write(request(web, request(web, token)), n=2)
    farm.restore(backup)
    other = farm.web()
    assert other.read(newest) == {"n": 1}
    assert EventKind.SESSION_ROLLED_BACK in other.kinds()
    assert EventKind.SESSION_THEFT not in other.kinds()


def test_the_letter_of_a3_a_new_token_with_every_response() -> None:
    farm = Farm(policy=SessionPolicy(rotate_after_ms=0, grace_ms=0, theft="refuse"))
    web = farm.web()
    tokens = [web.create(n=1)]
    for _ in range(5):
        farm.wait(1)
        tokens.append(request(web, tokens[-1]))
    assert len({token.session_id for token in tokens}) == 6
    for old in tokens[:-2]:
        assert farm.web().read(old) is None
    assert farm.web().read(tokens[-1]) == {"n": 1}


def test_it_is_new_also_where_the_clock_of_a_web_server_is_behind() -> None:
    farm = Farm(policy=SessionPolicy(rotate_after_ms=0, grace_ms=0, theft="refuse"))
    one, two = farm.two_webs()
    tokens = [one.create(n=1)]
    for _ in range(3):
        farm.wait(1)
        tokens.append(request(one, tokens[-1]))
        farm.wait(-1)
        tokens.append(request(two, tokens[-1]))
        tokens.append(request(two, tokens[-1]))
    assert len({token.session_id for token in tokens}) == 10
    stamps = [token.timestamp for token in tokens]
    assert stamps == sorted(stamps)


# -- expiry --------------------------------------------------------------------------------------

SHORT = SessionPolicy(idle_timeout_ms=80_000, absolute_timeout_ms=400_000, leeway_ms=1_000)
IDLE_S = 80 + 10 + 1  # the timeout, one touch, the leeway


@pytest.mark.parametrize("fresh_server", [False, True])
def test_an_idle_session_times_out_and_is_closed(fresh_server: bool) -> None:
    farm = Farm(policy=SHORT)
    web = farm.web()
    token = web.create(n=1)
    farm.wait(IDLE_S - 1)
    assert web.read(token) == {"n": 1}
    farm.wait(1)
    other = farm.web() if fresh_server else web
    assert other.read(token) is None
    assert EventKind.SESSION_EXPIRED in other.kinds()
    assert closed_everywhere(farm, token)


def test_activity_puts_the_idle_timeout_off_even_if_it_only_reads() -> None:
    farm = Farm(policy=SHORT)
    token = farm.web().create(n=1)
    for _ in range(4):
        farm.wait(70)
        token = request(farm.web(), token)
    assert farm.now_ms - START_MS > 2 * IDLE_S * 1000


def test_a_touch_is_stored_only_when_it_is_an_eighth_newer() -> None:
    farm = Farm(policy=SHORT)
    web = farm.web()
    token = web.create(n=1)
    farm.wait(9)
    assert not must_save(web.lifecycle, web.opened(token))
    farm.wait(1)
    assert must_save(web.lifecycle, web.opened(token))


def test_a_server_whose_clock_is_behind_shortens_nothing() -> None:
    farm = Farm(policy=SHORT)
    one, two = farm.two_webs()
    token = one.create(n=1)
    farm.wait(50)
    token = one.write(token, n=2)
    farm.wait(-30)
    token = two.write(token, n=3)
    farm.wait(30 + 80)
    assert farm.web().read(token) == {"n": 3}


def test_the_absolute_timeout_is_put_off_by_nothing_but_a_login() -> None:
    farm = Farm(policy=SHORT)
    web = farm.web()
    token, login = web.create(n=1), None
    for _ in range(39):
        farm.wait(10)
        token = request(web, token)
    session = web.opened(web.create(n=2))
    session.regenerate("ada")
    login = web.save(session).issue
    farm.wait(9)
    assert web.read(token) == {"n": 1}
    farm.wait(1)
    assert web.read(token) is None
    assert EventKind.SESSION_EXPIRED in web.kinds()
    assert login is not None
    assert web.read(login.token, login=True) == {"n": 2}


def test_what_session_servers_have_forgotten_after_its_timeout_is_expired_not_lost() -> None:
    farm = Farm(policy=SHORT)
    token = farm.web().create(n=1)
    farm.wait(3600)
    assert farm.entries(token.key) == [None, None]
    web = farm.web()
    assert web.read(token) is None
    assert web.kinds() == [EventKind.SESSION_EXPIRED]


def test_a_tombstone_outlives_every_token() -> None:
    farm = Farm(policy=SHORT)
    web = farm.web()
    token = web.create(n=1)
    session = web.opened(token)
    session.close()
    web.save(session)
    farm.wait(SHORT.max_token_age_ms / 1000)
    assert closed_everywhere(farm, token)
    farm.wait(SHORT.tombstone_ms / 1000)
    assert farm.entries(token.key) == [None, None], "and then goes away by itself"


def test_an_expired_copy_in_a_cache_is_no_witness_of_a_rollback() -> None:
    farm = Farm(policy=SHORT)
    one, two = farm.two_webs()
    token = two.write(one.create(n=1), n=2)
    farm.wait(3600)
    assert farm.entries(token.key) == [None, None]
    assert one.read(token) is None
    assert one.kinds() == [EventKind.SESSION_EXPIRED]
