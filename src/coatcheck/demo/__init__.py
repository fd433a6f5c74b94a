"""``coatcheck demo``: a farm with a small shop, and a tour that kills parts of it."""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
import tempfile
from collections.abc import Callable
from typing import Final

from coatcheck.demo.tour import TourReport, report, tell
from coatcheck.errors import ConfigError
from coatcheck.farm.serve import EXIT_CONFIG, WhenReady, run_farm
from coatcheck.farm.settings.configuration import load_settings
from coatcheck.farm.supervision.console import Console

SHOP: Final = "coatcheck.demo.shop:app"
PORTS_TO_TRY: Final = 20


def run_demo(
    port: int,
    run_dir: str | None,
    tour_of: int | None,
    when_ready: WhenReady | None = None,
    shown: Callable[[TourReport], str] | None = None,
) -> int:
    """Run the shop until Ctrl-C, or take ``tour_of`` shoppers through the tour; returns the exit code.

    ``when_ready``: as for :func:`run_farm`. ``shown``: writes what the tour found; a table, if nobody says otherwise.
    """
    try:
        import starlette  # noqa: F401
    except ImportError:
        sys.stderr.write("coatcheck: the demo shop needs starlette; pip install 'coatcheck[demo]'\n")
        return EXIT_CONFIG
    with contextlib.ExitStack() as stack:
        if run_dir is None and tour_of is not None:
            run_dir = stack.enter_context(tempfile.TemporaryDirectory(prefix="coatcheck-"))
        flags = {"app": SHOP, "web": 3, "session_servers": 2, "insecure_localhost": True, "run_dir": run_dir}
        try:
            settings = load_settings(None, {}, {**flags, "port": _free_port(port)})
        except ConfigError as error:
            sys.stderr.write(f"coatcheck: {error}\n")
            return EXIT_CONFIG
        console = Console()
        story = functools.partial(tell, shoppers=tour_of, shown=shown or report) if tour_of is not None else None
        return run_farm(settings, console, story, _without_settings(), when_ready)


def _without_settings() -> dict[str, str]:
    """The demo is the same everywhere: a key ring that was set for another farm stays out of it."""
    return {name: value for name, value in os.environ.items() if not name.startswith("COATCHECK_")}


def _free_port(wanted: int) -> int:
    """The wanted port, or the next free one."""
    for port in range(wanted, min(wanted + PORTS_TO_TRY, 65536)):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
                probe.listen(1)
            except OSError:
                continue
            return port
    return 0
