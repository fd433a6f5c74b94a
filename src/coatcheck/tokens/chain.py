"""Token rotation: which link of the chain is valid now, and when a shown one means theft.

Protocol section 7, mission A2-A4, A6. The rules are functions from chain to chain; times are Unix ms
of the server's clock.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

import msgspec

MAX_RETIRED = 32
"""Retired links that a chain remembers; see :attr:`Chain.forgotten_at` for the others."""


class ChainLink(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One token of the chain: its session ID and the timestamp that it carries."""

    session_id: bytes
    minted_at: int

    def __repr__(self) -> str:
        return f"<ChainLink minted at {self.minted_at}>"


class Retired(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A link that was replaced. ``moved_on_at``: when a newer token was first shown more than the grace
    after ``retired_at``; from then on no honest browser holds this one for longer than the grace."""

    link: ChainLink
    retired_at: int
    moved_on_at: int | None = None


class Chain(msgspec.Struct, frozen=True, array_like=True):
    """``current``: the browser has shown it. ``next``: minted, not yet shown. ``retired``: oldest first.

    ``forgotten_at``: the newest ``minted_at`` among links that were dropped because the list was full, or when the
    chain began where another one may have been before. A token that old is refused, but accuses nobody.
    """

    current: ChainLink
    next: ChainLink | None = None
    retired: tuple[Retired, ...] = ()
    forgotten_at: int = 0

    def told(self, now: int, grace_ms: int) -> ChainLink:
        """What an answer carries: the successor, unless that is about to be given up as lost (:func:`show`)."""
        if self.next is None or (grace_ms and now - self.next.minted_at > grace_ms):
            return self.current
        return self.next


class Shown(Enum):
    """What a shown token is to its chain."""

    CURRENT = "current"
    NEXT = "next"
    IN_GRACE = "retired within the last grace"
    LATE = "retired longer ago, and not dead yet"
    RETURNED = "retired, but the newer ones are silent: its browser has lost them"
    OVERDUE = "of a bound session, and older than its cookie may be"
    TOLERATED = "none of the chain, served by policy"
    STOLEN = "stolen"
    DEAD = "dead"

    @property
    def accepted(self) -> bool:
        return self is not Shown.STOLEN and self is not Shown.DEAD and self is not Shown.OVERDUE


def show(
    chain: Chain, session_id: bytes, minted_at: int, now: int, grace_ms: int, newest_shown_at: int | None = None
) -> tuple[Shown, Chain]:
    """Judge a shown token; ID and timestamp must both match the record (mission A6).

    ``newest_shown_at``: when ``current`` was last shown, as far as is known; ``None``: just now.
    Returns the verdict and the chain afterwards (the same object if nothing changed).
    """
    if session_id == chain.current.session_id and minted_at == chain.current.minted_at:
        return Shown.CURRENT, _mark_moved_on(_without_lost_successor(chain, now, grace_ms), now, grace_ms)
    following = chain.next
    if following is not None and session_id == following.session_id and minted_at == following.minted_at:
        retired = (*chain.retired, Retired(chain.current, now))
        promoted = _trim(Chain(following, None, retired, chain.forgotten_at), now, grace_ms)
        return Shown.NEXT, _mark_moved_on(promoted, now, grace_ms)
    for old in reversed(chain.retired):
        if session_id == old.link.session_id and minted_at == old.link.minted_at:
            if _is_dead(old, now, grace_ms):
                return Shown.STOLEN, chain
            # Within the grace it may have been told the newest token, and for one grace more that answer is under way.
            if newest_shown_at is not None and now - newest_shown_at > 2 * grace_ms:
                return Shown.RETURNED, _brought_back(chain, old, now, grace_ms)
            return (Shown.IN_GRACE if now - old.retired_at <= grace_ms else Shown.LATE), chain
    return (Shown.DEAD if minted_at <= chain.forgotten_at else Shown.STOLEN), chain


def needs_successor(chain: Chain, shown: Shown, now: int, rotate_after_ms: int) -> bool:
    """Whether this answer must mint: only when ``current`` or ``next`` was shown, never a second successor."""
    if chain.next is not None or shown not in (Shown.CURRENT, Shown.NEXT, Shown.RETURNED):
        return False
    # A new token with every response is that also where the clock of the web server that minted this one is ahead.
    return rotate_after_ms == 0 or now - chain.current.minted_at >= rotate_after_ms


def mint(chain: Chain, session_id: bytes, now: int) -> Chain:
    """The chain with a successor: a new session ID and an updated timestamp (mission A3)."""
    if chain.next is not None:
        raise ValueError("the chain has a successor that was not shown yet")
    # Each timestamp is later than all before it, whatever the clocks of two servers say.
    latest = max(link.minted_at for link in (chain.current, *(old.link for old in chain.retired)))
    minted_at = max(now, latest + 1)
    return Chain(chain.current, ChainLink(session_id, minted_at), chain.retired, chain.forgotten_at)


def joined(chain: Chain, session_id: bytes, now: int, grace_ms: int, rotate_after_ms: int) -> Chain:
    """The chain when a browser is told its newest link that has the session, and shows none (protocol section 12).

    As an answer to the current token would: a successor is minted, with ``session_id``, if one is due. No mark says
    that anybody has moved on: this answer may be lost.
    """
    chain = _without_lost_successor(chain, now, grace_ms)
    return mint(chain, session_id, now) if needs_successor(chain, Shown.CURRENT, now, rotate_after_ms) else chain


def renewed(chain: Chain, session_id: bytes, now: int, grace_ms: int, fresh_ms: int) -> Chain:
    """The chain when its browser has signed that it is there, and so is told its next link.

    That is one that was minted within ``fresh_ms``, for the answer that told it may have been lost; else a new one,
    with ``session_id``, and the older one is retired like any that was replaced. No mark says that anybody has moved
    on: this answer may be lost.
    """
    chain = _without_lost_successor(chain, now, grace_ms)
    if chain.next is not None:
        if now - chain.next.minted_at <= fresh_ms:
            return chain
        retired = (*chain.retired, Retired(chain.next, now))
        chain = _trim(Chain(chain.current, None, retired, chain.forgotten_at), now, grace_ms)
    return mint(chain, session_id, now)


NO_CHAIN: Final = Chain(ChainLink(b"", 0), forgotten_at=1 << 62)
"""Of a site where a session is not used: every token of it is refused, and accuses nobody."""


def _is_dead(old: Retired, now: int, grace_ms: int) -> bool:
    if grace_ms == 0:
        return True
    return old.moved_on_at is not None and now - old.moved_on_at > grace_ms


def _without_lost_successor(chain: Chain, now: int, grace_ms: int) -> Chain:
    """A successor that never came back was lost with its answer: it is retired, so that another one can be minted.

    Were it told again and again instead, two browsers that take turns at a slower pace than the grace would get the
    same tokens for ever, as if they were one. For one grace it is told (:meth:`Chain.told`), and for one more grace the
    last answer that told it may be under way: then nobody honest can still receive it.
    """
    lost = chain.next
    if lost is None or grace_ms == 0 or now - lost.minted_at <= 2 * grace_ms:
        return chain
    retired = (*chain.retired, _lost(lost, now))
    return _trim(Chain(chain.current, None, retired, chain.forgotten_at), now, grace_ms)


def _lost(link: ChainLink, now: int) -> Retired:
    """A link that its browser cannot have any more: whoever shows it after the grace is somebody else."""
    return Retired(link, now, moved_on_at=now)


def _brought_back(chain: Chain, returned: Retired, now: int, grace_ms: int) -> Chain:
    """A late answer has overwritten the newer cookies of this browser: it goes on from the link that it has.

    If somebody else holds one of the links that it lost, only one of the two can be honest: that is found when the
    other comes back after the grace.
    """
    lost = [_lost(chain.current, now)]
    if chain.next is not None:
        lost.append(_lost(chain.next, now))
    retired = (*(old for old in chain.retired if old is not returned), *lost)
    return _trim(Chain(returned.link, None, retired, chain.forgotten_at), now, grace_ms)


def _mark_moved_on(chain: Chain, now: int, grace_ms: int) -> Chain:
    if not chain.retired:
        return chain
    if all(old.moved_on_at is not None or now - old.retired_at <= grace_ms for old in chain.retired):
        return chain
    retired = tuple(
        Retired(old.link, old.retired_at, now) if old.moved_on_at is None and now - old.retired_at > grace_ms else old
        for old in chain.retired
    )
    return Chain(chain.current, chain.next, retired, chain.forgotten_at)


def _trim(chain: Chain, now: int, grace_ms: int) -> Chain:
    """Forget what is dead (an unknown ID of a live session is judged the same), then the oldest."""
    alive = tuple(old for old in chain.retired if not _is_dead(old, now, grace_ms))
    forgotten_at = chain.forgotten_at
    if len(alive) > MAX_RETIRED:
        forgotten_at = max(forgotten_at, alive[-MAX_RETIRED - 1].link.minted_at)
        alive = alive[-MAX_RETIRED:]
    return Chain(chain.current, chain.next, alive, forgotten_at)
