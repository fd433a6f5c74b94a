"""What is done about a shared token, step by step, written once: a flow yields what it needs and is sent the answer.

The state of a user is one sealed value under a key of its own. A change reads it, applies the rules, and swaps it if
nobody else changed it meanwhile; writes are as rare as logins.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from os import urandom
from typing import Any, Final, TypeVar

import msgspec

from coatcheck.errors import TokenReason, TokenRejected
from coatcheck.pool.commands import Parting
from coatcheck.pool.errors import LoginFailed, LoginRateLimited, LoginRefused, StoreUnavailable
from coatcheck.pool.flows import Fresh, LogOut
from coatcheck.pool.inspection import TokenRow
from coatcheck.pool.masking import UNREADABLE, masked
from coatcheck.pool.payload import token_of
from coatcheck.pool.shared.rules import (
    Begin,
    Begun,
    Command,
    Count,
    EndShared,
    Finish,
    Invalidate,
    KeepRefresh,
    KeepUpstream,
    RefreshFailed,
    Reply,
    ResetShared,
    SharedState,
    apply,
    current_of,
    new_shared,
    upstream_of,
)
from coatcheck.pool.state import FAR, Policy
from coatcheck.pool.stores.header import has_ended, sealed_of, with_end
from coatcheck.tokens.keyring import KeyRing

MAX_TRIES: Final = 100
"""Each failed try means that somebody else's change was stored."""
RACE_PAUSE_S: Final = 0.002
LOOK_FIRST_S: Final = 0.01
LOOK_MAX_S: Final = 0.1
"""How often one who has nothing looks whether another process's login is done."""
FORMAT: Final = b"\x01"

T = TypeVar("T")


class Read(msgspec.Struct, frozen=True):
    """Read the user's sealed state; answered with it (or ``None``) and the store's time in seconds."""

    user: str


class Swap(msgspec.Struct, frozen=True):
    """Store ``new`` (``None``: delete) if the state is still ``old``; answered with whether it was."""

    user: str
    old: bytes | None
    new: bytes | None
    keep_s: float


class Sleep(msgspec.Struct, frozen=True):
    """Sleep about so long, that is up to half as long again, unless ``exactly``."""

    pause_s: float
    exactly: bool = False


class Join(msgspec.Struct, frozen=True):
    """Wait for a step that is under way, at most ``timeout_s``; answered with whether it ended. Its error is thrown."""

    flight: Any
    timeout_s: float


class Refresh(msgspec.Struct, frozen=True):
    """Call the user's ``login``; answered with :class:`Fresh`, or ``LoginFailed`` is thrown."""

    user: str
    password: str | None
    refresh_token: str | None
    credentials: tuple[bytes, ...] = ()

    def __repr__(self) -> str:
        return f"<Refresh {self.user!r}>"


Step = Read | Swap | Sleep | Join | Refresh | LogOut
SharedFlow = Generator[Step, Any, T]


class KeyGone(StoreUnavailable):
    """A state was sealed by a key that this process does not have."""


class SharedBox:
    """Seals and opens states. Every state is bound to the pool's name and to its user."""

    def __init__(self, ring: KeyRing, name: str, policy: Policy) -> None:
        self.policy = policy
        self._box = ring.box("pool-shared", name, urandom)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(SharedState)

    def open(self, user: str, stored: bytes | None, now: float) -> SharedState:
        """Raises ``StoreUnavailable`` on bytes that our keys did not seal for this pool and user, ``KeyGone`` if they
        were sealed by a key that we do not have; if all in them has ended, the state is a new one."""
        if stored is None:
            return new_shared(int(now * 1_000_000))
        try:
            plain = self._box.open(sealed_of(stored), user.encode())
            if plain[:1] != FORMAT:
                raise StoreUnavailable(f"the shared token of {user!r} has a format that this version does not know")
            return self._decoder.decode(plain[1:])
        except TokenRejected as rejection:
            if has_ended(rejection, stored, now):
                return new_shared(int(now * 1_000_000))
            gone = rejection.reason is TokenReason.UNKNOWN_KEY
            raise (KeyGone if gone else StoreUnavailable)(
                f"the shared token of {user!r} cannot be opened: {rejection.reason.value}"
            ) from None
        except msgspec.DecodeError:
            raise StoreUnavailable(f"the shared token of {user!r} is not what a pool writes") from None

    def encoded(self, state: SharedState) -> bytes:
        return self._encoder.encode(state)

    def seal(self, user: str, state: SharedState) -> bytes:
        return with_end(state.ends_at(), self._box.seal(FORMAT + self.encoded(state), user.encode()))


def change(box: SharedBox, user: str, command: Command) -> SharedFlow[Reply]:
    """Apply one command. Raises ``StoreUnavailable``."""
    for _ in range(MAX_TRIES):
        sealed, now = yield Read(user)
        reply, stored = yield from _swapped(box, user, command, sealed, now)
        if stored:
            if isinstance(reply, Count) and reply.values:
                yield LogOut(user, tuple(Parting(0, value) for value in reply.values))
            return reply
        yield Sleep(RACE_PAUSE_S)
    raise StoreUnavailable(f"{MAX_TRIES} others were faster at the shared token of {user!r}")


def _swapped(
    box: SharedBox, user: str, command: Command, sealed: bytes | None, now: float
) -> SharedFlow[tuple[Reply, bool]]:
    """Apply a command to what was read; whether it is stored now."""
    try:
        state = box.open(user, sealed, now)
    except KeyGone:
        if isinstance(command, EndShared):
            return Count(0), True  # it is cleaned up when it has ended
        if not isinstance(command, ResetShared):
            raise
        state = new_shared(int(now * 1_000_000))
    before = box.encoded(state)
    reply = apply(state, box.policy, now, command)
    if box.encoded(state) == before and not (sealed is not None and state.is_idle(now)):
        return reply, True
    keep_s = max(0.0, state.ends_at() - now)
    if state.is_idle(now):
        return reply, sealed is None or (yield Swap(user, sealed, None, keep_s))
    return reply, (yield Swap(user, sealed, box.seal(user, state), keep_s))


