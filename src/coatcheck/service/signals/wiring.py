"""Logout signals of one process, put together from their file."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from coatcheck.drivers.sessions import Sessions
from coatcheck.events import Event, Observer
from coatcheck.service.signals.endpoint import SignalEndpoint
from coatcheck.service.signals.receiving import SignalReceiver
from coatcheck.service.signals.settings import read_signals
from coatcheck.service.signals.transmitting import SignalSender
from coatcheck.tokens.keyring import KeyRing


def told_by(file: str, ring: KeyRing, farm: str) -> Signals | None:
    """For a process that takes no signals: what tells others of its sessions' ends, if anybody is to be told."""
    return Signals(Path(file), ring, farm) if file and read_signals(Path(file)).receivers else None


class Signals:
    """``file``: the settings; ``farm``: in whose name ours are signed. Raises :class:`ConfigError`."""

    def __init__(self, file: Path, ring: KeyRing, farm: str) -> None:
        self._file = file
        self._ring = ring
        self._settings = read_signals(file)
        self._report: Observer = lambda event: None
        self._now_s = time.time
        self.sender: SignalSender | None = None
        if self._settings.receivers:
            self.sender = SignalSender(
                self._settings, file, ring, farm, lambda event: self._report(event), lambda: self._now_s()
            )

    def observe(self, event: Event) -> None:
        """An observer of sessions: has others told."""
        if self.sender is not None:
            self.sender.observe(event)

    def start(self, sessions: Sessions) -> None:
        """Begin to tell; what cannot be told is an event of these sessions, and their time is that of the signals."""
        self._report = sessions.report
        self._now_s = sessions.now_s
        if self.sender is not None:
            self.sender.start()

    def endpoint(self, sessions: Sessions) -> SignalEndpoint:
        """What takes signals for these sessions."""
        providers = self._settings.providers.items()
        receivers = {name: SignalReceiver(name, each, self._file, sessions, sessions.now_s) for name, each in providers}
        return SignalEndpoint(receivers, self.sender)

    def change_keys(self, keys: Sequence[bytes], primary: int) -> None:
        """Sign by these from now on; as :meth:`Sessions.change_keys`."""
        self._ring.change(keys, primary)
        if self.sender is not None:
            self.sender.signer.use(self._ring)

    async def aclose(self) -> None:
        if self.sender is not None:
            await self.sender.aclose()

    def status(self) -> dict[str, Any]:
        """Numbers for ``coatcheck status``."""
        sender = self.sender
        return {} if sender is None else {"told": sender.told, "lost": sender.lost, "waiting": sender.waiting}
