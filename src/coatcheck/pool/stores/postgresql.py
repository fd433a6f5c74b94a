"""The store in PostgreSQL: shared by machines. Needs the extra ``pool-postgresql`` (psycopg 3 and its pool).

A user's state is one sealed row. A command locks the row (``FOR UPDATE``), applies the rules and writes it back, two
round trips in all; callers of one user queue at the lock, others are not touched. Clean-up takes only rows that nobody
is working on (``FOR UPDATE SKIP LOCKED``). Waiting callers poll: a connection each would use the server up.
"""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections.abc import Iterator
from typing import Any, Final

import psycopg
import psycopg_pool

from coatcheck.pool.commands import Command, Outcome
from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.state import UserState
from coatcheck.pool.stores.blob import Changed, StateBox

MAX_CONNECTIONS: Final = 4
PATIENCE_S: Final = 5.0
STATEMENT_TIMEOUT_MS: Final = 5_000
POLL_FIRST_S: Final = 0.005
POLL_MAX_S: Final = 0.1

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS coatcheck_pool (
    pool text NOT NULL, username text NOT NULL, state bytea, PRIMARY KEY (pool, username)
)
"""
# Two processes that create the table at once would see each other's catalogue rows: one after the other.
_ONE_CREATES: Final = "SELECT pg_advisory_xact_lock(7239411604)"
_NOW: Final = "extract(epoch FROM clock_timestamp())::float8"
_LOCK: Final = f"SELECT state, {_NOW} FROM coatcheck_pool WHERE pool=%s AND username=%s FOR UPDATE"
_NEW: Final = "INSERT INTO coatcheck_pool VALUES (%s, %s, NULL) ON CONFLICT DO NOTHING"
_WRITE: Final = "UPDATE coatcheck_pool SET state=%s WHERE pool=%s AND username=%s"
_LOOK: Final = f"SELECT username, state, {_NOW} FROM coatcheck_pool WHERE pool=%s AND state IS NOT NULL"
_LOOK_AT: Final = _LOOK + " AND username=%s"
_IDLE: Final = f"{_LOOK} FOR UPDATE SKIP LOCKED"
_DELETE: Final = "DELETE FROM coatcheck_pool WHERE pool=%s AND username=%s"

Rows = list[tuple[Any, ...]]


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"PostgreSQL: {type(error).__name__}: {str(error).strip()}")


class _Rows:
    """What both clients make of rows."""

    def __init__(self, box: StateBox) -> None:
        self.box = box

    def change(self, user: str, row: tuple[Any, ...], command: Command) -> Changed:
        return self.box.change(user, None if row[0] is None else bytes(row[0]), row[1], command)

    def shown(self, rows: Rows) -> dict[str, tuple[UserState, float]]:
        return {user: (self.box.open(user, bytes(sealed)), now) for user, sealed, now in rows}

    def idle(self, rows: Rows) -> list[str]:
        return [user for user, (state, now) in self.shown(rows).items() if state.is_idle(now)]

    def is_turn(self, found: dict[str, tuple[UserState, float]], user: str, ticket: int) -> bool:
        return user not in found or self.box.is_turn(*found[user], ticket)


def _pauses(timeout_s: float) -> Iterator[float]:
    """How long to sleep before each look: at first short, then ten times a second, until the time is up."""
    until = time.monotonic() + timeout_s
    pause_s = POLL_FIRST_S
    while (left_s := until - time.monotonic()) > 0:
        yield min(left_s, pause_s * (0.5 + random.random()))
        pause_s = min(pause_s * 1.5, POLL_MAX_S)


_OPTIONS: Final[dict[str, Any]] = {
    "min_size": 0,
    "max_size": MAX_CONNECTIONS,
    "timeout": PATIENCE_S,
    "max_waiting": 10_000,
    "open": False,
    "kwargs": {"options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}", "connect_timeout": int(PATIENCE_S)},
}


class PostgresqlStore:
    """See :class:`coatcheck.pool.stores.port.TokenStore`."""

    def __init__(self, url: str, box: StateBox) -> None:
        self._rows = _Rows(box)
        self._pool = psycopg_pool.ConnectionPool(url, **_OPTIONS)
        self._ready = False
        self._opening = threading.Lock()

    def _connection(self) -> Any:
        if not self._ready:
            with self._opening:
                if not self._ready:
                    self._pool.open()
                    with self._pool.connection() as connection:
                        connection.execute(_ONE_CREATES)
                        connection.execute(_SCHEMA)
                    self._ready = True
        return self._pool.connection()

    def apply(self, user: str, command: Command) -> Outcome:
        key = (self._rows.box.name, user)
        try:
            with self._connection() as connection:
                row = connection.execute(_LOCK, key).fetchone()
                if row is None:
                    connection.execute(_NEW, key)
                    row = connection.execute(_LOCK, key).fetchone()
                changed = self._rows.change(user, row, command)
                if changed.sealed is not None:
                    connection.execute(_WRITE, (changed.sealed, *key))
                return changed.outcome
        except (psycopg.Error, psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests) as error:
            raise _unavailable(error) from error

    def wait(self, user: str, ticket: int, timeout_s: float) -> None:
        for pause_s in _pauses(timeout_s):
            time.sleep(pause_s)
            if self._rows.is_turn(self.look(user), user, ticket):
                return

    def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        name = self._rows.box.name
        query, key = (_LOOK, (name,)) if user is None else (_LOOK_AT, (name, user))
        try:
            with self._connection() as connection:
                return self._rows.shown(connection.execute(query, key).fetchall())
        except (psycopg.Error, psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests) as error:
            raise _unavailable(error) from error

    def forget(self) -> None:
        name = self._rows.box.name
        try:
            with self._connection() as connection:
                for user in self._rows.idle(connection.execute(_IDLE, (name,)).fetchall()):
                    connection.execute(_DELETE, (name, user))
        except (psycopg.Error, psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests) as error:
            raise _unavailable(error) from error

    def close(self) -> None:
        self._pool.close(timeout=PATIENCE_S)


class AsyncPostgresqlStore:
    """The same store for asyncio."""

    def __init__(self, url: str, box: StateBox) -> None:
        self._rows = _Rows(box)
        self._pool = psycopg_pool.AsyncConnectionPool(url, **_OPTIONS)
        self._ready = False
        self._opening = asyncio.Lock()

    async def _open(self) -> None:
        async with self._opening:
            if not self._ready:
                await self._pool.open()
                async with self._pool.connection() as connection:
                    await connection.execute(_ONE_CREATES)
                    await connection.execute(_SCHEMA)
                self._ready = True

    async def apply(self, user: str, command: Command) -> Outcome:
        key = (self._rows.box.name, user)
        try:
            if not self._ready:
                await self._open()
            async with self._pool.connection() as connection:
                row = await (await connection.execute(_LOCK, key)).fetchone()
                if row is None:
                    await connection.execute(_NEW, key)
                    row = await (await connection.execute(_LOCK, key)).fetchone()
                assert row is not None
                changed = self._rows.change(user, row, command)
                if changed.sealed is not None:
                    await connection.execute(_WRITE, (changed.sealed, *key))
                return changed.outcome
        except (psycopg.Error, psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests) as error:
            raise _unavailable(error) from error

    async def wait(self, user: str, ticket: int, timeout_s: float) -> None:
        for pause_s in _pauses(timeout_s):
            await asyncio.sleep(pause_s)
            if self._rows.is_turn(await self.look(user), user, ticket):
                return

    async def look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        name = self._rows.box.name
        try:
            if not self._ready:
                await self._open()
            async with self._pool.connection() as connection:
                if user is None:
                    cursor = await connection.execute(_LOOK, (name,))
                else:
                    cursor = await connection.execute(_LOOK_AT, (name, user))
                return self._rows.shown(await cursor.fetchall())
        except (psycopg.Error, psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests) as error:
            raise _unavailable(error) from error

    async def forget(self) -> None:
        name = self._rows.box.name
        try:
            if not self._ready:
                await self._open()
            async with self._pool.connection() as connection:
                for user in self._rows.idle(await (await connection.execute(_IDLE, (name,))).fetchall()):
                    await connection.execute(_DELETE, (name, user))
        except (psycopg.Error, psycopg_pool.PoolTimeout, psycopg_pool.TooManyRequests) as error:
            raise _unavailable(error) from error

    async def close(self) -> None:
        await self._pool.close(timeout=PATIENCE_S)
