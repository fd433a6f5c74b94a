"""The store in Redis or Valkey: shared by machines. Needs the extra ``pool-redis`` (redis-py).

The server decides: a command is one call of one script (``redis.lua``, the rules once more), which reads the user's
state, changes it and says what came of it, by the server's own clock. So it costs one round trip, however many
processes want the same user. Numbers and deadlines stand in clear for that, the values of tokens sealed
(:mod:`coatcheck.pool.stores.values`).

A call whose reply was lost is repeated by the client library. Each call is made on a *line*, which has one call at a
time; the server keeps the last reply of each line, so a repeated call gets that, and changes nothing twice.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterator
from functools import lru_cache
from hmac import compare_digest as same
from os import urandom
from pathlib import Path
from typing import Any, Final

import msgspec
import redis
import redis.asyncio
from redis.asyncio.retry import Retry as AsyncRetry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from coatcheck.errors import ConfigError, TokenReason
from coatcheck.pool.commands import (
    Acquire,
    Add,
    Both,
    Command,
    CommandOutcome,
    Done,
    Granted,
    LogInAhead,
    LoginDone,
    LoginEnded,
    Lost,
    MustLogIn,
    NoSlot,
    NoToken,
    NotTried,
    Parting,
    QueueFull,
    Release,
    Reply,
    Then,
    TokenNote,
    Waiting,
)
from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.state import NONE_GIVEN, UserState
from coatcheck.pool.stores.blob import StateBox
from coatcheck.pool.stores.listener import AsyncListener, Ear, Listener, digest
from coatcheck.pool.stores.redis_listener import listen, listen_async
from coatcheck.pool.stores.values import MOST_WHOLE, cannot_be_opened
from coatcheck.pool.stores.wakers import Wakers

SCRIPT: Final = Path(__file__).with_suffix(".lua").read_text("utf-8")
SOCKET_TIMEOUT_S: Final = 5.0
MAX_CONNECTIONS: Final = 16
POLL_FIRST_S: Final = 0.005
POLL_MAX_S: Final = 0.1
POLL_LISTENING_S: Final = 0.5
"""The longest pause between two looks while messages say when to look."""
MAX_TRIES: Final = 20
"""A state of the release before is converted with the first command; each failed try means that a process of that
release was faster."""
MAX_OWNERS: Final = 10_000
"""Leases of this process whose credentials are remembered; of more, the server is asked once more."""
KEEP_S: Final = 7 * 86_400
"""How long shared tokens are kept after all of them have ended; as the script keeps a state."""
MAX_KEEP_S: Final = 10 * 366 * 86_400
BATCH: Final = 500
"""States that are looked at with one round trip."""

_REPLIES: Final[dict[str, type[Reply]]] = {
    kind.__name__: kind for kind in (Granted, MustLogIn, Waiting, NoToken, NotTried, QueueFull, NoSlot, Lost, Done)
}

_digest: Final = lru_cache(1_000)(digest)

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
Calls = Generator[Call, list[bytes], Any]


class Forget(msgspec.Struct, frozen=True, tag=True):
    """Delete the user's state if it is idle."""


class AskOwner(msgspec.Struct, frozen=True, tag="Owner"):
    """Whose is slot ``fence``?"""

    fence: int


class OwnSlot(msgspec.Struct, frozen=True):
    """What this process knows of a slot in its hands: whose it is, and the value if it must be sealed anew."""

    credentials: bytes
    stale: str | None = None


