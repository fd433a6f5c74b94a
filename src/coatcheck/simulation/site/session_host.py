"""A session server as shipped, on a simulated host; what it stores is seen by the judge, and it can forget."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from coatcheck.errors import CorruptEntry
from coatcheck.replication.entry import Entry, decode_entry
from coatcheck.replication.put_rule import Verdict
from coatcheck.session_server.server import SessionServer
from coatcheck.session_server.table import EntryTable, TableFull
from coatcheck.simulation.ledger import Ledger
from coatcheck.simulation.world.machine import Machine
from coatcheck.simulation.world.world import SimulatedWorld

PORT: Final = 7000
MAX_UNDO: Final = 64
"""Puts that a restart with an older state may undo."""

Row = tuple[bytes, int]
"""Stored bytes, and when their life ends: milliseconds of the world."""


class SessionHost:
    """The host of one session server. Its data outlives the process, unless a fault says otherwise, as where a Valkey
    writes to its disk."""

    def __init__(self, name: str, world: SimulatedWorld, witness: Ledger, password: str, expires_by_wall: bool) -> None:
        self.name = name
        self._world = world
        self._witness = witness
        self._password = password
        self.expires_by_wall = expires_by_wall
        self._undo: list[tuple[bytes, Row | None]] = []
        self._late_ms = 0
        """How far entries that end by the wall clock are ahead of the steady one."""
        self.read_only = False
        self.is_full = False
        self.run = 0
        self.machine: Machine
        self.table: EntryTable
        self.start({})

    # -- the process -------------------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self.machine.alive

    @property
    def frozen(self) -> bool:
        return self.machine.frozen

    @property
    def address(self) -> str:
        return self.machine.address

    def start(self, rows: dict[bytes, Row]) -> None:
        """A new process, with these rows in its table."""
        self.run += 1
        skew_ms = self.machine.skew_ms if self.run > 1 else 0.0
        self.machine = self._world.machine(self.name)
        self.machine.skew_ms = skew_ms
        self.machine.call(self._build, rows)
        self.machine.start(self._server.start())

    def _build(self, rows: dict[bytes, Row]) -> None:
        self._server = SessionServer(self.name, self.machine.address, PORT, password=self._password)
        self._keep(rows)

    def _keep(self, rows: dict[bytes, Row]) -> None:
        """From now on it stores these rows, in a table as shipped, and the judge sees what is put there."""
        state = self._server._state
        self.table = table = EntryTable(state.publish, state.table.max_bytes, state.table.max_entries)
        state.table = table
        now_ms = self._now_ms() + self._late_ms
        for key, (raw, ends_ms) in rows.items():
            left_ms = round(ends_ms - self._world_ms())
            if left_ms > 0:
                table.take_over(key, left_ms, raw, now_ms)
        shipped = table.put

        def put(key: bytes, seen: bytes, expires_in_ms: int, new: bytes, now_ms: int, notify: bytes = b"") -> Verdict:
            now_ms += self._late_ms
            if self.read_only:
                raise CorruptEntry("writes are refused")
            if self.is_full and self.look(key) is None:
                raise TableFull("no room: a fault says so")
            old, before = self.look(key), self._row(key)
            verdict = shipped(key, seen, expires_in_ms, new, now_ms, notify)
            if verdict is not Verdict.REFUSED:
                self._undo.append((key, before))
                del self._undo[:-MAX_UNDO]
                self._witness.stored(self, key, old, decode_entry(new, expires_in_ms))
            return verdict

        table.put = put  # type: ignore[method-assign]
        if self.expires_by_wall:
            late: Any = table
            get, scan = table.get, table.scan
            late.get = lambda key, now_ms: get(key, now_ms + self._late_ms)
            late.scan = lambda at, limit, now_ms: scan(at, limit, now_ms + self._late_ms)

    def _now_ms(self) -> int:
        """What the table takes for the time."""
        return int(self.machine.monotonic() * 1000)

    def _world_ms(self) -> int:
        return int(self._world.schedule.now * 1000)

    # -- what is stored ----------------------------------------------------------------------------

    def _stored(self, key: bytes) -> tuple[bytes, int] | None:
        now_ms = self._now_ms() + (0 if self.expires_by_wall else self._late_ms)
        return self.table.get(key, now_ms)

    def _row(self, key: bytes) -> Row | None:
        stored = self._stored(key)
        return None if stored is None else (stored[0], self._world_ms() + stored[1])

    def look(self, key: bytes) -> Entry | None:
        stored = self._stored(key)
        return None if stored is None else decode_entry(*stored)

    def life_left_s(self, key: bytes) -> float | None:
        stored = self._stored(key)
        return None if stored is None else stored[1] / 1000

    @property
    def entries(self) -> list[bytes]:
        return list(self._rows())

    def _rows(self) -> dict[bytes, Row]:
        now_ms, world_ms = self._now_ms() + self._late_ms, self._world_ms()
        return {key: (raw, world_ms + left_ms) for key, left_ms, raw in self.table.hand_over(now_ms)}

    # -- faults ------------------------------------------------------------------------------------

    def kill(self, silently: bool = False) -> None:
        self.machine.kill(silently)

    def freeze(self) -> None:
        self.machine.freeze()

    def thaw(self) -> None:
        self.machine.thaw()

    def restart(self) -> None:
        self.start(self._rows())

    def restart_empty(self) -> None:
        self._undo.clear()
        self.start({})
        self._witness.forgot(self)

    def restart_stale(self, puts: int) -> None:
        rows = self._rows()
        for _ in range(min(puts, len(self._undo))):
            key, row = self._undo.pop()
            rows.pop(key, None)
            if row is not None:
                rows[key] = row
        self.start(rows)
        self._witness.forgot(self)

    def forget(self, keys: Iterable[bytes] | None = None) -> None:
        gone = set(self.entries if keys is None else keys)
        if not gone:
            return
        self._undo = [one for one in self._undo if one[0] not in gone]
        self._keep({key: row for key, row in self._rows().items() if key not in gone})
        self._witness.forgot(self, None if keys is None else gone, silently=True)

    def jump(self, by_ms: int) -> None:
        self.machine.skew_ms += by_ms
        if self.expires_by_wall:
            before = self.entries
            self._late_ms += by_ms
            self._witness.forgot(self, [key for key in before if self.look(key) is None], silently=True)

    @property
    def skew_ms(self) -> float:
        return self.machine.skew_ms
