"""How a process of the farm asks about a key that it does not know."""

from __future__ import annotations

import asyncio

from coatcheck.farm.control.lines import Message
from coatcheck.farm.control.process_control import ProcessControl


class AskedKeys:
    """The supervisor is asked whether there are newer keys; it tells them, and whether they are as new as can be."""

    def __init__(self, control: ProcessControl) -> None:
        self._control = control
        self._waiting: set[asyncio.Future[bool]] = set()

    async def refresh(self) -> bool:
        """Whether the ring is as new as the supervisor's, and that one as new as can be."""
        told: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.add(told)
        self._control.ask("keys")
        try:
            return await told
        finally:
            self._waiting.discard(told)

    def hear(self, message: Message) -> None:
        """The supervisor has told keys, which are used by now: as an answer, or because they were changed."""
        if (is_fresh := message.get("is_fresh")) is None:
            return
        for waiting in self._waiting:
            if not waiting.done():
                waiting.set_result(bool(is_fresh))
