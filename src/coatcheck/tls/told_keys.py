"""The keys of TLS tickets in a process that is told them: a director, which knows neither key ring nor store."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from coatcheck.tls.ticket_keys import OpeningKey, TicketKey, TicketKeys


class ToldKeys:
    """See :class:`coatcheck.tls.tickets.KeySource`. For one thread; ``now_ms`` answers Unix milliseconds."""

    def __init__(self, keys: TicketKeys, now_ms: Callable[[], int]) -> None:
        self._keys = keys
        self._now_ms = now_ms

    def tell(self, told: Mapping[int, Sequence[bytes]]) -> None:
        """What :meth:`coatcheck.tls.ticket_keys.TicketKeys.told` says where the keys are agreed on: all of them."""
        self._keys.replace(told)

    @property
    def life_s(self) -> int:
        return (self._keys.period_ms + self._keys.lifetime_ms) // 1000

    def start(self, wait_s: float) -> None:
        """Nobody is asked."""

    def close(self) -> None:
        """Nobody was asked."""

    def sealing(self, host: str) -> TicketKey | None:
        return self._keys.sealing(host, self._now_ms())

    def opening(self, name: bytes, host: str) -> OpeningKey | None:
        return self._keys.opening(name, host, self._now_ms())

    def status(self) -> dict[str, object]:
        """Whether the key of now is known, and which keys until when (Unix milliseconds)."""
        at_ms = self._now_ms()
        keys = [note._asdict() for note in self._keys.notes(at_ms)]
        return {"has_the_key": self._keys.secret(self._keys.period(at_ms)) is not None, "keys": keys}
