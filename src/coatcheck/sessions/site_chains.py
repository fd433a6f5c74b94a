"""A record as one site sees it, and as it is stored (protocol section 12).

Everything that judges tokens reads ``record.chain``. At the home site that is what is stored there; at another site its
own chain changes places with the home site's, when a record is read and when it is written.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import msgspec

from coatcheck.sessions.record import Handed, Record, Redeemed, SiteChain, encode_record
from coatcheck.tokens.chain import NO_CHAIN, Chain

HOME: Final = ""
MAX_SITES: Final = 8
"""Chains of a record; each has at most 1600 bytes, and together they fit beside the data."""
MAX_REDEEMED: Final = 16
"""Tickets that a record remembers: a browser does not open so many tabs within a ticket's life."""

replace = msgspec.structs.replace


def seen_from(record: Record, site: str) -> Record:
    """A stored record with the chain of ``site`` in place of the home site's."""
    return record if site == HOME else _exchanged(record, site, HOME)


def stored_by(record: Record, site: str) -> Record:
    """The reverse of :func:`seen_from`."""
    return record if site == HOME else _exchanged(record, HOME, site)


def encoder_of(site: str) -> Callable[[Record], bytes]:
    """What encodes the records that a web server of ``site`` has in hand."""
    if site == HOME:
        return encode_record
    return lambda record: encode_record(stored_by(record, site))


def with_chain(record: Record, chain: Chain, site: str, ticket: bytes, now: int, kept_ms: int) -> Record:
    """After a ticket was redeemed at ``site``, as that site sees the record; older tickets than ``kept_ms`` go."""
    handed = record.handed or Handed()
    redeemed = tuple(one for one in handed.redeemed if now - one.redeemed_at < kept_ms and one.ticket != ticket)
    if ticket:
        redeemed = (*redeemed, Redeemed(ticket, site, now))[-MAX_REDEEMED:]
    return replace(record, chain=chain, handed=Handed(handed.chains, redeemed))


def without_chain(record: Record, ticket: bytes, site: str) -> Record | None:
    """Without the chain that a ticket has begun or joined at ``site``; ``None`` if it did neither, or that is gone.

    Every ticket that was redeemed there is revoked: none of them may begin another chain.
    """
    handed = record.handed or Handed()
    if not any((one.ticket, one.site, one.revoked) == (ticket, site, False) for one in handed.redeemed):
        return None
    left = tuple(replace(one, revoked=True) if one.site == site else one for one in handed.redeemed)
    return replace(record, chain=NO_CHAIN, handed=Handed(handed.chains, left))


def is_revoked(record: Record, ticket: bytes) -> bool:
    """Whether what this ticket issued was taken away."""
    return record.handed is not None and any(one.ticket == ticket and one.revoked for one in record.handed.redeemed)


def chain_of(record: Record, site: str) -> Chain:
    """The chain of another site than the one whose web server has the record in hand."""
    handed = record.handed or Handed()
    return next((one.chain for one in handed.chains if one.site == site), NO_CHAIN)


def has_room(record: Record) -> bool:
    """Whether one more site may have a chain in it."""
    return record.handed is None or len(record.handed.chains) < MAX_SITES - 1


def _exchanged(record: Record, wanted: str, in_hand: str) -> Record:
    """``wanted`` comes out of the others, ``in_hand`` goes among them."""
    handed = record.handed or Handed()
    chain = chain_of(record, wanted)
    others = tuple(one for one in handed.chains if one.site != wanted)
    if record.chain != NO_CHAIN:
        others = (*others, SiteChain(in_hand, record.chain))
    return replace(record, chain=chain, handed=Handed(others, handed.redeemed))
