"""How long session servers have been away, and sessions unheard (protocol section 6)."""

from __future__ import annotations

from collections.abc import Iterable

from coatcheck.replication.effects import Surroundings

MAX_UNHEARD = 65_536
"""Sessions that are remembered as unheard; of more, the oldest are forgotten and wait anew."""


class Absences:
    """Counts on this process's own monotonic clock; nothing here is compared with another server's."""

    def __init__(self, world: Surroundings, patience_s: float) -> None:
        self._world = world
        self._patience_s = patience_s
        self._away_since: dict[str, float] = {}
        self._unheard: dict[bytes, tuple[float, float]] = {}
        """Per session: since when it has been unheard, and when it was asked for last."""

    def note(self, server: str, answers: bool) -> None:
        """A session server answered, or did not."""
        if answers:
            self._away_since.pop(server, None)
        else:
            self._away_since.setdefault(server, self._world.monotonic())

    def heard(self, key: bytes) -> None:
        """What the token of this session promises was found."""
        self._unheard.pop(key, None)

    def waited_s(self, key: bytes, missing: Iterable[str]) -> float:
        """How long a browser has had to wait: as long as all of ``missing`` have been away, or as long as this very
        session has been asked for in vain, whichever is longer (a server may answer for every session but this)."""
        now = self._world.monotonic()
        since, last = self._unheard.pop(key, (now, now))
        if now - last > self._patience_s:
            since = now  # that was another outage
        if len(self._unheard) >= MAX_UNHEARD:
            self._unheard.pop(next(iter(self._unheard)))
        self._unheard[key] = (since, now)
        away = [now - self._away_since.get(name, now) for name in missing]
        return max(now - since, min(away, default=0.0))
