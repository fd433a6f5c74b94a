"""The store in PostgreSQL: shared by machines. Needs the extra ``pool-postgresql`` (psycopg 3 and its pool).

A user's state is one sealed row. A command locks the row (``FOR UPDATE``), applies the rules and writes it back, two
round trips in all, because a transaction begins with the one statement and ends with the other; callers of one user
queue at the lock, others are not touched. Looking takes no lock, and clean-up
takes only rows that nobody is working on (``FOR UPDATE SKIP LOCKED``). Whose turn it is, the same write tells the other
processes (``NOTIFY``).
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Generator
from functools import partial
from typing import Any, Final, TypeVar

import psycopg
import psycopg_pool

from coatcheck.pool.commands import CleanUp, Command, CommandOutcome, Done
from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.state import UserState
from coatcheck.pool.stores.blob import Changed, StateBox
from coatcheck.pool.stores.listener import AsyncListener, Ear, Listener, key_of, message
from coatcheck.pool.stores.postgresql_connection import (
    PATIENCE_S,
    SETTINGS,
    AsyncPostgresqlConnection,
    DeadConnection,
    PostgresqlConnection,
    check_url,
    last_rows,
    last_rows_of,
    unavailable,
)
from coatcheck.pool.stores.postgresql_listener import listen, listen_async
from coatcheck.pool.stores.wakers import Wakers

MAX_CONNECTIONS: Final = 4
MAX_RACES: Final = 5
"""A row that was inserted may be cleaned up before it is locked; so often we insert it again."""
POLL_FIRST_S: Final = 0.005
POLL_MAX_S: Final = 0.1
POLL_LISTENING_S: Final = 0.5
"""The longest pause between two looks while messages say when to look."""

_HAS_TABLE: Final = "SELECT to_regclass('coatcheck_pool') IS NOT NULL"
_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS coatcheck_pool (
    pool text NOT NULL, username text NOT NULL, state bytea, PRIMARY KEY (pool, username)
)
"""
# Two processes that create the table at once would see each other's catalogue rows: one after the other.
_ONE_CREATES: Final = "SELECT pg_advisory_xact_lock(7239411604)"
_NOW: Final = "extract(epoch FROM clock_timestamp())::float8"
_READ: Final = f"SELECT state, {_NOW} FROM coatcheck_pool WHERE pool=%s AND username=%s FOR UPDATE"
_LOCK: Final = f"BEGIN; {_READ}"
_NEW: Final = "INSERT INTO coatcheck_pool VALUES (%s, %s, NULL) ON CONFLICT DO NOTHING"
_UPDATE: Final = "UPDATE coatcheck_pool SET state=%s WHERE pool=%s AND username=%s"
_WRITE: Final = f"{_UPDATE}; COMMIT"
_WRITE_AND_TELL: Final = f"WITH written AS ({_UPDATE}) SELECT pg_notify(%s, %s); COMMIT"
_DELETE: Final = "DELETE FROM coatcheck_pool WHERE pool=%s AND username=%s; COMMIT"
_LOOK: Final = f"SELECT username, state, {_NOW} FROM coatcheck_pool WHERE pool=%s AND state IS NOT NULL"
_LOOK_AT: Final = _LOOK + " AND username=%s"
_UNLOCKED: Final = f"{_LOCK} SKIP LOCKED"
# Each of these is a transaction by itself, answered with a row if it did something, now or when it was sent before.
_LOOK_SHARED: Final = f"SELECT state, {_NOW} FROM (VALUES (1)) one LEFT JOIN coatcheck_pool ON pool=%s AND username=%s"
_ADD_SHARED: Final = (
    "INSERT INTO coatcheck_pool AS stored VALUES (%s, %s, %s) ON CONFLICT (pool, username)"
    " DO UPDATE SET state=EXCLUDED.state WHERE stored.state=EXCLUDED.state RETURNING 1"
)
_SWAP_SHARED: Final = (
    "UPDATE coatcheck_pool SET state=%s WHERE pool=%s AND username=%s AND state IN (%s, %s) RETURNING 1"
)
_DELETE_SHARED: Final = "DELETE FROM coatcheck_pool WHERE pool=%s AND username=%s AND state=%s RETURNING 1"
_SHARED_USERS: Final = "SELECT username FROM coatcheck_pool WHERE pool=%s"

_TROUBLE: Final = (psycopg.Error, psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests)
_OPTIONS: Final[dict[str, Any]] = {
    "min_size": 0,
    "max_size": MAX_CONNECTIONS,
    "timeout": PATIENCE_S,
    "max_waiting": 10_000,
    "open": False,
    "kwargs": {**SETTINGS, "autocommit": True},
}

T = TypeVar("T")
Row = tuple[Any, ...]
States = dict[str, tuple[UserState, float]]
Steps = Generator[tuple[str, Row], list[Row], T]


