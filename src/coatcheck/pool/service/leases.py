"""What the service does with leases: it keeps none; each is in the store, under the number in its name."""

from __future__ import annotations

import asyncio
import hmac
import time
from typing import Any

from coatcheck.pool import AsyncTokenPool, LeaseLost, flows
from coatcheck.pool.commands import Extend, Granted, LoginDone, LoginEnded, RefuseToken, Release
from coatcheck.pool.duration import MAX_S
from coatcheck.pool.flows import Flow
from coatcheck.pool.lines import Lines
from coatcheck.pool.masking import check_state, check_user
from coatcheck.pool.options import span_of
from coatcheck.pool.payload import check_payload, pack, token_of, unpack
from coatcheck.pool.service import messages as m
from coatcheck.pool.service.caller_login import LoginDue, check_out
from coatcheck.pool.service.lease_id import LeaseName, format_lease_id
from coatcheck.pool.service.metrics import WaitTimes
from coatcheck.service_kit.problems import RequestRefused


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
        credentials = self._pool.credentials.of(user, asked.password)
        wait_s = settings.wait_s if asked.wait_s is None else asked.wait_s
        if settings.login is not None:
            held = await self._pool.lease(user, asked.password, wait=wait_s).acquire()
            given: Granted | LoginDue
            given = Granted(held.fencing, held._value(), held.remaining_s(), held.uses)
        else:
            flow = check_out(user, wait_s, self._pool.lines, credentials)
            flow = self._pool.audited(user, flow)
            given = await self._pool.run(flow, undo=lambda given: _give_back(user, given, self._pool.lines))
        self._waits.add(time.monotonic() - began)
        if isinstance(given, LoginDue):
            return await self._login_lease(user, given, credentials)
        return self._lease(user, given)

    async def _login_lease(self, user: str, due: LoginDue, credentials: tuple[bytes, ...]) -> m.LoginLease:
        try:
            state = await self._pool.run(self._pool.finding_state(user, credentials))
        except BaseException:
            await self._pool.run(_give_back(user, due, self._pool.lines))
            raise
        name = format_lease_id(user, due.fence)
        return m.LoginLease(name, user, True, self._pool.settings.policy.login_timeout_s, due.fence, state)

    async def give_back(self, given: m.LentToken | m.LoginLease | m.SharedGiven) -> None:
        """The caller went away before it got the answer: as if it had never asked."""
        if isinstance(given, m.SharedGiven):
            return  # it is nobody's alone
        if isinstance(given, m.LentToken):
            flow = flows.release(given.user, Release(given.fencing), self._pool.lines)
        else:
            flow = flows.settle(given.user, LoginEnded(given.fencing, failed=False), given.fencing)
        await self._pool.run(flow)

    async def complete(self, name: LeaseName, asked: m.Complete) -> m.LentToken:
        """The caller has logged in; the same again is the same lease. Raises ``LeaseLost`` if it took too long."""
        value = pack(asked.token, check_payload(asked.payload))
        check_state(asked.upstream_state)
        command = LoginDone(name.fencing, value, self._pool.new_life_s(), span_of(asked.expires_in_s))
        try:
            settled: Flow[Granted] = flows.settle(name.user, command, name.fencing)
            granted = await self._pool.run(self._pool.audited(name.user, settled))
        except LeaseLost:
            granted = await self._pool.run(flows.settle(name.user, Extend(name.fencing, renew=False), name.fencing))
            self._pool.live.discard((name.user, name.fencing))
            if not hmac.compare_digest(token_of(granted.value).encode(), asked.token.encode()):
                raise
        if asked.upstream_state is not None:
            credentials = self._pool.credentials.of(name.user, asked.password)
            await self._pool.run(self._pool.keeping_state(name.user, credentials, asked.upstream_state))
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
        value = await self._renewed(name, asked.token, check_payload(asked.payload))
        span_s = None if asked.expires_in_s is None else span_of(asked.expires_in_s)
        keep = not asked.failed or self._pool.settings.on_error == "return"
        command = Release(name.fencing, value, span_s, keep=keep)
        await self._pool.run(flows.release(name.user, command, self._pool.lines))

    async def _renewed(self, name: LeaseName, token: str | None, payload: m.Payload | None) -> str | None:
        """What is stored from now on; what the caller does not say is as it was."""
        if token is None and payload is None:
            return None
        if token is None or payload is None:
            before = await self._pool.run(flows.settle(name.user, Extend(name.fencing, renew=False), name.fencing))
            self._pool.live.discard((name.user, name.fencing))
            old_token, old_payload = unpack(before.value)
            token = old_token if token is None else token
            payload = old_payload if payload is None else payload
        return pack(token, payload)

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

    async def share(self, user: str, asked: m.CheckOut) -> m.SharedGiven:
        """The token that all callers with these credentials use. Raises the pool's errors."""
        self._must_log_in()
        shared = await self._pool.shared(user, asked.password, wait=asked.wait_s).get()
        left_s = shared.remaining_s()
        return m.SharedGiven(user, shared.token, shared.payload, left_s if left_s < MAX_S else None)

    async def refuse_shared(self, user: str, asked: m.RefuseShared) -> m.TokenRefused:
        """Whether there is, or will be, a better one."""
        self._must_log_in()
        return m.TokenRefused(await self._pool.shared(user, asked.password).invalidate(asked.token))

    def _must_log_in(self) -> None:
        if self._pool.settings.login is None:
            raise RequestRefused(409, "callers-log-in", "start it with --login-command or --login-url")

    async def renew(self, name: LeaseName) -> m.Renewed:
        """Raises ``LeaseLost`` if the lease is over."""
        granted: Granted = await self._pool.run(flows.settle(name.user, Extend(name.fencing), name.fencing))
        self._pool.live.discard((name.user, name.fencing))
        return m.Renewed(granted.remaining_s)

    def _lease(self, user: str, granted: Granted) -> m.LentToken:
        # It is the caller's now: any instance may end it, so this process must not wait for it when it stops.
        self._pool.live.discard((user, granted.fence))
        name = format_lease_id(user, granted.fence)
        token, payload = unpack(granted.value)
        return m.LentToken(name, user, token, payload, granted.uses, granted.remaining_s, granted.fence)


def _give_back(user: str, given: Granted | LoginDue, lines: Lines) -> Flow[None]:
    if isinstance(given, LoginDue):
        yield from flows.settle(user, LoginEnded(given.fence, failed=False), given.fence)
    else:
        yield from flows.release(user, Release(given.fence), lines)


async def first_of(work: asyncio.Task[Any], *ends: asyncio.Task[Any]) -> bool:
    """Wait for one of them; whether the work was done before it was of no use any more."""
    await asyncio.wait({work, *ends}, return_when=asyncio.FIRST_COMPLETED)
    return work.done()
