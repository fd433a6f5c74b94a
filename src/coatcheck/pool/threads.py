"""The pool for threads: runs the flows, calls the callbacks, logs out in the background."""

from __future__ import annotations

import atexit
import builtins
import contextlib
import inspect
import random
import threading
import time
import weakref
from concurrent.futures import wait
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, Unpack

from coatcheck.pool import flows
from coatcheck.pool.classic import NULL_TOKEN, TokenObject, check_object
from coatcheck.pool.commands import (
    Acquire,
    Add,
    CleanUp,
    Extend,
    Granted,
    LoginDone,
    LogoutEnded,
    Parting,
    Release,
    Remove,
    Reply,
    Reset,
)
from coatcheck.pool.core import PoolCore, number
from coatcheck.pool.duration import Duration, seconds
from coatcheck.pool.errors import LeaseLost, LoginFailed, LoginRateLimited, PoolError, StoreUnavailable
from coatcheck.pool.events import PoolEventKind
from coatcheck.pool.flows import Apply, Ask, Effect, Flow, Fresh, LogIn, Look, Stand
from coatcheck.pool.held import Held
from coatcheck.pool.inspection import TokenRow, UserStats
from coatcheck.pool.logouts import Logouts, prepare_for_exit
from coatcheck.pool.masking import check_password, check_token, check_user
from coatcheck.pool.options import Login, PoolOptions
from coatcheck.pool.payload import pack, renewed, token_of
from coatcheck.pool.shared.credentials import AuditedSharedCredentials, SharedCredentials, SharedUse
from coatcheck.pool.shared.flights import ThreadFlights
from coatcheck.pool.shared.flows import Join, Read, Refresh, SharedFlow, Sleep, Step, Swap, change
from coatcheck.pool.shared.flows import rows as shared_rows
from coatcheck.pool.shared.rules import DropShared, EndShared, ResetShared
from coatcheck.pool.state import FAR
from coatcheck.pool.stores.address import open_store
from coatcheck.pool.stores.port import TokenStore

T = TypeVar("T")

TICKER: Final = "coatcheck-pool-keepalive"

_open_pools: weakref.WeakSet[TokenPool] = weakref.WeakSet()


class TokenLease(Held):
    """A lease of a :class:`TokenPool`: ``with pool.lease(user) as held``, or ``acquire()`` and ``release()``."""

    __slots__ = ()

    if TYPE_CHECKING:

        def __enter__(self) -> Self: ...

        def __exit__(
            self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
        ) -> None: ...

    else:
        __enter__ = Held._enter
        __exit__ = Held._leave

    def acquire(self) -> Self:
        """Get the lease. Raises as :meth:`TokenPool.lease` says."""
        self._pool.acquire(self)
        return self

    def release(self, *, failed: bool = False, token: str | None = None) -> None:
        """Give the lease back, with the refreshed ``token`` if there is one; ``failed``: ``on_error`` decides.

        Raises ``LeaseLost`` if it is over (the token was dropped then), ``StoreUnavailable``.
        """
        if token is not None:
            self.renew(token)
        command, ask = self._let_go(failed)
        self._pool.run(self._giving_back(command, ask))

    def refuse(self) -> bool:
        """The upstream refused the token. ``True``: it is dropped when the lease is given back, and another may do.

        ``False``: it is fresh from a login, so another would be no better; it is kept. Raises ``StoreUnavailable``.
        """
        believed: bool = self._pool.run(self._refusing())
        return believed

    def extend(self) -> None:
        """A new deadline, one lease time from now. Raises ``LeaseLost`` if the lease is over."""
        self._must_hold()
        self.deadline = self._pool.run(flows.settle(self.user, Extend(self.fencing), self.fencing)).deadline


