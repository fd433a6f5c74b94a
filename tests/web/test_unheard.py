"""What a browser gets while its session can be neither found nor called lost (protocol section 6)."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx

from coatcheck.drivers.sessions import Sessions
from coatcheck.events import Event, EventKind
from coatcheck.replication.policy import ReplicationPolicy
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.keyring import KeyRing
from coatcheck.web.asgi import SessionMiddleware

from .in_process import Act, acting, count, look

COOKIE, LOGIN = "__Host-coatcheck", "__Host-coatcheck-login"
PATIENCE_S = 0.2


def login(session: Any) -> None:
    session.regenerate("ada")


def logout(session: Any) -> None:
    session.close()


class Parted:
    """Two web servers and two session servers; the second one sees the second session server alone, which lacks the
    last write. Stores are their own, with one table each."""

    def __init__(self) -> None:
        self.stores = {web: [MemoryStore(f"session-{n}", time.monotonic) for n in (1, 2)] for web in "ab"}
        for far, near in zip(self.stores["b"], self.stores["a"], strict=True):
            far._table = near._table
        ring = KeyRing([os.urandom(32)])
        self.events: list[Event] = []
        policy = ReplicationPolicy(lease_s=0.05, patience_s=PATIENCE_S)
        self.sessions = {
            web: Sessions(
                farm="farm",
                server_name=web,
                stores=stores,
                ring=ring,
                replication=policy,
                observer=self.events.append,
            )
            for web, stores in self.stores.items()
        }
        self.cookies: dict[str, str] = {}

    async def ask(self, web: str, act: Act) -> httpx.Response:
        middleware = SessionMiddleware(acting(act), self.sessions[web])
        transport = httpx.ASGITransport(middleware)
        async with httpx.AsyncClient(transport=transport, base_url="https://farm.example") as browser:
            browser.cookies.update(self.cookies)
            response = await browser.get("/")
        for line in response.headers.get_list("set-cookie"):
            name, _, value = line.partition(";")[0].partition("=")
            self.cookies[name] = value
            if "Max-Age=0" in line:
                del self.cookies[name]
        return response

    async def part(self) -> None:
        await self.stores["a"][1].aclose()
        await self.stores["b"][0].aclose()

    async def heal(self) -> None:
        for store in (self.stores["a"][1], self.stores["b"][0]):
            await store.open()


@asynccontextmanager
async def parted(*acts: Act) -> AsyncIterator[Parted]:
    """After ``acts`` on the first web server the farm is cut, and one more write is acknowledged there."""
    farm = Parted()
    try:
        for act in acts:
            assert (await farm.ask("a", act)).status_code == 200
        await farm.ask("b", look)  # opens it, and leaves nothing in its cache but what is there now
        assert (await farm.ask("a", count)).status_code == 200
        await farm.part()
        assert (await farm.ask("a", count)).status_code == 200
        await asyncio.sleep(0.1)  # leases end
        yield farm
    finally:
        for sessions in farm.sessions.values():
            await sessions.aclose()


async def anonymous(farm: Parted, act: Act) -> httpx.Response:
    """The first answer that is no refusal."""
    async with asyncio.timeout(30):
        while (response := await farm.ask("b", act)).status_code == 503:
            assert "a_session_server_that_may_hold_the_session_is_away" in response.text
            assert response.headers["retry-after"] == "1"
            assert response.headers.get_list("set-cookie") == []
            await asyncio.sleep(0.05)
    return response


def test_first_503_then_anonymous_and_after_the_heal_all_is_there() -> None:
    async def story() -> None:
        async with parted(count) as farm:
            held = dict(farm.cookies)
            response = await anonymous(farm, look)
            assert response.text == "{}"
            assert farm.cookies == held, "the cookie is left alone"
            kinds = [event.kind for event in farm.events]
            assert EventKind.SESSION_UNHEARD in kinds
            assert EventKind.SESSION_ROLLED_BACK not in kinds
            await farm.heal()
            assert (await farm.ask("b", look)).text == "{'n': 3}"

    asyncio.run(story())


def test_a_login_cookie_is_left_alone_also_when_the_app_stores_something() -> None:
    async def story() -> None:
        async with parted(count, login) as farm:
            held = farm.cookies[LOGIN]
            response = await anonymous(farm, count)
            assert response.text == "1"
            assert farm.cookies[LOGIN] == held
            await farm.heal()
            assert (await farm.ask("b", look)).text == "{'n': 3}"

    asyncio.run(story())


def test_a_logout_deletes_both_cookies_and_holds_after_the_heal() -> None:
    async def story() -> None:
        async with parted(count, login) as farm:
            held = dict(farm.cookies)
            response = await anonymous(farm, logout)
            assert response.status_code == 200
            assert LOGIN not in farm.cookies
            farm.cookies = held
            await farm.heal()
            assert (await farm.ask("b", look)).text == "{}"

    asyncio.run(story())
