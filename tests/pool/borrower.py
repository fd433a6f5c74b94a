"""A process that borrows tokens of a shared store until it is killed, and keeps books of what it holds.

``python borrower.py URL KEY_HEX FOLDER SECONDS LEASE PER_USER USE_S USERS``. For each use it creates a file named after
the token, which must not exist: killed borrowers leave theirs, so a token that comes back after a kill is seen too. It
prints a line for each use that went well.
"""

from __future__ import annotations

import hashlib
import os
import sys
import time
import uuid
from pathlib import Path

from coatcheck.pool import LeaseLost, PoolTimeout, TokenPool

POOL = (
    "coatcheck.pool",
    "coatcheck.pool.stores.postgresql",
    "coatcheck.pool.stores.redis",
    "coatcheck.pool.stores.sqlite",
)
"""What a process imports for its pool, at the latest when that opens its store."""


def main() -> None:
    url, key, folder, seconds, lease, per_user, use_s, users = sys.argv[1:9]
    pool = TokenPool(
        lambda user: f"{user} {uuid.uuid4()}",
        store=url,
        key=bytes.fromhex(key),
        per_user=int(per_user),
        lease=lease,
        login_timeout=lease,
        max_uses=1_000_000,
        login_rate=None,
        wait="20s",
    )
    books = Path(folder)
    until = time.monotonic() + float(seconds)
    turn = os.getpid()
    while time.monotonic() < until:
        turn += 1
        user = f"user-{turn % int(users)}"
        try:
            with pool.lease(user) as held:
                page = books / hashlib.sha256(held.token.encode()).hexdigest()
                try:
                    page.touch(exist_ok=False)
                except FileExistsError:
                    print("DOUBLE", user, flush=True)
                    raise SystemExit(3) from None
                time.sleep(float(use_s))
                page.unlink()
                if turn % 7 == 0:
                    held.renew(f"{user} {uuid.uuid4()}")
            print("used", flush=True)
        except LeaseLost:
            print("late", flush=True)
        except PoolTimeout:
            print("STARVED", user, flush=True)
            raise SystemExit(4) from None
    pool.close()


if __name__ == "__main__":
    main()
