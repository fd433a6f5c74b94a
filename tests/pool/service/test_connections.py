"""Peers that keep a connection without doing anything, and callers that wait when the service is told to stop."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import uvicorn

from coatcheck.service_kit import http_connection
from coatcheck.service_kit.http_connection import HEAD_TIMEOUT_S
from coatcheck.service_kit.http_server import server_config

from .conftest import StartService
from .service_process import BEARER, ServiceProcess

PATIENCE_S = 60.0
HALF_A_HEAD = b"GET /v1/stats HTTP/1.1\r\nHost: x\r\nX-Slow: "
ASKED = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


def connect(url: str) -> socket.socket:
    host, port = url.removeprefix("http://").split(":")
    return socket.create_connection((host, int(port)), timeout=PATIENCE_S)


def ended(peer: socket.socket) -> bool:
    """Whether the server gives the connection up while we are patient."""
    try:
        while peer.recv(65536):
            pass
    except ConnectionResetError:
        return True
    except TimeoutError:
        return False
    return True


@pytest.mark.slow
def test_peers_that_send_no_whole_head_are_given_up(service: ServiceProcess) -> None:
    lease = service.signed_in(user="SLOW")
    service.signed_in(user="SLOW")
    silent, half, further = (connect(service.url) for _ in range(3))
    half.sendall(HALF_A_HEAD)
    further.sendall(ASKED)
    assert further.recv(65536).startswith(b"HTTP/1.1 200")
    further.sendall(HALF_A_HEAD)
    answers: list[int] = []
    waiting = threading.Thread(
        target=lambda: answers.append(service.checkout("SLOW", wait_s=HEAD_TIMEOUT_S + 5).status_code)
    )
    waiting.start()
    assert [ended(peer) for peer in (silent, half, further)] == [True] * 3
    service.end_lease(lease["lease"])
    waiting.join()
    # Who waits for an answer is no such peer.
    assert answers == [200]


@contextmanager
def serving(app: Any) -> Iterator[tuple[str, uvicorn.Server]]:
    config = server_config(app)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        wait_for(lambda: server.started)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join(PATIENCE_S)


def wait_for(happens: Callable[[], bool]) -> None:
    until = time.monotonic() + PATIENCE_S
    while not happens():
        assert time.monotonic() < until
        time.sleep(0.02)


@pytest.mark.parametrize("close", [False, True])
def test_peers_that_do_not_read_are_given_up(monkeypatch: pytest.MonkeyPatch, close: bool) -> None:
    monkeypatch.setattr(http_connection, "SEND_TIMEOUT_S", 0.2)
    large = b"x" * (32 * 1024 * 1024)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(large))]})
        await send({"type": "http.response.body", "body": large})

    with serving(app) as (url, server), connect(url) as peer:
        peer.sendall(b"GET / HTTP/1.1\r\nHost: x\r\n" + (b"Connection: close\r\n" if close else b"") + b"\r\n")
        assert peer.recv(9) == b"HTTP/1.1 "
        wait_for(lambda: not server.server_state.connections)


def test_what_is_left_when_a_connection_is_closed_is_bounded_however_little_it_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Of some of these sizes so little is left behind what the kernel takes that the transport pauses nobody."""
    monkeypatch.setattr(http_connection, "SEND_TIMEOUT_S", 0.2)
    step, most = 48 * 1024, 8 * 1024 * 1024

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        size = int(scope["query_string"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})

    with serving(app) as (url, server), ExitStack() as peers:
        for size in range(step, most, step):
            peer = peers.enter_context(connect(url))
            peer.sendall(b"GET /?%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % size)
            assert peer.recv(9) == b"HTTP/1.1 "
        wait_for(lambda: not server.server_state.connections)


def test_callers_that_wait_are_told_that_the_service_stops(start: StartService) -> None:
    service = start("--per-user", "1")
    service.signed_in()
    found: list[tuple[int, str]] = []

    def wait() -> None:
        answer = httpx.post(
            f"{service.url}/v1/users/ANN/checkout",
            json={"wait_s": 100},
            headers={"Authorization": f"Bearer {BEARER}"},
            timeout=PATIENCE_S,
        )
        found.append((answer.status_code, answer.json()["type"]))

    callers = [threading.Thread(target=wait) for _ in range(3)]
    for caller in callers:
        caller.start()
    wait_for(lambda: service.stats()["waiting"] == 3)
    assert service.end() == 0
    for caller in callers:
        caller.join()
    assert found == [(503, "urn:coatcheck:problem:pool-closed")] * 3
    assert "Traceback" not in Path(service.log).read_text()


def test_an_address_with_a_slash_too_many_is_404_and_no_redirect(service: ServiceProcess) -> None:
    answer = service.http.get("/v1/stats/", headers={"Host": "elsewhere.example"})
    assert (answer.status_code, answer.json()["type"]) == (404, "urn:coatcheck:problem:no-such-page")


def test_a_wrong_method_is_told_all_right_ones(service: ServiceProcess) -> None:
    answer = service.http.put("/v1/users/ANN")
    assert answer.status_code == 405
    assert {method.strip() for method in answer.headers["allow"].split(",")} == {"GET", "HEAD", "DELETE"}
