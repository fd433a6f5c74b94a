"""Which responses may give a browser its route, though it has no session: rules only.

A route cookie is no secret, and tells nobody apart: it names a web server. But caches must not hand one browser's to
others, and what is cached anyway must stay so.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, Literal

Header = tuple[bytes, bytes]
"""Name and value, as they stand in the response."""
Sticky = Literal["browser", "session"]
"""Who stays with one web server: every browser, or those with a session."""

PRIVATE: Final = (b"cache-control", b"private")
_NOT_STORED: Final = (b"no-store", b"private")
_ASSETS: Final = (b"image/", b"font/", b"audio/", b"video/", b"text/css", b"text/javascript")
_ASSET_KINDS: Final = (b"javascript", b"wasm", b"font")
_CACHED_BY: Final = frozenset({b"etag", b"last-modified", b"expires"})
NOT_MODIFIED: Final = 304


def may_carry_route(status: int, headers: Iterable[Header]) -> bool:
    """Whether a response without a session may set the route cookie: not if it, or what it stands for, may be cached
    for others, and not with a page's images, styles and scripts, of which many come at once.

    A 5xx answer may come from a server that will not be there for long.
    """
    if status == NOT_MODIFIED or status >= 500:
        return False
    private = cached = False
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"cache-control":
            private = private or any(word in value.lower() for word in _NOT_STORED)
            cached = True
        elif lowered in _CACHED_BY:
            cached = True
        elif lowered == b"content-type":
            kind = value.lower()
            if kind.startswith(_ASSETS) or any(word in kind for word in _ASSET_KINDS):
                return False
    return private or not cached


def with_route(headers: Iterable[Header], cookie: Header) -> list[Header]:
    """The headers with the route cookie; shared caches are told to leave the response alone, browsers may keep it."""
    extended = list(headers)
    if not any(name.lower() == b"cache-control" for name, _ in extended):
        extended.append(PRIVATE)
    extended.append(cookie)
    return extended
