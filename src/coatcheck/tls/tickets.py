"""TLS sessions in tickets that any server of the farm opens: keys that all of them agree on, and change alike.

The second way to share sessions. Nothing is stored for a session and nothing is asked in a handshake; but a ticket is
not taken: whoever has recorded one may show it again, as often as he likes, while it lives. So a server must not let it
mean more than that its holder has the session's keys (RFC 8446 section 8), and early data stays off.
"""

from __future__ import annotations

import logging
import os
import ssl
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from hashlib import blake2b
from typing import Final

import msgspec

from coatcheck.errors import TokenRejected
from coatcheck.seldom import Seldom
from coatcheck.take_once.port import TakeOnceForThreads, TakeOncePlace, TakeOnceUnavailable
from coatcheck.take_once.rule import KEY_BYTES
from coatcheck.tls.demands import Demands
from coatcheck.tls.openssl import OpenSslRefused, TicketSecrets, open_door
from coatcheck.tls.record import as_host
from coatcheck.tls.ticket_keys import SECRET_BYTES, TicketKeys
from coatcheck.tokens.keyring import KeyRing

ROUNDS_PER_PERIOD: Final = 20
"""So often in each period the stores are asked; who could not be reached once is asked again before it matters."""
MAX_ROUND_S: Final = 60.0
CALL_LIMIT_S: Final = 2.0
FIRST_ROUND_S: Final = 1.0
"""How long a start waits for the stores, so that the first handshakes are shared already."""

_log: Final = logging.getLogger("coatcheck.tls")
_seldom: Final = Seldom(_log, time.monotonic)
_all: weakref.WeakSet[SharedTickets] = weakref.WeakSet()
_inherited: list[object] = []
"""What a parent process had open at the fork: its connections are not ours, not even to be closed."""


class TicketCounts(msgspec.Struct):
    """What became of tickets since the start of this process."""

    made: int = 0
    """Tickets that were sealed with a key of the farm."""
    alone: int = 0
    """Tickets that only this process opens, because it knows no key of the farm."""
    opened: int = 0
    refused: int = 0
    """Of no key that is known here for this host: another farm's, or too old. A full handshake."""


