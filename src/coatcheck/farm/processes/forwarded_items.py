"""Items on outside session servers, for directors that must not know those: each call is passed on as it came.

So the TLS sessions of several machines are in one place, and only this process of each has the password. It waits for
the outside server, for as long as a handshake may be kept: it has nothing else to do, and a server that hangs is not
asked for a while (:mod:`coatcheck.tls.breaker`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TypeVar

from coatcheck.replication.placement import Placement
from coatcheck.take_once.port import TakeOnceForThreads, TakeOnceFull, TakeOncePlace, TakeOnceUnavailable
from coatcheck.tls.breaker import Breaker

T = TypeVar("T")


class ForwardedItems:
    """See :class:`coatcheck.session_server.state.Items`. Each item is on the one server that its key ranks first."""

    held_bytes = 0

    def __init__(self, places: Sequence[TakeOncePlace], limit_s: float) -> None:
        """``limit_s``: how long one call may take; meanwhile the other handshakes' wait here."""
        self._limit_s = limit_s
        self._ways = {place.name: (place.for_threads(), Breaker()) for place in places}
        self._placement = Placement(list(self._ways), copies=1)

    def __len__(self) -> int:
        return 0  # they are elsewhere, and nobody lists them

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes, now_ms: int) -> bool:
        return self._ask(key, lambda store: store.put(key, item, life_ms, after, self._limit_s))

    def take(self, key: bytes, nonce: bytes, now_ms: int) -> bytes | None:
        return self._ask(key, lambda store: store.take(key, nonce, self._limit_s))

    def purge(self, key: bytes, now_ms: int) -> bool:
        return self._ask(key, lambda store: store.purge(key, self._limit_s))

    def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes, now_ms: int) -> bytes:
        return self._ask(key, lambda store: store.agree(key, proposal, life_ms, self._limit_s, instead_of))

    def sweep(self, now_ms: int, steps: int) -> None:
        """They expire where they are."""

    def _ask(self, key: bytes, call: Callable[[TakeOnceForThreads], T]) -> T:
        store, breaker = self._ways[self._placement.ranking(key)[0]]
        began = time.monotonic()
        if not breaker.lets_pass(began):
            raise TakeOnceUnavailable(f"{store.name}: it did not answer before, and is not asked for a while")
        try:
            answer = call(store)
        except TakeOnceFull:
            breaker.succeeded()
            raise
        except TakeOnceUnavailable:
            breaker.failed(time.monotonic(), began)
            raise
        breaker.succeeded()
        return answer
