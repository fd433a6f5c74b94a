"""Try the director by hand: ``python -m coatcheck.director --listen HOST:PORT --server web-1=HOST:PORT#tag``."""

from __future__ import annotations

import argparse
import asyncio
import gc
import json
import logging
import re
import signal
import sys

from coatcheck.director.embedded import EmbeddedDirector
from coatcheck.director.options import DirectorOptions, WebServer
from coatcheck.errors import ConfigError
from coatcheck.host_port import format_host_port, parse_host_port


def _address(text: str) -> tuple[str, int]:
    try:
        return parse_host_port(text, "an address")
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _server(text: str) -> WebServer:
    match = re.fullmatch(r"(?P<name>[^=]+)=(?P<address>[^#]+)(?:#(?P<tag>.+))?", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=HOST:PORT#TAG")
    host, port = _address(match["address"])
    return WebServer(match["name"], host, port, match["tag"] or match["name"])


async def _serve(options: DirectorOptions, grace_s: float) -> None:
    director = EmbeddedDirector(options)
    await director.start()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    sys.stdout.write(f"listening on {format_host_port(*director.address)}\n")
    sys.stdout.flush()
    # What lives from here on lives to the end: the collector need not look at it again.
    gc.freeze()
    await stop.wait()
    status = director.status()
    await director.stop(grace_s)
    sys.stdout.write(json.dumps(status) + "\n")


def main() -> int:
    """Run a director until SIGINT or SIGTERM; then print its status as JSON."""
    parser = argparse.ArgumentParser(prog="python -m coatcheck.director")
    parser.add_argument("--listen", type=_address, default=("127.0.0.1", 8000), metavar="HOST:PORT")
    parser.add_argument("--server", type=_server, action="append", required=True, metavar="NAME=HOST:PORT#TAG")
    parser.add_argument("--grace-s", type=float, default=5.0)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    host, port = arguments.listen
    options = DirectorOptions(servers=tuple(arguments.server), host=host, port=port)
    try:
        import uvloop
    except ImportError:
        run = asyncio.run
    else:
        run = uvloop.run
    try:
        run(_serve(options, arguments.grace_s))
    except (ConfigError, OSError) as error:
        sys.stderr.write(f"coatcheck: {error}\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
