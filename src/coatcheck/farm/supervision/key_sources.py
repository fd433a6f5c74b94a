"""Where the keys of a farm come from, and where they are changed: the environment, or a file.

What all sources have in common: :attr:`FarmKeySource.keys` are those that the farm should use, and a key that is
announced stands behind the one that seals.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from coatcheck.errors import ConfigError
from coatcheck.farm.files.key_file import KeyFile, KeyFileLock
from coatcheck.farm.files.keys import ENV, FarmKeys
from coatcheck.farm.supervision.console import Console


class FarmKeySource(Protocol):
    """Use it from one event loop; :class:`coatcheck.farm.supervision.farm_keys.FarmKeyRing` lets one change happen at a
    time."""

    @property
    def keys(self) -> FarmKeys:
        """What the farm should use."""
        ...

    async def start(self) -> None:
        """Learn what there is to learn before any process starts. Raises :class:`ConfigError`."""
        ...

    async def look(self) -> bool:
        """Learn what was changed elsewhere; whether whoever knows was heard."""
        ...

    async def accepted(self, keys: FarmKeys) -> None:
        """Every process of this machine opens with these keys."""
        ...

    async def announce(self) -> FarmKeys:
        """Go on with the announced key, or make one; raises :class:`ConfigError`."""
        ...

    async def unaware(self) -> list[str]:
        """Who else has not said yet that it opens with the announced key."""
        ...

    async def activate(self) -> FarmKeys:
        """Seal with the announced key; raises :class:`ConfigError`."""
        ...

    async def revoke(self, name: str) -> FarmKeys:
        """Drop a key by its name; raises :class:`ConfigError`."""
        ...

    async def holding(self, name: str) -> list[str]:
        """Who else has not said yet that it has dropped this key."""
        ...

    def rows(self) -> list[dict[str, Any]]:
        """Each key for operators; the first ones are :attr:`keys`, in their order."""
        ...

    async def aclose(self) -> None:
        """Nobody need wait for this machine any more."""
        ...


class LocalKeys:
    """What sources have in common that know of no other machine."""

    def __init__(self, keys: FarmKeys) -> None:
        self.keys = keys

    async def start(self) -> None:
        """There is nothing to learn."""

    async def accepted(self, keys: FarmKeys) -> None:
        """Nobody asks."""

    async def unaware(self) -> list[str]:
        return []

    async def holding(self, name: str) -> list[str]:
        return []

    def rows(self) -> list[dict[str, Any]]:
        return [*self.keys.rows()]

    async def aclose(self) -> None:
        """Nobody waits."""


class EnvironmentKeys(LocalKeys):
    """``COATCHECK_KEYS``: changed where it is set, and read at the start."""

    def rows(self) -> list[dict[str, Any]]:
        """Which of the others is to seal next, and which has sealed before, is known to who sets the variable."""
        return [{**row, "state": row["state"] if row["state"] == "active" else "opens"} for row in self.keys.rows()]

    async def look(self) -> bool:
        return True

    async def announce(self) -> FarmKeys:
        raise self._refusal()

    async def activate(self) -> FarmKeys:
        raise self._refusal()

    async def revoke(self, name: str) -> FarmKeys:
        raise self._refusal()

    def _refusal(self) -> ConfigError:
        return ConfigError(f"keys: they come from {ENV}; change them where it is set, and restart the farm")


class FileKeys(LocalKeys):
    """The key ring file. It is on disk before anybody is told, so a farm that dies in between starts with keys that
    open everything. Whoever else replaces it, as with a copy of another machine's, changes the keys of a running farm.
    """

    def __init__(self, path: Path, keys: FarmKeys, console: Console) -> None:
        super().__init__(keys)
        self._path = path
        self._file = KeyFile(path, keys, console.say)
        self._announced: bytes | None = None

    async def look(self) -> bool:
        self._file.look()
        self.keys = self._file.keys
        return True

    async def announce(self) -> FarmKeys:
        keys = await self._change(FarmKeys.announcing)
        self._announced = keys.announced
        return keys

    async def activate(self) -> FarmKeys:
        announced = self._announced

        def activated(keys: FarmKeys) -> FarmKeys:
            if announced not in (keys.announced, keys.keys[keys.primary]):
                raise ConfigError("keys: somebody else has changed them meanwhile; look at keys ls, and rotate again")
            return keys.sealing_with_newest() if announced == keys.announced else keys

        return await self._change(activated)

    async def revoke(self, name: str) -> FarmKeys:
        return await self._change(lambda keys: keys.without(keys.index_of(name)))

    async def _change(self, change: Callable[[FarmKeys], FarmKeys]) -> FarmKeys:
        with KeyFileLock(self._path) as lock:
            for pause_s in lock.pauses():
                await asyncio.sleep(pause_s)
            try:
                return self._file.change(change)
            finally:
                self.keys = self._file.keys
