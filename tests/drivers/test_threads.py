"""Sessions for threads: many at once on real session servers, kill -9 of one, forks, the end of a process."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

import coatcheck.errors
from coatcheck import Answer, CoatcheckError, ConfigError, SessionMiddleware, SessionUnavailable, connect
from coatcheck.drivers import background_thread
from coatcheck.drivers import threads as driver
from coatcheck.drivers.sessions import Sessions
from coatcheck.drivers.threads import ThreadedSessions
from coatcheck.errors import UnavailableReason
from coatcheck.events import Event
from coatcheck.replication.stall_guard import StallGuard
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import Store
from coatcheck.stores.session_server_store import SessionServerStore
from coatcheck.stores.valkey import ValkeyStore
from coatcheck.tokens.keyring import KeyRing
from contracts.store_backends import PASSWORD, NetworkedBackend, RedisBackend, SessionServerBackend
from session_drivers import Browser, OnThreads, reachable

KEY = "AbcdEfgh0123_-AbcdEfgh0123_-AbcdEfgh0123_-A"
RING = [os.urandom(32)]
THREADS = 16
TIMEOUT_S = 1.0
SERVERS: dict[str, type[NetworkedBackend]] = {"session-server": SessionServerBackend, "redis": RedisBackend}


def store(name: str, server: NetworkedBackend) -> Store:
    if isinstance(server, RedisBackend):
        url = f"redis://:{PASSWORD.replace(' ', '%20')}@127.0.0.1:{server.port}?db=1"
        return ValkeyStore(name, url, farm="test", timeout_s=TIMEOUT_S)
    return SessionServerStore(name, "127.0.0.1", server.port, password=PASSWORD, timeout_s=TIMEOUT_S)


@pytest.fixture(params=list(SERVERS))
def two(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[list[NetworkedBackend]]:
    servers = [SERVERS[request.param](tmp_path) for _ in range(2)]
    for each in servers:
        each.start()
    yield servers
    for each in servers:
        each.stop()


def on_threads(servers: list[NetworkedBackend], name: str = "web") -> OnThreads:
    def stores() -> list[Store]:
        return [store(f"session-{number}", each) for number, each in enumerate(servers)]

    made = OnThreads(Sessions(farm="farm", server_name=name, stores=stores, ring=KeyRing(RING)))
    made.open()
    reachable(made.sessions, len(servers))
    return made


def in_memory(**options: Any) -> ThreadedSessions:
    def stores() -> list[Store]:
        return [MemoryStore("memory", time.monotonic)]

    return ThreadedSessions(Sessions(farm="farm", server_name="web", stores=stores, ring=KeyRing(RING), **options))


def putting(name: str, value: int) -> Any:
    return lambda session: session.__setitem__(name, value)


def count(session: Any) -> int:
    session["n"] = session.get("n", 0) + 1
    return int(session["n"])


# -- many threads ----------------------------------------------------------------------------------


def test_many_threads_write_one_session_and_many_and_nothing_acknowledged_is_lost(two: list[NetworkedBackend]) -> None:
    """Each thread sets keys of its own in a session that all share, and counts in one of its own."""
    server, shared = on_threads(two), Browser()
    try:
        shared.ask(server, count)

        def work(number: int) -> Browser:
            own = Browser()
            for step in range(12):
                tab = Browser()
                tab.jar = dict(shared.jar)
                assert tab.ask(server, putting(f"{number}-{step}", step)).status == 200
                assert own.ask(server, count).status == 200
                assert own.told == step + 1
            return own

        with ThreadPoolExecutor(THREADS) as pool:
            browsers = list(pool.map(work, range(THREADS)))
        other = on_threads(two, "another")
        try:
            shared.ask(other, dict)
            assert shared.told == {"n": 1} | {f"{n}-{step}": step for n in range(THREADS) for step in range(12)}
            for browser in browsers:
                browser.ask(other, dict)
                assert browser.told == {"n": 12}
        finally:
            other.close()
    finally:
        server.close()


def test_kill_9_of_a_session_server_meanwhile_refuses_nobody_and_loses_nothing(two: list[NetworkedBackend]) -> None:
    server = on_threads(two)
    killed = threading.Event()
    try:

        def work(number: int) -> Browser:
            browser = Browser()
            step = 0
            after = 0
            while after < 5:
                after += killed.is_set()
                step += 1
                answer = browser.ask(server, count)
                assert (answer.status, answer.refused) == (200, "")
                assert browser.told == step
            return browser

        with ThreadPoolExecutor(THREADS) as pool:
            working = [pool.submit(work, number) for number in range(THREADS)]
            time.sleep(0.3)
            two[0].kill()
            killed.set()
            browsers = [each.result() for each in working]
        for browser in browsers:
            counted = browser.told
            browser.ask(server, dict)
            assert browser.told == {"n": counted}
    finally:
        server.close()


def test_a_hosted_read_asks_no_other_thread(two: list[NetworkedBackend], monkeypatch: pytest.MonkeyPatch) -> None:
    server, browser = on_threads(two), Browser()
    try:
        browser.ask(server, count)
        handed_over: list[Any] = []
        background = server.threaded._background
        assert background is not None
        run = background.run
        monkeypatch.setattr(background, "run", lambda one, **how: handed_over.append(one) or run(one, **how))
        for _ in range(200):
            browser.ask(server, dict)
            assert browser.told == {"n": 1}
        assert len(handed_over) < 20, "only when the lease was over, or the heart-beat late"
    finally:
        server.close()


def test_after_a_stall_the_heart_beat_comes_before_anybody_is_served(two: list[NetworkedBackend]) -> None:
    """What other web servers have said meanwhile is still unread: no cached session is served before that."""
    server, browser = on_threads(two), Browser()
    try:
        browser.ask(server, count)
        guard = server.sessions._stall_guard
        assert guard is not None
        assert server.sessions.beats()
        background = server.threaded._background
        assert background is not None
        with background.lock:  # the background thread cannot run
            time.sleep(StallGuard.STALL_S + StallGuard.BEAT_S)
            assert not server.sessions.beats()
        before = guard.stalls
        browser.ask(server, dict)
        assert guard.stalls == before + 1
        assert browser.told == {"n": 1}
    finally:
        server.close()


def test_who_waited_for_a_stall_to_end_is_not_served_before_the_heart_beat(two: list[NetworkedBackend]) -> None:
    """The background thread itself stands still, with the lock: whoever asks meanwhile waits for it."""
    server, browser = on_threads(two), Browser()
    try:
        browser.ask(server, count)
        background = server.threaded._background
        assert background is not None
        handed_over: list[Any] = []
        run = background.run
        background.run = lambda one, **how: handed_over.append(one) or run(one, **how)  # type: ignore[assignment]
        background.loop.call_soon_threadsafe(time.sleep, StallGuard.STALL_S + 2 * StallGuard.BEAT_S)
        time.sleep(StallGuard.BEAT_S)
        assert server.sessions.beats(), "nobody has noticed yet"
        browser.ask(server, dict)
        assert handed_over, "the session servers were asked"
        assert browser.told == {"n": 1}
    finally:
        server.close()


# -- what cannot work is said ------------------------------------------------------------------------


def test_on_an_event_loop_there_is_a_clear_error_also_for_what_is_hosted() -> None:
    sessions, browser = in_memory(), Browser()
    server = OnThreads(sessions._sessions)
    browser.ask(server, count)

    async def story() -> None:
        with pytest.raises(CoatcheckError, match="would block this event loop"):
            server.open(browser.header)

    asyncio.run(story())
    server.close()
    with pytest.raises(ConfigError, match="driver: choose one of asyncio, threads"):
        connect("memory://", key=KEY, driver="gevent")  # type: ignore[call-overload]
    with pytest.raises(ConfigError, match="sessions: of threads"):
        SessionMiddleware(lambda *_: None, connect("memory://", key=KEY, driver="threads"))  # type: ignore[arg-type]


def test_threads_that_gevent_has_replaced_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkey = ModuleType("gevent.monkey")
    monkey.is_module_patched = {"threading": True}.get  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gevent.monkey", monkey)
    with pytest.raises(CoatcheckError, match="has replaced them"):
        in_memory().open()


def test_a_request_of_other_sessions_is_refused() -> None:
    one, other = in_memory(), in_memory()
    opened = one.open()
    with pytest.raises(CoatcheckError, match="opened by other sessions"):
        other.finish(opened)
    one.close()
    other.close()


def test_an_observer_may_look_but_not_wait() -> None:
    told: list[object] = []

    def observe(event: Event) -> None:
        try:
            told.append(sessions.status()["sessions"])
            sessions._background and sessions._background.run(asyncio.sleep(0))
        except CoatcheckError as error:
            told.append(error)

    sessions = in_memory(observer=observe)
    opened = sessions.open(b"__Host-coatcheck=forged")  # is reported by the thread that asks
    assert opened.session.is_new
    count(opened.session)
    sessions.finish(opened)  # is reported by the background thread
    assert [type(each) for each in told] == [int, CoatcheckError] * 2
    sessions.close()


class Mute(MemoryStore):
    """Takes a put and never says so."""

    def put(self, *arguments: Any) -> None:
        """Nothing."""


def test_no_thread_waits_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_thread, "LONGEST_WAIT_S", 0.3)
    sessions = ThreadedSessions(
        Sessions(farm="farm", server_name="web", stores=lambda: [Mute("mute", time.monotonic)], ring=KeyRing(RING))
    )
    opened = sessions.open()
    count(opened.session)
    began = time.monotonic()
    answer = sessions.finish(opened)
    assert (answer.status, answer.cookies, answer.refused) == (503, [], UnavailableReason.TIMED_OUT.value)
    sessions.end(opened)
    with pytest.raises(SessionUnavailable) as unavailable:
        sessions.close_key(b"k" * 16)
    assert unavailable.value.reason is UnavailableReason.TIMED_OUT
    assert time.monotonic() - began < 10
    sessions.close()


def test_who_waits_while_it_is_closed_is_refused_and_the_next_request_begins_anew() -> None:
    sessions = ThreadedSessions(
        Sessions(farm="farm", server_name="web", stores=lambda: [Mute("mute", time.monotonic)], ring=KeyRing(RING))
    )
    opened = sessions.open()
    count(opened.session)
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sessions.finish, opened)
        time.sleep(0.2)
        sessions.close()
        answer = waiting.result(30)
    assert (answer.status, answer.refused) == (503, UnavailableReason.STOPPING.value)
    assert sessions.open().session.is_new
    sessions.close()
    sessions.close()


class SlowToClose(MemoryStore):
    """Takes its time to be released."""

    async def aclose(self) -> None:
        await asyncio.sleep(0.3)
        await super().aclose()


def test_a_request_that_comes_while_it_is_closed_begins_anew() -> None:
    sessions = ThreadedSessions(
        Sessions(farm="farm", server_name="web", stores=lambda: [SlowToClose("s", time.monotonic)], ring=KeyRing(RING))
    )
    sessions.open()
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(sessions.close)
        while sessions._background is not None:
            time.sleep(0.001)
        assert sessions.open().session.is_new
        closing.result(30)
    sessions.close()


def test_who_still_asks_a_background_thread_that_ends_is_refused() -> None:
    inner = Sessions(
        farm="farm", server_name="web", stores=lambda: [SlowToClose("s", time.monotonic)], ring=KeyRing(RING)
    )
    sessions = ThreadedSessions(inner)
    opened = sessions.open()
    count(opened.session)
    background = sessions._background
    assert background is not None
    with background.lock:
        saving = inner.requests.finish(opened, 200, ())
        assert not isinstance(saving, Answer)
    with ThreadPoolExecutor(1) as pool:
        closing = pool.submit(sessions.close)
        while inner._driver is not None:
            time.sleep(0.001)
        with pytest.raises(SessionUnavailable) as unavailable:
            background.run(inner.run_for(opened, saving))
        closing.result(30)
    assert unavailable.value.reason is UnavailableReason.STOPPING


def test_who_waits_beside_too_many_others_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background_thread, "MAX_WAITING", 1)
    sessions = ThreadedSessions(
        Sessions(farm="farm", server_name="web", stores=lambda: [Mute("mute", time.monotonic)], ring=KeyRing(RING))
    )
    first, second = sessions.open(), sessions.open()
    for opened in (first, second):
        count(opened.session)
    background = sessions._background
    assert background is not None
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(sessions.finish, first)
        while not background._calls:
            time.sleep(0.001)
        answer = sessions.finish(second)
        assert (answer.status, answer.refused) == (503, UnavailableReason.CONTENDED.value)
        sessions.close()
        assert waiting.result(30).status == 503


# -- processes -----------------------------------------------------------------------------------------


def in_a_child(act: Any) -> None:
    """Run ``act`` in a fork of this process; it must not fail."""
    child = os.fork()
    if not child:
        status = 1
        try:
            act()
            status = 0
        except BaseException:  # noqa: BLE001 - the child must not go on with the parent's tests
            traceback.print_exc()
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0


def test_a_fork_while_sessions_are_closed_gives_every_lock_back() -> None:
    sessions = in_memory()
    sessions.open()
    background = sessions._background
    assert background is not None
    with ThreadPoolExecutor(2) as pool:
        with background.lock:
            forking = pool.submit(lambda: (driver._before_fork(), driver._after_fork_in_parent()))
            while not driver._forking.locked():
                time.sleep(0.001)
            time.sleep(0.05)  # it waits for the lock
            closing = pool.submit(sessions.close)
            while sessions._background is not None:
                time.sleep(0.001)
        forking.result(10)
        closing.result(10)
    assert not driver._forking.locked()


def test_forked_workers_are_web_servers_of_their_own(two: list[NetworkedBackend]) -> None:
    """Forked while the background thread works, as gunicorn forks after ``--preload``."""
    server, browser = on_threads(two), Browser()
    try:
        browser.ask(server, count)
        parents = server.sessions.server_id

        def child(expected: int) -> None:
            assert server.threaded._background is None
            browser.ask(server, count)
            assert browser.told == expected
            assert server.sessions.server_id != parents
            with ThreadPoolExecutor(4) as pool:
                assert [one.status for one in pool.map(lambda n: Browser().ask(server, count), range(8))] == [200] * 8
            server.close()

        stop = threading.Event()

        def busy() -> None:
            while not stop.is_set():
                Browser().ask(server, count)

        with ThreadPoolExecutor(2) as pool:
            working = [pool.submit(busy) for _ in range(2)]
            try:
                for expected in (2, 3):
                    in_a_child(partial(child, expected))
            finally:
                stop.set()
            for each in working:
                each.result()
        assert server.sessions.server_id == parents
        browser.ask(server, count)
        assert browser.told == 4
    finally:
        server.close()


LAST_WORDS = """
import sys
from coatcheck import CookiePolicy, connect
sessions = connect("sqlite:///" + sys.argv[1], key=sys.argv[2], driver="threads", durability="async")
opened = sessions.open()
opened.session["n"] = 1
answer = sessions.finish(opened)
opened = sessions.open(answer.cookies[0][1].partition(b";")[0])
opened.session["n"] = 2
sessions.finish(opened)
print(answer.cookies[0][1].partition(b";")[0].decode())
"""


def test_a_process_that_ends_settles_what_it_has_acknowledged(tmp_path: Path) -> None:
    """And ends: the background thread keeps no process alive."""
    file = tmp_path / "sessions.db"
    environment = os.environ | {"PYTHONPATH": str(Path(coatcheck.errors.__file__).parents[1])}
    command = [sys.executable, "-c", LAST_WORDS, str(file), KEY]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True, env=environment)
    assert ended.stderr == ""
    sessions = connect(f"sqlite:///{file}", key=KEY, driver="threads")
    opened = sessions.open(ended.stdout.strip().encode())
    assert opened.session == {"n": 2}
    sessions.close()