class Asker(msgspec.Struct, frozen=True):
    """Who asks: what a login needs, what the store knows of it, and how long before its end a token is renewed."""

    user: str
    password: str | None
    credentials: tuple[bytes, ...]
    refresh_before_s: float

    def __repr__(self) -> str:
        return f"<Asker {self.user!r}>"


def begin(box: SharedBox, caller: Asker) -> SharedFlow[Begun]:
    """Look what is current. With a ``fence`` in the answer, :func:`log_in` is next, whatever is current.

    What is current is answered at once while somebody else logs in, or nobody may; only who has nothing waits for the
    other. Raises ``LoginRefused``, ``LoginRateLimited``, ``StoreUnavailable``.
    """
    pause_s = LOOK_FIRST_S
    while True:
        begun = yield from change(box, caller.user, Begin(caller.credentials))
        assert isinstance(begun, Begun)
        if begun.fence or begun.current is not None:
            return begun
        if begun.refused:
            raise LoginRefused(caller.user)
        if begun.limited_s:
            raise LoginRateLimited(caller.user, begun.limited_s)
        yield Sleep(pause_s)
        pause_s = min(pause_s * 1.5, LOOK_MAX_S)


def log_in(box: SharedBox, caller: Asker, begun: Begun, unsaved: Callable[[str], None]) -> SharedFlow[Begun]:
    """Log in while holding the slot that ``begun`` has. Raises ``LoginFailed``, ``LoginRefused``.

    ``unsaved`` is called with a new refresh token that could not be stored: the one before it may be dead.
    """
    user = caller.user
    try:
        fresh: Fresh = yield Refresh(user, caller.password, begun.refresh_token, caller.credentials)
    except BaseException as error:
        # If the store is away too, the slot is recovered at its deadline.
        with contextlib.suppress(StoreUnavailable):
            failed, refused = isinstance(error, LoginFailed), isinstance(error, LoginRefused)
            ended = RefreshFailed(begun.fence, failed, refused, caller.credentials, begun.refresh_token)
            yield from change(box, user, ended)
        raise
    span_s = fresh.life_s if fresh.span_s == FAR else fresh.span_s
    finish = Finish(begun.fence, fresh.value, span_s, caller.refresh_before_s, fresh.refresh_token)
    try:
        reply = yield from change(box, user, finish)
        if not isinstance(reply, Begun) and fresh.refresh_token is not None:
            yield from change(box, user, KeepRefresh(begun.fence, fresh.refresh_token, caller.credentials))
    except StoreUnavailable:
        if fresh.refresh_token is not None:
            unsaved(fresh.refresh_token)
        yield LogOut(user, (Parting(0, fresh.value),))
        raise
    if isinstance(reply, Begun):
        if reply.current is None:
            raise LoginFailed(user, "its token ends too soon to be used (min_remaining)")
        return reply
    yield LogOut(user, (Parting(0, fresh.value),))
    raise LoginFailed(user, "it took longer than login_timeout")


def invalidate(box: SharedBox, user: str, credentials: tuple[bytes, ...], token: str) -> SharedFlow[tuple[Begun, bool]]:
    """Take ``token`` back if it is what is current; what is current then, and whether there is a better one to be had.

    ``False``: the token is too young, so that another login would bring no better one. Raises ``StoreUnavailable``.
    """
    for _ in range(MAX_TRIES):
        sealed, now = yield Read(user)
        current = current_of(box.open(user, sealed, now), box.policy, now, credentials)
        if current is None or token_of(current.value) != token:
            return Begun(current), True
        reply, stored = yield from _swapped(box, user, Invalidate(current.number), sealed, now)
        if stored:
            gone = isinstance(reply, Count) and reply.count > 0
            return Begun(None if gone else current), gone
        yield Sleep(RACE_PAUSE_S)
    raise StoreUnavailable(f"{MAX_TRIES} others were faster at the shared token of {user!r}")


def find_upstream(box: SharedBox, user: str, credentials: tuple[bytes, ...]) -> SharedFlow[str | None]:
    """What the last login of these credentials brought, to find the upstream's state again.

    What cannot be opened any more (its key has gone) is not there. Raises ``StoreUnavailable``.
    """
    sealed, now = yield Read(user)
    try:
        return upstream_of(box.open(user, sealed, now), now, credentials)
    except KeyGone:
        return None


def keep_upstream(
    box: SharedBox, user: str, credentials: tuple[bytes, ...], value: str, keep_s: float
) -> SharedFlow[None]:
    """Keep it for the next login. Raises ``StoreUnavailable``, ``PoolFull``."""
    yield from change(box, user, KeepUpstream(value, keep_s, credentials))


def rows(box: SharedBox, user: str) -> SharedFlow[list[TokenRow]]:
    """What operators see of a user's shared tokens."""
    sealed, now = yield Read(user)
    try:
        entries = box.open(user, sealed, now).entries
    except KeyGone:
        return [TokenRow(user, 0, "shared", masked(UNREADABLE))]
    shown = []
    for entry in entries:
        if entry.value is not None and now < entry.opened_at + entry.span_s:
            left_s = entry.opened_at + entry.span_s - now
            shown.append(TokenRow(user, entry.number, "shared", masked(token_of(entry.value)), expires_in_s=left_s))
    return shown
