"""The rules of the pool stand twice, in Python and in the script that Redis runs; here they are held to each other.

Each command goes to both, at the same time of a clock that jumps, and replies and whole states must be the same. Each
call is then made once more, as after a lost reply, and must change nothing.
"""

from __future__ import annotations

import itertools
import random
import secrets
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import redis
from hypothesis import Phase, settings
from hypothesis.stateful import run_state_machine_as_test
from token_store_backends import KEY, RedisBackend

from coatcheck.pool import rules, slots
from coatcheck.pool.commands import (
    Acquire,
    Add,
    Both,
    CleanUp,
    Command,
    CommandOutcome,
    Extend,
    Granted,
    Leave,
    LogInAhead,
    LoginDone,
    LoginEnded,
    LogoutEnded,
    MustLogIn,
    RefuseToken,
    Release,
    Remove,
    Reply,
    Reset,
    TakeIdle,
    Then,
    Waiting,
)
from coatcheck.pool.state import FAR, NO_LIMIT, Policy, UserState, new_user
from coatcheck.pool.stores.blob import StateBox
from coatcheck.pool.stores.redis import SCRIPT, ScriptCalls
from coatcheck.tokens.keyring import KeyRing
from pool.test_rules_model import Farm

CLOCK = "local time = redis.call('TIME')\nlocal now = time[1] + time[2] / 1000000\n"
OUR_CLOCK = "local now = tonumber(redis.call('GET', 'the time'))\n"
SERVER: list[redis.Redis] = []


@pytest.fixture(scope="module", autouse=True)
def server() -> Iterator[None]:
    backend = RedisBackend()
    backend.start()
    SERVER.append(backend.redis)
    yield
    SERVER.remove(backend.redis)
    backend.stop()


class Calls(ScriptCalls):
    """All hashes here are by one key, so one who gives the new hash alone may have what was sealed for the former."""

    def _may_have(self, command: Acquire, owner: bytes) -> bool:
        return True


class Twins:
    """One user's state in Redis, and the same in Python."""

    def __init__(self, policy: Policy, now: float) -> None:
        box = StateBox(KeyRing([KEY]), secrets.token_hex(8), policy)
        box.policy = policy  # with whatever life of tickets
        assert SCRIPT.count(CLOCK) == 1
        self.script = SERVER[0].register_script(SCRIPT.replace(CLOCK, OUR_CLOCK))
        self.policy, self.box, self.calls = policy, box, Calls(box)
        self.state = new_user(int(now * 1_000_000))
        self.apply(now, Acquire())  # so that it is stored

    def stored(self) -> bytes:
        raw: Any = SERVER[0].hget(self.calls.key("ann"), "s")
        return bytes(raw)

    def in_redis(self) -> UserState:
        return self.calls.box.values.read("ann", self.stored())

    def apply(self, now: float, command: Command) -> CommandOutcome:
        expected = rules.apply(self.state, self.policy, now, command)
        SERVER[0].set("the time", repr(now))
        steps = self.calls.steps("ann", command)
        keys, arguments = next(steps)
        try:
            while True:
                answer = self.script(keys=keys, args=arguments)
                before = self.stored()
                assert self.script(keys=keys, args=arguments) == answer, "asked again after a lost reply"
                assert self.stored() == before, "and nothing changed twice"
                turns = msgspec.msgpack.decode(answer[1])[2]
                keys, arguments = steps.send(answer)
        except StopIteration as end:
            outcome: CommandOutcome = end.value
        assert outcome == expected, command
        assert turns == slots.turns(self.state, self.policy, now), "the same are woken"
        found = self.in_redis()
        self.state.limits = found.limits
        assert found == self.state, command
        assert [*found.leases, *found.closing] == [*self.state.leases, *self.state.closing], "in the same order"
        return outcome


class TwinFarm(Farm):
    """The search for a sequence that breaks the rules, done to both."""

    def apply(self, command: Command) -> tuple[Reply, list[tuple[int, str]]]:
        if not hasattr(self, "twins"):
            self.twins = Twins(self.policy, self.now)
            (fence,) = self.twins.state.leases
            self.twins.apply(self.now, LoginEnded(fence, failed=False))
            self.twins.apply(self.now, Reset())
            self.state = self.twins.state
        self.deadlines = {fence: min(at, self.now + self.policy.lease_s) for fence, at in self.deadlines.items()}
        outcome = self.twins.apply(self.now, command)
        return outcome.reply, [(parting.fence, parting.value) for parting in outcome.partings]


# A failure is told by its first difference; to look for the shortest way there takes minutes.
SEARCH = settings(max_examples=40, stateful_step_count=50, deadline=None, phases=[Phase.explicit, Phase.generate])


def test_no_sequence_tells_the_script_from_the_rules() -> None:
    run_state_machine_as_test(TwinFarm, settings=SEARCH)


WHOSE: list[tuple[bytes, ...]] = [(), *((bytes([number]) * 16,) for number in range(12))]
WHOSE += [(b"n" * 16, bytes(16)), (b"n" * 16, b"\x01" * 16, b"o" * 16)]


STEPS_S = [*[0.0, 0.0, 0.0, 0.0, 0.001, 0.01, 0.3, 1.0] * 10, 20.0, 700.0, 4_000.0, -1.0, -300.0, -4_000.0]


