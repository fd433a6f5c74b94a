"""C2: "The identifier itself tells which server holds the session, and the state is fetched from that server."

Either the server that made it, which its peers ask, or one of several session servers, each of which has only its own.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from coatcheck.tls.session_id import NamedSession, SessionIds, server_tag, store_tag
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.secret import parse_key
from ports import free_port
from tls.conftest import start_redis
from tls.farm import KEY, PATIENCE_S, TLS_1_2, Client, Server
from tls.test_peers import PeerFarm

IDS = SessionIds(KeyRing([parse_key(KEY, "key")]), "farm", "web-1", os.urandom)


def named(client: Client) -> NamedSession:
    assert client.session is not None
    found = IDS.read(client.session.id)
    assert found is not None
    return found


def test_the_server_that_made_it_is_asked_and_no_other(certificates: Path, tmp_path: Path) -> None:
    farm = PeerFarm(tmp_path / "peers", certificates, "uvloop")
    try:
        one, two, three = farm.start_all()
        clients = [Client(certificates, TLS_1_2) for _ in range(2)]
        for client, server, name in zip(clients, (one, two), ("web-1", "web-2"), strict=True):
            client.visit(server)
            assert named(client) == NamedSession(server_tag(name), store_tag(name))
            assert client.visit(three)["reused"]
        one.stop()
        three.wait_for(lambda status: status["stores"]["web-1"] is False)
        assert [client.visit(three)["reused"] for client in clients] == [False, True]
    finally:
        farm.stop()


def test_the_one_that_is_named_is_asked_and_no_other(certificates: Path, tmp_path: Path) -> None:
    holders: dict[bytes, subprocess.Popen[bytes]] = {}
    urls = []
    for name in ("east", "west"):
        (tmp_path / name).mkdir()
        port = free_port()
        holders[store_tag(name)] = start_redis(port, tmp_path / name)
        urls.append(f"{name}=redis://127.0.0.1:{port}")
    servers = [Server(certificates, name, urls, fetch_timeout=1) for name in ("web-1", "web-2")]
    try:
        clients = [Client(certificates, TLS_1_2) for _ in range(4)]
        for client in clients:
            client.visit(servers[0])
            assert named(client).server == server_tag("web-1")
        assert {named(client).store for client in clients} == set(holders), "each has its part"
        assert [client.visit(servers[1])["reused"] for client in clients] == [True] * 4
        gone = named(clients[0]).store
        holders[gone].kill()
        holders[gone].wait(PATIENCE_S)
        servers[0].wait_for(lambda status: sorted(status["stores"].values()) == [False, True])
        for client in clients:
            at = named(client).store
            assert client.visit(servers[0])["reused"] == (at != gone)
    finally:
        for server in servers:
            server.stop()
        for holder in holders.values():
            holder.kill()
            holder.wait(PATIENCE_S)
