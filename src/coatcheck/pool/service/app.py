"""The pool's HTTP endpoint: a thin shell around `leases.py`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any, ClassVar, Final, TypeVar

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response

from coatcheck.pool import AsyncTokenPool, PoolClosed, PoolError
from coatcheck.pool.audit import now_calling_as
from coatcheck.pool.inspection import UserStats
from coatcheck.pool.service import messages as m
from coatcheck.pool.service.lease_id import LeaseName, parse_lease_id
from coatcheck.pool.service.leases import Leases, first_of
from coatcheck.pool.service.metrics import PoolCollector, Totals, WaitTimes, metrics_text
from coatcheck.pool.service.problems import TITLES, refusal_of
from coatcheck.pool.service.replays import Replays
from coatcheck.pool.service.routes import API
from coatcheck.service_kit.bearer import BearerTokens, bearer_name, shown_bearer, unauthorized
from coatcheck.service_kit.endpoint import Endpoint, flag, json_answer, path_part, read_body
from coatcheck.service_kit.operations import ApiOperation
from coatcheck.service_kit.problems import RequestRefused

MAX_WAITING: Final = 900
"""Callers that wait for a token at once; fewer than connections, so that check-ins always find a way in."""
CALLER_GONE: Final = 499
"""For the metrics alone: nobody reads this answer."""
CLEAN_UP_EVERY_S: Final = 30.0
STOP_GRACE_S: Final = 2.0
"""For leases that end just now, and for logouts."""

log = logging.getLogger(__name__)
Given = TypeVar("Given", m.LentToken | m.LoginLease, m.SharedGiven)


def pool_app(open_pool: Callable[[], AsyncTokenPool], bearer: BearerTokens) -> Starlette:
    """The service as an ASGI app. ``open_pool`` is called in the loop that serves; the pool is closed at the end."""
    endpoint = PoolEndpoint(bearer)

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        pool = open_pool()
        endpoint.use(pool)
        cleaner = asyncio.create_task(endpoint.clean_up_at_intervals())
        try:
            yield
        finally:
            cleaner.cancel()
            await pool.close(STOP_GRACE_S)

    return endpoint.app(lifespan)


class PoolEndpoint(Endpoint):
    """Handlers by the names of the operations."""

    TITLES: ClassVar = TITLES

    def __init__(self, bearer: BearerTokens) -> None:
        super().__init__(API)
        self._bearer = bearer
        self._waits = WaitTimes()
        self._totals = Totals()
        self._counting = asyncio.Lock()
        self._replays = Replays()
        self._waiting = 0
        self._stopping = asyncio.Event()
        self._pool: AsyncTokenPool
        self._leases: Leases

    def use(self, pool: AsyncTokenPool) -> None:
        """Serve this pool."""
        self._pool = pool
        self._leases = Leases(pool, self._waits)

    def stop(self) -> None:
        """Check-outs that wait are told at once that the service is stopping; called in the loop that serves."""
        self._stopping.set()

    async def admit(self, operation: ApiOperation, request: Request) -> None:
        """Only for who shows a bearer token."""
        shown = shown_bearer(request.headers.get("authorization", ""))
        if shown is None or not self._bearer.accept(shown):
            raise unauthorized("send a bearer token")
        now_calling_as(bearer_name(shown))

    def refusal_of(self, error: Exception) -> RequestRefused | None:
        return refusal_of(error)

    # -- leases

    async def checkOut(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.CheckOut)
        given = await self._unless_gone(request, self._leases.check_out(path_part(request, "user"), asked))
        if isinstance(given, Response):
            return given
        return json_answer(given, 201 if isinstance(given, m.LoginLease) else 200)

    async def _unless_gone(self, request: Request, asking: Coroutine[Any, Any, Given]) -> Given | Response:
        """What ``asking`` brings, unless its caller leaves meanwhile, or the service stops."""
        if self._waiting >= MAX_WAITING:
            asking.close()
            raise RequestRefused(503, "busy", f"{MAX_WAITING} callers wait already", {"Retry-After": "1"})
        self._waiting += 1
        work = asyncio.create_task(asking)
        gone = asyncio.create_task(_disconnected(request))
        stopping = asyncio.create_task(self._stopping.wait())
        try:
            if not await first_of(work, gone, stopping):
                work.cancel()
                await asyncio.wait({work})
            if work.cancelled():
                # It gave back what it was granted meanwhile.
                if gone.done():
                    return Response(status_code=CALLER_GONE)
                raise PoolClosed("the service is stopping")
            given = work.result()
            if gone.done():
                await self._leases.give_back(given)
            return given
        finally:
            self._waiting -= 1
            for task in (gone, stopping, work):
                task.cancel()

    async def complete(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.Complete)
        return json_answer(await self._leases.complete(_lease_of(request), asked))

    async def fail(self, request: Request) -> Response:
        asked, text = await read_body(request, m.Fail)
        name = _lease_of(request)
        await self._replays.once(request.path_params["lease"], b"fail" + text, lambda: self._leases.fail(name, asked))
        return Response(status_code=204)

    async def checkIn(self, request: Request) -> Response:
        asked, text = await read_body(request, m.CheckIn)
        name = _lease_of(request)
        lease = request.path_params["lease"]
        await self._replays.once(lease, b"checkin" + text, lambda: self._leases.check_in(name, asked))
        return Response(status_code=204)

    async def drop(self, request: Request) -> Response:
        asked, text = await read_body(request, m.Drop)
        name = _lease_of(request)
        await self._replays.once(request.path_params["lease"], b"drop" + text, lambda: self._leases.drop(name, asked))
        return Response(status_code=204)

    async def refuseToken(self, request: Request) -> Response:
        await read_body(request, m.Nothing)
        name = _lease_of(request)
        lease = request.path_params["lease"]
        return json_answer(await self._replays.once(lease, b"refuse", lambda: self._leases.refuse(name)))

    async def renew(self, request: Request) -> Response:
        await read_body(request, m.Nothing)
        return json_answer(await self._leases.renew(_lease_of(request)))

    async def share(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.CheckOut)
        given = await self._unless_gone(request, self._leases.share(path_part(request, "user"), asked))
        return given if isinstance(given, Response) else json_answer(given)

    async def refuseShared(self, request: Request) -> Response:
        asked, _ = await read_body(request, m.RefuseShared)
        return json_answer(await self._leases.refuse_shared(path_part(request, "user"), asked))

    # -- for operators

    async def stats(self, request: Request) -> Response:
        return json_answer(m.Stats(self._pool.settings.name, await self._pool.stats()))

    async def users(self, request: Request) -> Response:
        return json_answer(m.Users(await self._pool.list()))

    async def user(self, request: Request) -> Response:
        return json_answer(m.Users(await self._pool.list(path_part(request, "user"))))

    async def removeUser(self, request: Request) -> Response:
        user, soft = path_part(request, "user"), flag(request, "soft")
        return json_answer(m.Removed(await self._pool.remove_token(user, soft=soft)))

    async def removeToken(self, request: Request) -> Response:
        text = path_part(request, "token_id")
        if not text.isascii() or not text.isdecimal() or len(text) > 19:
            raise RequestRefused(400, "bad-request", "a token ID is a whole number")
        user, soft = path_part(request, "user"), flag(request, "soft")
        return json_answer(m.Removed(await self._pool.remove_token(user, int(text), soft=soft)))

    async def cleanUp(self, request: Request) -> Response:
        await read_body(request, m.Nothing)
        return json_answer(m.Removed(await self._pool.clean_up()))

    async def metrics(self, request: Request) -> Response:
        stats = await self._count()
        pool = self._pool
        collector = PoolCollector(pool.settings.name, stats, self._totals, self._waits, self.answers, pool.audit)
        content_type, text = metrics_text(collector)
        return Response(text, headers={"Content-Type": content_type})

    async def _count(self) -> dict[str, UserStats]:
        # One look at a time: a look that is older than the one before would seem to be a new beginning.
        async with self._counting:
            stats = await self._pool.stats()
            self._totals.add(stats)
            return stats

    async def health(self, request: Request) -> Response:
        # A look at one user that is nobody's: the store must answer, however many users there are.
        await self._pool.list("-")
        return json_answer(m.ServiceHealth("ok"))

    async def clean_up_at_intervals(self) -> None:
        """Overdue leases of callers that never came back are recovered also when nobody asks."""
        while True:
            await asyncio.sleep(CLEAN_UP_EVERY_S)
            try:
                # Clean-up forgets users; what they did is counted before.
                await self._count()
                await self._pool.clean_up()
            except PoolError as error:
                log.warning("clean-up failed: %s", error)


def _lease_of(request: Request) -> LeaseName:
    name = parse_lease_id(request.path_params["lease"])
    if name is None:
        raise RequestRefused(404, "no-such-lease", "this is not the name of a lease")
    return name


async def _disconnected(request: Request) -> None:
    """Return when the caller is gone. The body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass
