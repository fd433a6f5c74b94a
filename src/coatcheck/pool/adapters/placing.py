"""Where a token stands in a request, and where a refreshed one stands in the response.

They fit requests and responses of httpx, httpx2, requests and aiohttp: anything with ``headers`` and ``cookies``.
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Callable
from typing import Any, Final
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

from coatcheck.errors import ConfigError
from coatcheck.pool.payload import Payload

PutToken = Callable[[Any, str], Any]
PutBoth = Callable[[Any, str, Payload], Any]
Apply = PutToken | PutBoth
"""Puts a token, and what of its payload is needed, into a request; may return another request to be sent instead."""
Extract = Callable[[Any], "str | None"]
"""The refreshed token in a response, or ``None``."""
IsExpired = Callable[[Any], bool]
"""Whether a response says that the token is of no use any more."""

UNAUTHORIZED: Final = 401
FORM: Final = "application/x-www-form-urlencoded"

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")


def bearer(request: Any, token: str) -> None:
    """``Authorization: Bearer <token>`` (RFC 6750), which clients keep from other hosts when redirected."""
    request.headers["Authorization"] = f"Bearer {token}"


def header(name: str) -> PutToken:
    """The token is the value of a header."""
    _check(name)

    def apply(request: Any, token: str) -> None:
        request.headers[name] = token

    return apply


def cookie(name: str) -> PutToken:
    """The token is the value of a cookie, next to other cookies (RFC 6265, section 5.4)."""
    _check(name)

    def apply(request: Any, token: str) -> None:
        pairs = [pair.strip() for pair in (request.headers.get("Cookie") or "").split(";")]
        others = [pair for pair in pairs if pair and pair.partition("=")[0] != name]
        request.headers["Cookie"] = "; ".join([*others, f"{name}={token}"])

    return apply


def payload_header(name: str, of: str) -> PutBoth:
    """A header has what the payload holds under the name ``of``, as text; nothing if it holds none."""
    _check(name)

    def apply(request: Any, token: str, payload: Payload) -> None:
        if of in payload:
            request.headers[name] = str(payload[of])

    return apply


def payload_cookies(*names: str) -> PutBoth:
    """Cookies of these names, each with what the payload holds under its name, next to other cookies."""
    placed = {name: cookie(name) for name in names}

    def apply(request: Any, token: str, payload: Payload) -> None:
        for name, place in placed.items():
            if name in payload:
                place(request, str(payload[name]))

    return apply


def query(name: str) -> PutToken:
    """The token is a parameter of the URL. Warns, because URLs end up in logs, histories and ``Referer`` headers.

    RFC 6750 (5.3) says not to do it; here it is for upstreams that know nothing else.
    """
    _check(name)
    warnings.warn(
        f"a token in the URL ({name}=...) ends up in logs; use a header if the upstream takes one", stacklevel=2
    )

    def apply(request: Any, token: str) -> None:
        url = request.url
        if hasattr(url, "copy_set_param"):  # httpx and its fork
            request.url = url.copy_set_param(name, token)
        elif hasattr(url, "update_query"):  # aiohttp
            request.url = url.update_query({name: token})
        else:
            request.url = _with_parameter(url, name, token)

    return apply


def form(name: str) -> PutToken:
    """The token is a field of the request's form (RFC 6750, 2.2), of httpx and requests. Warns as :func:`query` does.

    A request whose body is anything else is sent as it is, without the token.
    """
    _check(name)
    warnings.warn(f"a token in the body ({name}=...) ends up in logs of bodies; use a header if you can", stacklevel=2)

    def apply(request: Any, token: str) -> Any:
        if (request.headers.get("Content-Type") or "").partition(";")[0].strip() != FORM:
            return None
        if hasattr(request, "prepare_body"):  # requests
            body = request.body.decode() if isinstance(request.body, bytes) else request.body or ""
            request.prepare_body(_with_field(body, name, token), None)
            return None
        body = _with_field(request.read().decode(), name, token)
        headers = {**request.headers, "content-length": str(len(body))}
        return type(request)(request.method, request.url, headers=headers, content=body, extensions=request.extensions)

    return apply


def every(*applies: Apply) -> PutBoth:
    """All of these, one after the other: ``every(cookie("SID"), payload_header("X-CSRF-Token", of="csrf"))``."""
    steps: list[tuple[Callable[..., Any], bool]] = [(each, takes_payload(each)) for each in applies]

    def apply(request: Any, token: str, payload: Payload) -> Any:
        for step, wants in steps:
            replaced = step(request, token, payload) if wants else step(request, token)
            request = request if replaced is None else replaced
        return request

    return apply


def _with_parameter(url: str, name: str, token: str) -> str:
    parts = urlsplit(url)
    return urlunsplit(parts._replace(query=_with_field(parts.query, name, token)))


def _with_field(encoded: str, name: str, token: str) -> str:
    fields = [(key, value) for key, value in parse_qsl(encoded, keep_blank_values=True) if key != name]
    return urlencode([*fields, (name, token)])


def takes_payload(apply: Any) -> bool:
    """Whether ``apply`` has a third parameter, for the payload."""
    try:
        parameters = inspect.signature(apply).parameters.values()
    except (TypeError, ValueError):
        return False
    positional = [each for each in parameters if each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)]
    return len(positional) >= 3


def from_header(name: str) -> Extract:
    """The refreshed token is the value of a response header, if it is there."""
    _check(name)
    return lambda response: response.headers.get(name) or None


def from_cookie(name: str) -> Extract:
    """The refreshed token is the value of a cookie that the response sets, if it does."""
    _check(name)

    def extract(response: Any) -> str | None:
        found = response.cookies.get(name)
        # aiohttp has morsels, the others have strings.
        return getattr(found, "value", found) or None

    return extract


def nothing(response: Any) -> str | None:
    """The upstream never refreshes tokens."""
    return None


def is_unauthorized(response: Any) -> bool:
    """Status 401."""
    status = getattr(response, "status_code", None)
    found: int = response.status if status is None else status
    return found == UNAUTHORIZED


def _check(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is no name of a header or cookie")
