"""Searches for a sequence of commands that breaks what the rules promise."""

from __future__ import annotations

from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from coatcheck.pool import rules, slots
from coatcheck.pool.commands import (
    Acquire,
    Add,
    Both,
    CleanUp,
    Command,
    Done,
    Extend,
    Granted,
    Leave,
    LogInAhead,
    LoginDone,
    LoginEnded,
    LogoutEnded,
    Lost,
    MustLogIn,
    NoSlot,
    NotTried,
    QueueFull,
    RefuseToken,
    Release,
    Remove,
    Reply,
    TakeIdle,
    Then,
    Waiting,
)
from coatcheck.pool.state import FAR, MAX_FAILING, REFUSED_S, Policy, new_user

LEASE_S = 10.0
WHICH = st.integers(0, 9)
RIGHT, OTHER, FORMER = b"r" * 16, b"o" * 16, b"f" * 16
WHOSE = st.sampled_from([(), (RIGHT,), (RIGHT, FORMER), (OTHER,), (FORMER, RIGHT)])


def owner(credentials: tuple[bytes, ...]) -> str:
    """Whom the hashes stand for; ``RIGHT`` and ``FORMER`` are of one password, by two keys of a ring."""
    return {b"": "nobody", OTHER: "other"}.get(credentials[0] if credentials else b"", "right")


