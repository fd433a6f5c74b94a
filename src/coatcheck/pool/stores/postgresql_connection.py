"""Connections to PostgreSQL that answer in time or are given up, and the statements of the store."""

from __future__ import annotations

import time
from collections.abc import Generator
from typing import Any, Final

import psycopg

from coatcheck.errors import ConfigError
from coatcheck.pool.errors import StoreUnavailable

PATIENCE_S: Final = 5.0
"""For a connection."""
STATEMENT_TIMEOUT_MS: Final = 5_000
"""For a statement: the server ends it."""
ANSWER_TIMEOUT_S: Final = 7.5
"""For an answer: a server that stands still, or is cut off, ends nothing, so the connection is given up here."""

TRANSACTION_IDLE_MS: Final = 2_500
"""Between the two statements of a command: whoever stands still there gives the user's row up to the others."""

SETTINGS: Final[dict[str, Any]] = {
    "options": f"-c statement_timeout={STATEMENT_TIMEOUT_MS}"
    f" -c idle_in_transaction_session_timeout={TRANSACTION_IDLE_MS}",
    "connect_timeout": int(PATIENCE_S),
}


class NoAnswer(psycopg.OperationalError):
    """The server did not answer in time."""


class DeadConnection(psycopg.OperationalError):
    """The connection had died while it was idle; the server has seen nothing of the transaction that was to begin."""


def _bounded(connection: Any, steps: Generator[Any, Any, Any]) -> Generator[Any, Any, Any]:
    """The steps of one exchange with the server, as psycopg drives them; it reports several times a second."""
    until = time.monotonic() + ANSWER_TIMEOUT_S
    try:
        wanted = next(steps)
        while True:
            ready = yield wanted
            if not ready and time.monotonic() >= until:
                connection.pgconn.finish()
                raise NoAnswer(f"no answer within {ANSWER_TIMEOUT_S:g} s")
            wanted = steps.send(ready)
    except StopIteration as end:
        return end.value


def _dead(connection: Any, error: psycopg.OperationalError) -> psycopg.OperationalError:
    """What became of the first statement on a connection that may have died while it was idle."""
    gone = connection.closed and not isinstance(error, NoAnswer)
    return DeadConnection(str(error)) if gone else error


class PostgresqlConnection(psycopg.Connection[Any]):
    """For threads. Values go into the statements here, so that one round trip can take several statements."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor_factory = psycopg.ClientCursor

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        return super().wait(_bounded(self, gen), *args, **kwargs)

    def execute_first(self, statement: Any, values: Any) -> list[tuple[Any, ...]]:
        """The rows of a transaction's first statement. Raises ``DeadConnection`` if nothing can have happened."""
        try:
            return last_rows(self.execute(statement, values))
        except psycopg.OperationalError as error:
            raise _dead(self, error) from error


class AsyncPostgresqlConnection(psycopg.AsyncConnection[Any]):
    """For asyncio."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.cursor_factory = psycopg.AsyncClientCursor

    async def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        return await super().wait(_bounded(self, gen), *args, **kwargs)

    async def execute_first(self, statement: Any, values: Any) -> list[tuple[Any, ...]]:
        """See :meth:`PostgresqlConnection.execute_first`."""
        try:
            return await last_rows_of(await self.execute(statement, values))
        except psycopg.OperationalError as error:
            raise _dead(self, error) from error


def last_rows(cursor: psycopg.Cursor[Any]) -> list[tuple[Any, ...]]:
    """The rows of the last of several statements."""
    while cursor.nextset():
        pass
    return cursor.fetchall() if cursor.description else []


async def last_rows_of(cursor: psycopg.AsyncCursor[Any]) -> list[tuple[Any, ...]]:
    """The rows of the last of several statements."""
    while cursor.nextset():
        pass
    return await cursor.fetchall() if cursor.description else []


def check_url(url: str) -> None:
    """Raises ``ConfigError`` for what libpq cannot read. Its own message would show the password."""
    try:
        psycopg.conninfo.conninfo_to_dict(url)
    except psycopg.ProgrammingError:
        raise ConfigError("store: write postgresql://user:password@host:5432/database") from None


def unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(f"PostgreSQL: {type(error).__name__}: {' '.join(str(error).split())}")
