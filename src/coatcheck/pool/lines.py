"""Callers of one process who wait for the same stand in one line, in memory; the store knows a line by one ticket.

A line is of one user and one set of credentials. The first in it asks the store, for all: it watches the ticket, keeps
it alive, and is served first. Whoever gives a token back in this process asks in the same command, and hands what comes
to the first. Joining a line, waiting in it, leaving it and running out of time write nothing; only the last to leave
tells the store.

Nothing here blocks, awaits, or talks to a store: flows (:mod:`coatcheck.pool.flows`) ask, and tell what they heard.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Final, Protocol

from coatcheck.pool import rules
from coatcheck.pool.commands import (
    Acquire,
    Both,
    Command,
    Granted,
    Leave,
    LoginEnded,
    MustLogIn,
    QueueFull,
    Release,
    Reply,
    SlotTurn,
    Then,
    Waiting,
)
from coatcheck.pool.errors import PoolClosed, PoolFull, StoreUnavailable
from coatcheck.pool.state import FAR, Policy, UserState

TURN_S: Final = 0.1
"""A process whose turn it is may use the slot for so long, for callers who waited when its turn came; then it is the
next one's in the queue."""

PAUSE_GROWS: Final = 1.5
"""How much longer each pause is than the one before, while nothing happens and nobody tells."""

Credentials = tuple[bytes, ...]


class Watched(Protocol):
    """What a line needs of its store: to be woken, and to know how often to look for itself."""

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        """From now on call ``wake``, from any thread, when it may be the turn of ``ticket``; never blocks."""
        ...

    def unwatch(self, user: str, ticket: int) -> None: ...

    def pauses(self) -> tuple[float, float]:
        """The first and the longest pause in seconds between two looks, because nobody tells; ``FAR``: do not look."""
        ...


class InMemory(Protocol):
    """What the fast path needs of the store in the process."""

    lock: Any
    changing: bool
    policy: Policy
    clock: Callable[[], float]


class Place:
    """A caller in a line. ``reply``: what it was served, or the error that ends its waiting."""

    __slots__ = ("credentials", "line", "reply", "sleeps_until", "turn", "user", "wake")

    def __init__(self, user: str, credentials: Credentials) -> None:
        self.user = user
        self.credentials = credentials
        self.line: WaitLine | None = None
        self.reply: Reply | Exception | None = None
        self.turn: SlotTurn | None = None
        self.sleeps_until = -FAR
        self.wake: Callable[[], None] | None = None


class WaitLine:
    """Those who wait in this process for the same, in the order in which they came."""

    __slots__ = (
        "again_at",
        "asker",
        "credentials",
        "due",
        "hopeless",
        "limited_until",
        "look_at",
        "pause_s",
        "places",
        "ticket",
        "timeouts",
        "user",
    )

    def __init__(self, user: str, credentials: Credentials) -> None:
        self.user = user
        self.credentials = credentials
        self.places: OrderedDict[Place, None] = OrderedDict()
        self.ticket = 0  # 0: the store does not know of this line
        self.asker: object = None  # one at a time: a place, or whoever gives back
        self.due = True  # the first should ask at once
        self.again_at = -FAR  # when it should in any case
        self.look_at = FAR  # when to look whether it should
        self.pause_s = 0.0
        self.limited_until = -FAR  # no login before
        self.hopeless = False  # nothing but that login can bring a token
        self.timeouts = 0  # that the store was not told of

    def first(self) -> Place | None:
        return next(iter(self.places), None)


