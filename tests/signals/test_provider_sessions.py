"""How sessions are found by an identity provider's names for them: the indexes, on a farm without sockets."""

from __future__ import annotations

from typing import Any

import pytest

from coatcheck.errors import SessionClosed, SessionUnavailable
from coatcheck.events import EventKind
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.provider import MAX_CLAIM_BYTES, ProviderLogin, ProviderName, provider_session_of
from coatcheck.sessions.provider_sessions import ProviderIndexes
from coatcheck.sessions.user_index import UserIndex, decode_index
from coatcheck.sessions.users import UserClosed
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SealedToken
from replication.tiny_farm import WebServer
from user_farm import HOUR_S, UserFarm, alive, close, sessions_of, use, users, work

ISSUER = "https://idp.example"
SID = ProviderName(ISSUER, "sid", "s1")
SUB = ProviderName(ISSUER, "sub", "u1")


class ProviderFarm(UserFarm):
    """Whose web servers keep indexes of identity providers' names, too."""

    def web(self) -> WebServer:
        web = super().web()
        mac = self.index_ring.mac("identity-provider", "farm")
        indexes = ProviderIndexes(users(web), web.copies, self.policy, lambda name: mac.marks(name, 16))
        web.lifecycle.providers = indexes
        users(web).renew_provider = indexes.renew
        return web

    def keys(self, name: ProviderName) -> list[bytes]:
        return self.index_ring.mac("identity-provider", "farm").marks(name.clear(), 16)

    def listed(self, web: WebServer, name: ProviderName) -> UserIndex:
        view = web.run(web.copies.viewer.look(self.keys(name)[0]))
        return UserIndex() if view.newest is None else decode_index(view.body)

    def lose(self, name: ProviderName) -> None:
        for server in self.servers.values():
            server.stored.pop(self.keys(name)[0], None)


def claims(sid: str | None = "s1", sub: str | None = "u1") -> dict[str, Any]:
    return {name: value for name, value in {"iss": ISSUER, "sid": sid, "sub": sub}.items() if value is not None}


def log_in(
    web: WebServer, id_token: dict[str, Any] | None, user: str = "ada", shown: SealedToken | None = None
) -> SealedToken:
    session = Session({"n": 1}) if shown is None else web.opened(shown, login=True)
    session.regenerate(user, id_token=id_token)
    saved = web.save(session)
    assert saved.issue is not None
    return saved.issue.token


def providers(web: WebServer) -> ProviderIndexes:
    assert web.lifecycle.providers is not None
    return web.lifecycle.providers


def end(web: WebServer, name: ProviderName, moment_ms: int | None = None) -> UserClosed:
    return web.run(providers(web).close(name, moment_ms or web.now_ms(), "by a provider"))


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"iss": ISSUER}, {"sid": "s", "sub": "u"}, {"iss": "", "sid": "s"}, {"iss": 7, "sid": "s"},
        {"iss": ISSUER, "sid": 7}, {"iss": ISSUER, "sid": ""}, {"iss": ISSUER, "sub": "u\x00"},
        {"iss": ISSUER, "sub": "\ud800"}, {"iss": ISSUER, "sub": "u" * (MAX_CLAIM_BYTES + 1)}, "eyJhbGciOi", ["iss"],
    ],
)  # fmt: skip
def test_what_are_no_claims_of_an_id_token_is_said_and_changes_nothing(wrong: Any) -> None:
    session = Session({"n": 1})
    with pytest.raises(ValueError, match="id_token"):
        session.regenerate("ada", id_token=wrong)
    assert not session._request.new_login
    with pytest.raises(ValueError, match="user's name"):
        session.regenerate(id_token=claims())


def test_names_are_told_apart() -> None:
    names = [
        ProviderName("a", "sid", "b"), ProviderName("a", "sub", "b"), ProviderName("a", "sub without sid", "b"),
        ProviderName("b", "sid", "a"), ProviderName("ab", "sid", "b"), ProviderName("a", "sid", "bb"),
    ]  # fmt: skip
    assert len({one.clear() for one in names}) == len(names)
    kept = provider_session_of(claims() | {"email": "ada@example.org", "nonce": "n"})
    assert kept == ProviderLogin(ISSUER, "s1", "u1"), "and nothing else of the token"
    assert kept.names() == [SID, SUB]
    assert "u1" not in repr(kept)


