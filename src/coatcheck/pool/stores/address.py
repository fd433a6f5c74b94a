"""From a store's URL to the store: the only place that chooses one. Each client library is an extra."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import unquote, urlsplit

from coatcheck.errors import ConfigError
from coatcheck.pool.stores.blob import StateBox
from coatcheck.pool.stores.port import AsyncTokenStore, TokenStore

SCHEMES = ("sqlite", "redis", "rediss", "valkey", "valkeys", "unix", "postgresql", "postgres")


def _scheme(url: str) -> str:
    scheme = url.partition(":")[0] if isinstance(url, str) else ""
    if scheme not in SCHEMES:
        raise ConfigError("store: write sqlite:///file.db, redis://host:6379/0 or postgresql://host/database")
    return scheme


def _sqlite_path(url: str) -> Path:
    parts = urlsplit(url)
    path = unquote(parts.path)
    # As SQLAlchemy reads it: three slashes are a relative path, four an absolute one.
    if parts.netloc or not path.startswith("/") or len(path) < 2 or parts.query or "\0" in path:
        raise ConfigError("store: write sqlite:///file.db or, with an absolute path, sqlite:////var/lib/tokens.db")
    return Path(path[1:])


def sqlite_path(url: str) -> Path | None:
    """The file that a URL names, if it names one. Raises ``ConfigError`` for a URL that names nothing."""
    return _sqlite_path(url) if _scheme(url) == "sqlite" else None


def _redis_url(url: str) -> str:
    """The URL for redis-py, which would take a database that it cannot read for database 0."""
    parts = urlsplit(url)
    database = parts.path.strip("/")
    if parts.scheme != "unix" and database and not database.isdecimal():
        raise ConfigError("store: write redis://host:6379/0; the last part is the number of a database")
    return url.replace("valkey", "redis", 1) if parts.scheme.startswith("valkey") else url


def _missing(library: str, extra: str, error: ImportError) -> ConfigError:
    return ConfigError(f"store: {library} is not installed; pip install 'coatcheck[{extra}]' ({error.name})")


def open_store(url: str, box: StateBox) -> TokenStore:
    """The store for threads. Raises ``ConfigError`` for a URL that names none; connects at the first use."""
    scheme = _scheme(url)
    if scheme == "sqlite":
        from coatcheck.pool.stores.sqlite import SqliteStore

        return SqliteStore(_sqlite_path(url), box)
    if scheme.startswith("postgres"):
        try:
            from coatcheck.pool.stores.postgresql import PostgresqlStore
        except ImportError as error:
            raise _missing("psycopg", "pool-postgresql", error) from error
        return PostgresqlStore(url, box)
    try:
        from coatcheck.pool.stores.redis import RedisStore
    except ImportError as error:
        raise _missing("redis", "pool-redis", error) from error
    return RedisStore(_redis_url(url), box)


def open_async_store(url: str, box: StateBox) -> AsyncTokenStore:
    """The store for asyncio; see :func:`open_store`."""
    scheme = _scheme(url)
    if scheme == "sqlite":
        from coatcheck.pool.stores.sqlite import AsyncSqliteStore, SqliteStore

        return AsyncSqliteStore(SqliteStore(_sqlite_path(url), box))
    if scheme.startswith("postgres"):
        try:
            from coatcheck.pool.stores.postgresql import AsyncPostgresqlStore
        except ImportError as error:
            raise _missing("psycopg", "pool-postgresql", error) from error
        return AsyncPostgresqlStore(url, box)
    try:
        from coatcheck.pool.stores.redis import AsyncRedisStore
    except ImportError as error:
        raise _missing("redis", "pool-redis", error) from error
    return AsyncRedisStore(_redis_url(url), box)
