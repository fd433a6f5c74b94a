"""Tickets of this process in a store which other processes share, and how to wake those who wait for them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterable


class Wakers:
    """Who is told: by a key (of the user) and a ticket. Called by any thread; each step by itself is safe."""

    def __init__(self) -> None:
        self._wakers: dict[tuple[str, int], Callable[[], None]] = {}

    def watch(self, key: str, ticket: int, wake: Callable[[], None]) -> None:
        self._wakers[key, ticket] = wake

    def unwatch(self, key: str, ticket: int) -> None:
        self._wakers.pop((key, ticket), None)

    def wake(self, key: str, tickets: Iterable[int]) -> None:
        """Wake those of ``tickets`` that wait here."""
        for ticket in tickets:
            wake = self._wakers.get((key, ticket))
            if wake is not None:
                wake()

    def wake_all(self) -> None:
        for wake in list(self._wakers.values()):
            wake()

    def elsewhere(self, key: str, tickets: Iterable[int]) -> list[int]:
        """Those of ``tickets`` that do not wait here."""
        return [ticket for ticket in tickets if (key, ticket) not in self._wakers]

    def tickets(self, key: str) -> list[int]:
        """Those of a user that wait here."""
        return [ticket for watched, ticket in list(self._wakers) if watched == key]

    def __bool__(self) -> bool:
        """Whether anybody waits."""
        return bool(self._wakers)
