"""What an answer says of a session, in a response of Flask or Quart: its headers and its one cookie."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Final

from coatcheck.sessions.routes import Header

if TYPE_CHECKING:
    from flask.sessions import SessionMixin

_ASKED_FOR: Final = ("cache-control", "vary", "etag", "last-modified", "content-length")
"""The headers by which it is decided what caches are told."""


def headers_of(response: Any, streamed: bool) -> list[Header]:
    """Of the response's headers those that count. A body that is there as a whole has a length, whether it was
    written into the headers yet or not."""
    headers = response.headers
    found = [(name.encode(), value.encode("latin-1")) for name in _ASKED_FOR for value in headers.getlist(name)]
    if not streamed:
        found.append((b"content-length", b""))
    return found


def is_cached(response: Any) -> bool:
    """Whether the app says itself how the response may be cached or recognised: then no cookie is sent with it merely
    to be kept for longer, for caches would have to be kept from it."""
    return any(name in response.headers for name in ("Cache-Control", "ETag", "Last-Modified", "Expires"))


def adopt(response: Any, given: Iterable[Header], answered: Iterable[Header]) -> None:
    """Bring what ``answered`` has beyond ``given`` to the response."""
    if answered is given:
        return
    known = set(given)
    for name, value in answered:
        if (name, value) in known:
            continue
        if name == b"vary":
            response.vary.add(value.decode())
        else:
            response.headers[name.decode().title()] = value.decode("latin-1")


def set_cookie(interface: Any, app: Any, session: SessionMixin, response: Any, token: bytes, name: str = "") -> None:
    """Write the session's cookie as the app's settings and the interface's methods say; an empty ``token`` deletes
    it. ``name``: of another cookie with the same attributes."""
    name = name or interface.get_cookie_name(app)
    options = {
        "domain": interface.get_cookie_domain(app),
        "path": interface.get_cookie_path(app),
        "secure": interface.get_cookie_secure(app),
        "samesite": interface.get_cookie_samesite(app),
        "httponly": interface.get_cookie_httponly(app),
    }
    if hasattr(interface, "get_cookie_partitioned"):  # since Flask 3.1
        options["partitioned"] = interface.get_cookie_partitioned(app)
    if token:
        response.set_cookie(name, token.decode(), expires=interface.get_expiration_time(app, session), **options)
    else:
        response.delete_cookie(name, **options)
