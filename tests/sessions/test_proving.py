"""A session that is bound to its browser's key: what its tokens are worth, and to whom (protocol section 13)."""

from __future__ import annotations

import os

import pytest

from coatcheck.device.binding import Binding
from coatcheck.device.challenges import Challenge, ChallengeCodec, ChallengeKind
from coatcheck.device.keys import DeviceKey, read_jwk
from coatcheck.device.proofs import KeyProof
from coatcheck.device.refusals import ProofReason, ProofRefused
from coatcheck.errors import SessionClosed, SessionUnavailable
from coatcheck.events import EventKind
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.proving import NotBound, ProofWanted
from coatcheck.tokens.chain import Shown
from coatcheck.tokens.sealed import SealedToken
from device.software_key import SoftwareKey
from replication.tiny_farm import Farm, WebServer

LIFE_S, GRACE_S, ROTATE_S = 600, 60, 60
KEY, OTHER_KEY = SoftwareKey(), SoftwareKey()


def bound_farm(binding: str = "offer") -> Farm:
    return Farm(policy=SessionPolicy(device_binding=binding))  # type: ignore[arg-type]


def public(key: SoftwareKey) -> DeviceKey:
    return read_jwk(key.jwk, key.algorithm)


def log_in(web: WebServer) -> SealedToken:
    session = Session({"n": 1})
    session.regenerate("ada")
    issue = web.save(session).issue
    assert issue is not None
    return issue.token


def bind(web: WebServer, token: SealedToken, key: SoftwareKey = KEY) -> SealedToken:
    web.farm.wait(1)
    issue = web.run(web.lifecycle.bind(token, public(key)))
    assert issue.life_s is not None
    assert LIFE_S - 1 <= issue.life_s <= LIFE_S
    return issue.token


def bound(web: WebServer) -> SealedToken:
    """A login whose browser has registered, and has come back with the cookie that it got for that."""
    return shown(web, bind(web, log_in(web)))


def shown(web: WebServer, token: SealedToken) -> SealedToken:
    """A browser comes with a token for the first time; it is told that token once more, as it is stored."""
    told = request(web, token)
    assert told is not None
    assert told[:3] == token[:3]
    assert request(web, told) is None
    return told


def request(web: WebServer, token: SealedToken, **data: object) -> SealedToken | None:
    """One request of the browser; the token that its answer tells, if any."""
    session = web.opened(token, login=True)
    session.update(data)
    issue = web.save(session).issue
    return None if issue is None else issue.token


def binding(web: WebServer, token: SealedToken) -> Binding:
    copy = web.copies.cache.get(token.key)
    assert copy is not None
    assert copy.record is not None
    assert copy.record.bound is not None
    found: Binding = copy.record.bound
    return found


def prove(
    web: WebServer, key: bytes, by: SoftwareKey = KEY, shown: SealedToken | None = None, serial: int | None = None
) -> SealedToken:
    codec = ChallengeCodec(web.farm.ring, "farm", os.urandom)
    if serial is None:
        with pytest.raises(ProofWanted) as wanted:
            web.run(web.lifecycle.prove(key, codec.name(key), None, shown))
        serial = wanted.value.serial
    text = codec.seal(Challenge(ChallengeKind.PROVE, key, web.farm.now_ms, serial))
    proof = KeyProof(by.refresh(text), codec)
    issue, following = web.run(web.lifecycle.prove(key, codec.name(key), proof, shown))
    assert following == serial + 1
    return issue.token


def test_a_login_is_bound_and_its_browser_gets_a_token_for_that() -> None:
    farm = bound_farm()
    web = farm.web()
    login = log_in(web)
    token = bind(web, login)
    assert token.session_id != login.session_id
    assert web.opened(login, login=True).bound is None, "nobody knows yet whether the browser got the answer"
    token = shown(web, token)
    session = web.opened(token, login=True)
    assert session.bound is not None
    assert session.bound.thumbprint == public(KEY).thumbprint
    assert session.bound.since == session.bound.last_proof == farm.now_ms
    assert EventKind.SESSION_BOUND in [event.kind for event in web.events]


