"""C1: "A client's message with a session identifier reaches a server that has no such secure session. The server tries
to retrieve the session's state; if it gets it, it establishes the secure session from it without a negotiation with the
client; if not, it does the full handshake."

Here the state of a session that is being resumed; that of a connection that is in use is the matter of C6 and C7.
"""

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tls.farm import VERSIONS, Client, Servers

MODES = ["threads", "uvloop"]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_with_the_state_there_is_no_negotiation_and_without_it_there_is(
    mode: str, version: ssl.TLSVersion, certificates: Path, redis_url: str, servers: Servers
) -> None:
    one, other = servers(redis_url, mode)
    client = Client(certificates, version)
    assert client.visit(one)["reused"] is False
    before = other.status()
    found = client.visit(other)
    after = other.status()
    assert (found["server"], found["reused"]) == ("web-2", True)
    assert (after["offered"] - before["offered"], after["resumed"] - before["resumed"]) == (1, 1)
    stranger = servers(redis_url, mode, names="web-3", farm="another")[0]
    assert client.visit(stranger)["reused"] is False, "it gets no state, so it negotiates"