def test_a_key_says_nothing_of_its_name_and_no_two_farms_or_purposes_share_it() -> None:
    farm = ProviderFarm()
    mark = farm.keys(SID)[0]
    assert mark != KeyRing([b"B" * 32]).mac("identity-provider", "farm").marks(SID.clear(), 16)[0]
    assert mark != farm.index_ring.mac("identity-provider", "other").marks(SID.clear(), 16)[0]
    assert mark != farm.index_ring.mac("user-index", "farm").marks(SID.clear(), 16)[0]
    web = farm.web()
    log_in(web, claims())
    for server in farm.servers.values():
        for key, (entry, _) in server.stored.items():
            assert b"s1" not in key
            assert ISSUER.encode() not in entry.payload


def test_a_login_that_is_told_is_listed_under_each_name() -> None:
    farm = ProviderFarm()
    one, two = farm.two_webs()
    token = log_in(one, claims())
    assert [each.key for each in farm.listed(two, SID).listed] == [token.key]
    assert [each.key for each in farm.listed(two, SUB).listed] == [token.key]
    assert end(two, SID) == UserClosed(1)
    assert alive(one, [token]) == [False]
    assert two.events[-1].kind is EventKind.SESSION_CLOSED
    assert two.events[-1].user == "ada", "whoever is told of it learns whose it was"
    assert end(two, SID) == UserClosed(0)
    assert [event.kind for event in two.events].count(EventKind.SESSION_CLOSED) == 1


@pytest.mark.parametrize("moment", range(12))
def test_a_login_that_races_its_logout_is_closed_or_refused(moment: int) -> None:
    farm = ProviderFarm()
    one, two = farm.two_webs()
    one.during_put = [*[lambda: None] * moment, lambda: end(two, SID)]
    try:
        token = log_in(one, claims())
    except (SessionClosed, SessionUnavailable):
        work(one)
        assert sessions_of(two) == []
        return
    if one.during_put:  # there are fewer puts than that
        end(two, SID)
    assert alive(two, [token]) == [False]


def test_what_began_after_the_moment_of_a_logout_stays() -> None:
    farm = ProviderFarm()
    web = farm.web()
    before = log_in(web, claims("s1"))
    farm.wait(5)
    moment = web.now_ms()
    farm.wait(5)
    after = log_in(web, claims("s2"))
    assert end(web, SUB, moment).closed == 1
    assert alive(web, [before, after]) == [False, True]
    assert end(web, SUB, moment).closed == 0, "a token that comes again ends nothing more"
    assert alive(web, [after]) == [True]


def test_a_regenerated_session_stays_linked_and_one_of_somebody_else_does_not() -> None:
    farm = ProviderFarm()
    web = farm.web()
    first = log_in(web, claims())
    farm.wait(5)
    moment = web.now_ms()
    farm.wait(5)
    second = log_in(web, None, shown=first)
    assert end(web, SUB, moment).closed == 1, "it is the same login, however new its key"
    assert alive(web, [second]) == [False]
    other = log_in(web, claims("s3", "u3"))
    stranger = log_in(web, None, user="bob", shown=other)
    assert end(web, ProviderName(ISSUER, "sid", "s3")).closed == 0
    assert alive(web, [stranger]) == [True]


def test_a_write_keeps_what_the_session_came_from() -> None:
    farm = ProviderFarm()
    one, two = farm.two_webs()
    token = log_in(one, claims())
    session = one.opened(token, login=True)
    session.clear()
    session["other"] = 1
    saved = one.save(session)
    assert saved.issue is not None
    again = log_in(two, None, shown=saved.issue.token)
    assert end(one, SID).closed == 1
    assert alive(two, [again]) == [False]