class Farm(RuleBasedStateMachine):
    """One user's state, an upstream that counts its sessions, and borrowers who keep books of their own."""

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
        self.now = 1_000_000.0
        self.tokens = 0
        self.owners: dict[str, str] = {}  # who opened it, by the token's stem
        self.logins: dict[int, str] = {}  # who logs in, by slot
        self.refused: set[str] = set()
        self.queued: dict[int, tuple[bytes, ...]] = {}
        self.came_back: set[int] = set()  # tickets of those who lost theirs: they need no room
        self.uses: dict[str, int] = {}  # by the token's stem: refreshed strings are the same session
        self.deadlines: dict[int, float] = {}  # of leases that we believe in
        self.in_hands: dict[int, str] = {}  # what borrowers hold until they give it back, be it late
        self.logging_in: list[int] = []
        self.to_close: list[int] = []
        self.queue: list[int] = []
        self.doomed: set[str] = set()  # tokens that were softly removed, by stem: nobody gets them any more
        self.last_fence = self.state.fence

    def apply(self, command: Command) -> tuple[Reply, list[tuple[int, str]]]:
        # Whatever the clock was when a lease was granted: from any command on it lasts no longer than one may.
        self.deadlines = {fence: min(at, self.now + LEASE_S) for fence, at in self.deadlines.items()}
        outcome = rules.apply(self.state, self.policy, self.now, command)
        assert self.state.fence >= self.last_fence, "fencing numbers only grow"
        self.last_fence = self.state.fence
        assert bool(outcome.partings) <= self.policy.signs_out
        return outcome.reply, [(parting.fence, parting.value) for parting in outcome.partings]

    def granted(self, reply: Granted, *, whose: str | None = None, is_use: bool = True) -> None:
        stem = reply.value.split("/")[0]
        assert whose is None or self.owners[stem] == whose, "lent to somebody who did not open it"
        self.uses[stem] = self.uses.get(stem, 0) + is_use
        assert self.uses[stem] <= self.policy.max_uses, "used too often"
        assert stem not in self.doomed, "dropped when it is given back"
        assert stem not in self.in_hands.values(), "a borrower who is late may still be using it"
        self.in_hands[reply.fence] = stem
        self.deadlines[reply.fence] = self.now + LEASE_S

    @precondition(lambda self: self.state.free or self.state.next_deadline <= self.now)
    @rule(whose=WHOSE)
    def check_out(self, whose: tuple[bytes, ...]) -> None:
        queue = self.live_queue(whose)
        reply, partings = self.apply(Acquire(may_wait=False, may_login=False, credentials=whose))
        self.part(partings)
        if type(reply) is Granted:
            assert len(queue) < self.policy.per_user, "somebody came first"
            self.granted(reply, whose=owner(whose))

    @rule(whose=WHOSE)
    def borrow(self, whose: tuple[bytes, ...]) -> None:
        self.ask(0, whose)

    @precondition(lambda self: self.queue)
    @rule(which=WHICH, more=st.integers(0, 2))
    def ask_again(self, which: int, more: int) -> None:
        ticket = self.queue[which % len(self.queue)]
        self.ask(ticket, self.queued[ticket], more=more)

    @precondition(lambda self: self.queue and self.in_hands)
    @rule(which=WHICH, more=st.integers(0, 2), ahead=st.booleans())
    def pass_on(self, which: int, more: int, ahead: bool) -> None:
        """Whoever gives back asks in the same command for those of its process who wait."""
        ticket = self.queue[which % len(self.queue)]
        fence = list(self.in_hands)[which % len(self.in_hands)]
        stem, late = self.in_hands.pop(fence), self.now >= self.deadlines[fence]
        late = late or fence not in self.state.leases
        assert stem
        self.ask(ticket, self.queued[ticket], more=more, ahead=ahead, release=Release(fence), late=late)

    def ask(
        self,
        ticket: int,
        whose: tuple[bytes, ...],
        *,
        more: int = 0,
        ahead: bool = False,
        release: Release | None = None,
        late: bool = False,
    ) -> None:
        queue = self.live_queue(whose, ticket)
        # Another process may have renamed its credentials by a key that this one does not know.
        has_place = any(other.number == ticket and self.now < other.alive_until for other in self.state.tickets)
        command = Acquire(ticket, credentials=whose, more=more, ahead=ahead)
        reply, partings = self.apply(command if release is None else Then(release, command))
        self.part(partings)
        if type(reply) is Both:
            assert (reply.first == Lost()) is late
            reply = reply.second
            ahead = ahead and not late
        if type(reply) is Waiting:
            assert reply.again_s >= 0
            self.queued[reply.ticket] = whose
            if reply.ticket != ticket:
                if ticket:
                    self.came_back.add(reply.ticket)
                self.leave_queue(ticket)
                self.queue.append(reply.ticket)
            return
        stays = [place for place, other in enumerate(self.state.tickets) if other.number == ticket]
        if not stays:
            self.leave_queue(ticket)
        if type(reply) is QueueFull:
            assert not ticket, "who was let in once is not sent away"
            assert sum(other.callers for other in self.state.tickets) >= self.policy.max_waiting
            return
        if type(reply) is NotTried:
            assert owner(whose) in self.refused
            return
        before = queue.index(ticket) if ticket in queue else len(queue)
        assert ahead or before < self.policy.per_user, "more came first than there are slots"
        assert len(stays) == (more > 0 and has_place), "it stays for those behind"
        if stays and not ahead:
            assert stays == [len(self.state.tickets) - 1], "it had its turn"
        if type(reply) is Granted:
            self.granted(reply, whose=owner(whose))
        else:
            assert type(reply) is MustLogIn
            self.logging_in.append(reply.fence)
            self.logins[reply.fence] = owner(whose)

    def live_queue(self, whose: tuple[bytes, ...], asks: int = 0) -> list[int]:
        """Those who wait with the same credentials: others may wait for what these need not.

        Whoever asks is among them, though another process may have renamed its credentials.
        """
        waiting = [ticket for ticket in self.state.tickets if self.now < ticket.alive_until]
        mine = whose or (b"",)
        return [ticket.number for ticket in waiting if ticket.number == asks or ticket.credentials in mine]

    def leave_queue(self, ticket: int) -> None:
        if ticket in self.queue:
            self.queue.remove(ticket)

    def part(self, partings: list[tuple[int, str]]) -> None:
        self.to_close += [fence for fence, _ in partings]

    @precondition(lambda self: self.logging_in)
    @rule(which=WHICH, span=st.sampled_from([FAR, 7.0]))
    def log_in(self, which: int, span: float) -> None:
        slot = self.logging_in.pop(which % len(self.logging_in))
        self.tokens += 1
        self.owners[f"t{self.tokens}"] = self.logins[slot]
        reply, partings = self.apply(LoginDone(slot, f"t{self.tokens}", 20.0, span))
        self.part(partings)
        if type(reply) is Granted:
            self.granted(reply)
        else:
            assert reply == Lost()
            assert slot not in self.state.leases or self.now >= self.state.leases[slot].deadline

    @precondition(lambda self: self.logging_in)
    @rule(which=WHICH, failed=st.booleans(), refused=st.booleans())
    def fail_to_log_in(self, which: int, failed: bool, refused: bool) -> None:
        slot = self.logging_in.pop(which % len(self.logging_in))
        holding = self.state.leases.get(slot)
        reply, _ = self.apply(LoginEnded(slot, failed=failed, refused=failed and refused))
        if failed and holding is not None:
            tokens = [*self.state.free, *(each.token for each in self.state.leases.values() if each.token)]
            assert reply == Done(sum(token.credentials == holding.credentials for token in tokens))
        assert slot not in self.state.leases
        if failed and holding is not None:
            assert slots.login_allowed_at(self.state, self.policy, holding.credentials) > self.now, "not again at once"
        if failed and refused:
            self.refused.add(self.logins[slot] if holding is not None else "nobody")

    @precondition(lambda self: self.in_hands)
    @rule(which=WHICH, renew=st.booleans(), keep=st.integers(0, 3), sign_out=st.booleans())
    def give_back(self, which: int, renew: bool, keep: int, sign_out: bool) -> None:
        fence = list(self.in_hands)[which % len(self.in_hands)]
        value = f"{self.in_hands.pop(fence)}/{self.now}" if renew else None
        known = fence in self.state.leases
        reply, partings = self.apply(Release(fence, value, keep=keep > 0, sign_out=sign_out))
        self.part(partings)
        late = self.now >= self.deadlines[fence]
        assert (reply == Lost()) is (late or not known), "to the very moment"
        reply, _ = self.apply(Release(fence, "replayed"))
        assert reply == Lost()
        self.in_hands.pop(fence, None)

    @precondition(lambda self: self.in_hands)
    @rule(which=WHICH)
    def refuse(self, which: int) -> None:
        """A token is given up for one refusal, unless it was opened for this call, or lately after others."""
        fence = list(self.in_hands)[which % len(self.in_hands)]
        holding, refusals = self.state.leases.get(fence), self.state.refusals
        refused_at = min(self.state.refused_at, self.now)
        reply, _ = self.apply(RefuseToken(fence))
        if self.now >= self.deadlines[fence] or holding is None or holding.token is None:
            assert reply == Lost()
            return
        token = holding.token
        protected_s = min(2.0 ** (refusals - 1), 60.0) if refusals and token.opened_at >= refused_at else 0.0
        kept = fence == token.token_id or self.now - token.opened_at < protected_s
        assert reply == Done(0 if kept else 1)
        assert self.state.refusals > 0 or token.opened_at < refused_at

    @precondition(lambda self: self.in_hands)
    @rule(which=WHICH)
    def extend(self, which: int) -> None:
        fence = list(self.in_hands)[which % len(self.in_hands)]
        reply, _ = self.apply(Extend(fence))
        if type(reply) is Granted:
            self.deadlines[fence] = self.now + LEASE_S

    @rule(whose=WHOSE, sessions=st.integers(1, 3), idle=st.booleans())
    def log_in_ahead(self, whose: tuple[bytes, ...], sessions: int, idle: bool) -> None:
        waiting = any(self.now < ticket.alive_until for ticket in self.state.tickets)
        reply, partings = self.apply(LogInAhead(sessions, whose, idle))
        self.part(partings)
        if type(reply) is MustLogIn:
            assert not waiting, "whoever waits comes first"
            self.logging_in.append(reply.fence)
            self.logins[reply.fence] = owner(whose)
            under_way = [fence for fence in self.logging_in if fence in self.state.leases]
            owned = sum(self.logins[fence] == owner(whose) for fence in under_way)
            owned += sum(self.owners[token.value.split("/")[0]] == owner(whose) for token in self.state.free)
            assert not (whose == (RIGHT, FORMER) and idle) or owned <= sessions, "enough is enough"
        elif type(reply) is NotTried:
            assert owner(whose) in self.refused

    @precondition(lambda self: self.state.free)
    @rule()
    def keep_alive(self) -> None:
        reply, partings = self.apply(TakeIdle(1.0))
        self.part(partings)
        if type(reply) is Granted:
            assert not any(self.now < ticket.alive_until for ticket in self.state.tickets), "whoever waits comes first"
            self.granted(reply, is_use=False)

    @precondition(lambda self: self.tokens < 4)
    @rule(whose=WHOSE)
    def add(self, whose: tuple[bytes, ...]) -> None:
        self.tokens += 1
        self.uses[f"t{self.tokens}"] = 1
        self.owners[f"t{self.tokens}"] = owner(whose)
        reply, partings = self.apply(Add(f"t{self.tokens}", 20.0, whose))
        self.part(partings)
        assert type(reply) in (Done, NoSlot)

    @precondition(lambda self: self.to_close)
    @rule(which=WHICH)
    def close(self, which: int) -> None:
        self.apply(LogoutEnded(self.to_close.pop(which % len(self.to_close))))

    @precondition(lambda self: self.state.free)
    @rule(every=st.booleans(), soft=st.booleans())
    def operator_removes(self, every: bool, soft: bool) -> None:
        lent = {holding.token.value.split("/")[0] for holding in self.state.leases.values() if holding.token}
        reply, partings = self.apply(Remove(None if every else self.state.free[0].token_id, soft=soft))
        self.part(partings)
        assert reply != Done(0)
        if every and soft:
            self.doomed |= lent
            assert lent == {h.token.value.split("/")[0] for h in self.state.leases.values() if h.token}, "used on"

    @precondition(lambda self: self.queue)
    @rule(which=WHICH)
    def leave(self, which: int) -> None:
        ticket = self.queue.pop(which % len(self.queue))
        self.apply(Leave(ticket))
        assert all(other.number != ticket for other in self.state.tickets)

    @rule(seconds=st.sampled_from([0.5, 1.0, 2.0, 4.0, LEASE_S, 25.0]), clean_up=st.booleans())
    def time_passes(self, seconds: float, clean_up: bool) -> None:
        self.now += seconds
        if clean_up:
            _, partings = self.apply(CleanUp())
            self.part(partings)
            assert all(self.now < token.expires_at for token in self.state.free)
            assert all(self.now < holding.deadline for holding in self.state.leases.values())

    @rule(seconds=st.sampled_from([-3_600.0, -30.0, -1.0, 3_600.0]))
    def clock_is_set(self, seconds: float) -> None:
        """Somebody corrects the clock, or puts it wrong; the next command finds it so."""
        self.now += seconds
        _, partings = self.apply(CleanUp())
        self.part(partings)

    @rule(whose=WHOSE)
    def log_in_at_once(self, whose: tuple[bytes, ...]) -> None:
        """The usual way, so that there is something to go wrong with."""
        self.ask(0, whose)
        if self.logging_in:
            self.tokens += 1
            slot = self.logging_in.pop()
            self.owners[f"t{self.tokens}"] = self.logins[slot]
            reply, _ = self.apply(LoginDone(slot, f"t{self.tokens}", 20.0))
            if type(reply) is Granted:
                self.granted(reply)

    @precondition(lambda self: self.in_hands)
    @rule()
    def give_back_at_once(self) -> None:
        fence, _ = self.in_hands.popitem()
        reply, partings = self.apply(Release(fence))
        self.part(partings)
        assert reply == Lost() or self.now < self.deadlines[fence]

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
        new = [ticket for ticket in state.tickets if ticket.number not in self.came_back]
        assert len(new) <= self.policy.max_waiting
        numbers = [ticket.number for ticket in state.tickets]
        assert len(set(numbers)) == len(numbers), "one place each"

    @invariant()
    def nothing_lasts_longer_than_it_may(self) -> None:
        state = getattr(self, "state", None)
        if state is None:
            return
        policy = self.policy
        assert state.rate_at <= self.now + policy.login_every_s * policy.login_burst, "logins are locked for long"
        assert len(state.failing) <= MAX_FAILING
        for failing in state.failing:
            longest_s = REFUSED_S if failing.refused else policy.backoff_max_s
            assert failing.retry_at() <= self.now + longest_s, "a failed login locks for long"
        assert all(closing.deadline <= self.now + policy.logout_timeout_s for closing in state.closing.values())
        assert all(ticket.alive_until <= self.now + policy.ticket_life_s for ticket in state.tickets)
        tokens = [*state.free, *(holding.token for holding in state.leases.values() if holding.token is not None)]
        for token in tokens:
            assert token.expires_at <= self.now + token.life_s
            assert token.dies_at <= self.now + token.span_s
            assert token.used_at <= self.now

    def teardown(self) -> None:
        """However it went: after every deadline has passed, all slots are free again."""
        if not hasattr(self, "state"):
            return
        self.now -= 86_400
        self.apply(CleanUp())  # so that it is found out
        for _ in range(2):  # what is overdue is closed first, and then the closing is overdue
            self.now += 1_000
            self.apply(CleanUp())
        assert self.state.slots_used() == 0
        assert self.state.is_idle(self.now + 10_000) or self.state.tickets


