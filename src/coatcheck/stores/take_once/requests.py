"""How a server of items behind RESP is asked, and what its replies mean; whoever carries them."""

from __future__ import annotations

from typing import Any, Final, Protocol

import hiredis

from coatcheck.stores.greeting import Steps
from coatcheck.take_once.port import TakeOnceUnavailable
from coatcheck.take_once.rule import MAX_ITEM_BYTES


class ItemRequests(Protocol):
    """How one kind of server is asked over one connection. A request holds until the next preparation."""

    def prepare(self) -> Steps[None]:
        """What a connection must be told and asked before the rest; it may be begun anew."""
        ...

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes) -> bytes: ...

    def take(self, key: bytes, nonce: bytes) -> bytes: ...

    def purge(self, key: bytes) -> bytes: ...

    def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes) -> bytes: ...


OTHER_RUN: Final = "OTHERRUN"
"""What a server answers that is not in the run that its connection was told of."""


def must_prepare(reply: Any) -> bool:
    """Whether a request was refused before anything happened, until the connection is prepared anew: the server has
    forgotten the scripts, or was promoted meanwhile."""
    return isinstance(reply, hiredis.ReplyError) and str(reply).startswith(("NOSCRIPT", OTHER_RUN))


def as_flag(reply: Any, name: str) -> bool:
    """Yes or no; raises :class:`TakeOnceUnavailable` for anything else."""
    _raise_error(reply, name)
    if reply not in (0, 1):
        raise TakeOnceUnavailable(f"{name}: neither yes nor no")
    return bool(reply)


def as_item(reply: Any, name: str) -> bytes | None:
    """An item, or nothing; raises :class:`TakeOnceUnavailable` for anything else."""
    _raise_error(reply, name)
    if reply is None:
        return None
    if not isinstance(reply, bytes) or not 1 <= len(reply) <= MAX_ITEM_BYTES:
        raise TakeOnceUnavailable(f"{name}: what came is no item")
    return reply


def as_agreement(reply: Any, name: str) -> bytes:
    """A value; raises :class:`TakeOnceUnavailable` for anything else."""
    value = as_item(reply, name)
    if value is None:
        raise TakeOnceUnavailable(f"{name}: nothing was agreed on")
    return value


def _raise_error(reply: Any, name: str) -> None:
    if isinstance(reply, hiredis.ReplyError):
        raise TakeOnceUnavailable(f"{name}: {reply}")