def test_an_answer_to_a_registration_that_is_lost_costs_nothing_but_the_binding() -> None:
    farm = bound_farm()
    web = farm.web()
    browser = log_in(web)
    lost = bind(web, browser)
    for _ in range(40):
        farm.wait(ROTATE_S)
        browser = request(web, browser) or browser
        assert browser.session_id != lost.session_id
    session = web.opened(browser, login=True)
    assert (dict(session), session.user, session.bound) == ({"n": 1}, "ada", None)


def test_the_same_key_may_come_again_until_its_answer_has_arrived_and_another_may_not() -> None:
    farm = bound_farm()
    web, other = farm.two_webs()
    login = log_in(web)
    token = bind(web, login)
    assert bind(other, login)[:3] == token[:3]
    for key in (OTHER_KEY, KEY):
        if key is KEY:
            request(web, token)
        with pytest.raises(ProofRefused) as refused:
            bind(web, token, key)
        assert refused.value.reason is ProofReason.USED


def test_without_a_proof_nobody_is_told_a_newer_token() -> None:
    farm = bound_farm()
    web = farm.web()
    token = bound(web)
    for turn in range(9):
        farm.wait(ROTATE_S)
        told = request(web, token, turn=turn)
        assert told is not None, "the version of what was written"
        assert told[:3] == token[:3]
        session = web.opened(told, login=True)
        session.rotate()
        issue = web.save(session).issue
        assert issue is None or issue.token[:3] == token[:3]


def test_a_cookie_that_is_set_again_ends_when_the_first_one_would_have() -> None:
    farm = bound_farm()
    web = farm.web()
    token = bound(web)
    farm.wait(LIFE_S - 2)
    session = web.opened(token, login=True)
    session["n"] = 2
    issue = web.save(session).issue
    assert issue is not None
    assert issue.life_s == 2
    farm.wait(2)
    assert request(web, token, n=3) is None, "its time is over: the browser is to sign"


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_a_copied_token_is_dead_when_its_short_life_ends_and_accuses_nobody(elsewhere: bool) -> None:
    farm = bound_farm()
    web, other = farm.two_webs()
    token = bound(web)
    place = other if elsewhere else web
    farm.wait(LIFE_S + GRACE_S)
    assert place.read(token, login=True) is not None
    farm.wait(0.001)
    late = place.open(token, login=True)
    assert late is not None
    assert dict(late) == {}
    assert late._request.overdue == token.key
    assert EventKind.SESSION_THEFT not in [event.kind for event in place.events]
    assert prove(place, token.key)[:1] == token[:1], "the session lives, for who has its key"


