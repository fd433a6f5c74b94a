"""Sessions by the token that names them: what frameworks' session objects ask for outside of requests."""

from __future__ import annotations

from functools import partial

import msgspec
import pytest

from coatcheck.errors import SessionClosed, TokenReason, TokenRejected
from coatcheck.events import EventKind
from coatcheck.sessions.by_token import ByToken
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.mapping import Session, end_at, ends_at, name_user
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.record import EndingRecord, Record, decode_record, encode_record
from coatcheck.tokens.chain import Chain, ChainLink
from coatcheck.tokens.sealed import SealedToken
from replication.tiny_farm import Farm, WebServer

GRACE_S = 60


class Desk:
    """A web server's, with tokens as texts that say what they are."""

    def __init__(self, web: WebServer) -> None:
        self.web = web
        self.known: dict[tuple[bytes, bool], SealedToken] = {}
        self.by_token = ByToken(web.lifecycle, partial(self._open, False), partial(self._open, True), self._seal)

    def _open(self, login: bool, text: bytes) -> SealedToken:
        if (text, login) not in self.known:
            raise TokenRejected(TokenReason.FORGED)
        return self.known[text, login]

    def _seal(self, issue: Issue) -> bytes:
        text = repr(tuple(issue.token)).encode()
        self.known[text, issue.login] = issue.token
        return text

    def text_of(self, token: SealedToken, login: bool = False) -> bytes:
        return (b"l." if login else b"s.") + self._seal(Issue(token, login))

    def token_of(self, text: bytes) -> SealedToken:
        return self.known[text[2:], text.startswith(b"l.")]

    def find(self, text: bytes) -> Session | None:
        return self.web.run(self.by_token.find(text))

    def found(self, text: bytes) -> Session:
        session = self.find(text)
        assert session is not None
        return session

    def store(self, session: Session) -> bytes:
        return self.web.run(self.by_token.store(session))

    def close(self, text: bytes) -> None:
        self.web.run(self.by_token.close(text))


def desk(policy: SessionPolicy | None = None) -> Desk:
    return Desk((Farm(policy=policy) if policy else Farm()).web())


def test_what_is_stored_is_found_by_its_token() -> None:
    at = desk()
    text = at.store(Session(a=1))
    assert at.found(text) == {"a": 1}
    assert at.find(b"garbage") is None


def test_it_is_stored_again_and_again_without_a_new_link() -> None:
    at = desk()
    session = Session(n=0)
    first = at.store(session)
    for number in range(1, 4):
        at.web.farm.wait(2 * GRACE_S)
        session["n"] = number
        text = at.store(session)
        assert at.token_of(text).session_id == at.token_of(first).session_id
        assert at.found(first) == at.found(text) == {"n": number}


def test_a_look_changes_nothing_and_accuses_nobody() -> None:
    at = desk()
    web = at.web
    old = web.create(a=1)
    token = old
    for _ in range(6):  # its browser goes on, and its token is replaced
        web.farm.wait(2 * GRACE_S)
        session = web.opened(token)
        session["a"] = session["a"] + 1
        issue = web.save(session).issue
        assert issue is not None
        token = issue.token
    kinds = web.kinds()
    stored = web.farm.entries(old.key)
    assert at.find(at.text_of(old)) is None, "it was replaced long ago"
    assert at.found(at.text_of(token))["a"] == 7
    assert web.kinds() == kinds
    assert web.farm.entries(old.key) == stored
    assert web.read(token) is not None, "nobody was accused"


def test_a_look_does_not_say_that_its_browser_has_moved_on() -> None:
    """The honest browser has lost its newest token, and a program of the server's has it."""
    at = desk()
    web = at.web
    first = web.create(a=1)
    web.farm.wait(2 * GRACE_S)
    second = web.write(first, a=2)
    assert second.session_id != first.session_id
    web.write(second, a=3)
    newest = at.text_of(second)
    for _ in range(5):
        web.farm.wait(2 * GRACE_S)
        at.found(newest)
    assert web.read(first) == {"a": 3}
    assert EventKind.SESSION_THEFT not in web.kinds()


def test_any_token_of_a_session_may_end_it() -> None:
    at = desk()
    web = at.web
    old = web.create(a=1)
    token = old
    for _ in range(4):
        web.farm.wait(2 * GRACE_S)
        token = web.write(token, a=2)
    at.close(at.text_of(old))
    assert web.open(token) is None
    assert web.kinds()[-1] is EventKind.SESSION_CLOSED
    at.close(at.text_of(old))
    at.close(b"garbage")
    assert web.kinds().count(EventKind.SESSION_CLOSED) == 1


def test_what_was_closed_is_not_brought_back() -> None:
    at = desk()
    session = Session(a=1)
    text = at.store(session)
    at.close(text)
    session["a"] = 2
    with pytest.raises(SessionClosed):
        at.store(session)
    assert at.find(text) is None


