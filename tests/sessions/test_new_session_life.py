"""A session whose cookie never comes back is soon forgotten; the first request that shows it gives it a normal life."""

from __future__ import annotations

import pytest

from coatcheck.events import EventKind
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from in_hand import must_save
from replication.tiny_farm import Farm

MINUTE_S = 60
NEW_S = 10 * MINUTE_S
POLICY = SessionPolicy(new_session_ms=NEW_S * 1000, rotate_after_ms=12 * 3_600_000)
GRACE_S = (POLICY.leeway_ms + POLICY.linger_ms) / 1000
"""What the clocks may differ, and how long a session that has timed out is kept to be found expired."""


def test_a_session_that_nobody_comes_back_for_is_forgotten() -> None:
    farm = Farm(policy=POLICY)
    one, two = farm.two_webs()
    token = one.create(cart=["tea"])
    key = token.key
    assert [entry is not None for entry in farm.entries(key)] == [True, True]
    farm.wait(NEW_S + GRACE_S + 1)
    assert farm.entries(key) == [None, None]
    assert two.read(token) is None
    assert EventKind.SESSION_EXPIRED in two.kinds()
    assert EventKind.SESSION_NOT_FOUND not in two.kinds(), "that would say that the farm has lost it"
    assert one.read(token) is None


@pytest.mark.parametrize("elsewhere", [False, True])
def test_showing_the_token_once_gives_the_normal_life_on_every_copy(elsewhere: bool) -> None:
    farm = Farm(policy=POLICY)
    one, two = farm.two_webs()
    token = one.create(cart=["tea"])
    farm.wait(MINUTE_S)
    web = two if elsewhere else one
    session = web.opened(token)
    assert must_save(web.lifecycle, session), "a mere read has to be remembered this once"
    saved = web.save(session)
    token = saved.issue.token if saved.issue else token
    lives = {entry.expires_in_ms for entry in farm.entries(token.key) if entry is not None}
    assert len(lives) == 1
    assert lives.pop() >= POLICY.idle_timeout_ms
    assert not must_save(web.lifecycle, web.opened(token)), "and no more than this once"
    farm.wait(POLICY.idle_timeout_ms / 1000 - 1)
    assert one.read(token) == two.read(token) == {"cart": ["tea"]}
    farm.wait(POLICY.idle_timeout_ms / 1000 + POLICY.touch_ms / 1000 + GRACE_S + 1)
    assert one.read(token) is None


def test_parallel_first_requests_write_once() -> None:
    farm = Farm(policy=POLICY)
    web = farm.web()
    token = web.create(n=1)
    tabs = [web.opened(token) for _ in range(3)]
    versions = set()
    assert must_save(web.lifecycle, tabs[0])
    for tab in tabs:
        saved = web.save(tab)
        assert saved.issue is not None, "each tab learns of the newest token"
        versions.add(saved.issue.token.version)
    assert len(versions) == 1


def test_a_login_lives_its_normal_life_at_once() -> None:
    farm = Farm(policy=POLICY)
    one, two = farm.two_webs()
    session = Session()
    session["name"] = "ada"
    session.regenerate("ada")
    saved = one.save(session)
    assert saved.issue is not None
    assert saved.issue.login
    farm.wait(POLICY.idle_timeout_ms / 1000 - 1)
    assert two.read(saved.issue.token, login=True) == {"name": "ada"}


def test_a_repair_lengthens_no_life() -> None:
    farm = Farm(policy=POLICY)
    one, two = farm.two_webs()
    token = one.create(cart=["tea"])
    _, second = farm.ranked(token.key)
    farm.wait(NEW_S / 2)
    second.stored.clear()
    one.repairs.lost_server(second.name)
    two.run(two.repairs.repair(token.key))
    lives = [entry.expires_in_ms for entry in farm.entries(token.key) if entry is not None]
    assert len(lives) == 2
    assert max(lives) <= (NEW_S / 2 + GRACE_S) * 1000
    farm.wait(NEW_S / 2 + GRACE_S + 1)
    assert one.read(token) is None


def test_without_a_short_life_nothing_is_different() -> None:
    farm = Farm()
    web = farm.web()
    token = web.create(n=1)
    assert not must_save(web.lifecycle, web.opened(token))
    farm.wait(NEW_S + GRACE_S + 1)
    assert web.read(token) == {"n": 1}
