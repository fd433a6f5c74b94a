"""The part of a web server that ends the TLS of its clients, where directors only pass it on."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec

from coatcheck.director.embedded import EmbeddedDirector
from coatcheck.director.io.relay import Relay
from coatcheck.director.options import DirectorOptions, WebServer
from coatcheck.farm.plan.ports import listen
from coatcheck.farm.plan.roles import EndsTls, WebServerRole
from coatcheck.farm.processes.farm_tls import FarmTls
from coatcheck.farm.processes.guard import Guard
from coatcheck.farm.settings.error_pages import load_error_pages
from coatcheck.takeover.io.live_entrance import LiveEntrance
from coatcheck.tokens.keyring import KeyRing


class TlsEnd:
    """Takes connections from directors, ends their TLS, and hands their requests to the app's own HTTP server."""

    def __init__(self, role: WebServerRole, ends: EndsTls, is_fit: Callable[[], bool]) -> None:
        """``is_fit``: whether the web server takes connections."""
        self._is_fit = is_fit
        self._role = role
        self._ends = ends
        self._tls = FarmTls(role.name, ends.certificate, ends.key, ends.tickets, ends.sessions)
        self._context = self._tls.context
        here = WebServer(role.name, "", 0, role.route_tag, path=role.address.path)
        self._director = EmbeddedDirector(
            DirectorOptions(
                servers=(here,),
                route_cookie=ends.route_cookie,
                error_pages=load_error_pages(role.error_pages),
                tls=self._context,
                # The link to the director, and both ends of the one to the app's HTTP server.
                descriptors_per_connection=3,
                trusted_proxies=role.trusted_proxies,
                **msgspec.structs.asdict(ends.limits),
            )
        )
        self._entrance: LiveEntrance | None = None
        self._server: asyncio.Server | None = None
        access = role.sessions
        self._ring = KeyRing(access.keys, access.primary_key) if ends.takeover else None

    async def start(self) -> None:
        """Take connections; the app's HTTP server takes requests by now."""
        if self._tls.stored is not None:
            await self._tls.stored.sessions.open_here()
        await self._director.start(entrance=self._make_entrance)
        entrance = self._entrance
        assert entrance is not None
        guard = Guard(self._role.name, self._role.credential, unix=True)
        self._server = await asyncio.get_running_loop().create_unix_server(
            lambda: guard.protocol(entrance.link), sock=listen(self._ends.address)
        )

    def _make_entrance(self, relay: Relay) -> LiveEntrance:
        stored = self._tls.stored
        sessions = stored.sessions if stored is not None and not stored.why_off else None
        self._entrance = LiveEntrance(relay, self._context, self._ring, self._role.sessions.farm, sessions)
        self._entrance.is_fit = self._is_fit
        return self._entrance

    def change_keys(self, keys: list[bytes], primary: int) -> None:
        """Seal with these keys from now on."""
        if self._ring is not None:
            self._ring.change(keys, primary)
        if self._entrance is not None:
            self._entrance.renew_states()

    @property
    def why_off(self) -> str:
        """Why TLS sessions are not shared though they should be; empty if all is well."""
        return self._tls.why_off

    def operations(self) -> dict[str, Any]:
        """What the supervisor may tell it."""
        return self._tls.operations()

    def status(self) -> dict[str, Any]:
        """Its handshakes and how sessions are shared, and under ``entrance`` what came through it."""
        return {**self._tls.status(), "entrance": self._director.status()}

    async def stop(self, grace_s: float) -> None:
        """Take no more, and finish what is in flight."""
        if self._server is not None:
            self._server.close()
        await self._director.stop(grace_s)
        if self._tls.stored is not None:
            await self._tls.stored.sessions.close_here()
