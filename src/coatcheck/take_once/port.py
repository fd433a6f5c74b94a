"""The port to a store of items that may be taken once: TLS session states, tickets that hand a session over.

What every adapter promises, and ``tests/contracts/test_take_once.py`` holds it to:

* **At most one take of an item wins**, however many race, from however many processes; :mod:`coatcheck.take_once.rule`
  is obeyed. The reply says who won: whoever gets the item.
* **The same nonce may ask again** for a while, if its answer was lost; another nonce never gets what that one took.
* **A store may lose items** (restart empty, drop what it has no room for). It may not come back with older ones: then
  what was taken could be taken again. An adapter that cannot be sure of that forgets all items instead.
* **Items expire** on the store's own clock, and take no space for long after. What was taken leaves a mark of its life.
* **Agreements** stand beside the items and are never taken: whoever proposes a value first decides it for all, as long
  as it lives, or until somebody proposes another one instead of just this one. A store may forget one; then the next
  proposal decides, so who knows a value proposes that.
* **Nothing repairs, copies, lists or hands over items**: they are where they were put, or nowhere.
* **Calls end** within the store's time-out, and raise :class:`TakeOnceUnavailable` if the outcome is unknown. A put
  whose outcome is unknown is never tried again under its key: the item is abandoned.

The port has two sides. :class:`TakeOnceStore` is for an event loop: all its calls are made on the one that opened it,
and never block it. :class:`TakeOnceForThreads` is for any thread, and blocks that one for as long as it is told to.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple, Protocol

from coatcheck.errors import CoatcheckError
from coatcheck.take_once.rule import NEVER_STORED, NOTHING


class TakeOnceUnavailable(CoatcheckError):
    """The store did not answer, or answered that it cannot; what became of the call is unknown."""


class TakeOnceFull(TakeOnceUnavailable):
    """The store answered: it has no room for one more item. What is there can be taken."""


class TakeOnceStore(Protocol):
    """One store of items. See the module's words for the guarantees.

    All methods raise ``ValueError`` for arguments that :mod:`coatcheck.take_once.rule` does not know.
    """

    name: str
    """What an item's key is found by: unique among the stores of a farm, and the same on every server."""

    @property
    def reachable(self) -> bool:
        """What the last attempt showed."""
        ...

    async def put(self, key: bytes, item: bytes, life_ms: int, after: bytes = NEVER_STORED) -> bool:
        """Store an item; ``False`` if there is one, or a mark of one, under this key.

        ``after``: put a taken item back, by the nonce that took it; ``False`` if nobody, or somebody else, took it.
        """
        ...

    async def take(self, key: bytes, nonce: bytes) -> bytes | None:
        """Take the item: its content, or ``None`` if it is not here, or was taken by another nonce."""
        ...

    async def purge(self, key: bytes) -> bool:
        """Destroy the content, so that nobody takes it any more, or puts it back; ``False`` if nothing is stored."""
        ...

    async def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes = NOTHING) -> bytes:
        """What is agreed on under this key: ``proposal``, unless somebody proposed another value before.

        ``instead_of``: the value that it replaces, if that one is agreed on.
        """
        ...

    async def open(self) -> None:
        """Connect. Returns also when the server is away: then it keeps trying."""
        ...

    async def aclose(self) -> None:
        """Release sockets, files and tasks."""
        ...


class TakeOnceForThreads(Protocol):
    """One store of items, for threads: what :class:`TakeOnceStore` promises, each call within ``limit_s`` seconds.

    It connects when it is first asked, and again when it must. After a fork, use another one.
    """

    name: str

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> bool:
        """See :meth:`TakeOnceStore.put`."""
        ...

    def hand_over(self, key: bytes, item: bytes, life_ms: int, after: bytes, limit_s: float) -> None:
        """Put without waiting for what becomes of it; what cannot be sent within the limit raises.

        That it was sent says nothing about the store: :meth:`settle` does, later.
        """
        ...

    def take(self, key: bytes, nonce: bytes, limit_s: float) -> bytes | None:
        """See :meth:`TakeOnceStore.take`."""
        ...

    def purge(self, key: bytes, limit_s: float) -> bool:
        """See :meth:`TakeOnceStore.purge`."""
        ...

    def agree(self, key: bytes, proposal: bytes, life_ms: int, limit_s: float, instead_of: bytes = NOTHING) -> bytes:
        """See :meth:`TakeOnceStore.agree`."""
        ...

    def check(self, limit_s: float) -> bool:
        """Whether it answers now."""
        ...

    def settle(self) -> tuple[int, int]:
        """Of what was handed over: how many are not answered yet, and how many were not stored as far as is known."""
        ...

    def close(self) -> None:
        """Release sockets and files; another call connects again."""
        ...


class TakeOncePlace(NamedTuple):
    """A store that is not opened yet, and what is made of it in a process: one for its threads, one per event loop."""

    name: str
    for_threads: Callable[[], TakeOnceForThreads]
    for_a_loop: Callable[[], TakeOnceStore]
