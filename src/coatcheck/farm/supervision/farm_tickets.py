"""The ticket keys of a farm: the supervisor agrees on them with the farm's other machines, and tells its directors.

A director holds neither the key ring nor a session server's password, so it cannot agree on anything itself. It is told
the keys when it starts, and again after each round of the agreement: one that was frozen, or that missed one, knows
them a round later. The key of the next period is told a whole period ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Final

from coatcheck.farm.files.keys import FarmKeys
from coatcheck.farm.plan.plan import shared_by_machines
from coatcheck.farm.plan.roles import TicketOrders
from coatcheck.farm.settings.farm_settings import FarmSettings
from coatcheck.farm.supervision.keeper import Keeper
from coatcheck.farm.supervision.telling import tell_all
from coatcheck.stores.session_server_url import SessionServerAddress
from coatcheck.stores.take_once.opening import items_at
from coatcheck.take_once.port import TakeOncePlace
from coatcheck.tls.agreement import KeyAgreement
from coatcheck.tls.hosts import Siblings
from coatcheck.tls.ticket_keys import TicketKeys
from coatcheck.tokens.keyring import KeyRing

FIRST_ROUND_S: Final = 1.0
"""How long a start waits for outside session servers."""
ASK_TIMEOUT_S: Final = 2.0
ROUND_TELL_S: Final = 2.0
"""How long directors may take to hear of the keys of a round; who does not is told in the next one."""


class FarmTickets:
    """Use it from one event loop. ``directors`` are asked for when somebody is told."""

    def __init__(
        self,
        settings: FarmSettings,
        keys: FarmKeys,
        outside: tuple[SessionServerAddress, ...],
        directors: Callable[[], tuple[Keeper, ...]],
    ) -> None:
        self._orders = TicketOrders(
            farm=settings.name,
            period_ms=int(settings.tls_ticket_period_s * 1000),
            lifetime_ms=int(settings.tls_session_lifetime_s * 1000),
        )
        self._ring = KeyRing(keys.keys, keys.primary)
        self._directors = directors
        self._agreement = KeyAgreement(
            lambda: places_of_items(shared_by_machines(outside), settings.name),
            TicketKeys(self._orders.period_ms, self._orders.lifetime_ms, Siblings()),
            self._ring,
            settings.name,
            self._after_round,
            decides_alone=True,
        )
        self._loop: asyncio.AbstractEventLoop | None = None
        self._speaking = asyncio.Lock()
        self._telling: set[asyncio.Task[list[str]]] = set()

    async def start(self) -> None:
        """Agree on the first keys; returns also if no outside session server answers."""
        await asyncio.to_thread(self._agreement.start, FIRST_ROUND_S)
        self._loop = asyncio.get_running_loop()

    def use_keys(self, keys: FarmKeys) -> None:
        """Seal what is stored with these from now on."""
        self._ring.change(keys.keys, keys.primary)

    def orders(self) -> TicketOrders:
        """What a director is told at its start."""
        return TicketOrders(
            farm=self._orders.farm,
            period_ms=self._orders.period_ms,
            lifetime_ms=self._orders.lifetime_ms,
            keys=tuple(self._agreement.told().items()),
        )

    async def rotate(self, timeout_s: float) -> list[str]:
        """Have all directors seal with a new key; the names of those that could not be told in time."""
        self._agreement.rotate()
        return await self._tell(timeout_s)

    def status(self) -> dict[str, Any]:
        """The period, how long a ticket opens after it (seconds), and which session servers answered."""
        return {
            "period_s": self._orders.period_ms / 1000,
            "lifetime_s": self._orders.lifetime_ms / 1000,
            "stores": self._agreement.answers(),
        }

    async def aclose(self) -> None:
        """Agree no more, and tell nobody."""
        self._loop = None
        self._agreement.close()
        for task in self._telling:
            task.cancel()
        await asyncio.gather(*self._telling, return_exceptions=True)

    def _after_round(self, at_ms: int) -> None:
        loop = self._loop
        if loop is not None:
            with contextlib.suppress(RuntimeError):  # it was closed in this moment
                loop.call_soon_threadsafe(self._tell_soon)

    def _tell_soon(self) -> None:
        if self._loop is None or self._telling:
            return
        task = self._loop.create_task(self._tell(ROUND_TELL_S))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def _tell(self, timeout_s: float) -> list[str]:
        """One after the other, so that nobody hears of older keys after newer ones."""
        async with self._speaking:
            keys = {period: [one.hex() for one in secrets] for period, secrets in self._agreement.told().items()}
            return await tell_all(self._directors(), "tickets", timeout_s, keys=keys)


def places_of_items(shared: tuple[SessionServerAddress, ...], farm: str) -> list[TakeOncePlace]:
    """Where other machines ask, too. With embedded session servers or SQLite there are none: the supervisor decides."""
    return [items_at(address, farm, ASK_TIMEOUT_S) for address in shared]
