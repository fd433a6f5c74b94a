"""Sharing keeps nothing of a handshake that is over. A slice: 20,000 were run once, and the memory stayed as it was."""

from __future__ import annotations

import gc
import ssl
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from coatcheck.tls import SharedSessions, share_sessions

from .farm import KEY, PATIENCE_S, TLS_1_2, Client
from .in_memory import CONTEXTS, Pair

WARM_UP, RESUMPTIONS = 300, 1000
MOST_KIB = 512
"""Half a KiB for each; a session that is kept would be more."""


def resident_kib() -> int:
    gc.collect()
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4


def settle(shared: SharedSessions) -> None:
    until = time.monotonic() + PATIENCE_S
    while shared.status()["storing"]:
        assert time.monotonic() < until
        time.sleep(0.0002)


@pytest.mark.parametrize("make", CONTEXTS.values(), ids=CONTEXTS)
def test_resumptions_at_servers_in_turn_leave_nothing_behind(
    make: Callable[[], ssl.SSLContext], certificates: Path, tmp_path: Path
) -> None:
    contexts, all_shared = [], []
    for name in ("web-1", "web-2"):
        context = make()
        context.load_cert_chain(certificates / "server.pem")
        store = f"sqlite:///{tmp_path / 'tls.db'}"
        all_shared.append(share_sessions(context, store=store, server=name, keyring=KEY, fetch_timeout=10))
        contexts.append(context)
    client = Client(certificates, TLS_1_2).context
    # Of TLS 1.2 one session serves all: reading it from each connection leaks in Pythons before 3.13 (cpython #116810).
    session = Pair(contexts[0], client).shake().client.session
    before = 0
    for number in range(WARM_UP + RESUMPTIONS):
        if number == WARM_UP:
            before = resident_kib()
        at = number % 2
        settle(all_shared[1 - at])
        assert Pair(contexts[at], client, session=session).shake().client.session_reused
    grown = resident_kib() - before
    for shared in all_shared:
        settle(shared)
        assert shared.status()["ahead"] == 0
        shared.close()
    assert grown < MOST_KIB