class CallLine:
    """Has one call at a time."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.calls = 0


class ScriptCalls:
    """What both clients do, without doing it: which calls to make for a command, and what their replies mean."""

    def __init__(self, box: StateBox) -> None:
        self.box = box
        self._values = box.values
        policy = msgspec.structs.replace(box.policy, max_uses=min(box.policy.max_uses, MOST_WHOLE))
        self._policy = msgspec.msgpack.encode(policy)
        self._prefix = f"coatcheck-pool:{_digest(box.name)}:"
        self.pattern = f"{self._prefix}*:state"
        self.shared_pattern = f"{self._prefix}*:shared"
        self.wakers = Wakers()
        self.ear = Ear(box.name, self.wakers)
        self._owners: OrderedDict[tuple[str, int], OwnSlot] = OrderedDict()
        self._lines: list[CallLine] = []
        self._name = urandom(8).hex()
        self._numbers = itertools.count()

    def key(self, user: str) -> str:
        return f"{self._prefix}{{{_digest(user)}}}:state"

    def pauses(self) -> tuple[float, float]:
        return POLL_FIRST_S, POLL_LISTENING_S if self.ear.listening else POLL_MAX_S

    def shared_key(self, user: str) -> str:
        return f"{self._prefix}{{{_digest(user)}}}:shared"

    def is_turn(self, found: dict[str, tuple[UserState, float]], user: str, ticket: int) -> bool:
        return user not in found or self.box.is_turn(*found[user], ticket)

    def steps(self, user: str, command: Command | Forget) -> Calls:
        """Returns the ``CommandOutcome``. Each call is answered with the script's reply."""
        found, partings, notes = yield from self._ask(user, (yield from self._asked(user, command)))
        reply = yield from self._reply(user, command, found)
        return CommandOutcome(reply, tuple(self._partings(user, partings)), notes)

    def _asked(self, user: str, command: Command | Forget) -> Calls:
        """The command for the server: hashes as texts, the value sealed."""
        if isinstance(command, Then):
            first = yield from self._asked(user, command.first)
            return {"type": "Then", "first": first, "second": (yield from self._asked(user, command.second))}
        asked: dict[str, Any] = msgspec.to_builtins(command, builtin_types=(bytes,))
        if "credentials" in asked:
            asked["credentials"] = [each.hex() for each in asked["credentials"]]
        if isinstance(command, LoginDone | Add | Release):
            held = yield from self._held(user, command)
            stale = held.stale if isinstance(command, Release) and command.value is None and command.keep else None
            value = stale or command.value
            if value is not None:
                sealed = self._values.seal(user, held.credentials, value)
                asked |= {"value": sealed, "sealed_for": held.credentials.hex(), "resealed": stale is not None}
        return asked

    def _ask(self, user: str, asked: dict[str, Any]) -> Calls:
        """The script's reply, partings and notes."""
        try:
            line = self._lines.pop()
        except IndexError:
            line = CallLine(f"{self._name}-{next(self._numbers)}")
        line.calls += 1
        keys, named = [self.key(user)], _digest(user)
        here = ",".join(str(ticket) for ticket in self.wakers.tickets(named))
        command = msgspec.msgpack.encode(asked)
        arguments = [self._policy, command, line.name, line.calls, user, self._values.keys()]
        arguments += [self.ear.channel, named, f",{here},"]
        former: list[bytes] = []
        for _ in range(MAX_TRIES):
            status, *rest = yield keys, [*arguments, *former]
            if status != b"former":
                break
            former = [rest[0], self._values.written(user, self.box.open(user, rest[0]))]
        else:
            raise StoreUnavailable(f"processes of the release before were faster at {user!r}")
        # A line whose call failed is not used again: it may still be under way.
        self._lines.append(line)
        if status != b"done":
            raise cannot_be_opened(user, TokenReason(status.decode()))
        reply, partings, turns, notes = msgspec.msgpack.decode(rest[0])
        self.wakers.wake(named, turns)
        return reply, partings, tuple(TokenNote(**each) for each in notes)

    def _held(self, user: str, command: LoginDone | Add | Release) -> Calls:
        if isinstance(command, Add):
            return OwnSlot(command.credentials[0] if command.credentials else NONE_GIVEN)
        held = self._owners.get((user, command.fence))
        if held is None and command.value is not None:  # it is of another process
            found, _, _ = yield from self._ask(user, msgspec.to_builtins(AskOwner(command.fence)))
            if found["kind"] == "Owner":
                held = OwnSlot(bytes.fromhex(found["sealed_for"]))
                if found.get("value") is not None:
                    self._values.open(user, held.credentials, found["value"])
        return held or OwnSlot(NONE_GIVEN)

    def _reply(self, user: str, command: Command | Forget, found: dict[str, Any]) -> Calls:
        """The reply, its value opened."""
        if isinstance(command, Then):
            first = yield from self._reply(user, command.first, found["first"])
            return Both(first, (yield from self._reply(user, command.second, found["second"])))
        kind = found["kind"]
        if kind == "MustLogIn" and isinstance(command, Acquire | LogInAhead):
            self._remember(user, found["fence"], OwnSlot(_mine(command)[0]))
        if kind == "Granted" and isinstance(command, LoginDone):
            found["value"] = command.value
        elif kind == "Granted":
            found["value"] = yield from self._value(user, command, found)
        if kind == "Lost" or isinstance(command, Release | LoginEnded):
            self._owners.pop((user, getattr(command, "fence", 0)), None)
        return msgspec.convert(found, _REPLIES[kind])

    def _value(self, user: str, command: Command | Forget, found: dict[str, Any]) -> Calls:
        owner, fence, sealed = bytes.fromhex(found["sealed_for"]), found["fence"], found["value"]
        mine = owner
        try:
            if isinstance(command, Acquire):
                mine = _mine(command)[0]
                if not self._may_have(command, owner):
                    raise cannot_be_opened(user, TokenReason.FORGED)
            value = self._values.open(user, owner, sealed)
        except StoreUnavailable:
            # Nobody can use it, so it is in the way of those who log in.
            yield from self._ask(user, msgspec.to_builtins(Release(fence, keep=False, sign_out=False)))
            raise
        is_current = owner == mine and self._values.is_current(sealed)
        if isinstance(command, Acquire) or (user, fence) not in self._owners:
            self._remember(user, fence, OwnSlot(mine, None if is_current else value))
        return value

    def _may_have(self, command: Acquire, owner: bytes) -> bool:
        """Whether the caller gave the credentials for which the value is sealed, whatever the server says."""
        return any(same(owner, each) for each in _mine(command))

    def _remember(self, user: str, fence: int, held: OwnSlot) -> None:
        # Each step by itself is safe among threads.
        self._owners[user, fence] = held
        if len(self._owners) > MAX_OWNERS:
            self._owners.popitem(last=False)

    def _partings(self, user: str, partings: list[dict[str, Any]]) -> Iterator[Parting]:
        """What we cannot open, we cannot log out; its slot is free at the deadline."""
        for parting in partings:
            owner = bytes.fromhex(parting["sealed_for"])
            with contextlib.suppress(StoreUnavailable):
                value = self._values.open(user, owner, parting["value"])
                yield Parting(parting["fence"], value, parting["token_id"])

    def shown(self, rows: list[list[Any]], time_reply: Any) -> dict[str, tuple[UserState, float]]:
        now = time_reply[0] + time_reply[1] / 1e6
        found = [(row[0].decode(), row[1]) for row in rows if row[0] is not None and row[1] is not None]
        states = self.box.shown((user, stored, now) for user, stored in found if _is_former(stored))
        states |= {user: (self._values.read(user, stored), now) for user, stored in found if not _is_former(stored)}
        return states


