"""The sessions of a user: listed, limited, closed; an index that is lost, forked, raced for (protocol section 11)."""

from __future__ import annotations

import random
from hashlib import blake2b

import msgspec
import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coatcheck.errors import CorruptEntry, SessionClosed, SessionUnavailable, TooManySessions
from coatcheck.events import EventKind, public_id
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import MAX_SESSIONS_OF_USER, SessionPolicy
from coatcheck.sessions.record import decode_record
from coatcheck.sessions.user_index import UserIndex, decode_index, is_index
from coatcheck.tokens.keyring import KeyRing
from user_farm import (
    HOUR_S,
    UserFarm,
    alive,
    close,
    keys_of,
    log_in,
    refused,
    sessions_of,
    use,
    users,
    work,
)


def test_each_session_of_a_user_is_listed_with_its_device_address_and_times() -> None:
    farm = UserFarm()
    one, two = farm.two_webs()
    first = log_in(one, device=b"Firefox\x1b[2J\xff on a laptop" + b"x" * 500)
    farm.wait(60)
    second = log_in(two, device=b"a phone")
    log_in(two, "bob")
    farm.wait(300)
    use(one, first)
    found = sessions_of(two)
    assert [bytes.fromhex(one.key) for one in found] == [first.key, second.key]
    assert [one.id for one in found] == [public_id(first.key), public_id(second.key)]
    assert found[0].device == ("Firefox[2J\xff on a laptop" + "x" * 500)[:160]
    assert {one.address for one in found} == {"192.0.2.7"}
    assert [farm.now_ms - one.last_seen_at for one in found] == [0, 300_000 - 1]
    assert [farm.now_ms - one.logged_in_at for one in found] == [360_000, 300_000]
    assert one.copies.cache.hosted() == 1, "an index is not hosted"


def test_what_session_servers_hold_of_a_user_says_nothing_of_him_and_opens_as_no_session() -> None:
    farm = UserFarm()
    web = farm.web()
    token = log_in(web, "ada@example.org")
    [index_key] = users(web).keys_of("ada@example.org")
    for server in farm.servers.values():
        for key, (entry, _) in server.stored.items():
            assert key in (index_key, token.key)
            for secret in (b"ada", b"example", b"iPhone", b"192.0.2.7", token.key):
                assert secret not in entry.encode()
    view = web.run(web.copies.viewer.look(index_key))
    assert is_index(view.body)
    with pytest.raises(CorruptEntry):
        decode_record(view.body)
    record = web.run(web.copies.viewer.look(token.key)).body
    assert not is_index(record)
    with pytest.raises(CorruptEntry):
        decode_index(record)
    assert KeyRing([b"B" * 32]).mac("user-index", "farm").marks(b"ada@example.org", 16) != [index_key]
    assert KeyRing([b"A" * 32]).mac("user-index", "other").marks(b"ada@example.org", 16) != [index_key]


def test_an_index_stands_where_the_formats_say_and_holds_those_bytes() -> None:
    """By primitives alone: docs/formats.md, section 4."""
    farm = UserFarm()
    web = farm.web()
    token = log_in(web, "ädä")
    info = b"coatcheck/1/user-index\x00farm"
    secret = HKDF(SHA256(), 32, salt=None, info=info).derive(b"A" * 32)
    index_key = blake2b("ädä".encode(), digest_size=16, key=secret).digest()
    view = web.run(web.copies.viewer.look(index_key))
    assert view.body[:2] == b"\xc1u"
    closed_before, [listed] = msgspec.msgpack.decode(view.body[2:])
    now = farm.now_ms
    ends_at = now + 1 + (1800 + 225 + 5 + 600 + 225) * 1000  # idle, touch, leeway; twice the renewal, and a touch
    assert (closed_before, listed) == (0, [token.key, now, ends_at, "Mozilla/5.0 (iPhone)", "192.0.2.7", False, b""])


