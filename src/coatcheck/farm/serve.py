"""Running a farm in the foreground, until a signal stops it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Final

from coatcheck.errors import ConfigError
from coatcheck.farm.operations.operations import Operations
from coatcheck.farm.operations.reload import check_reload, reload_on_change
from coatcheck.farm.settings.farm_settings import FarmSettings
from coatcheck.farm.supervision.console import Console
from coatcheck.farm.supervision.supervisor import FarmFailed, Supervisor
from coatcheck.host_port import is_loopback

EXIT_OK: Final = 0
EXIT_FAILED: Final = 1
EXIT_CONFIG: Final = 2
EXIT_INTERRUPTED: Final = 130

Story = Callable[[Supervisor], Awaitable[int]]
"""Something to do with a running farm; its exit code ends the farm."""

WhenReady = Callable[[str, Callable[[str], None]], None]
"""Is told the URL of a farm that has begun to serve, and what writes a line to its log."""


def run_farm(
    settings: FarmSettings,
    console: Console,
    story: Story | None = None,
    environ: Mapping[str, str] | None = None,
    when_ready: WhenReady | None = None,
) -> int:
    """Start the farm, serve until SIGINT or SIGTERM (or until ``story`` ends), stop it, return an exit code.

    ``when_ready`` is called once with the farm's URL, and with what writes a line to its log; it must not block.
    A second signal kills at once. Errors are one line on stderr: exit code 2 if the user can mend the
    configuration, else 1.
    """
    try:
        check_reload(settings)
        return asyncio.run(_run(Supervisor(settings, console, environ), story, when_ready))
    except ConfigError as error:
        console.close()
        sys.stderr.write(f"coatcheck: {error}\n")
        return EXIT_CONFIG
    except FarmFailed as error:
        console.close()
        sys.stderr.write(f"coatcheck: {error}\n")
        return EXIT_FAILED
    finally:
        console.close()


async def _run(farm: Supervisor, story: Story | None, when_ready: WhenReady | None) -> int:
    stopping = asyncio.Event()
    _install_signals(farm, stopping)
    operations = Operations(farm)
    starting = asyncio.create_task(farm.start(operations.answer))
    stopped = asyncio.create_task(stopping.wait())
    await asyncio.wait([starting, stopped], return_when=asyncio.FIRST_COMPLETED)
    if not starting.done():
        starting.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await starting
        return EXIT_OK
    await starting
    _announce(farm)
    if when_ready is not None:
        when_ready(farm.url, farm.console.say)
    code = EXIT_OK
    telling = asyncio.ensure_future(story(farm)) if story is not None else None
    reloading = asyncio.create_task(reload_on_change(farm, operations)) if farm.settings.reload else None
    waiting: list[asyncio.Future[Any]] = [each for each in (stopped, telling, reloading) if each is not None]
    try:
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if telling is not None:
            code = telling.result() if telling.done() else EXIT_INTERRUPTED
        if reloading is not None and reloading.done():
            reloading.result()
    finally:
        for task in waiting:
            task.cancel()
        if reloading is not None:
            await asyncio.wait([reloading])
        await farm.stop()
    farm.console.say("stopped")
    return code


def _install_signals(farm: Supervisor, stopping: asyncio.Event) -> None:
    loop = asyncio.get_running_loop()

    def stop() -> None:
        if stopping.is_set():
            farm.kill_all()
            farm.run_directory.release()
            os._exit(EXIT_INTERRUPTED)
        farm.console.say("stopping: open requests are finished first; once more to stop at once")
        stopping.set()

    def hang_up() -> None:
        farm.console.say("SIGHUP reloads nothing; restart the farm to change its settings")

    loop.add_signal_handler(signal.SIGINT, stop)
    loop.add_signal_handler(signal.SIGTERM, stop)
    # With a terminal SIGHUP means that it was closed; without one it is somebody's wish to reload.
    loop.add_signal_handler(signal.SIGHUP, stop if sys.stdin is not None and sys.stdin.isatty() else hang_up)


def _announce(farm: Supervisor) -> None:
    settings, say = farm.settings, farm.console.say
    say(f"serving {settings.app} on {farm.url}")
    for row in farm.processes_now():
        say(f"  {row['name']:<12} {row['address']:<22} pid {row['pid']}")
    if settings.cookie.insecure_localhost:
        say("development mode: cookies are not Secure. In production give --tls-certificate, or name the proxy")
        say("that speaks TLS in front with --trusted-proxy (or say --no-insecure-localhost)")
    elif not settings.tls_certificate:
        say("cookies are Secure: browsers must come by HTTPS, through a proxy in front of this farm")
    elif not settings.director.hsts_s and not is_loopback(settings.host):
        say("browsers are not told to come by HTTPS only: give --hsts 365d once this host name serves nothing else")
    say("Ctrl-C stops it")
