"""What runs the app inside a web server: uvicorn, or granian."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from coatcheck.errors import ConfigError
from coatcheck.farm.plan.ports import BACKLOG, FRESH_SUFFIX, listen, move_into_place
from coatcheck.farm.plan.roles import LOOPBACK, WebServerRole
from coatcheck.farm.processes.front_door import HEALTH_PATH, App
from coatcheck.farm.processes.guard import Guard
from coatcheck.farm.processes.told_by_director import FromDirector

GRANIAN_POLL_S = 0.02
GRANIAN_START_TRIES = 500


def is_a_visit(record: logging.LogRecord) -> bool:
    """Keeps the directors' health checks, several a second, out of the access log."""
    return HEALTH_PATH not in record.getMessage()


async def serve_with_uvicorn(
    app: App, role: WebServerRole, stopping: asyncio.Event, started: Callable[[], None]
) -> None:
    """Serve until ``stopping``, then give open requests the role's grace.

    Raises:
        ConfigError: uvicorn is not installed, or the app's lifespan start-up failed.
    """
    try:
        import uvicorn
        from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
        from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
    except ImportError:
        raise ConfigError("server: uvicorn is not installed; pip install 'coatcheck[farm]'") from None

    guard = Guard(role.name, role.credential, unix=bool(role.address.path))

    def guarded(**made_for: Any) -> asyncio.Protocol:
        return guard.protocol(lambda: HttpToolsProtocol(**made_for))

    class AppHttpServer(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            started()

    if role.access_log:
        logging.getLogger("uvicorn.access").setLevel(logging.INFO)
        logging.getLogger("uvicorn.access").addFilter(is_a_visit)
    trusted = ProxyHeadersMiddleware(cast(Any, app), trusted_hosts=[LOOPBACK, *role.trusted_proxies])
    config = uvicorn.Config(
        cast(Any, FromDirector(cast(App, trusted))),
        http=cast(Any, guarded),
        loop="none",
        log_config=None,
        access_log=role.access_log,
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=max(1, round(role.stop_grace_s)),
        # The director keeps connections open for reuse; it must be the one to close them.
        timeout_keep_alive=75,
    )
    server = AppHttpServer(config)

    async def stop() -> None:
        await stopping.wait()
        server.should_exit = True

    stopper = asyncio.create_task(stop())
    try:
        await server.serve(sockets=[listen(role.address)])
    except SystemExit:
        raise ConfigError("app: its lifespan start-up failed; the log above has the reason") from None
    finally:
        stopper.cancel()


async def serve_with_granian(
    app: App, role: WebServerRole, stopping: asyncio.Event, started: Callable[[], None]
) -> None:
    """Serve until ``stopping``, on this very event loop.

    Raises:
        ConfigError: granian is not installed, or it ended before it served.
    """
    try:
        from granian.constants import Interfaces
        from granian.log import LogLevels
        from granian.server.embed import Server
        from granian.utils.proxies import wrap_asgi_with_proxy_headers
    except ImportError:
        raise ConfigError("server: granian is not installed; pip install 'coatcheck[granian]'") from None
    if not role.address.path:
        raise ConfigError("server: granian takes connections of a Unix socket only: it cannot check who comes by TCP")
    fresh = Path(role.address.path + FRESH_SUFFIX)
    fresh.unlink(missing_ok=True)
    server = Server(
        FromDirector(wrap_asgi_with_proxy_headers(app, trusted_hosts=[LOOPBACK, *role.trusted_proxies])),
        uds=fresh,
        backlog=BACKLOG,
        interface=Interfaces.ASGI,
        log_level=LogLevels.warning,  # an app that fails
        log_access=role.access_log,
    )
    logging.getLogger("granian.access").addFilter(is_a_visit)
    serving = asyncio.create_task(server.serve())
    try:
        await _answers(fresh, serving)
        move_into_place(role.address)
        server.bind_uds = None  # It would remove the socket, which may be its successor's by then.
        started()
        stop = asyncio.create_task(stopping.wait())
        await asyncio.wait({stop, serving}, return_when=asyncio.FIRST_COMPLETED)
        stop.cancel()
    finally:
        server.stop()  # type: ignore[no-untyped-call]
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(serving, role.stop_grace_s + 1)


async def _answers(path: Path, serving: asyncio.Task[None]) -> None:
    """Wait until a health check is answered: granian does not tell when it listens."""
    for _ in range(GRANIAN_START_TRIES):
        if serving.done():
            break
        try:
            reader, writer = await asyncio.open_unix_connection(str(path))
            writer.write(f"GET {HEALTH_PATH} HTTP/1.1\r\nhost: health\r\nconnection: close\r\n\r\n".encode())
            answered = await reader.readline()
            writer.close()
        except OSError:
            answered = b""
        if answered:
            return
        await asyncio.sleep(GRANIAN_POLL_S)
    raise ConfigError("app: granian did not start serving it; the log above has the reason")