def test_a_session_without_a_user_touches_no_index_and_a_write_no_more_than_it_did() -> None:
    farm = UserFarm()
    web = farm.web()
    token = web.create(n=1)
    token = web.write(token, n=2)
    named = log_in(web, session=web.opened(token))
    stored = {key for server in farm.servers.values() for key in server.stored}
    assert stored == {token.key, named.key, users(web).keys_of("ada")[0]}
    anonymous = Session({"n": 1})
    anonymous.regenerate()
    web.save(anonymous)
    assert work(web) == 0


# -- limits -------------------------------------------------------------------------------------------


def test_close_oldest_closes_the_session_that_was_begun_first_before_the_login_is_told() -> None:
    farm = UserFarm(limit=2)
    one, two = farm.two_webs()
    tokens = []
    for web in (one, two, one, two):
        tokens.append(log_in(web))
        farm.wait(1)
        assert sum(alive(one, tokens)) <= 2
    assert alive(two, tokens) == [False, False, True, True]
    closed = [event for web in farm.webs for event in web.events if event.kind is EventKind.SESSION_CLOSED]
    assert [(event.session, event.user) for event in closed] == [(public_id(key.key), "ada") for key in tokens[:2]]


def test_refuse_answers_a_login_that_is_one_too_many_and_leaves_no_session_of_it() -> None:
    farm = UserFarm(limit=2, at_limit="refuse")
    one, two = farm.two_webs()
    tokens = [log_in(one), log_in(two)]
    assert isinstance(refused(two), TooManySessions)
    assert EventKind.LOGIN_REFUSED in [event.kind for event in two.events]
    assert work(two) == 1, "what was stored for it is closed"
    assert set(keys_of(one)) == {token.key for token in tokens}
    assert alive(one, tokens) == [True, True]
    session = one.opened(tokens[0], login=True)
    session.close()
    one.save(session)
    log_in(two)  # a session that has ended takes no place, though nobody has told the index
    assert isinstance(refused(one), TooManySessions)


@pytest.mark.parametrize("at_limit", ["refuse", "close-oldest"])
def test_a_session_that_has_timed_out_takes_no_place(at_limit: str) -> None:
    farm = UserFarm(limit=1, at_limit=at_limit)
    web = farm.web()
    log_in(web)
    farm.wait(2_400)  # its idle timeout is over, and it is listed still
    second = log_in(web)
    assert [event.kind for event in web.events if event.kind is EventKind.SESSION_CLOSED] == []
    assert keys_of(web) == [second.key]


def test_a_change_of_privilege_is_no_session_more() -> None:
    farm = UserFarm(limit=1, at_limit="refuse")
    web = farm.web()
    token = log_in(web)
    for _ in range(3):
        token = log_in(web, session=web.opened(token, login=True))
        assert keys_of(web) == [token.key]


@pytest.mark.parametrize("at_limit", ["refuse", "close-oldest"])
def test_of_logins_at_two_web_servers_at_once_no_more_live_than_are_allowed(at_limit: str) -> None:
    """Another web server's whole login happens while each of the puts of a login is on its way."""
    for moment in range(9):
        farm = UserFarm(limit=1, at_limit=at_limit)
        one, two = farm.two_webs()
        tokens = []

        def rival() -> None:
            try:
                tokens.append(log_in(two))  # noqa: B023 - called within this round
            except (TooManySessions, SessionUnavailable):
                pass

        one.during_put = [*[lambda: None] * moment, rival]
        try:
            tokens.append(log_in(one))
        except (TooManySessions, SessionUnavailable):
            pass
        work(one)
        work(two)
        assert sum(alive(one, tokens)) == 1, moment
        assert len(sessions_of(two)) == 1, moment


@pytest.mark.parametrize("at_limit", ["refuse", "close-oldest"])
def test_a_login_that_a_fork_has_listed_is_judged_as_any_other(at_limit: str) -> None:
    """Its first write was refused, but stood on one session server; the other had the login of a rival."""
    farm = UserFarm(limit=2, at_limit=at_limit)
    web = farm.web()
    first, second = log_in(web), log_in(web)
    users(web)._policy = SessionPolicy(sessions_per_user=1, at_session_limit=at_limit)  # type: ignore[arg-type]
    of_second = farm.index(web).find(second.key)
    assert of_second is not None
    if at_limit == "refuse":
        with pytest.raises(TooManySessions):
            web.run(users(web).add("ada", of_second))
        assert [one.key for one in farm.index(web).listed] == [first.key]
    else:
        assert web.run(users(web).add("ada", of_second)) == [first.key]


