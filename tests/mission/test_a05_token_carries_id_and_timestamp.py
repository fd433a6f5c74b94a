"""A5: "A token carries a session ID and a timestamp." """

from __future__ import annotations

import asyncio
import os
import time

import pytest

import in_hand
from coatcheck.drivers.sessions import Sessions
from coatcheck.sessions.mapping import Session
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SESSION_ID_BYTES, TOKEN_CHARS, SealedToken, TokenCodec


@pytest.mark.parametrize("timestamp", [0, 1, 1_763_700_000_123, (1 << 32) - 1, 1 << 32, (1 << 42) - 1])
def test_what_goes_in_comes_out(timestamp: int) -> None:
    ring = KeyRing([os.urandom(32)])
    server, other = (TokenCodec(ring, "anonymous", "farm", os.urandom) for _ in range(2))
    token = SealedToken(os.urandom(16), os.urandom(SESSION_ID_BYTES), timestamp, os.urandom(16))
    text = server.seal(*token)
    assert other.open(text) == token, "another web server, which remembers nothing of the sealing, reads the same"
    assert server.open(text) == token


def test_every_token_of_a_session_carries_both_and_no_data() -> None:
    ring = KeyRing([os.urandom(32)])

    async def story() -> tuple[int, list[bytes], int]:
        began_ms = time.time_ns() // 1_000_000
        stores = [MemoryStore(name, time.monotonic) for name in ("one", "two")]
        sessions = Sessions(farm="farm", server_name="web-1", stores=stores, ring=ring)
        await sessions.start()
        try:
            texts = []
            for size in (1, 100_000):
                session = Session()
                session["cart"] = "x" * size
                issue = (await in_hand.saved(sessions, session)).issue
                assert issue is not None
                texts.append(sessions.seal(issue))
            return began_ms, texts, time.time_ns() // 1_000_000
        finally:
            await sessions.aclose()

    began_ms, texts, ended_ms = asyncio.run(story())
    tokens = [TokenCodec(ring, "anonymous", "farm", os.urandom).open(text) for text in texts]
    assert [len(text) for text in texts] == [TOKEN_CHARS] * 2, "the same length, whatever the session holds"
    assert all(len(token.session_id) == SESSION_ID_BYTES and any(token.session_id) for token in tokens)
    assert tokens[0].session_id != tokens[1].session_id
    assert all(began_ms <= token.timestamp <= ended_ms for token in tokens)
