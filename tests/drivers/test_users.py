"""The sessions of a user, over both drivers: listed, closed, by operators and by the user; and everybody's at once."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Iterator
from typing import Any

import pytest

from coatcheck import CoatcheckError, Device, Session, SessionClosed, SessionUnavailable, UserClosed
from coatcheck.drivers.sessions import Sessions
from coatcheck.events import Event, EventKind
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.sessions.ending import SessionEnd
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.keyring import KeyRing
from session_drivers import DRIVERS, HEAD, OnThreads, Server

AGENT = ((b"host", b"shop.example"), (b"User-Agent", b"Mozilla/5.0 (X11)"))
LEASE_S = 0.4


class DeafStore(MemoryStore):
    """May say nothing for a while."""

    deaf = False

    def get(self, key: bytes, reply: Any) -> None:
        if self.deaf:
            from coatcheck.replication.effects import Unreachable

            reply(Unreachable("deaf"))
        else:
            super().get(key, reply)


def web(stores: list[DeafStore], name: str, seen: list[Event] | None = None) -> Sessions:
    seen = [] if seen is None else seen
    return Sessions(
        farm="farm", server_name=name, stores=stores, ring=KeyRing([b"k" * 32]), observer=seen.append,
        replication=ReplicationPolicy(lease_s=LEASE_S),
    )  # fmt: skip


class Visitor:
    """A browser, and what its requests may do to a user's sessions."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.cookies = b""

    def open(self, method: str = "POST", server: Server | None = None) -> Any:
        server = server or self.server
        if isinstance(server, OnThreads):
            return server.threaded.open(self.cookies, "192.0.2.7", None, method, AGENT)
        return server._runner.run(server.sessions.open(self.cookies, "192.0.2.7", None, method, AGENT))

    def log_in(self, user: str) -> None:
        opened = self.open()
        opened.session.regenerate(user)
        answer = self.server.finish(opened, 200, HEAD)
        assert not answer.refused
        self.cookies = answer.cookies[0][1].split(b";")[0]

    def user(self, server: Server | None = None) -> str | None:
        found: str | None = self.open("GET", server).session.user
        return found

    def ask(self, what: str, *arguments: Any, method: str = "POST") -> Any:
        """``Session.devices`` and its like, as an app on this driver calls it."""
        session: Session = self.open(method).session
        if isinstance(self.server, OnThreads):
            return getattr(self.server.threaded, what)(session, *arguments)
        return self.server._runner.run(getattr(session, what)(*arguments))


@pytest.fixture(params=sorted(DRIVERS))
def server(request: pytest.FixtureRequest) -> Iterator[Server]:
    stores = [DeafStore(name, time.monotonic) for name in ("one", "two")]
    made = DRIVERS[request.param](web(stores, "web-1"))
    yield made
    made.close()


def visitors(server: Server, *users: str) -> list[Visitor]:
    found = [Visitor(server) for _ in users]
    for visitor, user in zip(found, users, strict=True):
        visitor.log_in(user)
    return found


def test_7_5_2_users_see_their_own_sessions_and_end_them(server: Server) -> None:
    phone, laptop, bob = visitors(server, "ada", "ada", "bob")
    shown: list[Device] = phone.ask("devices", method="GET")
    assert {(one.device, one.address) for one in shown} == {("Mozilla/5.0 (X11)", "192.0.2.7")}
    assert [one.current for one in shown].count(True) == 1
    [other] = [one for one in shown if not one.current]
    [mine] = [one for one in shown if one.current]
    [bobs] = bob.ask("devices")
    assert phone.ask("close_device", bobs.id) is False, "another user's session is none of them"
    assert phone.ask("close_device", "0" * 12) is False
    assert phone.ask("close_device", mine.id) is False
    assert bob.user() == "bob"
    assert phone.ask("close_device", other.id) is True
    assert (phone.user(), laptop.user()) == ("ada", None)
    assert [one.current for one in phone.ask("devices")] == [True]


@pytest.mark.parametrize("method", ["GET", "HEAD", "OPTIONS", "TRACE"])
def test_3_5_a_request_that_any_page_can_cause_closes_nothing(server: Server, method: str) -> None:
    phone, laptop = visitors(server, "ada", "ada")
    [other] = [one for one in phone.ask("devices", method=method) if not one.current]
    for what, arguments in (("close_device", (other.id,)), ("close_other_devices", ())):
        with pytest.raises(CoatcheckError, match=f"a {method} request closes no sessions"):
            phone.ask(what, *arguments, method=method)
    assert laptop.user() == "ada"


def test_7_4_3_all_others_are_closed_by_their_user(server: Server) -> None:
    phone, laptop, tablet, bob = visitors(server, "ada", "ada", "ada", "bob")
    assert phone.ask("close_other_devices") == 2
    assert [one.user() for one in (phone, laptop, tablet, bob)] == ["ada", None, None, "bob"]
    assert phone.ask("close_other_devices") == 0


def test_7_4_2_and_7_4_5_an_operator_closes_one_user_or_everybody(server: Server) -> None:
    phone, laptop, bob = visitors(server, "ada", "ada", "bob")
    visitor = Visitor(server)
    opened = visitor.open()
    opened.session["cart"] = 1
    visitor.cookies = server.finish(opened, 200, HEAD).cookies[0][1].split(b";")[0]
    found = server.operate("sessions_of", "ada")
    assert [one.device for one in found] == ["Mozilla/5.0 (X11)"] * 2
    assert server.operate("close_user", "ada") == UserClosed(2)
    assert server.operate("sessions_of", "ada") == []
    assert [one.user() for one in (phone, laptop, bob)] == [None, None, "bob"]
    server.operate("close_all")
    assert bob.user() is None
    assert dict(visitor.open().session) == {}
    phone.log_in("ada")
    assert phone.user() == "ada", "whoever logs in after it stays"


