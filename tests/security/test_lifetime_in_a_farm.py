"""Lifetime checks in a farm of real processes, by their numbers in OWASP ASVS 5.0 (7.1, 7.3, 7.4, 7.5, 9.2.1).

Sessions of the first farm live for seconds. Its tests wait, so their stories are told together. Whatever waits too long
on a busy machine can only be later than a deadline, never before one.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from coatcheck import resp
from coatcheck.events import public_id
from farm.farm_process import eventually
from tls.conftest import PASSWORD, session_server_url

from .conftest import StartRealFarm
from .real_farm import Answer, Browser, RealFarm, shopper

__all__ = ["session_server_url"]

IDLE_S, ABSOLUTE_S = 2.0, 12.0
LEEWAY_S = 5.0
SLACK_S = IDLE_S / 8 + LEEWAY_S
"""Idle is judged at idle + one touch + leeway."""
EMPTY: dict[str, int] = {}
NOBODY = {"user": None, "data": {}, "lost": None}

Outcomes = dict[str, BaseException | None]
Story = Callable[[RealFarm], Awaitable[None]]


def records(farm: RealFarm, event: str) -> list[str]:
    return [str(record["session"]) for record in farm.audit() if record["event"] == event]


async def idle_sessions_end(farm: RealFarm) -> None:
    """7.3.1, 9.2.1: by the server's clock, whatever the browser says of the time; and for good."""
    browser = await shopper(farm)
    await browser.get(2)
    session = public_id(browser.token().key)
    await asyncio.sleep(IDLE_S + SLACK_S + 0.5)
    said = {"date": "Fri, 21 Nov 2025 00:00:00 GMT", "age": "0", "if-modified-since": "Fri, 21 Nov 2025 00:00:00 GMT"}
    for server in (1, 2, 1):
        assert (await browser.send(server, "GET", **said)).data == EMPTY
    assert session in records(farm, "session.expired")
    assert (await browser.send(2, "POST", "/put")).data == {"n": 1}, "a session of its own"


async def lived_s(ask: Callable[[], Awaitable[Answer]], most_s: float) -> tuple[float, bool]:
    """How long it was until an answer had a smaller ``n`` than the one before, ``most_s`` if none had; and whether the
    session was ever left alone for too long, by a machine that had no time for this test."""
    began = asked = time.monotonic()
    last, alone = 0, False
    while asked - began < most_s:
        found = (await ask()).data.get("n", 0)
        alone = alone or time.monotonic() - asked > IDLE_S
        if found < last:
            return time.monotonic() - began, alone
        last = found
        await asyncio.sleep(IDLE_S / 4)
        alone = alone or time.monotonic() - asked > IDLE_S
        asked = time.monotonic()
    return most_s, alone


async def use_keeps_a_session(farm: RealFarm) -> None:
    """7.3.1: as long as it is used more often than the idle timeout; reading is use."""
    browser = await shopper(farm)
    lived, alone = await lived_s(lambda: browser.get(1), IDLE_S + SLACK_S + 1)
    assert lived == IDLE_S + SLACK_S + 1 or alone


async def no_session_outlives_the_absolute_timeout(farm: RealFarm) -> None:
    """7.3.2: however active, and however often its token is replaced."""
    browser = Browser(farm)
    lived, alone = await lived_s(lambda: browser.put(1), ABSOLUTE_S + LEEWAY_S + 60)
    assert lived < ABSOLUTE_S + LEEWAY_S + 60, "it goes on and on"
    assert lived > ABSOLUTE_S - 0.1 or alone, "and does not end before that"


async def logging_in_again_does_not_lengthen_it(farm: RealFarm) -> None:
    """7.3.2: a new token for the same user is still the old session; its data is gone when its time is over."""
    browser = await shopper(farm)
    await browser.post(1, "/login?user=ada")
    lived, _ = await lived_s(lambda: browser.post(2, "/login?user=ada"), ABSOLUTE_S + LEEWAY_S + 60)
    assert lived < ABSOLUTE_S + LEEWAY_S + 60, "it goes on and on"