def test_a_thief_who_writes_gets_no_day_older_than_his_cookie() -> None:
    farm = bound_farm()
    web = farm.web()
    stolen = bound(web)
    browser, thief = stolen, stolen
    for minute in range(2 * LIFE_S // 60):
        farm.wait(60)
        if minute % 8 == 7:
            browser = prove(web, browser.key, shown=browser)
        browser = request(web, browser, mine=minute) or browser
        session = web.open(thief, login=True)
        assert session is not None
        if session._request.overdue:
            break
        session["his"] = minute
        issue = web.save(session).issue
        thief = issue.token if issue is not None else thief
        assert thief.timestamp == stolen.timestamp
    assert farm.now_ms - stolen.timestamp <= (LIFE_S + GRACE_S + 60) * 1000
    assert web.read(browser, login=True) is not None, "and the browser goes on"


def test_a_proof_moves_the_token_on_and_parallel_requests_with_the_old_one_go_on() -> None:
    farm = bound_farm()
    web, other = farm.two_webs()
    old = bound(web)
    farm.wait(LIFE_S - 60)
    new = prove(other, old.key, shown=old)
    assert new.timestamp == farm.now_ms
    new = shown(web, new)
    assert web.opened(old, login=True)._request.verdict is Shown.IN_GRACE
    told = request(other, old, n=2)
    assert told is not None
    assert told[:3] == old[:3], "not the newest one, which takes a proof"
    farm.wait(LIFE_S - 60)
    assert web.opened(new, login=True)["n"] == 2


def test_an_answer_to_a_proof_that_is_lost_is_told_again() -> None:
    life_s = 200
    farm = Farm(policy=SessionPolicy(device_binding="offer", bound_cookie_ms=life_s * 1000))
    web = farm.web()
    old = web.run(web.lifecycle.bind(log_in(web), public(KEY))).token
    old = shown(web, old)
    farm.wait(life_s - 60)
    lost = prove(web, old.key, shown=old)
    farm.wait(5)
    assert prove(web, old.key, shown=old)[:3] == lost[:3]
    farm.wait(life_s // 4)
    later = prove(web, old.key)
    assert later.session_id != lost.session_id, "what is told lives for long enough"
    assert later.timestamp == farm.now_ms
    assert web.opened(later, login=True)["n"] == 1


def test_a_proof_is_good_once_wherever_it_is_shown() -> None:
    farm = bound_farm()
    web, other = farm.two_webs()
    token = bound(web)
    prove(web, token.key, serial=0)
    for place in (web, other):
        before = binding(web, token)
        with pytest.raises(ProofWanted) as refused:
            prove(place, token.key, serial=0)
        assert refused.value.reason is ProofReason.USED
        assert refused.value.serial == before.serial == 1


def test_who_has_another_key_gets_nothing_and_changes_nothing() -> None:
    farm = bound_farm()
    web = farm.web()
    token = bound(web)
    entries = farm.entries(token.key)
    with pytest.raises(ProofWanted) as refused:
        prove(web, token.key, OTHER_KEY, token)
    assert refused.value.reason is ProofReason.SIGNATURE
    assert farm.entries(token.key) == entries


def test_a_proof_says_that_the_answer_to_the_registration_has_arrived() -> None:
    farm = bound_farm()
    web = farm.web()
    login = log_in(web)
    told = bind(web, login)
    farm.wait(LIFE_S + GRACE_S + 1)
    token = prove(web, login.key)
    assert token.session_id != told.session_id
    assert binding(web, token).is_in_force
    shown(web, token)


def test_a_login_begins_a_session_that_is_bound_to_nothing() -> None:
    farm = bound_farm()
    web = farm.web()
    token = bound(web)
    session = web.opened(token, login=True)
    session.regenerate("ada")
    issue = web.save(session).issue
    assert issue is not None
    assert issue.life_s is None
    assert web.opened(issue.token, login=True).bound is None
    with pytest.raises(SessionClosed):
        prove(web, token.key, serial=0)


def test_the_binding_goes_where_the_session_goes() -> None:
    farm = bound_farm()
    web, other = farm.two_webs()
    token = bound(web)
    token = request(web, token, n=5) or token
    token = request(other, token, n=6) or token
    assert binding(other, token).key == public(KEY)
    token = prove(other, token.key, shown=token)
    token = request(web, token, n=7) or token
    assert binding(web, token).serial == 1
    assert web.opened(token, login=True)["n"] == 7


def test_what_cannot_be_seen_is_not_gone() -> None:
    farm = bound_farm()
    web = farm.web()
    unbound = log_in(web)
    with pytest.raises(NotBound):
        prove(web, unbound.key, serial=0)
    with pytest.raises(SessionClosed):
        prove(web, b"?" * 16, serial=0)
    next(iter(farm.servers.values())).down = True
    with pytest.raises(SessionUnavailable):
        prove(web, b"?" * 16, serial=0)


def test_what_is_bound_is_as_any_other_where_nothing_is_bound() -> None:
    farm = bound_farm()
    token = bound(farm.web())
    farm.policy = SessionPolicy()
    web = farm.web()
    farm.wait(LIFE_S + GRACE_S + 1)
    told = request(web, token)
    assert told is not None
    assert told.session_id != token.session_id


def test_where_a_binding_is_required_a_login_without_one_ends_with_its_cookie() -> None:
    farm = bound_farm("require-after-login")
    web = farm.web()
    session = Session({"n": 1})
    session.regenerate("ada")
    issue = web.save(session).issue
    assert issue is not None
    assert issue.life_s == LIFE_S
    anonymous = web.create(n=1)
    token = issue.token
    farm.wait(LIFE_S)
    assert request(web, token) is None
    farm.wait(GRACE_S + 1)
    late = web.open(token, login=True)
    assert late is not None
    assert late._request.overdue == token.key
    assert web.read(anonymous) == {"n": 1}, "nobody has logged in there"
