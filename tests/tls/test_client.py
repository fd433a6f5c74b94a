"""Clients of all kinds come back to a farm whose servers take turns, and resume."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import itertools
import json
import socket
import ssl
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from coatcheck.tls import ResumingContext, resuming_context

from .farm import HOST, VERSIONS, Server, Servers

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


class Direct(http.client.HTTPSConnection):
    """To an address, by the name of a host that has none."""

    def connect(self) -> None:
        self.sock = self._create_connection(("127.0.0.1", self.port))  # type: ignore[attr-defined]
        self.sock = self._context.wrap_socket(self.sock, server_hostname=self.host)  # type: ignore[attr-defined]


def by_http_client(context: ResumingContext, port: int, host: str) -> dict[str, Any]:
    connection = Direct(host, port, context=context, timeout=30)
    connection.request("GET", "/")
    found: dict[str, Any] = json.loads(connection.getresponse().read())
    connection.close()
    return found


def by_urllib3(context: ResumingContext, port: int, host: str) -> dict[str, Any]:
    import urllib3

    pool = urllib3.HTTPSConnectionPool(
        "127.0.0.1", port, ssl_context=context, server_hostname=host, assert_hostname=host
    )
    found: dict[str, Any] = pool.request("GET", "/", retries=False, timeout=30).json()
    pool.close()
    return found


def by_httpx(context: ResumingContext, port: int, host: str) -> dict[str, Any]:
    import httpx

    with httpx.Client(verify=context, timeout=30) as client:
        found: dict[str, Any] = client.get(
            f"https://127.0.0.1:{port}/", headers={"Host": host}, extensions={"sni_hostname": host}
        ).json()
    return found


def by_httpx_on_a_loop(context: ResumingContext, port: int, host: str) -> dict[str, Any]:
    import httpx

    async def ask() -> dict[str, Any]:
        async with httpx.AsyncClient(verify=context, timeout=30) as client:
            answer = await client.get(
                f"https://127.0.0.1:{port}/", headers={"Host": host}, extensions={"sni_hostname": host}
            )
            found: dict[str, Any] = answer.json()
            return found

    return asyncio.run(ask())


def by_aiohttp(context: ResumingContext, port: int, host: str) -> dict[str, Any]:
    import aiohttp

    async def ask() -> dict[str, Any]:
        async with aiohttp.ClientSession() as client:
            url = f"https://127.0.0.1:{port}/"
            async with client.get(url, ssl=context, server_hostname=host) as answer:
                found: dict[str, Any] = await answer.json(content_type=None)
                return found

    return asyncio.run(ask())


CLIENTS: dict[str, Callable[[ResumingContext, int, str], dict[str, Any]]] = {
    "http.client": by_http_client, "urllib3": by_urllib3, "httpx": by_httpx, "httpx-async": by_httpx_on_a_loop,
    "aiohttp": by_aiohttp,
}  # fmt: skip


def context_of(certificates: Path, version: ssl.TLSVersion, **more: Any) -> ResumingContext:
    context = resuming_context(cafile=certificates / "ca.pem", **more)
    context.minimum_version = context.maximum_version = version
    return context


class Balanced:
    """Two servers behind one address, in turn: the client knows one port, the balancer chooses."""

    def __init__(self, servers: Sequence[Server]) -> None:
        listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(listener.getsockname()[1])
        turns = itertools.cycle(server.port for server in servers)

        def pour(one: socket.socket, other: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while piece := one.recv(65536):
                    other.sendall(piece)
                other.shutdown(socket.SHUT_WR)

        def run() -> None:
            with contextlib.suppress(OSError):
                while True:
                    client, _ = listener.accept()
                    server = socket.create_connection(("127.0.0.1", next(turns)))
                    for pair in ((client, server), (server, client)):
                        threading.Thread(target=pour, args=pair, daemon=True).start()

        threading.Thread(target=run, daemon=True).start()
        self.close = listener.close


@both_versions
@pytest.mark.parametrize("kind", CLIENTS)
def test_a_client_that_comes_back_resumes_at_whichever_server(
    kind: str, version: ssl.TLSVersion, certificates: Path, servers: Servers, redis_url: str
) -> None:
    one, other = servers(redis_url, "threads")
    balanced = Balanced([one, other])
    context = context_of(certificates, version)
    answers = []
    for _ in range(4):
        answers.append(CLIENTS[kind](context, balanced.port, HOST))
        one.settle()
        other.settle()
    assert [answer["reused"] for answer in answers] == [False, True, True, True]
    assert {answer["server"] for answer in answers} == {one.name, other.name}
    assert (context.counts.offered, context.counts.accepted) == (3, 3)
    balanced.close()