def test_who_was_renamed_by_a_newer_key_keeps_its_place() -> None:
    """Found by the search: the first in the queue knows the former key alone, and asks behind one who has the newer."""
    farm = Farm()
    farm.begin(per_user=1, max_uses=1, signs_out=False, ticket_life_s=FAR, login_every_s=0.0)
    farm.log_in_at_once(whose=())
    farm.borrow(whose=(RIGHT,))
    farm.log_in_at_once(whose=(FORMER, RIGHT))
    farm.give_back_at_once()
    farm.log_in_at_once(whose=(RIGHT,))
    first = farm.queue[0]
    farm.ask_again(which=0, more=0)
    assert first not in farm.queue, "it had its turn"
    assert farm.logging_in
    farm.teardown()


def test_a_login_ahead_leaves_the_slot_to_who_waits_for_it() -> None:
    farm = Farm()
    farm.begin(per_user=2, max_uses=1, signs_out=False, ticket_life_s=FAR, login_every_s=0.0)
    farm.log_in_at_once(whose=())
    farm.borrow(whose=())
    farm.fail_to_log_in(which=0, failed=True, refused=False)
    farm.borrow(whose=())
    assert len(farm.queue) == 1, "after the failure it waits for its turn to try"
    farm.time_passes(seconds=2.0, clean_up=False)
    farm.log_in_ahead(whose=(), sessions=3, idle=False)
    assert farm.logging_in == []
    farm.ask_again(which=0, more=0)
    assert len(farm.logging_in) == 1
    farm.teardown()


TestFarm = Farm.TestCase
TestFarm.settings = settings(max_examples=300, stateful_step_count=60, deadline=None)
