"""C10: "The asking server is authenticated and authorised before it gets anything."

By a server that holds its own sessions: mutual TLS under the farm's own authority, a list of who may ask, and one of
who may no longer. By a session server: both ends prove the farm's credential. And whoever gets past either gets a
sealed record, which takes the farm's key ring.
"""

from __future__ import annotations

import secrets
import socket
from pathlib import Path

from coatcheck import resp
from coatcheck.session_server.commands import COMMANDS
from tls.conftest import PASSWORD
from tls.farm import TLS_1_3, Client, Server, Servers
from tls.test_peers import PeerFarm


def test_without_the_proof_no_command_about_sessions_is_answered(session_server_url: str) -> None:
    port = int(session_server_url.rpartition(":")[2])
    key, nonce = bytes(32), b"n" * 16
    requests = {
        b"CC.ITEM.TAKE": resp.command(b"CC.ITEM.TAKE", key, nonce),
        b"CC.ITEM.PUT": resp.command(b"CC.ITEM.PUT", key, b"1000", b"item"),
        b"CC.ITEM.PURGE": resp.command(b"CC.ITEM.PURGE", key),
        b"CC.ITEM.AGREE": resp.command(b"CC.ITEM.AGREE", key, b"1000", b"value"),
    }
    assert {name for name in COMMANDS if b"ITEM" in name} == set(requests)
    for request in requests.values():
        with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
            connection.sendall(request)
            assert connection.recv(100).startswith(b"-NOAUTH")


def test_a_server_that_does_not_know_the_password_gets_nothing(
    certificates: Path, session_server_url: str, servers: Servers
) -> None:
    (one,) = servers(session_server_url, names="web-1")
    thief = Server(certificates, "thief", session_server_url.replace(PASSWORD, "another-password-than-that"))
    try:
        client = Client(certificates, TLS_1_3)
        client.visit(one)
        session = client.session
        assert client.visit(thief)["reused"] is False
        assert thief.status()["stores"] == {"session-1": False}
        assert client.visit(one, session=session)["reused"], "it is still there"
    finally:
        thief.stop()


def test_a_peer_gets_what_it_may_until_its_certificate_is_revoked(certificates: Path, tmp_path: Path) -> None:
    farm = PeerFarm(tmp_path / "peers", certificates)
    try:
        one, two, three = farm.start_all()
        client = Client(certificates, TLS_1_3)
        client.visit(one)
        assert client.visit(two)["reused"] is True
        farm.authority.revoke("web-2")
        two.wait_for(lambda status: status["stores"]["web-1"] is False)
        client.visit(one)
        session = client.session
        assert client.visit(two, session=session)["reused"] is False
        assert client.visit(three, session=session)["reused"] is True
    finally:
        farm.stop()


def test_a_server_with_another_key_ring_asks_for_nothing_and_could_read_nothing(
    certificates: Path, redis_url: str, servers: Servers
) -> None:
    (one,) = servers(redis_url, names="web-1")
    thief = Server(certificates, "thief", redis_url, key=secrets.token_urlsafe(32))
    try:
        client = Client(certificates, TLS_1_3)
        client.visit(one)
        session = client.session
        assert client.visit(thief)["reused"] is False
        assert thief.status()["offered"] == 0
        assert client.visit(one, session=session)["reused"], "it is still there"
    finally:
        thief.stop()
