"""C9: "The session was first established between the client and another server." """

from __future__ import annotations

import os
import ssl
from pathlib import Path

import pytest

from coatcheck.tls.session_id import SessionIds, server_tag
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.secret import parse_key
from tls.farm import KEY, TLS_1_2, VERSIONS, Client, Servers


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_its_maker_is_another_process_which_may_be_dead(
    version: ssl.TLSVersion, certificates: Path, redis_url: str
) -> None:
    servers = Servers(certificates)
    try:
        first, other = servers(redis_url)
        client = Client(certificates, version)
        assert client.visit(first)["server"] == "web-1"
        first.stop()
        again = client.visit(other)
        assert (again["server"], again["reused"]) == ("web-2", True)
    finally:
        servers.stop()


def test_the_id_still_says_who_made_it(certificates: Path, redis_url: str, servers: Servers) -> None:
    """TLS 1.2 keeps the ID of a session: it names the first server, and the record the one that has it now."""
    one, other = servers(redis_url)
    client = Client(certificates, TLS_1_2)
    client.visit(one)
    assert client.visit(other)["reused"]
    assert client.session is not None
    found = SessionIds(KeyRing([parse_key(KEY, "key")]), "farm", "any", os.urandom).read(client.session.id)
    assert found is not None
    assert found.server == server_tag("web-1")
    assert client.visit(one)["reused"], "it moved back"
