"""A3: "A new token has a new session ID and an updated timestamp." """

from __future__ import annotations

import time

import pytest

from .conftest import StartFarm
from .mission_farm import Browser, MissionFarm, new_cookie, show
from .strict_mode import STRICT

RESPONSES = 12
TICK_S = 0.005
CLOCKS_MS = 2000
"""A timestamp is the farm's time, which is that of most of its clocks within two seconds (protocol section 8)."""


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "2", *STRICT)


def test_each_response_brings_a_new_id_and_a_later_timestamp(farm: MissionFarm) -> None:
    with Browser(farm) as browser:
        browser.put("cart", "tea")
        tokens, cookies = [browser.token], [browser.cookie]
        for number in range(RESPONSES):
            time.sleep(TICK_S)
            asked_at = time.time_ns() // 1_000_000
            if number % 2:
                browser.put("n", number)
            else:
                browser.read()
            tokens.append(browser.token)
            cookies.append(browser.cookie)
            answered_at = time.time_ns() // 1_000_000
            stamp = tokens[-1].timestamp
            assert asked_at - CLOCKS_MS <= stamp <= answered_at + CLOCKS_MS, "it is the time of this response"
    assert len({token.session_id for token in tokens}) == RESPONSES + 1
    assert len(set(cookies)) == RESPONSES + 1
    assert {token.key for token in tokens} == {tokens[0].key}
    stamps = [token.timestamp for token in tokens]
    assert stamps == sorted(set(stamps)), "each is later than the one before"


def test_also_when_the_web_servers_take_turns(farm: MissionFarm) -> None:
    with Browser(farm, "web-1") as browser:
        browser.put("cart", "tea")
        cookie, tokens = browser.cookie, [browser.token]
    for number in range(6):
        time.sleep(TICK_S)
        response = show(farm, cookie, ("web-2", "web-1")[number % 2])
        assert response.json()["data"] == {"cart": "tea"}
        following = new_cookie(response)
        assert following is not None
        cookie = following
        tokens.append(farm.codec.open(cookie.encode()))
    assert len({token.session_id for token in tokens}) == 7
    stamps = [token.timestamp for token in tokens]
    assert stamps == sorted(set(stamps)), "each is later, though the clocks of two web servers are not one"


def test_by_default_a_token_lives_longer_than_a_response(start: StartFarm) -> None:
    relaxed = start("--web", "1", "--session-servers", "1", "--copies", "1", "--rotate-after", "3s")
    with Browser(relaxed) as browser:
        browser.put("cart", "tea")
        browser.read()  # The first return is remembered: a new session gets its normal life.
        first = browser.token
        browser.read()
        assert browser.token == first
        time.sleep(3.1)
        browser.read()
        second = browser.token
    assert second.session_id != first.session_id
    assert second.timestamp >= first.timestamp + 3000