TIMED: dict[str, Story] = {
    story.__name__: story
    for story in (
        idle_sessions_end, use_keeps_a_session, no_session_outlives_the_absolute_timeout,
        logging_in_again_does_not_lengthen_it,
    )
}  # fmt: skip


@pytest.fixture(scope="module")
def outcomes(start_farm: StartRealFarm) -> Outcomes:
    times = ("--idle-timeout", f"{IDLE_S:g}s", "--absolute-timeout", f"{ABSOLUTE_S:g}s", "--rotate-after", "1s")
    farm = start_farm(*times)

    async def all_of_them() -> list[BaseException | None]:
        with farm.connected():
            return await asyncio.gather(*(story(farm) for story in TIMED.values()), return_exceptions=True)

    return dict(zip(TIMED, asyncio.run(all_of_them()), strict=True))


@pytest.mark.parametrize("name", TIMED)
def test_7_3(name: str, outcomes: Outcomes) -> None:
    if (wrong := outcomes[name]) is not None:
        raise wrong


@pytest.fixture(scope="module")
def farm(start_farm: StartRealFarm) -> RealFarm:
    return start_farm("--sessions-per-user", "3")


def run(farm: RealFarm, story: Callable[[], Awaitable[None]]) -> None:
    async def tell() -> None:
        with farm.connected():
            await story()

    asyncio.run(tell())


async def logged_in(farm: RealFarm, user: str, count: int = 1) -> list[Browser]:
    browsers = [Browser(farm) for _ in range(count)]
    for browser in browsers:
        assert (await browser.post(1, f"/login?user={user}")).status == 200
    return browsers


async def users(browsers: list[Browser]) -> list[str | None]:
    """Who each of them is, on both web servers."""
    found = []
    for browser in browsers:
        first, second = [(await browser.send(server, "GET")).user for server in (1, 2)]
        assert first == second
        found.append(first)
    return found


@pytest.mark.parametrize("out_at", [1, 2])
def test_7_4_1_after_a_logout_the_token_is_dead_on_every_server(out_at: int, farm: RealFarm) -> None:
    async def story() -> None:
        [browser] = await logged_in(farm, "grace")
        await browser.get(2)
        stale = browser.copy()
        assert (await browser.post(out_at, "/logout")).cookies[farm.login_cookie] == ""
        for server in (1, 2, 1):
            answer = await stale.send(server, "GET")
            assert answer.body == NOBODY
            assert not [name for name in answer.cookies if not name.endswith("-route")], "dead tokens mint nothing"
            assert (await stale.send(server, "POST", "/put")).data == {"n": 1}, "a session of its own"

    run(farm, story)


def test_7_4_2_all_sessions_of_a_user_are_ended_by_an_operator(farm: RealFarm) -> None:
    """Where an account is disabled or deleted."""

    async def story() -> None:
        hers, his = await logged_in(farm, "linus", 2), await logged_in(farm, "bob")
        done = await asyncio.to_thread(farm.farm.run, "sessions", "close", "--user", "linus")
        assert (done.returncode, done.stdout) == (0, "2 sessions closed\n")
        assert await users(hers + his) == [None, None, "bob"]

    run(farm, story)


def test_7_4_3_a_user_ends_all_other_sessions(farm: RealFarm) -> None:
    """After a change of password: POST alone, and this very session stays."""

    async def story() -> None:
        devices, stranger = await logged_in(farm, "joan", 3), await logged_in(farm, "eve")
        assert (await devices[1].post(2, "/close-others")).body == {"closed": 2}
        assert await users(devices + stranger) == [None, "joan", None, "eve"]

    run(farm, story)


