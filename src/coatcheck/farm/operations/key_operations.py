"""Changing the key ring of a running farm: nobody is logged out, and nothing is restarted.

A rotation has two phases. First everybody accepts the new key; only then anybody seals with it. Before each phase it is
written down what it will come to, so a process that starts meanwhile, and a farm that dies, know as much as those that
were told.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Callable
from typing import Final

from coatcheck.farm.control.lines import ControlError, Message
from coatcheck.farm.files.keys import ENV
from coatcheck.farm.supervision.supervisor import Supervisor
from coatcheck.service.callers import credential
from coatcheck.tokens.keyring import KeyRing, key_id

ACCEPT_TIMEOUT_S: Final = 30.0
"""How long web servers that are busy, or are being started, may take to be told of the keys."""
COUNT_TIMEOUT_S: Final = 30.0

Progress = Callable[[Message], None]


class KeyOperations:
    """``keys ls``, ``rotate`` and ``revoke`` of a farm that runs, and ``service credential``.

    Whoever says with which keys is refused (:class:`ControlError`) if they are not those that this farm was given.
    """

    def __init__(self, farm: Supervisor) -> None:
        self._farm = farm

    async def ls(self, message: Message, progress: Progress) -> Message:
        """Each key: its name, its state, and how many sessions it has sealed (``None``: nobody can count)."""
        self._judge(message)
        counts = await self._sealed_by()
        ring = self._farm.key_ring
        keys = ring.source.keys.keys
        rows = []
        for at, row in enumerate(ring.source.rows()):
            unknown = counts is None or at >= len(keys)
            rows.append({**row, "sessions": None if unknown or counts is None else counts[key_id(keys[at]).hex()]})
        return {"keys": rows}

    async def announce(self, message: Message, progress: Progress) -> Message:
        """Have a new key open, and nobody seal with it; answers its name and who could not be told."""
        self._judge(message)
        name, late = await self._farm.key_ring.announce(_timeout_s(message))
        return {"key": name, "late": late}

    async def rotate(self, message: Message, progress: Progress) -> Message:
        """Add a key, or go on with one that nobody seals with yet; answers its name and who could not be told."""
        self._judge(message)
        name, late = await self._farm.key_ring.rotate(_timeout_s(message))
        return {"key": name, "late": late}

    async def revoke(self, message: Message, progress: Progress) -> Message:
        """Drop a key that only opens; answers who could not be told, and may open with it until it is."""
        self._judge(message)
        name = str(message.get("key"))
        return {"revoked": name, "late": await self._farm.key_ring.revoke(name, _timeout_s(message))}

    async def credential(self, message: Message, progress: Progress) -> Message:
        """What opens the session service for a caller, by the key that seals now."""
        self._judge(message)
        farm, told = self._farm.settings.name, self._farm.key_ring.told
        if message.get("name", farm) != farm:
            raise ControlError(f"name: the farm that runs here is {farm}; give its --name, or another --run-dir")
        ring = KeyRing(told.keys, told.primary)
        return {"credential": credential(str(message.get("caller")), int(message.get("generation", 1)), ring, farm)}

    def _judge(self, message: Message) -> None:
        place, file, names = self._farm.key_place, message.get("keys_file"), message.get("key_names")
        if file is not None and not place.is_file(str(file)):
            raise ControlError(
                f"keys_file: the farm that runs here has its keys in {place}, and not in {file}; leave --keys-file "
                "out, or name another --run-dir"
            )
        if names is not None and frozenset(names) != place.names:
            raise ControlError(
                f"keys: the farm that runs here was given other keys than those in {ENV}, in {place}; unset it, or "
                "name another --run-dir"
            )

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


def _timeout_s(message: Message) -> float:
    given = message.get("timeout_s")
    return float(given) if isinstance(given, int | float) else ACCEPT_TIMEOUT_S
