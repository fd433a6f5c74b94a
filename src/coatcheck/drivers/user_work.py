"""What is done for users in the background: sessions that are used are listed anew, and whether everybody's were closed
is asked over and over."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging

from coatcheck.drivers.asyncio_driver import AsyncioDriver
from coatcheck.errors import SessionUnavailable
from coatcheck.replication.effects import Flow
from coatcheck.sessions.everyone import Everyone
from coatcheck.sessions.users import UserIndexes

log = logging.getLogger("coatcheck.sessions")


class UserWork:
    """Does what waits, :attr:`AT_ONCE` things beside each other, while there is any."""

    AT_ONCE = 8

    def __init__(self, users: UserIndexes, everyone: Everyone, driver: AsyncioDriver) -> None:
        self._users = users
        self._everyone = everyone
        self._driver = driver
        self._loop = asyncio.get_running_loop()
        self._tasks: set[asyncio.Task[None]] = set()
        self._complained = False
        self._asking = asyncio.Event()
        self._watch = self._loop.create_task(self._watch_everyone())
        users.on_waiting = self._begin_more

    def ask_about_all(self) -> None:
        """A notice came: everybody's sessions may have been closed."""
        self._asking.set()

    async def _watch_everyone(self) -> None:
        while True:
            self._asking.clear()
            try:
                await self._driver.run(self._everyone.learn())
            except SessionUnavailable:
                """Nothing is served from the cache until somebody answers."""
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._everyone.pause_s):
                    await self._asking.wait()

    def _begin_more(self) -> None:
        while len(self._tasks) < self.AT_ONCE and (flow := self._users.next_work()) is not None:
            # In nobody's name: what is reported is not of the request that happened to ask for it.
            task = self._loop.create_task(self._do(flow), context=contextvars.Context())
            self._tasks.add(task)
            task.add_done_callback(self._done)

    async def _do(self, flow: Flow[None]) -> None:
        try:
            await self._driver.run(flow)
        except Exception as failure:
            # One index that cannot be read must not end the work on all others.
            if not self._complained:
                self._complained = True
                log.error("the sessions of a user cannot be listed", exc_info=failure)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            self._begin_more()

    async def stop(self) -> None:
        """Begin nothing more; what is under way is cancelled, and done with the next write of each session."""
        self._users.on_waiting = lambda: None
        for task in [self._watch, *self._tasks]:
            task.cancel()
        await asyncio.gather(self._watch, *self._tasks, return_exceptions=True)
