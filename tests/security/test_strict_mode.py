"""Strict mode (rotate after 0, grace 0, theft ``refuse``): the letter of mission A2 to A4."""

from __future__ import annotations

import asyncio

import pytest

from coatcheck.errors import ConfigError
from coatcheck.events import EventKind
from coatcheck.sessions.policy import SessionPolicy

from .two_servers import COOKIE, shopper, two_servers

STRICT = SessionPolicy(rotate_after_ms=0, grace_ms=0, theft="refuse")


def test_every_response_carries_a_new_token_with_a_new_id_and_timestamp() -> None:
    async def story() -> None:
        async with two_servers(STRICT) as servers:
            browser = await shopper(servers)
            seen = [browser.token()]
            for number in range(8):
                servers.later(0.5)
                answer = await browser.get(1 + number % 2)
                assert answer.body["data"] == {"n": 1}
                assert COOKIE in answer.cookies
                seen.append(browser.token())
            assert len({token.session_id for token in seen}) == len(seen)
            stamps = [token.timestamp for token in seen]
            assert stamps == sorted(set(stamps))
            assert len({token.key for token in seen}) == 1

    asyncio.run(story())


def test_the_new_token_replaces_the_old_one_everywhere() -> None:
    async def story() -> None:
        async with two_servers(STRICT) as servers:
            browser = await shopper(servers)
            old = browser.copy()
            await browser.get(1)
            await browser.get(2)  # shows the new one
            for server in (1, 2):
                assert (await old.send(server, "GET", "/")).body["data"] == {}, "the old token is dead"
                assert EventKind.SESSION_THEFT in servers.kinds()
                assert (await browser.get(server)).body["data"] == {"n": 1}, "refused, not closed"

    asyncio.run(story())


def test_a_lost_response_loses_nobody() -> None:
    async def story() -> None:
        async with two_servers(STRICT) as servers:
            browser = await shopper(servers)
            await browser.send(1, "GET", "/")
            assert (await browser.get(2)).body["data"] == {"n": 1}
            assert not servers.accused

    asyncio.run(story())


@pytest.mark.parametrize("theft", ["close", "report"])
def test_grace_0_is_refused_unless_theft_is_refuse(theft: str) -> None:
    with pytest.raises(ConfigError, match="refuse"):
        SessionPolicy(grace_ms=0, theft=theft).check()  # type: ignore[arg-type]