# -- closing ------------------------------------------------------------------------------------------


def test_a_closed_user_has_no_session_and_may_log_in_again() -> None:
    farm = UserFarm()
    one, two = farm.two_webs()
    tokens = [log_in(web) for web in (one, two, one)]
    other = log_in(two, "bob")
    assert close(two).closed == 3
    assert alive(one, [*tokens, other]) == [False, False, False, True]
    assert sessions_of(one) == []
    again = log_in(one)
    assert alive(two, [again]) == [True]
    assert close(two).closed == 1
    assert close(two).closed == 0


def test_all_others_are_closed_but_the_one_that_asks() -> None:
    farm = UserFarm()
    web = farm.web()
    tokens = [log_in(web) for _ in range(3)]
    assert close(web, but=tokens[1].key).closed == 2
    assert alive(web, tokens) == [False, True, False]
    use(web, tokens[1])
    farm.wait(360)
    assert use(web, tokens[1]) is not None
    work(web)
    assert keys_of(web) == [tokens[1].key]
    for stranger in (tokens[0].key, log_in(web, "bob").key, bytes(16)):
        with pytest.raises(SessionClosed):
            close(web, but=stranger)
    assert alive(web, tokens[1:2]) == [True]


def test_a_login_that_races_a_close_is_closed_or_comes_after_it() -> None:
    for moment in range(9):
        farm = UserFarm()
        one, two = farm.two_webs()
        before = log_in(one)
        one.during_put = [*[lambda: None] * moment, lambda: close(two)]  # noqa: B023 - called within this round
        token = log_in(one)
        if one.during_put:  # there are fewer puts than that
            close(two)
        assert alive(two, [before]) == [False], moment
        assert keys_of(two) == [token.key] * sum(alive(two, [token])), moment


def test_a_change_of_privilege_does_not_escape_a_close() -> None:
    """The new session of who is replaced is either in the list that is closed, or is not told."""
    for moment in range(9):
        farm = UserFarm()
        one, two = farm.two_webs()
        session = one.opened(log_in(one), login=True)
        one.during_put = [*[lambda: None] * moment, lambda: close(two)]  # noqa: B023 - called within this round
        try:
            token = log_in(one, session=session)
        except (SessionClosed, SessionUnavailable):
            work(one)
            assert sessions_of(two) == []
            continue
        if one.during_put:  # there are fewer puts than that
            close(two)
        assert alive(two, [token]) == [False], moment


@pytest.mark.parametrize("ends_it", ["a close", "a newer login"])
def test_what_a_failed_login_was_to_replace_stays_listed(ends_it: str) -> None:
    """Whoever logged in before, and again, and was told nothing of that, is closed and counted as before."""
    survived = 0
    for moment in range(9):
        farm = UserFarm(limit=1)
        one, two = farm.two_webs()
        token = log_in(one)
        session = one.opened(token, login=True)
        one.during_put = [*[lambda: None] * moment, lambda: cut(farm, True)]  # noqa: B023 - called within this round
        try:
            log_in(one, session=session)
        except SessionUnavailable:
            cut(farm, False)
            work(one)
            if alive(two, [token]) != [True]:
                continue
            survived += 1
            assert keys_of(two) == [token.key], moment
            close(two) if ends_it == "a close" else log_in(two)
            assert alive(one, [token]) == [False], moment
    assert survived >= 2, "no login failed after its session was stored"


def cut(farm: UserFarm, silent: bool) -> None:
    for server in list(farm.servers.values())[1:]:
        server.silent = silent


