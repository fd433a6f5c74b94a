"""A7: "Elapsed time between the timestamp and the server's clock, against a maximum, decides whether the session
timed out." """

from __future__ import annotations

import asyncio
import time

import pytest

from coatcheck.sessions.policy import SessionPolicy

from .conftest import StartFarm
from .mission_farm import Browser, MissionFarm, show
from .own_clock import own_clock
from .strict_mode import STRICT

STRICT_POLICY = SessionPolicy(rotate_after_ms=0, grace_ms=0, theft="refuse", idle_timeout_ms=10_000)
DEFAULT_POLICY = SessionPolicy(idle_timeout_ms=10_000)
MAXIMUM_MS = 10_000 + 10_000 // 8 + 5_000
"""The idle timeout, how much staler than the last activity its stored time may be, and the leeway (protocol 7)."""

IDLE_S = 1.0
FARM_MAXIMUM_S = IDLE_S * 9 / 8 + 5.0


@pytest.mark.parametrize("policy", [STRICT_POLICY, DEFAULT_POLICY], ids=["strict", "default"])
def test_one_millisecond_decides(policy: SessionPolicy) -> None:
    async def story() -> None:
        async with own_clock(policy) as clock:
            token = await clock.create()
            assert token.timestamp == clock.now_ms
            clock.now_ms = token.timestamp + MAXIMUM_MS - 1
            session = await clock.open(token)
            assert session == {"cart": "tea"}
            clock.now_ms += 1
            assert await clock.open(token) is None

    asyncio.run(story())


@pytest.mark.parametrize("policy", [STRICT_POLICY, DEFAULT_POLICY], ids=["strict", "default"])
def test_use_puts_the_idle_timeout_off_but_never_the_absolute_one(policy: SessionPolicy) -> None:
    async def story() -> int:
        async with own_clock(policy) as clock:
            token = await clock.create()
            created_at = token.timestamp
            while (session := await clock.open(token)) is not None:
                assert session == {"cart": "tea"}
                assert clock.now_ms - created_at < policy.absolute_timeout_ms + MAXIMUM_MS, "it has no end"
                token = await clock.use(token)
                clock.now_ms += MAXIMUM_MS * 9 // 10
            return clock.now_ms - created_at

    lived_ms = asyncio.run(story())
    assert policy.absolute_timeout_ms <= lived_ms < policy.absolute_timeout_ms + MAXIMUM_MS


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "2", "--idle-timeout", f"{IDLE_S:g}s", *STRICT)


def test_a_session_left_alone_for_too_long_times_out_on_every_web_server(farm: MissionFarm) -> None:
    with Browser(farm) as busy, Browser(farm) as patient, Browser(farm) as gone:
        for browser in (busy, patient, gone):
            browser.put("cart", "tea")
        began = time.monotonic()
        in_time = 0
        while (elapsed_s := time.monotonic() - began) < FARM_MAXIMUM_S + 0.5:
            time.sleep(0.75)
            assert busy.read()["data"] == {"cart": "tea"}, "its token's timestamp is never old"
            if elapsed_s > FARM_MAXIMUM_S / 2 and not in_time:
                in_time += 1
                assert patient.read()["data"] == {"cart": "tea"}, "half the maximum has elapsed"
        assert in_time == 1
        assert patient.read()["data"] == {"cart": "tea"}, "elapsed time counts from its last response"
        elapsed_s = time.time() - gone.token.timestamp / 1000
        assert elapsed_s >= FARM_MAXIMUM_S
        for server in farm.names("web"):
            assert show(farm, gone.cookie, server).json()["data"] == {}, f"timed out, at {server} too"
        assert gone.read()["data"] == {}
