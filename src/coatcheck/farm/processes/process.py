"""The entry of every process of a farm: ``python -m coatcheck.farm.processes.process ROLE NAME CONTROL_FD``.

The supervisor starts it. What it shall do comes as the first line on the control channel, since it holds
secrets, which ``ps`` must not show.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import os
import socket
import sys
from collections.abc import Awaitable, Callable, Sequence
from typing import Final

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.farm.control.lines import MAX_LINE_BYTES
from coatcheck.farm.control.log_lines import LogOrders, MarkedFormatter
from coatcheck.farm.control.process_control import ProcessControl
from coatcheck.farm.plan.roles import (
    DirectorRole,
    MetricsRole,
    Role,
    SessionServerRole,
    SessionServiceRole,
    WebServerRole,
)
from coatcheck.farm.processes.descriptors import raise_limit
from coatcheck.farm.processes.parent import die_with_parent

MODULES: Final[dict[type, str]] = {
    SessionServerRole: "coatcheck.farm.processes.session_server_process",
    WebServerRole: "coatcheck.farm.processes.web_process",
    SessionServiceRole: "coatcheck.farm.processes.session_service_process",
    DirectorRole: "coatcheck.farm.processes.director_process",
    MetricsRole: "coatcheck.farm.processes.metrics_process",
}

EXIT_FAILED: Final = 3


def main(argv: list[str]) -> int:
    """Run one process until it is told to stop."""
    if len(argv) != 3 or not argv[2].isdecimal():
        sys.stderr.write("coatcheck.farm.processes.process is started by `coatcheck serve`, not by hand\n")
        return 2
    return run_process(int(argv[2]))


def run_process(control_fd: int, listeners: Sequence[int] = ()) -> int:
    """Do what the first line on the control channel says. ``listeners``: what a forked process was given to listen."""
    control = socket.socket(fileno=control_fd)
    order = msgspec.json.decode(_first_line(control))
    die_with_parent(order["parent"])
    os.environ.clear()
    os.environ.update(order["environment"])
    raise_limit()
    _configure_logging(msgspec.convert(order["log"], LogOrders))
    role: Role = msgspec.convert(order["role"], Role)
    if isinstance(role, DirectorRole) and listeners:
        role = msgspec.structs.replace(role, listener=listeners[0])
    # Each role imports only what it needs: a session server never loads a web framework.
    run = importlib.import_module(MODULES[type(role)]).run
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_run(run, role, control))


async def _run(run: Callable[[Role, ProcessControl], Awaitable[None]], role: Role, sock: socket.socket) -> int:
    control = ProcessControl(sock)
    await control.open()
    try:
        await run(role, control)
    except ConfigError as error:
        control.failed(str(error), config=True)
        await control.aclose()
        return EXIT_FAILED
    except OSError as error:
        control.failed(f"{error.strerror or error}", config=False)
        await control.aclose()
        return EXIT_FAILED
    return 0


def _first_line(sock: socket.socket) -> bytes:
    """Read byte by byte: what follows the line belongs to the event loop."""
    line = bytearray()
    while (byte := sock.recv(1)) != b"\n":
        line += byte
        if not byte or len(line) > MAX_LINE_BYTES:
            raise SystemExit("the control channel ended")
    return bytes(line)


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:
        return asyncio.new_event_loop
    factory: Callable[[], asyncio.AbstractEventLoop] = uvloop.new_event_loop
    return factory


def _configure_logging(orders: LogOrders) -> None:
    """Our own loggers and the web server's; the root logger is the app's to configure."""
    handler = logging.StreamHandler()
    plain = logging.Formatter("%(levelname)s %(name)s: %(message)s")
    handler.setFormatter(MarkedFormatter(orders.mark) if orders.mark else plain)
    least = logging.getLevelNamesMapping()[orders.level.upper()]
    for name, level in (
        ("coatcheck", least),
        ("uvicorn", max(least, logging.WARNING)),
        ("_granian", max(least, logging.WARNING)),
    ):
        logger = logging.getLogger(name)
        logger.setLevel(level)
        logger.addHandler(handler)
        logger.propagate = False


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
