"""What the service does with leases: it keeps none; each is in the store, under the number in its name."""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import Any

from coatcheck.pool import AsyncTokenPool, LeaseLost, flows
from coatcheck.pool.commands import Extend, Granted, LoginDone, LoginEnded, RefuseToken, Release
from coatcheck.pool.flows import Flow
from coatcheck.pool.lines import Lines
from coatcheck.pool.masking import check_user
from coatcheck.pool.options import span_of
from coatcheck.pool.payload import pack, token_of
from coatcheck.pool.service import messages as m
from coatcheck.pool.service.caller_login import LoginDue, check_out
from coatcheck.pool.service.lease_id import LeaseName, format_lease_id
from coatcheck.pool.service.metrics import WaitTimes


class Leases:
    """Check-out, check-in and what is between, for callers that come back with a name.

    ``pool`` logs in by itself if it has a login; else callers do.
    """

    def __init__(self, pool: AsyncTokenPool, waits: WaitTimes) -> None:
        self._pool = pool
        self._waits = waits

    async def check_out(self, user: str, asked: m.CheckOut) -> m.LentToken | m.LoginLease:
        """Raises ``ValueError`` for a bad user, and the pool's errors."""
        check_user(user)
        began = time.monotonic()
        settings = self._pool.settings
        wait_s = settings.wait_s if asked.wait_s is None else asked.wait_s
        if settings.login is not None:
            held = await self._pool.lease(user, asked.password, wait=wait_s).acquire()
            given: Granted | LoginDue
            given = Granted(held.fencing, held._value(), held.remaining_s(), held.uses)
        else:
            flow = check_out(user, wait_s, self._pool.lines, self._pool.credentials.of(user, asked.password))
            given = await self._pool.run(flow, undo=lambda given: _give_back(user, given, self._pool.lines))
        self._waits.add(time.monotonic() - began)
        if isinstance(given, LoginDue):
            name = format_lease_id(user, given.fence)
            return m.LoginLease(name, user, True, settings.policy.login_timeout_s, given.fence)
        return self._lease(user, given)

    async def give_back(self, given: m.LentToken | m.LoginLease) -> None:
        """The caller went away before it got the answer: as if it had never asked."""
        if isinstance(given, m.LentToken):
            flow = flows.release(given.user, Release(given.fencing), self._pool.lines)
        else:
            flow = flows.settle(given.user, LoginEnded(given.fencing, failed=False), given.fencing)
        await self._pool.run(flow)

    async def complete(self, name: LeaseName, asked: m.Complete) -> m.LentToken:
        """The caller has logged in; the same again is the same lease. Raises ``LeaseLost`` if it took too long."""
        command = LoginDone(name.fencing, pack(asked.token, None), self._pool.new_life_s(), span_of(asked.expires_in_s))
        try:
            granted: Granted = await self._pool.run(flows.settle(name.user, command, name.fencing))
        except LeaseLost:
            granted = await self._pool.run(flows.settle(name.user, Extend(name.fencing, renew=False), name.fencing))
            self._pool.live.discard((name.user, name.fencing))
            if not hmac.compare_digest(token_of(granted.value).encode(), asked.token.encode()):
                raise
        return self._lease(name.user, granted)

    async def fail(self, name: LeaseName, asked: m.Fail) -> None:
        """The caller could not log in. Raises ``LeaseLost`` if its place is somebody else's by now."""
        # A failure of a login that is over already must not slow down the others' logins.
        if all(row.fencing != name.fencing or row.state != "login" for row in await self._pool.list(name.user)):
            raise LeaseLost(name.user, name.fencing)
        command = LoginEnded(name.fencing, refused=asked.refused)
        await self._pool.run(flows.settle(name.user, command, name.fencing))

    async def check_in(self, name: LeaseName, asked: m.CheckIn) -> None:
        """Raises ``LeaseLost`` if the lease is over."""
        value = None if asked.token is None else pack(asked.token, None)
        span_s = None if asked.expires_in_s is None else span_of(asked.expires_in_s)
        keep = not asked.failed or self._pool.settings.on_error == "return"
        command = Release(name.fencing, value, span_s, keep=keep)
        await self._pool.run(flows.release(name.user, command, self._pool.lines))

    async def drop(self, name: LeaseName, asked: m.Drop) -> None:
        """Raises ``LeaseLost`` if the lease is over."""
        command = Release(name.fencing, keep=False, sign_out=asked.sign_out)
        await self._pool.run(flows.release(name.user, command, self._pool.lines))

    async def refuse(self, name: LeaseName) -> m.TokenRefused:
        """The lease ends; whether its token is dropped. Raises ``LeaseLost`` if it is over."""
        believed: int = await self._pool.run(flows.settle(name.user, RefuseToken(name.fencing), name.fencing))
        command = Release(name.fencing, keep=not believed, sign_out=False)
        await self._pool.run(flows.release(name.user, command, self._pool.lines))
        return m.TokenRefused(believed > 0)

    async def renew(self, name: LeaseName) -> m.Renewed:
        """Raises ``LeaseLost`` if the lease is over."""
        granted: Granted = await self._pool.run(flows.settle(name.user, Extend(name.fencing), name.fencing))
        self._pool.live.discard((name.user, name.fencing))
        return m.Renewed(granted.remaining_s)

    def _lease(self, user: str, granted: Granted) -> m.LentToken:
        # It is the caller's now: any instance may end it, so this process must not wait for it when it stops.
        self._pool.live.discard((user, granted.fence))
        name = format_lease_id(user, granted.fence)
        return m.LentToken(name, user, token_of(granted.value), granted.uses, granted.remaining_s, granted.fence)


def _give_back(user: str, given: Granted | LoginDue, lines: Lines) -> Flow[None]:
    if isinstance(given, LoginDue):
        yield from flows.settle(user, LoginEnded(given.fence, failed=False), given.fence)
    else:
        yield from flows.release(user, Release(given.fence), lines)


async def first_of(work: asyncio.Task[m.LentToken | m.LoginLease], *ends: asyncio.Task[Any]) -> bool:
    """Wait for one of them; whether the work was done before it was of no use any more."""
    await asyncio.wait({work, *ends}, return_when=asyncio.FIRST_COMPLETED)
    return work.done()