class _Rows:
    """What both clients do, without doing it: which statements to send, and what their rows mean."""

    def __init__(self, url: str, box: StateBox) -> None:
        check_url(url)
        self.url = url
        self.box = box
        self.wakers = Wakers()
        self.ear = Ear(box.name, self.wakers)

    def applying(self, user: str, command: Command) -> Steps[Changed]:
        """The statements of one command, in one transaction; each is answered with its rows."""
        key = (self.box.name, user)
        cleans = isinstance(command, CleanUp)
        rows = yield (_UNLOCKED if cleans else _LOCK), key
        if cleans and not rows:  # whoever works on it cleans it up as well
            return Changed(None, CommandOutcome(Done(0)), [])
        for _ in range(MAX_RACES):
            if rows:
                break
            yield _NEW, key
            rows = yield _READ, key
        else:
            raise StoreUnavailable(f"PostgreSQL: the row of {user!r} is deleted again and again")
        sealed, now = rows[0]
        changed = self.box.change(user, None if sealed is None else bytes(sealed), now, command)
        if changed.sealed is not None:
            elsewhere = self.wakers.elsewhere(key_of(user), changed.turns)
            if elsewhere:
                yield _WRITE_AND_TELL, (changed.sealed, *key, self.ear.channel, message(user, elsewhere))
            else:
                yield _WRITE, (changed.sealed, *key)
        elif sealed is None:
            yield _DELETE, key
        return changed

    def looking(self, user: str | None) -> Steps[States]:
        name = self.box.name
        rows = yield (_LOOK, (name,)) if user is None else (_LOOK_AT, (name, user))
        return self.box.shown((user, bytes(sealed), now) for user, sealed, now in rows)

    def idle(self) -> Steps[list[str]]:
        rows = yield _LOOK, (self.box.name,)
        return [user for user, sealed, now in rows if self.box.is_idle(user, bytes(sealed), now)]

    def forgetting(self, user: str) -> Steps[None]:
        """Delete a user's row if it is still idle, and nobody is working on it."""
        key = (self.box.name, user)
        rows = yield _UNLOCKED, key
        if rows and self.box.is_idle(user, bytes(rows[0][0]), rows[0][1]):
            yield _DELETE, key

    def looking_at_shared(self, user: str) -> Steps[tuple[bytes | None, float]]:
        rows = yield _LOOK_SHARED, (self.box.shared_name, user)
        sealed, now = rows[0]
        return (None if sealed is None else bytes(sealed)), now

    def swapping_shared(self, user: str, old: bytes | None, new: bytes | None) -> Steps[bool]:
        key = (self.box.shared_name, user)
        if old is None:
            rows = yield _ADD_SHARED, (*key, new)
        elif new is None:
            rows = yield _DELETE_SHARED, (*key, old)
        else:
            rows = yield _SWAP_SHARED, (new, *key, old, new)
        return bool(rows)

    def listing_shared(self) -> Steps[list[str]]:
        rows = yield _SHARED_USERS, (self.box.shared_name,)
        return [user for (user,) in rows]

    def is_turn(self, found: States, user: str, ticket: int) -> bool:
        return user not in found or self.box.is_turn(*found[user], ticket)

    def pauses(self) -> tuple[float, float]:
        return POLL_FIRST_S, POLL_LISTENING_S if self.ear.listening else POLL_MAX_S


class PostgresqlTokenStore:
    """See :class:`coatcheck.pool.stores.port.TokenStore`."""

    def __init__(self, url: str, box: StateBox) -> None:
        self._rows = _Rows(url, box)
        self._pool = self._new_pool()
        self._ready = False
        self._opening = threading.Lock()
        self._listener = Listener(self._rows.ear, lambda: listen(url, self._rows.ear), psycopg.Error)

    def _open(self, *, create: bool) -> bool:
        """Whether the table is there. Asked by a connection of its own, whose error says what is wrong."""
        with self._opening:
            if self._ready:
                return True
            with PostgresqlConnection.connect(self._rows.url, **SETTINGS) as connection:
                if not connection.execute(_HAS_TABLE).fetchall()[0][0]:
                    if not create:
                        return False
                    connection.execute(_ONE_CREATES)
                    connection.execute(_SCHEMA)
            self._pool.open()
            self._ready = True
            return True

    def _run(self, begin: Callable[[], Steps[T]], nothing: T | None = None) -> T:
        """Run steps in a transaction; ``nothing``: the answer when there is no table, which is then not created."""
        try:
            if not self._ready and not self._open(create=nothing is None) and nothing is not None:
                return nothing
            for _ in range(MAX_CONNECTIONS):
                with contextlib.suppress(DeadConnection):
                    return self._transact(begin())
            return self._transact(begin())
        except _TROUBLE as error:
            raise unavailable(error) from error

    def _transact(self, steps: Steps[T]) -> T:
        with self._pool.connection() as connection:
            rows = connection.execute_first(*next(steps))
            try:
                while True:
                    rows = last_rows(connection.execute(*steps.send(rows)))
            except StopIteration as end:
                result: T = end.value
        return result

    def apply(self, user: str, command: Command) -> CommandOutcome:
        changed = self._run(lambda: self._rows.applying(user, command))
        self._rows.wakers.wake(key_of(user), changed.turns)
        return changed.outcome

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        self._rows.wakers.watch(key_of(user), ticket, wake)
        self._listener.need()

    def unwatch(self, user: str, ticket: int) -> None:
        self._rows.wakers.unwatch(key_of(user), ticket)

    def pauses(self) -> tuple[float, float]:
        return self._rows.pauses()

    def is_turn(self, user: str, ticket: int) -> bool:
        self._listener.need()
        return self._rows.is_turn(self.look(user), user, ticket)

    def look(self, user: str | None = None) -> States:
        return self._run(lambda: self._rows.looking(user), {})

    def forget(self) -> None:
        idle: list[str] = self._run(self._rows.idle, [])
        for user in idle:
            self._run(partial(self._rows.forgetting, user))

    def read_shared(self, user: str) -> tuple[bytes | None, float]:
        return self._run(lambda: self._rows.looking_at_shared(user))

    def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        return self._run(lambda: self._rows.swapping_shared(user, old, new))

    def shared_users(self) -> list[str]:
        return self._run(self._rows.listing_shared, [])

    def close(self) -> None:
        self._listener.close()
        # Whoever gives a lease back later still can, by a connection of its own.
        closing, self._pool, self._ready = self._pool, self._new_pool(), False
        closing.close(timeout=PATIENCE_S)

    def _new_pool(self) -> psycopg_pool.ConnectionPool[PostgresqlConnection]:
        return psycopg_pool.ConnectionPool(self._rows.url, connection_class=PostgresqlConnection, **_OPTIONS)


