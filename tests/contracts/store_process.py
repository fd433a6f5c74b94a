"""A process of its own that uses a store of the contract suite as it is told, one line at a time.

Run as ``python store_process.py BACKEND FOLDER PORT``, with the tests' folders on the path. Each line on its stdin is a
JSON list: ``["put", KEY, EPOCH, SEEN]`` (``SEEN``: the epoch that this writer saw, or null), ``["get", KEY]``,
``["fork"]`` or ``["close"]``; each is answered by a line of JSON.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from store_backends import BACKENDS, Backend, NetworkedBackend, ask, entry, until, version

from coatcheck.replication.entry import Entry
from coatcheck.stores.port import Accepted, Refused, Store

END_TIMEOUT_S = 60.0


async def _obey(store: Store, words: list[Any]) -> object:
    if words[0] == "fork":
        return _fork_and_end()
    operation, key = words[0], bytes.fromhex(words[1])
    if operation == "get":
        found = await ask(store.get, key)
        return found.version.epoch if isinstance(found, Entry) else found and str(found)
    epoch, seen = words[2], words[3]
    answer = await ask(store.put, key, version(seen) if seen else None, entry(version(epoch), life_ms=600_000))
    return {Accepted: "accepted", Refused: "refused"}.get(type(answer), str(answer))


def _fork_and_end() -> int:
    """A child that inherits everything and ends as Python ends, closing what it finds."""
    if (child := os.fork()) == 0:
        sys.exit(0)
    return os.waitpid(child, 0)[1]


async def _main(backend: Backend) -> None:
    store = backend.client()
    await store.open()
    await until(lambda: store.reachable)
    print(json.dumps("open"), flush=True)
    loop = asyncio.get_running_loop()
    while line := await loop.run_in_executor(None, sys.stdin.readline):
        words = json.loads(line)
        if words == ["close"]:
            break
        print(json.dumps(await _obey(store, words)), flush=True)
    await store.aclose()
    print(json.dumps("closed"), flush=True)


class StoreProcess:
    """The test's end of such a process."""

    def __init__(self, backend: Backend) -> None:
        port = backend.port if isinstance(backend, NetworkedBackend) else 0
        name = next(name for name, kind in BACKENDS.items() if type(backend) is kind)
        command = [sys.executable, __file__, name, str(backend.tmp_path), str(port)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}  # for ports.py
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)
        assert self._answer() == "open"

    def put(self, key: bytes, epoch: int, seen: int | None = None) -> str:
        answer = self._ask("put", key.hex(), epoch, seen)
        assert isinstance(answer, str)
        return answer

    def get(self, key: bytes) -> object:
        """The epoch that is stored; ``None`` if nothing is."""
        return self._ask("get", key.hex())

    def fork(self) -> None:
        """Let it fork a child that ends at once."""
        assert self._ask("fork") == 0

    def close(self) -> None:
        """Close the store and end, in order."""
        assert self._ask("close") == "closed"
        assert self._process.wait(END_TIMEOUT_S) == 0

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate(timeout=END_TIMEOUT_S)

    def _ask(self, *words: object) -> object:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words).encode() + b"\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> object:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        assert line, "the process ended"
        return json.loads(line)


if __name__ == "__main__":
    chosen = BACKENDS[sys.argv[1]](Path(sys.argv[2]))
    if isinstance(chosen, NetworkedBackend):
        chosen.port = int(sys.argv[3])
    asyncio.run(_main(chosen))
