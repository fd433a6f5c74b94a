"""What a caller does, step by step, written once: a flow yields what it needs and is sent the answer.

``TokenPool`` answers with threads, ``AsyncTokenPool`` with asyncio. A flow that is interrupted (an error, a
cancellation, Ctrl-C) gets that error at its ``yield``, puts things right with further steps, and lets it go on.
"""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from typing import Any, Final, TypeVar

import msgspec

from coatcheck.pool.commands import (
    Acquire,
    Command,
    Done,
    Granted,
    LogInAhead,
    LoginDone,
    LoginEnded,
    Lost,
    MustLogIn,
    NoSlot,
    NoToken,
    NotTried,
    Parting,
    Release,
    SlotTurn,
    TakeIdle,
    Then,
)
from coatcheck.pool.errors import (
    LeaseLost,
    LoginFailed,
    LoginRateLimited,
    LoginRefused,
    PoolClosed,
    PoolFull,
    PoolTimeout,
    StoreUnavailable,
)
from coatcheck.pool.lines import Lines, Place, WaitLine
from coatcheck.pool.state import FAR

ASKS_FOR_OTHERS: Final = 4
"""How often whoever has asked the store asks once more for those behind; then the first of them is awake, and does."""

MAX_FAILED_LOGINS: Final = 3
"""Logins of one caller that may fail, while it waits for a token that somebody else has."""

T = TypeVar("T")


class Apply(msgspec.Struct, frozen=True):
    """Have the store apply a command; answered with its reply. Whatever it says to log out is seen to."""

    user: str
    command: Command


class Stand(msgspec.Struct, frozen=True):
    """Sleep in line, ``until`` a moment on the pool's clock at most, or as long as the line allows; nothing comes."""

    place: Place
    until: float


class Look(msgspec.Struct, frozen=True):
    """Look whether it may be the turn of ``ticket``; answered with a truth."""

    user: str
    ticket: int


class LogIn(msgspec.Struct, frozen=True):
    """Call the user's ``login``; answered with :class:`Fresh`, or ``LoginFailed`` is thrown."""

    user: str
    password: str | None
    fence: int
    credentials: tuple[bytes, ...] = ()

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


Effect = Apply | Stand | Look | LogIn | Ask | LogOut
Flow = Generator[Effect, Any, T]


class Fresh(msgspec.Struct, frozen=True):
    """What a login brought. ``span_s``: until the upstream ends the session in any case, if it said so.

    ``refresh_token``: for the next login, of shared tokens alone. ``upstream_state``: for that of the same credentials;
    ``None``: the one of before stays.
    """

    value: str
    life_s: float
    span_s: float = FAR
    refresh_token: str | None = None
    upstream_state: str | None = None

    def __repr__(self) -> str:
        return "<Fresh>"


class LoginGoesOn(BaseException):
    """The caller left while its login runs; the login is finished by others, so its slot must stay taken."""


def acquire(
    user: str,
    password: str | None,
    wait_s: float,
    lines: Lines,
    credentials: tuple[bytes, ...] = (),
    *,
    check_after_s: float = FAR,
) -> Flow[Granted]:
    """Get a lease: a free token, else a login of one's own, else wait in line for the first of the two.

    Whose login fails, though others have tokens of these credentials, waits on for one of them. ``credentials``: what
    the store knows of the password (:class:`Acquire`). ``check_after_s``: a token that nobody used for so long is
    probed first, and dropped if it is dead; then another is taken. Raises ``PoolTimeout``, ``PoolFull`` (too many
    wait), ``LoginFailed``, ``LoginRefused``, ``LoginRateLimited``.
    """
    give_up_at = lines.clock() + wait_s
    failure: LoginFailed | None = None
    tries = 0
    while True:
        try:
            granted = yield from _acquire(user, password, wait_s, lines, credentials)
            if granted.idle_s < check_after_s or (yield from _is_alive(user, granted, lines)):
                return granted
            wait_s = max(0.0, give_up_at - lines.clock())
        except LoginFailed as error:
            wait_s = give_up_at - lines.clock()
            tries += 1
            hopeless = not error.tokens or tries >= MAX_FAILED_LOGINS
            if isinstance(error, LoginRefused) or hopeless or wait_s <= 0 or not lines.has_back_off():
                raise
            failure = error
        except (PoolTimeout, PoolFull, LoginRateLimited):
            if failure is None:
                raise
            raise failure from failure.__cause__