class TokenPool(PoolCore):
    """Session tokens of an upstream, leased to one caller at a time; safe to use from several threads.

    ``login`` may be ``None`` for a pool that only uses what was checked in. The other settings are those of
    :class:`coatcheck.pool.options.PoolOptions`; wrong ones raise ``ConfigError``.
    """

    def __init__(self, login: Login | None = None, **options: Unpack[PoolOptions]) -> None:
        super().__init__(login, options)
        self.settings.refuse_coroutines()
        _open_pools.add(self)
        self._flights = ThreadFlights(self, self.shared_lines, self.shared_box, self.settings.refresh_before_s)
        self._open()
        self._see_to_keepalive()

    def _open(self) -> None:
        self._store: TokenStore = self.memory or open_store(str(self.settings.store), self.box())
        self.lines = self.new_lines(self._store)
        patience_s = self.settings.policy.logout_timeout_s
        self._logouts = Logouts(self.log_out, self._logout_skipped, patience_s)
        self._stop = threading.Event()
        self._starting = threading.Lock()
        self._ticker: threading.Thread | None = None

    # -- leases

    def lease(self, user: str, password: str | None = None, *, wait: Duration | None = None) -> TokenLease:
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
        return TokenLease(self, user, password, wait)

    def acquire(self, held: TokenLease) -> None:
        """What :meth:`TokenLease.acquire` does."""
        held._must_be_free()
        user, password = check_user(held.user), check_password(held.password)
        held._hold(self.run(self.acquiring(user, password, held)))

    def resume(self, user: str, fencing: int) -> TokenLease:
        """The lease ``fencing`` of ``user``, as after a request of another process. Raises ``LeaseLost``."""
        held = TokenLease(self, check_user(user), None, 0)
        held._hold(self.run(flows.settle(user, Extend(number(fencing), renew=False), fencing)))
        return held

    def give_up(self, held: TokenLease) -> None:
        """Give a lease back whose ``with`` block failed. What goes wrong here must not hide that failure."""
        fencing = held.fencing
        try:
            held.release(failed=True)
        except LeaseLost:
            self.report(PoolEventKind.LEASE_LOST, held.user, str(fencing))
        except PoolError as trouble:
            self.report(PoolEventKind.STORE_UNAVAILABLE, held.user, type(trouble).__name__)

    def shared(self, user: str, password: str | None = None, *, wait: Duration | None = None) -> SharedCredentials:
        """One token of ``user`` for all who ask, renewed ahead of its end: ``pool.shared("svc").get().token``.

        For tokens that may be used by many at once (OAuth access tokens). ``password`` as of :meth:`lease`; it is kept
        in what is returned here, for later logins. ``wait``: at most so long where there is no token yet, a login
        included. Raises ``ValueError``, ``ConfigError``.
        """
        hashes = self.credentials.of(check_user(user), check_password(password))
        line = self.shared_lines.line(user, hashes)
        kind = SharedCredentials if self.audit is None else AuditedSharedCredentials
        return kind(self._flights, line, password, self.wait_s(wait))

    def lend(self, user: str, *, shared: bool, again: bool) -> Any:
        """What an adapter uses for one call: a lease, or a shared token that looks like one."""
        return SharedUse(self.shared(user), again) if shared else self.lease(user)

    # -- the classic calls

    def check_out(self, username: str, password: str | None = None) -> TokenObject:
        """A free valid token of these credentials, or ``NULL_TOKEN``: then log in and check the new token in.

        Never waits (mission D6).
        """
        check_password(password)
        credentials = self.credentials.of(check_user(username), password)
        shown = self.check_out_quickly(username, credentials)
        if shown is not None:
            self.credentials.checked_out_in_vain(username, ())
            return shown
        command = Acquire(may_wait=False, may_login=False, credentials=credentials)
        reply = self.run(flows.ask(username, command))
        self.credentials.checked_out_in_vain(username, () if type(reply) is Granted else credentials)
        return self.checked_out(username, reply) if type(reply) is Granted else NULL_TOKEN

    def check_in(
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
            self.run(flows.settle(username, Add(pack(token_string, None), self.new_life_s(), credentials)))
            self.credentials.checked_in(username)
            return
        fence = number(token_object.token_id)
        value = pack(token_string, token_object.payload)
        if not self.check_in_quickly(username, fence, value):
            self.run(flows.release(username, Release(fence, value), self.lines))

    def remove(self, username: str, token_object: TokenObject) -> bool:
        """Drop a token that the upstream called dead; ``False`` if it is not checked out (mission D7)."""
        check_user(username)
        check_object(token_object)
        if token_object.token_id is None:
            return False
        command = Release(number(token_object.token_id), keep=False, sign_out=False)
        try:
            self.run(flows.release(username, command, self.lines))
        except LeaseLost:
            return False
        return True

    def clean_up(self) -> int:
        """Drop expired tokens and overdue leases of all users; returns how many tokens. Call it at intervals."""
        count = 0
        for user in self.overdue(self._store.look()):
            count += self.run(flows.settle(user, CleanUp()))
        for user in self._store.shared_users():
            self.run(change(self.shared_box, user, EndShared()))
        self._store.forget()
        return count

    # -- for operators

    def stats(self) -> dict[str, UserStats]:
        """Numbers per user: free, leased, waiting, logins, limits and counters."""
        return self.stats_of(self._store.look())

    def list(self, user: str | None = None) -> builtins.list[TokenRow]:
        """Every slot of all users (or one), tokens masked."""
        rows = self.rows_of(self._store.look(user if user is None else check_user(user)))
        for name in sorted(self._store.shared_users()) if user is None else [user]:
            rows += self.run(shared_rows(self.shared_box, name))
        return rows

    def remove_token(self, user: str, token_id: int | None = None, *, soft: bool = False) -> int:
        """Drop one token of a user, or all; returns how many. What is lent is taken from its borrower's hands.

        ``soft``: what is lent may be used on, and is dropped when it is given back.
        """
        command = Remove(None if token_id is None else number(token_id), soft)
        count: int = self.run(flows.settle(check_user(user), command))
        return count + self._drop_shared(user, DropShared(token_id))

    def reset(self, user: str) -> int:
        """Forget what holds a user up: tokens, leases, closings, the back-off and the rate of logins; how many tokens.

        The upstream may still count the sessions that are forgotten.
        """
        count: int = self.run(flows.settle(check_user(user), Reset()))
        return count + self._drop_shared(user, ResetShared())

    def _drop_shared(self, user: str, command: DropShared | ResetShared) -> int:
        dropped = self.run(change(self.shared_box, user, command))
        return self.dropped_shared(user, dropped)

    def keep_alive(self) -> int:
        """Touch tokens that were idle for ``keepalive_every``; returns how many. The pool does so by itself."""
        if self.settings.keepalive is None:
            return 0
        idle_s, most = self.settings.keepalive_every_s, self.settings.policy.per_user
        return sum(self.run(flows.keep_alive(user, idle_s, most)) for user in self._store.look())

    def warm_up(self, user: str, sessions: int, password: str | None = None) -> int:
        """Log in until these credentials have so many sessions, or all slots are taken; returns how many logins.

        Those who wait come first, and have what it brings. Raises ``LoginFailed``, ``LoginRefused``,
        ``LoginRateLimited``, ``PoolClosed``, ``StoreUnavailable``, ``ValueError``.
        """
        credentials = self.credentials.of(check_user(user), check_password(password))
        most = number(sessions)
        for count in range(most):
            if not self.run(flows.log_in_ahead(user, password, most, self.lines, credentials)):
                return count
        return most

    def close(self, timeout: Duration = "10s", *, log_out: bool | None = None) -> None:
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
        self._stop.set()
        self.lines.close()
        while self.held_leases() and time.monotonic() < until:
            time.sleep(0.005)
        try:
            wait(self._flights.flying.copy(), max(0.0, until - time.monotonic()))
            self.keeps = self.memory is None  # a store's are for others
            if log_out:
                self._drop_all(until)
            self._logouts.finish(until - time.monotonic())
        finally:
            self.ended = True
            if self.audit is not None:
                self.audit.teller.finish(until - time.monotonic())
            self._store.close()

    def _drop_all(self, until: float) -> None:
        """Drop all tokens, as fast as they can be logged out; what a store has is left to others when time is up."""
        drop, users = Remove(soft=self.memory is None), self._store.look()
        if self.audit is not None:
            self.audit.closing = True
        for user, (state, _) in users.items():
            self._logouts.wait_for_room(state.slots_used(), until)
            if self.must_stop_dropping(until):
                return
            self.run(flows.settle(user, drop))
        for user in self._store.shared_users():
            if self.must_stop_dropping(until):
                return
            self.run(change(self.shared_box, user, DropShared()))

    def close_at_exit(self) -> None:
        """What the process alone has is logged out when it ends; whoever held it is gone."""
        if self.ended or self.memory is None or self.settings.logout is None:
            return
        self.closed = self.ended = True
        self.keeps = False
        self.quick = None
        self._drop_all(time.monotonic() + self.settings.policy.logout_timeout_s)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- running flows

    def run(self, flow: Flow[T] | SharedFlow[T]) -> T:
        """Run a flow to its end in this thread. An error of a step, or Ctrl-C, is the flow's to put right."""
        answer: Any = None
        error: BaseException | None = None
        while True:
            try:
                effect = flow.send(answer) if error is None else flow.throw(error)
                answer, error = None, None
                answer = self._answer(effect)
            except BaseException as failure:
                if inspect.getgeneratorstate(flow) == inspect.GEN_CLOSED:  # the flow's own end
                    if isinstance(failure, StopIteration):
                        result: T = failure.value
                        return result
                    error = None
                    raise
                error = failure

    def _answer(self, effect: Effect | Step) -> Any:
        if isinstance(effect, Apply):
            return self._apply(effect)
        if isinstance(effect, Stand):
            return self._stand(effect)
        if isinstance(effect, Look):
            return self._store.is_turn(effect.user, effect.ticket)
        if isinstance(effect, LogIn | Refresh):
            return self._log_in(effect)
        if isinstance(effect, Ask):
            return self._ask(effect)
        if isinstance(effect, Read):
            return self._store.read_shared(effect.user)
        if isinstance(effect, Swap):
            return self._store.swap_shared(effect.user, effect.old, effect.new, effect.keep_s)
        if isinstance(effect, Sleep):
            return time.sleep(effect.pause_s if effect.exactly else effect.pause_s * (1 + random.random() / 2))
        if isinstance(effect, Join):
            return self._join(effect)
        return self._add_logouts(effect.user, effect.partings)

    def _join(self, effect: Join) -> bool:
        wait({effect.flight}, effect.timeout_s)
        if effect.flight.done():
            effect.flight.result()
        return bool(effect.flight.done())

    def _apply(self, effect: Apply) -> Reply:
        self.must_be_open(effect.command)
        sent_at = self.clock()
        self.giving_back(effect.user, effect.command)
        self._see_to_keepalive()
        if self.settings.logout is not None and isinstance(effect.command, LoginDone | Add):
            prepare_for_exit()
        if self.memory is not None and self.memory.wants_sweep(effect.user):
            self.clean_up()
        outcome = self._store.apply(effect.user, effect.command)
        if self.audit is not None:
            self.audit.applied(effect.user, effect.command, outcome)
        if outcome.partings:
            self._add_logouts(effect.user, outcome.partings)
        return self.settled(effect.user, outcome.reply, sent_at)

    def _stand(self, effect: Stand) -> None:
        woken = threading.Lock()
        woken.acquire()
        sleep_s = self.lines.sleep(effect.place, effect.until, woken.release)
        if sleep_s > 0:
            woken.acquire(timeout=min(sleep_s, threading.TIMEOUT_MAX))

    def _log_in(self, effect: LogIn | Refresh) -> Fresh:
        login = self.settings.login
        if login is None:
            raise LoginFailed(effect.user, "the pool has no login function")
        takes_state = self.settings.login_takes_upstream_state
        state = self.run(self.finding_state(effect.user, effect.credentials)) if takes_state else None
        try:
            login, arguments = self.login_call(login, effect, state)
            result = login(*arguments)
        except (Exception, GeneratorExit) as error:  # which would end the flow instead of failing it
            raise self.login_error(effect.user, error) from error
        fresh = self.fresh(effect.user, result)
        if fresh.upstream_state is not None:
            self.run(self.keeping_state(effect.user, effect.credentials, fresh.upstream_state))
        return fresh

    def _ask(self, effect: Ask) -> Any:
        probing = effect.what == "probe"
        function = self.settings.probe if probing else self.settings.keepalive
        assert function is not None
        try:
            answer = function(effect.user, token_of(effect.value))
            return bool(answer) if probing else None if answer is None else renewed(effect.value, answer)
        except Exception as error:
            kind = PoolEventKind.PROBE_FAILED if probing else PoolEventKind.KEEPALIVE_FAILED
            self.report(kind, effect.user, type(error).__name__)
            if probing:
                return None
            raise

    def _see_to_keepalive(self) -> None:
        """Have the thread that keeps idle tokens alive; a fork starts its own with its first command."""
        every_s = self.settings.ticks_every_s
        if every_s == FAR or self._ticker is not None or self.closed:
            return
        with self._starting:
            if self._ticker is None:
                # The thread must not keep a pool that everybody has forgotten.
                weakref.finalize(self, self._stop.set).atexit = False
                self._ticker = threading.Thread(
                    target=_tick, args=[weakref.ref(self), self._stop, every_s], name=TICKER, daemon=True
                )
                self._ticker.start()

    def tick(self) -> None:
        """What is due every few minutes; runs in the background."""
        try:
            self.keep_alive()
            self._keep_ready()
        except BaseException as error:  # noqa: BLE001 - also of a login that ends its thread; the next tick comes
            if not self.closed:
                self.report(PoolEventKind.KEEPALIVE_FAILED, "", type(error).__name__)

    def _keep_ready(self) -> None:
        least = self.settings.min_idle
        for user in self.users_to_keep_ready(self._store.look()):
            with contextlib.suppress(LoginFailed, LoginRateLimited):  # told already; the back-off says when again
                self.note_ready(user, self.run(flows.log_in_ahead(user, None, least, self.lines, (), idle=True)))

    def _add_logouts(self, user: str, partings: tuple[Parting, ...]) -> None:
        if self.settings.logout is not None:
            self._logouts.add(user, partings)

    def _logout_skipped(self, user: str, why: str) -> None:
        self.report(PoolEventKind.LOGOUT_SKIPPED, user, why)

    def log_out(self, user: str, parting: Parting) -> None:
        """Log one dropped token out, then free its slot; runs in the background."""
        assert self.settings.logout is not None
        try:
            self.settings.logout(user, token_of(parting.value))
            self.logged_out(user, parting)
        except BaseException as error:  # noqa: BLE001 - a callback's, reported; the upstream will time the session out
            self.logged_out(user, parting, error)
        if not parting.fence:
            return
        try:
            self._apply(Apply(user, LogoutEnded(parting.fence)))
        except StoreUnavailable as error:
            self.report(PoolEventKind.STORE_UNAVAILABLE, user, str(error))

    def start_anew(self) -> None:
        super().start_anew()
        self._flights.start_anew()
        self.abandon(self._store)
        self._open()


def _tick(pool: weakref.ref[TokenPool], stop: threading.Event, every_s: float) -> None:
    while not stop.wait(every_s):
        found = pool()
        if found is None:
            return
        found.tick()
        del found


# Registered after that of the logouts, so it runs before: they get what is dropped here.
@atexit.register
def _close_at_exit() -> None:
    for pool in list(_open_pools):
        try:
            pool.close_at_exit()
        except Exception as error:  # noqa: BLE001 - of its clock, say; the others are to be logged out, too
            pool.report(PoolEventKind.LOGOUT_FAILED, "", type(error).__name__)
