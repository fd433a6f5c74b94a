"""Flows that threads begin, and that go on where their answers arrive: no task, and no event loop asked, while a flow
waits for puts and gets alone. That is what requests do where nothing goes wrong.
"""

from __future__ import annotations

import asyncio
from typing import Any, Final

from coatcheck.drivers.asyncio_driver import AsyncioDriver
from coatcheck.drivers.calls import ThreadCall
from coatcheck.drivers.visit import VISIT, Visit
from coatcheck.replication.effects import Exclusive, Flow, Get, Put, as_flow

_NOT_YET: Final[Any] = object()


class Begun(ThreadCall):
    """A flow in the name of ``visit``; it is over when the last answer has come, maybe before :meth:`begin` returns.

    Effects that are neither a put nor a get are answered by a task of the driver each.
    """

    __slots__ = ("_answer", "_driver", "_flows", "_inside", "_task", "_visit", "waits_for_stores")

    def __init__(self, driver: AsyncioDriver, visit: Visit) -> None:
        super().__init__()
        self._driver = driver
        self._visit = visit
        self.waits_for_stores = True
        """Whether the next answer comes from stores, and from nothing else; as long as it is not over."""
        self._flows: list[tuple[Flow[Any], bytes | None]] = []
        """Each was asked for by the one before, and with a key it has that turn."""
        self._task: asyncio.Task[Any] | None = None
        self._inside = False
        self._answer: Any = _NOT_YET

    def begin(self, work: Flow[Any] | Exclusive) -> None:
        """Run it until it has to wait for an answer, or is over."""
        if type(work) is Exclusive and self._driver.turns.take(work.key):
            self._flows.append((work.flow, work.key))
        else:
            self._flows.append((as_flow(work), None))
        self._go_on(None, None)

    def cancel(self) -> None:
        """Nobody waits any more: the flows are closed, and forget what was not acknowledged."""
        if self._task is not None:
            self._task.cancel()
        elif not self.is_over:
            self._over(None, asyncio.CancelledError())

    def _answered(self, answer: Any) -> None:
        if self._inside:
            self._answer = answer  # before the call that asked for it has returned
        elif not self.is_over:
            self._go_on(answer, None)

    def _go_on(self, answer: Any, failure: Exception | None) -> None:
        flows, before = self._flows, VISIT.set(self._visit)
        self._inside = True
        try:
            while True:
                flow, key = flows[-1]
                try:
                    effect = flow.send(answer) if failure is None else flow.throw(failure)
                    failure = None
                except StopIteration as end:
                    answer, failure = end.value, None
                    self._leave(key)
                    if not flows:
                        break
                    continue
                except Exception as error:  # noqa: BLE001 - the flow that asked for this one re-raises what it does not expect
                    failure = error
                    self._leave(key)
                    if not flows:
                        break
                    continue
                try:
                    answer = self._ask(effect)
                except Exception as error:  # noqa: BLE001 - as above
                    failure = error
                    continue
                if answer is _NOT_YET:
                    return
            self._over(answer, failure)
        except BaseException:  # a signal, in a thread that may have brought the answer of another one's flow
            self._over(None, asyncio.CancelledError())
            raise
        finally:
            self._inside = False
            VISIT.reset(before)

    def _ask(self, effect: Any) -> Any:
        """The answer, where it is there at once."""
        kind, driver = type(effect), self._driver
        self._answer = _NOT_YET
        if kind is Put:
            driver.put(effect, then=self._answered)
        elif kind is Get:
            driver.get(effect, self._answered)
        elif kind is Exclusive and driver.turns.take(effect.key):
            self._flows.append((effect.flow, effect.key))
            return None
        else:
            self.waits_for_stores = False
            self._task = driver.loop.create_task(driver.answer(effect))
            self._task.add_done_callback(self._task_done)
        return self._answer

    def _task_done(self, task: asyncio.Task[Any]) -> None:
        self._task = None
        self.waits_for_stores = True
        if self.is_over:
            return
        if task.cancelled():
            self._over(None, asyncio.CancelledError())
            return
        error = task.exception()
        if error is None:
            self._go_on(task.result(), None)
        elif isinstance(error, Exception):
            self._go_on(None, error)
        else:
            self._over(None, error)

    def _leave(self, key: bytes | None) -> None:
        """The innermost flow is over: its turn is the next one's."""
        self._flows.pop()
        if key is not None:
            self._driver.turns.give(key)

    def _over(self, result: Any, error: BaseException | None) -> None:
        while self._flows:
            flow, key = self._flows[-1]
            flow.close()
            self._leave(key)
        self.answer(None if error is not None else result, error)
