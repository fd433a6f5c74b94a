"""A process of callers that never stop: it calls the provider through a shared pool until somebody kills it.

``python chaos_borrower.py STORE_URL WSDL OUTPUT THREADS USERS``; a line of JSON for each call goes to OUTPUT.
"""

from __future__ import annotations

import json
import random
import sys
import threading
import time
from pathlib import Path
from typing import Any

import zeep

from coatcheck.pool import PoolError, TokenPool
from coatcheck.pool.adapters.zeep import SessionPlugin, ZeepSessions

PASSWORD = "secret"
KEY = "m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4"
PER_USER = 4
LEASE_S = 6
WAIT_S = 15
UPSTREAM_IDLE_S = 2
"""Shorter than a lease and a login: a session whose borrower was killed is gone before its slot is free again, also
where its last call reaches the upstream some seconds late."""


class Borrower:
    """One process: a pool on the shared store, a SOAP client, and a file for the outcomes."""

    def __init__(self, store: str, wsdl: str, output: Path) -> None:
        self.plugin = SessionPlugin()
        self.service = zeep.Client(wsdl, plugins=[self.plugin]).service
        self.pool = TokenPool(
            login=lambda user: self.plugin.sign_in(self.service.WhoAmI, user, PASSWORD),
            logout=lambda user, token: self.plugin.sign_out(self.service.Logout, token),
            store=store,
            key=KEY,
            name="chaos",
            per_user=PER_USER,
            lease=LEASE_S,
            wait=WAIT_S,
            login_timeout=LEASE_S,
            logout_timeout=LEASE_S,
            login_rate=None,
        )
        self.sessions = ZeepSessions(self.plugin, self.pool)
        self.output = output.open("a", buffering=1)
        self.lock = threading.Lock()

    def work(self, users: int, name: str) -> None:
        """Call for ever."""
        while True:
            began = time.monotonic()
            outcome: dict[str, Any] = {"caller": name, "error": None, "by_pool": False}
            text = str(random.random())
            try:
                assert self.sessions.call(f"USER{random.randrange(users)}", self.service.Echo, text) == text
            except Exception as error:  # noqa: BLE001 - told in the output, which the test reads
                cause = f" <- {error.__cause__}" if error.__cause__ else ""
                outcome["error"] = f"{type(error).__name__}: {error}{cause}"
                outcome["by_pool"] = not isinstance(error, zeep.exceptions.Fault)
                outcome["pool_error"] = isinstance(error, PoolError)
            outcome["took_s"] = round(time.monotonic() - began, 3)
            with self.lock:
                self.output.write(json.dumps(outcome) + "\n")


def main() -> None:
    store, wsdl, output, threads, users = sys.argv[1:]
    borrower = Borrower(store, wsdl, Path(output))
    for number in range(int(threads)):
        name = f"{Path(output).stem}/{number}"
        threading.Thread(target=borrower.work, args=(int(users), name), daemon=True).start()
    threading.Event().wait()


if __name__ == "__main__":
    main()
