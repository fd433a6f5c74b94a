"""The put rule as a Valkey/Redis script: byte for byte what :mod:`coatcheck.replication.put_rule` says.

``tests/contracts/test_put_rule.py`` holds it to that with generated puts.
"""

from __future__ import annotations

from hashlib import sha1
from typing import Final

# Versions are compared as bytes for equality only; "<" on Lua strings follows the server's locale,
# so the sequence number is unpacked. Offsets are one-based: flags 2, version 3-18, owner 7-14, seq 15-18.
PUT: Final = rb"""
local key, seen, life, new, channel = KEYS[1], ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local old = redis.call('GETRANGE', key, 0, 17)
local new_flags = string.byte(new, 2)
local willed = new_flags == 1
local notify, told = ARGV[5] or '', ''
local notice = '\1' .. string.sub(key, -16) .. string.sub(new, 3, 18) .. (new_flags ~= 0 and '\1' or '\0')
if old == '' then
  if redis.call('EXISTS', key) == 1 then return redis.error_reply('CORRUPT an empty value is stored') end
  if seen ~= '' and not willed then return {} end
else
  local flags = string.byte(old, 2)
  if #old < 18 or string.byte(old, 1) ~= 1 or (flags > 1 and flags ~= 3) then
    return redis.error_reply('CORRUPT what is stored is no entry')
  end
  if string.sub(old, 2, 18) ~= string.sub(new, 2, 18) then
    local same_owner = string.sub(old, 3, 14) == string.sub(new, 3, 14)
    local later = flags == 0 and new_flags == 0 and same_owner
      and struct.unpack('>I4', old, 15) < struct.unpack('>I4', new, 15)
    local accepted = flags ~= 1 and (willed or string.sub(old, 3, 18) == seen or later)
    if not accepted then return {redis.call('GET', key), redis.call('PTTL', key)} end
    if flags ~= 0 or new_flags ~= 0 or not same_owner then
      told = string.sub(old, 7, 9)
      redis.call('PUBLISH', channel .. told, notice)
    end
  end
end
for at = 1, #notify, 3 do
  local server = string.sub(notify, at, at + 2)
  if server ~= told then redis.call('PUBLISH', channel .. server, notice) end
end
redis.call('SET', key, new, 'PX', life)
return 1
"""

GET: Final = rb"""
local found = redis.call('GET', KEYS[1])
if not found then return {} end
return {found, redis.call('PTTL', KEYS[1])}
"""

BEAT: Final = b"#!lua\nreturn 1"
"""Declared as writing (it does not say ``no-writes``), so only who takes puts runs it: not a primary that was demoted,
nor one that has lost its replicas. Valkey and Redis 7; an older one answers with an error."""


def digest(script: bytes) -> bytes:
    """The name by which the server calls a loaded script: SHA-1, by its protocol; no secret rests on it."""
    return sha1(script, usedforsecurity=False).hexdigest().encode()
