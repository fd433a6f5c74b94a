"""The key ring that machines share: sealed, on the session servers that all of them reach.

It is sealed with keys that are derived from those of the key file (or ``COATCHECK_KEYS``), which all machines have and
which seal nothing else there: whoever has a key that was revoked, and reads the session servers, cannot read the keys
that came after it. Each machine keeps a sealed copy, and brings it to a session server that was restarted empty.
"""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import Callable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

from coatcheck.errors import ConfigError, CorruptEntry, TokenRejected
from coatcheck.farm.files.keys import FarmKeys, key_name, new_key
from coatcheck.farm.supervision.console import Console
from coatcheck.farm.supervision.ring_copy import RingCopy, keys_of
from coatcheck.take_once.port import TakeOnceForThreads, TakeOncePlace, TakeOnceUnavailable
from coatcheck.take_once.rule import MAX_LIFE_MS, NOTHING
from coatcheck.tokens.keyring import key_id
from coatcheck.tokens.ring_state import MAX_MACHINE_NAME, KeyState, RingState, seed

CALL_LIMIT_S: Final = 2.0
FIRST_LOOK_S: Final = 10.0
"""How long a machine that has no copy of the ring waits, at its start, for a session server that answers."""
GONE_S: Final = 20.0
"""Nobody waits for a machine that was not heard for so long: it learns of the keys when it is back. Until then, what is
sealed with a key that it does not know it refuses, for a while (503), and ends nothing."""
MAX_TRIES: Final = 8
"""So often a session server is told anew in one round, if another machine has told it something in between."""


