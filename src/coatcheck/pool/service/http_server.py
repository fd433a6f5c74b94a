"""Serves an ASGI app with uvicorn until SIGTERM or Ctrl-C, and says where it listens."""

from __future__ import annotations

import contextlib
import signal
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Final

from coatcheck.errors import ConfigError
from coatcheck.host_port import format_host_port, parse_host_port

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
    certificate: Path | None = None,
    private_key: Path | None = None,
    stopping: Callable[[], None] = lambda: None,
) -> None:
    """Serve; ``started`` is called with the URL once connections are accepted, ``stopping`` when they are no longer.

    Raises:
        ConfigError: uvicorn is missing, the address is taken, or the certificate cannot be read.
    """
    try:
        import uvicorn

        from coatcheck.pool.service.http_connection import BoundedConnection
    except ImportError:
        raise ConfigError("uvicorn is missing; pip install 'coatcheck[pool-service]'") from None

    host, port = parse_host_port(listen, "listen")
    listener = _listen(host, port)
    scheme = "https" if certificate else "http"
    url = f"{scheme}://{format_host_port(host, listener.getsockname()[1])}"

    config = uvicorn.Config(
        app,
        # h11 bounds what a sender can make us hold before the app sees anything.
        http=BoundedConnection,
        ws="none",
        log_level="warning",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=STOP_GRACE_S,
        ssl_certfile=certificate,
        ssl_keyfile=private_key,
    )
    try:
        _server(config, lambda: started(url), stopping).run(sockets=[listener])
    except OSError as error:
        raise ConfigError(f"the server cannot start: {error}") from None
    finally:
        listener.close()


def _server(config: Any, started: Callable[[], None], stopping: Callable[[], None]) -> Any:
    import uvicorn

    class PoolHttpServer(uvicorn.Server):
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

    return PoolHttpServer(config)


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