class SharedTickets:
    """The tickets of one context; made by :func:`coatcheck.tls.share_ticket_keys`.

    Nothing here ever fails a handshake: whatever goes wrong is a full handshake, and is counted.
    """

    def __init__(
        self,
        context: ssl.SSLContext,
        make_places: Callable[[], Sequence[TakeOncePlace]],
        keys: TicketKeys,
        ring: KeyRing,
        farm: str,
    ) -> None:
        self.counts = TicketCounts()
        self.why_off = ""
        """Why nothing is shared, in words; empty if all is well."""
        self._make_places = make_places
        self._keys = keys
        self._farm = farm
        self._box = ring.box("tls-ticket-key", farm, os.urandom)
        self._demands = Demands(context, farm)
        self._alone = TicketSecrets(os.urandom(16), os.urandom(32), os.urandom(32))
        self._guard = threading.Lock()
        self._closed = threading.Event()
        self._stores: list[TakeOnceForThreads] = []
        self._answers: dict[str, bool] = {}
        try:
            door = open_door(context)
            door.share_tickets(self, self._demands.name, (keys.period_ms + keys.lifetime_ms) // 1000)
        except OpenSslRefused as refused:
            self.why_off = str(refused)
            return
        context.options &= ~ssl.OP_NO_TICKET
        _all.add(self)
        self._begin(FIRST_ROUND_S)

    @property
    def active(self) -> bool:
        """Whether tickets are shared."""
        return not self.why_off

    def status(self) -> dict[str, object]:
        """For operators: whether it is on, the counts, which periods' keys are known, and which stores answer."""
        now_ms = _now_ms()
        with self._guard:
            wanted = self._keys.wanted(now_ms)
        counts: dict[str, object] = msgspec.to_builtins(self.counts)
        return {
            "active": self.active,
            **counts,
            "has_the_key": self._keys.period(now_ms) not in wanted,
            "stores": dict(self._answers),
        }

    def close(self) -> None:
        """Ask the stores no more, and open and seal nothing for others."""
        self.why_off = self.why_off or "closed"
        self._closed.set()

    # -- what OpenSSL asks, in the middle of a handshake -------------------------------------------

    def sealing_key(self, host: bytes) -> TicketSecrets:
        """A key of the farm; if none is known, one that nobody else has: a handshake without any could not end."""
        try:
            if self.active and not self._demands.are_others():
                with self._guard:
                    key = self._keys.sealing(as_host(host), _now_ms())
                if key is not None:
                    self.counts.made += 1
                    return TicketSecrets(*key)
        except Exception as wrong:  # noqa: BLE001 - whatever it is, the handshake goes on, and it is reported
            self._report(wrong)
        self.counts.alone += 1
        return self._alone

    def opening_key(self, name: bytes, host: bytes) -> tuple[TicketSecrets, bool] | None:
        """The key of this ticket, and whether it is to be replaced."""
        try:
            if not self.active or self._demands.are_others():
                return None
            with self._guard:
                found = self._keys.opening(name, as_host(host), _now_ms())
            if found is None:
                self.counts.refused += 1
                return None
            self.counts.opened += 1
            return TicketSecrets(*found.key), found.is_old
        except Exception as wrong:  # noqa: BLE001 - as above
            self._report(wrong)
            return None

    # -- the keys ----------------------------------------------------------------------------------

    def _begin(self, wait_s: float) -> None:
        self._stores = [place.for_threads() for place in self._make_places()]
        asked = threading.Event()
        threading.Thread(target=self._run, args=(asked,), name="coatcheck-ticket-keys", daemon=True).start()
        asked.wait(wait_s)

    def _run(self, asked: threading.Event) -> None:
        pause_s = min(self._keys.period_ms / 1000 / ROUNDS_PER_PERIOD, MAX_ROUND_S)
        while not self._closed.is_set():
            try:
                self._ask_for_keys()
            except Exception as wrong:  # noqa: BLE001 - the next round may go better, and it is reported
                self._report(wrong)
            asked.set()
            self._closed.wait(pause_s)
        for store in self._stores:
            store.close()

    def _ask_for_keys(self) -> None:
        """Agree with the farm on the keys that are lacking, and once more on the present one: a store that was
        restarted empty is told of it before anybody proposes another."""
        now_ms = _now_ms()
        with self._guard:
            self._keys.forget_old(now_ms)
            wanted = self._keys.wanted(now_ms)
        present = self._keys.period(now_ms)
        for period in dict.fromkeys([present, *wanted]):
            self._agree(period, now_ms)

    def _agree(self, period: int, now_ms: int) -> None:
        place, life_ms = self._place(period), self._keys.life_ms(period, now_ms)
        with self._guard:
            known = self._keys.secret(period)
        for store in self._stores:
            secret = known if known is not None else os.urandom(SECRET_BYTES)
            try:
                answer = self._box.open(store.agree(place, self._box.seal(secret, place), life_ms, CALL_LIMIT_S), place)
                self._answers[store.name] = True
            except TakeOnceUnavailable as unavailable:
                self._answers[store.name] = False
                _seldom.warning("the key of TLS tickets could not be agreed on: %s", unavailable, kind="agree")
                continue
            except TokenRejected:
                _seldom.warning("%s has a key of TLS tickets that was not sealed by this farm", store.name)
                continue
            if len(answer) == SECRET_BYTES:
                with self._guard:
                    self._keys.learn(period, answer)
                known = answer

    def _place(self, period: int) -> bytes:
        about = f"{self._farm}\x00{self._keys.period_ms}\x00{period}".encode()
        return blake2b(about, digest_size=KEY_BYTES, person=b"coatcheck-ticket").digest()

    def _after_fork(self) -> None:
        """The keys stay; who asks for the next ones is a thread of this process."""
        _inherited.append((self._stores, self._guard, self._closed))
        self._guard, was_closed = threading.Lock(), self._closed.is_set()
        self._closed = threading.Event()
        if not was_closed:
            self._begin(0.0)

    def _report(self, wrong: Exception) -> None:
        _seldom.write(logging.ERROR, "sharing of TLS tickets failed: %r", wrong, kind="failed")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _after_fork_in_child() -> None:
    for tickets in list(_all):
        tickets._after_fork()


os.register_at_fork(after_in_child=_after_fork_in_child)
