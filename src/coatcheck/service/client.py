"""Clients of the session service for Python: blocking and for event loops, over httpx.

Several addresses are those of several processes of one service: a request goes to the one that answered last, and to
the next ones if that cannot be reached or does not answer in time. That is safe for every call but ``create``, which
may leave a session that nobody holds; it ends by its timeout.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, Final, Self, TypeVar

import anyio
import httpx
import msgspec

from coatcheck.errors import CoatcheckError, ConfigError
from coatcheck.service import messages as m
from coatcheck.service_kit.addresses import check_url
from coatcheck.service_kit.messages import TYPE_PREFIX, Problem
from coatcheck.sessions.description import LiveSession

TIMEOUT_S: Final = 10.0
"""Of a try, with the whole answer. The blocking client looks at the clock between two reads of its body: a try takes
twice that at most, but for an answer whose head comes byte by byte."""
ROUNDS: Final = 2
"""So often all addresses are tried."""
MAX_ANSWER_BYTES: Final = 8 * 1024 * 1024
"""A session's data is at most 1 MiB, of which JSON makes six at most."""

_CREDENTIAL: Final = re.compile(r"[\x21-\x7e]+")
"""What a header may have, but a space: none of ours has one."""

T = TypeVar("T")


class ServiceProblem(CoatcheckError):
    """The service answered with a problem, or none of its processes answered (``status`` 0).

    ``name``: the end of its type, such as ``conflict``; ``retry_after_s``: when to try again, if it says so.
    """

    def __init__(self, status: int, name: str, detail: str, retry_after_s: float | None = None) -> None:
        super().__init__(f"{name}: {detail}")
        self.status = status
        self.name = name
        self.retry_after_s = retry_after_s


class _Calls:
    """What each call sends, and what its answer means."""

    def __init__(self, urls: str | Sequence[str], credential: str | None) -> None:
        self._urls = [urls] if isinstance(urls, str) else list(urls)
        if not self._urls:
            raise ConfigError("urls: name at least one address of the service")
        for each in self._urls:
            check_url("urls", each)
        if credential and not _CREDENTIAL.fullmatch(credential):  # of which the error shows nothing
            raise ConfigError("credential: ASCII without spaces or line breaks, as `coatcheck service credential` says")
        # Not compressed: an answer is as large as its bytes on the wire.
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if credential:
            self._headers["Authorization"] = f"Bearer {credential}"

    def _order(self) -> list[str]:
        return self._urls * ROUNDS

    def _answered(self, url: str) -> None:
        """The next request goes there first."""
        at = self._urls.index(url)
        self._urls = self._urls[at:] + self._urls[:at]


class _Incoming:
    """An answer as it comes."""

    def __init__(self, response: httpx.Response) -> None:
        self._response = response
        self._body = bytearray()

    def take(self, piece: bytes) -> None:
        """Raises :class:`ServiceProblem` when it is too large."""
        self._body += piece
        if len(self._body) > MAX_ANSWER_BYTES:
            said = f"its answer is larger than {MAX_ANSWER_BYTES} bytes"
            raise ServiceProblem(self._response.status_code, "no-service", said)

    def judged(self, kind: type[T]) -> T:
        """What it says. Raises :class:`ServiceProblem`."""
        response = self._response
        try:
            if response.is_success:
                return msgspec.json.decode(self._body, type=kind)
            problem = msgspec.json.decode(self._body, type=Problem)
        except (msgspec.DecodeError, UnicodeDecodeError):
            raise ServiceProblem(response.status_code, "no-service", "this is no session service of ours") from None
        after = response.headers.get("retry-after", "")
        name = problem.type.removeprefix(TYPE_PREFIX)
        raise ServiceProblem(response.status_code, name, problem.detail, float(after) if after.isdecimal() else None)


