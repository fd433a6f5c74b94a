"""What a flow may ask of the world.

A flow is a generator: it yields one of these, and is sent the answer. ``drivers`` answer with real
stores and real time, ``simulation`` with forgetful ones; the rules in between are the same code.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from typing import Any, Protocol, TypeVar

import msgspec

from coatcheck.events import Event, public_id
from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version

T = TypeVar("T")


class Unreachable(msgspec.Struct, frozen=True):
    """The session server did not answer in time, or there is no connection: the outcome is unknown.

    ``full``: it did answer, that it has no room for what was offered.
    """

    why: str = ""
    full: bool = False


class Refused(msgspec.Struct, frozen=True):
    """The put was not accepted; ``stored`` is what the session server holds instead (``None``: nothing)."""

    stored: Entry | None


class Accepted(msgspec.Struct, frozen=True):
    """The put is stored."""


GetReply = Entry | None | Unreachable
PutReply = Accepted | Refused | Unreachable


class Get(msgspec.Struct, frozen=True):
    """Read ``key`` from all of ``servers`` at once; answered with :class:`Gotten`."""

    key: bytes
    servers: tuple[str, ...]

    def __repr__(self) -> str:
        return f"<Get {public_id(self.key)} from {', '.join(self.servers)}>"


class Gotten(msgspec.Struct, frozen=True):
    """``sent_at``: monotonic seconds when the reads left (leases count from there)."""

    sent_at: float
    replies: Mapping[str, GetReply]


class Put(msgspec.Struct, frozen=True):
    """Offer ``entry`` to several servers at once; answered with :class:`Settled`.

    ``seen``: per server, the version that this writer last saw there. With ``enough`` set, the
    answer comes as soon as so many accepted; :class:`Rest` then waits for the others. ``notify``: the IDs of web
    servers that hear of it, where it is accepted, by the same step; an owner that is stored there does so anyway.
    """

    key: bytes
    entry: Entry
    seen: Mapping[str, Version | None]
    enough: int | None = None
    notify: bytes = b""

    def __repr__(self) -> str:
        return f"<Put {public_id(self.key)} {self.entry.version} to {', '.join(self.seen)}>"


class Settled(msgspec.Struct):
    """Replies by server; servers that have not replied yet are missing. ``pending`` is the driver's own."""

    sent_at: float
    replies: dict[str, PutReply]
    pending: Any = None

    @property
    def found_full(self) -> bool:
        """Whether a server had no room for the entry."""
        return any(isinstance(reply, Unreachable) and reply.full for reply in self.replies.values())

    def takers(self) -> list[str]:
        """The servers that accepted so far."""
        return [server for server, reply in self.replies.items() if type(reply) is Accepted]

    def accepted(self) -> int:
        """How many servers accepted so far."""
        count = 0
        for reply in self.replies.values():
            if type(reply) is Accepted:
                count += 1
        return count


class Rest(msgspec.Struct, frozen=True):
    """Wait until all servers of an early answered put have replied; answered with the same :class:`Settled`."""

    settled: Settled


class Pause(msgspec.Struct, frozen=True):
    """Wait ``seconds``."""

    seconds: float


class Exclusive(msgspec.Struct, frozen=True):
    """Run ``flow`` while no other exclusive flow for ``key`` runs in this web server; answered with its result."""

    key: bytes
    flow: Flow[Any]

    def __repr__(self) -> str:
        return f"<Exclusive {public_id(self.key)}>"


class Acknowledge(msgspec.Struct, frozen=True):
    """Hand ``result`` to whoever waits for this flow, now; the flow itself goes on until it is settled."""

    result: Any


class Detach(msgspec.Struct, frozen=True):
    """Start ``flow`` beside this one and wait only until it acknowledges or ends; answered with its result."""

    flow: Flow[Any]


class Together(msgspec.Struct, frozen=True):
    """Run these flows beside each other; answered when all have ended, with what each returned, in their order, or the
    :class:`CoatcheckError` that it raised."""

    flows: tuple[Flow[Any], ...]

    def __repr__(self) -> str:
        return f"<Together {len(self.flows)} flows>"


class Tell(msgspec.Struct, frozen=True):
    """Publish ``message`` to the web server ``server_id``, at most once through each of the session servers."""

    server_id: bytes
    message: bytes

    def __repr__(self) -> str:
        return f"<Tell {self.server_id.hex()}: {len(self.message)} bytes>"


class FreshKeys(msgspec.Struct, frozen=True):
    """Something was sealed with a key that this web server does not know: ask whether there are newer keys.

    Answered with whether the ring is as new as can be now; ``False``: whoever knows could not be asked.
    """


class PutItem(msgspec.Struct, frozen=True):
    """Store an item that may be taken once on the session server ``server``; answered with whether it is stored, or
    with :class:`Unreachable`: then it is abandoned with its key."""

    server: str
    key: bytes
    item: bytes
    life_ms: int


class TakeItem(msgspec.Struct, frozen=True):
    """Take an item from the session server that has it; answered with the item, with ``None`` (it is not there, or
    another nonce took it), or with :class:`Unreachable`: then the same nonce may ask again."""

    server: str
    key: bytes
    nonce: bytes


Effect = Get | Put | Rest | Pause | Exclusive | Acknowledge | Detach | Together | Tell | FreshKeys | PutItem | TakeItem
Flow = Generator[Effect, Any, T]


def as_flow(work: Flow[T] | Exclusive) -> Flow[T]:
    """A flow that does nothing else."""
    if isinstance(work, Exclusive):
        result: T = yield work
        return result
    return (yield from work)


class Surroundings(Protocol):
    """Port: what the rules must be told by the world: the time, random numbers, and which session servers answer.

    Nothing else brings time or randomness into them.
    """

    def now_ms(self) -> int:
        """Unix milliseconds; may jump and differ between servers."""
        ...

    def monotonic(self) -> float:
        """Seconds that never go back, of this process."""
        ...

    def random_bytes(self, count: int) -> bytes:
        """From a cryptographically secure source."""
        ...

    def jitter(self) -> float:
        """Uniform in 0..1, for back-off; need not be secure."""
        ...

    def reachable(self, server: str) -> bool:
        """Whether the session server answered lately; a hint, never a proof."""
        ...

    def report(self, event: Event) -> None:
        """Tell the operators; must not raise."""
        ...
