"""Answers that were given already, so that a request repeated after a lost answer gets the same one."""

from __future__ import annotations

import asyncio
import hashlib
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

MAX_REMEMBERED: Final = 10_000
"""Finished leases per instance; about a megabyte."""

T = TypeVar("T")


class Replays:
    """Runs the end of each lease once. The same request again gets the first one's outcome.

    Which request it was is remembered as a hash: bodies hold tokens.
    """

    def __init__(self, most: int = MAX_REMEMBERED) -> None:
        self._most = most
        self._known: OrderedDict[str, tuple[bytes, asyncio.Task[Any]]] = OrderedDict()

    async def once(self, lease: str, request: bytes, end: Callable[[], Awaitable[T]]) -> T:
        """What ``end`` returns; or wait for and repeat the outcome of the same request before.

        An outcome that is an error is not remembered: ``end`` tells it anew.
        """
        digest = hashlib.blake2b(request, digest_size=16).digest()
        known = self._known.get(lease)
        if known is not None and known[0] == digest:
            before: T = await asyncio.shield(known[1])
            return before
        if known is not None:
            # Another request about the same lease: let the pool judge it.
            return await end()

        async def run() -> T:
            return await end()

        # A task of its own: a sender that goes away must not leave the end half done.
        task = asyncio.create_task(run())
        self._known[lease] = (digest, task)
        if len(self._known) > self._most:
            self._known.popitem(last=False)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            raise
        except BaseException:
            self._known.pop(lease, None)
            raise
