"""Processes that share a pool and are killed at random moments: nobody ever holds a token that another one had."""

from __future__ import annotations

import random
import secrets
import subprocess
import tempfile
import time
from pathlib import Path

from coatcheck.pool import TokenPool
from forked import ForkedProcess

from .borrower import POOL

HERE = Path(__file__).resolve().parent
RUN_S = 5.0
BORROWERS = 4
KILLS = 7


def test_killed_borrowers_leave_no_double_use_and_no_lost_slot(store_url: str) -> None:
    key = secrets.token_bytes(32)
    dice = random.Random(7)
    ended: list[tuple[int, str]] = []
    with tempfile.TemporaryDirectory() as books:
        arguments = [store_url, key.hex(), books, str(RUN_S), "1s", "2", "0.03", "2"]

        def borrow() -> ForkedProcess:
            return ForkedProcess(str(HERE / "borrower.py"), *arguments, loaded=POOL, stderr=subprocess.STDOUT)

        borrowers = [borrow() for _ in range(BORROWERS)]
        try:
            until = time.monotonic() + RUN_S
            for _ in range(KILLS):
                time.sleep(dice.uniform(0.3, 0.9))
                victim = borrowers.pop(0)
                early = victim.poll()
                victim.kill()
                output = victim.communicate(timeout=20)
                ended.append((0 if early is None else early, output))
                borrowers.append(borrow())
                if time.monotonic() > until:
                    break
            for borrower in borrowers:
                output = borrower.communicate(timeout=RUN_S + 40)
                ended.append((borrower.wait(), output))
        finally:
            for borrower in borrowers:
                if borrower.poll() is None:
                    borrower.kill()
                    borrower.wait(60)
        assert [(code, text) for code, text in ended if code or "DOUBLE" in text or "STARVED" in text] == []
        assert sum(text.count("used") for _, text in ended) > 50

    pool = TokenPool(lambda user: "fresh", store=store_url, key=key, per_user=2, lease="1s", login_timeout="1s")
    time.sleep(1.1)
    pool.clean_up()
    for user, stats in pool.stats().items():
        assert (stats.leased, stats.logins, stats.waiting) == (0, 0, 0), "every slot came back"
        assert stats.lost_total >= 0
        with pool.lease(user, wait="2s") as first, pool.lease(user, wait="2s") as second:
            assert first.token != second.token
    pool.close()