class Lines:
    """All lines of one pool in one process. Safe to use from several threads.

    ``clock``: the pool's. ``dice``: uniform in 0..1. ``lock``: one that its owner may take again, because a signal
    handler may borrow and give back as well.
    """

    def __init__(
        self,
        store: Watched,
        policy: Policy,
        clock: Callable[[], float],
        dice: Callable[[], float],
        lock: AbstractContextManager[Any],
    ) -> None:
        self.clock = clock
        self._dice = dice
        self._lock = lock
        self._store = store
        self._policy = policy
        self._users: dict[str, dict[Credentials, WaitLine]] = {}
        self._closed = False

    # -- joining and leaving

    def join(self, place: Place) -> WaitLine:
        """Stand at the end of the line. Raises ``PoolFull``, ``PoolClosed``."""
        with self._lock:
            if self._closed:
                raise PoolClosed("the pool is closed")
            lines = self._users.setdefault(place.user, {})
            line = lines.get(place.credentials)
            if line is None:
                line = lines[place.credentials] = WaitLine(place.user, place.credentials)
            # As long as the store did not say that they have to wait, so many more may be about to be served.
            most = self._policy.max_waiting + (0 if line.ticket else self._policy.per_user)
            if _count(lines) >= most:
                self._forget(line)
                raise full(place.user)
            place.line = line
            line.places[place] = None
            return line

    def leave(self, place: Place, *, timed_out: bool = False) -> list[Command]:
        """Go away, also with what was served meanwhile: it is for the next. What to tell the store comes back."""
        with self._lock:
            line = place.line
            if line is None:
                return []
            if line.asker is place:
                line.asker, line.due = None, True
            line.places.pop(place, None)
            reply, place.reply = place.reply, None
            if isinstance(reply, Granted | MustLogIn):
                return self._pass_on(line, reply, place.turn)
            line.timeouts += timed_out
            return self._after(line)

    def close(self) -> None:
        """Nobody waits any more: all who do are told ``PoolClosed``."""
        with self._lock:
            self._closed = True
            for lines in list(self._users.values()):
                for line in list(lines.values()):
                    _tell_all(line, lambda: PoolClosed("the pool is closed"))

    def waiting(self, user: str) -> tuple[int, set[int], int]:
        """How many wait here for tokens of ``user``, with which tickets, and the time-outs that nobody was told of."""
        with self._lock:
            lines = [line for line in self._users.get(user, {}).values() if line.ticket]
            tickets = {line.ticket for line in lines}
            return sum(len(line.places) for line in lines), tickets, sum(line.timeouts for line in lines)

    def has_back_off(self) -> bool:
        """Whether a login that failed is not tried again at once."""
        return self._policy.backoff_first_s > 0

    # -- asking

    def to_ask(self, place: Place) -> Acquire | Then | None:
        """What this caller has to ask the store now, if it does. Then :meth:`heard` or :meth:`failed`."""
        with self._lock:
            line = _line_of(place)
            if line.first() is not place or not (line.due or self.clock() >= line.again_at):
                return None
            return _ask(line, place)

    def to_ask_again(self, line: WaitLine, asker: object) -> Acquire | Then | None:
        """What whoever has just asked has to ask for the others in line, because it is their turn as well."""
        with self._lock:
            return _ask(line, asker) if line.due and line.places else None

    def to_pass_on(
        self, user: str, release: Release, credentials: Credentials | None, turn: SlotTurn | None
    ) -> tuple[WaitLine, Then] | None:
        """How to give a lease back, and in the same command ask for those who wait here; ``None``: nobody does.

        ``credentials``: of whoever gives back, if known; ``turn``: that of the lease. Then :meth:`heard` or
        :meth:`failed`.
        """
        if user not in self._users:
            return None
        with self._lock:
            lines = self._users.get(user, {})
            line = lines.get(credentials) if credentials is not None else next(iter(lines.values()), None)
            if line is None or line.asker is not None or not line.ticket or not line.places:
                return None
            line.asker, line.due = release, False
            ahead = turn is not None and turn.callers > 0 and self.clock() < turn.until
            return line, Then(release, _acquire(line, ahead=ahead))

    def pass_on_quickly(
        self,
        memory: InMemory,
        state: UserState,
        user: str,
        fence: int,
        value: str | None,
        credentials: Credentials,
    ) -> bool:
        """The same for tokens in this process when nothing is out of the ordinary; else nothing changes."""
        with self._lock:
            line = self._users.get(user, {}).get(credentials)
            if line is None or line.asker is not None or line.due or not line.ticket or not line.places:
                return False
            more = len(line.places) - 1
            with memory.lock:
                now = memory.clock()
                taken = None
                if not memory.changing:
                    taken = rules.pass_on_quickly(state, memory.policy, now, fence, value, line.ticket, more)
            if taken is None:
                return False
            fence, deadline, token = taken
            granted = Granted(fence, token.value, memory.policy.lease_s, token.uses, deadline)
            if not more:
                self._set_ticket(line, 0)
                line.due = True
            return not self._pass_on(line, granted, None)

    def heard(
        self, line: WaitLine, command: Acquire | Then, answer: Reply, turn: SlotTurn | None = None
    ) -> list[Command]:
        """What the store answered for the line; ``turn``: of the lease that was given back with it.

        What to tell the store, because nobody is there any more who wants it, comes back.
        """
        acquire = command.second if isinstance(command, Then) else command
        reply = answer.second if isinstance(answer, Both) else answer
        with self._lock:
            line.asker = None
            if isinstance(reply, Waiting):
                self._must_wait(line, reply)
                return self._after(line)
            if not isinstance(reply, Granted | MustLogIn):  # NotTried, QueueFull: it is so for all
                self._set_ticket(line, 0)
                _tell_all(line, lambda: full(line.user) if isinstance(reply, QueueFull) else reply)
                return self._after(line)
            if not acquire.more:
                self._set_ticket(line, 0)
            if not line.ticket:
                line.due = True  # whoever is next asks for itself
            now = self.clock()
            if acquire.ahead and turn is not None:
                turn = SlotTurn(turn.until, turn.callers - 1)
            else:
                turn = SlotTurn(now + TURN_S, len(line.places) - 1)
            self._plan_look(line, now)
            return self._pass_on(line, reply, turn)

    def failed(self, user: str, asker: object, error: BaseException) -> list[Command]:
        """Asking failed. A store that does not answer is not asked again by each who waits.

        What to tell the store comes back.
        """
        commands: list[Command] = []
        with self._lock:
            for line in list(self._users.get(user, {}).values()):
                if line.asker is not asker:
                    continue
                line.asker, line.due = None, True
                if isinstance(error, StoreUnavailable):
                    self._set_ticket(line, 0)  # if the store knows it, it ends there by itself
                    _tell_all(line, lambda: StoreUnavailable(*error.args))
                commands += self._after(line)
        return commands

    # -- sleeping

    def sleep(self, place: Place, until: float, wake: Callable[[], None]) -> float:
        """Register how to wake this caller; for how many seconds to sleep at most, 0: not at all.

        ``until``: on the pool's clock, when its time is over. ``wake`` is called once, from any thread.
        """
        with self._lock:
            line = _line_of(place)
            if place.reply is not None:
                return 0.0
            if line.asker is None and line.first() is place:
                if line.due:
                    return 0.0
                until = min(until, line.again_at, line.look_at)
            place.sleeps_until = until
            place.wake = wake
            return until - self.clock()

    def limited_s(self, place: Place, left_s: float) -> float:
        """For how long no login may start, if that is why this caller, who has ``left_s``, gets nothing; else 0."""
        with self._lock:
            line = _line_of(place)
            limited_s = line.limited_until - self.clock()
            if limited_s > 0 and (left_s <= 0 or (line.hopeless and limited_s >= left_s)):
                return limited_s
            return 0.0

    def must_look(self, place: Place) -> bool:
        """Whether it is for this caller to look at the store now: to see, unasked, whether its turn has come."""
        with self._lock:
            line, now = _line_of(place), self.clock()
            if line.asker is not None or line.due or line.first() is not place or now < line.look_at:
                return False
            line.pause_s *= PAUSE_GROWS
            self._plan_look(line, now)
            return now < line.again_at

    def rouse(self, line: WaitLine) -> None:
        """It may be the line's turn."""
        with self._lock:
            line.due = True
            _see_to_first(line)

    # -- with the lock held

    def _must_wait(self, line: WaitLine, reply: Waiting) -> None:
        now = self.clock()
        line.again_at = now + reply.again_s
        line.limited_until = now + reply.limited_s if reply.limited_s else -FAR
        line.hopeless = reply.hopeless
        self._plan_look(line, now, anew=reply.ticket != line.ticket)
        if reply.ticket != line.ticket:
            self._set_ticket(line, reply.ticket)
            lines = self._users.get(line.user, {})
            while len(line.places) > 1 and _count(lines) > self._policy.max_waiting:
                _serve(next(reversed(line.places)), full(line.user))
        if reply.hopeless:
            for place in line.places:  # each knows for itself how long it would wait
                _wake(place)

    def _pass_on(self, line: WaitLine, reply: Granted | MustLogIn, turn: SlotTurn | None) -> list[Command]:
        """Serve the first; if nobody is there, it goes back to the store."""
        first = line.first()
        if first is not None:
            first.turn = turn
            _serve(first, reply)
            return self._after(line)
        back: Command = Release(reply.fence) if isinstance(reply, Granted) else LoginEnded(reply.fence, failed=False)
        return [back, *self._after(line)]

    def _after(self, line: WaitLine) -> list[Command]:
        """See to whoever is first now; the last to leave tells the store."""
        if line.places:
            _see_to_first(line)
            return []
        if line.asker is not None:
            return []  # whoever asks sees to it
        ticket, timeouts, line.timeouts = line.ticket, line.timeouts, 0
        self._set_ticket(line, 0)
        self._forget(line)
        return [Leave(ticket, timeouts)] if ticket or timeouts else []

    def _forget(self, line: WaitLine) -> None:
        lines = self._users.get(line.user)
        if line.places or line.asker is not None or lines is None or lines.get(line.credentials) is not line:
            return
        del lines[line.credentials]
        if not lines:
            del self._users[line.user]

    def _set_ticket(self, line: WaitLine, ticket: int) -> None:
        if ticket == line.ticket:
            return
        if line.ticket:
            self._store.unwatch(line.user, line.ticket)
        line.ticket = ticket
        if ticket:
            self._store.watch(line.user, ticket, lambda: self.rouse(line))

    def _plan_look(self, line: WaitLine, now: float, *, anew: bool = False) -> None:
        first_s, most_s = self._store.pauses()
        line.pause_s = first_s if anew else min(max(line.pause_s, first_s), most_s)
        line.look_at = now + line.pause_s * (0.5 + self._dice())


