"""From a token to a session and back: open, save, conflict, close, log in (protocol sections 5 and 6)."""

from __future__ import annotations

from enum import StrEnum
from typing import Any

import pytest
from markupsafe import Markup

from coatcheck.errors import ConflictError, SessionClosed, SessionDataError, SessionUnavailable
from coatcheck.events import EventKind
from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Written
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.saving import NOTHING
from coatcheck.tokens.sealed import SealedToken
from in_hand import must_save
from replication.tiny_farm import Farm, WebServer


class Shade(StrEnum):
    DARK = "dark"


# -- create and save -----------------------------------------------------------------------------


def test_a_new_session_is_stored_before_its_token_leaves() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    session = Session(cart=["tea"])
    saved = one.save(session)
    assert saved.written == Written(2, 2)
    assert saved.issue is not None
    assert not saved.issue.login
    assert two.read(saved.issue.token) == one.read(saved.issue.token) == {"cart": ["tea"]}


def test_an_empty_session_is_not_stored_and_gets_no_token() -> None:
    web = Farm().web()
    for session in (Session(), Session(a=1)):
        session.clear()
        assert not must_save(web.lifecycle, session)
        assert web.save(session).issue is None


def test_a_write_changes_the_token_a_read_does_not() -> None:
    web = Farm().web()
    token = web.create(n=1)
    after = web.write(token, n=2)
    assert after.version != token.version
    assert (after.key, after.session_id, after.timestamp) == (token.key, token.session_id, token.timestamp)
    session = web.opened(after)
    assert session["n"] == 2
    assert web.lifecycle.finish(session) is NOTHING


def test_a_change_deep_inside_is_saved() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(profile={"tags": [{"a": 1}]})
    session = one.opened(token)
    session["profile"]["tags"][0]["a"] = 2
    saved = one.save(session)
    assert saved.issue is not None
    assert two.read(saved.issue.token) == {"profile": {"tags": [{"a": 2}]}}


def test_a_session_can_be_saved_twice_in_one_request() -> None:
    web = Farm().web()
    session = web.opened(web.create(n=1))
    for number in (2, 3):
        session["n"] = number
        saved = web.save(session)
    assert saved.issue is not None
    assert web.read(saved.issue.token) == {"n": 3}


@pytest.mark.parametrize("bad", [{"x": object()}, {1: "key"}, {"x": "a" * 2_000_000}])
def test_what_cannot_be_stored_is_refused_and_the_session_stays_as_it_was(bad: dict[Any, Any]) -> None:
    web = Farm().web()
    token = web.create(n=1)
    session = web.opened(token)
    session.update(bad)
    with pytest.raises(SessionDataError):
        web.save(session)
    assert web.read(token) == {"n": 1}
    with pytest.raises(SessionDataError):
        web.save(Session(bad))


def test_any_kind_of_text_is_stored_as_text() -> None:
    web = Farm().web()
    session = Session({Markup("safe"): Markup("<b>"), "list": [Markup("i")], "kind": Shade.DARK})
    session.regenerate(Markup("ada"))
    saved = web.save(session)
    assert saved.issue is not None
    found = web.opened(saved.issue.token, login=True)
    assert dict(found) == {"safe": "<b>", "list": ["i"], "kind": "dark"}
    assert {type(found["safe"]), type(found["list"][0]), type(found["kind"]), type(found.user)} == {str}
    found.regenerate(Shade.DARK)
    assert web.save(found).issue is not None
    assert (found.user, type(found.user)) == ("dark", str)


def test_a_stale_cache_is_noticed_by_the_token_alone() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    farm.notices = False
    token = one.create(n=1)
    newer = two.write(token, n=2)
    assert one.read(token) == {"n": 1}, "within the lease"
    assert one.read(newer) == {"n": 2}


def test_a_killed_web_server_takes_nothing_with_it() -> None:
    farm = Farm()
    token = farm.web().create(n=1)
    for number in range(2, 25):  # more changes of owner than a history remembers
        token = farm.web().write(token, n=number)
    last = farm.web()
    assert last.read(token) == {"n": 24}
    assert last.kinds() == []


# -- two requests at once ------------------------------------------------------------------------


