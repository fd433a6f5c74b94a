"""The store in Redis or Valkey: shared by machines. Needs the extra ``pool-redis`` (redis-py).

A user's state is one sealed value with a version. A command is applied here, by the same rules as everywhere, to the
state that this process saw last, and one script call swaps the new state in if nobody was faster; if somebody was,
the same call brings the newest state, and the command is applied to that. So a command costs one round trip when the
user was last touched by this process, two when by another one. A repeated call after a lost reply is recognised by its
version and changes nothing twice.

Whoever was too slow reserves the next swap with that same call, for ``RESERVED_S`` at most: otherwise the process
that was fastest, which needs one round trip where the others need two, would stay the fastest for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import threading
import time
from collections import OrderedDict
from collections.abc import Generator, Iterator
from hashlib import blake2b
from os import urandom
from typing import Any, Final

import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from coatcheck.errors import ConfigError
from coatcheck.pool.commands import Command, CommandOutcome
from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.state import UserState
from coatcheck.pool.stores.blob import StateBox

SOCKET_TIMEOUT_S: Final = 5.0
MAX_CONNECTIONS: Final = 16
MAX_WAITING_CONNECTIONS: Final = 64
"""Waiting callers with a connection of their own to be woken on; more poll every ``POLL_S``."""
POLL_S: Final = 0.05
MAX_TRIES: Final = 20
"""Each failed try means that somebody else's command was applied, although it was our turn."""
LOOK_PATIENCE_S: Final = 10.0
"""For one's turn to swap, among processes that all want the same user."""
TURN_PATIENCE_S: Final = 10.0
"""For one's turn among the callers of this process; when the server stands still, they do not wait one by one."""
PAUSE_S: Final = 0.0005
RESERVED_S: Final = 0.02
CLOCK_ERROR_S: Final = 0.05
"""How far our idea of the server's clock may be off."""
ROUND_TRIPS: Final = 3
"""So many are added to both: a far server's answers are old, and a reservation has to outlast the way."""
MAX_ROUND_TRIP_S: Final = 0.5
KEEP_S: Final = 7 * 86_400
"""How long a state is kept after all that is in it has ended."""
MAX_KEEP_S: Final = 10 * 366 * 86_400
MAX_REMEMBERED: Final = 1_000
STRIPES: Final = 64
BATCH: Final = 500
"""States that are looked at with one round trip."""

# KEYS: the user's state, its reservation, then a list per caller to wake. ARGV: the version that was seen, the version
# and state to be ("" leaves it), the time by which it was decided (or ""), how far that may be off, the user, seconds
# to keep it, who asks, milliseconds of a reservation.
_SWAP: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1000000
local version = redis.call('HGET', KEYS[1], 'v') or ''
local stale = version ~= ARGV[1] or ARGV[4] == '' or math.abs(ARGV[4] - now) > tonumber(ARGV[5])
local reserved = redis.call('GET', KEYS[2])
if version ~= ARGV[2] and (stale or (reserved and reserved ~= ARGV[8])) then
  if not reserved then
    redis.call('SET', KEYS[2], ARGV[8], 'PX', ARGV[9])
    reserved = ARGV[8]
  end
  local state = redis.call('HGET', KEYS[1], 's') or ''
  return {0, tostring(time[1]), tostring(time[2]), version, state, reserved == ARGV[8] and 1 or 0}
end
if ARGV[3] ~= '' and version ~= ARGV[2] then
  redis.call('HSET', KEYS[1], 'v', ARGV[2], 's', ARGV[3], 'u', ARGV[6])
  redis.call('EXPIRE', KEYS[1], ARGV[7])
end
if reserved then redis.call('DEL', KEYS[2]) end
for i = 3, #KEYS do
  if redis.call('EXISTS', KEYS[i]) == 0 then
    redis.call('RPUSH', KEYS[i], '1')
    redis.call('PEXPIRE', KEYS[i], 5000)
  end
end
return {1}
"""

_FORGET: Final = """
if redis.call('HGET', KEYS[1], 'v') == ARGV[1] then return redis.call('DEL', KEYS[1]) end
return 0
"""

# KEYS: the user's shared tokens. ARGV: what they were and are to be ("": nothing), the user, seconds to keep it.
_SWAP_SHARED: Final = """
local stored = redis.call('HGET', KEYS[1], 's') or ''
if stored == ARGV[2] then return 1 end
if stored ~= ARGV[1] then return 0 end
redis.call('DEL', KEYS[1])
if ARGV[2] ~= '' then
  redis.call('HSET', KEYS[1], 's', ARGV[2], 'u', ARGV[3])
  redis.call('EXPIRE', KEYS[1], ARGV[4])
