"""Where a token stands in a request, and where a refreshed one stands in the response.

They fit requests and responses of httpx, httpx2, requests and aiohttp: anything with ``headers`` and ``cookies``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any, Final

from coatcheck.errors import ConfigError
from coatcheck.pool.payload import Payload

Apply = Callable[[Any, str], Any] | Callable[[Any, str, Payload], Any]
"""Puts a token, and what of its payload is needed, into a request; may return another request to be sent instead."""
Extract = Callable[[Any], "str | None"]
"""The refreshed token in a response, or ``None``."""
IsExpired = Callable[[Any], bool]
"""Whether a response says that the token is of no use any more."""

UNAUTHORIZED: Final = 401

_NAME = re.compile(r"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,200}")


def bearer(request: Any, token: str) -> None:
    """``Authorization: Bearer <token>`` (RFC 6750), which clients keep from other hosts when redirected."""
    request.headers["Authorization"] = f"Bearer {token}"


def header(name: str) -> Apply:
    """The token is the value of a header."""
    _check(name)

    def apply(request: Any, token: str) -> None:
        request.headers[name] = token

    return apply


def cookie(name: str) -> Apply:
    """The token is the value of a cookie, next to other cookies (RFC 6265, section 5.4)."""
    _check(name)

    def apply(request: Any, token: str) -> None:
        pairs = [pair.strip() for pair in (request.headers.get("Cookie") or "").split(";")]
        others = [pair for pair in pairs if pair and pair.partition("=")[0] != name]
        request.headers["Cookie"] = "; ".join([*others, f"{name}={token}"])

    return apply


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
