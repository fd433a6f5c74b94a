"""The process from which the others of a farm are forked: ``coatcheck.farm.processes.fork_server FD PARENT``.

To import this package takes Python longer than all else that a process of a farm does before it is ready. So one
process imports it, once, and does nothing else: it has one thread, opens nothing, and knows no secret. What is forked
from it becomes a child of the supervisor, which adopts orphans at that moment, and is told what it shall do on a
control channel of its own. A fork server may die at any time: only the next start notices.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import socket
import sys
from typing import Final

from coatcheck.farm.control.lines import FORK_SERVER_READY, FORK_WORD
from coatcheck.farm.processes.parent import die_with_parent
from coatcheck.farm.processes.process import MODULES, run_process

MAX_TITLE_BYTES: Final = 4096
MAX_DESCRIPTORS: Final = 4
"""The control channel, the pipes for the output and for the word to begin, and a director's listening socket."""


def main(argv: list[str]) -> int:
    """Fork until the supervisor is gone."""
    if len(argv) != 2 or not all(each.isdecimal() for each in argv):
        sys.stderr.write("coatcheck.farm.processes.fork_server is started by `coatcheck serve`, not by hand\n")
        return 2
    requests = socket.socket(fileno=int(argv[0]))
    die_with_parent(int(argv[1]))
    for module in (*MODULES.values(), "uvloop", "setproctitle"):
        with contextlib.suppress(ImportError):
            importlib.import_module(module)
    gc.collect()
    gc.freeze()  # a collection in a forked process must not write to the pages that it shares with the others
    requests.send(FORK_SERVER_READY)
    while True:
        title, descriptors, _, _ = socket.recv_fds(requests, MAX_TITLE_BYTES, MAX_DESCRIPTORS)
        if not title:
            return 0
        new = _fork()
        if new is None:
            requests.close()
            control, output, word, *listeners = descriptors
            _take_over(title.decode(), output)
            return run_process(control, listeners) if _may_begin(word) else 0
        for descriptor in descriptors:
            os.close(descriptor)
        requests.send(b"%d" % new)


def _fork() -> int | None:
    """The process ID of a new process whose parent has ended, or ``None`` in that process itself."""
    reading, writing = os.pipe()
    between = os.fork()
    if between:
        os.close(writing)
        with io.FileIO(reading) as pipe:
            new = int(pipe.readall())
        os.waitpid(between, 0)  # from now on its child is the supervisor's
        return new
    os.close(reading)
    new = os.fork()
    if new:
        os.write(writing, b"%d" % new)
        os._exit(0)
    os.close(writing)
    return None


def _take_over(title: str, output: int) -> None:
    """Be a process of its own: a session, an output, a name in ``ps``."""
    os.setsid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.close(output)
    sys.argv = title.split(" ")
    if (module := sys.modules.get("setproctitle")) is not None:
        module.setproctitle(title)


def _may_begin(word: int) -> bool:
    """Wait for the supervisor's word; without it, another process was started in the place of this one."""
    with io.FileIO(word) as pipe:
        return pipe.read(len(FORK_WORD)) == FORK_WORD


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
