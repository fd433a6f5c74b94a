"""The tour: shoppers fill carts while servers are killed; at the end every cart is compared item by item."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import signal
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from coatcheck.demo.shopper import Shopper, Tally
from coatcheck.farm.operations.status import farm_status
from coatcheck.farm.supervision.supervisor import Supervisor

STEP_S: Final = 2.5
BEFORE_KILL_S: Final = 0.5
SETTLE_S: Final = 10.0
"""The longest wait for the farm to be whole again between two steps."""


class TourStep(msgspec.Struct):
    """One line of the story."""

    number: int
    words: str
    killed: str = ""
    tally: Tally = msgspec.field(default_factory=Tally)
    intact: int = 0
    problems: list[str] = msgspec.field(default_factory=list)


class TourReport(msgspec.Struct):
    """What the tour found: with ``--json`` as it stands."""

    shoppers: int
    seconds: float
    steps: list[TourStep]
    well: bool
    """Nothing was lost, and no request failed."""


async def tell(farm: Supervisor, shoppers: int, shown: Callable[[TourReport], str]) -> int:
    """Tell the story; the exit code is 0 only if nothing was lost and no request failed.

    ``shown``: what is printed in the end.
    """
    address = farm.address
    seed = random.randrange(1 << 30)
    crowd = [Shopper(number, address, seed) for number in range(1, shoppers + 1)]
    farm.console.say(f"tour: {shoppers} shoppers arrive")
    began = time.monotonic()
    steps = [TourStep(1, f"{shoppers} shoppers fill their carts")]
    await asyncio.gather(*(shopper.arrive(steps[0].tally) for shopper in crowd))
    await _step(farm, crowd, steps[0], None)
    steps.append(TourStep(2, "the web server with most sessions dies"))
    await _step(farm, crowd, steps[1], _busiest_web_server)
    steps.append(TourStep(3, "a session server dies"))
    await _step(farm, crowd, steps[2], _fullest_session_server)
    steps.append(TourStep(4, "another web server dies"))
    await _step(farm, crowd, steps[3], _busiest_web_server)
    for shopper in crowd:
        await shopper.leave()
    well = all(step.intact == shoppers and not step.tally.failed for step in steps)
    sys.stdout.write(shown(TourReport(shoppers, time.monotonic() - began, steps, well)))
    sys.stdout.flush()
    return 0 if well else 1


async def _step(
    farm: Supervisor,
    crowd: Sequence[Shopper],
    step: TourStep,
    victim: Callable[[dict[str, Any]], dict[str, Any]] | None,
) -> None:
    """Shop; kill while they shop; let the farm become whole; compare all carts."""
    over = asyncio.Event()
    shopping = [asyncio.create_task(shopper.shop(step.tally, over)) for shopper in crowd]
    await asyncio.sleep(BEFORE_KILL_S)
    if victim is not None:
        dying = victim(await farm_status(farm))
        step.killed = f"{dying['name']} (pid {dying['pid']})"
        farm.console.say(f"tour: kill -9 {dying['pid']}, which is {dying['name']}")
        with contextlib.suppress(ProcessLookupError):
            os.kill(dying["pid"], signal.SIGKILL)
    await asyncio.sleep(STEP_S - BEFORE_KILL_S)
    over.set()
    await asyncio.gather(*shopping)
    found = await asyncio.gather(*(shopper.check(step.tally) for shopper in crowd))
    step.problems = [f"{shopper.name}: {problem}" for shopper, problem in zip(crowd, found, strict=True) if problem]
    step.intact = len(crowd) - len(step.problems)
    await _settle(farm)


async def _settle(farm: Supervisor) -> None:
    """Wait until every process is back and every session has its copies again."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        status = await farm_status(farm)
        rows = status["director"] + status["web_servers"] + status["session_servers"]
        if all(row["healthy"] for row in rows) and not any(row.get("under_replicated") for row in rows):
            return
        await asyncio.sleep(0.2)
    farm.console.say(f"tour: the farm is not whole again after {SETTLE_S:g} s; the story goes on")


def _busiest_web_server(status: dict[str, Any]) -> dict[str, Any]:
    return _most(status["web_servers"], "sessions")


def _fullest_session_server(status: dict[str, Any]) -> dict[str, Any]:
    return _most(status["session_servers"], "entries")


def _most(rows: Sequence[dict[str, Any]], field: str) -> dict[str, Any]:
    return max((row for row in rows if row["pid"]), key=lambda row: row[field] or 0)


def report(found: TourReport) -> str:
    """What happened, as a table."""
    steps, shoppers = found.steps, found.shoppers
    header = ("step", "what happened", "killed", "requests", "failed", "slowest", "carts intact")
    rows = [
        (
            str(step.number),
            step.words,
            step.killed or "-",
            str(step.tally.requests),
            str(step.tally.failed),
            f"{step.tally.slowest_s * 1000:.0f} ms",
            f"{step.intact} of {shoppers}",
        )
        for step in steps
    ]
    widths = [max(len(row[at]) for row in (header, *rows)) for at in range(len(header))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (header, *rows)]
    lines.insert(1, "  ".join("-" * width for width in widths))
    problems = [f"  step {step.number}: {problem}" for step in steps for problem in step.problems[:5]]
    failed = sum(step.tally.failed for step in steps)
    lost = max(shoppers - step.intact for step in steps)
    verdict = "nothing was lost" if not lost else f"{lost} of {shoppers} carts were damaged"
    verdict += ", no request failed" if not failed else f", {failed} requests failed"
    return "\n".join(["", *(line.rstrip() for line in lines), *problems, "", f"{verdict} ({found.seconds:.0f} s)", ""])