def at_once(farm: Farm, first: dict[str, Any], second: dict[str, Any], webs: int, **base: Any) -> dict[str, Any] | None:
    """Two requests are opened, then saved one after the other; what a third one finds."""
    servers = [farm.web() for _ in range(webs)]
    token = servers[0].create(**base)
    sessions = [servers[0].opened(token), servers[-1].opened(token)]
    for web, session, changes in zip([servers[0], servers[-1]], sessions, [first, second], strict=True):
        for key, value in changes.items():
            if value is None:
                session.pop(key)
            else:
                session[key] = value
        web.save(session)
    return farm.web().read(token)


@pytest.mark.parametrize("webs", [1, 2])
def test_disjoint_changes_merge_and_deletes_stay_deleted(webs: int) -> None:
    assert at_once(Farm(), {"a": 2}, {"b": 2}, webs, a=1, b=1) == {"a": 2, "b": 2}
    assert at_once(Farm(), {"a": None}, {"b": 2}, webs, a=1, b=1) == {"b": 2}
    assert at_once(Farm(), {"a": 2}, {"b": None}, webs, a=1, b=1) == {"a": 2}
    assert at_once(Farm(), {"a": None}, {"a": None}, webs, a=1, b=1) == {"b": 1}


def test_on_one_web_server_the_last_write_wins() -> None:
    assert at_once(Farm(), {"n": 2}, {"n": 3}, 1, n=1) == {"n": 3}


@pytest.mark.parametrize("second", [2, 3])
def test_reject_refuses_the_second_of_two(second: int) -> None:
    farm = Farm(policy=SessionPolicy(conflict="reject"))
    with pytest.raises(ConflictError, match="'n'"):
        at_once(farm, {"n": 2}, {"n": second}, 1, n=1)


@pytest.mark.parametrize("webs", [1, 2])
def test_a_merge_function_decides(webs: int) -> None:
    farm = Farm(policy=SessionPolicy(conflict=lambda key, base, theirs, mine: theirs + mine - base))
    assert at_once(farm, {"n": 6}, {"n": 7}, webs, n=5) == {"n": 8}


def test_an_overtaken_request_gets_a_conflict_and_overwrites_nothing() -> None:
    """A frozen web server wakes up with a request that its browser has given up long ago."""
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(n=1)
    frozen = one.opened(token)
    frozen["n"] = 2
    newest = token
    for number in (2, 3, 4):
        newest = two.write(newest, n=number)
    with pytest.raises(ConflictError):
        one.save(frozen)
    assert two.read(newest) == farm.web().read(newest) == {"n": 4}


def test_an_overtaken_request_that_touches_other_keys_is_merged() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(n=1)
    late = one.opened(token)
    late["other"] = "x"
    newest = two.write(token, n=2)
    one.save(late)
    assert farm.web().read(newest) == {"n": 2, "other": "x"}


def test_a_write_that_one_server_took_and_another_refused_is_not_done_twice() -> None:
    """The claim goes on from the server that took it; merging it again would count twice."""
    farm = Farm(policy=SessionPolicy(conflict=lambda key, base, theirs, mine: theirs + mine - base))
    one, two = farm.two_webs()
    farm.notices = False
    token = one.create(n=1)
    session = one.opened(token)
    session["n"] = 2
    first, _ = farm.ranked(token.key)
    first.down = True
    two.opened(token)  # claims on the second server alone
    first.down = False
    saved = one.save(session)
    assert saved.issue is not None
    assert farm.web().read(saved.issue.token) == {"n": 2}


def test_a_write_whose_answer_was_lost_is_not_invented_again() -> None:
    """The put reached the servers; the next request goes on from there."""
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(n=1)
    session = one.opened(token)
    session["n"] = 2
    for server in farm.servers.values():
        server.forgets_answers = True

    with pytest.raises(SessionUnavailable):
        one.save(session)
    for server in farm.servers.values():
        server.forgets_answers = False
    newest = two.write(token, n=two.opened(token)["n"] + 1)
    assert farm.web().read(newest) == {"n": 3}


def test_a_save_that_never_comes_to_its_turn_is_given_up() -> None:
    farm = Farm(policy=SessionPolicy(max_tries=3))
    one, two = farm.two_webs()
    token = one.create(n=0, rival=0)
    session = one.opened(token)
    session["n"] = 1
    rivals = 0

    def rival() -> None:
        nonlocal rivals, token
        rivals += 1
        token = two.write(token, rival=rivals)
        one.during_put.insert(0, lambda: None)  # lets the claim of the next try pass
        one.during_put.insert(0, lambda: None)

    one.during_put = [rival] * 100
    with pytest.raises((SessionUnavailable, ConflictError)) as refused:
        one.save(session)
    assert isinstance(refused.value, SessionUnavailable), "503: it may be tried again"
    assert rivals == 3
    assert farm.web().read(token) == {"n": 0, "rival": 3}


