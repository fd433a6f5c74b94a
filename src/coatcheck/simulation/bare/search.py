"""The exhaustive, bounded search of a small farm: every order of messages, one fault of any kind at any point.

Flows cannot be copied, so each path is run again from the beginning, by its choices; states that were seen
before are not followed again.
"""

from __future__ import annotations

import time
from random import Random

import msgspec

from coatcheck.simulation.bare.small_farm import Script, SmallFarm
from coatcheck.simulation.convergence import check_convergence
from coatcheck.simulation.scenario import Scenario, draw
from coatcheck.simulation.trace import Trace

SCRIPTS: dict[str, Script] = {
    "write-read": ("write", "read"),
    "write-write": ("write", "write"),
    "write-read-write": ("write", "read", "write"),
    "write-delete": ("write", "delete"),
    "close-read": ("logout", "read"),
    "write-close-read": ("write", "logout", "read"),
    "write-read-read": ("write", "read", "read"),
    "write-write-read": ("write", "write", "read"),
    "login-write": ("login", "write"),
    "count-count": ("count", "count"),
    "rotate-rotate": ("rotate", "rotate", "read"),
    "write-logout-read": ("write", "logout", "read"),
    "timeout-write-read": ("wait", "write", "wait", "read"),
    "timeout-read-write": ("wait", "wait", "read", "write"),
}
MAX_DEPTH = 400


class Found(msgspec.Struct):
    """The result of a search. ``whole``: every state within the bounds was seen."""

    script: str
    states: int = 0
    paths: int = 0
    deepest: int = 0
    seconds: float = 0.0
    whole: bool = False
    violations: list[str] = msgspec.field(default_factory=list)
    lines: list[str] = msgspec.field(default_factory=list)

    def summary(self) -> str:
        what = f"VIOLATION {self.violations[0]}" if self.violations else "no invariant broken"
        bound = "exhausted" if self.whole else "bounded"
        return (
            f"{self.script}: {self.states} states, {self.paths} ends, depth {self.deepest}, "
            f"{self.seconds:.1f} s, {bound}, {what}"
        )


def small_scenario(**changes: object) -> Scenario:
    """Two web servers, two session servers, two copies, the defaults; ``changes`` replace fields."""
    base = msgspec.structs.replace(
        draw(2, "calm"),
        seed=0, web_servers=2, session_servers=2, copies=2, durability="all", below_target="quorum",
        too_few_answers="refuse", lease_s=2.0, rotate_after_ms=60_000, grace_ms=60_000, theft="close",
        rolled_back="close", conflict="last_write", idle_timeout_ms=1_800_000, absolute_timeout_ms=43_200_000,
        leeway_ms=5_000, browsers=1, tabs=2, skew_ms=0, real_seal=False, thief=False,
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


def explore(
    script: str,
    max_states: int,
    max_faults: int = 1,
    disorder: int = 2,
    parallel: int = 2,
    scenario: Scenario | None = None,
    cuts: bool = False,
) -> Found:
    """Follow every path of a script; stops at the first violation or after ``max_states`` states."""
    scenario = scenario or small_scenario(rotate_after_ms=0 if script.startswith("rotate") else 60_000)
    found = Found(script)
    seen: set[int] = set()
    stack: list[tuple[int, ...]] = [()]
    began = time.monotonic()
    order = Random(0)
    while stack and len(seen) < max_states and not found.violations:
        # Any order sees all; if the search is cut short, a mixed one has been everywhere a little.
        at = order.randrange(len(stack))
        stack[at], stack[-1] = stack[-1], stack[at]
        prefix = stack.pop()
        farm = SmallFarm(scenario, SCRIPTS[script], max_faults, disorder, Trace(False), parallel, cuts)
        _follow(farm, list(prefix), seen, stack, found)
    found.states = len(seen)
    found.whole = not stack and not found.violations
    found.seconds = time.monotonic() - began
    return found


def _follow(farm: SmallFarm, path: list[int], seen: set[int], stack: list[tuple[int, ...]], found: Found) -> None:
    """Replay ``path``, then go on with the first choice until the end, or until a known state; note the others."""
    for index in path:
        farm.choices()[index][1]()
    while not farm.ledger.violations:
        choices = farm.choices()
        state = farm.fingerprint()
        if state in seen:
            return
        seen.add(state)
        found.deepest = max(found.deepest, len(path))
        if not choices or len(path) >= MAX_DEPTH or choices[0][0].startswith("FAULT"):
            _judge_end(farm, path, found)
            return
        stack.extend((*path, index) for index in range(len(choices) - 1, 0, -1))
        path.append(0)
        choices[0][1]()
    _fail(farm, path, found)


def _judge_end(farm: SmallFarm, path: list[int], found: Found) -> None:
    found.paths += 1
    farm.heal()
    if not farm.ledger.violations:
        check_convergence(farm)
    if farm.ledger.violations:
        _fail(farm, path, found)


def _fail(farm: SmallFarm, path: list[int], found: Found) -> None:
    """Run the path once more, with its trace."""
    found.violations = list(farm.ledger.violations)
    trace = Trace(True)
    again = SmallFarm(
        farm.scenario, farm.script, farm.budget_given, farm.disorder_given, trace, farm.parallel, farm.cuts
    )
    for index in path:
        label, act = again.choices()[index]
        again.ledger.say(f"-- {label}")
        act()
    if not again.ledger.violations:
        again.heal()
    found.lines = trace.lines