def test_who_has_no_session_or_no_user_has_no_devices(server: Server) -> None:
    visitor = Visitor(server)
    assert visitor.ask("devices") == []
    assert visitor.ask("close_device", "0" * 12) is False
    assert visitor.ask("close_other_devices") == 0
    with pytest.raises(CoatcheckError, match="by the session of a request only"):
        asyncio.run(Session().devices())


def test_an_index_is_no_session_for_operators(server: Server) -> None:
    visitors(server, "ada")
    [key] = server.sessions.users.keys_of("ada")
    assert len(server.operate("list_sessions")) == 1
    assert len(server.operate("list_sessions", 1)) == 1
    assert server.operate("show", key) is None
    with pytest.raises(CoatcheckError, match="of no session"):
        server.operate("close_key", key)
    assert server.operate("status")["sessions"] == 1


# -- everybody's -----------------------------------------------------------------------------------------


def run(story: Any) -> None:
    asyncio.run(story())


async def begun(sessions: Sessions, **data: Any) -> bytes:
    opened = await sessions.open()
    opened.session.update(data)
    answer = await sessions.finish(opened)
    return answer.cookies[0][1].split(b";")[0]


@pytest.mark.parametrize("notices", [True, False])
def test_a_close_of_all_holds_at_every_web_server_when_it_is_told_and_after_a_restart(notices: bool) -> None:
    async def story() -> None:
        stores = [DeafStore(name, time.monotonic) for name in ("one", "two", "three")]
        seen: list[Event] = []
        one, two = web(stores, "web-1", seen), web(stores, "web-2")
        await one.start()
        await two.start()
        cookie = await begun(two, n=1)
        watched: list[SessionEnd] = []
        opened = await two.open(cookie)
        assert opened.key is not None
        two.watching.watch(opened.key, watched.append)
        if not notices:
            for store in stores:
                store._bulletin.clear()
        await one.close_all()
        assert dict((await two.open(cookie)).session) == {}
        for _ in range(200):
            if watched:
                break
            await asyncio.sleep(0.05)
        assert watched == [SessionEnd.CLOSED]
        assert [event.kind for event in seen].count(EventKind.ALL_CLOSED) == 1
        with pytest.raises(SessionClosed):
            opened.session["n"] = 2
            await two.driver.run(two.lifecycle._owned(opened.key, opened.session._request.shown))
        later = await begun(two, n=3)
        await two.aclose()
        three = web(stores, "web-3")
        await three.start()
        assert dict((await three.open(cookie)).session) == {}
        assert dict((await three.open(later)).session) == {"n": 3}
        await one.aclose()
        await three.aclose()

    run(story)


def test_a_session_that_comes_back_into_the_cache_after_a_close_of_all_is_not_served() -> None:
    """As repair brings it back, or a write that was under way."""

    async def story() -> None:
        stores = [DeafStore(name, time.monotonic) for name in ("one", "two", "three")]
        sessions = web(stores, "web-1")
        await sessions.start()
        cookie = await begun(sessions, n=1)
        opened = await sessions.open(cookie)
        await sessions.close_all()
        await sessions.driver.run(sessions.copies.load(opened.key, None, False))
        assert sessions.copies.cache.get(opened.key) is not None
        assert dict((await sessions.open(cookie)).session) == {}
        assert dict((await sessions.open(cookie)).session) == {}, "nor later"
        later = await begun(sessions, n=2)
        assert dict((await sessions.open(later)).session) == {"n": 2}
        await sessions.aclose()

    run(story)


def test_who_cannot_ask_whether_all_were_closed_serves_nothing_from_its_cache() -> None:
    async def story() -> None:
        stores = [DeafStore(name, time.monotonic) for name in ("one", "two", "three")]
        sessions = web(stores, "web-1")
        await sessions.start()
        cookie = await begun(sessions, n=1)
        stores[0].deaf = stores[1].deaf = True
        with pytest.raises(SessionUnavailable):
            await sessions.driver.run(sessions.everyone.learn())
        with pytest.raises(SessionUnavailable):
            await sessions.open(cookie)
        stores[0].deaf = stores[1].deaf = False
        await sessions.driver.run(sessions.everyone.learn())
        assert dict((await sessions.open(cookie)).session) == {"n": 1}
        await sessions.aclose()

    run(story)


def test_sessions_that_are_used_are_listed_anew_by_the_background() -> None:
    async def story() -> None:
        stores = [DeafStore("one", time.monotonic)]
        sessions = Sessions(farm="farm", server_name="web", stores=stores, ring=KeyRing([os.urandom(32)]), copies=1)
        await sessions.start()
        sessions.users.renew_ms = 0
        opened = await sessions.open()
        opened.session.regenerate("ada")
        cookie = (await sessions.finish(opened)).cookies[0][1].split(b";")[0]
        index_key, table = sessions.users.keys_of("ada")[0], stores[0].table
        table._drop(index_key, table._shard(index_key)[index_key])
        assert await sessions.sessions_of("ada") == []
        opened = await sessions.open(cookie, "192.0.2.9", None, "POST", AGENT)
        opened.session["n"] = 1
        await sessions.finish(opened)
        for _ in range(100):
            if await sessions.sessions_of("ada"):
                break
            await asyncio.sleep(0.05)
        assert len(await sessions.sessions_of("ada")) == 1
        await sessions.aclose()

    run(story)