def _is_alive(user: str, granted: Granted, lines: Lines) -> Flow[bool]:
    """Whether the token of a lease that was just granted is alive; if not, the lease is over, and the token dropped."""
    alive: bool | None = None
    try:
        alive = yield Ask("probe", user, granted.value)
        if lines.clock() >= granted.deadline:
            alive = None  # it took so long that the lease is over
    finally:
        if not alive:
            # Only one that was called dead needs no logout.
            dropped = Release(granted.fence, keep=False, sign_out=alive is not False)
            yield from _give_back(user, dropped, lines, None, granted.turn)
    return bool(alive)


def _acquire(
    user: str, password: str | None, wait_s: float, lines: Lines, credentials: tuple[bytes, ...]
) -> Flow[Granted]:
    turn = None
    if wait_s > 0:
        place = Place(user, credentials)
        try:
            line = lines.join(place)
            reply = yield from _stand(place, line, lines, wait_s)
            if isinstance(reply, Exception):
                raise reply
        except BaseException as error:
            left = lines.failed(user, place, error) + lines.leave(place, timed_out=isinstance(error, PoolTimeout))
            yield from _tell(user, left)
            raise
        turn = place.turn
    else:
        reply = yield Apply(user, Acquire(may_wait=False, credentials=credentials))
    if type(reply) is Granted:
        return msgspec.structs.replace(reply, turn=turn) if turn is not None and turn.callers else reply
    if type(reply) is MustLogIn:
        return (yield from log_in(user, password, reply.fence, credentials))
    if type(reply) is NotTried:
        raise LoginRefused(user)
    assert type(reply) is NoToken
    raise LoginRateLimited(user, reply.limited_s) if reply.limited_s else PoolTimeout(user, wait_s)


def _stand(place: Place, line: WaitLine, lines: Lines, wait_s: float) -> Flow[Any]:
    """Wait in line, and ask for all while first in it; returns what came."""
    give_up_at = lines.clock() + wait_s
    while place.reply is None:
        command = lines.to_ask(place)
        if command is not None:
            answer = yield Apply(place.user, command)
            yield from _heard(line, place, lines, command, answer)
            continue
        left_s = give_up_at - lines.clock()
        limited_s = lines.limited_s(place, left_s)
        if limited_s:
            raise LoginRateLimited(place.user, limited_s)
        if left_s <= 0:
            raise PoolTimeout(place.user, wait_s)
        yield Stand(place, give_up_at)
        if place.reply is None and lines.must_look(place) and (yield Look(place.user, line.ticket)):
            lines.rouse(line)
    return place.reply


def _heard(
    line: WaitLine, asker: object, lines: Lines, command: Acquire | Then, answer: Any, turn: SlotTurn | None = None
) -> Flow[None]:
    """Serve the line with what came; if it is still its turn, ask for the next in it as well, a few times."""
    yield from _tell(line.user, lines.heard(line, command, answer, turn))
    for _ in range(ASKS_FOR_OTHERS):
        another = lines.to_ask_again(line, asker)
        if another is None:
            return
        try:
            answer = yield Apply(line.user, another)
        except StoreUnavailable as error:  # for them; what was asked for first is done
            yield from _tell(line.user, lines.failed(line.user, asker, error))
            return
        yield from _tell(line.user, lines.heard(line, another, answer))


def _tell(user: str, commands: list[Command]) -> Flow[None]:
    """If the store is away, what it was to be told ends by itself: nobody shows up for it."""
    for command in commands:
        with contextlib.suppress(StoreUnavailable):
            yield Apply(user, command)


