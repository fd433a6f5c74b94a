"""Telling a process of the farm something that it must know: as soon as it can hear it."""

from __future__ import annotations

import asyncio
import time
from typing import Any, Final

from coatcheck.farm.control.lines import ControlError
from coatcheck.farm.supervision.keeper import Keeper

TELL_TIMEOUT_S: Final = 2.0
TELL_AGAIN_S: Final = 0.05


async def tell(keeper: Keeper, operation: str, until: float, **arguments: Any) -> bool:
    """Whether it knows by ``until`` (monotonic seconds); one that does not run is told at its start."""
    while True:
        if keeper.state in ("stopped", "drained", "dead", "restarting", "stopping"):
            return True
        # One that is starting may have been given something older: it is told as soon as it is ready.
        if keeper.state != "starting":
            try:
                await keeper.call(operation, TELL_TIMEOUT_S, **arguments)
            except ControlError:
                if time.monotonic() >= until:
                    return False
            else:
                return True
        if time.monotonic() >= until:
            return False
        await asyncio.sleep(TELL_AGAIN_S)


async def tell_all(keepers: tuple[Keeper, ...], operation: str, timeout_s: float, **arguments: Any) -> list[str]:
    """Tell all of them at once; the names of those that could not be told within ``timeout_s`` seconds."""
    until = time.monotonic() + timeout_s
    told = await asyncio.gather(*(tell(keeper, operation, until, **arguments) for keeper in keepers))
    return [keeper.name for keeper, done in zip(keepers, told, strict=True) if not done]
