"""The file of callers, read again when it changes: a caller is revoked, or added, without a restart."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.seldom import Seldom
from coatcheck.service.callers import Callers, read_callers
from coatcheck.tokens.keyring import KeyRing

LOOK_PERIOD_S: Final = 1.0
"""So often the file is looked at."""

_log: Final = logging.getLogger("coatcheck.service")
_seldom: Final = Seldom(_log, time.monotonic)


class CallersFile:
    """``by_certificate``: whether callers can show certificates. A file that was damaged later changes nothing: who
    could ask can, and who could not cannot. Raises :class:`ConfigError` if there is no good one to begin with.
    """

    def __init__(
        self, path: Path, ring: KeyRing, farm: str, by_certificate: bool, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._path = path
        self._by_certificate = by_certificate
        self._clock = clock
        self._looked_at = clock()
        self._seen = self._stamp()
        self._callers = Callers(read_callers(path), ring, farm)
        self._judge(self._callers)

    def now(self) -> Callers:
        """Who may ask, as the file says it within the last second."""
        if self._clock() - self._looked_at >= LOOK_PERIOD_S:
            self._looked_at = self._clock()
            seen = self._stamp()
            if seen != self._seen:
                self._seen = seen
                self._read()
        return self._callers

    def _read(self) -> None:
        try:
            found = self._callers.replaced_by(read_callers(self._path))
            self._judge(found)
        except ConfigError as wrong:
            _seldom.warning("the callers known before hold: %s", wrong)
        else:
            self._callers = found
            _log.info("callers: %s was read again: %r", self._path, found)

    def _judge(self, callers: Callers) -> None:
        if callers.have_certificates and not self._by_certificate:
            raise ConfigError("callers: certificates are only known with --tls-authority")

    def _stamp(self) -> object:
        try:
            found = self._path.stat()
        except OSError:
            return None
        return (found.st_ino, found.st_mtime_ns, found.st_size)