def log_in(user: str, password: str | None, fence: int, credentials: tuple[bytes, ...] = ()) -> Flow[Granted]:
    """Log in while holding slot ``fence``, and make the slot a lease. Raises ``LoginFailed``."""
    try:
        fresh: Fresh = yield LogIn(user, password, fence, credentials)
    except LoginGoesOn:
        raise
    except BaseException as error:
        # If the store is away too, the slot is recovered at its deadline.
        with contextlib.suppress(StoreUnavailable):
            failed, refused = isinstance(error, LoginFailed), isinstance(error, LoginRefused)
            reply = yield Apply(user, LoginEnded(fence, failed, refused, credentials))
            if isinstance(error, LoginFailed) and isinstance(reply, Done):
                error.tokens = reply.count
        raise
    return (yield from _keep(user, fence, fresh))


def _keep(user: str, fence: int, fresh: Fresh) -> Flow[Granted]:
    try:
        reply = yield Apply(user, LoginDone(fence, fresh.value, fresh.life_s, fresh.span_s))
    except (StoreUnavailable, PoolClosed):
        yield LogOut(user, (Parting(0, fresh.value),))
        raise
    if type(reply) is Granted:
        return reply
    # The slot was given to somebody else meanwhile: this session would be one too many.
    yield LogOut(user, (Parting(0, fresh.value),))
    raise LoginFailed(user, "it took longer than login_timeout")


def finish_login(login: LogIn, fresh: Fresh | None, lines: Lines, *, refused: bool = False) -> Flow[None]:
    """The end of a login whose caller left: what it brought is for the next one."""
    if fresh is None:
        yield Apply(login.user, LoginEnded(login.fence, True, refused, login.credentials))
        return
    granted = yield from _keep(login.user, login.fence, fresh)
    yield from release(login.user, Release(granted.fence), lines)


def release(
    user: str,
    command: Release,
    lines: Lines,
    ask_value: str | None = None,
    *,
    credentials: tuple[bytes, ...] | None = None,
    turn: SlotTurn | None = None,
) -> Flow[None]:
    """Give a lease back. ``ask_value``: the token as it is now, if ``probe`` decides whether it is kept.

    ``credentials`` and ``turn``: the lease's, if known. Raises ``LeaseLost`` if it is over.
    """
    if ask_value is not None:
        alive: bool | None = None
        try:
            alive = yield Ask("probe", user, ask_value)
        finally:
            command = msgspec.structs.replace(command, keep=bool(alive))
            reply = yield from _give_back(user, command, lines, credentials, turn)
    else:
        reply = yield from _give_back(user, command, lines, credentials, turn)
    if type(reply) is Lost:
        raise LeaseLost(user, command.fence)


def _give_back(
    user: str, command: Release, lines: Lines, credentials: tuple[bytes, ...] | None, turn: SlotTurn | None
) -> Flow[Any]:
    """Give a lease back, and in the same command ask for whoever is first in line here."""
    try:
        passing = lines.to_pass_on(user, command, credentials, turn)
        if passing is None:
            return (yield Apply(user, command))
        line, both = passing
        answer = yield Apply(user, both)
        yield from _heard(line, command, lines, both, answer, turn)
    except BaseException as error:
        yield from _tell(user, lines.failed(user, command, error))
        raise
    return answer.first


def log_in_ahead(
    user: str, password: str | None, sessions: int, lines: Lines, credentials: tuple[bytes, ...], *, idle: bool = False
) -> Flow[bool | None]:
    """Log in once, if these credentials have fewer ``sessions`` (with ``idle``: in nobody's hands), and there is room.

    The token counts as unused. Returns whether it lasts; ``None``: none was needed, or there is no room. Raises
    ``LoginFailed``, ``LoginRefused``, ``LoginRateLimited``.
    """
    reply = yield Apply(user, LogInAhead(sessions, credentials, idle))
    if type(reply) is NotTried:
        raise LoginRefused(user)
    if type(reply) is not MustLogIn:
        if reply.limited_s:
            raise LoginRateLimited(user, reply.limited_s)
        return None
    granted = yield from log_in(user, password, reply.fence, credentials)
    reply = yield from _give_back(user, Release(granted.fence, unused=True), lines, None, None)
    return type(reply) is Done and reply.count > 0


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
