"""One session, written and loaded by the web servers of a tiny farm."""

from __future__ import annotations

import pytest

from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.replication.cache import Copy
from coatcheck.replication.copies import Gone, Written
from coatcheck.replication.effects import Detach, Flow
from coatcheck.replication.policy import Durability
from replication.tiny_farm import WebServer

KEY = b"k" * 16
LIFE_MS = 3_600_000


def store(web: WebServer, body: bytes, durability: Durability = "all") -> Written | None:
    """Write a new state of the session that this web server hosts (or creates)."""
    copy = web.copies.cache.get(KEY) or web.copies.create(KEY)

    def flow() -> Flow[Written | None]:
        written: Written | None = yield Detach(
            web.copies.write(copy, body, web.now_ms(), web.now_ms() + LIFE_MS, durability)
        )
        return written

    return web.run(flow())


def load(web: WebServer, promised: bytes | None = None) -> Copy | Gone:
    return web.run(web.copies.load(KEY, promised))


def loaded(web: WebServer, promised: bytes | None = None) -> Copy:
    copy = load(web, promised)
    assert isinstance(copy, Copy)
    return copy


def promise(web: WebServer) -> bytes:
    copy = web.copies.cache.get(KEY)
    assert copy is not None
    return copy.promised


def why(web: WebServer, promised: bytes | None = None) -> UnavailableReason:
    with pytest.raises(SessionUnavailable) as caught:
        load(web, promised)
    return caught.value.reason
