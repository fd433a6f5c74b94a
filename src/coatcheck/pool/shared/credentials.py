"""Shared tokens in their users' hands, for threads and for asyncio."""

from __future__ import annotations

from typing import Any, Self

from coatcheck.pool.masking import check_token
from coatcheck.pool.payload import Payload
from coatcheck.pool.shared.flights import Flights
from coatcheck.pool.shared.seen import SharedLine, SharedToken


class _Credentials:
    __slots__ = ("__weakref__", "_flights", "_line", "_password", "_wait_s", "user")

    def __init__(self, flights: Flights, line: SharedLine, password: str | None, wait_s: float) -> None:
        self._flights = flights
        self._line = line
        self._password = password
        self._wait_s = wait_s
        self.user = line.user

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.user!r}>"

    def _seen(self) -> SharedToken | None:
        """What was seen, if nothing is to be done about it."""
        seen = self._line.seen
        lines = self._flights.lines
        if seen is not None and lines.clock() < seen.ask_at and seen.epoch == lines.epoch:
            return seen.shown
        return None

    def _is_replaced(self, token: str) -> bool:
        check_token(token)
        seen = self._flights.lines.seen(self._line)
        return seen is not None and seen.shown.token != token

    def _noted(self, found: SharedToken) -> SharedToken:
        self._flights.pool.audit.borrowed_shared(self.user, found.number)
        return found


class SharedCredentials(_Credentials):
    """One token for all who ask: made by ``pool.shared(user)``, used by any number of threads."""

    __slots__ = ()

    def get(self) -> SharedToken:
        """The token that is current. Waits only where there is none that may be used.

        Raises ``LoginFailed``, ``LoginRefused``, ``LoginRateLimited``, ``PoolTimeout``, ``PoolClosed``,
        ``StoreUnavailable``.
        """
        seen = self._seen()
        if seen is not None:
            return seen
        found: SharedToken = self._flights.pool.run(self._flights.get(self._line, self._password, self._wait_s))
        return found

    def invalidate(self, token: str) -> bool:
        """The upstream refused ``token``; whether there is a better one to be had, by asking again.

        Changes nothing if it is no longer the current one. Nor does it (``False``) if it replaced a refused one only
        just: another login would bring no better one. Raises ``StoreUnavailable``, ``ValueError``.
        """
        return self._is_replaced(token) or self._flights.pool.run(self._flights.invalidate(self._line, token))


class AuditedSharedCredentials(SharedCredentials):
    """Of a pool with an audit."""

    __slots__ = ()

    def get(self) -> SharedToken:
        """See :meth:`SharedCredentials.get`."""
        return self._noted(super().get())


class AsyncSharedCredentials(_Credentials):
    """The same for asyncio: ``await shared.get()``. A caller's cancellation ends no login."""

    __slots__ = ()

    async def get(self) -> SharedToken:
        """See :meth:`SharedCredentials.get`."""
        seen = self._seen()
        if seen is not None:
            return seen
        found: SharedToken = await self._flights.pool.run(self._flights.get(self._line, self._password, self._wait_s))
        return found

    async def invalidate(self, token: str) -> bool:
        """See :meth:`SharedCredentials.invalidate`."""
        return self._is_replaced(token) or await self._flights.pool.run(self._flights.invalidate(self._line, token))


class AuditedAsyncSharedCredentials(AsyncSharedCredentials):
    """Of a pool with an audit."""

    __slots__ = ()

    async def get(self) -> SharedToken:
        """See :meth:`SharedCredentials.get`."""
        return self._noted(await super().get())


class _Use:
    """One call with a shared token, as the adapters make it: it looks like a lease, and holds nothing.

    A refused token is taken back when the use ends. ``again``: the call is made for the second time, and for the last.
    """

    __slots__ = ("_again", "_dropped", "_shared", "_token", "fencing", "user")

    def __init__(self, shared: Any, again: bool) -> None:
        self._shared = shared
        self._again = again
        self._dropped = False
        self._token: SharedToken
        self.user: str = shared.user
        self.fencing = 0

    @property
    def token(self) -> str:
        return self._token.token

    @property
    def payload(self) -> Payload | None:
        return self._token.payload

    def _hold(self, token: SharedToken) -> Self:
        self._token = token
        self.fencing = token.number
        return self

    def renew(self, token: str, **_: Any) -> None:
        """A shared token is renewed by logins alone."""

    def drop(self, *, sign_out: bool = False) -> None:
        self._dropped = True

    def _let_go(self) -> bool:
        """Whether it is to be taken back."""
        self.fencing = 0
        return self._dropped


class SharedUse(_Use):
    """For threads."""

    __slots__ = ()

    def acquire(self) -> Self:
        return self._hold(self._shared.get())

    def refuse(self) -> bool:
        """As of a lease: whether another try would have a better token."""
        return bool(self._shared.invalidate(self.token)) and not self._again

    def release(self, *, failed: bool = False) -> None:
        if self._let_go():
            self._shared.invalidate(self.token)


class AsyncSharedUse(_Use):
    """For asyncio."""

    __slots__ = ()

    async def acquire(self) -> Self:
        return self._hold(await self._shared.get())

    async def refuse(self) -> bool:
        """As of a lease: whether another try would have a better token."""
        return bool(await self._shared.invalidate(self.token)) and not self._again

    async def release(self, *, failed: bool = False) -> None:
        if self._let_go():
            await self._shared.invalidate(self.token)
