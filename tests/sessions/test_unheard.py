"""Sessions that can be neither found nor called lost, for a session server is away (protocol section 6)."""

from __future__ import annotations

import pytest

from coatcheck.errors import SessionClosed, SessionUnavailable, UnavailableReason
from coatcheck.events import EventKind
from coatcheck.replication.entry import Entry
from coatcheck.replication.placement import MAX_LIST_NUMBER, Placement, is_newer_list, read_quorum, write_quorum
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.tokens.sealed import SealedToken
from in_hand import must_save
from replication.tiny_farm import Farm, WebServer

PATIENCE_S = 30.0


def behind(policy: SessionPolicy | None = None, **replication: object) -> tuple[Farm, WebServer, SealedToken]:
    """A web server that sees one of two session servers; the other one alone has what the token promises."""
    farm = Farm(servers=2, policy=policy, **replication)
    a, b = farm.two_webs()
    token = a.create(n=1)
    first, second = farm.ranked(token.key)
    a.cut, b.cut = {second.name}, {first.name}
    newer = a.write(token, n=2)
    farm.wait(3)
    return farm, b, newer


def refusal(web: WebServer, token: SealedToken) -> UnavailableReason:
    with pytest.raises(SessionUnavailable) as caught:
        web.open(token)
    return caught.value.reason


def out_of_patience(farm: Farm, web: WebServer, token: SealedToken) -> Session:
    assert refusal(web, token) is UnavailableReason.UNHEARD
    farm.wait(PATIENCE_S)
    return web.opened(token)


def tombstones(farm: Farm, key: bytes) -> list[Entry]:
    return [entry for entry in farm.entries(key) if entry is not None and entry.closed]


def test_within_the_patience_it_is_refused_and_after_it_anonymous() -> None:
    farm, web, token = behind()
    assert refusal(web, token) is UnavailableReason.UNHEARD
    farm.wait(PATIENCE_S - 1)
    assert refusal(web, token) is UnavailableReason.UNHEARD
    farm.wait(1)
    session = web.opened(token)
    assert session == {}
    assert session.is_new
    assert session._request.unheard == (token.key,)
    assert EventKind.SESSION_UNHEARD in web.kinds()
    assert EventKind.SESSION_ROLLED_BACK not in web.kinds()


def test_nobody_waits_for_a_session_that_must_have_timed_out_long_ago() -> None:
    policy = SessionPolicy(idle_timeout_ms=60_000, absolute_timeout_ms=600_000)
    farm, web, token = behind(policy)
    farm.wait(700)
    assert web.opened(token)._request.unheard


def test_the_patience_counts_from_when_the_server_went_away_not_from_the_first_request() -> None:
    farm, web, token = behind()
    other = next(iter(web.cut))
    web.repairs.lost_server(other)
    farm.wait(PATIENCE_S)
    assert web.opened(token)._request.unheard
    web.cut = set()
    web.repairs.lost_server(other)
    web.cut = {other}
    web.repairs.lost_server(other)
    assert refusal(web, token) is UnavailableReason.UNHEARD, "another outage, another patience"


def test_a_server_that_answers_for_all_sessions_but_one_does_not_keep_it_waiting_for_ever() -> None:
    farm, web, token = behind()
    other = next(iter(web.cut))
    for _ in range(31):
        assert refusal(web, token) is UnavailableReason.UNHEARD
        web.copies.viewer.absences.note(other, True)
        farm.wait(1)
        if web.copies.viewer.absences.waited_s(token.key, [other]) >= PATIENCE_S:
            break
    assert web.opened(token)._request.unheard


def test_a_request_that_only_reads_tells_the_browser_nothing_and_touches_nothing() -> None:
    farm, web, token = behind()
    before = farm.entries(token.key)
    session = out_of_patience(farm, web, token)
    assert not must_save(web.lifecycle, session)
    assert web.save(session).issue is None
    assert [entry and entry.version for entry in farm.entries(token.key)] == [
        entry and entry.version for entry in before
    ]
    web.cut = set()
    assert web.read(token) == {"n": 2}, "when the server is back, so is the session"


def test_what_the_app_then_stores_begins_a_session_of_its_own() -> None:
    farm, web, token = behind()
    session = out_of_patience(farm, web, token)
    session["cart"] = "tea"
    saved = web.save(session)
    assert saved.issue is not None
    assert saved.issue.token.key != token.key
    web.cut = set()
    assert web.read(token) == {"n": 2}


def test_emptying_what_was_empty_anyway_ends_no_unheard_session_and_does_not_pass_for_a_logout() -> None:
    farm, web, token = behind()
    session = out_of_patience(farm, web, token)
    session.clear()
    assert must_save(web.lifecycle, session)
    with pytest.raises(SessionUnavailable):
        web.save(session)
    web.cut = set()
    assert web.read(token) == {"n": 2}


