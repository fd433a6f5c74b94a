"""The keys of TLS tickets, as a process agrees on them with its farm: a thread that asks the stores."""

from __future__ import annotations

import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

from coatcheck.errors import CoatcheckError, TokenRejected
from coatcheck.seldom import Seldom
from coatcheck.take_once.port import TakeOnceForThreads, TakeOncePlace, TakeOnceUnavailable
from coatcheck.take_once.rule import KEY_BYTES
from coatcheck.tls.ticket_keys import SECRET_BYTES, OpeningKey, TicketKey, TicketKeys
from coatcheck.tokens.keyring import KeyRing

ROUNDS_PER_PERIOD: Final = 20
"""So often in each period the stores are asked; who could not be reached once is asked again before it matters."""
MAX_ROUND_S: Final = 60.0
CALL_LIMIT_S: Final = 2.0

_log: Final = logging.getLogger("coatcheck.tls")
_seldom: Final = Seldom(_log, time.monotonic)
_all: weakref.WeakSet[KeyAgreement] = weakref.WeakSet()
_inherited: list[object] = []
"""What a parent process had open at the fork: its connections are not ours, not even to be closed."""


class KeyAgreement:
    """What is known of ``keys``, and who asks for more. Any thread may call it; it works from :meth:`start` on.

    ``make_places``: the stores, anew in each process. ``after_round(now_ms)`` is called in the thread after each round.
    """

    def __init__(
        self,
        make_places: Callable[[], Sequence[TakeOncePlace]],
        keys: TicketKeys,
        ring: KeyRing,
        farm: str,
        after_round: Callable[[int], None] | None = None,
        *,
        decides_alone: bool = False,
    ) -> None:
        """``decides_alone``: where no store says what the key is, or there is none, this process makes one, for whoever
        it tells; what stores say when they answer again goes before it."""
        self._decides_alone = decides_alone
        self._make_places = make_places
        self._keys = keys
        self._farm = farm
        self._after_round = after_round
        self._box = ring.box("tls-ticket-key", farm, os.urandom)
        self._guard = threading.Lock()
        self._closed = threading.Event()
        self._due = threading.Event()
        self._started = False
        self._stores: list[TakeOnceForThreads] = []
        self._answers: dict[str, bool] = {}

    @property
    def life_s(self) -> int:
        """How long a ticket lives at most."""
        return (self._keys.period_ms + self._keys.lifetime_ms) // 1000

    def start(self, wait_s: float) -> None:
        """Begin; returns after the first round, or after ``wait_s`` seconds."""
        self._started = True
        _all.add(self)
        self._stores = [place.for_threads() for place in self._make_places()]
        asked = threading.Event()
        threading.Thread(target=self._run, args=(asked,), name="coatcheck-ticket-keys", daemon=True).start()
        asked.wait(wait_s)

    def close(self) -> None:
        """Ask no more."""
        self._closed.set()
        self._due.set()

    def sealing(self, host: str) -> TicketKey | None:
        """See :meth:`coatcheck.tls.ticket_keys.TicketKeys.sealing`."""
        with self._guard:
            return self._keys.sealing(host, now_ms())

    def opening(self, name: bytes, host: str) -> OpeningKey | None:
        """See :meth:`coatcheck.tls.ticket_keys.TicketKeys.opening`."""
        with self._guard:
            return self._keys.opening(name, host, now_ms())

    def around(self, at_ms: int) -> list[TicketKey | None]:
        """For a proxy: the keys, for whatever host, of the periods before, at and after a moment."""
        period = self._keys.period(at_ms)
        with self._guard:
            return [self._keys.of_period(one, "") for one in (period - 1, period, period + 1)]

    def told(self) -> dict[int, tuple[bytes, ...]]:
        """What a process is told that shall seal and open alike (:mod:`coatcheck.tls.told_keys`)."""
        with self._guard:
            return self._keys.told()

    def rotate(self) -> None:
        """Seal with a new key at once, and have the stores replace the one before, as soon as they answer: whoever else
        asks them seals with it from its next round on. What was sealed before opens as long as it would have."""
        with self._guard:
            self._keys.rotate(now_ms(), lambda: os.urandom(SECRET_BYTES))
        self._due.set()

    def status(self) -> dict[str, object]:
        """Whether the key of now is known, and which stores answered throughout the last round."""
        at_ms = now_ms()
        with self._guard:
            is_known = self._keys.secret(self._keys.period(at_ms)) is not None
        return {"has_the_key": is_known, "stores": self.answers()}

    def answers(self) -> dict[str, bool]:
        """Which stores answered throughout the last round, and so know of each key that this process knows."""
        return dict(self._answers)

    def _run(self, asked: threading.Event) -> None:
        pause_s = min(self._keys.period_ms / 1000 / ROUNDS_PER_PERIOD, MAX_ROUND_S)
        closed, due, stores = self._closed, self._due, self._stores
        while not closed.is_set():
            due.clear()
            try:
                at_ms = now_ms()
                self._ask_for_keys(at_ms)
                if self._after_round is not None:
                    self._after_round(at_ms)
            except Exception as wrong:  # noqa: BLE001 - the next round may go better, and it is reported
                _seldom.write(logging.ERROR, "the keys of TLS tickets: %r", wrong, kind="failed")
            asked.set()
            if not closed.is_set():
                due.wait(pause_s)
        for store in stores:
            store.close()

    def _ask_for_keys(self, at_ms: int) -> None:
        """Agree with the farm on the keys that are lacking, and once more on those that seal now and next, and did
        before: a store that was restarted empty is told of them before anybody proposes others, and who could not reach
        it comes round to what the others have agreed on."""
        with self._guard:
            self._keys.forget_old(at_ms)
            wanted = self._keys.wanted(at_ms)
        present, silent = self._keys.period(at_ms), set[str]()
        for period in dict.fromkeys([present, present + 1, present - 1, *wanted]):
            if self._keys.life_ms(period, at_ms) <= 0:
                continue  # no ticket of it is about
            silent |= self._agree(period, at_ms)
        self._answers = {store.name: store.name not in silent for store in self._stores}

    def _agree(self, period: int, at_ms: int) -> set[str]:
        """Agree on the key of one period. Returns the names of the stores that did not answer."""
        place, life_ms = self._place(period), self._keys.life_ms(period, at_ms)
        with self._guard:
            known = self._keys.secret(period)
        learn = self._keys.prefer  # what the first store says that answers
        silent = set()
        for store in self._stores:
            secret = known if known is not None else os.urandom(SECRET_BYTES)
            try:
                answer = self._ask(store, place, secret, life_ms)
            except TakeOnceUnavailable as unavailable:
                silent.add(store.name)
                _seldom.warning("the key of TLS tickets could not be agreed on: %s", unavailable, kind="agree")
                continue
            except TokenRejected:
                _seldom.warning("%s has a key of TLS tickets that was not sealed by this farm", store.name)
                continue
            if len(answer) == SECRET_BYTES:
                with self._guard:
                    learn(period, answer)
                    known, learn = self._keys.secret(period), self._keys.learn
        if known is None and self._decides_alone:
            with self._guard:
                self._keys.learn(period, os.urandom(SECRET_BYTES))
        return silent

    def _ask(self, store: TakeOnceForThreads, place: bytes, secret: bytes, life_ms: int) -> bytes:
        """What the store says when ``secret`` is proposed; a key that was rotated out is replaced there."""
        proposal = self._box.seal(secret, place)
        agreed = store.agree(place, proposal, life_ms, CALL_LIMIT_S)
        answer = self._box.open(agreed, place)
        with self._guard:
            is_retired = self._keys.is_retired(answer)
        if not is_retired:
            return answer
        return self._box.open(store.agree(place, proposal, life_ms, CALL_LIMIT_S, agreed), place)

    def _place(self, period: int) -> bytes:
        about = f"{self._farm}\x00{self._keys.period_ms}\x00{period}".encode()
        return blake2b(about, digest_size=KEY_BYTES, person=b"coatcheck-ticket").digest()

    def _after_fork(self) -> None:
        """The keys stay; who asks for the next ones is a thread of this process."""
        _inherited.append((self._stores, self._guard, self._closed))
        self._guard, was_closed = threading.Lock(), self._closed.is_set()
        self._closed, self._due = threading.Event(), threading.Event()
        if was_closed:
            self._closed.set()
        elif self._started:
            try:
                self.start(0.0)
            except CoatcheckError as wrong:
                _log.warning("this process asks for no further keys of TLS tickets: %s", wrong)


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def _after_fork_in_child() -> None:
    for agreement in list(_all):
        agreement._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
