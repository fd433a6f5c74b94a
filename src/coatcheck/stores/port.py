"""The port to a session server: what a store promises, and what it may do to us.

A store keeps the newest accepted :class:`Entry` of each key. What every adapter promises, and
``tests/contracts/test_store.py`` holds it to:

* **put is atomic** per key and obeys :func:`coatcheck.replication.put_rule.judge`. A refused put changes nothing
  and is answered with what is stored.
* **An accepted put survives** as long as this store keeps its data. A store may lose data (restart empty)
  or go back in time (restart stale): histories and tokens detect it, so the store need not.
* **Entries expire** ``expires_in_ms`` after the put, on the store's own clock, and take no space for long after.
  ``get`` answers the life that is left.
* **Replies come exactly once**, within the store's ``timeout_s``; a local store may reply before the call returns.
  :data:`UNREACHABLE` says that the outcome is unknown: an unreachable put may have happened, or may happen later.
* **Notices may be lost**, repeated or late. When an accepted put changes the owner or closes the session,
  a :class:`Notice` is published to the old owner's server ID, by the same step. A store whose connection delivers
  them in order with the replies says up to when none is missing (:meth:`Store.watch_notices`).
* **Input is hostile**: corrupt stored bytes are answered as :data:`UNREACHABLE` plus an event, never an exception.

All calls are made from the thread of the event loop that opened the store. They never block.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

from coatcheck.replication.effects import Accepted, GetReply, PutReply, Refused, Unreachable
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version

__all__ = [
    "ACCEPTED",
    "UNREACHABLE",
    "Accepted",
    "GetReply",
    "PutReply",
    "Refused",
    "ScanReply",
    "Store",
    "Unreachable",
]

ACCEPTED: Final = Accepted()
UNREACHABLE: Final = Unreachable()

ScanReply = tuple[int, list[bytes]] | Unreachable


class Store(Protocol):
    """One session server, as a web server sees it. See the module's words for the guarantees."""

    name: str
    """Unique within the farm; the placement hashes it, so renaming a server moves its sessions."""

    @property
    def reachable(self) -> bool:
        """What the last attempt showed. ``False`` makes puts go on to the next server in the ranking."""
        ...

    def get(self, key: bytes, reply: Callable[[GetReply], None]) -> None:
        """Reply with the stored entry, ``None`` if nothing is stored, or unreachable."""
        ...

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        """Offer ``new``; ``seen`` is what this writer last saw on this server.

        ``notify``: the IDs of web servers, 3 bytes each, that get the notice as well as the old owner.
        """
        ...

    def scan(self, cursor: int, limit: int, reply: Callable[[ScanReply], None]) -> None:
        """Reply with the next cursor (0: the end) and about ``limit`` keys, or fewer; a key may come twice."""
        ...

    def publish(self, server_id: bytes, message: bytes) -> None:
        """Send a message to a web server, at most once."""
        ...

    def subscribe(self, server_id: bytes, on_message: Callable[[bytes], None]) -> None:
        """Receive the messages for ``server_id`` from now on, also after reconnects."""
        ...

    def watch(self, on_change: Callable[[str, bool], None]) -> None:
        """Call ``on_change(name, reachable)`` whenever :attr:`reachable` changes."""
        ...

    def watch_clock(self, on_time: Callable[[str, float, float], None]) -> bool:
        """Call ``on_time(name, round_trip_s, unix_ms)`` about once a second with this server's own clock.

        Answers ``False`` if it has none but this host's, and will never call.
        """
        ...

    def watch_notices(self, on_heard: Callable[[str, float], None], period_s: float) -> None:
        """Call ``on_heard(name, sent_at)`` about every ``period_s`` seconds: every notice that was published here to a
        server ID subscribed to, before the moment ``sent_at`` (monotonic seconds) of the present connection, has come.

        A store that cannot know that, because notices and replies have no order, never calls.
        """
        ...

    async def open(self) -> None:
        """Connect. Returns also when the server is away: then :attr:`reachable` is ``False`` and it keeps trying."""
        ...

    async def aclose(self) -> None:
        """Release sockets, files and tasks. Outstanding calls are answered unreachable."""
        ...
