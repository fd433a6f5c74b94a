"""What every request of a service goes through: its route, its caller, its body, its errors, its count."""

from __future__ import annotations

import asyncio
import logging
import math
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import unquote

import msgspec
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from coatcheck.service_kit.messages import Body
from coatcheck.service_kit.openapi import openapi_document
from coatcheck.service_kit.operations import Api, ApiOperation
from coatcheck.service_kit.problems import RequestRefused, problem_response

MAX_BODY_BYTES: Final = 512 * 1024
BODY_TIMEOUT_S: Final = 10.0
MAX_DISCARDED_BYTES: Final = 4 * 1024 * 1024
"""Read and thrown away of a body that is too large, so that its sender can read the answer."""

log = logging.getLogger(__name__)
Handler = Callable[[Request], Awaitable[Response]]
Asked = TypeVar("Asked", bound=Body)


class Endpoint:
    """Handlers by the names of the operations. A service overrides :meth:`admit` and :meth:`refusal_of`."""

    TITLES: ClassVar[Mapping[str, str]] = {}
    """Of its own problems, by name."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._document = openapi_document(api)
        self.answers: Counter[int] = Counter()
        """How many answers of each status were given."""

    async def admit(self, operation: ApiOperation, request: Request) -> None:
        """Raises :class:`RequestRefused` unless whoever asks may do that."""
        raise NotImplementedError

    def refusal_of(self, error: Exception) -> RequestRefused | None:
        """What a service's own error is to a caller; ``None``: a fault of ours."""
        return None

    async def openapi(self, request: Request) -> Response:
        """The handler of the operation of that name, which every service has."""
        return JSONResponse(self._document)

    def app(self, lifespan: Any) -> Starlette:
        """The service as an ASGI app; it is in ``app.state.endpoint``, too."""
        # The exception handler of an unknown address or a wrong method; what handlers raise never comes that far.
        routes = [*self.more_routes(), *self._routes()]
        app = Starlette(routes=routes, lifespan=lifespan, exception_handlers={HTTPException: self._no_route})
        # An address that there is not is 404, and no way to somewhere else.
        app.router.redirect_slashes = False
        app.state.endpoint = self
        app.add_middleware(EncodedPaths)
        return app

    def more_routes(self) -> list[Route]:
        """Addresses that no document need describe."""
        return []

    def _routes(self) -> list[Route]:
        """One for each path, so that a wrong method is told all the right ones (RFC 9110, section 15.5.6)."""
        handlers: dict[str, dict[str, Handler]] = {}
        for each in self._api.operations:
            handlers.setdefault(each.path, {})[each.method] = self.guarded(each)

        def by_method(methods: dict[str, Handler]) -> Handler:
            async def handle(request: Request) -> Response:
                return await methods["GET" if request.method == "HEAD" else request.method](request)

            return handle

        return [Route(path, by_method(methods), methods=list(methods)) for path, methods in handlers.items()]

    def guarded(self, operation: ApiOperation) -> Handler:
        """The operation's handler, behind :meth:`admit`; every error becomes a problem."""
        inner: Handler = getattr(self, operation.name)

        async def handler(request: Request) -> Response:
            if not operation.open:
                await self.admit(operation, request)
            return await inner(request)

        return self.counted(handler)

    def counted(self, handler: Handler) -> Handler:
        """A handler whose errors become problems, and whose answers no cache stores."""

        async def handle(request: Request) -> Response:
            response = await self._answer(handler, request)
            self.answers[response.status_code] += 1
            response.headers["Cache-Control"] = "no-store"
            return response

        return handle

    async def _answer(self, handler: Handler, request: Request) -> Response:
        try:
            return await handler(request)
        except RequestRefused as refusal:
            return self.refuse(refusal)
        except Exception as error:
            refusal_of_ours = self.refusal_of(error)
            if refusal_of_ours is None:
                log.exception("a request broke the service")
                refusal_of_ours = RequestRefused(500, "internal", "the service failed; its log has the reason")
            return self.refuse(refusal_of_ours)

    def refuse(self, refusal: RequestRefused) -> Response:
        """The problem that answers a request."""
        return problem_response(refusal, self.TITLES)

    async def _no_route(self, request: Request, error: Exception) -> Response:
        """An address or method that there is not."""
        if isinstance(error, HTTPException) and error.status_code == 405:
            detail = f"{request.method} is not for this address"
            return self.refuse(RequestRefused(405, "wrong-method", detail, error.headers))
        return self.refuse(RequestRefused(404, "no-such-page", "see /openapi.json"))


class EncodedPaths:
    """Routes by the path as it was sent: a user may be called anything, a slash included (RFC 3986, section 2.4)."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            scope = {**scope, "path": scope["raw_path"].decode("latin-1")}
        await self._app(scope, receive, send)


def json_answer(value: Any, status: int = 200) -> Response:
    """A msgspec type as JSON."""
    return Response(msgspec.json.encode(value), status, media_type="application/json")


def path_part(request: Request, name: str) -> str:
    """A part of the path, decoded once. Raises :class:`RequestRefused`."""
    try:
        return unquote(request.path_params[name], errors="strict")
    except UnicodeDecodeError:
        raise RequestRefused(400, "bad-request", f"{name}: not UTF-8 in percent-encoding") from None


def flag(request: Request, name: str) -> bool:
    """A query parameter of :attr:`ApiOperation.flags`; without it, ``False``. Raises :class:`RequestRefused`."""
    found = request.query_params.getlist(name) or ["false"]
    if found not in (["true"], ["false"]):
        raise RequestRefused(400, "bad-request", f"{name}: true or false, once")
    return found == ["true"]


async def read_body(request: Request, kind: type[Asked]) -> tuple[Asked, bytes]:
    """The body, judged, and as it came. Raises :class:`RequestRefused`."""
    media_type = request.headers.get("content-type", "application/json").partition(";")[0].strip().lower()
    if media_type != "application/json" or request.headers.get("content-encoding", "identity") != "identity":
        raise RequestRefused(415, "wrong-content-type", "send application/json, not compressed")
    text = await read_bytes(request)
    try:
        return msgspec.json.Decoder(kind, float_hook=_number).decode(text or b"{}"), text
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RequestRefused(400, "bad-request", str(error)) from None


def _number(text: str) -> float:
    """A float that JSON can write again, too."""
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:20]}: too large for a float")
    return value


async def read_bytes(request: Request, most: int = MAX_BODY_BYTES) -> bytes:
    """The body as it came. Raises :class:`RequestRefused` for one of more than ``most`` bytes, or one too slow."""
    close = {"Connection": "close"}
    body = bytearray()
    received = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            async for chunk in request.stream():
                received += len(chunk)
                if received <= most:
                    body += chunk
                elif received > MAX_DISCARDED_BYTES:
                    break
    except TimeoutError:
        raise RequestRefused(408, "too-slow", f"a request takes at most {BODY_TIMEOUT_S:g} s", close) from None
    except ClientDisconnect:
        raise RequestRefused(400, "bad-request", "the request ended too early") from None
    if received > most:
        raise RequestRefused(413, "too-large", f"a request has at most {most} bytes", close)
    return bytes(body)