# -- closing and logging in ----------------------------------------------------------------------


def test_a_closed_session_is_dead_on_every_server_with_every_token() -> None:
    farm = Farm(servers=3)
    one, two = farm.two_webs()
    old = one.create(n=1)
    token = one.write(old, n=2)
    two.read(token)
    session = one.opened(token)
    session.close()
    saved = one.save(session)
    assert saved.clear
    assert saved.issue is None
    assert saved.closed == Closed(3, 3, 2)
    for web in (one, two, farm.web()):
        assert web.read(token) is None
        assert web.read(old) is None


def test_a_slow_request_does_not_undo_a_logout() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(n=1)
    slow = {web: web.opened(token) for web in (one, two)}
    leaving = two.opened(token)
    leaving.close()
    two.save(leaving)
    for web, session in slow.items():
        session["n"] = 99
        with pytest.raises(SessionClosed):
            web.save(session)
        assert web.read(token) is None


def test_a_session_that_is_still_empty_at_the_end_is_closed_as_by_a_logout() -> None:
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    session = web.opened(token)
    session.clear()
    assert web.save(session).clear
    assert farm.web().read(token) is None


def test_a_session_that_is_filled_again_after_clearing_lives_on() -> None:
    web = Farm().web()
    token = web.create(n=1)
    session = web.opened(token)
    session.clear()
    session["m"] = 1
    saved = web.save(session)
    assert not saved.clear
    assert web.read(token) == {"m": 1}


def test_closing_a_session_that_exists_nowhere_stores_nothing() -> None:
    farm = Farm()
    session = Session(a=1)
    session.close()
    assert farm.web().save(session).issue is None
    assert not any(server.stored for server in farm.servers.values())


def test_login_takes_a_new_key_keeps_the_data_and_closes_the_old_session() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    anonymous = one.create(cart=["tea"])
    session = one.opened(anonymous)
    session["name"] = "Ada"
    session.regenerate("ada")
    saved = one.save(session)
    assert saved.issue is not None
    assert saved.issue.login
    token = saved.issue.token
    assert token.key != anonymous.key
    assert token.session_id != anonymous.session_id
    assert two.read(token, login=True) == {"cart": ["tea"], "name": "Ada"}
    assert two.opened(token, login=True).user == "ada"
    for web in (one, two):
        assert web.read(anonymous) is None


def test_login_keeps_what_a_parallel_request_has_stored_meanwhile() -> None:
    web = Farm().web()
    token = web.create(a=1)
    session = web.opened(token)
    web.write(token, b=2)
    session.regenerate("ada")
    saved = web.save(session)
    assert saved.issue is not None
    assert web.read(saved.issue.token, login=True) == {"a": 1, "b": 2}


@pytest.mark.parametrize("user", ["ada", "bob", None])
def test_a_login_after_a_close_begins_anew(user: str | None) -> None:
    """As Django's flush() and then login(): nothing of the closed session is left, not even its age or its user."""
    farm = Farm()
    one, two = farm.two_webs()
    session = one.opened(one.create(cart=["tea"]))
    session.regenerate("ada", remember=True)
    before = one.save(session)
    assert before.issue is not None
    farm.now_ms += 60_000
    session = two.opened(before.issue.token, login=True)
    session["seen"] = 1
    session.close()
    session["message"] = "welcome back"
    session.regenerate(user)
    assert session.user == user
    saved = two.save(session)
    assert saved.issue is not None
    assert saved.issue.login
    assert not saved.clear
    token = saved.issue.token
    assert token.key != before.issue.token.key
    assert one.read(before.issue.token, login=True) is None
    found = one.opened(token, login=True)
    assert (dict(found), found.user, found.remember) == ({"message": "welcome back"}, user, None)
    assert found._request.copy_held is not None
    assert found._request.copy_held.record.created_at == token.timestamp
    assert [(event.kind, event.user) for event in two.events] == [
        (EventKind.SESSION_CLOSED, "ada"),
        (EventKind.SESSION_LOGIN, user or ""),
    ]
    session["later"] = 1
    assert two.save(session).issue is not None
    assert one.read(token, login=True) == {"message": "welcome back", "later": 1}, "it began once"


