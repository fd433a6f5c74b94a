"""What is under way for those who share tokens in one process: at most one step for each token, behind their backs."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Final

from msgspec.structs import replace

from coatcheck.pool.audit import AuditKind
from coatcheck.pool.errors import LoginFailed, LoginRateLimited, PoolClosed, PoolError, PoolTimeout, StoreUnavailable
from coatcheck.pool.events import PoolEventKind
from coatcheck.pool.shared import flows
from coatcheck.pool.shared.flows import Asker, Join, SharedBox, SharedFlow, Sleep
from coatcheck.pool.shared.rules import Begun
from coatcheck.pool.shared.seen import SharedLine, SharedLines, SharedToken

PAUSE_LOOK_S: Final = 0.1
"""How often whoever waits for the end of a pause looks whether a token has come meanwhile."""

Flight = Any
"""A future, of threads or of asyncio: done when it is known what is current."""


class Flights:
    """The steps of one pool's lines. ``pool`` runs their flows; closed, it begins no more."""

    def __init__(self, pool: Any, lines: SharedLines, box: SharedBox, refresh_before_s: float) -> None:
        self.pool = pool
        self.lines = lines
        self.box = box
        self._refresh_before_s = refresh_before_s
        self.start_anew()

    def start_anew(self) -> None:
        """After a fork: what is under way is the parent's."""
        self._lock = threading.Lock()
        self.flying: set[Flight] = set()

    def new_flight(self) -> Flight:
        raise NotImplementedError

    def start(self, flow: SharedFlow[None]) -> None:
        """Have the flow run in the background."""
        raise NotImplementedError

    # -- flows

    def get(self, line: SharedLine, password: str | None, wait_s: float) -> SharedFlow[SharedToken]:
        """The token that is current; see :meth:`.credentials.SharedCredentials.get`."""
        clock = self.lines.clock
        give_up_at = clock() + wait_s
        trouble: PoolError | None = None
        while True:
            seen, now = self.lines.seen(line), clock()
            if seen is not None and now < seen.stale_at:
                if now >= seen.ask_at:
                    self.launch(line, password)
                return seen.shown
            if trouble is not None:
                raise trouble
            flight = self.launch(line, password)
            left_s, patience_s = max(0.0, give_up_at - now), max(0.0, line.flight_until - now)
            try:
                if not (yield Join(flight, min(left_s, patience_s))) and left_s <= patience_s:
                    raise PoolTimeout(line.user, wait_s)
            except LoginRateLimited as limited:
                allowed_at = clock() + limited.retry_after_s
                if allowed_at >= give_up_at:
                    raise
                while (pause_s := allowed_at - clock()) > 0 and not self.pool.closed:
                    seen = self.lines.seen(line)
                    if seen is not None and clock() < seen.stale_at:
                        break  # another caller has got one meanwhile
                    yield Sleep(min(PAUSE_LOOK_S, pause_s), exactly=True)
            except StoreUnavailable as error:
                trouble = error  # what was seen before may be good enough

    def invalidate(self, line: SharedLine, token: str) -> SharedFlow[bool]:
        """See :meth:`.credentials.SharedCredentials.invalidate`."""
        epoch, asked_at = self.lines.epoch, self.lines.clock()
        seen = self.lines.seen(line)
        number = 0 if seen is None else seen.shown.number
        begun, better = yield from flows.invalidate(self.box, line.user, line.credentials, token)
        line.take(self.lines, begun, asked_at, epoch, changed=True)
        if self.pool.audit is not None:
            detail = "shared: believed" if better else "shared: not believed: fresh from a login"
            self.pool.audit.note(AuditKind.REFUSED, line.user, token=number, detail=detail)
        return better

    def _fly(self, line: SharedLine, flight: Flight, password: str | None, epoch: int) -> SharedFlow[None]:
        lines = self.lines
        caller = Asker(line.user, password, line.credentials, self._refresh_before_s)
        try:
            asked_at = lines.clock()
            begun = yield from flows.begin(self.box, caller)
            if begun.fence and begun.current is not None:
                # Everybody goes on with that one, and looks after it as always, while the next one comes.
                line.take(lines, begun, asked_at, epoch)
                self._land(line, flight)
                flight = self._took_off()
            if begun.fence:
                asked_at = lines.clock()
                if line.unsaved is not None:
                    begun = replace(begun, refresh_token=line.unsaved)
                begun = yield from self._logging_in(flows.log_in(self.box, caller, begun, line.not_saved), line.user)
                line.unsaved = None
                line.take(lines, begun, asked_at, epoch, changed=True)
            else:
                line.take(lines, begun, asked_at, epoch)
        except BaseException as error:  # noqa: BLE001 - those who wait for it raise it
            line.put_off(lines, error)
            if isinstance(error, StoreUnavailable):
                self.pool.report(PoolEventKind.STORE_UNAVAILABLE, line.user, type(error).__name__)
            self._land(line, flight, error)
        else:
            self._land(line, flight)

    def _logging_in(self, flow: SharedFlow[Begun], user: str) -> SharedFlow[Begun]:
        """A login, audited."""
        audit = self.pool.audit
        try:
            begun = yield from flow
        except LoginFailed as error:
            if audit is not None:
                audit.login_failed(user, error)
            raise
        if audit is not None and begun.current is not None:
            audit.note(AuditKind.LOGIN, user, token=begun.current.number, detail="shared")
        return begun

    # -- flights

    def launch(self, line: SharedLine, password: str | None) -> Flight:
        """Begin a step, unless one is under way that is not overdue. Raises ``PoolClosed``."""
        with self._lock:
            if self.pool.closed:
                raise PoolClosed("the pool is closed")
            epoch, now = self.lines.epoch, self.lines.clock()
            if line.flight is not None and line.epoch == epoch and now < line.flight_until:
                return line.flight
            line.flight = flight = self._took_off()
            line.epoch, line.flight_until = epoch, now + self.box.policy.login_timeout_s
        self.start(self._fly(line, flight, password, epoch))
        return flight

    def _took_off(self) -> Flight:
        flight = self.new_flight()
        self.flying.add(flight)
        return flight

    def _land(self, line: SharedLine, flight: Flight, error: BaseException | None = None) -> None:
        with self._lock:
            self.flying.discard(flight)
            if line.flight is flight:
                line.flight = None
        if flight.done():
            return
        if error is None:
            flight.set_result(None)
        else:
            flight.set_exception(error)
            flight.exception()  # it may be that nobody waits for it


class ThreadFlights(Flights):
    """For threads: each step has a thread of its own, which does not keep the process alive."""

    def new_flight(self) -> Flight:
        return Future()

    def start(self, flow: SharedFlow[None]) -> None:
        try:
            # In the context of whoever asked, as a task is: who that is, is audited.
            run = [self.pool.run, flow]
            threading.Thread(target=copy_context().run, args=run, name="coatcheck-pool-shared", daemon=True).start()
        except RuntimeError:  # no thread to be had: the caller does it, and waits
            self.pool.run(flow)


class TaskFlights(Flights):
    """For asyncio: each step is a task, which no caller's cancellation ends."""

    def new_flight(self) -> Flight:
        return asyncio.get_running_loop().create_future()

    def start(self, flow: SharedFlow[None]) -> None:
        self.pool.spawn(self.pool.run(flow))
