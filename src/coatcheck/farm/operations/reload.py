"""``coatcheck serve --reload``: for development. A change of the code restarts the web servers, one after the other.

Sessions stay: they are on the session servers, which go on. A change that cannot be imported restarts nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.farm.control.lines import ControlError
from coatcheck.farm.operations.operations import Operations
from coatcheck.farm.settings.farm_settings import FarmSettings
from coatcheck.farm.supervision.supervisor import FarmFailed, Supervisor
from coatcheck.options import shown

QUIET_S: Final = 3.0
"""How long a web server may finish its open requests before a reload stops it (then it has ``stop_grace``, too)."""

LOOK_S: Final = 0.5
"""How often the watch comes up for air without a change."""

MAX_NAMED: Final = 3
"""Changed files in the log's line."""

MAX_LINE: Final = 500


def check_reload(settings: FarmSettings) -> None:
    """Raises ConfigError if the code cannot be watched."""
    if not settings.reload:
        return
    if importlib.util.find_spec("watchfiles") is None:
        raise ConfigError("reload: watchfiles is not installed; pip install 'coatcheck[reload]'")
    for directory in settings.reload_dir:
        if not Path(directory).is_dir():
            raise ConfigError(f"reload_dir: {shown(directory)!r} is no directory; name one with the app")


async def reload_on_change(farm: Supervisor, operations: Operations) -> None:
    """Watch until cancelled.

    Raises:
        FarmFailed: the system lets nobody watch these directories.
    """
    directories = farm.settings.reload_dir or (".",)
    begun = False
    async for names in _changes(directories):
        if not begun:
            farm.console.say(f"reload: watching {', '.join(directories)} (for development only)")
            begun = True
        if not names:
            continue
        more = f" and {len(names) - MAX_NAMED} more" if len(names) > MAX_NAMED else ""
        farm.console.say(f"reload: {', '.join(names[:MAX_NAMED])}{more} changed")
        if (mistake := await _mistake(farm.settings)) is not None:
            farm.console.say(f"reload: nothing is restarted, the former code goes on: {mistake}")
            continue
        for keeper in farm.web_servers:
            try:
                await operations.reload(keeper.name, QUIET_S)
            except ControlError as error:
                farm.console.say(f"reload: {error}")
                break
        else:
            farm.console.say("reload: done")


async def _changes(directories: tuple[str, ...]) -> AsyncIterator[list[str]]:
    """Names of changed files; an empty list now and then, the first of which says that the watch has begun."""
    from watchfiles import PythonFilter, awatch

    here = Path.cwd()
    try:
        look_ms = int(LOOK_S * 1000)
        async for changes in awatch(
            *directories, watch_filter=PythonFilter(), rust_timeout=look_ms, yield_on_timeout=True
        ):
            paths = sorted({Path(path) for _, path in changes})
            yield [str(path.relative_to(here) if path.is_relative_to(here) else path) for path in paths]
    except OSError as error:
        raise FarmFailed(f"reload: cannot watch {', '.join(directories)}: {error}") from None


async def _mistake(settings: FarmSettings) -> str | None:
    """Why the app cannot be imported as it stands now, in one line; ``None`` if it can."""
    arguments = [settings.app, settings.interface, *(["--factory"] if settings.factory else [])]
    trial = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "coatcheck.farm.processes.try_app", *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        _, said = await asyncio.wait_for(trial.communicate(), settings.start_timeout_s)
    except TimeoutError:
        return f"importing it takes more than {settings.start_timeout_s:g} s"
    finally:
        if trial.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                trial.kill()
            await trial.wait()
    if trial.returncode == 0:
        return None
    lines = said.decode(errors="replace").strip().splitlines()
    return lines[-1][:MAX_LINE] if lines else f"importing it ends the process (exit code {trial.returncode})"
