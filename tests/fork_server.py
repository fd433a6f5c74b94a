"""A process that has imported modules, and from which others are forked: ``fork_server.py FD MODULE ...``.

:mod:`forked` starts it, and asks on the socket FD. It has one thread, opens nothing, and ends when nobody can ask any
more: with the process that started it, however that one ends.
"""

from __future__ import annotations

import gc
import importlib
import json
import os
import runpy
import signal
import socket
import sys
from pathlib import Path
from typing import Any, Final

from coatcheck.farm.processes.fork_server import _fork

MAX_REQUEST_BYTES: Final = 1 << 18
"""Arguments and an environment."""


def main(requests: socket.socket, modules: list[str]) -> None:
    """Fork for each request; returns also in what was forked, when that has run its program."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal interrupts all of its processes; the tests then clean up
    del sys.path[0]  # the folder of this file, which a forked process does not have there
    for module in modules:
        importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a forked process must not write to the pages that it shares with the others
    while True:
        request, descriptors, _, _ = socket.recv_fds(requests, MAX_REQUEST_BYTES, 3)
        if not request:
            return
        reading, writing = os.pipe()
        new = _fork()
        if new is None:
            break
        for each in (reading, writing, *descriptors):
            os.close(each)
        requests.send(b"%d" % new)
    requests.close()
    os.close(writing)
    os.read(reading, 1)  # ends when nobody else has the pipe: only then it is a child of the test process
    os.close(reading)
    _run(json.loads(request), descriptors)


def _run(wanted: dict[str, Any], descriptors: list[int]) -> None:
    """Be what ``python ARGUMENTS`` would be. ``descriptors``: input, output, errors."""
    for number, descriptor in enumerate(descriptors):
        os.dup2(descriptor, number)
        os.close(descriptor)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if wanted["session"]:
        os.setsid()
    os.chdir(wanted["folder"])
    os.umask(wanted["umask"])
    os.environ.clear()
    os.environ.update(wanted["environment"])
    program, *arguments = wanted["arguments"]
    if program == "-m":
        sys.path.insert(0, str(Path.cwd()))
        sys.argv = arguments
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
    else:
        sys.path.insert(0, str(Path(program).resolve().parent))
        sys.argv = [program, *arguments]
        runpy.run_path(program, run_name="__main__")


if __name__ == "__main__":
    main(socket.socket(fileno=int(sys.argv[1])), sys.argv[2:])
