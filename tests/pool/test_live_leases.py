"""What a process believes to hold in a shared store has a bound, and ends with the lease."""

from __future__ import annotations

import time
from pathlib import Path

from coatcheck.pool import TokenPool
from coatcheck.pool.live import PRUNE_FROM, LiveLeases


def test_leases_that_others_ended_are_forgotten_after_their_deadline() -> None:
    now = [0.0]
    live = LiveLeases(lambda: now[0])
    for fencing in range(10 * PRUNE_FROM):
        now[0] += 1.0
        live.add("ann", fencing, now[0] + 60.0)
        assert len(live._deadlines) <= PRUNE_FROM
    assert len(live) == 60
    live.discard(("ann", 10 * PRUNE_FROM - 1))
    live.discard(("ann", 0))
    assert len(live) == 59


def test_leases_that_are_held_are_all_remembered() -> None:
    live = LiveLeases(lambda: 0.0)
    for fencing in range(3 * PRUNE_FROM):
        live.add("ann", fencing, 60.0)
    assert len(live) == 3 * PRUNE_FROM


def test_closing_does_not_wait_for_what_another_process_gave_back(tmp_path: Path) -> None:
    def pool() -> TokenPool:
        return TokenPool(
            lambda user: "t",
            store=f"sqlite:///{tmp_path}/tokens.db",
            key=b"0123456789abcdef" * 2,
            lease="2s",
        )

    first, second = pool(), pool()
    held = first.lease("ann").acquire()
    resumed = second.resume("ann", held.fencing)
    assert resumed.token == "t"
    assert second.held_leases() == 1
    held.release()
    began = time.monotonic()
    second.close(timeout=120)
    assert time.monotonic() - began < 60
    first.close()