class AsyncPostgresqlTokenStore:
    """The same store for asyncio."""

    def __init__(self, url: str, box: StateBox) -> None:
        self._rows = _Rows(url, box)
        self._pool = self._new_pool()
        self._ready = False
        self._opening = asyncio.Lock()
        self._listener = AsyncListener(self._rows.ear, lambda: listen_async(url, self._rows.ear), psycopg.Error)

    async def _open(self, *, create: bool) -> bool:
        async with self._opening:
            if self._ready:
                return True
            async with await AsyncPostgresqlConnection.connect(self._rows.url, **SETTINGS) as connection:
                if not (await (await connection.execute(_HAS_TABLE)).fetchall())[0][0]:
                    if not create:
                        return False
                    await connection.execute(_ONE_CREATES)
                    await connection.execute(_SCHEMA)
            await self._pool.open()
            self._ready = True
            return True

    async def _run(self, begin: Callable[[], Steps[T]], nothing: T | None = None) -> T:
        try:
            if not self._ready and not await self._open(create=nothing is None) and nothing is not None:
                return nothing
            for _ in range(MAX_CONNECTIONS):
                with contextlib.suppress(DeadConnection):
                    return await self._transact(begin())
            return await self._transact(begin())
        except _TROUBLE as error:
            raise unavailable(error) from error

    async def _transact(self, steps: Steps[T]) -> T:
        async with self._pool.connection() as connection:
            rows = await connection.execute_first(*next(steps))
            try:
                while True:
                    rows = await last_rows_of(await connection.execute(*steps.send(rows)))
            except StopIteration as end:
                result: T = end.value
        return result

    async def apply(self, user: str, command: Command) -> CommandOutcome:
        changed = await self._run(lambda: self._rows.applying(user, command))
        self._rows.wakers.wake(key_of(user), changed.turns)
        return changed.outcome

    def watch(self, user: str, ticket: int, wake: Callable[[], None]) -> None:
        self._rows.wakers.watch(key_of(user), ticket, wake)
        self._listener.need()

    def unwatch(self, user: str, ticket: int) -> None:
        self._rows.wakers.unwatch(key_of(user), ticket)

    def pauses(self) -> tuple[float, float]:
        return self._rows.pauses()

    async def is_turn(self, user: str, ticket: int) -> bool:
        self._listener.need()
        return self._rows.is_turn(await self.look(user), user, ticket)

    async def look(self, user: str | None = None) -> States:
        return await self._run(lambda: self._rows.looking(user), {})

    async def forget(self) -> None:
        idle: list[str] = await self._run(self._rows.idle, [])
        for user in idle:
            await self._run(partial(self._rows.forgetting, user))

    async def read_shared(self, user: str) -> tuple[bytes | None, float]:
        return await self._run(lambda: self._rows.looking_at_shared(user))

    async def swap_shared(self, user: str, old: bytes | None, new: bytes | None, keep_s: float) -> bool:
        return await self._run(lambda: self._rows.swapping_shared(user, old, new))

    async def shared_users(self) -> list[str]:
        return await self._run(self._rows.listing_shared, [])

    async def close(self) -> None:
        await self._listener.close()
        closing, self._pool, self._ready = self._pool, self._new_pool(), False
        await closing.close(timeout=PATIENCE_S)

    def _new_pool(self) -> psycopg_pool.AsyncConnectionPool[AsyncPostgresqlConnection]:
        return psycopg_pool.AsyncConnectionPool(self._rows.url, connection_class=AsyncPostgresqlConnection, **_OPTIONS)
