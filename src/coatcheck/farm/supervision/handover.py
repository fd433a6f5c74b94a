"""What embedded session servers leave to the next start, and what may be taken over from the last one.

Each run of a farm has a name, drawn at its start and kept in ``run.json``. A session server's file says at the end of
which run it was written, and the next run takes only files of the run before it. So a file is used once, and never
after later writes: whoever puts an old one back finds it refused.
"""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from coatcheck.directory_sync import sync_directory
from coatcheck.farm.files.keys import FarmKeys
from coatcheck.farm.files.run_directory import replace_private
from coatcheck.farm.plan.roles import Handover
from coatcheck.session_server.handover import SUFFIX
from coatcheck.tokens.keyring import KeyRing

RUN_FILE: Final = "run.json"
RUN_NAME_BYTES: Final = 16


class _RunFile(msgspec.Struct):
    run: str


class Handovers:
    """The files of one run; made when the run directory is ours, before any session server starts.

    Raises ``OSError`` if the run's name cannot be kept, or what was half written not removed: see :func:`discard`.
    """

    def __init__(self, directory: Path, farm: str, keys: FarmKeys, limit_s: float) -> None:
        self._directory = directory
        self._farm = farm
        self._limit_s = limit_s
        self.use(keys)
        for half_written in directory.glob(f".*{SUFFIX}.*"):
            half_written.unlink()
        self._last_run = _last_run(directory / RUN_FILE)
        self._run = secrets.token_hex(RUN_NAME_BYTES)
        # From here on the files of the last run are of no use to any start but this one.
        replace_private(directory / RUN_FILE, msgspec.json.encode(_RunFile(self._run)) + b"\n")
        self._assigned: dict[str, list[Path]] = {}

    def use(self, keys: FarmKeys) -> None:
        """Seal with keys derived from these from now on."""
        self._secrets, self._primary = KeyRing(keys.keys, keys.primary).derived("handover")

    @property
    def sealing(self) -> dict[str, Any]:
        """What a session server is told when it hands over: the keys may have changed since its start."""
        return {"secrets": [secret.hex() for secret in self._secrets], "primary": self._primary}

    def assign(self, names: Sequence[str]) -> None:
        """Share the files out: to each session server its own, and to all in turn those whose server is no more."""
        found = _files(self._directory)
        strangers = [path for path in found if path.name.removesuffix(SUFFIX) not in names]
        for at, name in enumerate(names):
            own = [path for path in found if path.name == name + SUFFIX]
            self._assigned[name] = own + strangers[at :: len(names)]

    def orders(self, name: str) -> Handover:
        """What a session server is told at a start; its files are named to the first of its starts alone."""
        return Handover(
            farm=self._farm,
            run=self._run,
            secrets=self._secrets,
            primary=self._primary,
            give=str(self._directory / (name + SUFFIX)),
            take=tuple(map(str, self._assigned.pop(name, ()))),
            last_run=self._last_run,
            limit_s=self._limit_s,
        )


def discard(directory: Path) -> int:
    """Remove what the last stop left, durably; answers how many files those were. Raises ``OSError``."""
    found = _files(directory)
    for path in found:
        path.unlink(missing_ok=True)
    if found:
        sync_directory(directory)
    return len(found)


def _files(directory: Path) -> list[Path]:
    return sorted(directory.glob(f"[!.]*{SUFFIX}"))


def _last_run(path: Path) -> str:
    """The name of the last run; one that no file bears if there was none, or it cannot be read."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=_RunFile).run
    except (FileNotFoundError, msgspec.DecodeError):
        return ""
