"""Which stores are said to answer: those that know each key that this process knows."""

from __future__ import annotations

import itertools
import secrets
import threading
from typing import cast

from coatcheck.take_once.port import NOTHING, TakeOnceForThreads, TakeOncePlace, TakeOnceStore, TakeOnceUnavailable
from coatcheck.tls.agreement import KeyAgreement
from coatcheck.tls.hosts import Siblings
from coatcheck.tls.ticket_keys import TicketKeys
from coatcheck.tokens.keyring import KeyRing

PATIENCE_S = 30.0


class Store:
    """Agrees with whatever is proposed; its first calls are not answered."""

    name = "web-1"

    def __init__(self, silent: int) -> None:
        self._silent = silent
        self._calls = itertools.count()

    def agree(self, key: bytes, proposal: bytes, life_ms: int, limit_s: float, instead_of: bytes = NOTHING) -> bytes:
        if next(self._calls) < self._silent:
            raise TakeOnceUnavailable("away")
        return proposal

    def close(self) -> None:
        """Nothing is open."""


def test_a_store_that_came_back_in_the_midst_of_a_round_answers_when_it_has_been_told_of_all_keys() -> None:
    """Whoever waits for it may then start a server that has nobody else to ask."""
    store, rounds, more = Store(silent=1), threading.Semaphore(0), threading.Semaphore(0)

    def after_round(_: int) -> None:
        rounds.release()
        more.acquire()

    place = TakeOncePlace(store.name, lambda: cast(TakeOnceForThreads, store), lambda: cast(TakeOnceStore, None))
    ring = KeyRing([secrets.token_bytes(32)])
    agreement = KeyAgreement(lambda: [place], TicketKeys(1_000, 60_000, Siblings()), ring, "farm", after_round)
    agreement.start(0.0)
    try:
        assert rounds.acquire(timeout=PATIENCE_S)
        assert agreement.answers() == {"web-1": False}
        more.release()
        assert rounds.acquire(timeout=PATIENCE_S)
        assert agreement.answers() == {"web-1": True}
    finally:
        agreement.close()
        more.release()
