"""How the provider fails on purpose, so that clients can be proved on it."""

from __future__ import annotations

from collections.abc import Callable

import msgspec

from coatcheck.errors import ConfigError

MAX_DELAY_S = 30.0

_RATES = ("expire_rate", "kill_rate", "fail_login_rate", "fault_rate")
_DELAYS = ("latency_s", "slow_login_s")


class Misbehaviour(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Rates from 0 to 1, for each request or login; delays in seconds, up to 30.

    ``expire_rate``: a request finds its token expired. ``kill_rate``: a request closes a random session
    before it is looked at. ``fail_login_rate``: a login is refused. ``fault_rate``: a request ends in a server
    fault. ``latency_s``: before each answer. ``slow_login_s``: for each login. ``max_sessions_per_user``: open
    at once.
    """

    expire_rate: float = 0.0
    kill_rate: float = 0.0
    fail_login_rate: float = 0.0
    fault_rate: float = 0.0
    latency_s: float = 0.0
    slow_login_s: float = 0.0
    max_sessions_per_user: int = 1000

    def checked(self) -> Misbehaviour:
        """Itself. Raises :class:`ConfigError` for a value out of its range."""
        for name in _RATES:
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: from 0 to 1, not {getattr(self, name)}")
        for name in _DELAYS:
            if not 0 <= getattr(self, name) <= MAX_DELAY_S:
                raise ConfigError(f"{name}: from 0 to {MAX_DELAY_S:g} seconds, not {getattr(self, name)}")
        if self.max_sessions_per_user < 1:
            raise ConfigError(f"max_sessions_per_user: at least 1, not {self.max_sessions_per_user}")
        return self

    def changed(self, changes: dict[str, object]) -> Misbehaviour:
        """With these fields replaced. Raises :class:`ConfigError` for unknown ones, wrong types and ranges."""
        try:
            return msgspec.convert({**msgspec.structs.asdict(self), **changes}, Misbehaviour).checked()
        except msgspec.ValidationError as error:
            raise ConfigError(f"misbehaviour: {error}") from None


class Dice:
    """Chances, from numbers between 0 and 1; nothing is drawn for a rate of 0."""

    def __init__(self, uniform: Callable[[], float]) -> None:
        self._uniform = uniform

    def happens(self, rate: float) -> bool:
        return rate > 0 and self._uniform() < rate

    def below(self, count: int) -> int:
        """A whole number from 0 to ``count`` - 1."""
        return min(int(self._uniform() * count), count - 1)
