"""Which web server gets a request, and which servers are fit: rules only.

Nothing here reads a clock, a socket or chance. The shells report what happened and do what the rules answer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from enum import Enum
from hashlib import blake2b

import msgspec


class HealthPolicy(msgspec.Struct, frozen=True):
    """How many checks in a row change what is thought of a server: ``rise`` passed ones, ``fall`` failed ones."""

    rise: int = 1
    fall: int = 2


class Health(Enum):
    """What the director thinks of a web server."""

    HEALTHY = "healthy"
    BUSY = "busy"
    """It takes connections and answers nothing in time: its event loop is blocked, or it is frozen. That is no death:
    what it was sent it may still carry out. Requests of its sessions wait; others go elsewhere if they can."""
    GONE = "gone"
    """It takes no connections, or says that it wants no requests (it starts, or it stops)."""


class Check(Enum):
    """What one health check of a web server showed."""

    PASSED = "passed"
    REFUSED = "refused"
    """No connection, or it was closed without an answer: the process is gone or is going."""
    UNFIT = "unfit"
    """It answered, but not with 2xx: it wants no requests (it starts, or it drains)."""
    SILENT = "silent"
    """Nothing came in time: blocked, frozen, or cut off."""
    INCONCLUSIVE = "inconclusive"
    """Nothing came in time, but others were answered meanwhile, or the director itself was late."""


# Of an enumeration, a look-up of each costs as much as a call.
_BUSY, _HEALTHY = Health.BUSY, Health.HEALTHY


class ServerState:
    """What the director knows of one web server."""

    __slots__ = (
        "answers", "draining", "failed_checks", "failures", "health", "in_flight", "index", "name", "passed_checks",
        "requests", "tag",
    )  # fmt: skip

    def __init__(self, index: int, name: str, tag: bytes) -> None:
        self.index = index
        self.name = name
        self.tag = tag
        # Unproven until the first check has passed: a server that still starts gets no request.
        self.health = Health.GONE
        self.draining = False
        self.answers = 0
        """How often bytes came from it: proof of life for the health checks."""
        self.passed_checks = 0
        self.failed_checks = 0
        self.in_flight = 0
        self.requests = 0
        self.failures = 0


def checked(state: ServerState, check: Check, policy: HealthPolicy) -> bool:
    """Count one health check; answers whether it changed the server's health."""
    if check is Check.INCONCLUSIVE:
        return False
    before = state.health
    if check is Check.PASSED:
        state.failed_checks = 0
        state.passed_checks += 1
        # An answer is all that a busy server lacked.
        if before is Health.BUSY or state.passed_checks >= policy.rise:
            state.health = Health.HEALTHY
        return state.health is not before
    state.passed_checks = 0
    state.failed_checks += 1
    if state.failed_checks >= policy.fall:
        if check is not Check.SILENT:
            state.health = Health.GONE
        elif before is Health.HEALTHY:
            state.health = Health.BUSY
    return state.health is not before


def eject(state: ServerState) -> bool:
    """Take a server out after a refused connection or a reset; only a passed check brings it back."""
    state.passed_checks = 0
    before, state.health = state.health, Health.GONE
    return before is not Health.GONE


def stalled(state: ServerState) -> bool:
    """A connection was not accepted in time: as telling as silent health checks."""
    before = state.health
    if before is Health.HEALTHY:
        state.health = Health.BUSY
    return state.health is not before


def heard(state: ServerState) -> bool:
    """Bytes came from a server: it is busy no more. One that is gone, or going, still needs a passed check."""
    if state.health is not Health.BUSY:
        return False
    state.failed_checks = 0
    state.health = Health.HEALTHY
    return True


def by_hash(key: bytes, servers: Iterable[ServerState]) -> ServerState | None:
    """One of ``servers``, the same for a key as long as that one is among them (rendezvous hashing)."""
    return max(servers, key=lambda server: blake2b(key + b"\x00" + server.tag, digest_size=8).digest(), default=None)


class Balancer:
    """Chooses the web server of a request: its session's host if that is fit, else the least busy one.

    If the host is not fit, all requests of one browser go to one other server. They may come at once, each with the
    route cookie of the host that died: on several servers, each would take the session from the one before.
    """

    __slots__ = ("_by_tag", "_turn", "_turns", "knows", "servers")

    def __init__(self, servers: Sequence[ServerState]) -> None:
        self.servers = tuple(servers)
        self._by_tag = {server.tag: server for server in servers}
        self.knows = self._by_tag.__contains__
        """Whether a server of this farm has a tag."""
        self._turn = 0
        self._turns = [self.servers[first:] + self.servers[:first] for first in range(len(servers))]

    def choose(
        self, tag: bytes | None, tried: Collection[ServerState], *, browser: bytes = b"", patient: bool = True
    ) -> ServerState | None:
        """The server for a request whose route cookie says ``tag``; ``None``: none takes requests.

        ``browser``: its cookies, which tell it from others. The answer may be busy: then the request is to wait for
        it, unless it is not ``patient`` any more. Servers that were ``tried`` come last.
        """
        named = self._by_tag.get(tag) if tag is not None else None
        if named is not None and not named.draining and named not in tried:
            fit = named.health is _HEALTHY or (patient and named.health is _BUSY)
            if fit:
                return named
        chosen = None
        if named is not None and browser:
            healthy = (one for one in self.servers if one.health is _HEALTHY and not one.draining)
            chosen = by_hash(browser, (one for one in healthy if one not in tried))
        if chosen is None:
            chosen = self._least_busy(_HEALTHY, tried)
        if chosen is None and patient:
            chosen = self._least_busy(_BUSY, tried)
        if chosen is None and tried:
            chosen = self._least_busy(_HEALTHY, ())
        return chosen

    def _least_busy(self, health: Health, tried: Collection[ServerState]) -> ServerState | None:
        best: ServerState | None = None
        # Beginning behind the server that was chosen last breaks ties by turns.
        for server in self._turns[self._turn]:
            if (
                server.health is health
                and not server.draining
                and (best is None or server.in_flight < best.in_flight)
                and server not in tried
            ):
                best = server
        if best is not None:
            self._turn = (best.index + 1) % len(self.servers)
        return best

    def waits_for_busy(self) -> bool:
        """Whether a server that is only busy may still take requests."""
        return any(server.health is _BUSY and not server.draining for server in self.servers)


def servers_of(names_and_tags: Iterable[tuple[str, str]]) -> list[ServerState]:
    """The states of a farm's web servers, in the farm's order."""
    return [ServerState(index, name, tag.encode("ascii")) for index, (name, tag) in enumerate(names_and_tags)]
