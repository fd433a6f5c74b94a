"""C8: "Retrieved state is purged from where it was, so that no other server can get it again." """

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tls.farm import TLS_1_3, Client, Servers


@pytest.mark.parametrize("mode", ["threads", "uvloop"])
def test_what_one_server_got_no_other_gets(mode: str, certificates: Path, store: str, servers: Servers) -> None:
    three = servers(store, mode, names="web-1 web-2 web-3")
    client = Client(certificates, TLS_1_3)
    client.visit(three[0])
    session = client.session
    assert client.visit(three[1], session=session)["reused"] is True
    gone = three[2].status()["gone"]
    assert client.visit(three[2], session=session)["reused"] is False
    assert three[2].status()["gone"] == gone + 1
    assert client.visit(three[0], session=session)["reused"] is False


def test_of_servers_that_ask_at_once_one_gets_it(certificates: Path, store: str, servers: Servers) -> None:
    three = servers(store, "threads", names="web-1 web-2 web-3")
    client = Client(certificates, TLS_1_3)
    client.visit(three[0])
    session, resumed = client.session, []

    def race(port: int) -> None:
        resumed.append(client.ask(port, session=session)["reused"])

    threads = [threading.Thread(target=race, args=(three[at % 3].port,)) for at in range(30)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(resumed) == [False] * 29 + [True]