def test_a_logout_of_an_unheard_session_is_willed() -> None:
    farm, web, token = behind()
    session = out_of_patience(farm, web, token)
    session.close()
    saved = web.save(session)
    assert saved.clear
    assert saved.closed is not None
    assert not saved.closed.complete
    web.cut = set()
    assert web.read(token) is None
    assert all(entry.final for entry in tombstones(farm, token.key))
    for key in web.needing_repair():
        web.exclusively(key, web.repairs.repair(key))
    assert len(tombstones(farm, token.key)) == 2


def test_a_login_takes_the_place_of_an_unheard_session_for_good() -> None:
    farm, web, token = behind()
    session = out_of_patience(farm, web, token)
    session.regenerate("ada")
    saved = web.save(session)
    assert saved.issue is not None
    assert saved.issue.login
    web.cut = set()
    assert web.read(token) is None
    assert web.read(saved.issue.token, login=True) == {}


def test_a_write_of_an_unheard_session_is_refused_however_long_it_lasts() -> None:
    farm, web, token = behind()
    out_of_patience(farm, web, token)
    late = Session(n=1)
    late._request.copy_held, late._request.shown, late._request.blob = (
        farm.webs[0].copies.cache.get(token.key),
        token,
        b"",
    )
    late["n"] = 3
    assert must_save(web.lifecycle, late)
    with pytest.raises((SessionUnavailable, SessionClosed)) as caught:
        web.save(late)
    assert isinstance(caught.value, SessionUnavailable)


def test_the_operator_may_go_on_from_the_older_state_but_only_after_the_patience() -> None:
    farm, web, token = behind(SessionPolicy(rolled_back="accept"))
    assert refusal(web, token) is UnavailableReason.UNHEARD
    farm.wait(PATIENCE_S)
    assert web.read(token) == {"n": 1}
    assert EventKind.SESSION_ROLLED_BACK in web.kinds()


def test_a_time_out_judged_without_all_closes_nothing() -> None:
    farm = Farm(servers=3, policy=SessionPolicy(idle_timeout_ms=60_000))
    a, b = farm.two_webs()
    token = a.create(n=1)
    farm.wait(120)
    b.cut = {farm.ranked(token.key)[2].name}
    assert b.open(token) is None
    assert EventKind.SESSION_EXPIRED not in b.kinds()
    assert tombstones(farm, token.key) == []
    b.cut = set()
    assert b.open(token) is None
    assert EventKind.SESSION_EXPIRED in b.kinds()
    assert len(tombstones(farm, token.key)) == 3
    assert all(entry.provisional for entry in tombstones(farm, token.key))


# -- lists of session servers --------------------------------------------------------------------


def on_list(farm: Farm, names: list[str], number: int) -> WebServer:
    """A web server that was started with another list of session servers."""
    farm.placement = Placement(names, 2, number)
    return farm.web()


def test_a_web_server_with_an_older_list_never_says_lost() -> None:
    farm = Farm(servers=4)
    old = on_list(farm, ["s1", "s2", "s3"], 4)
    new = on_list(farm, ["s2", "s3", "s4"], 5)
    tokens = [new.create(n=1) for _ in range(12)]
    moved = [token for token in tokens if not any(farm.servers[name].entry(token.key) for name in ("s1", "s2", "s3"))]
    hidden = [token for token in tokens if farm.servers["s4"].entry(token.key)]
    assert all(token.list_number == 5 for token in tokens)
    assert hidden
    for token in hidden:
        for name in ("s1", "s2", "s3"):
            farm.servers[name].stored.pop(token.key, None)
        assert refusal(old, token) is UnavailableReason.UNHEARD
        assert new.read(token) == {"n": 1}
    assert EventKind.SESSION_NOT_FOUND not in old.kinds()
    assert moved == []


def test_a_token_keeps_the_newest_list_that_it_was_promised_on() -> None:
    farm = Farm(servers=3)
    new = on_list(farm, ["s1", "s2", "s3"], 1)
    old = on_list(farm, ["s1", "s2", "s3"], 0)
    token = new.create(n=1)
    assert token.list_number == 1
    assert old.write(token, n=2).list_number == 1
    older = old.create(n=1)
    assert older.list_number == 0
    assert new.write(older, n=2).list_number == 1


def test_list_numbers_go_round() -> None:
    assert is_newer_list(1, 0)
    assert is_newer_list(0, MAX_LIST_NUMBER)
    assert not is_newer_list(MAX_LIST_NUMBER, 0)
    assert not is_newer_list(7, 7)
    assert not is_newer_list(0, 32), "half of the circle away, neither is newer"
    with pytest.raises(ValueError, match="0 to 63"):
        Placement(["s1"], 1, 64)


@pytest.mark.parametrize(
    ("servers", "copies", "write", "read"),
    [(1, 1, 1, 1), (2, 1, 1, 1), (2, 2, 1, 1), (3, 1, 1, 3), (3, 2, 2, 2), (3, 3, 2, 2), (4, 2, 2, 3), (5, 5, 3, 3)],
)
def test_quorums(servers: int, copies: int, write: int, read: int) -> None:
    assert (write_quorum(copies, servers), read_quorum(copies, servers)) == (write, read)
    assert servers < 3 or write + read > servers
