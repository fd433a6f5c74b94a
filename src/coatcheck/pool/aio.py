"""The pool for asyncio: the same flows as for threads, awaited.

A cancelled caller leaves nothing behind. A step at the store is never torn: the cancellation is delivered when the
step is done (a store bounds that by its own time-outs), and what it brought is given back. A login that has begun goes
on in the background, because the upstream may have opened the session already; its token is for the next caller.
"""

from __future__ import annotations

import asyncio
import builtins
import contextlib
import random
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from functools import partial
from types import TracebackType
from typing import Any, Final, Self, TypeVar, Unpack

from coatcheck.pool import flows
from coatcheck.pool.background import Background, call, untorn
from coatcheck.pool.classic import NULL_TOKEN, TokenObject, check_object
from coatcheck.pool.commands import (
    Acquire,
    Add,
    CleanUp,
    Extend,
    Granted,
    LogoutEnded,
    Parting,
    Release,
    Remove,
    Reply,
    Reset,
)
from coatcheck.pool.core import PoolCore, number
from coatcheck.pool.duration import Duration, seconds
from coatcheck.pool.errors import LeaseLost, LoginFailed, LoginRateLimited, LoginRefused, PoolError, StoreUnavailable
from coatcheck.pool.events import PoolEventKind
from coatcheck.pool.flows import Apply, Ask, Effect, Flow, Fresh, LogIn, LoginGoesOn, LogOut, Look, Stand
from coatcheck.pool.held import Held
from coatcheck.pool.inspection import TokenRow, UserStats
from coatcheck.pool.masking import check_password, check_token, check_user
from coatcheck.pool.options import Login, PoolOptions
from coatcheck.pool.payload import pack, renewed, token_of
from coatcheck.pool.shared.credentials import AsyncSharedCredentials, AsyncSharedUse, AuditedAsyncSharedCredentials
from coatcheck.pool.shared.flights import TaskFlights
from coatcheck.pool.shared.flows import Join, Read, Refresh, SharedFlow, Sleep, Step, Swap, change
from coatcheck.pool.shared.flows import rows as shared_rows
from coatcheck.pool.shared.rules import DropShared, EndShared, ResetShared
from coatcheck.pool.state import FAR, UserState
from coatcheck.pool.stores.address import open_async_store
from coatcheck.pool.stores.memory import AsyncMemoryTokenStore
from coatcheck.pool.stores.port import AsyncTokenStore

T = TypeVar("T")

CLOSE_POLL_S: Final = 0.005


class AsyncTokenLease(Held):
    """A lease of an :class:`AsyncTokenPool`: ``async with pool.lease(user) as held``, or ``acquire``, ``release``."""

    __slots__ = ()

    async def __aenter__(self) -> Self:
        entered = self._enter()
        if entered is not self:
            await entered
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        left = self._leave(kind, error, traceback)
        if left is not None:
            await left

    async def acquire(self) -> Self:
        """Get the lease. Raises as :meth:`AsyncTokenPool.lease` says."""
        await self._pool.acquire(self)
        return self

    async def release(self, *, failed: bool = False, token: str | None = None) -> None:
        """Give the lease back, with the refreshed ``token`` if there is one; ``failed``: ``on_error`` decides.

        Raises ``LeaseLost`` if it is over (the token was dropped then), ``StoreUnavailable``.
        """
        if token is not None:
            self.renew(token)
        command, ask = self._let_go(failed)
        await self._pool.run(self._giving_back(command, ask))

    async def refuse(self) -> bool:
        """The upstream refused the token. ``True``: it is dropped when the lease is given back, and another may do.

        ``False``: it is fresh from a login, so another would be no better; it is kept. Raises ``StoreUnavailable``.
        """
        believed: bool = await self._pool.run(self._refusing())
        return believed

    async def extend(self) -> None:
        """A new deadline, one lease time from now. Raises ``LeaseLost`` if the lease is over."""
        self._must_hold()
        granted = await self._pool.run(flows.settle(self.user, Extend(self.fencing), self.fencing))
        self.deadline = granted.deadline


