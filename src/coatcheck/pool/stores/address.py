"""From a store's URL to the store: the only place that chooses one. Each client library is an extra."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.pool.stores.blob import StateBox
from coatcheck.pool.stores.port import AsyncTokenStore, TokenStore
from coatcheck.url import REDIS, StoreUrl, parse_store_url

POSTGRESQL: Final = ("postgresql", "postgres")
SCHEMES: Final = ("sqlite", *REDIS, *POSTGRESQL)
REDIS_OPTIONS: Final = (
    "db",
    "protocol",
    "ssl_ca_certs",
    "ssl_cert_reqs",
    "ssl_certfile",
    "ssl_check_hostname",
    "ssl_keyfile",
)
"""What may follow ``?`` in a URL for redis-py; the pool itself sets everything else."""


def _parsed(url: str) -> StoreUrl:
    """The URL's parts; of PostgreSQL's the scheme alone, for libpq has a grammar of its own."""
    scheme = url.partition(":")[0] if isinstance(url, str) else ""
    if scheme in POSTGRESQL:
        return StoreUrl(scheme=scheme)
    if scheme not in SCHEMES:
        raise ConfigError("store: write sqlite:///file.db, redis://host:6379/0 or postgresql://host/database")
    try:
        return parse_store_url(url, SCHEMES, options=() if scheme == "sqlite" else REDIS_OPTIONS)
    except ValueError as error:
        raise ConfigError(f"store: {error}") from None


def sqlite_path(url: str) -> Path | None:
    """The file that a URL names, if it names one. Raises ``ConfigError`` for a URL that names nothing."""
    parts = _parsed(url)
    return Path(parts.path) if parts.scheme == "sqlite" else None


def _redis_url(url: str) -> str:
    """The URL for redis-py, which knows no Valkey."""
    return url.replace("valkey", "redis", 1) if url.startswith("valkey") else url


def _missing(library: str, extra: str, error: ImportError) -> ConfigError:
    return ConfigError(f"store: {library} is not installed; pip install 'coatcheck[{extra}]' ({error.name})")


def open_store(url: str, box: StateBox) -> TokenStore:
    """The store for threads. Raises ``ConfigError`` for a URL that names none; connects at the first use."""
    parts = _parsed(url)
    if parts.scheme == "sqlite":
        from coatcheck.pool.stores.sqlite import SqliteTokenStore

        return SqliteTokenStore(Path(parts.path), box)
    if parts.scheme in POSTGRESQL:
        try:
            from coatcheck.pool.stores.postgresql import PostgresqlTokenStore
        except ImportError as error:
            raise _missing("psycopg", "pool-postgresql", error) from error
        return PostgresqlTokenStore(url, box)
    try:
        from coatcheck.pool.stores.redis import RedisTokenStore
    except ImportError as error:
        raise _missing("redis", "pool-redis", error) from error
    return RedisTokenStore(_redis_url(url), box)


def open_async_store(url: str, box: StateBox) -> AsyncTokenStore:
    """The store for asyncio; see :func:`open_store`."""
    parts = _parsed(url)
    if parts.scheme == "sqlite":
        from coatcheck.pool.stores.sqlite import AsyncSqliteTokenStore, SqliteTokenStore

        return AsyncSqliteTokenStore(SqliteTokenStore(Path(parts.path), box))
    if parts.scheme in POSTGRESQL:
        try:
            from coatcheck.pool.stores.postgresql import AsyncPostgresqlTokenStore
        except ImportError as error:
            raise _missing("psycopg", "pool-postgresql", error) from error
        return AsyncPostgresqlTokenStore(url, box)
    try:
        from coatcheck.pool.stores.redis import AsyncRedisTokenStore
    except ImportError as error:
        raise _missing("redis", "pool-redis", error) from error
    return AsyncRedisTokenStore(_redis_url(url), box)
