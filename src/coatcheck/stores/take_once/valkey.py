"""Items on Valkey or Redis 6+: the take-once rule as scripts, and a name for the server's run.

**A restart forgets.** Redis may come back with older data: from a snapshot, from an append-only file that was not
synced, as a replica that was promoted. What was taken could then be taken again. So the key of an item holds the
server's ``run_id`` and ``master_replid``, which change with every restart and every promotion: what another run stored
is found by nobody, and expires. The link asks for both whenever it connects, before it counts as reachable here.
"""

from __future__ import annotations

import asyncio
import contextlib
from functools import partial
from hashlib import blake2b
from typing import Any, Final

import hiredis

from coatcheck import resp
from coatcheck.event_log import log_event
from coatcheck.stores.address import StoreAddress
from coatcheck.stores.events import EventSink, StoreEvent, StoreEventKind
from coatcheck.stores.link import DEFAULT_TIMEOUT_S, Link
from coatcheck.stores.take_once.networked import NetworkedItems
from coatcheck.stores.valkey_scripts import digest
from coatcheck.take_once.port import TakeOnceUnavailable
from coatcheck.take_once.rule import ANSWER_KEPT_MS, PURGED_BY

# KEYS: the item's mark and, for a while after a take, the content for its taker. A mark is "L" and the item, or "T"
# and the nonce that took it.
PUT: Final = rb"""
local stored = redis.call('GET', KEYS[1])
local after = ARGV[3]
if stored then
  if after == '' or stored ~= 'T' .. after then return 0 end
  redis.call('DEL', KEYS[2])
elseif after ~= '' then
  return 0
end
redis.call('SET', KEYS[1], 'L' .. ARGV[1], 'PX', ARGV[2])
return 1
"""

TAKE: Final = rb"""
local stored = redis.call('GET', KEYS[1])
if not stored then return false end
local mark = 'T' .. ARGV[1]
if string.sub(stored, 1, 1) == 'L' then
  local item = string.sub(stored, 2)
  redis.call('SET', KEYS[1], mark, 'KEEPTTL')
  redis.call('SET', KEYS[2], item, 'PX', ARGV[2])
  return item
end
if stored == mark then return redis.call('GET', KEYS[2]) end
return false
"""

PURGE: Final = rb"""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('SET', KEYS[1], 'T' .. ARGV[1], 'KEEPTTL')
redis.call('DEL', KEYS[2])
return 1
"""

_INFO: Final = (b"server", b"replication")
_RUN_BYTES: Final = 8


class ValkeyItems(NetworkedItems):
    """Keeps items in Valkey or Redis, under ``coatcheck:{<farm>}:item:``.

    Every call ends within ``timeout_s`` (seconds). A primary that is demoted refuses every call.
    """

    def __init__(
        self,
        name: str,
        address: StoreAddress,
        *,
        farm: str = "farm",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        on_event: EventSink = log_event,
    ) -> None:
        self._on_event = on_event
        self._run_known = asyncio.Event()
        scripts = tuple(resp.command(b"SCRIPT", b"LOAD", script) for script in (PUT, TAKE, PURGE))
        link = Link(
            name, address, prepare=scripts, timeout_s=timeout_s, on_event=on_event, on_connected=self._ask_for_the_run
        )
        self._keys = _Scripts(b"coatcheck:{%b}:item:" % farm.encode())
        super().__init__(link, self._keys, scripts)

    @property
    def reachable(self) -> bool:
        return super().reachable and bool(self._keys.run)

    async def _call(self, request: bytes) -> Any:
        if not self._keys.run:
            raise TakeOnceUnavailable(f"{self.name}: it has not said yet which run of the server it is")
        return await super()._call(request)

    async def open(self) -> None:
        await super().open()
        if super().reachable:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._run_known.wait(), self._link.timeout_s)

    def _ask_for_the_run(self) -> None:
        self._keys.run = b""
        self._run_known.clear()
        said: dict[str, str] = {}
        for section in _INFO:
            self._link.call(resp.command(b"INFO", section), partial(self._told, said))

    def _told(self, said: dict[str, str], reply: Any) -> None:
        if isinstance(reply, bytes | str):
            text = reply.decode("ascii", "replace") if isinstance(reply, bytes) else reply
            for line in text.split("\r\n"):
                field, _, value = line.partition(":")
                said[field] = value
            self._keys.run = _run_of(said)
            if self._keys.run:
                self._run_known.set()
        elif isinstance(reply, hiredis.ReplyError):
            why = f"INFO is refused, so a restart could not be told: {reply}"
            self._on_event(StoreEvent(self.name, StoreEventKind.REFUSED_BY_SERVER, why))


def _run_of(said: dict[str, str]) -> bytes:
    """A name for this run of the server, once both of its parts are known; empty for a server that is no primary."""
    run, replication = said.get("run_id", ""), said.get("master_replid", "")
    if not run or not replication or said.get("role") != "master":
        return b""
    return blake2b(f"{run} {replication}".encode(), digest_size=_RUN_BYTES).digest()


class _Scripts:
    def __init__(self, prefix: bytes) -> None:
        self.prefix = prefix
        self.run = b""

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes) -> bytes:
        return self._script(PUT, key, item, b"%d" % life_ms, after)

    def take(self, key: bytes, nonce: bytes) -> bytes:
        return self._script(TAKE, key, nonce, b"%d" % ANSWER_KEPT_MS)

    def purge(self, key: bytes) -> bytes:
        return self._script(PURGE, key, PURGED_BY)

    def _script(self, script: bytes, key: bytes, *arguments: bytes) -> bytes:
        place = self.prefix + self.run + key
        return resp.command(b"EVALSHA", digest(script), b"2", place, place + b":kept", *arguments)