def moments(state: UserState) -> list[float]:
    """At which something changes by itself, to the very bit."""
    found = [state.next_deadline, state.rate_at, *(token.expires_at for token in state.free)]
    found += [ticket.alive_until for ticket in state.tickets]
    return found + [at for failing in state.failing for at in (failing.retry_at(), failing.ends_at())]


@pytest.mark.parametrize("seed", range(6))
def test_the_script_is_the_rules(seed: int) -> None:
    dice = random.Random(seed)
    policy = Policy(
        per_user=dice.randint(1, 5),
        max_uses=[1, 2, 3, NO_LIMIT][seed % 4],
        lease_s=dice.choice([5.0, 5.0, 0.1]),
        min_remaining_s=dice.choice([0.0, 1.5]),
        signs_out=dice.random() < 0.6,
        audited=seed != 5,
        login_timeout_s=dice.choice([7.0, 1 / 3]),
        logout_timeout_s=3.3,
        max_waiting=dice.choice([2, 20]),
        ticket_life_s=dice.choice([FAR, 3.0]),
        backoff_first_s=0.7,
        backoff_max_s=dice.choice([9.0, 0.0]),
        login_every_s=dice.choice([0.0, 0.9]),
        login_burst=dice.choice([1, 3]),
    )
    now = 1_700_000_000.123456
    twins = Twins(policy, now)
    seen = Seen(logins=list(twins.state.leases))
    values = (f"tökén {number} \N{SNOWMAN}" for number in itertools.count())
    kinds: Counter[type] = Counter()
    due: list[Command] = []
    for _ in range(600):
        if dice.random() < 0.1:
            now = dice.choice([at for at in moments(twins.state) if abs(at - now) < 5_000] or [now])
        else:
            now += dice.choice(STEPS_S)
        if dice.random() < 0.03:  # more fail than are remembered, and then some want to try
            failing = [LoginEnded(1, refused=dice.random() < 0.3, credentials=(bytes([n]) * 16,)) for n in range(10)]
            due += [*failing, *(Acquire(credentials=dice.choice(WHOSE)) for _ in range(4))]
        outcome = twins.apply(now, due.pop(0) if due else command(dice, seen, next(values)))
        reply = outcome.reply.second if isinstance(outcome.reply, Both) else outcome.reply
        kinds[type(reply)] += 1
        if isinstance(reply, MustLogIn):
            seen.logins.append(reply.fence)
            if dice.random() < 0.7:
                due.insert(0, LoginDone(reply.fence, next(values), dice.choice([20.0, 0.5]), dice.choice([FAR, 8.0])))
        if isinstance(reply, Granted):
            seen.leases.append(reply.fence)
        if isinstance(reply, Waiting):
            seen.tickets.append(reply.ticket)
        seen.partings += [parting.fence for parting in outcome.partings]
    assert len(kinds) >= 5
    assert kinds[Granted] >= 10, "it went on for a while"


@dataclass
class Seen:
    """Numbers that were answered."""

    logins: list[int]
    leases: list[int] = field(default_factory=lambda: [1])
    partings: list[int] = field(default_factory=lambda: [1])
    tickets: list[int] = field(default_factory=lambda: [1])

    def any(self, dice: random.Random) -> int:
        return dice.choice(self.logins[-2:] + self.leases[-3:] + self.partings[-3:])


def command(dice: random.Random, seen: Seen, value: str) -> Command:
    """Any command; most of them of things that are still there."""
    fence, tickets = dice.choice(seen.leases[-3:]), seen.tickets
    whose = dice.choice(WHOSE[: dice.choice([1, 1, 2, len(WHOSE)])])
    yes = dice.random() < 0.5
    again = Acquire(dice.choice([0, *tickets[-4:]]), yes, True, whose, dice.choice([0, 0, 3]), dice.random() < 0.3)
    often = [
        Acquire(0, yes, dice.random() < 0.8, whose, dice.choice([0, 0, 2])),
        again,
        LoginDone(dice.choice(seen.logins[-2:]), value, dice.choice([20.0, 0.5]), dice.choice([FAR, 8.0])),
        Release(fence, unused=dice.random() < 0.1),
        Then(Release(fence, value if yes else None, keep=dice.random() < 0.9), again),
        Release(fence, value if yes else None, dice.choice([None, FAR, 2.0]), keep=dice.random() < 0.7),
    ]
    seldom = [
        Release(seen.any(dice), keep=False, sign_out=yes),
        LoginEnded(seen.any(dice), failed=dice.random() < 0.7, refused=dice.random() < 0.2, credentials=whose),
        Leave(dice.choice(tickets), dice.choice([0, 2])),
        Then(Leave(dice.choice(tickets), 1), again),
        Extend(fence, yes),
        RefuseToken(fence),
        LogoutEnded(seen.any(dice)),
        Add(value, 20.0, whose),
        TakeIdle(dice.choice([0.0, 2.0])),
        LogInAhead(dice.randint(1, 4), whose, yes),
        CleanUp(),
        Remove(None if dice.random() < 0.2 else fence, soft=dice.random() < 0.4),
        *([Reset()] if dice.random() < 0.1 else []),
    ]
    return dice.choice(often if dice.random() < 0.6 else seldom)
