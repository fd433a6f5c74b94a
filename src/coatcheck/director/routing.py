"""Which web server gets a request, which servers are fit, and which requests may be sent again: rules only.

Nothing here reads a clock, a socket or chance. The shells report what happened and do what the rules answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from typing import Final

import msgspec

IDEMPOTENT_METHODS: Final = frozenset({b"GET", b"HEAD", b"OPTIONS", b"PUT", b"DELETE", b"TRACE"})
"""Methods that may be sent twice with the effect of once (RFC 9110, 9.2.2)."""


class HealthPolicy(msgspec.Struct, frozen=True):
    """How many checks in a row change a verdict: ``rise`` passed ones admit, ``fall`` failed ones eject."""

    rise: int = 1
    fall: int = 2


class Check(Enum):
    """What one health check of a web server showed."""

    PASSED = "passed"
    REFUSED = "refused"
    """No connection, or it was closed without an answer: the process is gone or is going."""
    UNFIT = "unfit"
    """It answered, but not with 2xx: it wants no requests (it starts, or it drains)."""
    SILENT = "silent"
    """Nothing came in time: frozen, or cut off."""
    INCONCLUSIVE = "inconclusive"
    """Nothing came in time, but others were answered meanwhile, or the director itself was late."""


class Verdict(Enum):
    """What a check changed, and so what the shell has to do."""

    UNCHANGED = "unchanged"
    ADMITTED = "admitted"
    """Requests may go there again: dispatch those that wait."""
    EJECTED = "ejected"
    """No new requests. Those in flight go on: a process that died has closed its connections, and
    one that stops in order still finishes them."""
    ABANDONED = "abandoned"
    """No new requests, and nothing will come for those in flight: move them, or fail them."""


class ServerState:
    """What the director knows of one web server."""

    __slots__ = (
        "draining", "failed_checks", "failures", "healthy", "in_flight", "index", "name", "passed_checks",
        "requests", "silent", "tag",
    )  # fmt: skip

    def __init__(self, index: int, name: str, tag: bytes) -> None:
        self.index = index
        self.name = name
        self.tag = tag
        # Unproven until the first check has passed: a server that still starts gets no request.
        self.healthy = False
        self.draining = False
        self.silent = False
        """Whether it was given up because nothing came from it any more."""
        self.passed_checks = 0
        self.failed_checks = 0
        self.in_flight = 0
        self.requests = 0
        self.failures = 0

    @property
    def suspect(self) -> bool:
        """Whether it failed its last check, or was ejected: a request that waits there may be waiting in vain."""
        return self.failed_checks > 0 or not self.healthy


def checked(state: ServerState, check: Check, policy: HealthPolicy) -> Verdict:
    """Count one health check and say what it changes."""
    if check is Check.INCONCLUSIVE:
        return Verdict.UNCHANGED
    state.silent = check is Check.SILENT and state.failed_checks + 1 >= policy.fall
    if check is Check.PASSED:
        state.failed_checks = 0
        state.passed_checks += 1
        if state.healthy or state.passed_checks < policy.rise:
            return Verdict.UNCHANGED
        state.healthy = True
        return Verdict.ADMITTED
    state.passed_checks = 0
    state.failed_checks += 1
    if state.failed_checks < policy.fall:
        return Verdict.UNCHANGED
    was_healthy, state.healthy = state.healthy, False
    # Silence is acted upon at the count itself, also where a failed connect had ejected the server before:
    # requests sent earlier may still wait there.
    if check is Check.SILENT and state.failed_checks == policy.fall:
        return Verdict.ABANDONED
    return Verdict.EJECTED if was_healthy else Verdict.UNCHANGED


def eject(state: ServerState) -> bool:
    """Take a server out after a failed connect or a reset; only a passed check brings it back."""
    state.passed_checks = 0
    was_healthy, state.healthy = state.healthy, False
    return was_healthy


class Balancer:
    """Chooses the web server of a request: its session's host if that is fit, else the least busy one."""

    __slots__ = ("_by_tag", "_turn", "_turns", "servers")

    def __init__(self, servers: Sequence[ServerState]) -> None:
        self.servers = tuple(servers)
        self._by_tag = {server.tag: server for server in servers}
        self._turn = 0
        self._turns = [self.servers[first:] + self.servers[:first] for first in range(len(servers))]

    def choose(self, tag: bytes | None, tried: Collection[ServerState]) -> ServerState | None:
        """The server for a request whose route cookie says ``tag``; ``None``: none is fit and untried."""
        if tag is not None:
            named = self._by_tag.get(tag)
            if named is not None and named.healthy and not named.draining and named not in tried:
                return named
        return self._least_busy(tried)

    def _least_busy(self, tried: Collection[ServerState]) -> ServerState | None:
        best: ServerState | None = None
        # Beginning behind the server that was chosen last breaks ties by turns.
        for server in self._turns[self._turn]:
            if (
                server.healthy
                and not server.draining
                and (best is None or server.in_flight < best.in_flight)
                and server not in tried
            ):
                best = server
        if best is not None:
            self._turn = (best.index + 1) % len(self.servers)
        return best

    def knows(self, tag: bytes) -> bool:
        """Whether a server of this farm has this tag."""
        return tag in self._by_tag

    def has_fit_server(self) -> bool:
        """Whether any server takes requests, tried or not."""
        return any(server.healthy and not server.draining for server in self.servers)


class Attempt(msgspec.Struct, frozen=True):
    """How far a request had come when its attempt failed."""

    method: bytes
    sent: bool
    """Whether a byte of it was written to the web server."""
    body_kept: bool
    """Whether all of the body so far is still held, so that it can be sent once more."""
    response_begun: bool
    """Whether a byte of the final response has left for the client."""
    tries: int
    """How often it was sent, this attempt included."""


def may_send_again(attempt: Attempt, max_tries: int) -> bool:
    """Whether a failed request may go to a web server once more (RFC 9110, 9.2.2).

    A request of which no byte was written is not a repeat at all. One that was written may have been carried
    out, answer or no answer, so only an idempotent one is repeated, and only while its body is still held.
    """
    if attempt.response_begun or not attempt.body_kept:
        return False
    if not attempt.sent:
        return True
    return attempt.method in IDEMPOTENT_METHODS and attempt.tries < max_tries


def servers_of(names_and_tags: Iterable[tuple[str, str]]) -> list[ServerState]:
    """The states of a farm's web servers, in the farm's order."""
    return [ServerState(index, name, tag.encode("ascii")) for index, (name, tag) in enumerate(names_and_tags)]