def test_another_web_server_finds_it() -> None:
    farm = Farm()
    one, two = (Desk(web) for web in farm.two_webs())
    session = Session(a=1)
    text = one.store(session)
    two.known = one.known
    other = two.found(text)
    other["b"] = 2
    newer = two.store(other)
    session["c"] = 3
    one.store(session)
    assert two.found(newer) == {"a": 1, "b": 2, "c": 3}


# -- who it belongs to -------------------------------------------------------------------------------


def test_who_logs_in_is_named_in_the_session_that_the_login_has_begun() -> None:
    at = desk()
    session = Session(cart=1)
    before = at.store(session)
    session = at.found(before)
    session.regenerate()
    text = at.store(session)
    assert at.find(before) is None
    key = at.token_of(text).key
    at.web.farm.wait(5)
    name_user(session, "ada")
    named = at.store(session)
    assert at.token_of(named).key == key
    found = at.found(named)
    assert (found.user, found) == ("ada", {"cart": 1})
    assert at.web.events[-1].kind is EventKind.SESSION_LOGIN


def test_a_session_that_others_may_know_gets_a_new_key_with_its_user() -> None:
    at = desk()
    before = at.store(Session(cart=1))
    session = at.found(before)
    name_user(session, "ada")
    text = at.store(session)
    assert at.token_of(text).key != at.token_of(before).key
    assert at.find(before) is None
    assert at.found(text).user == "ada"


def test_another_user_inherits_nothing_even_in_a_session_just_begun() -> None:
    at = desk()
    session = Session(secret=["ada's"])
    name_user(session, "ada")
    at.store(session)
    name_user(session, "ada")
    assert session["secret"] == ["ada's"]
    name_user(session, "bob")
    assert session == {}
    assert at.found(at.store(session)).user == "bob"


@pytest.mark.parametrize("wrong", ["", "x" * 2000])
def test_a_users_name_is_judged(wrong: str) -> None:
    at = desk()
    session = Session(a=1)
    with pytest.raises(ValueError, match="name"):
        name_user(session, wrong)
    at.store(session)
    with pytest.raises(ValueError, match="name"):
        name_user(session, wrong)


def test_the_absolute_timeout_begins_with_the_login() -> None:
    at = desk(SessionPolicy(idle_timeout_ms=3_600_000, absolute_timeout_ms=3_600_000))
    text = at.store(Session(a=1))
    at.web.farm.wait(3000)
    session = at.found(text)
    session.regenerate()
    at.store(session)
    name_user(session, "ada")
    text = at.store(session)
    at.web.farm.wait(3000)
    assert at.find(text) is not None


# -- when it ends ------------------------------------------------------------------------------------


def test_a_session_ends_when_the_app_says() -> None:
    at = desk()
    session = Session()
    assert ends_at(session) is None
    end_at(session, at.web.now_ms() + 100_000)
    text = at.store(session)
    assert at.found(text) == {}, "it is there, though nothing is in it"
    at.web.farm.wait(99)
    assert ends_at(at.found(text)) == at.web.now_ms() + 1000
    at.web.farm.wait(2)
    assert at.find(text) is None
    assert at.web.open(at.token_of(text)) is None


def test_a_later_end_is_stored_and_others_keep_it() -> None:
    at = desk()
    session = Session(a=1)
    end_at(session, at.web.now_ms() + 100_000)
    at.store(session)
    end_at(session, at.web.now_ms() + 900_000)
    text = at.store(session)
    web = at.web
    web.farm.wait(500)
    token = web.write(at.token_of(text), a=2)
    web.farm.wait(300)
    assert web.read(token) == {"a": 2}
    web.farm.wait(101)
    assert web.read(token) is None


def test_a_new_key_keeps_the_end() -> None:
    at = desk()
    session = Session(a=1)
    moment = at.web.now_ms() + 100_000
    end_at(session, moment)
    session = at.found(at.store(session))
    session.regenerate()
    assert ends_at(at.found(at.store(session))) == moment


def test_timeouts_end_it_sooner() -> None:
    at = desk(SessionPolicy(idle_timeout_ms=60_000))
    session = Session(a=1)
    end_at(session, at.web.now_ms() + 10_000_000)
    text = at.store(session)
    at.web.farm.wait(120)
    assert at.find(text) is None


def test_a_record_with_an_end_is_read_by_all_releases() -> None:
    chain = Chain(ChainLink(b"i" * 16, 900))
    plain = Record(b"\x80", 1, 2, None, chain)
    ending = EndingRecord(b"\x80", 1, 2, None, chain, ends_at=77)
    assert encode_record(plain)[0] == 0x98
    assert decode_record(encode_record(ending)) == ending
    assert decode_record(encode_record(plain)) == plain
    before = msgspec.msgpack.decode(encode_record(ending), type=Record)
    assert (before.data, before.chain) == (b"\x80", chain)
    after = msgspec.msgpack.encode([*msgspec.msgpack.decode(encode_record(ending)), "new"])
    assert decode_record(after).deadline == 77
