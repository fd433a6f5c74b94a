"""Outbound tokens for zeep, sync and async (extra: ``zeep``).

```python
plugin = SessionPlugin()
client = zeep.Client(wsdl, plugins=[plugin])
pool = TokenPool(login=lambda user: plugin.sign_in(client.service.WhoAmI, user, password))
sessions = ZeepSessions(plugin, pool)

sessions.call("SADMIN", client.service.Echo, "hello")  # one call, again after a login if the token was refused
with sessions.lease("SADMIN"):  # several calls in one session
    client.service.Echo("one")
    client.service.Echo("two")
```

The plugin checks nothing out: zeep skips ``ingress`` when the transport fails, so that token would never come back. It
only reads the current lease from a context variable.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextvars import ContextVar
from typing import Any

import zeep
from lxml import etree

from coatcheck.errors import ConfigError
from coatcheck.pool import AsyncTokenPool, PoolError, TokenPool
from coatcheck.pool.adapters.exchange import MAX_ATTEMPTS, refresh, refuse, refuse_async, report
from coatcheck.pool.soap.faults import refuses_token
from coatcheck.pool.soap.session_headers import Placing, SessionHeaders

__all__ = ["AsyncZeepSessions", "Carried", "Placing", "SessionHeaders", "SessionPlugin", "ZeepSessions", "is_refused"]


class Carried:
    """What the calls of one context carry: credentials until there is a token, then the newest token."""

    def __init__(self, token: str | None = None, credentials: tuple[str, str] | None = None, held: Any = None) -> None:
        self.token = token
        self.credentials = credentials
        self.held = held
        self.answered = True
        """Whether the upstream answered the last call with a fresh token: then the session is alive for sure."""
        self.better = False
        """Whether the token was refused, and another call would have another one."""


class SessionPlugin(zeep.Plugin):
    """Puts the current lease's token into each request, and the refreshed token into the lease.

    ``placing``: where the tokens stand; :class:`SessionHeaders` unless told otherwise. Calls outside a lease go out as
    they are. Used by any number of clients, threads and tasks.
    """

    def __init__(self, placing: Placing | None = None) -> None:
        self.placing = placing or SessionHeaders()
        # One for each plugin, so that leases of two upstreams can be nested. A plugin lives as long as its client.
        self._carried: ContextVar[Carried | None] = ContextVar("coatcheck_carried", default=None)

    def egress(self, envelope: Any, http_headers: Any, operation: Any, binding_options: Any) -> Any:
        carried = self._carried.get()
        if carried is not None:
            carried.answered = False
            if carried.token is not None:
                self.placing.apply(envelope, carried.token)
            elif carried.credentials is not None:
                self.placing.sign_in(envelope, *carried.credentials)
        return envelope, http_headers

    def ingress(self, envelope: Any, http_headers: Any, operation: Any) -> Any:
        carried = self._carried.get()
        if carried is not None:
            token = self.placing.extract(envelope)
            if token is not None:
                carried.answered = True
                carried.token = token
                if carried.held is not None:
                    refresh(carried.held, token)
        return envelope, http_headers

    @contextlib.contextmanager
    def using(self, held: Any) -> Iterator[Carried]:
        """Calls inside carry the token of ``held``: ``with pool.lease(user) as held, plugin.using(held): ...``."""
        with self.carrying(Carried(held.token, held=held)) as carried:
            yield carried

    @contextlib.contextmanager
    def carrying(self, carried: Carried) -> Iterator[Carried]:
        """Calls inside carry this."""
        before = self._carried.set(carried)
        try:
            yield carried
        finally:
            self._carried.reset(before)

    def sign_in(self, operation: Callable[..., Any], username: str, password: str, *args: Any, **named: Any) -> str:
        """Call an operation with credentials; the session token of the answer. For ``login=`` of a pool."""
        with self.carrying(Carried(credentials=(username, password))) as carried:
            operation(*args, **named)
        return _token_of(carried)

    async def sign_in_async(
        self, operation: Callable[..., Awaitable[Any]], username: str, password: str, *args: Any, **named: Any
    ) -> str:
        """:meth:`sign_in` with an ``AsyncClient``."""
        with self.carrying(Carried(credentials=(username, password))) as carried:
            await operation(*args, **named)
        return _token_of(carried)

    def sign_out(self, operation: Callable[..., Any], token: str) -> None:
        """Call an operation that ends the token's session. For ``logout=`` of a pool."""
        with self.carrying(Carried(token)):
            operation()

    async def sign_out_async(self, operation: Callable[..., Awaitable[Any]], token: str) -> None:
        """:meth:`sign_out` with an ``AsyncClient``."""
        with self.carrying(Carried(token)):
            await operation()


