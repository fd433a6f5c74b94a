"""What an operator's commands ask: the store itself, or a service in front of it; the same questions for both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from coatcheck.errors import ConfigError
from coatcheck.pool import TokenPool
from coatcheck.pool.service import messages as m
from coatcheck.pool.service.client import ServiceClient
from coatcheck.service_kit.secret_file import secret_lines

MOST_PER_USER: Final = 1000


class StoreOperator:
    """Asks a store. Only expiry is judged: the other limits are known to those who run the pool."""

    def __init__(self, pool: TokenPool) -> None:
        self._pool = pool

    def stats(self) -> m.Stats:
        return m.Stats(self._pool.settings.name, self._pool.stats())

    def tokens(self, user: str | None = None) -> list[Any]:
        return self._pool.list(user)

    def remove(self, user: str, token_id: int | None = None, *, soft: bool = False) -> int:
        return self._pool.remove_token(user, token_id, soft=soft)

    def reset(self, user: str) -> int:
        return self._pool.reset(user)

    def clean_up(self) -> int:
        return self._pool.clean_up()


@contextlib.contextmanager
def open_store(options: dict[str, Any]) -> Iterator[StoreOperator]:
    """Raises ``ConfigError`` for a bad URL or key, ``StoreUnavailable`` if it does not answer."""
    pool = TokenPool(validity="expiry", per_user=MOST_PER_USER, **options)
    try:
        yield StoreOperator(pool)
    finally:
        pool.close(0)


@contextlib.contextmanager
def open_service(url: str, token_file: Path | None, authority: Path | None) -> Iterator[ServiceClient]:
    """Raises ``ConfigError`` for a bad URL or file."""
    if token_file is None:
        raise ConfigError("token-file: a service asks for a bearer token")
    lines = secret_lines(token_file, "token-file")
    if not lines:
        raise ConfigError(f"token-file: {token_file} is empty")
    if not lines[0].isascii() or not lines[0].isprintable():
        raise ConfigError("token-file: a bearer token is of printable ASCII characters")
    yield ServiceClient(url, lines[0], str(authority) if authority else None)


def read_keys(file: Path | None) -> list[str] | None:
    """The keys that seal tokens in a shared store: one a line, the first one seals. Raises ``ConfigError``."""
    return None if file is None else secret_lines(file, "key-file")
