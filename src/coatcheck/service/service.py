"""One process of the session service, put together from settings; whoever runs it brings the event loop."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, Final

from starlette.applications import Starlette

from coatcheck.access import SessionAccess
from coatcheck.connecting import open_sessions
from coatcheck.drivers.key_refresh import RefreshKeys
from coatcheck.events import Observer, both
from coatcheck.service.app import SessionEndpoint
from coatcheck.service.assertion import Signer
from coatcheck.service.callers_file import CallersFile
from coatcheck.service.event_stream import EventStream
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.tls.peers import Revocations
from coatcheck.tokens.keyring import KeyRing

RUN_BYTES: Final = 6
"""Of the name of a process in the IDs of its events."""


class SessionService:
    """``callers``: the file of those who may ask; ``authority``: whether they may show certificates; ``signals``: the
    file of identity providers and receivers of logout signals; ``refresh_keys`` is asked before what an unknown key has
    made is refused, a cookie or a caller's credential: it brings the ring up to date (:meth:`change_keys`) and returns
    whether it could.

    Raises:
        ConfigError: the file, a key or a session server's address is wrong.
    """

    def __init__(
        self,
        access: SessionAccess,
        cookies: CookiePolicy,
        callers: Path,
        *,
        authority: bool = False,
        revocations: Revocations | None = None,
        observer: Observer | None = None,
        signals: Path | None = None,
        refresh_keys: RefreshKeys | None = None,
    ) -> None:
        self._ring = KeyRing(access.keys, access.primary_key)
        known = CallersFile(callers, self._ring, access.farm, by_certificate=authority)
        self._events = EventStream(secrets.token_hex(RUN_BYTES))
        observe = self._events.observe if observer is None else both(self._events.observe, observer)
        self._signals = None
        if signals is not None:
            from coatcheck.service.signals.wiring import Signals

            self._signals = Signals(signals, self._ring, access.farm)
        if self._signals is not None:
            observe = both(observe, self._signals.observe)
        self.sessions = open_sessions(access, observer=observe, cookies=cookies, refresh_keys=refresh_keys)
        endpoint = self._signals.endpoint(self.sessions) if self._signals is not None else None
        self._signer = Signer(self._ring, access.farm)
        self._endpoint = SessionEndpoint(
            self.sessions, known.now, self._signer, self._events, revocations, endpoint, refresh_keys
        )

    def app(self) -> Starlette:
        """The service as an ASGI app, whose lifespan opens and closes its sessions."""

        @contextlib.asynccontextmanager
        async def lifespan(_: Starlette) -> AsyncIterator[None]:
            await self.sessions.start()
            if self._signals is not None:
                self._signals.start(self.sessions)
            try:
                yield
            finally:
                if self._signals is not None:
                    await self._signals.aclose()
                await self.sessions.aclose()

        return self._endpoint.app(lifespan)

    def stop(self) -> None:
        """End its streams, which would go on for ever."""
        self._events.stop()

    def change_keys(self, keys: Sequence[bytes], primary: int) -> None:
        """Seal, sign and know callers by these from now on; as :meth:`Sessions.change_keys`."""
        self.sessions.change_keys(keys, primary)
        self._ring.change(keys, primary)
        self._signer.use(self._ring)
        self._events.look_again()
        if self._signals is not None:
            self._signals.change_keys(keys, primary)

    def status(self) -> dict[str, Any]:
        """Numbers for ``coatcheck status``."""
        own = {**self.sessions.status(), "requests": self._endpoint.answers.total()}
        return own if self._signals is None else {**own, "signals": self._signals.status()}
