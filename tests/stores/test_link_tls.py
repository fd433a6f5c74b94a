"""The link and the session server over TLS, with certificates made for the test."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from coatcheck.replication.entry import Entry
from coatcheck.replication.version import Version
from coatcheck.session_server.server import SessionServer
from coatcheck.stores.port import ACCEPTED, Unreachable
from coatcheck.stores.session_server_store import SessionServerStore

KEY = bytes(range(16))
ENTRY = Entry(Version(1, b"AAA-0001", 0), (), False, 60_000, bytes(300_000))


async def ask(method: Callable[..., None], *arguments: object) -> Any:
    answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
    method(*arguments, answer.set_result)
    return await asyncio.wait_for(answer, 60)


@pytest.mark.parametrize("trusted", [True, False])
def test_only_a_server_with_a_trusted_certificate_is_reachable(certificate: tuple[Path, Path], trusted: bool) -> None:
    async def story() -> None:
        server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_side.load_cert_chain(*certificate)
        client_side = ssl.create_default_context(cafile=str(certificate[0]) if trusted else None)
        server = SessionServer("s1", password="pass", tls=server_side)
        await server.start()
        store = SessionServerStore(
            "s1", "127.0.0.1", server.port, password="pass", tls=client_side, timeout_s=20, on_event=lambda e: None
        )
        await store.open()
        assert store.reachable is trusted
        put = await ask(store.put, KEY, None, ENTRY)
        if trusted:
            assert put == ACCEPTED
            answers = await asyncio.gather(*[ask(store.get, KEY) for _ in range(30)])
            assert {len(answer.payload) for answer in answers} == {300_000}
        else:
            assert isinstance(put, Unreachable)
            assert "certificate" in put.why.lower()
        await store.aclose()
        await server.stop()

    asyncio.run(story())


def test_a_plain_client_and_a_tls_server_do_not_meet(certificate: tuple[Path, Path]) -> None:
    async def story() -> None:
        server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        server_side.load_cert_chain(*certificate)
        server = SessionServer("s1", tls=server_side)
        await server.start()
        store = SessionServerStore("s1", "127.0.0.1", server.port, on_event=lambda e: None)
        await store.open()
        assert store.reachable is False
        await store.aclose()
        await server.stop()

    asyncio.run(story())
