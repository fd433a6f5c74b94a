"""What a caller does, step by step, written once: a flow yields what it needs and is sent the answer.

``TokenPool`` answers with threads, ``AsyncTokenPool`` with asyncio. A flow that is interrupted (an error, a
cancellation, Ctrl-C) gets that error at its ``yield``, puts things right with further steps, and lets it go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import msgspec

from coatcheck.pool.commands import (
    Acquire,
    Command,
    Done,
    Granted,
    Leave,
    LoginDone,
    LoginEnded,
    Lost,
    MustLogIn,
    NoSlot,
    NoToken,
    NotTried,
    Parting,
    QueueFull,
    Release,
    TakeIdle,
    Waiting,
)
from coatcheck.pool.errors import (
    LeaseLost,
    LoginFailed,
    LoginRateLimited,
    LoginRefused,
    PoolFull,
    PoolTimeout,
    StoreUnavailable,
)
from coatcheck.pool.state import FAR

T = TypeVar("T")


class Apply(msgspec.Struct, frozen=True):
    """Have the store apply a command; answered with its reply. Whatever it says to log out is seen to."""

    user: str
    command: Command


class Await(msgspec.Struct, frozen=True):
    """Wait until it may be the ticket's turn, or ``timeout_s`` are over; answered with nothing."""

    user: str
    ticket: int
    timeout_s: float


class LogIn(msgspec.Struct, frozen=True):
    """Call the user's ``login``; answered with :class:`Fresh`, or ``LoginFailed`` is thrown."""

    user: str
    password: str | None
    fence: int

    def __repr__(self) -> str:
        return f"<LogIn {self.user!r}>"


class Ask(msgspec.Struct, frozen=True):
    """Call ``probe`` (answered with a truth) or ``keepalive`` (a refreshed token or ``None``) with a token."""

    what: str
    user: str
    value: str

    def __repr__(self) -> str:
        return f"<Ask {self.what} {self.user!r}>"


class LogOut(msgspec.Struct, frozen=True):
    """See to it that tokens are logged out, in the background."""

    user: str
    partings: tuple[Parting, ...]


Effect = Apply | Await | LogIn | Ask | LogOut
Flow = Generator[Effect, Any, T]


class Fresh(msgspec.Struct, frozen=True):
    """What a login brought. ``span_s``: until the upstream ends the session in any case, if it said so.

    ``refresh_token``: for the next login, of shared tokens alone.
    """

    value: str
    life_s: float
    span_s: float = FAR
    refresh_token: str | None = None

    def __repr__(self) -> str:
        return "<Fresh>"


class LoginGoesOn(BaseException):
    """The caller left while its login runs; the login is finished by others, so its slot must stay taken."""


def acquire(
    user: str, password: str | None, wait_s: float, clock: Callable[[], float], credentials: tuple[bytes, ...] = ()
) -> Flow[Granted]:
    """Get a lease: a free token, else a login of one's own, else wait for the first of the two.

    ``credentials``: what the store knows of the password (:class:`Acquire`). Raises ``PoolTimeout``, ``PoolFull`` (too
    many wait), ``LoginFailed``, ``LoginRefused``, ``LoginRateLimited``.
    """
    give_up_at = clock() + wait_s
    ticket = 0
    try:
        while True:
            reply = yield Apply(user, Acquire(ticket, may_wait=wait_s > 0, credentials=credentials))
            if type(reply) is Granted:
                return reply
            if type(reply) is MustLogIn:
                ticket = 0
                return (yield from log_in(user, password, reply.fence, credentials))
            if type(reply) is NotTried:
                ticket = 0
                raise LoginRefused(user)
            if type(reply) is QueueFull:
                raise PoolFull(f"as many callers wait for a token of {user!r} as may")
            if type(reply) is NoToken:
                raise LoginRateLimited(user, reply.limited_s) if reply.limited_s else PoolTimeout(user, wait_s)
            assert type(reply) is Waiting
            ticket = reply.ticket
            left_s = give_up_at - clock()
            if reply.limited_s and (left_s <= 0 or (reply.hopeless and reply.limited_s >= left_s)):
                raise LoginRateLimited(user, reply.limited_s)
            if left_s <= 0:
                raise PoolTimeout(user, wait_s)
            yield Await(user, ticket, min(left_s, reply.again_s))
    except BaseException as error:
        if ticket:
            # If the store is away too, the ticket ends by itself: its caller does not show up.
            with contextlib.suppress(StoreUnavailable):
                yield Apply(user, Leave(ticket, isinstance(error, PoolTimeout)))
        raise