def _is_former(stored: bytes) -> bool:
    return stored[:1] == b"\x01"


def _mine(command: Acquire | LogInAhead) -> tuple[bytes, ...]:
    return command.credentials or (NONE_GIVEN,)


def _batches(keys: list[Any]) -> list[list[Any]]:
    return [keys[start : start + BATCH] for start in range(0, len(keys), BATCH)]


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"Redis: {type(error).__name__}: {error}")


def _read(replies: list[Any]) -> tuple[bytes | None, float]:
    (seconds, micros), sealed = replies
    return sealed, seconds + micros / 1e6


def _swap(user: str, old: bytes | None, new: bytes | None, keep_s: float) -> list[Any]:
    return [old or b"", new or b"", user, int(min(KEEP_S + keep_s, MAX_KEEP_S))]


def _named(found: list[Any]) -> list[str]:
    return [user.decode() for user in found if user is not None]


class RedisTokenStore:
    """See :class:`coatcheck.pool.stores.port.TokenStore`."""

    def __init__(self, url: str, box: StateBox) -> None:
        self._calls = ScriptCalls(box)

        try:
            pool = redis.BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=SOCKET_TIMEOUT_S,
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=SOCKET_TIMEOUT_S,
                # One more try, at once: for a connection that the server closed while it was idle.
                retry=Retry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError as error:
            raise ConfigError(f"store: {error}") from None
        self._client = redis.Redis(connection_pool=pool)
        self._script = self._client.register_script(SCRIPT)
        self._swap_shared = self._client.register_script(_SWAP_SHARED)
        ear = self._calls.ear
        self._listener = Listener(ear, lambda: listen(self._client, ear), RedisError)

    def apply(self, user: str, command: Command) -> CommandOutcome:
        return self._run(self._calls.steps(user, command))

    def _run(self, steps: Calls) -> CommandOutcome:
        try:
            keys, arguments = next(steps)
            while True:
                keys, arguments = steps.send(self._script(keys=keys, args=arguments))
        except StopIteration as end:
            outcome: CommandOutcome = end.value
            return outcome
        except RedisError as error:
            raise _unavailable(error) from error

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        self._calls.wakers.watch(_digest(user), ticket, wake)
        self._listener.need()

    def unwatch(self, user: str, ticket: int) -> None:
        self._calls.wakers.unwatch(_digest(user), ticket)

    def pauses(self) -> tuple[float, float]:
        return self._calls.pauses()

    def is_turn(self, user: str, ticket: int) -> bool:
        self._listener.need()
        return self._calls.is_turn(self.look(user), user, ticket)

    def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        try:
            found = (
                [self._calls.key(user)] if user is not None else self._client.scan_iter(self._calls.pattern, count=500)
            )
            rows: list[Any] = []
            for keys in _batches(list(found)):
                with self._client.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.hmget(key, ["u", "s"])
                    rows += pipeline.execute()
            return self._calls.shown(rows, self._client.time())
        except RedisError as error:
            raise _unavailable(error) from error

    def forget(self) -> None:
        for user, (state, now) in self.look().items():
            if state.is_idle(now):
                self._run(self._calls.steps(user, Forget()))

    def read_shared(self, user: str) -> tuple[bytes | None, float]:
        try:
            with self._client.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.hget(self._calls.shared_key(user), "s")
                return _read(pipeline.execute())
        except RedisError as error:
            raise _unavailable(error) from error

    def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        try:
            return bool(self._swap_shared([self._calls.shared_key(user)], _swap(user, old, new, keep_s)))
        except RedisError as error:
            raise _unavailable(error) from error

    def shared_users(self) -> list[str]:
        try:
            found = list(self._client.scan_iter(self._calls.shared_pattern, count=500))
            return _named([self._client.hget(key, "u") for key in found])
        except RedisError as error:
            raise _unavailable(error) from error

    def close(self) -> None:
        self._listener.close()
        self._client.connection_pool.disconnect()


