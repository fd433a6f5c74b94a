"""The contract of what runs sessions: one suite for the event loop's driver and for that of threads."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from typing import Any

import pytest
from store_backends import Backend, MemoryBackend

from coatcheck import CoatcheckError, ConfigError, SessionDataError
from coatcheck.drivers.sessions import Sessions
from coatcheck.sessions.newcomers import Newcomers
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import Store
from coatcheck.tokens.keyring import KeyRing
from session_drivers import COOKIE, DRIVERS, HEAD, LOGIN, Browser, Server, header_of

RING = [os.urandom(32)]


def stores_of(backend: Backend) -> list[Store]:
    if isinstance(backend, MemoryBackend):
        return [MemoryStore("memory", time.monotonic, beside=backend.store)]
    return [backend.client()]


class Farm:
    """Web servers over one session server, each made when it is first asked for."""

    def __init__(self, driver: str, backend: Backend) -> None:
        self._driver = DRIVERS[driver]
        self._backend = backend
        self._servers: dict[str, Server] = {}

    def server(self, name: str = "one", **options: Any) -> Server:
        if name not in self._servers:
            backend = self._backend
            given: dict[str, Any] = {"ring": KeyRing(RING), "copies": 1, **options}
            sessions = Sessions(farm="farm", server_name=name, stores=lambda: stores_of(backend), **given)
            self._servers[name] = self._driver(sessions)
        return self._servers[name]

    def close(self) -> None:
        for server in self._servers.values():
            server.close()


@pytest.fixture(params=list(DRIVERS))
def farm(request: pytest.FixtureRequest, backend: Backend) -> Iterator[Farm]:
    made = Farm(request.param, backend)
    yield made
    made.close()


def count(session: Any) -> int:
    session["n"] = session.get("n", 0) + 1
    return int(session["n"])


def test_a_session_goes_on_wherever_it_is_asked_for(farm: Farm) -> None:
    browser = Browser()
    for expected, name in enumerate(["one", "one", "two", "two", "one", "three"], 1):
        assert browser.ask(farm.server(name), count).status == 200
        assert browser.told == expected, name


def test_what_is_only_read_is_neither_stored_nor_told_and_nothing_of_it_is_cached(farm: Farm) -> None:
    browser = Browser()
    begun = browser.ask(farm.server(), count)
    assert [name for name, _ in begun.cookies] == [b"set-cookie"]
    before = dict(browser.jar)
    read = browser.ask(farm.server(), lambda session: session["n"])
    assert (browser.told, read.cookies, browser.jar) == (1, [], before)
    assert header_of(read, b"cache-control") == b"no-store"
    untouched = browser.ask(farm.server(), lambda session: None)
    assert list(untouched.headers) == list(HEAD), "whoever did not look at it may be cached"


def test_a_login_and_a_logout(farm: Farm) -> None:
    browser = Browser()
    browser.ask(farm.server(), count)
    stolen = dict(browser.jar)
    browser.ask(farm.server(), lambda session: session.regenerate("ada"))
    assert set(browser.jar) == {LOGIN}, "the anonymous cookie is gone"
    thief = Browser()
    thief.jar = stolen
    thief.ask(farm.server("two"), dict)
    assert thief.told == {}, "the old session died with the login"
    browser.ask(farm.server("two"), lambda session: (session.user, session["n"]))
    assert browser.told == ("ada", 1)
    loot = dict(browser.jar)
    browser.ask(farm.server("two"), lambda session: session.close())
    assert browser.jar == {}
    thief.jar = loot
    thief.ask(farm.server(), dict)
    assert thief.told == {}


def test_what_cannot_be_stored_is_an_error_and_the_error_page_may_pass(farm: Farm) -> None:
    browser = Browser()
    browser.ask(farm.server(), count)
    server = farm.server()
    opened = server.open(browser.header)
    opened.session["bad"] = 1j
    with pytest.raises(SessionDataError):
        server.finish(opened)
    assert server.finish(opened, 500).status == 500
    server.end(opened)
    browser.ask(server, dict)
    assert browser.told == {"n": 1}


def test_a_request_that_failed_keeps_nothing_but_a_logout(farm: Farm) -> None:
    browser = Browser()
    browser.ask(farm.server(), count)
    assert browser.ask(farm.server(), count, 500).cookies == []
    browser.ask(farm.server("two"), dict)
    assert browser.told == {"n": 1}
    browser.ask(farm.server(), lambda session: session.close(), 500)
    assert COOKIE not in browser.jar


def test_each_step_is_taken_once_and_in_its_order(farm: Farm) -> None:
    server, browser = farm.server(), Browser()
    browser.ask(server, count)
    opened = server.open(browser.header)
    with pytest.raises(CoatcheckError, match="end: this request should be finished, and is open"):
        server.end(opened)
    opened.session["n"] = 2
    server.finish(opened)
    with pytest.raises(CoatcheckError, match="finish: this request should be open, and is finished"):
        server.finish(opened)
    server.end(opened)
    server.end(opened)
    with pytest.raises(CoatcheckError, match="finish: this request should be open, and is ended"):
        server.finish(opened)
    browser.ask(server, dict)
    assert browser.told == {"n": 2}, "and nothing was emptied by the mistakes"


def test_what_is_changed_while_the_body_leaves_is_stored_but_needs_no_cookie(farm: Farm) -> None:
    server, browser = farm.server(), Browser()
    browser.ask(server, count)
    opened = server.open(browser.header)
    count(opened.session)
    browser.keep(server.finish(opened))
    opened.session["late"] = True
    server.end(opened)
    browser.ask(farm.server("two"), dict)
    assert browser.told == {"n": 2, "late": True}
    opened = server.open(browser.header)
    server.finish(opened)
    opened.session.regenerate("ada")
    with pytest.raises(CoatcheckError, match="while the response is streamed"):
        server.end(opened)


def test_a_change_that_comes_after_a_logout_is_refused(farm: Farm) -> None:
    server, browser = farm.server(), Browser()
    browser.ask(server, count)
    late = server.open(browser.header)
    count(late.session)
    browser.ask(server, lambda session: session.close())
    answer = server.finish(late)
    assert (answer.status, answer.cookies) == (409, [])
    assert header_of(answer, b"cache-control") == b"no-store"
    assert "closed" in answer.refused
    server.end(late)
    with pytest.raises(CoatcheckError, match="is ended"):
        server.finish(late, 500)


def test_too_many_new_sessions_of_one_client_are_refused(farm: Farm) -> None:
    server = farm.server("counting", newcomers=Newcomers(2, 60.0))
    statuses = [Browser().ask(server, count).status for _ in range(4)]
    assert statuses == [200, 200, 429, 429]
    refused = Browser().ask(server, count)
    assert header_of(refused, b"retry-after") == b"1"
    assert server.sessions.status()["refused_new_sessions"] == 3


def test_operators_see_find_and_close_sessions(farm: Farm) -> None:
    server, browser, other = farm.server(), Browser(), Browser()
    browser.ask(server, lambda session: session.regenerate("ada"))
    other.ask(server, count)
    key, others = (server.open(each.header).key for each in (browser, other))
    assert key is not None and others is not None
    listed = {bytes.fromhex(info.key): info for info in server.operate("list_sessions")}
    assert (listed[key].user, listed[key].state, listed[others].user) == ("ada", "live", None)
    assert len(server.operate("list_sessions", 1)) == 1
    assert server.operate("find", listed[key].id) == key
    assert server.operate("find", "0" * 12) is None
    assert server.operate("show", others).data == {"n": 1}
    assert server.operate("show", key, False).data is None
    assert server.operate("close_key", key).holds == 1
    browser.ask(server, lambda session: (session.user, session.is_new))
    assert browser.told == (None, True)
    other.ask(server, count)
    assert other.told == 2, "and nobody else's"


def test_keys_are_changed_while_it_runs(farm: Farm) -> None:
    server, browser, late = farm.server(ring=KeyRing(RING)), Browser(), Browser()
    browser.ask(server, count)
    fresh = os.urandom(32)
    server.operate("change_keys", [*RING, fresh], 1)
    browser.ask(server, lambda session: session.rotate())
    late.ask(server, count)
    server.operate("change_keys", [fresh], 0)
    for one in (browser, late):
        one.ask(server, count)
        assert one.told == 2
    with pytest.raises(ConfigError):
        server.operate("change_keys", [], 0)


def test_what_cannot_be_run_any_more_is_refused(farm: Farm, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its web server is closed while the response starts."""
    server, browser = farm.server(), Browser()
    browser.ask(server, count)
    opened = server.open(browser.header)
    count(opened.session)
    with monkeypatch.context() as closing:
        closing.setattr(server.sessions, "_driver", None)
        answer = server.finish(opened)
    assert (answer.status, answer.cookies) == (503, [])
    assert header_of(answer, b"retry-after") == b"1"
    assert header_of(answer, b"cache-control") == b"no-store"
    server.end(opened)
    with pytest.raises(CoatcheckError, match="is ended"):
        server.finish(opened, 500)
    browser.ask(server, dict)
    assert browser.told == {"n": 1}, "it was not stored"


def test_a_cookie_that_is_none_of_ours_opens_a_fresh_session(farm: Farm) -> None:
    browser = Browser()
    browser.jar = {COOKIE: "x" * 116, LOGIN: "AAAA"}
    browser.ask(farm.server(), lambda session: session.is_new)
    assert browser.told is True


def test_closed_it_can_be_opened_again(farm: Farm) -> None:
    server, browser = farm.server(), Browser()
    browser.ask(server, count)
    if farm._driver is DRIVERS["threads"]:
        server.close()
    else:
        server._runner.run(server.sessions.aclose())  # type: ignore[union-attr]
    browser.ask(server, count)
    assert browser.told == 2