def log_in(user: str, password: str | None, fence: int, credentials: tuple[bytes, ...] = ()) -> Flow[Granted]:
    """Log in while holding slot ``fence``, and make the slot a lease. Raises ``LoginFailed``."""
    try:
        fresh: Fresh = yield LogIn(user, password, fence)
    except LoginGoesOn:
        raise
    except BaseException as error:
        # If the store is away too, the slot is recovered at its deadline.
        with contextlib.suppress(StoreUnavailable):
            failed, refused = isinstance(error, LoginFailed), isinstance(error, LoginRefused)
            yield Apply(user, LoginEnded(fence, failed, refused, credentials))
        raise
    return (yield from _keep(user, fence, fresh))


def _keep(user: str, fence: int, fresh: Fresh) -> Flow[Granted]:
    try:
        reply = yield Apply(user, LoginDone(fence, fresh.value, fresh.life_s, fresh.span_s))
    except StoreUnavailable:
        yield LogOut(user, (Parting(0, fresh.value),))
        raise
    if type(reply) is Granted:
        return reply
    # The slot was given to somebody else meanwhile: this session would be one too many.
    yield LogOut(user, (Parting(0, fresh.value),))
    raise LoginFailed(user, "it took longer than login_timeout")


def finish_login(user: str, fence: int, fresh: Fresh | None, *, refused: bool = False) -> Flow[None]:
    """The end of a login whose caller left: what it brought is for the next one."""
    if fresh is None:
        yield Apply(user, LoginEnded(fence, refused=refused))
        return
    granted = yield from _keep(user, fence, fresh)
    yield Apply(user, Release(granted.fence))


def release(user: str, command: Release, ask_value: str | None = None) -> Flow[None]:
    """Give a lease back. ``ask_value``: the token as it is now, if ``probe`` decides whether it is kept.

    Raises ``LeaseLost`` if it is over.
    """
    if ask_value is not None:
        alive = False
        try:
            alive = yield Ask("probe", user, ask_value)
        finally:
            command = msgspec.structs.replace(command, keep=alive)
            reply = yield Apply(user, command)
    else:
        reply = yield Apply(user, command)
    if type(reply) is Lost:
        raise LeaseLost(user, command.fence)


def keep_alive(user: str, idle_s: float, most: int) -> Flow[int]:
    """Touch the user's idle tokens, each in a lease of its own, at most ``most``; returns how many."""
    for count in range(most):
        granted = yield Apply(user, TakeIdle(idle_s))
        if type(granted) is not Granted:
            return count
        keep, value = False, None
        try:
            value = yield Ask("keepalive", user, granted.value)
            keep = True
        except Exception:  # noqa: BLE001 - reported by the shell; the token's state is unknown now
            keep = False
        finally:
            yield Apply(user, Release(granted.fence, value, keep=keep))
    return most


def settle(user: str, command: Command, fence: int = 0) -> Flow[Any]:
    """One command by itself; ``Lost`` and ``NoSlot`` become errors."""
    reply = yield Apply(user, command)
    if type(reply) is Lost:
        raise LeaseLost(user, fence)
    if type(reply) is NoSlot:
        raise PoolFull(f"{user!r} has as many sessions as may be; log this one out")
    return reply.count if type(reply) is Done else reply


def ask(user: str, command: Command) -> Flow[Any]:
    """One command by itself; answered with its reply as it is."""
    return (yield Apply(user, command))
