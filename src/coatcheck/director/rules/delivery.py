"""How one request is delivered: to which web server, whether once more, and when to give up. Rules only.

Silence is not death. A request that was written to a web server goes to another one only when its connection ended,
or when the server answered neither it nor a health check for ``resend_after_s``; only if its method may be repeated
(RFC 9110, 9.2.2), and ``max_sends`` times in all. A request of which nothing was written may go anywhere.

Nothing here reads a clock, a socket or chance: what happened comes in, what to do goes out.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Final

import msgspec

from coatcheck.director.rules.routing import Balancer, Health, ServerState

IDEMPOTENT_METHODS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
"""Methods that may be sent twice with the effect of once (RFC 9110, 9.2.2)."""


class DeliveryPolicy(msgspec.Struct, frozen=True):
    """What the operator allows; times in seconds."""

    max_sends: int = 2
    """How often an idempotent request is written to web servers in all; others are written once."""
    resend_after_s: float = 20.0
    """When patience with a busy web server ends; 0: never."""


class Failure(Enum):
    """Why a web server did not serve a request."""

    REFUSED = "refused"
    """No connection was to be had."""
    STALLED = "stalled"
    """A connection was not accepted in time: the server is busy. Nothing was written."""
    LOST = "lost"
    """The connection ended before the response did."""
    SILENT = "silent"
    """It answered neither the request nor health checks for too long."""
    LATE = "late"
    """The longest time that an answer may take is over."""
    NONSENSE = "nonsense"
    """What came is no HTTP."""


class Step(Enum):
    """What becomes of a request whose web server failed it."""

    DELIVER = "deliver"
    """Choose a web server for it, anew."""
    BAD_GATEWAY = "502"
    GATEWAY_TIMEOUT = "504"
    BREAK_OFF = "break off"
    """A part of the response has left: all that can be done is to let the browser see that it is not whole."""


class WaitReason(Enum):
    """Why a request waits in the director."""

    BUSY = "busy"
    """The web server that it would go to is busy."""
    NO_SERVER = "no server"
    """No web server takes requests."""


_BUSY: Final = Health.BUSY


class Delivery:
    """One request on its way: what was written where, and so what may still be done with it."""

    __slots__ = ("browser", "idempotent", "refusals", "replied", "sends", "tag", "tried", "whole", "written")

    def __init__(self, method: bytes, tag: bytes | None, browser: bytes = b"") -> None:
        self.idempotent = method in IDEMPOTENT_METHODS
        self.tag = tag
        self.browser = browser
        """Its cookies: all requests of one browser go to one web server, also when the one of its ``tag`` is gone."""
        self.tried: Sequence[ServerState] = ()
        """Web servers that failed it; they are asked again only when no other one is fit."""
        self.sends = 0
        """How often it was written to a web server, this time included."""
        self.refusals = 0
        self.written = False
        """Whether a byte of it was written to the web server that has it now."""
        self.whole = True
        """Whether all of its body that has come is still held, so that it can be written once more."""
        self.replied = False
        """Whether a byte of the final response has left for the browser."""

    def sent_before(self, times: int, *, begun: bool, keyed: bool) -> None:
        """So many web servers have had it already, on this very connection of the client.

        ``begun``: whether they may have carried it out if it must not be done twice; ``keyed``: whether the app knows
        it when it comes again.
        """
        self.idempotent = self.idempotent or keyed
        if self.idempotent or begun:
            self.sends = times

    def next_server(self, balancer: Balancer, waited_s: float, policy: DeliveryPolicy) -> ServerState | WaitReason:
        """Where it is to be written now, or why it has to wait; ``waited_s``: how long it already does."""
        patient = not 0 < policy.resend_after_s <= waited_s
        server = balancer.choose(self.tag, self.tried, browser=self.browser, patient=patient)
        if server is None:
            return WaitReason.BUSY if balancer.waits_for_busy() else WaitReason.NO_SERVER
        return WaitReason.BUSY if server.health is _BUSY else server

    def write(self) -> None:
        """It is written to a web server: from now on that one may have carried it out."""
        assert not self.sends or self.may_be_written, "a request would be carried out too often"
        self.written = True
        self.sends += 1

    @property
    def may_be_written(self) -> bool:
        """Whether writing it cannot carry it out more often than its method allows."""
        return not self.sends or (self.idempotent and self.whole and not self.replied)

    def may_be_resent(self, policy: DeliveryPolicy) -> bool:
        """Whether it may be written once more although it was written."""
        return self.idempotent and self.whole and not self.replied and self.sends < policy.max_sends

    def is_impatient(self, waited_s: float, health: Health, policy: DeliveryPolicy) -> bool:
        """Whether a written request is to leave a web server that has been silent for ``waited_s``."""
        return health is Health.BUSY and 0 < policy.resend_after_s <= waited_s and self.may_be_resent(policy)

    def failed(self, server: ServerState, failure: Failure, policy: DeliveryPolicy) -> Step:
        """A web server failed it: what now?"""
        written, self.written = self.written, False
        if self.replied:
            return Step.BREAK_OFF
        if failure is Failure.LATE:
            return Step.GATEWAY_TIMEOUT
        if failure is Failure.NONSENSE:
            # It was carried out all the same, so nobody else is asked.
            return Step.BAD_GATEWAY
        if failure is not Failure.STALLED:
            self.tried = [*self.tried, server]
        if not written:
            self.refusals += 1
            return Step.DELIVER if self.refusals <= _MAX_REFUSALS else Step.BAD_GATEWAY
        if self.may_be_resent(policy):
            return Step.DELIVER
        return Step.GATEWAY_TIMEOUT if failure is Failure.SILENT else Step.BAD_GATEWAY

    def admitted(self, server: ServerState) -> None:
        """A web server takes requests again, maybe as a new process: what it did before does not count."""
        self.tried = [tried for tried in self.tried if tried is not server]


_MAX_REFUSALS: Final = 256
"""Connections that one request may be refused: more than a farm has web servers, each of which may come and go."""