def _line_of(place: Place) -> WaitLine:
    assert place.line is not None, "it has joined"
    return place.line


def _count(lines: dict[Credentials, WaitLine]) -> int:
    return sum(len(line.places) for line in lines.values())


def _acquire(line: WaitLine, *, ahead: bool = False) -> Acquire:
    return Acquire(line.ticket, credentials=line.credentials, more=max(0, len(line.places) - 1), ahead=ahead)


def _ask(line: WaitLine, asker: object) -> Acquire | Then | None:
    if line.asker is not None:
        return None
    line.asker, line.due = asker, False
    acquire = _acquire(line)
    if not line.timeouts:
        return acquire
    timeouts, line.timeouts = line.timeouts, 0
    return Then(Leave(0, timeouts), acquire)


def _see_to_first(line: WaitLine) -> None:
    """Let the first not sleep longer than it may."""
    first = line.first()
    if first is None or line.asker is not None:
        return
    if line.due or first.sleeps_until > min(line.again_at, line.look_at):
        _wake(first)


def _serve(place: Place, reply: Reply | Exception) -> None:
    _line_of(place).places.pop(place, None)
    place.reply = reply
    _wake(place)


def _tell_all(line: WaitLine, reply: Callable[[], Reply | Exception]) -> None:
    while line.places:
        _serve(next(iter(line.places)), reply())


def _wake(place: Place) -> None:
    wake, place.wake = place.wake, None
    if wake is not None:
        wake()


def full(user: str) -> PoolFull:
    return PoolFull(f"as many callers wait for a token of {user!r} as may")