class AsyncRedisTokenStore:
    """The same store for asyncio."""

    def __init__(self, url: str, box: StateBox) -> None:
        self._calls = ScriptCalls(box)

        try:
            pool = redis.asyncio.BlockingConnectionPool.from_url(
                url,
                max_connections=MAX_CONNECTIONS,
                timeout=SOCKET_TIMEOUT_S,
                socket_timeout=SOCKET_TIMEOUT_S,
                socket_connect_timeout=SOCKET_TIMEOUT_S,
                retry=AsyncRetry(NoBackoff(), 1, supported_errors=(redis.ConnectionError,)),
            )
        except ValueError as error:
            raise ConfigError(f"store: {error}") from None
        self._client = redis.asyncio.Redis(connection_pool=pool)
        self._script = self._client.register_script(SCRIPT)
        self._swap_shared = self._client.register_script(_SWAP_SHARED)
        ear = self._calls.ear
        self._listener = AsyncListener(ear, lambda: listen_async(self._client, ear), RedisError)

    async def apply(self, user: str, command: Command) -> CommandOutcome:
        return await self._run(self._calls.steps(user, command))

    async def _run(self, steps: Calls) -> CommandOutcome:
        try:
            keys, arguments = next(steps)
            while True:
                keys, arguments = steps.send(await self._script(keys=keys, args=arguments))
        except StopIteration as end:
            outcome: CommandOutcome = end.value
            return outcome
        except RedisError as error:
            raise _unavailable(error) from error

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        self._calls.wakers.watch(_digest(user), ticket, wake)
        self._listener.need()

    def unwatch(self, user: str, ticket: int) -> None:
        self._calls.wakers.unwatch(_digest(user), ticket)

    def pauses(self) -> tuple[float, float]:
        return self._calls.pauses()

    async def is_turn(self, user: str, ticket: int) -> bool:
        self._listener.need()
        return self._calls.is_turn(await self.look(user), user, ticket)

    async def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        try:
            found: list[Any] = [self._calls.key(user)] if user is not None else []
            if user is None:
                found = [key async for key in self._client.scan_iter(self._calls.pattern, count=500)]
            rows: list[Any] = []
            for keys in _batches(found):
                async with self._client.pipeline(transaction=False) as pipeline:
                    for key in keys:
                        pipeline.hmget(key, ["u", "s"])
                    rows += await pipeline.execute()
            return self._calls.shown(rows, await self._client.time())
        except RedisError as error:
            raise _unavailable(error) from error

    async def forget(self) -> None:
        for user, (state, now) in (await self.look()).items():
            if state.is_idle(now):
                await self._run(self._calls.steps(user, Forget()))

    async def read_shared(self, user: str) -> tuple[bytes | None, float]:
        try:
            async with self._client.pipeline(transaction=False) as pipeline:
                pipeline.time()
                pipeline.hget(self._calls.shared_key(user), "s")
                return _read(await pipeline.execute())
        except RedisError as error:
            raise _unavailable(error) from error

    async def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        try:
            return bool(await self._swap_shared([self._calls.shared_key(user)], _swap(user, old, new, keep_s)))
        except RedisError as error:
            raise _unavailable(error) from error

    async def shared_users(self) -> list[str]:
        try:
            found = [key async for key in self._client.scan_iter(self._calls.shared_pattern, count=500)]
            return _named([await self._client.hget(key, "u") for key in found])
        except RedisError as error:
            raise _unavailable(error) from error

    async def close(self) -> None:
        await self._listener.close()
        await self._client.connection_pool.disconnect()