end
return 1
"""

Call = tuple[list[str], list[Any]]
Step = Call | float  # a script call, or seconds to pause
Seen = tuple[bytes, bytes]  # a version and its sealed state


class _Swaps:
    """What both clients do, without doing it: which calls to make for a command, and what their replies mean."""

    def __init__(self, box: StateBox) -> None:
        self.box = box
        self._prefix = f"coatcheck-pool:{_digest(box.name)}:"
        self.pattern = f"{self._prefix}*:state"
        self.shared_pattern = f"{self._prefix}*:shared"
        self._seen: OrderedDict[str, Seen] = OrderedDict()
        self._ahead_s = 0.0  # the server's clock less ours
        self._round_trip_s = 0.0  # the fastest of late: what the network takes, without our own delays
        self._name = urandom(8)

    def key(self, user: str) -> str:
        return f"{self._prefix}{{{_digest(user)}}}:state"

    def shared_key(self, user: str) -> str:
        return f"{self._prefix}{{{_digest(user)}}}:shared"

    def wake_key(self, user: str, ticket: int) -> str:
        return f"{self._prefix}{{{_digest(user)}}}:wake:{ticket}"

    def steps(self, user: str, command: Command) -> Generator[Step, list[Any], CommandOutcome]:
        keys = [self.key(user), f"{self._prefix}{{{_digest(user)}}}:next"]
        look: list[Any] = [b"", b"?", b"", b"", 0, *self._always(user)]
        version, sealed = self._seen.get(user) or (yield from self._look(user, keys, look, until=-math.inf))
        for _ in range(MAX_TRIES):
            now = time.monotonic() + self._ahead_s
            changed = self.box.change(user, sealed or None, now, command)
            new, state = urandom(8), changed.sealed or b""
            wakes = [self.wake_key(user, ticket) for ticket in changed.turns]
            keep_s = int(min(KEEP_S + max(0.0, changed.ends_at - now), MAX_KEEP_S))
            clock_error_s = CLOCK_ERROR_S + ROUND_TRIPS * self._round_trip_s
            swap = [version, new, state, repr(now), clock_error_s, *self._always(user, keep_s)]
            asked_at = time.monotonic()
            reply = yield keys + wakes, swap
            if reply[0] == 1:
                if state:
                    self._remember(user, new, state)
                return changed.outcome
            version, sealed = self._learn(user, reply, asked_at)
            if not reply[5]:
                version, sealed = yield from self._look(user, keys, look, asked_at + LOOK_PATIENCE_S)
        raise StoreUnavailable(f"{MAX_TRIES} others were faster at {user!r}")

    def _always(self, user: str, keep_s: int = KEEP_S) -> list[Any]:
        return [user, keep_s, self._name, int(1000 * (RESERVED_S + ROUND_TRIPS * self._round_trip_s))]

    def _look(self, user: str, keys: list[str], look: list[Any], until: float) -> Generator[Step, list[Any], Seen]:
        """Learn the newest state: whoever has the reservation decides on it, the others look until they have it."""
        while True:
            asked_at = time.monotonic()
            reply = yield keys, look
            seen = self._learn(user, reply, asked_at)
            if reply[5] or asked_at >= until:
                return seen
            yield random.random() * PAUSE_S

    def _learn(self, user: str, reply: list[Any], asked_at: float) -> Seen:
        now = time.monotonic()
        # The server read its clock before it answered, so what we believe is never ahead of it by more than the call.
        self._ahead_s = int(reply[1]) + int(reply[2]) / 1e6 - now
        most_s = 2 * self._round_trip_s + 0.001 if self._round_trip_s else MAX_ROUND_TRIP_S
        self._round_trip_s = min(now - asked_at, most_s, MAX_ROUND_TRIP_S)
        self._remember(user, reply[3], reply[4])
        return reply[3], reply[4]

    def _remember(self, user: str, version: bytes, sealed: bytes) -> None:
        # Each step by itself is safe among threads; another one may forget a user between any two.
        self._seen.pop(user, None)
        self._seen[user] = (version, sealed)
        if len(self._seen) > MAX_REMEMBERED:
            self._seen.popitem(last=False)

    def still_idle(self, user: str, sealed: Any, now: float) -> bool:
        return sealed is not None and self.box.open(user, sealed).is_idle(now)

    def shown(self, rows: list[list[Any]], time_reply: Any) -> dict[str, tuple[UserState, float]]:
        now = time_reply[0] + time_reply[1] / 1e6
        found = [(row[0].decode(), row[1]) for row in rows if row[0] is not None and row[1] is not None]
        return {user: (self.box.open(user, sealed), now) for user, sealed in found}


def _batches(keys: list[Any]) -> list[list[Any]]:
    return [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]


def _digest(text: str) -> str:
    return blake2b(text.encode(), digest_size=12, person=b"coatcheck-pool").hexdigest()


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"Redis: {type(error).__name__}: {error}")


def _read(replies: list[Any]) -> tuple[bytes | None, float]:
    (seconds, micros), sealed = replies
    return sealed, seconds + micros / 1e6


def _swap(user: str, old: bytes | None, new: bytes | None, keep_s: float) -> list[Any]:
    return [old or b"", new or b"", user, int(min(KEEP_S + keep_s, MAX_KEEP_S))]


def _named(found: list[Any]) -> list[str]:
    return [user.decode() for user in found if user is not None]


@contextlib.contextmanager
def _turn(lock: threading.Lock) -> Iterator[None]:
    if not lock.acquire(timeout=TURN_PATIENCE_S):
        raise StoreUnavailable("Redis: the callers before this one got no answer")
    try:
        yield
    finally:
        lock.release()


class RedisTokenStore:
    """See :class:`coatcheck.pool.stores.port.TokenStore`."""

    def __init__(self, url: str, box: StateBox) -> None:
        self._swaps = _Swaps(box)
        self._turns = [threading.Lock() for _ in range(STRIPES)]

        def client(connections: int, patience_s: float) -> redis.Redis:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=connections,
                timeout=patience_s,
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=SOCKET_TIMEOUT_S,
                # One more try, at once: for a connection that the server closed while it was idle.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
            return redis.Redis(connection_pool=pool)

        try:
            self._client = client(MAX_CONNECTIONS, SOCKET_TIMEOUT_S)
            self._waiting = client(MAX_WAITING_CONNECTIONS, 0.001)
        except ValueError as error:
            raise ConfigError(f"store: {error}") from None
        self._swap = self._client.register_script(_SWAP)
        self._forget = self._client.register_script(_FORGET)
        self._swap_shared = self._client.register_script(_SWAP_SHARED)

    def apply(self, user: str, command: Command) -> CommandOutcome:
        steps = self._swaps.steps(user, command)
        # Callers of one process take turns here: they would only make each other's calls fail.
        with _turn(self._turns[hash(user) % STRIPES]):
            try:
                step = next(steps)
                while True:
                    if isinstance(step, float):
                        time.sleep(step)
                        step = steps.send([])
                    else:
                        step = steps.send(self._swap(keys=step[0], args=step[1]))
            except StopIteration as end:
                outcome: CommandOutcome = end.value
                return outcome
            except RedisError as error:
                raise _unavailable(error) from error

    def wait(self, user: str, ticket: int, timeout_s: float) -> None:
        try:
            self._waiting.blpop([self._swaps.wake_key(user, ticket)], timeout=max(0.01, timeout_s))
        except RedisError:
            # No connection to wait on, or none at all: the next command will tell.
            time.sleep(min(timeout_s, POLL_S))

    def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        try:
            found = (
                [self._swaps.key(user)] if user is not None else self._client.scan_iter(self._swaps.pattern, count=500)
            )
            rows: list[Any] = []
            for keys in _batches(list(found)):
                with self._client.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.hmget(key, ["u", "s"])
                    rows += pipeline.execute()
            return self._swaps.shown(rows, self._client.time())
        except RedisError as error:
            raise _unavailable(error) from error

    def forget(self) -> None:
        try:
            for user, (state, now) in self.look().items():
                if state.is_idle(now):
                    key = self._swaps.key(user)
                    version, sealed = self._client.hmget(key, ["v", "s"])
                    if self._swaps.still_idle(user, sealed, now):
                        self._forget(keys=[key], args=[version or b""])
        except RedisError as error:
            raise _unavailable(error) from error

    def read_shared(self, user: str) -> tuple[bytes | None, float]:
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.hget(self._swaps.shared_key(user), "s")
                return _read(pipeline.execute())
        except RedisError as error:
            raise _unavailable(error) from error

    def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        try:
            return bool(self._swap_shared([self._swaps.shared_key(user)], _swap(user, old, new, keep_s)))
        except RedisError as error:
            raise _unavailable(error) from error

    def shared_users(self) -> list[str]:
        try:
            found = list(self._client.scan_iter(self._swaps.shared_pattern, count=500))
            return _named([self._client.hget(key, "u") for key in found])
        except RedisError as error:
            raise _unavailable(error) from error

    def close(self) -> None:
        self._client.connection_pool.disconnect()
        self._waiting.connection_pool.disconnect()


class AsyncRedisTokenStore:
    """The same store for asyncio."""

    def __init__(self, url: str, box: StateBox) -> None:
        self._swaps = _Swaps(box)
        self._turns = [asyncio.Lock() for _ in range(STRIPES)]

        def client(connections: int, patience_s: float) -> redis.asyncio.Redis:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=connections,
                timeout=patience_s,
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=SOCKET_TIMEOUT_S,
                retry=AsyncRetry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
            return redis.asyncio.Redis(connection_pool=pool)

        try:
            self._client = client(MAX_CONNECTIONS, SOCKET_TIMEOUT_S)
            self._waiting = client(MAX_WAITING_CONNECTIONS, 0.001)
        except ValueError as error:
            raise ConfigError(f"store: {error}") from None
        self._swap = self._client.register_script(_SWAP)
        self._forget = self._client.register_script(_FORGET)
        self._swap_shared = self._client.register_script(_SWAP_SHARED)

    async def apply(self, user: str, command: Command) -> CommandOutcome:
        steps = self._swaps.steps(user, command)
        turn = self._turns[hash(user) % STRIPES]
        try:
            async with asyncio.timeout(TURN_PATIENCE_S):
                await turn.acquire()
        except TimeoutError:
            raise StoreUnavailable("Redis: the callers before this one got no answer") from None
        try:
            try:
                step = next(steps)
                while True:
                    if isinstance(step, float):
                        await asyncio.sleep(step)
                        step = steps.send([])
                    else:
                        step = steps.send(await self._swap(keys=step[0], args=step[1]))
            except StopIteration as end:
                outcome: CommandOutcome = end.value
                return outcome
            except RedisError as error:
                raise _unavailable(error) from error
        finally:
            turn.release()

    async def wait(self, user: str, ticket: int, timeout_s: float) -> None:
        try:
            await self._waiting.blpop([self._swaps.wake_key(user, ticket)], timeout=max(0.01, timeout_s))
        except RedisError:
            await asyncio.sleep(min(timeout_s, POLL_S))

    async def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        try:
            found: list[Any] = [self._swaps.key(user)] if user is not None else []
            if user is None:
                found = [key async for key in self._client.scan_iter(self._swaps.pattern, count=500)]
            rows: list[Any] = []
            for keys in _batches(found):
                async with self._client.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.hmget(key, ["u", "s"])
                    rows += await pipeline.execute()
            return self._swaps.shown(rows, await self._client.time())
        except RedisError as error:
            raise _unavailable(error) from error

    async def forget(self) -> None:
        try:
            for user, (state, now) in (await self.look()).items():
                if state.is_idle(now):
                    key = self._swaps.key(user)
                    version, sealed = await self._client.hmget(key, ["v", "s"])
                    if self._swaps.still_idle(user, sealed, now):
                        await self._forget(keys=[key], args=[version or b""])
        except RedisError as error:
            raise _unavailable(error) from error

    async def read_shared(self, user: str) -> tuple[bytes | None, float]:
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.hget(self._swaps.shared_key(user), "s")
                return _read(await pipeline.execute())
        except RedisError as error:
            raise _unavailable(error) from error

    async def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        try:
            return bool(await self._swap_shared([self._swaps.shared_key(user)], _swap(user, old, new, keep_s)))
        except RedisError as error:
            raise _unavailable(error) from error

    async def shared_users(self) -> list[str]:
        try:
            found = [key async for key in self._client.scan_iter(self._swaps.shared_pattern, count=500)]
            return _named([await self._client.hget(key, "u") for key in found])
        except RedisError as error:
            raise _unavailable(error) from error

    async def close(self) -> None:
        await self._client.connection_pool.disconnect()
        await self._waiting.connection_pool.disconnect()