def _encoded(body: dict[str, Any]) -> bytes:
    """Raises :class:`ServiceProblem` for what JSON cannot say, as the service would."""
    try:
        return json.dumps(body, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode()
    except (TypeError, ValueError, RecursionError) as error:
        wrong = str(error)
    # Not in the block above: the error holds all that was to be sent.
    raise ServiceProblem(400, "bad-request", f"JSON cannot say this: {wrong}")


def _reason(error: httpx.TransportError) -> str:
    """Why nobody answered. An error of our own side may quote the header that it is about: it is named only."""
    named_only = isinstance(error, httpx.LocalProtocolError)
    return type(error).__name__ if named_only else str(error) or type(error).__name__


def _shown(cookie: str, client: str | None, **more: Any) -> dict[str, Any]:
    asked = {"cookie": cookie, "client": client, **more}
    return {name: value for name, value in asked.items() if value is not None}


def _creation(
    user: str | None,
    data: Mapping[str, Any] | None,
    cookie: str,
    client: str | None,
    device: str | None,
    remember: bool | None,
    id_token: Mapping[str, Any] | None,
) -> dict[str, Any]:
    claims = None if id_token is None else dict(id_token)
    return _shown(cookie, client, user=user, data=dict(data or {}), device=device, remember=remember, id_token=claims)


def _update(
    cookie: str, set_keys: Mapping[str, Any], delete: Sequence[str], version: str | None, client: str | None
) -> dict[str, Any]:
    return _shown(cookie, client, set=dict(set_keys), delete=list(delete), version=version)


def _crossing(url: str, cookie: str, client: str | None, method: str, cross_site: bool) -> dict[str, Any]:
    return _shown(cookie, client, url=url, method=method, cross_site=cross_site)


class SessionClient(_Calls):
    """Blocking. ``urls``: of the service; ``credential``: as ``coatcheck service credential`` prints it, or ``None``
    with a certificate in ``verify`` (an :class:`ssl.SSLContext`, as of httpx). Raises :class:`ConfigError` for an
    address or a credential that is none.

    Each call takes ``cookie``, the browser's whole Cookie header (its bytes as Latin-1, as WSGI and ASGI frameworks
    have it), and ``client``, its address. Raises :class:`ServiceProblem`.
    """

    def __init__(self, urls: str | Sequence[str], credential: str | None = None, *, verify: Any = True) -> None:
        super().__init__(urls, credential)
        self._http = httpx.Client(headers=self._headers, timeout=TIMEOUT_S, verify=verify, trust_env=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close_client()

    def close_client(self) -> None:
        """Close its connections."""
        self._http.close()

    def create(
        self,
        user: str | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        cookie: str = "",
        client: str | None = None,
        device: str | None = None,
        remember: bool | None = None,
        id_token: Mapping[str, Any] | None = None,
    ) -> m.Given:
        """Begin a session; with a user, log in."""
        return self._ask("/v1/sessions", _creation(user, data, cookie, client, device, remember, id_token), m.Given)

    def verify(self, cookie: str, client: str | None = None) -> LiveSession | None:
        """Whose session it is; ``None``: nobody's."""
        found = self._ask_or_none("/v1/sessions/verify", _shown(cookie, client), m.Verified)
        return None if found is None else found.session

    def renew(self, cookie: str, client: str | None = None, *, now: bool = False) -> m.Given | None:
        """Verify it for a request of its browser; the Set-Cookie headers in the answer go back to that."""
        return self._ask_or_none("/v1/sessions/renew", _shown(cookie, client, now=now), m.Given)

    def update(
        self,
        cookie: str,
        set_keys: Mapping[str, Any],
        delete: Sequence[str] = (),
        *,
        version: str | None = None,
        client: str | None = None,
    ) -> m.Given | None:
        """Change its data; with a version, only if it is still of that one (else 409, ``conflict``)."""
        return self._ask_or_none("/v1/sessions/update", _update(cookie, set_keys, delete, version, client), m.Given)

    def close(self, cookie: str, client: str | None = None) -> m.ClosedSession:
        """Log out."""
        return self._ask("/v1/sessions/close", _shown(cookie, client), m.ClosedSession)

    def hand_off(
        self, url: str, cookie: str = "", client: str | None = None, *, method: str = "GET", cross_site: bool = False
    ) -> m.HandedOff:
        """What is to become of a request for this path and query, where the pages live at several sites."""
        return self._ask("/v1/hand-off", _crossing(url, cookie, client, method, cross_site), m.HandedOff)

    def sessions_of(self, user: str) -> list[m.SessionOfUser]:
        """The sessions of a user, the oldest first."""
        return self._ask("/v1/users/sessions", {"user": user}, m.SessionsOfUser).sessions

    def close_user(self, user: str, cookie: str = "", client: str | None = None) -> int:
        """Log a user out everywhere, but where this Cookie header comes from; answers how many sessions were ended."""
        return self._ask("/v1/users/close", _shown(cookie, client, user=user), m.ClosedUser).closed

    def _ask_or_none(self, path: str, body: dict[str, Any], kind: type[T]) -> T | None:
        try:
            return self._ask(path, body, kind)
        except ServiceProblem as problem:
            if problem.name == "no-session":
                return None
            raise

    def _ask(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        content, reason = _encoded(body), ""
        for url in self._order():
            until = time.monotonic() + TIMEOUT_S
            try:
                with self._http.stream("POST", f"{url}{path}", content=content) as response:
                    answer = _Incoming(response)
                    for piece in response.iter_raw():
                        answer.take(piece)
                        if time.monotonic() > until:
                            raise httpx.ReadTimeout("the whole answer took too long")
            except httpx.TransportError as error:
                reason = _reason(error)
                continue
            self._answered(url)
            return answer.judged(kind)
        raise ServiceProblem(0, "no-answer", reason)


class AsyncSessionClient(_Calls):
    """The same for an event loop."""

    def __init__(self, urls: str | Sequence[str], credential: str | None = None, *, verify: Any = True) -> None:
        super().__init__(urls, credential)
        self._http = httpx.AsyncClient(headers=self._headers, timeout=TIMEOUT_S, verify=verify, trust_env=False)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close_client()

    async def close_client(self) -> None:
        """Close its connections."""
        await self._http.aclose()

    async def create(
        self,
        user: str | None = None,
        data: Mapping[str, Any] | None = None,
        *,
        cookie: str = "",
        client: str | None = None,
        device: str | None = None,
        remember: bool | None = None,
        id_token: Mapping[str, Any] | None = None,
    ) -> m.Given:
        """As :meth:`SessionClient.create`."""
        return await self._ask(
            "/v1/sessions", _creation(user, data, cookie, client, device, remember, id_token), m.Given
        )

    async def verify(self, cookie: str, client: str | None = None) -> LiveSession | None:
        """As :meth:`SessionClient.verify`."""
        found = await self._ask_or_none("/v1/sessions/verify", _shown(cookie, client), m.Verified)
        return None if found is None else found.session

    async def renew(self, cookie: str, client: str | None = None, *, now: bool = False) -> m.Given | None:
        """As :meth:`SessionClient.renew`."""
        return await self._ask_or_none("/v1/sessions/renew", _shown(cookie, client, now=now), m.Given)

    async def update(
        self,
        cookie: str,
        set_keys: Mapping[str, Any],
        delete: Sequence[str] = (),
        *,
        version: str | None = None,
        client: str | None = None,
    ) -> m.Given | None:
        """As :meth:`SessionClient.update`."""
        return await self._ask_or_none(
            "/v1/sessions/update", _update(cookie, set_keys, delete, version, client), m.Given
        )

    async def close(self, cookie: str, client: str | None = None) -> m.ClosedSession:
        """As :meth:`SessionClient.close`."""
        return await self._ask("/v1/sessions/close", _shown(cookie, client), m.ClosedSession)

    async def hand_off(
        self, url: str, cookie: str = "", client: str | None = None, *, method: str = "GET", cross_site: bool = False
    ) -> m.HandedOff:
        """As :meth:`SessionClient.hand_off`."""
        return await self._ask("/v1/hand-off", _crossing(url, cookie, client, method, cross_site), m.HandedOff)

    async def sessions_of(self, user: str) -> list[m.SessionOfUser]:
        """As :meth:`SessionClient.sessions_of`."""
        return (await self._ask("/v1/users/sessions", {"user": user}, m.SessionsOfUser)).sessions

    async def close_user(self, user: str, cookie: str = "", client: str | None = None) -> int:
        """As :meth:`SessionClient.close_user`."""
        return (await self._ask("/v1/users/close", _shown(cookie, client, user=user), m.ClosedUser)).closed

    async def _ask_or_none(self, path: str, body: dict[str, Any], kind: type[T]) -> T | None:
        try:
            return await self._ask(path, body, kind)
        except ServiceProblem as problem:
            if problem.name == "no-session":
                return None
            raise

    async def _ask(self, path: str, body: dict[str, Any], kind: type[T]) -> T:
        content, reason = _encoded(body), ""
        for url in self._order():
            try:
                with anyio.fail_after(TIMEOUT_S):
                    async with self._http.stream("POST", f"{url}{path}", content=content) as response:
                        answer = _Incoming(response)
                        async for piece in response.aiter_raw():
                            answer.take(piece)
            except TimeoutError:
                reason = "the whole answer took too long"
                continue
            except httpx.TransportError as error:
                reason = _reason(error)
                continue
            self._answered(url)
            return answer.judged(kind)
        raise ServiceProblem(0, "no-answer", reason)
