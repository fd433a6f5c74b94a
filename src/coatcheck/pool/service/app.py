"""The pool's HTTP endpoint: a thin shell around `leases.py`."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, Final, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from coatcheck.pool import AsyncTokenPool, PoolClosed, PoolError
from coatcheck.pool.inspection import UserStats
from coatcheck.pool.service import messages as m
from coatcheck.pool.service.authentication import BearerTokens
from coatcheck.pool.service.lease_id import LeaseName, parse_lease_id
from coatcheck.pool.service.leases import Leases, first_of
from coatcheck.pool.service.metrics import CONTENT_TYPE, Totals, WaitTimes, metrics_text
from coatcheck.pool.service.openapi import openapi_document
from coatcheck.pool.service.problems import RequestRefused, pool_problem, refused
from coatcheck.pool.service.replays import Replays
from coatcheck.pool.service.routes import OPERATIONS, ApiOperation

MAX_BODY_BYTES: Final = 512 * 1024
BODY_TIMEOUT_S: Final = 10.0
MAX_WAITING: Final = 900
"""Check-outs that wait at once; fewer than connections, so that check-ins always find a way in."""
CALLER_GONE: Final = 499
"""For the metrics alone: nobody reads this answer."""
CLEAN_UP_EVERY_S: Final = 30.0
STOP_GRACE_S: Final = 2.0
"""For leases that end just now, and for logouts."""

log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]
Body = TypeVar("Body", bound=m.Request)


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

    app = Starlette(routes=_routes(endpoint), lifespan=lifespan, exception_handlers={HTTPException: endpoint.no_route})
    # An address that there is not is 404, and no way to somewhere else.
    app.router.redirect_slashes = False
    app.state.endpoint = endpoint
    app.add_middleware(EncodedPaths)
    return app


def _routes(endpoint: PoolEndpoint) -> list[Route]:
    """One for each path, so that a wrong method is told all the right ones (RFC 9110, section 15.5.6)."""
    handlers: dict[str, dict[str, Handler]] = {}
    for each in OPERATIONS:
        handlers.setdefault(each.path, {})[each.method] = endpoint.guarded(each)

    def by_method(methods: dict[str, Handler]) -> Handler:
        async def handle(request: Request) -> Response:
            return await methods["GET" if request.method == "HEAD" else request.method](request)

        return handle

    return [Route(path, by_method(methods), methods=list(methods)) for path, methods in handlers.items()]


class EncodedPaths:
    """Routes by the path as it was sent: a user may be called anything, a slash included (RFC 3986, section 2.4)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await self._app(scope, receive, send)


