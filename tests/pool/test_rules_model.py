"""Searches for a sequence of commands that breaks what the rules promise."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, initialize, invariant, multiple, rule

from coatcheck.pool import rules
from coatcheck.pool.commands import (
    Acquire,
    Add,
    CleanUp,
    Closed,
    Command,
    Done,
    Extend,
    Granted,
    Leave,
    LoginDone,
    LoginEnded,
    Lost,
    MustLogIn,
    NoSlot,
    QueueFull,
    Release,
    Remove,
    Reply,
    TakeIdle,
    Waiting,
)
from coatcheck.pool.state import FAR, Policy, new_user

LEASE_S = 10.0


class Farm(RuleBasedStateMachine):
    """One user's state, an upstream that counts its sessions, and borrowers who keep books of their own."""

    held = Bundle("held")
    logging_in = Bundle("logging_in")
    waiting = Bundle("waiting")
    partings = Bundle("partings")

    @initialize(
        per_user=st.integers(1, 3),
        max_uses=st.integers(1, 5),
        signs_out=st.booleans(),
        ticket_life_s=st.sampled_from([FAR, 4.0]),
        login_every_s=st.sampled_from([0.0, 3.0]),
    )
    def begin(self, **limits: Any) -> None:
        self.policy = Policy(
            lease_s=LEASE_S, login_timeout_s=6.0, logout_timeout_s=5.0, max_waiting=3, login_burst=2, **limits
        )
        self.state = new_user(1_000)
        self.now = 100.0
        self.tokens = 0
        self.uses: dict[str, int] = {}  # by the token's stem: refreshed strings are the same session
        self.deadlines: dict[int, float] = {}  # of leases that we believe in
        self.queue: list[int] = []
        self.last_fence = self.state.fence

    def apply(self, command: Command) -> tuple[Reply, list[tuple[int, str]]]:
        outcome = rules.apply(self.state, self.policy, self.now, command)
        assert self.state.fence >= self.last_fence, "fencing numbers only grow"
        self.last_fence = self.state.fence
        assert bool(outcome.partings) <= self.policy.signs_out
        return outcome.reply, [(parting.fence, parting.value) for parting in outcome.partings]

    def granted(self, reply: Granted, *, is_use: bool = True) -> None:
        stem = reply.value.split("/")[0]
        self.uses[stem] = self.uses.get(stem, 0) + is_use
        assert self.uses[stem] <= self.policy.max_uses, "used too often"
        in_hands = [h.token.value for f, h in self.state.leases.items() if h.token is not None and f != reply.fence]
        assert stem not in {value.split("/")[0] for value in in_hands}, "in two hands"
        self.deadlines[reply.fence] = self.now + LEASE_S

    @rule(target=held, may_login=st.just(False))
    def check_out(self, may_login: bool) -> Any:
        before = [token.expires_at for token in self.state.free]
        reply, partings = self.apply(Acquire(may_wait=False, may_login=may_login))
        self.part(partings)
        if type(reply) is not Granted:
            return multiple()
        assert not self.live_queue(), "somebody came first"
        assert max(before) > self.now, "expired"
        self.granted(reply)
        return reply.fence

    @rule(target=logging_in, ticket=st.none() | consumes(waiting))
    def borrow(self, ticket: int | None) -> Any:
        return self.ask_again(ticket or 0)

    def ask_again(self, ticket: int) -> Any:
        live = self.live_queue()
        reply, partings = self.apply(Acquire(ticket))
        self.part(partings)
        if isinstance(reply, Granted | MustLogIn):
            ahead = live[: live.index(ticket)] if ticket in live else live
            free_or_slots = self.policy.per_user
            assert len(ahead) < free_or_slots, "more came first than there are slots"
            self.leave_queue(ticket)
        if type(reply) is Granted:
            self.granted(reply)
            self.release_later(reply.fence)
            return multiple()
        if type(reply) is MustLogIn:
            return reply.fence
        if type(reply) is Waiting:
            if reply.ticket != ticket:
                self.leave_queue(ticket)
                self.queue.append(reply.ticket)
            assert reply.again_s >= 0
        else:
            assert type(reply) is QueueFull
            assert len(self.state.tickets) >= self.policy.max_waiting
            self.leave_queue(ticket)
        return multiple()

    def release_later(self, fence: int) -> None:
        self.later = [*getattr(self, "later", []), fence]

    def live_queue(self) -> list[int]:
        return [ticket.number for ticket in self.state.tickets if self.now < ticket.alive_until]

    def leave_queue(self, ticket: int) -> None:
        if ticket in self.queue:
            self.queue.remove(ticket)

    def part(self, partings: list[tuple[int, str]]) -> None:
        self.to_close = [*getattr(self, "to_close", []), *(fence for fence, _ in partings)]

    @rule(target=held)
    def pick_up(self) -> Any:
        later = getattr(self, "later", [])
        return later.pop() if later else multiple()

    @rule(target=waiting)
    def pick_ticket(self) -> Any:
        return self.queue[0] if self.queue else multiple()

    @rule(
        target=held, slot=consumes(logging_in), ok=st.booleans(), failed=st.booleans(), span=st.sampled_from([FAR, 7.0])
    )
    def end_login(self, slot: int, ok: bool, failed: bool, span: float) -> Any:
        if not ok:
            reply, _ = self.apply(LoginEnded(slot, failed=failed))
            assert slot not in self.state.leases
            return multiple()
        self.tokens += 1
        reply, _ = self.apply(LoginDone(slot, f"t{self.tokens}", 20.0, span))
        if type(reply) is Lost:
            return multiple()
        assert type(reply) is Granted
        self.granted(reply)
        return reply.fence

    @rule(fence=consumes(held), renew=st.booleans(), keep=st.booleans(), sign_out=st.booleans())
    def give_back(self, fence: int, renew: bool, keep: bool, sign_out: bool) -> None:
        holding = self.state.leases.get(fence)
        stem = holding.token.value.split("/")[0] if holding and holding.token else ""
        value = f"{stem}/{self.now}" if renew else None
        reply, partings = self.apply(Release(fence, value, keep=keep, sign_out=sign_out))
        self.part(partings)
        late = self.now >= self.deadlines.pop(fence)
        assert (reply == Lost()) is (late or holding is None), "to the very moment"
        reply, _ = self.apply(Release(fence, "replayed"))
        assert reply == Lost()

    @rule(target=held, fence=consumes(held))
    def extend(self, fence: int) -> Any:
        reply, _ = self.apply(Extend(fence))
        if reply == Lost():
            return multiple()
        self.deadlines[fence] = self.now + LEASE_S
        return fence

    @rule(target=held)
    def keep_alive(self) -> Any:
        reply, partings = self.apply(TakeIdle(1.0))
        self.part(partings)
        if type(reply) is not Granted:
            return multiple()
        self.granted(reply, is_use=False)
        return reply.fence

    @rule()
    def add(self) -> None:
        self.tokens += 1
        self.uses[f"t{self.tokens}"] = 1
        reply, partings = self.apply(Add(f"t{self.tokens}", 20.0))
        self.part(partings)
        assert type(reply) in (Done, NoSlot)

    @rule(which=st.integers(0, 9))
    def close(self, which: int) -> None:
        to_close: list[int] = getattr(self, "to_close", [])
        if to_close:
            self.apply(Closed(to_close.pop(which % len(to_close))))

    @rule(token=st.booleans())
    def operator_removes(self, token: bool) -> None:
        first = self.state.free[0].token_id if token and self.state.free else None
        if token and first is None:
            return
        _, partings = self.apply(Remove(first))
        self.part(partings)

    @rule(ticket=consumes(waiting))
    def leave(self, ticket: int) -> None:
        self.apply(Leave(ticket))
        self.leave_queue(ticket)
        assert ticket not in self.live_queue()

    @rule(seconds=st.sampled_from([0.5, 2.0, 4.0, LEASE_S, 25.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule()
    def clean_up(self) -> None:
        _, partings = self.apply(CleanUp())
        self.part(partings)
        assert all(self.now < token.expires_at for token in self.state.free)
        assert all(self.now < holding.deadline for holding in self.state.leases.values())

    @invariant()
    def everything_is_in_one_place(self) -> None:
        state = getattr(self, "state", None)
        if state is None:
            return
        assert state.slots_used() <= self.policy.per_user, "more sessions than the upstream allows"
        values = [token.value for token in state.free]
        values += [holding.token.value for holding in state.leases.values() if holding.token is not None]
        values += [closing.value for closing in state.closing.values()]
        stems = [value.split("/")[0] for value in values]
        assert len(stems) == len(set(stems)), "a token in two places"
        deadlines = [h.deadline for h in state.leases.values()] + [c.deadline for c in state.closing.values()]
        assert all(state.next_deadline <= deadline for deadline in deadlines), "an overdue slot would be missed"
        assert max(deadlines, default=0.0) <= self.now + LEASE_S, "every slot in somebody's hands has an end"
        assert len(state.tickets) <= self.policy.max_waiting
        numbers = [ticket.number for ticket in state.tickets]
        assert numbers == sorted(numbers), "first come, first served"

    def teardown(self) -> None:
        """However it went: after every deadline has passed, all slots are free again."""
        if not hasattr(self, "state"):
            return
        for _ in range(2):  # what is overdue is closed first, and then the closing is overdue
            self.now += 1_000
            self.apply(CleanUp())
        assert self.state.slots_used() == 0
        assert self.state.is_idle(self.now + 10_000) or self.state.tickets


TestFarm = Farm.TestCase
TestFarm.settings = settings(max_examples=150, stateful_step_count=60, deadline=None)
