"""What a proxy is told about a request that it holds: forward-auth (mission A12).

Pure: from what the proxy asks and the session that was found to the status and headers of the answer.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping
from typing import Any, Final
from urllib.parse import quote

import msgspec

USER_HEADER: Final = "X-Session-User"
"""The user's name in percent-encoding, for logs; whoever must be sure verifies the assertion."""
ASSERTION_HEADER: Final = "X-Session-Assertion"
LOGIN_HEADER: Final = "X-Session-Login"
"""With a 401: where a browser can log in; nginx cannot pass a redirect on, but can make one of this."""
SESSION_HEADERS: Final = (USER_HEADER, ASSERTION_HEADER)
PATH: Final = "/v1/forward-auth"
MAX_NEXT_CHARS: Final = 2_048

_PLAIN_PATH: Final = re.compile(r"/(?![/\\])[\x21-\x5b\x5d-\x7e]*")
"""A path of this host with its query: what begins with two slashes, or has a backslash, leads elsewhere."""


def client_of(headers: Mapping[str, str]) -> str | None:
    """The browser's address, as the proxy that asks says it: the last one in X-Forwarded-For is what that one saw."""
    text = headers.get("x-forwarded-for", "").rpartition(",")[2].strip()
    try:
        return str(ipaddress.ip_address(text)) if "%" not in text else None
    except ValueError:
        return None


def asked_path(headers: Mapping[str, str], path: str) -> str:
    """Path and query of the browser's request; ``/`` if nobody says it, or it is none of this host.

    nginx and HAProxy are configured to say it in ``X-Original-URI``, Traefik and Caddy say it in ``X-Forwarded-Uri``,
    and Envoy puts it behind our own path.
    """
    found = headers.get("x-original-uri") or headers.get("x-forwarded-uri") or path.removeprefix(PATH)
    return found if len(found) <= MAX_NEXT_CHARS and _PLAIN_PATH.fullmatch(found) else "/"


def login_redirect(login_url: str, headers: Mapping[str, str], path: str) -> str:
    """Where a browser without a login is sent, with the way back in ``next``: a path, never another host."""
    joint = "&" if "?" in login_url else "?"
    return f"{login_url}{joint}next={quote(asked_path(headers, path), safe='')}"


def is_navigation(headers: Mapping[str, str]) -> bool:
    """Whether a person waits for a page: others cannot do anything with a redirect to a login."""
    return "text/html" in headers.get("accept", "")


def claims_of(data: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    """What of the session's data is told: the keys that the operator named, no other."""
    told = {name: data[name] for name in names if name in data}
    # As JSON has it: bytes in base64, dates as RFC 3339 writes them.
    plain: dict[str, Any] = msgspec.json.decode(msgspec.json.encode(told))
    return plain


def user_header(user: str) -> str:
    """Any name in ASCII."""
    return quote(user, safe="@")
