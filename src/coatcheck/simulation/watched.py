"""What the judge watches: web servers and session servers, bare or shipped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, Protocol

from coatcheck.replication.closes import Closed
from coatcheck.replication.copies import Copies
from coatcheck.replication.entry import Entry, Sealer
from coatcheck.replication.stall_guard import StallGuard
from coatcheck.replication.version import History
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.simulation.application import Attempt

REMEMBERED: Final = 32
"""Gets and puts of one session."""


class WatchedSessionServer(Protocol):
    """A session server: what it stores, and what can happen to it."""

    name: str
    expires_by_wall: bool
    """Whether its entries end by a clock that may jump, as a Valkey's do."""
    read_only: bool
    """It answers, and refuses every write: a replica that was promoted away, or a full memory."""

    @property
    def alive(self) -> bool: ...

    @property
    def entries(self) -> Collection[bytes]:
        """The keys of all that is stored."""
        ...

    def look(self, key: bytes) -> Entry | None:
        """What is stored and has not expired, whether the process runs or not."""
        ...

    def life_left_s(self, key: bytes) -> float | None:
        """How long what is stored lives on; ``None``: nothing is."""
        ...

    def kill(self) -> None: ...

    def restart(self) -> None:
        """With all that it had."""
        ...

    def restart_empty(self) -> None: ...

    def restart_stale(self, puts: int) -> None:
        """With an older state: the last ``puts`` never reached the disk."""
        ...

    def forget(self, keys: Iterable[bytes] | None = None) -> None:
        """These entries vanish (``None``: all), and no connection breaks."""
        ...

    def freeze(self) -> None: ...

    def thaw(self) -> None: ...

    def jump(self, by_ms: int) -> None:
        """Its wall clock is set otherwise; entries that end by that clock follow."""
        ...


class WatchedWebServer(ABC):
    """One run of a web server; what the judge asks about it is kept here."""

    copies: Copies
    lifecycle: Lifecycle
    sealer: Sealer
    TIMEOUT_S: float
    """How long it waits for the answer of a session server."""
    site = ""
    """Which site of the farm it serves."""

    def __init__(self, name: str, run: int, servers: Mapping[str, WatchedSessionServer]) -> None:
        self.name = name
        self.run = run
        self.servers = servers
        """Those of its own list of session servers: another web server may know another list for a while."""
        self.had: dict[bytes, History] = {}
        """Per session: the history of the own copy when its copies were last asked for."""
        self.answered: dict[bytes, tuple[float, dict[str, Any]]] = {}
        """Per session: when its copies were last asked for, and the replies."""
        self.checked: dict[bytes, float] = {}
        """Per session: when the last get or put was sent."""
        self._in_reach: dict[bytes, deque[tuple[float, tuple[str, ...]]]] = {}
        """Per session: which session servers were in reach when gets and puts were sent."""
        self.noticed: dict[bytes, float] = {}
        """Per session: when the last notice came that was not of an own claim."""
        self.unsure: dict[bytes, float] = {}
        """Per session: when contact with a server that holds it was last lost or found again."""
        self.stalled_at = -1.0
        """When this process went on after it had not run for longer than a lease may be trusted."""
        self._frozen_at = 0.0

    @property
    def server_id(self) -> bytes:
        return self.copies.server_id

    @property
    @abstractmethod
    def ready(self) -> bool:
        """Whether it takes requests."""

    @property
    @abstractmethod
    def alive(self) -> bool: ...

    @abstractmethod
    def after(self, delay_s: float, act: Callable[..., Any], *args: Any) -> None:
        """Call ``act`` in ``delay_s`` seconds."""

    @abstractmethod
    def freeze(self) -> None: ...

    @abstractmethod
    def thaw(self) -> None: ...

    @abstractmethod
    def jump(self, by_ms: int) -> None:
        """Its wall clock is set otherwise."""

    @abstractmethod
    def kill(self) -> None: ...

    @abstractmethod
    def cancel(self, attempt: Attempt) -> None:
        """The client hangs up."""

    @abstractmethod
    def close(self, key: bytes, done: Callable[[Closed], None]) -> None:
        """Close a session as an operator does; ``done`` hears of it, unless that fails."""

    @abstractmethod
    def now_ms(self) -> int:
        """What it takes for the farm's time: Unix ms."""

    @abstractmethod
    def unfinished(self) -> list[Any]:
        """The flows that are still under way, and the keys whose turn is taken."""

    def links_heard(self) -> dict[str, float] | None:
        """Of each link that is up, when the newest heart-beat was sent that was answered; ``None``: it does not say."""
        return None

    def in_reach_at(self, key: bytes, moment: float) -> tuple[str, ...]:
        """The session servers that were in reach when the last get or put of a session was sent before a moment."""
        return next((names for at, names in reversed(self._in_reach.get(key, ())) if at <= moment), ())

    def note_sent(self, key: bytes, now: float, in_reach: Iterable[str]) -> None:
        """A get or a put of a session is sent."""
        self.checked[key] = now
        self._in_reach.setdefault(key, deque(maxlen=REMEMBERED)).append((now, tuple(in_reach)))

    def note_frozen(self, now: float) -> None:
        """It stands still from now on."""
        self._frozen_at = now

    def note_thawed(self, now: float) -> None:
        """It goes on."""
        if now - self._frozen_at > StallGuard.STALL_S + StallGuard.BEAT_S:
            self.stalled_at = now
