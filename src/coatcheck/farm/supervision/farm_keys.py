"""The keys of a running farm: every process is told of a key before any of them seals with it.

That holds whatever the keys come from, and whoever has changed them. A process that does not answer keeps a new key
from sealing; it is told again in each round until it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Final

import msgspec

from coatcheck.drivers.key_refresh import ROUND_S, KeyRefresh
from coatcheck.farm.control.lines import ControlError
from coatcheck.farm.files.keys import FarmKeys, key_name
from coatcheck.farm.supervision.console import Console
from coatcheck.farm.supervision.keeper import Keeper
from coatcheck.farm.supervision.key_sources import FarmKeySource
from coatcheck.farm.supervision.telling import tell_all

ROUND_TELL_S: Final = 2.0
"""How long a process may take to hear of keys that were changed elsewhere; who does not is told in the next round."""
LOOK_EVERY_S: Final = 0.5
"""However many processes ask: so seldom it is looked for them."""
ANSWER_S: Final = 2.0
WAIT_AGAIN_S: Final = 0.3


class KeyHosts(msgspec.Struct, frozen=True):
    """Who must know the keys. ``use``: give them to whatever starts from now on."""

    web_servers: Callable[[], tuple[Keeper, ...]]
    tell_directors: Callable[[float], Awaitable[list[str]]]
    use: Callable[[FarmKeys], None]


class FarmKeyRing:
    """Use it from one event loop. ``told``: what all processes should know by now."""

    def __init__(self, source: FarmKeySource, hosts: KeyHosts, console: Console) -> None:
        self.source = source
        self.told_at_start(source.keys)
        self._hosts = hosts
        self._console = console
        self._late: list[str] = []
        self._changing = asyncio.Lock()
        self.refresh = KeyRefresh(source.look, LOOK_EVERY_S, limit_s=None)
        """Looks whether the keys were changed elsewhere; whether whoever knows was heard."""
        self._rounds: asyncio.Task[None] | None = None
        self._answering: dict[str, asyncio.Task[None]] = {}

    def told_at_start(self, keys: FarmKeys) -> None:
        """Every process is given these at its start."""
        self.told, self._accepted = keys, set(keys.keys)

    def start(self) -> None:
        """Begin the rounds, once the processes run."""
        self._rounds = asyncio.create_task(self._go_round(), name="key rounds")

    async def aclose(self) -> None:
        """No more rounds; the other machines are told that nobody need wait for this one."""
        tasks = [task for task in (self._rounds, *self._answering.values()) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await self.source.aclose()

    async def _go_round(self) -> None:
        await self.source.accepted(self.told)
        while True:
            await asyncio.sleep(ROUND_S)
            try:
                await self.refresh()
                if self.source.keys != self.told or self._late:
                    async with self._changing:
                        await self._catch_up()
            except Exception as wrong:  # noqa: BLE001 - the next round may go better, and it is reported
                self._console.say(f"keys: this round failed: {wrong!r}")

    async def _catch_up(self) -> None:
        before, keys = self.told, self.source.keys
        late = await self._bring(keys, ROUND_TELL_S)
        if late:
            self._console.say(f"keys: {', '.join(late)} could not be told yet; again in {ROUND_S:g} s")
        elif before != keys:
            self._console.say(
                f"keys: {key_name(keys.keys[keys.primary])} seals; changed elsewhere, and known to all here"
            )

    # -- telling -----------------------------------------------------------------------------------

    async def _bring(self, keys: FarmKeys, timeout_s: float) -> list[str]:
        """Have every process use these keys; the names of those that could not be told in time. Nobody is told to seal
        with a key that one of them may not know."""
        staged = self._staged(keys)
        late = await self._tell(staged, timeout_s)
        if late:
            return late
        self._accepted = set(keys.keys)
        await self.source.accepted(keys)
        if staged != keys:
            late = await self._tell(keys, timeout_s)
        return late

    def _staged(self, keys: FarmKeys) -> FarmKeys:
        """The same keys, sealing as before if not everybody knows yet the one that is to seal."""
        sealing = self.told.keys[self.told.primary]
        if keys.keys[keys.primary] in self._accepted or sealing not in keys.keys:
            return keys
        return msgspec.structs.replace(keys, primary=keys.keys.index(sealing))

    async def _tell(self, keys: FarmKeys, timeout_s: float) -> list[str]:
        self.told = keys
        self._hosts.use(keys)
        secrets = [key.hex() for key in keys.keys]
        web_servers, directors = await asyncio.gather(
            tell_all(self._hosts.web_servers(), "keys", timeout_s, keys=secrets, primary=keys.primary),
            self._hosts.tell_directors(timeout_s),
        )
        self._late = web_servers + directors
        return self._late

    # -- a process meets a key that it does not know -------------------------------------------------

    def asked(self, keeper: Keeper) -> None:
        """Tell this process the keys as they are now; one answer for all that ask meanwhile."""
        if keeper.name not in self._answering:
            task = asyncio.create_task(self._answer(keeper))
            self._answering[keeper.name] = task
            task.add_done_callback(lambda _: self._answering.pop(keeper.name, None))

    async def _answer(self, keeper: Keeper) -> None:
        is_fresh = await self.refresh()
        keys = self._staged(self.source.keys)
        secrets = [key.hex() for key in keys.keys]
        with contextlib.suppress(ControlError):  # whoever waits for it there is refused, and may come again
            await keeper.call("keys", ANSWER_S, keys=secrets, primary=keys.primary, is_fresh=is_fresh)

    # -- changes -----------------------------------------------------------------------------------

    async def rotate(self, timeout_s: float) -> tuple[str, list[str]]:
        """Seal with a new key, or with one that was announced before; its name, and who could not be told to seal with
        it.

        Raises:
            ConfigError: the keys are not changed here.
            ControlError: somebody could not be told of the key, so nobody seals with it.
        """
        async with self._changing:
            until = time.monotonic() + timeout_s
            keys = await self.source.announce()
            name = key_name(keys.keys[-1])
            missing = await self._bring(keys, timeout_s) or await self._missing(until)
            if missing:
                raise ControlError(
                    f"the new key {name} opens, and nobody seals with it yet: {', '.join(missing)} could not be told "
                    f"within {timeout_s:g} s; when that is mended, rotate again to go on"
                )
            late = await self._bring(await self.source.activate(), timeout_s)
        self._console.say(f"keys: {name} seals from now on; the older ones open until they are revoked")
        return name, late

    async def announce(self, timeout_s: float) -> tuple[str, list[str]]:
        """Have a new key open everywhere, and nobody seal with it; its name, and who could not be told of it."""
        async with self._changing:
            until = time.monotonic() + timeout_s
            keys = await self.source.announce()
            missing = await self._bring(keys, timeout_s) or await self._missing(until)
        return key_name(keys.keys[-1]), missing

    async def revoke(self, name: str, timeout_s: float) -> list[str]:
        """Drop a key; who may still open with it, until it is told.

        Raises:
            ConfigError: it seals, or there is no such key, or the keys are not changed here.
        """
        async with self._changing:
            until = time.monotonic() + timeout_s
            late = await self._bring(await self.source.revoke(name), timeout_s)
            while others := await self.source.holding(name):
                if time.monotonic() >= until:
                    break
                await asyncio.sleep(WAIT_AGAIN_S)
        self._console.say(f"keys: {name} is revoked")
        return late + others

    async def _missing(self, until: float) -> list[str]:
        """Wait for the other machines; those that have not said in time that they open with the announced key."""
        while unaware := await self.source.unaware():
            if time.monotonic() >= until:
                return unaware
            await asyncio.sleep(WAIT_AGAIN_S)
        return []
