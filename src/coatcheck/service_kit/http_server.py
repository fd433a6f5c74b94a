"""Serves an ASGI app with uvicorn until SIGTERM or Ctrl-C, and says where it listens."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import signal
import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final, cast

import uvicorn

from coatcheck.errors import ConfigError
from coatcheck.host_port import format_host_port, is_loopback, parse_host_port
from coatcheck.service_kit.http_connection import BoundedConnection, KnowsItsConnection

MAX_CONNECTIONS: Final = 1000
BACKLOG: Final = 512
KEEP_ALIVE_S: Final = 30
STOP_GRACE_S: Final = 5
STOP_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM)
MAX_SHOWN: Final = 80


def serve_app(
    app: Any,
    listen: str,
    started: Callable[[str], None],
    tls: ssl.SSLContext | None = None,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve; ``started`` is called with the URL once connections are accepted, ``stopping`` when they are no longer.

    Raises:
        ConfigError: the address is taken, or the app's own start failed.
    """
    host, port = parse_host_port(listen, "listen")
    listener = _listen(host, port)
    url = f"{'https' if tls else 'http'}://{format_host_port(host, listener.getsockname()[1])}"
    server = _server(server_config(app, tls), lambda: started(url), stopping)
    try:
        server.run(sockets=[listener])
    except OSError as error:
        raise ConfigError(f"the server cannot start: {error}") from None
    finally:
        listener.close()
    if not server.started:
        raise ConfigError("the service cannot start; the log above has the reason")


async def serve_on_this_loop(
    app: Any,
    listen: str,
    started: Callable[[], None],
    stopping: asyncio.Event,
    max_connections: int = MAX_CONNECTIONS,
) -> None:
    """The same in an event loop that runs already, in the clear, until ``stopping``.

    Raises:
        ConfigError: the address is taken, or the app's own start failed.
    """
    host, port = parse_host_port(listen, "listen")
    listener = _listen(host, port)
    server = _server(server_config(app, max_connections=max_connections), started, lambda: None)

    async def stop() -> None:
        await stopping.wait()
        server.should_exit = True

    stopper = asyncio.create_task(stop())
    try:
        await server.serve(sockets=[listener])
    finally:
        stopper.cancel()
        listener.close()
    if not server.started:
        raise ConfigError("the service cannot start; the log above has the reason")


def server_config(
    app: Any, tls: ssl.SSLContext | None = None, max_connections: int = MAX_CONNECTIONS
) -> uvicorn.Config:
    """How our services are served, with every bound."""
    config = uvicorn.Config(
        KnowsItsConnection(app),
        # h11 bounds what a sender can make us hold before the app sees anything.
        http="h11",
        ws="none",
        lifespan="on",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=max_connections,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_GRACE_S,
    )
    config.load()
    config.http_protocol_class = cast(Any, functools.partial(BoundedConnection, config.http_protocol_class))
    config.ssl = tls
    return config


def tls_for(
    listen: str, certificate: Path | None, private_key: Path | None, insecure: bool, authority: Path | None = None
) -> ssl.SSLContext | None:
    """What a service that listens there speaks TLS with; ``None``: it is asked in the clear, on this machine alone.

    ``insecure``: also from other machines. ``authority``: a file with the certificate of who signs those of callers,
    which they may show.

    Raises:
        ConfigError: secrets would travel in the clear, or a file cannot be read.
    """
    if bool(certificate) != bool(private_key):
        raise ConfigError("tls-certificate and tls-key: both are needed, or none")
    host = parse_host_port(listen, "listen")[0]
    if certificate is None or private_key is None:
        if authority is not None:
            raise ConfigError("tls-authority: only with tls-certificate and tls-key")
        if not (is_loopback(host) or insecure):
            raise ConfigError(
                f"listen: {host} can be reached from other machines, and tokens would go there in the clear; "
                "give --tls-certificate and --tls-key, or --allow-insecure"
            )
        return None
    try:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=authority)
        context.load_cert_chain(certificate, private_key)
    except (OSError, ssl.SSLError) as wrong:
        raise ConfigError(f"tls-certificate, tls-key or tls-authority cannot be read: {wrong}") from None
    if authority is not None:
        context.verify_mode = ssl.CERT_OPTIONAL
    return context


def _server(config: uvicorn.Config, started: Callable[[], None], stopping: Callable[[], None]) -> uvicorn.Server:
    class BoundedServer(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                started()

        async def shutdown(self, sockets: Any = None) -> None:
            # Before uvicorn waits for what is under way.
            stopping()
            await super().shutdown(sockets)

        @contextlib.contextmanager
        def capture_signals(self) -> Iterator[None]:
            # uvicorn raises the signal again when it is done; being told to stop is no failure.
            before = {number: signal.signal(number, self.handle_exit) for number in STOP_SIGNALS}
            try:
                yield
            finally:
                for number, handler in before.items():
                    signal.signal(number, handler)

    return BoundedServer(config)


def _listen(host: str, port: int) -> socket.socket:
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind((host, port))
            listener.listen(BACKLOG)
        except OSError:
            listener.close()
            raise
    except OSError as error:
        raise ConfigError(f"cannot listen on {format_host_port(host, port)}: {error.strerror or error}") from None
    return listener
