"""Hearing from PostgreSQL whose turn it is (``LISTEN``)."""

from __future__ import annotations

import psycopg

from coatcheck.pool.stores.listener import HEAR_S, Ear
from coatcheck.pool.stores.postgresql_connection import SETTINGS


def listen(url: str, ear: Ear) -> None:
    """Hear until it is enough. Raises ``psycopg.Error``."""
    with psycopg.connect(url, autocommit=True, **SETTINGS) as connection:
        connection.execute(f'LISTEN "{ear.channel}"')
        ear.begin()
        while not ear.enough():
            for notify in connection.notifies(timeout=HEAR_S):
                ear.hear(notify.payload)


async def listen_async(url: str, ear: Ear) -> None:
    """The same, awaited."""
    async with await psycopg.AsyncConnection.connect(url, autocommit=True, **SETTINGS) as connection:
        await connection.execute(f'LISTEN "{ear.channel}"')
        ear.begin()
        while not ear.enough():
            async for notify in connection.notifies(timeout=HEAR_S):
                ear.hear(notify.payload)
