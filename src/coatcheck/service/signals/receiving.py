"""Tokens of identity providers come in, and end sessions here."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import SessionUnavailable, UnavailableReason
from coatcheck.events import Event, EventKind
from coatcheck.service.signals.event_tokens import EndOrder, EventTokenRefused, Form, key_id_of, order_of
from coatcheck.service.signals.provider_keys import ProviderKeys
from coatcheck.service.signals.settings import IdentityProvider

USED: Final = "this token was used before"


class SignalReceiver:
    """One provider's tokens. ``beside``: the file of settings, to which a file of keys is relative; ``now_s``: Unix
    seconds."""

    def __init__(
        self,
        name: str,
        provider: IdentityProvider,
        beside: Path,
        sessions: Sessions,
        now_s: Callable[[], float] = time.time,
    ) -> None:
        source = beside.parent / provider.keys if provider.keys_are_in_a_file else provider.keys
        self._name = name
        self._issuer = provider.as_issuer()
        self._keys = ProviderKeys(source, provider.algorithms)
        self._sessions = sessions
        self._now_s = now_s

    async def take(self, token: str, form: Form) -> None:
        """End what a token names; returns when no web server serves it any more.

        A security event that was taken before does nothing (RFC 8935, section 2: it is answered as the first time); a
        logout token is refused then. Raises :class:`EventTokenRefused`, :class:`KeysUnavailable`, and
        :class:`SessionUnavailable` while something of it may still be served: then it is to be sent again.
        """
        try:
            await self._take(token, form)
        except EventTokenRefused as refusal:
            self._report(EventKind.SIGNAL_REFUSED, f"{form}: {refusal}")
            raise

    async def _take(self, token: str, form: Form) -> None:
        key = await self._keys.key(key_id_of(token, form, self._issuer))
        order = order_of(token, form, self._issuer, key, self._now_s())
        if await self._sessions.was_used(order.message):
            self._again(form)
            return
        closed = await self._end(order)
        # Remembered when it is done: one that was answered 503 comes again, and must find itself welcome.
        if await self._sessions.use(order.message, order.keep_until_ms):
            self._report(EventKind.SIGNAL_TAKEN, f"{form}: {closed} closed")
        else:
            self._again(form)

    async def _end(self, order: EndOrder) -> int:
        why = f"by the identity provider {self._name}"
        outcomes = [await self._sessions.close_by_provider(name, order.moment_ms, why) for name in order.names]
        outcomes += [await self._sessions.close_user_until(user, order.moment_ms, why) for user in order.users]
        if not all(one.effective for one in outcomes):
            raise SessionUnavailable(UnavailableReason.TOO_FEW_SERVERS)
        return sum(one.closed for one in outcomes)

    def _again(self, form: Form) -> None:
        if form == "logout-token":
            raise EventTokenRefused("invalid_request", USED)
        self._report(EventKind.SIGNAL_REFUSED, f"{form}: {USED}")

    def _report(self, kind: EventKind, detail: str) -> None:
        self._sessions.report(Event(kind, detail=f"{self._name}: {detail}"))
