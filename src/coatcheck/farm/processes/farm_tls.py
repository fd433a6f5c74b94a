"""How a process of the farm ends TLS: its certificate, and the sessions that it shares with the others that do so."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from coatcheck.farm.control.lines import Message
from coatcheck.farm.plan.roles import SessionOrders, TicketOrders
from coatcheck.farm.processes.tls_context import tls_context
from coatcheck.tls.hosts import Siblings
from coatcheck.tls.ticket_keys import TicketKeys
from coatcheck.tls.tickets import SharedTickets
from coatcheck.tls.told_keys import ToldKeys


class _Sharing(Protocol):
    """One way to share the sessions of a context."""

    @property
    def why_off(self) -> str:
        """Why nothing is shared, in words; empty if all is well."""
        ...

    def status(self) -> Mapping[str, object]:
        """What became of sessions."""
        ...

    def operations(self) -> dict[str, Any]:
        """What the supervisor may tell."""
        ...


class ByTickets:
    """Sessions are in tickets, for which the supervisor tells the keys."""

    def __init__(self, context: ssl.SSLContext, orders: TicketOrders) -> None:
        keys = TicketKeys(orders.period_ms, orders.lifetime_ms, Siblings())
        self._keys = ToldKeys(keys, lambda: time.time_ns() // 1_000_000)
        self._keys.tell(dict(orders.keys))
        self._shared = SharedTickets(context, self._keys, orders.farm)

    @property
    def why_off(self) -> str:
        return self._shared.why_off

    def status(self) -> Mapping[str, object]:
        return self._shared.status()

    def operations(self) -> dict[str, Any]:
        return {"tickets": self._tell}

    async def _tell(self, message: Message) -> dict[str, Any]:
        given = message["keys"]
        self._keys.tell({int(period): [bytes.fromhex(one) for one in secrets] for period, secrets in given.items()})
        return {}


class ByTakingOnce:
    """Sessions are kept by a process of the farm, and fetched before the handshake that offers them."""

    def __init__(self, context: ssl.SSLContext, orders: SessionOrders, server: str) -> None:
        # Only who stores sessions needs all this.
        from coatcheck.stores.take_once.opening import items_at
        from coatcheck.tls.record import RecordSealer
        from coatcheck.tls.repository import SessionRepository
        from coatcheck.tls.session_id import SessionIds, store_tag
        from coatcheck.tls.sharing import SharedSessions
        from coatcheck.tokens.keyring import KeyRing

        self._ring = KeyRing(orders.keys, orders.primary)
        self.sessions = SharedSessions(
            context,
            SessionRepository(
                lambda: [items_at(store, orders.farm, orders.fetch_timeout_s) for store in orders.stores],
                store_tag,
                put_limit_s=orders.fetch_timeout_s,
            ),
            SessionIds(self._ring, orders.farm, server, os.urandom),
            RecordSealer(self._ring, orders.farm, os.urandom),
            server=server,
            farm=orders.farm,
            siblings=Siblings(),
            lifetime_s=orders.lifetime_s,
            thread_limit_s=orders.fetch_timeout_s,
            loop_limit_s=orders.fetch_timeout_s,
        )

    @property
    def why_off(self) -> str:
        return self.sessions.why_off

    def status(self) -> Mapping[str, object]:
        return self.sessions.status()

    def operations(self) -> dict[str, Any]:
        return {"tls_keys": self._change_keys}

    async def _change_keys(self, message: Message) -> dict[str, Any]:
        self._ring.change([bytes.fromhex(key) for key in message["keys"]], int(message["primary"]))
        return {}

    @asynccontextmanager
    async def reach_store(self) -> AsyncIterator[None]:
        """Have links to the store on this event loop; entered also while it is away."""
        await self.sessions.open_here()
        try:
            yield
        finally:
            await self.sessions.close_here()

    def ahead(self) -> Any:
        """Fetches a client's session ahead of its handshake: :data:`coatcheck.director.options.AroundHandshake`."""
        from coatcheck.tls.client_hello import ClientHello
        from coatcheck.tls.peek import peek_hello
        from coatcheck.tls.sharing import LookedFor
        from coatcheck.tls.turnstile import Turnstile

        sessions, loop = self.sessions, asyncio.get_running_loop()
        turnstile = Turnstile(loop)

        @asynccontextmanager
        async def around(connection: socket.socket) -> AsyncIterator[None]:
            looked_for = LookedFor()
            try:
                hello = await peek_hello(loop, connection)
                if isinstance(hello, ClientHello):
                    looked_for = await sessions.fetch_ahead(hello)
                await turnstile.turn()
                yield
            finally:
                sessions.forget(looked_for)

        return around


class FarmTls:
    """The TLS of one process; raises :class:`ConfigError` for files that cannot be loaded."""

    def __init__(
        self,
        name: str,
        certificate: str,
        key: str,
        tickets: TicketOrders | None,
        sessions: SessionOrders | None = None,
    ) -> None:
        """``name``: of the process; at most one of ``tickets`` and ``sessions``."""
        self.context = tls_context(certificate, key)
        self.stored = ByTakingOnce(self.context, sessions, name) if sessions is not None else None
        self._sharing: _Sharing | None = self.stored
        if tickets is not None:
            self._sharing = ByTickets(self.context, tickets)

    @property
    def why_off(self) -> str:
        """Why sessions are not shared though they should be; empty if all is well."""
        return self._sharing.why_off if self._sharing is not None else ""

    def operations(self) -> dict[str, Any]:
        """What the supervisor may tell this process about its TLS."""
        return self._sharing.operations() if self._sharing is not None else {}

    def status(self) -> dict[str, Any]:
        """Handshakes that were completed since the start, how many of them resumed a session, and how they share."""
        seen = self.context.session_stats()
        sharing = self._sharing.status() if self._sharing is not None else {"active": False}
        return {**sharing, "handshakes": seen["accept_good"], "resumed": seen["hits"], "why_off": self.why_off}
