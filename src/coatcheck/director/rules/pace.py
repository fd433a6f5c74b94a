"""The least rates: a client that gives or takes too little over a whole window has to go."""

from __future__ import annotations

from typing import NamedTuple


class PaceRound(NamedTuple):
    """What one client did in a window; ``None``: it was not its turn through all of it."""

    given: int | None
    """Bytes of a request's body that came."""
    taken: int | None
    """Bytes that left towards it, of those that waited."""


class ClientPace:
    """Measures one client, window by window."""

    __slots__ = ("_body_bytes", "_was_coming", "_was_unsent")

    def __init__(self) -> None:
        self._was_coming = False
        self._body_bytes = 0
        self._was_unsent: int | None = None

    def body_came(self, size: int) -> None:
        """So many bytes of a body came."""
        self._body_bytes += size

    def begin_body(self) -> None:
        """A body begins anew, or is not wanted for now: this window does not count."""
        self._was_coming = False

    def takes_again(self) -> None:
        """Nothing waits for the client any more: this window does not count."""
        self._was_unsent = None

    def round_over(self, *, comes: bool, unsent: int | None) -> PaceRound:
        """A window ends. ``comes``: a body is still awaited; ``unsent``: how much waits for the client, if it does."""
        taken = None if unsent is None or self._was_unsent is None else self._was_unsent - unsent
        given = self._body_bytes if self._was_coming else None
        self._was_unsent = unsent
        self._was_coming, self._body_bytes = comes, 0
        return PaceRound(given, taken)
