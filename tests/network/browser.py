"""A browser: an HTTP client with a cookie jar that logs in, writes, reads and logs out, on either machine."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from random import Random

import httpx

from .judge import Account, Answer

TIMEOUT_S = 15.0
"""Longer than any answer takes while the browser's own link is whole."""
THINK_S = (0.02, 0.4)
AFTER_TROUBLE_S = 0.5
MOST_WRITES = 40
"""Of one session; then its browser logs out."""
GRAVES = 6
"""Closed sessions whose tokens are shown again, now and then."""

LIMITS = httpx.Limits(max_connections=8, max_keepalive_connections=4)
Tell = Callable[[str, Answer], None]


class Browser:
    """One user. ``bases``: the address of each machine, through its door."""

    def __init__(self, number: int, seed: int, bases: dict[str, str], account: Account, tell: Tell) -> None:
        self.account = account
        self._bases = bases
        self._tell = tell
        self._rng = Random(seed * 1000 + number)
        self._machine = self._rng.choice(sorted(bases))
        self._client = self._new_client()
        self._number = 0
        self._graves: list[dict[str, str]] = []

    def _new_client(self) -> httpx.AsyncClient:
        return httpx.AsyncClient(timeout=TIMEOUT_S, limits=LIMITS, verify=False, trust_env=False)

    async def live(self, until: Callable[[], bool]) -> None:
        """Go on until it is over."""
        while not until():
            await self._act()
            await asyncio.sleep(self._rng.uniform(*THINK_S))

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _act(self) -> None:
        account, chance = self.account, self._rng.random()
        if chance < 0.04:
            self._machine = self._rng.choice(sorted(self._bases))
        if self._graves and self._rng.random() < 0.05:
            await self._visit_a_grave()
        if not account.logged_in:
            await self.login()
        elif account.leaving or chance > 0.97 or self._number >= MOST_WRITES:
            await self.logout()
        elif chance < 0.5:
            await self.write()
        elif chance < 0.6:
            await asyncio.gather(*(self.read() for _ in range(3)))
        else:
            await self.read()

    async def login(self) -> None:
        await self._forget_cookies()
        self._number = 0
        await self._after(self.account.login, await self._ask("POST", f"/login/{self.account.user}"))

    async def write(self) -> None:
        self._number += 1
        number = self._number
        answer = await self._ask("PUT", f"/write/{number}")
        await self._after(lambda found: self.account.write(found, number), answer)

    async def read(self) -> None:
        await self._after(self.account.read, await self._ask("GET", "/"))

    async def logout(self) -> None:
        held = {cookie.name: cookie.value or "" for cookie in self._client.cookies.jar}
        answer = await self._ask("POST", "/logout")
        self._tell(self.account.user, answer)
        if self.account.logout(answer):
            self._graves = [*self._graves, held][-GRAVES:]
            await self._visit_a_grave(-1)

    async def _visit_a_grave(self, which: int | None = None) -> None:
        """Show the token of a closed session, on either machine, to read or to write with it."""
        grave = self._graves[which] if which is not None else self._rng.choice(self._graves)
        machine = self._rng.choice(sorted(self._bases))
        method, path = self._rng.choice((("GET", "/"), ("GET", "/"), ("PUT", "/write/1000")))
        header = {"Cookie": "; ".join(f"{name}={value}" for name, value in grave.items())}
        async with self._new_client() as stranger:
            answer = await self._ask(method, path, machine=machine, client=stranger, headers=header, what="grave")
        self._tell(self.account.user, answer)
        self.account.buried(answer)

    async def _forget_cookies(self) -> None:
        self._client.cookies.clear()

    async def _after(self, judge: Callable[[Answer], object], answer: Answer) -> None:
        self._tell(self.account.user, answer)
        judge(answer)
        if answer.status != 200:
            await asyncio.sleep(self._rng.uniform(0, AFTER_TROUBLE_S))
            if self._rng.random() < 0.3:
                self._machine = self._rng.choice(sorted(self._bases))

    def _ask(
        self,
        method: str,
        path: str,
        *,
        machine: str = "",
        client: httpx.AsyncClient | None = None,
        headers: dict[str, str] | None = None,
        what: str = "",
    ) -> Awaitable[Answer]:
        return self._asked(method, path, machine or self._machine, client or self._client, headers or {}, what)

    async def _asked(
        self, method: str, path: str, machine: str, client: httpx.AsyncClient, headers: dict[str, str], what: str
    ) -> Answer:
        began = time.monotonic()
        words = f"{what or method} {path}"
        try:
            async with asyncio.timeout(TIMEOUT_S):
                response = await client.request(method, self._bases[machine] + path, headers=headers)
        except (httpx.HTTPError, TimeoutError) as trouble:
            return Answer(machine, words, began, time.monotonic(), 0, words=f"{type(trouble).__name__} {trouble}")
        ended = time.monotonic()
        if response.status_code != 200:
            return Answer(machine, words, began, ended, response.status_code, words=response.text.strip()[:100])
        said = response.json()
        return Answer(machine, words, began, ended, 200, said["user"], frozenset(said["written"]), said["server"])
