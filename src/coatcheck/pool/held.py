"""A lease in a borrower's hands: what is the same for threads and asyncio."""

from __future__ import annotations

from enum import Enum
from typing import Any, Final

from coatcheck.pool.commands import Granted, Lost, RefuseToken, Release, SlotTurn
from coatcheck.pool.duration import Duration
from coatcheck.pool.errors import LeaseLost, PoolError
from coatcheck.pool.flows import Apply, Flow, release
from coatcheck.pool.lines import Lines
from coatcheck.pool.masking import check_token, masked
from coatcheck.pool.options import span_of
from coatcheck.pool.payload import Payload, check_payload, pack, unpack
from coatcheck.pool.rules import give_back_quickly, take_quickly
from coatcheck.pool.state import UserState


class Same(Enum):
    """In place of a payload: the one that is there."""

    SAME = "same"


SAME: Final = Same.SAME


class Held:
    """What a borrower has: ``user``, ``token``, ``fencing`` and ``deadline`` (seconds on :meth:`clock`).

    ``payload``: what belongs to the token beside its string, or ``None``. It is stored anew by :meth:`renew` alone.

    After the deadline the lease is lost: giving it back raises ``LeaseLost``. Leases are made by ``pool.lease``.
    """

    __slots__ = (
        "__weakref__",
        "_credentials",
        "_dropped",
        "_generation",
        "_pool",
        "_renewed",
        "_sign_out",
        "_span_s",
        "_state",
        "_turn",
        "_wait",
        "deadline",
        "fencing",
        "password",
        "payload",
        "token",
        "user",
        "uses",
    )

    token: str
    payload: Payload | None
    deadline: float
    uses: int
    _generation: int
    _sign_out: bool
    _span_s: float | None
    _state: UserState | None
    _turn: SlotTurn | None

    def __init__(self, pool: Any, user: str, password: str | None, wait: Duration | None) -> None:
        self._pool = pool
        self.user = user
        self.password = password
        self._credentials: tuple[bytes, ...] | None = None
        self._wait = wait
        self.fencing = 0  # 0: not (or no longer) held
        self._renewed = self._dropped = False
        self._span_s = self._turn = None

    def __repr__(self) -> str:
        held = f"lease {self.fencing} of {masked(self.token)}" if self.fencing else "not held"
        return f"<{type(self).__name__} {self.user!r}, {held}>"

    def _hold(self, granted: Granted) -> None:
        self.fencing = granted.fence
        self.token, self.payload = unpack(granted.value)
        self.deadline = granted.deadline
        self.uses = granted.uses
        self._generation = self._pool.generation
        self._turn = granted.turn
        if self._pool.leaks is not None:
            self._pool.leaks.lent(self.user, self.fencing)
        memory = self._pool.quick
        self._state = None if memory is None else memory.states.get(self.user)

    # The fast path: one lock, no command, no flow, for tokens in this process when nothing is out of the ordinary.
    # Otherwise the answer is that of the whole way, which for asyncio is to be awaited.

    def _enter(self) -> Any:
        """The beginning of ``with``: the lease itself, or what :meth:`acquire` answers."""
        memory = self._pool.quick
        if memory is None or self.fencing:
            return self.acquire()
        try:
            state = memory.states.get(self.user)
        except TypeError:
            state = None  # what cannot be hashed is no user, as the whole way will say
        if state is None:
            return self.acquire()
        credentials = () if self.password is None else self._hashes()
        with memory.lock:
            taken = None if memory.changing else take_quickly(state, memory.policy, memory.clock(), credentials)
        if taken is None:
            return self.acquire()
        self.fencing, self.deadline, token = taken
        self._state = state
        value = token.value
        if value[0] == "\x00":
            self.token, self.payload = unpack(value)
        else:
            self.token, self.payload = value, None
        self.uses = token.uses
        return self

    def _leave(self, kind: type[BaseException] | None, error: BaseException | None, traceback: object) -> Any:
        """The end of ``with``: ``None``, or what :meth:`release` or the pool's ``give_up`` answers."""
        fencing = self.fencing
        if not fencing:
            return None
        if kind is not None:
            return self._pool.give_up(self)
        state = self._state
        if state is None:
            return self.release()
        memory = self._pool.memory
        value = self._value() if self._renewed else None
        if state.tickets:
            lines: Lines = self._pool.lines
            done = lines.pass_on_quickly(memory, state, self.user, fencing, value, self._hashes())
        else:
            with memory.lock:
                now = memory.clock()
                done = not memory.changing and give_back_quickly(state, memory.policy, now, fencing, value)
        if not done:
            return self.release()
        self.fencing = 0
        self._renewed = False
        self._turn = None
        return None

    def _hashes(self) -> tuple[bytes, ...]:
        """Of the credentials that this caller gave; it may acquire more than once, with the same ones."""
        if self._credentials is None:
            self._credentials = self._pool.credentials.of(self.user, self.password)
        return self._credentials

    def acquire(self) -> Any:
        raise NotImplementedError

    def release(self, *, failed: bool = False, token: str | None = None) -> Any:
        raise NotImplementedError

    def clock(self) -> float:
        """The clock on which :attr:`deadline` is a moment."""
        now: float = self._pool.clock()
        return now

    def remaining_s(self) -> float:
        """Seconds until the deadline; not positive when the lease is over."""
        return self.deadline - self.clock()

    def _value(self) -> str:
        """The token and its payload as they are stored."""
        return pack(self.token, self.payload)

    def renew(self, token: str, *, expires_in_s: float | None = None, payload: Payload | Same | None = SAME) -> None:
        """Take the refreshed token that the upstream sent; it is stored when the lease is given back.

        ``payload``: what belongs to it now; without it, what belonged to the token before. Raises ``LeaseLost`` after
        the deadline, ``ValueError`` for what is no token or payload; the lease stays as it was.
        """
        check_token(token)
        kept = self.payload if self.fencing and payload is SAME else check_payload(None if payload is SAME else payload)
        span_s = None if expires_in_s is None else span_of(expires_in_s)
        self._must_hold()
        if self._dropped or self._pool.clock() >= self.deadline:
            raise LeaseLost(self.user, self.fencing)
        self.token = token
        self.payload = kept
        self._renewed = True
        if span_s is not None:
            self._span_s = span_s
            self._state = None

    def drop(self, *, sign_out: bool = False) -> None:
        """Never hand this token out again: the upstream called it dead. Its slot is free when the lease is given back.

        ``sign_out``: the session may still be alive there, so log it out.
        """
        self._must_hold()
        self._dropped = True
        self._sign_out = sign_out
        self._state = None

    def _refusing(self) -> Flow[bool]:
        """Ask whether it is believed that the token is dead; if it is, the token is dropped with the lease."""
        self._must_hold()
        reply = yield Apply(self.user, RefuseToken(self.fencing))
        believed = type(reply) is Lost or reply.count > 0
        if believed:
            self.drop()
        return believed

    def _must_hold(self) -> None:
        if not self.fencing:
            raise PoolError(f"this lease of {self.user!r} is not held: use it inside `with`, or acquire() it")
        if self._pool.memory is None and self._generation != self._pool.generation:
            fencing, self.fencing = self.fencing, 0
            raise LeaseLost(self.user, fencing)  # this process is a fork; the lease is its parent's

    def _must_be_free(self) -> None:
        if self.fencing:
            raise PoolError(f"this lease of {self.user!r} is held already: each caller takes a lease of its own")

    def _giving_back(self, command: Release, ask_value: str | None) -> Flow[None]:
        turn, self._turn = self._turn, None
        lines: Lines = self._pool.lines
        return release(self.user, command, lines, ask_value, credentials=self._hashes(), turn=turn)

    def _let_go(self, failed: bool) -> tuple[Release, str | None]:
        """The command that gives the lease back, and the token to probe before (if it is to be probed)."""
        self._must_hold()
        fencing, self.fencing = self.fencing, 0
        value = self._value() if self._renewed else None
        renewed_span_s, dropped = self._span_s, self._dropped
        # As new, so that it can be acquired again.
        self._state, self._renewed, self._dropped, self._span_s = None, False, False, None
        if dropped:
            return Release(fencing, keep=False, sign_out=self._sign_out, value=value), None
        on_error = self._pool.settings.on_error
        keep = not failed or on_error == "return"
        ask = self._value() if failed and on_error == "probe" else None
        return Release(fencing, value, renewed_span_s, keep=keep), ask