def test_a_close_after_a_login_closes() -> None:
    web = Farm().web()
    token = web.create(n=1)
    session = web.opened(token)
    session.close()
    session.regenerate("ada")
    session.close()
    assert web.save(session).clear
    assert web.read(token) is None
    session = Session()
    session.close()
    session.regenerate("bob")
    saved = web.save(session)
    assert saved.issue is not None
    assert web.opened(saved.issue.token, login=True).user == "bob"


def test_login_without_any_session_before_creates_one() -> None:
    web = Farm().web()
    session = Session(a=1)
    session.regenerate("ada")
    saved = web.save(session)
    assert saved.issue is not None
    assert saved.issue.login
    assert web.opened(saved.issue.token, login=True).user == "ada"


def test_of_two_logins_at_once_one_wins_and_the_other_invents_nothing() -> None:
    farm = Farm()
    one, two = farm.two_webs()
    token = one.create(a=1)
    first, second = one.opened(token), two.opened(token)
    first.regenerate("ada")
    second.regenerate("bob")
    assert one.save(first).issue is not None
    with pytest.raises(SessionClosed):
        two.save(second)


def logged_in(web: WebServer, token: SealedToken, user: str | None, login: bool = True, **data: Any) -> SealedToken:
    """One request that sets ``data``, then regenerates."""
    session = web.opened(token, login=login)
    session.update(data)
    session.regenerate(user)
    saved = web.save(session)
    assert saved.issue is not None
    return saved.issue.token


def test_a_login_as_another_user_inherits_nothing_of_the_former_ones() -> None:
    web = Farm().web()
    token = logged_in(web, web.create(cart=["tea"]), "ada", login=False, name="Ada", role="admin", visits=[1])
    session = web.opened(token, login=True)
    session["visits"].append(2)  # the former user's own list, changed in place
    session["name"] = "Bob"
    session["theme"] = ["dark"]
    session.regenerate("bob")
    assert session == {"name": "Bob", "theme": ["dark"]}, "gone at once, not only when it is saved"
    session["later"] = 1
    saved = web.save(session)
    assert saved.issue is not None
    assert web.read(saved.issue.token, login=True) == {"name": "Bob", "theme": ["dark"], "later": 1}
    assert web.opened(saved.issue.token, login=True).user == "bob"


def test_nor_what_a_parallel_request_of_the_former_user_stores_meanwhile() -> None:
    web = Farm().web()
    token = logged_in(web, web.create(a=1), "ada", login=False)
    session = web.opened(token, login=True)
    other = web.opened(token, login=True)
    other["secret"] = "Ada's"
    web.save(other)
    session.regenerate("bob")
    saved = web.save(session)
    assert saved.issue is not None
    assert web.read(saved.issue.token, login=True) == {}


def test_of_three_users_in_one_request_the_last_has_a_session_of_its_own() -> None:
    web = Farm().web()
    session = web.opened(logged_in(web, web.create(a=1), "ada", login=False), login=True)
    session.regenerate("bob")
    session["b"] = 1
    session.regenerate("cy")
    assert session == {}
    assert session.user == "cy"


@pytest.mark.parametrize("user", [None, "ada"])
def test_regenerating_for_the_same_user_does_not_put_the_absolute_timeout_off(user: str | None) -> None:
    farm = Farm(policy=SessionPolicy(idle_timeout_ms=3_600_000, absolute_timeout_ms=12 * 3_600_000))
    web = farm.web()
    token = logged_in(web, web.create(a=1), "ada", login=False)
    for _ in range(23):
        farm.wait(1800)
        token = logged_in(web, token, user)
        assert web.opened(token, login=True).user == "ada"
    farm.wait(1799)
    assert web.read(token, login=True) == {"a": 1}
    farm.wait(2)
    other = farm.web()
    assert other.read(token, login=True) is None
    assert EventKind.SESSION_EXPIRED in other.kinds()


@pytest.mark.parametrize("former", [None, "ada"])
def test_a_login_of_somebody_else_starts_the_absolute_timeout_anew(former: str | None) -> None:
    farm = Farm(policy=SessionPolicy(idle_timeout_ms=2 * 3_600_000, absolute_timeout_ms=2 * 3_600_000))
    web = farm.web()
    token = web.create(a=1)
    if former is not None:
        token = logged_in(web, token, former, login=False)
    farm.wait(3500)
    assert web.read(token, login=former is not None) is not None
    farm.wait(3500)
    token = logged_in(web, token, "bob", login=former is not None)
    farm.wait(3500)
    assert web.read(token, login=True) is not None