def test_a_session_whose_index_was_lost_lists_itself_again_or_finds_that_it_has_ended() -> None:
    farm = ProviderFarm()
    one, two = farm.two_webs()
    token, doomed = log_in(one, claims()), log_in(one, claims("s2", "u2"))
    farm.lose(SID)
    farm.lose(ProviderName(ISSUER, "sid", "s2"))
    assert end(two, ProviderName(ISSUER, "sid", "s2")).closed == 0
    farm.wait(360)
    token = use(one, token) or token
    assert use(one, doomed) is not None
    work(one)
    assert alive(one, [token, doomed]) == [True, False]
    assert end(two, SID).closed == 1
    assert alive(one, [token]) == [False]


def test_while_it_is_used_its_indexes_are_read_and_not_written() -> None:
    farm = ProviderFarm()
    web = farm.web()
    token = log_in(web, claims())
    versions = {key: entry.version for key, (entry, _) in farm.servers["s1"].stored.items() if key in farm.keys(SID)}
    for _ in range(30):
        farm.wait(60)
        token = use(web, token) or token
        work(web)
    after = {key: entry.version for key, (entry, _) in farm.servers["s1"].stored.items() if key in farm.keys(SID)}
    assert after == versions


def test_nothing_is_left_when_the_sessions_must_have_ended() -> None:
    farm = ProviderFarm()
    web = farm.web()
    for n in range(20):
        token = log_in(web, claims(f"s{n}", f"u{n % 3}"))
        if n % 4 == 0:
            end(web, ProviderName(ISSUER, "sid", f"s{n}"))
        elif n % 4 == 1:
            close(web)
        elif n % 4 == 2:
            use(web, token)
        assert web.run(providers(web).use(ProviderName(ISSUER, "jti", f"j{n}"), web.now_ms() + 600_000))
    farm.wait(25 * HOUR_S)
    for server in farm.servers.values():
        assert [key for key in server.stored if server.entry(key) is not None] == []


def test_under_new_keys_sessions_are_found_and_move() -> None:
    farm = ProviderFarm()
    old = farm.web()
    token = log_in(old, claims())
    farm.index_ring = KeyRing([b"A" * 32, b"B" * 32], 1)
    new = farm.web()
    second = log_in(new, claims())
    assert {one.key for one in farm.listed(new, SID).listed} == {token.key, second.key}
    assert end(new, SID).closed == 2
    assert alive(new, [token, second]) == [False, False]


def test_too_few_session_servers_leave_no_silent_success() -> None:
    farm = ProviderFarm(servers=3)
    web = farm.web()
    token = log_in(web, claims())
    names = list(farm.servers.values())
    names[0].silent = names[1].silent = True
    message = ProviderName(ISSUER, "jti", "j")
    for flow in (
        lambda: end(web, SID),
        lambda: web.run(providers(web).use(message, web.now_ms() + 1000)),
        lambda: web.run(providers(web).was_used(message)),
    ):
        with pytest.raises(SessionUnavailable):
            flow()
    names[0].silent = names[1].silent = False
    assert end(web, SID).effective
    assert alive(web, [token]) == [False]
    assert not web.run(providers(web).was_used(message))


def test_a_message_is_used_once_and_forgotten_when_it_could_not_be_shown_any_more() -> None:
    farm = ProviderFarm()
    one, two = farm.two_webs()
    message = ProviderName(ISSUER, "jti", "j")
    assert one.run(providers(one).use(message, one.now_ms() + 600_000))
    assert not two.run(providers(two).use(message, two.now_ms() + 600_000))
    assert two.run(providers(two).was_used(message))
    assert not two.run(providers(two).was_used(ProviderName("https://other.example", "jti", "j")))
    farm.wait(601)
    assert not two.run(providers(two).was_used(message))


def test_of_a_user_by_his_name_here_those_end_that_had_begun() -> None:
    farm = ProviderFarm()
    web = farm.web()
    before = log_in(web, None)
    farm.wait(5)
    moment = web.now_ms()
    farm.wait(5)
    after = log_in(web, None)
    assert web.run(providers(web).close_user("ada", moment, "by a provider")).closed == 1
    assert alive(web, [before, after]) == [False, True]
    assert [one.key for one in sessions_of(web)] == [after.key.hex()]
