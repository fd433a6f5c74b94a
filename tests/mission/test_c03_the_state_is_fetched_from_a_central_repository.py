"""C3: "Or the state is fetched from a central repository," """

from __future__ import annotations

from pathlib import Path

from tls.farm import TLS_1_2, TLS_1_3, Client, Servers


def test_every_server_fetches_from_the_same_place(certificates: Path, store: str, servers: Servers) -> None:
    three = servers(store, "threads", names="web-1 web-2 web-3")
    for version in (TLS_1_2, TLS_1_3):
        client = Client(certificates, version)
        said = [client.visit(three[at % 3]) for at in range(6)]
        assert [each["server"] for each in said] == ["web-1", "web-2", "web-3"] * 2
        assert [each["reused"] for each in said] == [False] + [True] * 5
