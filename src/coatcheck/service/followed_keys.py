"""The key ring of a service that runs by itself: who changes its file tells nobody, so the service looks at it.

It looks before each request, which costs one call of the operating system: what names a user, and no token, is then
answered by the keys that the farm has now. And it looks every :data:`ROUND_S`, for what goes on without requests.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Final, Protocol

from starlette.types import ASGIApp, Receive, Scope, Send

from coatcheck.drivers.key_refresh import ROUND_S

_log: Final = logging.getLogger("coatcheck.service")


class FollowedFile(Protocol):
    """A key ring that others change."""

    @property
    def ring(self) -> tuple[Sequence[bytes], int]:
        """The secrets, and the index of the one that seals."""
        ...

    def look(self) -> bool:
        """Learn what was changed; whether the ring is another one now."""
        ...


class FollowedKeys:
    """Use it from one event loop. ``round_s``: so often it looks, though nobody asks."""

    def __init__(self, file: FollowedFile, round_s: float = ROUND_S) -> None:
        self._file = file
        self._round_s = round_s
        self._use: Callable[[Sequence[bytes], int], None] = lambda keys, primary: None

    async def refresh(self) -> bool:
        """For whoever meets a key that it does not know: the ring is as its file says, and that can always be known."""
        self.look()
        return True

    def look(self) -> None:
        """Have the file's keys used, if they are others."""
        if self._file.look():
            self._use(*self._file.ring)
            _log.info("keys: the ring was changed")

    def around(self, app: ASGIApp, use: Callable[[Sequence[bytes], int], None]) -> ASGIApp:
        """The same app, whose keys follow from its start to its end. ``use`` gives them to whatever has keys."""
        self._use = use

        async def followed(scope: Scope, receive: Receive, send: Send) -> None:
            self.look()
            if scope["type"] != "lifespan":
                await app(scope, receive, send)
                return
            rounds = asyncio.create_task(self._go_round(), name="key rounds")
            try:
                await app(scope, receive, send)
            finally:
                rounds.cancel()

        return followed

    async def _go_round(self) -> None:
        while True:
            await asyncio.sleep(self._round_s)
            self.look()