class SharedKeys:
    """The ring as this machine knows it, which it tells and hears in rounds."""

    def __init__(
        self,
        farm: str,
        root: FarmKeys,
        run_directory: Path,
        places: Callable[[], Sequence[TakeOncePlace]],
        console: Console,
    ) -> None:
        self._root = root
        self._copy = RingCopy(farm, root, run_directory)
        self._places = places
        self._stores: list[TakeOnceForThreads] = []
        self._console = console
        self._complained: set[str] = set()
        self._round_lock = asyncio.Lock()
        self._heard_at: dict[str, tuple[int, float]] = {}
        self.machine = machine_name(run_directory)
        self._accepts: tuple[bytes, ...] = ()
        self._state = seed(root.keys, root.primary)

    @property
    def keys(self) -> FarmKeys:
        """The ring for this machine's processes."""
        return keys_of(self._state, self._root)

    # -- the rounds --------------------------------------------------------------------------------

    async def start(self) -> None:
        """Learn the ring: from the own copy, and from whichever session server answers.

        Raises :class:`ConfigError` if there is neither: this machine would seal with keys that others have revoked.
        """
        kept = self._copy.read()
        if kept is not None:
            self._state = kept
        self._stores = [place.for_threads() for place in self._places()]
        until = time.monotonic() + FIRST_LOOK_S
        while not await self.look() and kept is None:
            if time.monotonic() >= until:
                raise ConfigError(
                    "key_ring: no session server gives the farm's key ring, and this machine has no copy of it; start "
                    "a session server, and see that keys_file is that of the other machines"
                )
            await asyncio.sleep(0.2)

    async def look(self) -> bool:
        """One round: whether any session server was heard."""
        async with self._round_lock:
            before = self._state
            heard = await asyncio.to_thread(self._round)
            if before.keys != self._state.keys:
                self._write_copy()
            self._note_machines()
            return heard

    def _round(self) -> bool:
        self._state = self._state.says(self.machine, self._accepts, now_ms())
        heard = False
        for store in self._stores:
            try:
                heard = self._agree(store) or heard
            except TakeOnceUnavailable as away:
                self._complain(f"{store.name} away", f"{store.name} could not be asked for the key ring: {away}")
            else:
                self._complained.discard(f"{store.name} away")
        return heard

    def _agree(self, store: TakeOnceForThreads) -> bool:
        """Bring ring and store to the same; ``False`` if what is stored there is not ours."""
        instead_of = NOTHING
        for _ in range(MAX_TRIES):
            proposal = self._copy.seal(self._state)
            stored = store.agree(self._copy.place, proposal, MAX_LIFE_MS, CALL_LIMIT_S, instead_of)
            if stored == proposal:
                return True
            try:
                self._state = self._state.joined(self._copy.open(stored))
            except (TokenRejected, CorruptEntry) as foreign:
                self._complain(
                    f"{store.name} foreign",
                    f"{store.name} has a key ring that the keys of this machine do not open ({foreign}): give all "
                    "machines the same keys_file",
                )
                return False
            instead_of = stored
        return True  # it was heard, though it is told of the newest in the next round

    def _complain(self, kind: str, text: str) -> None:
        if kind not in self._complained:
            self._complained.add(kind)
            self._console.say(text)

    def _note_machines(self) -> None:
        now = time.monotonic()
        for name, machine in self._state.machines.items():
            beat, _ = self._heard_at.get(name, (-1, now))
            if beat != machine.beat:
                self._heard_at[name] = machine.beat, now
        for name in self._heard_at.keys() - self._state.machines.keys():
            del self._heard_at[name]

    def _present(self, names: list[str]) -> list[str]:
        now = time.monotonic()
        gone = {name for name, (_, heard_at) in self._heard_at.items() if now - heard_at > GONE_S}
        return [name for name in names if name not in gone and name != self.machine]

    def _write_copy(self) -> None:
        try:
            self._copy.write(self._state)
        except OSError as error:
            self._complain(
                "copy", f"{self._copy.path} cannot be written: {error.strerror}; the session servers have the ring"
            )

    # -- changes -----------------------------------------------------------------------------------

    async def accepted(self, keys: FarmKeys) -> None:
        identities = tuple(sorted(key_id(key) for key in keys.keys))
        if identities != self._accepts:
            self._accepts = identities
            await self.look()

    async def announce(self) -> FarmKeys:
        await self._learn()
        if self._state.announced is None:
            await self._change(self._state.announce(new_key()))
        return self.keys

    async def unaware(self) -> list[str]:
        await self._learn()
        announced = self._state.announced
        return [] if announced is None else self._present(self._state.unaware(announced.id))

    async def activate(self) -> FarmKeys:
        announced = self._state.announced
        if announced is not None:
            await self._change(self._state.activate(announced.id))
        return self.keys

    async def revoke(self, name: str) -> FarmKeys:
        await self._learn()
        keys = self.keys
        index = keys.index_of(name)
        keys.without(index)  # raises for the one that seals
        await self._change(self._state.revoke(key_id(keys.keys[index])))
        return self.keys

    async def holding(self, name: str) -> list[str]:
        await self._learn()
        revoked = {key.id for key in self._state.keys if key.revoked}
        holding = sorted(other for other, one in self._state.present.items() if revoked & set(one.accepts))
        return self._present(holding)

    async def _learn(self) -> None:
        if not await self.look():
            raise ConfigError("keys: no session server that has the key ring answers; nothing was changed")

    async def _change(self, state: RingState) -> None:
        """On disk first: what is told to one session server must be known after a crash."""
        async with self._round_lock:
            self._state = self._state.joined(state)
            self._write_copy()
        await self._learn()

    def rows(self) -> list[dict[str, Any]]:
        state = self._state
        rows: list[dict[str, Any]] = [
            {
                "key": key_name(key.secret),
                "state": state.state_of(key).value,
                "unaware": self._present(state.unaware(key.id)),
            }
            for key in state.usable
        ]
        revoked = [key for key in state.keys if key.revoked]
        return rows + [{"key": key.id.hex(), "state": KeyState.REVOKED.value, "unaware": []} for key in revoked]

    async def aclose(self) -> None:
        """The other machines need not wait for this one."""
        if not self._stores:
            return
        async with self._round_lock:
            await asyncio.to_thread(self._leave)
            for store in self._stores:
                store.close()
            self._stores = []

    def _leave(self) -> None:
        for store in self._stores:
            try:
                stored = store.agree(self._copy.place, self._copy.seal(self._state), MAX_LIFE_MS, CALL_LIMIT_S)
                self._state = self._state.joined(self._copy.open(stored))
                self._state = self._state.leaves(self.machine, now_ms())
                store.agree(self._copy.place, self._copy.seal(self._state), MAX_LIFE_MS, CALL_LIMIT_S, stored)
            except (TakeOnceUnavailable, TokenRejected, CorruptEntry):
                continue  # they find out when it is not heard any more


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def machine_name(run_directory: Path) -> str:
    """What the other machines call this one: its host, and of a run directory of its own a few digits."""
    where = blake2b(str(run_directory.absolute()).encode(), digest_size=3).hexdigest()
    return f"{socket.gethostname()[: MAX_MACHINE_NAME - 7]}-{where}"
