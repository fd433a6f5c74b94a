"""Hearing from Redis whose turn it is (``SUBSCRIBE``)."""

from __future__ import annotations

import redis
import redis.asyncio

from coatcheck.pool.stores.listener import HEAR_S, Ear


def listen(client: redis.Redis, ear: Ear) -> None:
    """Hear until it is enough, by a connection of its own. Raises ``RedisError``."""
    with client.pubsub() as heard:  # type: ignore[no-untyped-call]
        heard.subscribe(ear.channel)
        while not ear.enough():
            _take(ear, heard.get_message(timeout=HEAR_S))


async def listen_async(client: redis.asyncio.Redis, ear: Ear) -> None:
    """The same, awaited."""
    async with client.pubsub() as heard:
        await heard.subscribe(ear.channel)
        while not ear.enough():
            _take(ear, await heard.get_message(timeout=HEAR_S))


def _take(ear: Ear, message: dict[str, object] | None) -> None:
    if message is None:
        return
    if message["type"] == "subscribe":
        ear.begin()  # also after a connection that was lost
    elif message["type"] == "message" and isinstance(data := message["data"], bytes):
        ear.hear(data.decode("ascii", "replace"))