@pytest.mark.parametrize(("limit", "at_limit"), [(2, "refuse"), (2, "close-oldest"), (0, "refuse")])
def test_what_was_replaced_takes_no_place_and_leaves_the_list(limit: int, at_limit: str) -> None:
    farm = UserFarm(limit=limit, at_limit=at_limit)
    web = farm.web()
    first = log_in(web)
    for _ in range(5):
        first = log_in(web, session=web.opened(first, login=True))
    assert len(farm.index(web).listed) == 2, "it, and what it has replaced"
    second = log_in(web)
    assert alive(web, [first, second]) == [True, True]
    farm.wait(700)
    assert use(web, first) is not None
    work(web)
    assert {one.key for one in farm.index(web).listed} == {first.key, second.key}
    assert close(web).closed == 2, "what was over before is not counted"


def test_who_dies_in_the_middle_of_a_close_leaves_marks_that_others_go_by() -> None:
    farm = UserFarm()
    one, two = farm.two_webs()
    tokens = [log_in(one), log_in(one)]
    flow = users(one).close_user("ada")
    one.run(
        users(one).touch(users(one).keys_of("ada"), lambda index: index.closed_at(farm.now_ms))
    )  # and is killed there
    flow.close()
    assert sessions_of(two) == [], "what is to be closed is shown to nobody"
    farm.wait(600)
    assert use(two, tokens[0]) is not None  # nothing was told yet
    work(two)
    assert alive(two, tokens[:1]) == [False], "the session finds its own mark when it is used"
    assert close(two).closed >= 1
    assert alive(one, tokens) == [False, False]


def test_a_close_that_too_few_session_servers_hear_of_is_not_told_as_done() -> None:
    farm = UserFarm(servers=3)
    web = farm.web()
    token = log_in(web)
    for server in list(farm.servers.values())[:2]:
        server.silent = True
    with pytest.raises(SessionUnavailable):
        close(web)
    with pytest.raises(SessionUnavailable):
        sessions_of(web)
    assert isinstance(refused(web), SessionUnavailable)
    for server in farm.servers.values():
        server.silent = False
    assert close(web).effective
    assert alive(web, [token]) == [False]


# -- an index that is lost, forked, or under another key ---------------------------------------------------


def test_a_session_lists_itself_again_when_its_index_was_lost() -> None:
    farm = UserFarm()
    one, two = farm.two_webs()
    tokens = [log_in(one), log_in(one)]
    for server in farm.servers.values():
        server.stored.pop(users(one).keys_of("ada")[0], None)
    assert sessions_of(two) == []
    farm.wait(360)
    for token in tokens:
        use(two, token)
    work(two)
    assert set(keys_of(one)) == {token.key for token in tokens}


def test_a_session_that_is_not_listed_ends_when_it_is_used_after_its_user_was_closed() -> None:
    farm = UserFarm()
    one, two = farm.two_webs()
    token = log_in(one)
    for server in farm.servers.values():
        server.stored.pop(users(one).keys_of("ada")[0], None)
    farm.wait(10)
    later = log_in(two)
    assert close(two).closed == 1
    assert alive(two, [token, later]) == [True, False]
    farm.wait(360)
    assert use(one, token) is not None
    work(one)
    assert alive(two, [token]) == [False]


def test_a_fork_of_an_index_keeps_the_sessions_of_both_branches() -> None:
    farm = UserFarm(servers=2, copies=1)
    one, two = farm.two_webs()
    one.cut, two.cut = {"s2"}, {"s1"}
    tokens = [log_in(one), log_in(two)]
    one.cut, two.cut = set(), set()
    assert set(keys_of(one)) == {token.key for token in tokens}
    third = log_in(two)
    assert set(keys_of(one)) == {token.key for token in (*tokens, third)}
    assert len(farm.index(one).listed) == 3
    assert EventKind.SESSION_FORKED in two.kinds()
    assert close(one).closed == 3


def test_a_close_in_one_branch_of_a_fork_holds_for_the_other() -> None:
    farm = UserFarm(servers=2, copies=2, below_target="degrade")
    one, two = farm.two_webs()
    token = log_in(one)
    farm.wait(5)
    one.cut, two.cut = {"s2"}, {"s1"}
    users(one)
    one.run(users(one).touch(users(one).keys_of("ada"), lambda index: index.closed_at(farm.now_ms)))
    farm.wait(5)
    later = log_in(two)
    one.cut, two.cut = set(), set()
    index = farm.index(two)
    assert {one.key: one.doomed for one in index.listed} == {token.key: True, later.key: False}


