"""Who may speak to a web server: a director of this farm, and nobody else.

Behind a Unix socket the kernel says which user has connected; over TCP the other end proves that it knows the farm's
credential. Only then the connection is given to the HTTP server, and no byte before.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from typing import Final, cast

from coatcheck.errors import ForeignPeer
from coatcheck.peers.credentials import check_same_user
from coatcheck.peers.preamble import ServerPreamble
from coatcheck.seldom import Seldom

PROOF_TIMEOUT_S: Final = 2.0
"""How long a TCP connection may take to prove itself."""
MAX_UNPROVEN: Final = 256
"""TCP connections that have not proved themselves yet; the oldest makes room for a new one."""

log = logging.getLogger("coatcheck.web_server")


class Guard:
    """Stands before one HTTP server: make a protocol for each connection with :meth:`protocol`."""

    def __init__(self, name: str, credential: str, *, unix: bool) -> None:
        self.name = name
        self.unix = unix
        self._credential = credential
        self._unproven: dict[_Visitor, None] = {}
        self._seldom = Seldom(log, asyncio.get_running_loop().time)

    def protocol(self, admitted: Callable[[], asyncio.Protocol]) -> asyncio.Protocol:
        """The protocol of a new connection; ``admitted`` makes the one that serves it once it may be served."""
        return _Visitor(self, admitted)

    def preamble(self) -> ServerPreamble:
        """What a visitor over TCP has to go through."""
        return ServerPreamble(self._credential, self.name, os.urandom)

    def enter(self, visitor: _Visitor) -> None:
        """Note a visitor that must prove itself."""
        if len(self._unproven) >= MAX_UNPROVEN:
            next(iter(self._unproven)).refuse("did not prove itself before many others came")
        self._unproven[visitor] = None

    def leave(self, visitor: _Visitor) -> None:
        """The visitor has proved itself, or is gone."""
        self._unproven.pop(visitor, None)

    def report(self, why: str) -> None:
        """Tell the operator that somebody was refused."""
        self._seldom.warning("a connection past the director was refused: %s", why)


class _Visitor(asyncio.Protocol):
    """A connection that may not speak HTTP yet."""

    def __init__(self, guard: Guard, admitted: Callable[[], asyncio.Protocol]) -> None:
        self._guard = guard
        self._admitted = admitted
        self._transport: asyncio.Transport | None = None
        self._preamble: ServerPreamble | None = None
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if not self._guard.unix:
            self._preamble = self._guard.preamble()
            self._guard.enter(self)
            loop = asyncio.get_running_loop()
            self._late = loop.call_later(PROOF_TIMEOUT_S, self.refuse, "did not prove itself in time")
            return
        try:
            check_same_user(transport.get_extra_info("socket"))
        except ForeignPeer as error:
            self.refuse(str(error))
        else:
            self._admit(self._transport, b"")

    def data_received(self, data: bytes) -> None:
        preamble, transport = self._preamble, self._transport
        if preamble is None or transport is None:
            return
        try:
            answer = preamble.feed(data)
        except ForeignPeer as error:
            self.refuse(str(error))
            return
        if answer:
            transport.write(answer)
        if preamble.done:
            self._end_waiting()
            self._admit(transport, preamble.rest)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._end_waiting()

    def refuse(self, why: str) -> None:
        """Drop the connection without a word."""
        self._end_waiting()
        if self._transport is not None:
            self._transport.abort()
            self._transport = None
            self._guard.report(why)

    def _end_waiting(self) -> None:
        self._guard.leave(self)
        if self._late is not None:
            self._late.cancel()
            self._late = None

    def _admit(self, transport: asyncio.Transport, first: bytes) -> None:
        protocol = self._admitted()
        transport.set_protocol(protocol)
        protocol.connection_made(transport)
        if first:
            protocol.data_received(first)
