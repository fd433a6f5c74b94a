"""A client's TLS session, fetched before its handshake begins, where its records come through a director.

OpenSSL asks for it in the midst of the handshake and wants its answer at once, which nobody on the event loop is to
wait for. So the first records are held until it is there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final, Protocol

from coatcheck.tls.client_hello import ClientHello, Incomplete, read_client_hello
from coatcheck.tls.sharing import LookedFor
from coatcheck.tls.turnstile import Turnstile

MAX_LOOKS: Final = 16
"""Records that a ClientHello may be cut into. One in more of them costs its client a full handshake."""


class FetchesAhead(Protocol):
    """Who knows where sessions are: :class:`coatcheck.tls.sharing.SharedSessions`."""

    async def fetch_ahead(self, hello: ClientHello) -> LookedFor:
        """Fetch what this client offers; answers what :meth:`forget` must be told when the handshake is over."""
        ...

    def forget(self, looked_for: LookedFor) -> None:
        """What was not asked for meanwhile is nobody's any more."""
        ...


class HelloAhead:
    """The beginning of one handshake."""

    def __init__(
        self,
        sessions: FetchesAhead,
        turnstile: Turnstile,
        link: asyncio.Transport,
        go_on: Callable[[list[bytes]], None],
    ) -> None:
        """``link``: is not read while a session is fetched. ``go_on``: is given the records that were held."""
        self._sessions = sessions
        self._turnstile = turnstile
        self._link = link
        self._go_on = go_on
        self._held: list[bytes] = []
        self._fetching: asyncio.Task[None] | None = None
        self._looked_for = LookedFor()
        self.is_over = False
        """Nothing is held any more."""

    def hold(self, record: bytes) -> None:
        """Take a record of the client's."""
        self._held.append(record)
        if self._fetching is not None:
            return
        hello = read_client_hello(b"".join(self._held))
        if isinstance(hello, Incomplete) and len(self._held) < MAX_LOOKS:
            return
        self._link.pause_reading()
        offered = hello if isinstance(hello, ClientHello) else None
        self._fetching = asyncio.get_running_loop().create_task(self._fetch(offered))

    async def _fetch(self, offered: ClientHello | None) -> None:
        try:
            if offered is not None:
                self._looked_for = await self._sessions.fetch_ahead(offered)
            await self._turnstile.turn()
            self.is_over = True
            held, self._held = self._held, []
            if not self._link.is_closing():
                self._link.resume_reading()
                self._go_on(held)
        except Exception:
            self._link.abort()
            raise

    def end(self) -> None:
        """The handshake is over, well or not."""
        if self._fetching is not None and not self.is_over:
            self._fetching.cancel()
        self.is_over = True
        self._held = []
        self._sessions.forget(self._looked_for)
