"""What one process has seen of a shared token, and when it looks again: what threads and asyncio have in common."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Final

from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.masking import masked
from coatcheck.pool.payload import Payload, unpack
from coatcheck.pool.shared.rules import Begun
from coatcheck.pool.state import FAR

LOOK_S: Final = 10.0
"""So long at most a process does not see what another one did: took a token back, or replaced it."""
LOOK_AHEAD_S: Final = 8.0
"""A token that is in use is looked up behind its callers' backs before that, so that none of them waits for it."""
BUSY_LOOK_S: Final = 0.2
"""How often a process looks whether the login of another one is done, while it has a token that may be used."""
RETRY_S: Final = 1.0
"""After a login that failed, or a store that did not answer, while there is a token that may be used."""
MAX_LINES: Final = 10_000
"""Users (with one password each) whose tokens a process remembers; of more, the first are looked up again."""


class SharedToken:
    """A token that is used by many at once. ``payload``: what its login brought beside it, or ``None``."""

    __slots__ = ("_clock", "_ends_at", "_protected_until", "number", "payload", "token", "user")

    def __init__(
        self,
        user: str,
        number: int,
        value: str,
        clock: Callable[[], float],
        ends_at: float,
        protected_until: float = -FAR,
    ) -> None:
        self.user = user
        self.number = number
        self.token: str
        self.payload: Payload | None
        self.token, self.payload = unpack(value)
        self._clock = clock
        self._ends_at = ends_at
        self._protected_until = protected_until

    def remaining_s(self) -> float:
        """Seconds until its end, as far as the pool knows."""
        return self._ends_at - self._clock()

    def is_protected(self) -> bool:
        """Whether it replaced a refused one so lately that a refusal of this one changes nothing."""
        return self._clock() < self._protected_until

    def __repr__(self) -> str:
        return f"<SharedToken {self.user!r}, {masked(self.token)}>"


class Seen:
    """A token, and the moments on this process's clock from which it is looked up: behind its callers, and before them.

    ``epoch``: of the pool that saw it (:attr:`SharedLines.epoch`).
    """

    __slots__ = ("ask_at", "epoch", "shown", "stale_at")

    def __init__(self, shown: SharedToken, ask_at: float, stale_at: float, epoch: int) -> None:
        self.shown = shown
        self.ask_at = min(ask_at, stale_at)  # nobody looks at stale_at before that
        self.stale_at = stale_at
        self.epoch = epoch


class SharedLine:
    """All callers in this process who share one token. ``flight``: the one step that is under way for all of them.

    ``unsaved``: a refresh token that the store did not take; the next login in this process tries it.
    """

    __slots__ = ("credentials", "epoch", "flight", "flight_until", "known_at", "seen", "unsaved", "user")

    def __init__(self, user: str, credentials: tuple[bytes, ...]) -> None:
        self.user = user
        self.credentials = credentials
        self.seen: Seen | None = None
        self.known_at = -FAR
        self.flight: Any = None
        self.flight_until = -FAR
        self.epoch = -1  # of the flight
        self.unsaved: str | None = None

    def not_saved(self, refresh_token: str) -> None:
        self.unsaved = refresh_token

    def take(self, lines: SharedLines, begun: Begun, asked_at: float, epoch: int, *, changed: bool = False) -> None:
        """Learn what a step at the store brought. ``asked_at``: before it was asked, so that no moment is too late.

        ``changed``: it was a change. What was asked before it was done, and is answered after, is not believed.
        """
        now = lines.clock()
        if asked_at < self.known_at and not changed:
            return
        self.known_at = now if changed else asked_at
        current = begun.current
        if current is None:
            self.seen = None
            return
        ends_at = asked_at + current.remaining_s - lines.min_remaining_s
        ask_at = asked_at + current.refresh_in_s
        if begun.busy_s or begun.fence:
            ask_at = now + BUSY_LOOK_S
        elif begun.limited_s:
            ask_at = now + begun.limited_s
        elif begun.refused:
            ask_at = FAR
        shown = SharedToken(
            self.user,
            current.number,
            current.value,
            lines.clock,
            asked_at + current.remaining_s,
            asked_at + current.protected_s,
        )
        if lines.others:
            ask_at = min(ask_at, asked_at + LOOK_AHEAD_S)
        stale_at = min(ends_at, asked_at + LOOK_S) if lines.others else ends_at
        self.seen = Seen(shown, ask_at, stale_at, epoch)

    def put_off(self, lines: SharedLines, error: BaseException) -> None:
        """A step failed; the next one is behind its callers' backs. With no store, what was seen is good to its end."""
        seen = self.seen
        if seen is not None:
            now, stale_at = lines.clock(), seen.stale_at
            if isinstance(error, StoreUnavailable):
                stale_at = now + seen.shown.remaining_s() - lines.min_remaining_s
            self.seen = Seen(seen.shown, now + RETRY_S, stale_at, seen.epoch)


class SharedLines:
    """The lines of one pool. ``others``: other processes may change what is stored.

    ``epoch`` grows when nothing that was seen may be used any more: after a fork, and when the pool is closed.
    """

    def __init__(self, clock: Callable[[], float], min_remaining_s: float, others: bool) -> None:
        self.clock = clock
        self.min_remaining_s = min_remaining_s
        self.others = others
        self.epoch = 0
        self._lines: OrderedDict[tuple[str, bytes], SharedLine] = OrderedDict()

    def line(self, user: str, credentials: tuple[bytes, ...]) -> SharedLine:
        """The one line of these credentials (of this process: nearly always the same one)."""
        key = user, (credentials[0] if credentials else b"")
        line = self._lines.get(key)
        if line is None:
            line = self._lines.setdefault(key, SharedLine(user, credentials))
            while len(self._lines) > MAX_LINES:
                self._lines.popitem(last=False)
        return line

    def seen(self, line: SharedLine) -> Seen | None:
        """What was seen, unless it may not be used any more."""
        seen = line.seen
        return seen if seen is not None and seen.epoch == self.epoch else None

    def forget(self) -> None:
        """Nothing that was seen may be used any more."""
        self.epoch += 1