class PoolEndpoint:
    """Handlers by the names of the operations, and what all requests go through."""

    def __init__(self, bearer: BearerTokens) -> None:
        self._bearer = bearer
        self._answers: Counter[int] = Counter()
        self._waits = WaitTimes()
        self._totals = Totals()
        self._counting = asyncio.Lock()
        self._replays = Replays()
        self._waiting = 0
        self._stopping = asyncio.Event()
        self._document = openapi_document()
        self._pool: AsyncTokenPool
        self._leases: Leases

    def use(self, pool: AsyncTokenPool) -> None:
        """Serve this pool."""
        self._pool = pool
        self._leases = Leases(pool, self._waits)

    def stop(self) -> None:
        """Check-outs that wait are told at once that the service is stopping; called in the loop that serves."""
        self._stopping.set()

    def guarded(self, operation: ApiOperation) -> Handler:
        """The operation's handler, behind the bearer token; every error becomes a problem."""
        handler: Handler = getattr(self, operation.name)

        async def handle(request: Request) -> Response:
            response = await self._answer(operation, handler, request)
            self._answers[response.status_code] += 1
            response.headers["Cache-Control"] = "no-store"
            return response

        return handle

    async def _answer(self, operation: ApiOperation, handler: Handler, request: Request) -> Response:
        try:
            if not operation.open and not self._bearer.accept(request.headers.get("authorization", "")):
                raise RequestRefused(401, "unauthorized", "send a bearer token", {"WWW-Authenticate": "Bearer"})
            return await handler(request)
        except RequestRefused as refusal:
            return refused(refusal)
        except PoolError as error:
            return pool_problem(error)
        except ValueError as error:
            # The pool's own words about a user, a token or a number that it cannot take; they show no secret.
            return refused(RequestRefused(400, "bad-request", str(error)))
        except Exception:
            log.exception("a request broke the service")
            return refused(RequestRefused(500, "internal", "the service failed; its log has the reason"))

    async def no_route(self, request: Request, error: Exception) -> Response:
        """An address or method that there is not."""
        if isinstance(error, HTTPException) and error.status_code == 405:
            return refused(
                RequestRefused(
                    405, "wrong-method", f"{request.method} is not for this address", dict(error.headers or {})
                )
            )
        return refused(RequestRefused(404, "no-such-page", "see /openapi.json"))

    # -- leases

    async def checkOut(self, request: Request) -> Response:
        asked, _ = await _read(request, m.CheckOut)
        if self._waiting >= MAX_WAITING:
            raise RequestRefused(503, "busy", f"{MAX_WAITING} check-outs wait already", {"Retry-After": "1"})
        self._waiting += 1
        work = asyncio.create_task(self._leases.check_out(_part(request, "user"), asked))
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
        finally:
            self._waiting -= 1
            for task in (gone, stopping, work):
                task.cancel()
        return _json(given, 201 if isinstance(given, m.LoginLease) else 200)

    async def complete(self, request: Request) -> Response:
        asked, _ = await _read(request, m.Complete)
        return _json(await self._leases.complete(_lease_of(request), asked))

    async def fail(self, request: Request) -> Response:
        _, text = await _read(request, m.Nothing)
        name = _lease_of(request)
        await self._replays.once(request.path_params["lease"], b"fail" + text, lambda: self._leases.fail(name))
        return Response(status_code=204)

    async def checkIn(self, request: Request) -> Response:
        asked, text = await _read(request, m.CheckIn)
        name = _lease_of(request)
        lease = request.path_params["lease"]
        await self._replays.once(lease, b"checkin" + text, lambda: self._leases.check_in(name, asked))
        return Response(status_code=204)

    async def drop(self, request: Request) -> Response:
        asked, text = await _read(request, m.Drop)
        name = _lease_of(request)
        await self._replays.once(request.path_params["lease"], b"drop" + text, lambda: self._leases.drop(name, asked))
        return Response(status_code=204)

    async def renew(self, request: Request) -> Response:
        await _read(request, m.Nothing)
        return _json(await self._leases.renew(_lease_of(request)))

    # -- for operators

    async def stats(self, request: Request) -> Response:
        return _json(m.Stats(self._pool.settings.name, await self._pool.stats()))

    async def users(self, request: Request) -> Response:
        return _json(m.Users(await self._pool.list()))

    async def user(self, request: Request) -> Response:
        return _json(m.Users(await self._pool.list(_part(request, "user"))))

    async def removeUser(self, request: Request) -> Response:
        return _json(m.Removed(await self._pool.remove_token(_part(request, "user"))))

    async def removeToken(self, request: Request) -> Response:
        text = _part(request, "token_id")
        if not text.isascii() or not text.isdecimal() or len(text) > 19:
            raise RequestRefused(400, "bad-request", "a token ID is a whole number")
        return _json(m.Removed(await self._pool.remove_token(_part(request, "user"), int(text))))

    async def cleanUp(self, request: Request) -> Response:
        await _read(request, m.Nothing)
        return _json(m.Removed(await self._pool.clean_up()))

    async def metrics(self, request: Request) -> Response:
        stats = await self._count()
        text = metrics_text(self._pool.settings.name, stats, self._totals, self._waits, self._answers)
        return Response(text, headers={"Content-Type": CONTENT_TYPE})

    async def _count(self) -> dict[str, UserStats]:
        # One look at a time: a look that is older than the one before would seem to be a new beginning.
        async with self._counting:
            stats = await self._pool.stats()
            self._totals.add(stats)
            return stats

    async def health(self, request: Request) -> Response:
        # A look at one user that is nobody's: the store must answer, however many users there are.
        await self._pool.list("-")
        return _json(m.ServiceHealth("ok"))

    async def openapi(self, request: Request) -> Response:
        return JSONResponse(self._document)

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


def _json(value: Any, status: int = 200) -> Response:
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def _part(request: Request, name: str) -> str:
    """A part of the path, decoded once."""
    try:
        return unquote(request.path_params[name], errors="strict")
    except UnicodeDecodeError:
        raise RequestRefused(400, "bad-request", f"{name}: not UTF-8 in percent-encoding") from None


def _lease_of(request: Request) -> LeaseName:
    name = parse_lease_id(request.path_params["lease"])
    if name is None:
        raise RequestRefused(404, "no-such-lease", "this is not the name of a lease")
    return name


async def _disconnected(request: Request) -> None:
    """Return when the caller is gone. The body has been read, so nothing else can come."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _read(request: Request, kind: type[Body]) -> tuple[Body, bytes]:
    """The body, judged, and as it came. Raises :class:`RequestRefused`."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
        raise RequestRefused(415, "wrong-content-type", "send application/json, not compressed")
    text = await _read_bytes(request)
    try:
        return msgspec.json.decode(text or b"{}", type=kind), text
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(400, "bad-request", str(error)) from None


async def _read_bytes(request: Request) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    close = {"Connection": "close"}
                    raise RequestRefused(413, "too-large", f"a request has at most {MAX_BODY_BYTES} bytes", close)
    except TimeoutError:
        raise RequestRefused(
            408, "too-slow", f"a request takes at most {BODY_TIMEOUT_S:g} s", {"Connection": "close"}
        ) from None
    except ClientDisconnect:
        raise RequestRefused(400, "bad-request", "the request ended too early") from None
    return bytes(body)
