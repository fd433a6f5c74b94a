"""A shopper of the tour, who remembers what the shop acknowledged."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any, Final

import msgspec

from coatcheck.demo.browser import BrowserError, ShopBrowser
from coatcheck.farm.plan.roles import Address

GOODS: Final = ("coat", "hat", "scarf", "gloves", "umbrella", "boots")
PAUSE_S: Final = (0.02, 0.08)


class Tally(msgspec.Struct):
    """What all shoppers saw during one step."""

    requests: int = 0
    failed: int = 0
    slowest_s: float = 0.0


class Shopper:
    """Puts things into a cart through the director, and knows what must be in it."""

    def __init__(self, number: int, address: Address, seed: int) -> None:
        self.name = f"shopper-{number}"
        self.cart: dict[str, int] = {}
        self._uncertain: dict[str, set[int]] = {}
        self._random = random.Random(seed + number)
        self._browser = ShopBrowser(address.host, address.port)

    async def arrive(self, tally: Tally) -> None:
        """Log in by name; this makes the session."""
        await self._send(tally, "PUT", f"/api/name/{self.name}")

    async def shop(self, tally: Tally, until: asyncio.Event) -> None:
        """Go on shopping until the step ends."""
        while not until.is_set():
            if self._random.random() < 0.5:
                await self._send(tally, "GET", "/api/cart")
            else:
                await self._put(tally)
            await asyncio.sleep(self._random.uniform(*PAUSE_S))

    async def _put(self, tally: Tally) -> None:
        item = f"{self._random.choice(GOODS)}-{self._random.randrange(8)}"
        quantity = self._random.randint(1, 9)
        answer = await self._send(tally, "PUT", f"/api/cart/{item}", {"quantity": quantity})
        if answer is None:
            # Nobody told us whether it was put: both are right until it is put again.
            self._uncertain.setdefault(item, {self.cart.get(item, 0)}).add(quantity)
        else:
            self.cart[item] = quantity
            self._uncertain.pop(item, None)

    async def _send(self, tally: Tally, method: str, path: str, body: Any = None) -> Any:
        """The answer, or ``None`` if the request failed."""
        began = time.monotonic()
        tally.requests += 1
        try:
            status, answer = await self._browser.request(method, path, body)
        except BrowserError:
            status, answer = 0, None
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - began)
        if status != 200:
            tally.failed += 1
            return None
        return answer

    async def check(self, tally: Tally) -> str:
        """Compare the cart item by item; empty if all is there, else what is wrong."""
        answer = await self._send(tally, "GET", "/api/cart")
        if answer is None:
            return "the cart could not be read"
        if answer["name"] != self.name:
            return f"logged out: the shop knows {answer['name']!r}"
        for item in sorted(self.cart.keys() | answer["cart"].keys() | self._uncertain.keys()):
            right = self._uncertain.get(item, {self.cart.get(item, 0)})
            if answer["cart"].get(item, 0) not in right:
                return f"{item}: {answer['cart'].get(item, 0)} instead of {' or '.join(map(str, sorted(right)))}"
        return ""

    async def leave(self) -> None:
        await self._browser.aclose()
