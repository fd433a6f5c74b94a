"""Items on Valkey or Redis 6+: the take-once rule as scripts, and a name for the server's run.

**A restart forgets.** Redis may come back with older data: from a snapshot, from an append-only file that was not
synced, as a replica that was promoted. What was taken could then be taken again. So the key of an item holds the
server's ``run_id`` and ``master_replid``, which change with every restart and every promotion: what another run stored
is found by nobody, and expires. Whoever connects asks for both before anything else; and because a connection outlives
a promotion, each script looks whether the server still has the latter, and refuses if not.
"""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

from coatcheck import resp
from coatcheck.stores.greeting import HandshakeRefused, Steps, say
from coatcheck.stores.take_once.requests import OTHER_RUN
from coatcheck.stores.valkey_scripts import digest
from coatcheck.take_once.rule import ANSWER_KEPT_MS, PURGED_BY

# KEYS: the item's mark and, for a while after a take, the content for its taker. A mark is "L" and the item, or "T"
# and the nonce that took it.
_SAME_RUN: Final = b"""
local now = redis.call('INFO', 'replication')
if not string.find(now, 'role:master', 1, true) or not string.find(now, 'master_replid:' .. ARGV[#ARGV], 1, true) then
  return redis.error_reply('%b it is not the primary that it was')
end
""" % OTHER_RUN.encode()

PUT: Final = (
    _SAME_RUN
    + rb"""
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
)

TAKE: Final = (
    _SAME_RUN
    + rb"""
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
)

PURGE: Final = (
    _SAME_RUN
    + rb"""
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
redis.call('SET', KEYS[1], 'T' .. ARGV[1], 'KEEPTTL')
redis.call('DEL', KEYS[2])
return 1
"""
)

AGREE: Final = rb"""
local agreed = redis.call('GET', KEYS[1])
if agreed and (ARGV[3] == '' or agreed ~= ARGV[3]) then return agreed end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""

_PREPARE: Final = tuple(resp.command(b"SCRIPT", b"LOAD", script) for script in (PUT, TAKE, PURGE, AGREE))
_INFO: Final = (b"server", b"replication")
_RUN_BYTES: Final = 8


class ValkeyRequests:
    """See :class:`coatcheck.stores.take_once.requests.ItemRequests`. Keys begin with ``coatcheck:{<farm>}:item:``.

    A primary that is demoted refuses every call.
    """

    def __init__(self, farm: str = "farm") -> None:
        self._prefix = b"coatcheck:{%b}:item:" % farm.encode()
        self._agreed = b"coatcheck:{%b}:agreed:" % farm.encode()
        self._run = b""
        self._replication = b""

    def prepare(self) -> Steps[None]:
        """Loads the scripts, and asks which run of the server it is."""
        yield from say(_PREPARE)
        said: dict[str, str] = {}
        for section in _INFO:
            told = yield resp.command(b"INFO", section)
            text = told.decode("ascii", "replace") if isinstance(told, bytes) else str(told)
            for line in text.split("\r\n"):
                field, _, value = line.partition(":")
                said[field] = value
        self._run, self._replication = _run_of(said)

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes) -> bytes:
        return self._script(PUT, key, item, b"%d" % life_ms, after)

    def take(self, key: bytes, nonce: bytes) -> bytes:
        return self._script(TAKE, key, nonce, b"%d" % ANSWER_KEPT_MS)

    def purge(self, key: bytes) -> bytes:
        return self._script(PURGE, key, PURGED_BY)

    def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes) -> bytes:
        place = self._agreed + key
        return resp.command(b"EVALSHA", digest(AGREE), b"1", place, proposal, b"%d" % life_ms, instead_of)

    def _script(self, script: bytes, key: bytes, *arguments: bytes) -> bytes:
        place = self._prefix + self._run + key
        return resp.command(b"EVALSHA", digest(script), b"2", place, place + b":kept", *arguments, self._replication)


def _run_of(said: dict[str, str]) -> tuple[bytes, bytes]:
    """A name for this run of the server, and that of its data's history.

    Raises :class:`HandshakeRefused` where there is none, or at a replica.
    """
    run, replication = said.get("run_id", ""), said.get("master_replid", "")
    if not run or not replication or said.get("role") != "master":
        raise HandshakeRefused("it does not say which run of a primary it is, so a restart could not be told")
    return blake2b(f"{run} {replication}".encode(), digest_size=_RUN_BYTES).digest(), replication.encode()