def _token_of(carried: Carried) -> str:
    if carried.token is None:
        raise ConfigError("the upstream answered the login without a session token; is the session type right?")
    return carried.token


def is_refused(error: BaseException) -> bool:
    """Whether a fault says that its token is of no use any more: the reasons of our provider (mission D7)."""
    detail = error.detail if isinstance(error, zeep.exceptions.Fault) else None
    return isinstance(detail, etree._Element) and refuses_token(detail)


class ZeepSessions:
    """Leases for the calls of a ``zeep.Client`` that has the plugin. ``is_expired``: a fault that refuses the token.

    ``shared``: calls share one token, which logins alone renew, for upstreams that let many use a session at once.
    """

    def __init__(
        self,
        plugin: SessionPlugin,
        pool: TokenPool,
        is_expired: Callable[[BaseException], bool] = is_refused,
        *,
        shared: bool = False,
    ) -> None:
        if not isinstance(pool, TokenPool):
            raise ConfigError("ZeepSessions needs a TokenPool; AsyncZeepSessions is for an AsyncTokenPool")
        self._plugin = plugin
        self._pool = pool
        self._is_expired = is_expired
        self._shared = shared

    @contextlib.contextmanager
    def lease(self, user: str) -> Iterator[Any]:
        """All calls inside are in one session. A fault of a session that is alive keeps its token."""
        with self._session(user, again=False) as carried:
            yield carried.held

    @contextlib.contextmanager
    def _session(self, user: str, *, again: bool) -> Iterator[Carried]:
        held = self._pool.lend(user, shared=self._shared, again=again).acquire()
        failed = True
        try:
            with self._plugin.using(held) as carried:
                try:
                    yield carried
                    failed = False
                except BaseException as error:
                    refused = bool(held.fencing) and self._is_expired(error)
                    carried.better = refused and refuse(held)
                    failed = not carried.answered and not refused
                    raise
        finally:
            try:
                if held.fencing:
                    held.release(failed=failed)
            except PoolError as error:
                report(user, error)

    def call(self, user: str, operation: Callable[..., Any], *args: Any, **named: Any) -> Any:
        """One call in a session of ``user``; again, once after a login, if the token is refused (mission D7)."""
        attempt = 0
        while True:
            attempt += 1
            carried = None
            try:
                with self._session(user, again=attempt > 1) as carried:
                    return operation(*args, **named)
            except zeep.exceptions.Error:
                if carried is None or not carried.better or attempt >= MAX_ATTEMPTS:
                    raise


class AsyncZeepSessions:
    """The same for a ``zeep.AsyncClient``."""

    def __init__(
        self,
        plugin: SessionPlugin,
        pool: AsyncTokenPool,
        is_expired: Callable[[BaseException], bool] = is_refused,
        *,
        shared: bool = False,
    ) -> None:
        if not isinstance(pool, AsyncTokenPool):
            raise ConfigError("AsyncZeepSessions needs an AsyncTokenPool; ZeepSessions is for a TokenPool")
        self._plugin = plugin
        self._pool = pool
        self._is_expired = is_expired
        self._shared = shared

    @contextlib.asynccontextmanager
    async def lease(self, user: str) -> AsyncIterator[Any]:
        """All calls inside are in one session; see :meth:`ZeepSessions.lease`."""
        async with self._session(user, again=False) as carried:
            yield carried.held

    @contextlib.asynccontextmanager
    async def _session(self, user: str, *, again: bool) -> AsyncIterator[Carried]:
        held = await self._pool.lend(user, shared=self._shared, again=again).acquire()
        failed = True
        try:
            with self._plugin.using(held) as carried:
                try:
                    yield carried
                    failed = False
                except BaseException as error:
                    refused = bool(held.fencing) and self._is_expired(error)
                    carried.better = refused and await refuse_async(held)
                    failed = not carried.answered and not refused
                    raise
        finally:
            try:
                if held.fencing:
                    await held.release(failed=failed)
            except PoolError as error:
                report(user, error)

    async def call(self, user: str, operation: Callable[..., Awaitable[Any]], *args: Any, **named: Any) -> Any:
        """One call in a session of ``user``; see :meth:`ZeepSessions.call`."""
        attempt = 0
        while True:
            attempt += 1
            carried = None
            try:
                async with self._session(user, again=attempt > 1) as carried:
                    return await operation(*args, **named)
            except zeep.exceptions.Error:
                if carried is None or not carried.better or attempt >= MAX_ATTEMPTS:
                    raise
