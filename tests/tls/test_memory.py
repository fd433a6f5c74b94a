"""Sharing keeps nothing of a handshake that is over. A slice: 20,000 were run once, and the memory stayed as it was."""

from __future__ import annotations

import gc
import ssl
import time
from pathlib import Path

from coatcheck.tls import SharedSessions, share_sessions

from .farm import HOST, KEY, PATIENCE_S, TLS_1_2, Client

WARM_UP, RESUMPTIONS = 300, 1000
MOST_KIB = 512
"""Half a KiB for each; a session that is kept would be more."""


def resident_kib() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def resume(server: ssl.SSLContext, client: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLObject:
    """One handshake in memory; answers the client's end."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=HOST, session=session)
    other = server.wrap_bio(to_server, to_client, server_side=True)
    done: set[ssl.SSLObject] = set()
    while len(done) < 2:
        for side in (one, other):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
    return one


def settle(shared: SharedSessions) -> None:
    until = time.monotonic() + PATIENCE_S
    while shared.status()["storing"]:
        assert time.monotonic() < until
        time.sleep(0.0002)


def test_resumptions_at_servers_in_turn_leave_nothing_behind(certificates: Path, tmp_path: Path) -> None:
    contexts, all_shared = [], []
    for name in ("web-1", "web-2"):
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificates / "server.pem")
        store = f"sqlite:///{tmp_path / 'tls.db'}"
        all_shared.append(share_sessions(context, store=store, server=name, keyring=KEY, fetch_timeout=10))
        contexts.append(context)
    client = Client(certificates, TLS_1_2).context
    # Of TLS 1.2 one session serves all: reading it from each connection leaks in Pythons before 3.13 (cpython #116810).
    session = resume(contexts[0], client, None).session
    before = 0
    for number in range(WARM_UP + RESUMPTIONS):
        if number == WARM_UP:
            before = resident_kib()
        at = number % 2
        settle(all_shared[1 - at])
        assert resume(contexts[at], client, session).session_reused
    grown = resident_kib() - before
    for shared in all_shared:
        settle(shared)
        assert shared.status()["ahead"] == 0
        shared.close()
    assert grown < MOST_KIB