def test_7_5_2_users_see_their_own_sessions_and_end_one(farm: RealFarm) -> None:
    async def story() -> None:
        devices, [stranger] = await logged_in(farm, "alan", 2), await logged_in(farm, "mallory")
        listed = (await devices[0].get(2, "/devices")).body
        assert [one["this"] for one in listed] == [True, False]
        [other] = [one["id"] for one in listed if not one["this"]]
        assert len((await stranger.get(1, "/devices")).body) == 1, "nobody sees another's"
        assert (await stranger.post(1, f"/close-device?id={other}")).body == {"closed": False}
        assert (await Browser(farm).send(1, "GET", "/devices")).body == []
        assert await users(devices) == ["alan", "alan"], "nobody ends another's"
        assert (await devices[0].post(1, f"/close-device?id={other}")).body == {"closed": True}
        assert await users(devices) == ["alan", None]

    run(farm, story)


def test_7_1_2_a_user_has_no_more_sessions_than_are_allowed(farm: RealFarm) -> None:
    """The documented default at the limit: the oldest goes. Logins at once pass it no more than others."""

    async def story() -> None:
        devices = await logged_in(farm, "ken", 4)
        assert await users(devices) == [None, "ken", "ken", "ken"]
        crowd = [Browser(farm) for _ in range(6)]
        answers = await asyncio.gather(
            *(one.post(1 + at % 2, "/login?user=dennis") for at, one in enumerate(crowd)), return_exceptions=True
        )
        assert not [each for each in answers if isinstance(each, BaseException)]
        assert (await users(crowd)).count("dennis") <= 3

    run(farm, story)


def test_7_4_5_all_sessions_of_everybody_are_ended_by_an_operator(farm: RealFarm) -> None:
    async def story() -> None:
        known, anonymous = await logged_in(farm, "ada", 2), await shopper(farm)
        done = await asyncio.to_thread(farm.farm.run, "sessions", "close", "--all")
        assert (done.returncode, done.stdout) == (0, "closed, all sessions of everybody\n")
        assert await users(known) == [None, None]
        for server in (1, 2):
            assert (await anonymous.send(server, "GET")).data == EMPTY
        listed = await asyncio.to_thread(farm.farm.run, "sessions", "ls", "--json")
        assert [row for row in json.loads(listed.stdout) if row["state"] == "live"] == []
        [again] = await logged_in(farm, "ada")
        assert await users([again]) == ["ada"], "who logs in afterwards stays"

    run(farm, story)


def test_7_1_1_timeouts_are_documented_and_a_wrong_one_is_refused(farm: RealFarm) -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    for setting in (
        "idle_timeout",
        "absolute_timeout",
        "rotate_after",
        "grace",
        "sessions_per_user",
        "at_session_limit",
    ):
        assert f"`{setting}`" in page
        flag = "--" + setting.replace("_", "-")
        done = farm.farm.run("serve", "checked:app", flag, "-1")
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1, done.stderr
        assert setting in done.stderr or flag in done.stderr


def test_14_2_7_what_has_expired_goes_though_nobody_asks(session_server_url: str) -> None:
    """An entry that a web server gave a second to live, on a session server of our own."""
    port = int(session_server_url.rpartition(":")[2])
    entry = b"\x01\x00" + b"\x00\x00\x00\x01" + b"server.." + b"\x00\x00\x00\x01" + b"\x00body"
    with socket.create_connection(("127.0.0.1", port), timeout=60) as connection:
        answers = connection.makefile("rb")

        def ask(*words: bytes) -> bytes:
            connection.sendall(resp.command(*words))
            return answers.readline()

        assert ask(b"AUTH", PASSWORD.encode()) == b"+OK\r\n"
        before = ask(b"DBSIZE")
        assert ask(b"CC.PUT", os.urandom(16), b"", b"1000", entry)[:1] != b"-"
        assert ask(b"DBSIZE") == b":%d\r\n" % (int(before[1:]) + 1)
        eventually(lambda: ask(b"DBSIZE") == before, "the end of the entry")