class AsyncTokenPool(PoolCore):
    """Session tokens of an upstream, leased to one task at a time; for one event loop.

    ``login``, ``logout``, ``probe`` and ``keepalive`` may be coroutine functions, or plain ones, which then run in a
    thread. The settings are those of :class:`coatcheck.pool.options.PoolOptions`.
    """

    def __init__(self, login: Login | None = None, **options: Unpack[PoolOptions]) -> None:
        super().__init__(login, options)
        self._flights = TaskFlights(self, self.shared_lines, self.shared_box, self.settings.refresh_before_s)
        self._open()

    def _open(self) -> None:
        url = str(self.settings.store)
        self._store: AsyncTokenStore
        self._store = AsyncMemoryTokenStore(self.memory) if self.memory else open_async_store(url, self.box())
        self.lines = self.new_lines(self._store)
        self._background = Background(self, self._logged_out)
        self._ticker: asyncio.Task[None] | None = None

    # -- leases

    def lease(self, user: str, password: str | None = None, *, wait: Duration | None = None) -> AsyncTokenLease:
        """A lease of one of ``user``'s tokens, once it is entered; logs in by itself when there is none.

        ``password`` goes to ``login`` and is not kept, but for a keyed hash of it: a token is lent only to callers who
        give the password that opened it, or none if none did. ``wait``: at most so long for a token, else the pool's.
        Entering raises ``PoolTimeout``, ``PoolFull``, ``LoginFailed``, ``LoginRefused``, ``LoginRateLimited``,
        ``PoolClosed``, ``StoreUnavailable``, or ``ValueError`` for what is no user; a wrong ``password``
        (``ValueError``) or ``wait`` (``ConfigError``) is refused at once.
        """
        if password is not None or wait is not None:
            check_password(password)
            self.wait_s(wait)
        return AsyncTokenLease(self, user, password, wait)

    async def acquire(self, held: AsyncTokenLease) -> None:
        """What :meth:`AsyncTokenLease.acquire` does."""
        held._must_be_free()
        user, password = check_user(held.user), check_password(held.password)
        flow = self.acquiring(user, password, held)
        held._hold(await self.run(flow, undo=lambda granted: flows.release(user, Release(granted.fence), self.lines)))

    async def resume(self, user: str, fencing: int) -> AsyncTokenLease:
        """The lease ``fencing`` of ``user``, as after a request of another process. Raises ``LeaseLost``."""
        held = AsyncTokenLease(self, check_user(user), None, 0)
        held._hold(await self.run(flows.settle(user, Extend(number(fencing), renew=False), fencing)))
        return held

    async def give_up(self, held: AsyncTokenLease) -> None:
        """Give a lease back whose ``async with`` block failed. What goes wrong here must not hide that failure."""
        fencing = held.fencing
        try:
            await held.release(failed=True)
        except LeaseLost:
            self.report(PoolEventKind.LEASE_LOST, held.user, str(fencing))
        except PoolError as trouble:
            self.report(PoolEventKind.STORE_UNAVAILABLE, held.user, type(trouble).__name__)

    def shared(self, user: str, password: str | None = None, *, wait: Duration | None = None) -> AsyncSharedCredentials:
        """One token of ``user`` for all who ask, renewed ahead of its end: ``(await pool.shared("svc").get()).token``.

        For tokens that may be used by many at once (OAuth access tokens). ``password`` as of :meth:`lease`; it is kept
        in what is returned here, for later logins. ``wait``: at most so long where there is no token yet, a login
        included. Raises ``ValueError``, ``ConfigError``.
        """
        hashes = self.credentials.of(check_user(user), check_password(password))
        line = self.shared_lines.line(user, hashes)
        kind = AsyncSharedCredentials if self.audit is None else AuditedAsyncSharedCredentials
        return kind(self._flights, line, password, self.wait_s(wait))

    def lend(self, user: str, *, shared: bool, again: bool) -> Any:
        """What an adapter uses for one call: a lease, or a shared token that looks like one."""
        return AsyncSharedUse(self.shared(user), again) if shared else self.lease(user)

    # -- the classic calls

    async def check_out(self, username: str, password: str | None = None) -> TokenObject:
        """A free valid token of these credentials, or ``NULL_TOKEN``: then log in and check the new token in.

        Never waits (mission D6).
        """
        check_password(password)
        credentials = self.credentials.of(check_user(username), password)
        shown = self.check_out_quickly(username, credentials)
        if shown is not None:
            self.credentials.checked_out_in_vain(username, ())
            return shown
        flow = flows.ask(username, Acquire(may_wait=False, may_login=False, credentials=credentials))
        reply = await self.run(flow, undo=lambda reply: self._undo(username, reply))
        self.credentials.checked_out_in_vain(username, () if type(reply) is Granted else credentials)
        return self.checked_out(username, reply) if type(reply) is Granted else NULL_TOKEN

    async def check_in(
        self, username: str, token_object: TokenObject, token_string: str, password: str | None = None
    ) -> None:
        """Store the refreshed token and free it; with ``NULL_TOKEN``: a new one (mission D5, D6).

        A new one belongs to the credentials with which this thread (or task) checked out in vain; ``password``: to
        these. Raises ``LeaseLost`` if it is no longer checked out, ``PoolFull`` if a new one has no slot,
        ``ValueError``.
        """
        check_user(username)
        check_object(token_object)
        check_token(token_string)
        check_password(password)
        if token_object.token_id is None:
            credentials = self.credentials.of_new(username, password)
            await self.run(flows.settle(username, Add(pack(token_string, None), self.new_life_s(), credentials)))
            self.credentials.checked_in(username)
            return
        fence = number(token_object.token_id)
        value = pack(token_string, token_object.payload)
        if not self.check_in_quickly(username, fence, value):
            await self.run(flows.release(username, Release(fence, value), self.lines))

    async def remove(self, username: str, token_object: TokenObject) -> bool:
        """Drop a token that the upstream called dead; ``False`` if it is not checked out (mission D7)."""
        check_user(username)
        check_object(token_object)
        if token_object.token_id is None:
            return False
        command = Release(number(token_object.token_id), keep=False, sign_out=False)
        try:
            await self.run(flows.release(username, command, self.lines))
        except LeaseLost:
            return False
        return True

    async def clean_up(self) -> int:
        """Drop expired tokens and overdue leases of all users; returns how many tokens. Call it at intervals."""
        count = 0
        for user in self.overdue(await self._look()):
            count += await self.run(flows.settle(user, CleanUp()))
        for user in await self._background.cancellable(self._store.shared_users()):
            await self.run(change(self.shared_box, user, EndShared()))
        await self._background.cancellable(self._store.forget())
        return count

    # -- for operators

    async def stats(self) -> dict[str, UserStats]:
        """Numbers per user: free, leased, waiting, logins, limits and counters."""
        return self.stats_of(await self._look())

    async def list(self, user: str | None = None) -> builtins.list[TokenRow]:
        """Every slot of all users (or one), tokens masked."""
        rows = self.rows_of(await self._look(user if user is None else check_user(user)))
        for name in sorted(await self._background.cancellable(self._store.shared_users())) if user is None else [user]:
            rows += await self.run(shared_rows(self.shared_box, name))
        return rows

    async def remove_token(self, user: str, token_id: int | None = None, *, soft: bool = False) -> int:
        """Drop one token of a user, or all; returns how many. What is lent is taken from its borrower's hands.

        ``soft``: what is lent may be used on, and is dropped when it is given back.
        """
        command = Remove(None if token_id is None else number(token_id), soft)
        count: int = await self.run(flows.settle(check_user(user), command))
        return count + await self._drop_shared(user, DropShared(token_id))

    async def reset(self, user: str) -> int:
        """Forget what holds a user up: tokens, leases, closings, the back-off and the rate of logins; how many tokens.

        The upstream may still count the sessions that are forgotten.
        """
        count: int = await self.run(flows.settle(check_user(user), Reset()))
        return count + await self._drop_shared(user, ResetShared())

    async def _drop_shared(self, user: str, command: DropShared | ResetShared) -> int:
        dropped = await self.run(change(self.shared_box, user, command))
        return self.dropped_shared(user, dropped)

    async def keep_alive(self) -> int:
        """Touch tokens that were idle for ``keepalive_every``; returns how many. The pool does so by itself."""
        if self.settings.keepalive is None:
            return 0
        idle_s, most = self.settings.keepalive_every_s, self.settings.policy.per_user
        return sum([await self.run(flows.keep_alive(user, idle_s, most)) for user in await self._look()])

    async def warm_up(self, user: str, sessions: int, password: str | None = None) -> int:
        """Log in until these credentials have so many sessions, or all slots are taken; returns how many logins.

        Those who wait come first, and have what it brings. Raises ``LoginFailed``, ``LoginRefused``,
        ``LoginRateLimited``, ``PoolClosed``, ``StoreUnavailable``, ``ValueError``.
        """
        credentials = self.credentials.of(check_user(user), check_password(password))
        most = number(sessions)
        for count in range(most):
            if not await self.run(flows.log_in_ahead(user, password, most, self.lines, credentials)):
                return count
        return most

    async def close(self, timeout: Duration = "10s", *, log_out: bool | None = None) -> None:
        """Lend no more, wait for what is out, drop and log out the tokens, let the store go.

        At most ``timeout`` in all. Repeating it does nothing. ``log_out``: by default, what this process alone has.
        ``True``: also the tokens in a shared store; what others hold, when they give it back. ``False``: nothing.
        """
        log_out = self.logs_out_when_closed(log_out)
        until = time.monotonic() + seconds("timeout", timeout)
        if self.ended:
            return
        self.closed = True
        self.quick = None
        self.shared_lines.forget()
        if self._ticker is not None:
            self._ticker.cancel()
        self.lines.close()
        # Leases of a store in the process may be given back by threads that know no event loop: so look, not listen.
        while self.held_leases() and time.monotonic() < until:  # noqa: ASYNC110
            await asyncio.sleep(CLOSE_POLL_S)
        try:
            if self._flights.flying:
                await asyncio.wait(self._flights.flying.copy(), timeout=max(0.0, until - time.monotonic()))
            self.keeps = self.memory is None  # a store's are for others
            if log_out:
                await self._drop_all(until)
            while self._background.tasks and time.monotonic() < until:
                await asyncio.wait(list(self._background.tasks), timeout=max(0.0, until - time.monotonic()))
        finally:
            self.ended = True
            self._background.cancel()
            if self.audit is not None:
                await asyncio.to_thread(self.audit.teller.finish, until - time.monotonic())
            await self._store.close()

    async def _drop_all(self, until: float) -> None:
        """Drop all tokens, as fast as they can be logged out; what a store has is left to others when time is up."""
        drop, users = Remove(soft=self.memory is None), await self._look()
        if self.audit is not None:
            self.audit.closing = True
        for user, (state, _) in users.items():
            await self._background.wait_for_room(state.slots_used(), until)
            if self.must_stop_dropping(until):
                return
            await self.run(flows.settle(user, drop))
        for user in await self._background.cancellable(self._store.shared_users()):
            if self.must_stop_dropping(until):
                return
            await self.run(change(self.shared_box, user, DropShared()))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _look(self, user: str | None = None) -> dict[str, tuple[UserState, float]]:
        return await self._background.cancellable(self._store.look(user))

    # -- running flows

    async def run(self, flow: Flow[T] | SharedFlow[T], undo: Callable[[T], Flow[Any]] | None = None) -> T:
        """Run a flow to its end. An error of a step, and a cancellation, is the flow's to put right.

        ``undo``: what to do with a result that came together with a cancellation.
        """
        cancelled: list[asyncio.CancelledError] = []
        try:
            effect = next(flow)
            while True:
                try:
                    if cancelled and isinstance(effect, Stand | Look | LogIn | Ask | Join | Sleep | Refresh):
                        raise cancelled[0]
                    answer = await self._answer(effect, cancelled)
                except BaseException as error:  # noqa: BLE001 - the flow raises it again, cancellation included
                    effect = flow.throw(error)
                else:
                    effect = flow.send(answer)
        except StopIteration as end:
            result: T = end.value
        except LoginGoesOn as departure:
            raise asyncio.CancelledError from departure
        except Exception as error:
            if cancelled:
                raise cancelled[0] from error  # whatever else went wrong: the caller was told to stop
            raise
        if cancelled:
            if undo is not None:
                with contextlib.suppress(PoolError):
                    await self.run(undo(result))
            raise cancelled[0]
        return result

    def _answer(
        self, effect: Effect | Step, cancelled: builtins.list[asyncio.CancelledError]
    ) -> Coroutine[Any, Any, Any]:
        if isinstance(effect, Apply):
            return self._apply(effect, cancelled)
        if isinstance(effect, Stand):
            return self._stand(effect)
        if isinstance(effect, Look):
            return self._background.cancellable(self._store.is_turn(effect.user, effect.ticket))
        if isinstance(effect, LogIn):
            return self._log_in(effect)
        if isinstance(effect, Ask):
            return self._ask(effect)
        if isinstance(effect, Read):
            return self._untorn(self._store.read_shared(effect.user), cancelled)
        if isinstance(effect, Swap):
            return self._untorn(self._store.swap_shared(effect.user, effect.old, effect.new, effect.keep_s), cancelled)
        if isinstance(effect, Sleep):
            return asyncio.sleep(effect.pause_s if effect.exactly else effect.pause_s * (1 + random.random() / 2))
        if isinstance(effect, Join):
            return _join(effect)
        if isinstance(effect, Refresh):
            return self._call_login(effect)
        return self._add_logouts(effect)

    def _untorn(
        self, step: Coroutine[Any, Any, T], cancelled: builtins.list[asyncio.CancelledError]
    ) -> Coroutine[Any, Any, T]:
        """A step at the store; in the process there is nothing to tear."""
        return step if self.memory is not None else untorn(step, cancelled)

    async def _apply(self, effect: Apply, cancelled: builtins.list[asyncio.CancelledError]) -> Reply:
        self.must_be_open(effect.command)
        sent_at = self.clock()
        self.giving_back(effect.user, effect.command)
        if self.settings.ticks_every_s != FAR and (self._ticker is None or self._ticker.done()) and not self.closed:
            # The task must not keep a pool that everybody has forgotten.
            ticking = _tick(weakref.ref(self), self.settings.ticks_every_s)
            self._ticker = asyncio.get_running_loop().create_task(ticking)
        if self.memory is not None and self.memory.wants_sweep(effect.user):
            await self.clean_up()
        outcome = await self._untorn(self._store.apply(effect.user, effect.command), cancelled)
        if self.audit is not None:
            self.audit.applied(effect.user, effect.command, outcome)
        if outcome.partings:
            self._background.add_logouts(effect.user, outcome.partings)
        return self.settled(effect.user, outcome.reply, sent_at)

    async def _add_logouts(self, effect: LogOut) -> None:
        self._background.add_logouts(effect.user, effect.partings)

    async def _stand(self, effect: Stand) -> None:
        """A future and a timer; no task."""
        loop, here = asyncio.get_running_loop(), threading.get_ident()
        woken: asyncio.Future[None] = loop.create_future()

        def finish() -> None:
            if not woken.done():
                woken.set_result(None)

        def wake() -> None:
            with contextlib.suppress(RuntimeError):  # the loop of a caller who is gone may be closed
                if threading.get_ident() == here:
                    finish()
                else:
                    loop.call_soon_threadsafe(finish)

        sleep_s = self.lines.sleep(effect.place, effect.until, wake)
        if sleep_s <= 0:
            return
        timer = None if sleep_s == FAR else loop.call_later(sleep_s, finish)
        try:
            await woken
        finally:
            if timer is not None:
                timer.cancel()

    async def _log_in(self, effect: LogIn) -> Fresh:
        login = self._background.spawn(self._call_login(effect))
        try:
            return await asyncio.shield(login)
        except asyncio.CancelledError:
            if login.cancelled():
                raise
            login.add_done_callback(lambda done: self._finish_login(effect, done))
            raise LoginGoesOn from None

    async def _call_login(self, effect: LogIn | Refresh) -> Fresh:
        login = self.settings.login
        if login is None:
            raise LoginFailed(effect.user, "the pool has no login function")
        takes_state = self.settings.login_takes_upstream_state
        state = await self.run(self.finding_state(effect.user, effect.credentials)) if takes_state else None
        try:
            login, arguments = self.login_call(login, effect, state)
            late = partial(self._login_came_late, effect.user)
            result = await call(login, arguments, self.settings.policy.login_timeout_s, late)
        except (Exception, GeneratorExit) as error:  # which would end the flow instead of failing it
            raise self.login_error(effect.user, error) from error
        fresh = self.fresh(effect.user, result)
        if fresh.upstream_state is not None:
            await self.run(self.keeping_state(effect.user, effect.credentials, fresh.upstream_state))
        return fresh

    def _login_came_late(self, user: str, result: object) -> None:
        with contextlib.suppress(LoginFailed):
            self._background.add_logouts(user, (Parting(0, self.fresh(user, result).value),))

    def _finish_login(self, effect: LogIn, done: asyncio.Task[Fresh]) -> None:
        """The caller was cancelled meanwhile; what the login brought goes into the pool."""
        failed = done.cancelled() or done.exception() is not None
        refused = not done.cancelled() and isinstance(done.exception(), LoginRefused)
        fresh = None if failed else done.result()

        async def finish() -> None:
            try:
                await self.run(flows.finish_login(effect, fresh, self.lines, refused=refused))
            except PoolError as trouble:
                self.report(PoolEventKind.LOGIN_FAILED, effect.user, type(trouble).__name__)

        if not asyncio.get_running_loop().is_closed():
            self._background.spawn(finish())

    def spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        """A task of the pool's own, which ends with it."""
        return self._background.spawn(work)

    async def _ask(self, effect: Ask) -> Any:
        probing = effect.what == "probe"
        function = self.settings.probe if probing else self.settings.keepalive
        assert function is not None
        try:
            timeout_s = self.settings.policy.lease_s if probing else None
            answer = await call(function, (effect.user, token_of(effect.value)), timeout_s)
            return bool(answer) if probing else None if answer is None else renewed(effect.value, answer)
        except Exception as error:
            kind = PoolEventKind.PROBE_FAILED if probing else PoolEventKind.KEEPALIVE_FAILED
            self.report(kind, effect.user, type(error).__name__)
            if probing:
                return None
            raise

    async def tick(self) -> None:
        """What is due every few minutes; runs in the background."""
        try:
            await self.keep_alive()
            await self._keep_ready()
        except Exception as error:  # noqa: BLE001 - the next tick comes
            if not self.closed:
                self.report(PoolEventKind.KEEPALIVE_FAILED, "", type(error).__name__)

    async def _keep_ready(self) -> None:
        least = self.settings.min_idle
        for user in self.users_to_keep_ready(await self._look()):
            with contextlib.suppress(LoginFailed, LoginRateLimited):  # told already; the back-off says when again
                ahead = flows.log_in_ahead(user, None, least, self.lines, (), idle=True)
                self.note_ready(user, await self.run(ahead))

    async def _logged_out(self, user: str, parting: Parting) -> None:
        try:
            await self.run(flows.ask(user, LogoutEnded(parting.fence)))
        except StoreUnavailable as error:
            self.report(PoolEventKind.STORE_UNAVAILABLE, user, str(error))

    def start_anew(self) -> None:
        super().start_anew()
        self._flights.start_anew()
        self.abandon(self._store)
        self._open()

    def _undo(self, user: str, reply: Reply) -> Flow[Any]:
        if type(reply) is Granted:
            yield from flows.release(user, Release(reply.fence), self.lines)


async def _tick(pool: weakref.ref[AsyncTokenPool], every_s: float) -> None:
    while True:
        await asyncio.sleep(every_s)
        found = pool()
        if found is None:
            return
        await found.tick()
        del found


async def _join(effect: Join) -> bool:
    await asyncio.wait([effect.flight], timeout=effect.timeout_s)
    if effect.flight.done():
        effect.flight.result()
    return bool(effect.flight.done())
