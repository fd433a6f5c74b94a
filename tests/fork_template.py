"""The process from which the tests fork those of which they start many: ``fork_template.py FD MODULE ...``.

To start an interpreter and to import what a command needs takes longer than what most tests ask of it. So one process
imports it, once, and does nothing else: it has one thread and opens nothing. Started by :mod:`forked`.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import socket
import sys
import time
from pathlib import Path
from typing import Any, Final

from coatcheck.farm.processes.fork_server import _fork

READY: Final = b"ready"
MAX_BYTES: Final = 2**17
"""Of what is asked for: arguments and an environment."""


def main(descriptor: int, modules: list[str]) -> None:
    """Fork until the tests are over; returns in each forked process, too, when that has ended."""
    requests = socket.socket(fileno=descriptor)
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a forked process must not write to the pages that it shares with the others
    requests.send(READY)
    while True:
        wanted, descriptors, _, _ = socket.recv_fds(requests, MAX_BYTES, 3)
        if not wanted:
            return
        new = _fork()
        if new is None:
            requests.close()
            _run(json.loads(wanted), descriptors)
            return
        for each in descriptors:
            os.close(each)
        requests.send(b"%d" % new)


def _run(wanted: dict[str, Any], descriptors: list[int]) -> None:
    """Be what ``python -m MODULE ARGUMENT ...`` would be."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    if wanted["session"]:
        os.setsid()
    os.umask(wanted["umask"])
    os.chdir(wanted["directory"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    time.tzset()
    sys.path[0] = str(Path.cwd())
    sys.argv[1:] = wanted["arguments"]
    runpy.run_module(wanted["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2:])
