"""Changing the key ring of a running farm: nobody is logged out, and nothing is restarted.

A rotation has two phases. First every web server accepts the new key; only then anybody seals with it. Before each
phase the key file says what it will come to, so a process that starts meanwhile, and a farm that dies, know as much as
those that were told.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.farm.control.channel import ControlError, Message
from coatcheck.farm.files.keys import ENV, FarmKeys, key_name, save
from coatcheck.farm.supervision.supervisor import Supervisor
from coatcheck.farm.supervision.telling import tell_all
from coatcheck.tokens.keyring import key_id

ACCEPT_TIMEOUT_S: Final = 30.0
"""How long web servers that are busy, or are being started, may take to be told of the keys."""
COUNT_TIMEOUT_S: Final = 30.0

Progress = Callable[[Message], None]


class KeyOperations:
    """``keys ls``, ``rotate`` and ``revoke`` of a farm that runs; one change at a time."""

    def __init__(self, farm: Supervisor) -> None:
        self._farm = farm
        self._changing = asyncio.Lock()

    async def ls(self, message: Message, progress: Progress) -> Message:
        """Each key: its name, whether it seals, and how many sessions it has sealed (``None``: nobody can count)."""
        counts = await self._sealed_by()
        rows = []
        for key, row in zip(self._farm.keys.keys, self._farm.keys.rows(), strict=True):
            rows.append({**row, "sessions": None if counts is None else counts[key_id(key).hex()]})
        return {"keys": rows}

    async def rotate(self, message: Message, progress: Progress) -> Message:
        """Add a key, or go on with one that nobody seals with yet; answers its name and who could not be told."""
        given = message.get("timeout_s")
        timeout_s = float(given) if isinstance(given, int | float) else ACCEPT_TIMEOUT_S
        async with self._changing:
            self._file()
            keys = self._farm.keys
            if keys.primary == len(keys.keys) - 1:
                keys = keys.with_new()
            name = key_name(keys.keys[-1])
            self._keep(keys)
            if missing := await self._tell(keys, timeout_s):
                raise ControlError(
                    f"the new key {name} opens, and nobody seals with it yet: {', '.join(missing)} could not be told "
                    f"within {timeout_s:g} s; when that is mended, rotate again to go on"
                )
            keys = keys.sealing_with_newest()
            self._keep(keys)
            late = await self._tell(keys, timeout_s)
        self._farm.console.say(f"keys: {name} seals from now on; the older ones open until they are revoked")
        return {"key": name, "late": late}

    async def revoke(self, message: Message, progress: Progress) -> Message:
        """Drop a key that only opens; answers who could not be told, and may open with it until it is restarted."""
        async with self._changing:
            self._file()
            name = str(message.get("key"))
            keys = self._farm.keys.without(self._farm.keys.index_of(name))
            self._keep(keys)
            late = await self._tell(keys, ACCEPT_TIMEOUT_S)
        self._farm.console.say(f"keys: {name} is revoked")
        return {"revoked": name, "late": late}

    def _file(self) -> None:
        if self._farm.keys_file is None:
            raise ConfigError(f"keys: they come from {ENV}; change them where it is set, and restart the farm")

    def _keep(self, keys: FarmKeys) -> None:
        """On disk first: what is told to one process must be known to the next one that starts."""
        assert self._farm.keys_file is not None
        if keys != self._farm.keys:
            save(self._farm.keys_file, keys)
            self._farm.use_keys(keys)

    async def _tell(self, keys: FarmKeys, timeout_s: float) -> list[str]:
        """Tell every process that runs and has to know; answers the names of those that could not be told in time."""
        secrets = [key.hex() for key in keys.keys]
        web_servers, directors = await asyncio.gather(
            tell_all(self._farm.web_servers, "keys", timeout_s, keys=secrets, primary=keys.primary),
            self._farm.tell_directors_keys(timeout_s),
        )
        return web_servers + directors

    async def _sealed_by(self) -> Counter[str] | None:
        """Sessions by the ID of the key that sealed them; with outside session servers nobody counts."""
        servers = [keeper for keeper in self._farm.session_servers if keeper.state == "ready"]
        if self._farm.plan.outside or not servers:
            return None
        answers = await asyncio.gather(*(keeper.call("sealed_by", COUNT_TIMEOUT_S) for keeper in servers))
        counts: Counter[str] = Counter()
        for answer in answers:
            counts.update(answer["sealed_by"])
        copies = self._farm.settings.session.copies
        each = len(servers) if copies == "all" else min(int(copies), len(servers))
        return Counter({key: -(-count // each) for key, count in counts.items()})