def test_a_key_of_the_ring_that_only_opens_is_looked_under_and_its_index_moves() -> None:
    farm = UserFarm(limit=2)
    old = farm.web()
    tokens = [log_in(old), log_in(old)]
    farm.wait(1)
    farm.index_ring = KeyRing([b"A" * 32, b"B" * 32], primary=1)
    new = farm.web()
    assert set(keys_of(new)) == {token.key for token in tokens}
    third = log_in(new)
    assert alive(new, [*tokens, third]).count(True) == 2
    current, older = users(new).keys_of("ada")
    assert len(decode_index(new.run(new.copies.viewer.look(current)).body).living()) == 2
    farm.wait(300)
    assert new.run(new.copies.viewer.look(older)).newest is None
    assert close(new).closed == 2


# -- what it costs, and what is left ---------------------------------------------------------------------


def test_a_session_that_is_used_is_listed_anew_once_in_five_minutes_and_not_at_each_write() -> None:
    farm = UserFarm()
    web = farm.web()
    token = log_in(web)
    renewed = 0
    for _ in range(120):  # two hours of a write each minute
        farm.wait(60)
        used = use(web, token)
        assert used is not None
        token = used
        renewed += work(web)
        assert keys_of(web) == [token.key]
    assert 15 <= renewed <= 24


def test_of_more_sessions_than_are_listed_the_oldest_leave_the_list_and_stay_open() -> None:
    farm = UserFarm()
    web = farm.web()
    tokens = []
    for _ in range(MAX_SESSIONS_OF_USER + 3):
        tokens.append(log_in(web, "guest"))
        farm.wait(0.1)
    assert len(farm.index(web, "guest").listed) == MAX_SESSIONS_OF_USER
    assert alive(web, tokens[:4]) == [True] * 4
    assert close(web, "guest").closed == MAX_SESSIONS_OF_USER
    farm.wait(360)
    assert use(web, tokens[0]) is not None
    work(web)
    assert alive(web, tokens[:1]) == [False]


def leak(logins: int, people: int, seed: int = 1) -> None:
    """Users log in, come back, log out, are closed, or just stay away; in the end nothing is left of anybody."""
    farm = UserFarm(servers=1, copies=1, limit=3)
    web = farm.web()
    dice = random.Random(seed)
    most = 0
    for number in range(logins):
        user = f"user-{dice.randrange(people)}"
        token = log_in(web, user)
        fate = dice.random()
        if fate < 0.1:
            session = web.opened(token, login=True)
            session.close()
            web.save(session)
        elif fate < 0.11:
            close(web, user)
        elif fate < 0.3:
            use(web, token)
        farm.wait(dice.random() * 4)
        work(web)
        if number % 1000 == 0:
            most = max(most, purge(farm))
            web.copies.cache.drop_expired(farm.now_ms, 10_000)
    assert most < 6 * min(logins, 8_000)
    farm.wait(13 * HOUR_S)
    assert purge(farm) == 0
    web.copies.cache.drop_expired(farm.now_ms, 10**9)
    assert web.copies.cache.hosted() == 0
    assert not users(web).waiting
    assert not users(web).abandoned
    assert len(users(web)._noted) <= users(web).MAX_NOTED


def purge(farm: UserFarm) -> int:
    """Forget what has expired, as session servers do; how many entries are left."""
    for server in farm.servers.values():
        for key in [key for key, (_, until) in server.stored.items() if until <= farm.now_ms]:
            del server.stored[key]
    return sum(len(server.stored) for server in farm.servers.values())


def test_nothing_is_left_of_users_whose_sessions_have_ended() -> None:
    """A slice: `python tests/sessions/test_users.py` does a million."""
    leak(logins=2_000, people=200)


def test_an_empty_index_is_not_kept() -> None:
    farm = UserFarm()
    web = farm.web()
    close(web, "nobody")
    assert farm.index(web, "nobody") == UserIndex(closed_before=farm.now_ms)
    farm.wait(13 * HOUR_S)
    assert purge(farm) == 0


if __name__ == "__main__":
    leak(logins=1_000_000, people=50_000)
