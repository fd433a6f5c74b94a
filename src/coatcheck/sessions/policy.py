"""What the operator decides about sessions (protocol sections 5 to 7; ASVS 7.1, 7.3)."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any, Final, Literal

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.replication.farm_clock import TOLERANCE_MS

Theft = Literal["close", "refuse", "report"]
RolledBack = Literal["close", "accept"]
Conflict = Literal["last_write", "reject"]
DeviceBinding = Literal["off", "offer", "require-after-login"]
"""Whether logins are bound to a key of their browser: never, where it can, or else they end with their first cookie."""
AtSessionLimit = Literal["refuse", "close-oldest"]
MAX_SESSIONS_OF_USER: Final = 256
"""Sessions that are listed of one user, and the highest limit that can be set."""
Merge = Callable[[str, Any, Any, Any], Any]
"""``merge(key, base, theirs, mine)`` returns the value to keep; an absent value is :data:`ABSENT`."""

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


class SessionPolicy(msgspec.Struct, frozen=True, dict=True):
    """Times are milliseconds.

    ``new_session_ms``: how long a session lives whose token was never shown again after it was given out, as those of
    clients that keep no cookies; 0: as long as any other.

    ``rotate_after_ms``: age at which a token gets a successor (0: with every response, the letter of mission A3).
    ``grace_ms``: how long a replaced token is still honest; at least the longest round trip plus lease plus
    clock skew. ``theft``: what to do when a dead token comes back. ``rolled_back``: what to do when the newest
    copy lacks what the browser was promised. ``conflict``: when two requests changed the same key.
    ``sessions_per_user``: how many sessions one user may have at once (0: any number), and ``at_session_limit`` what a
    login does that would be one more. ``device_binding``: whether a login is bound to a key of its browser, and
    ``bound_cookie_ms`` how long the cookie of a bound session lives until its browser proves that it is there.
    """

    rotate_after_ms: int = MINUTE_MS
    grace_ms: int = MINUTE_MS
    theft: Theft = "close"
    rolled_back: RolledBack = "close"
    conflict: Conflict | Merge = "last_write"
    idle_timeout_ms: int = 30 * MINUTE_MS
    absolute_timeout_ms: int = 12 * HOUR_MS
    new_session_ms: int = 0
    leeway_ms: int = 5_000
    max_tries: int = 6
    sessions_per_user: int = 0
    at_session_limit: AtSessionLimit = "close-oldest"
    device_binding: DeviceBinding = "off"
    bound_cookie_ms: int = 10 * MINUTE_MS

    def check(self) -> None:
        """Raises :class:`ConfigError` for values that cannot work together."""
        if self.grace_ms == 0 and self.theft != "refuse":
            raise ConfigError('grace: 0 needs theft = "refuse", or honest parallel requests are taken for theft')
        for name in ("rotate_after_ms", "grace_ms", "leeway_ms", "new_session_ms"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must not be negative")
        if self.idle_timeout_ms <= 0 or self.absolute_timeout_ms <= 0:
            raise ConfigError("the idle and the absolute timeout must be positive")

    @cached_property
    def touch_ms(self) -> int:
        """``last_seen_at`` is stored when it is this much newer than the stored one."""
        return self.idle_timeout_ms // 8

    @property
    def bound_token_ms(self) -> int:
        """The age at which a token of a bound session opens nothing, whoever shows it: its cookie's life, and the grace
        for requests that were under way when that ended."""
        return self.bound_cookie_ms + self.grace_ms

    @property
    def max_token_age_ms(self) -> int:
        """The age at which no token is worth looking up any more (mission A7).

        When every response carries a new token, its timestamp is the last activity; otherwise the record
        knows better, and the timestamp only bounds the absolute timeout.
        """
        if self.rotate_after_ms == 0:
            return self.idle_timeout_ms + self.touch_ms + self.leeway_ms
        return self.absolute_timeout_ms + self.leeway_ms

    @property
    def linger_ms(self) -> int:
        """How long session servers keep a session that has timed out: late guests find it expired, not lost."""
        return max(MINUTE_MS, self.touch_ms)

    @property
    def tombstone_ms(self) -> int:
        """How long a close must be remembered: the longest token, and the longest stored entry, plus leeway on both
        sides, and as much as a session may have begun in the future (:mod:`coatcheck.sessions.everyone`)."""
        longest_ms = max(self.absolute_timeout_ms, self.max_token_age_ms)
        return longest_ms + self.linger_ms + 2 * self.leeway_ms + TOLERANCE_MS
