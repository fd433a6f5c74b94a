"""What keeps caches away from responses that touched a session (ASVS 14.2.2)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

from coatcheck.sessions.routes import Header

UNCACHED = ((b"vary", b"Cookie"), (b"cache-control", b"no-store"))
_GUARDED_LENGTHS = frozenset(len(name) for name, _ in UNCACHED)
_KNOWN: Final = frozenset({b"content-length", b"cache-control", b"etag", b"last-modified"})
_KNOWN_LENGTHS: Final = frozenset(map(len, _KNOWN))
BODILESS: Final = frozenset({204, 205, 304})
"""Statuses of responses without a body (RFC 9110, 15.3.5, 15.3.6 and 15.4.5)."""


def guard(headers: Iterable[Header], cookies: list[Header]) -> list[Header]:
    """``Vary: Cookie`` and ``no-store`` (ASVS 14.2.2). The app's own Cache-Control stands unless a token leaves."""
    guarded = list(headers)
    for name, _ in guarded:
        if len(name) in _GUARDED_LENGTHS:
            return _guard_beside(guarded, bool(cookies)) + cookies
    guarded += UNCACHED
    guarded += cookies
    return guarded


def _guard_beside(headers: list[Header], sets_cookie: bool) -> list[Header]:
    """The same for headers of which one may be ``Vary`` or ``Cache-Control``."""
    guarded: list[Header] = []
    wanted = dict(UNCACHED)
    for name, value in headers:
        lowered = name.lower()
        if lowered == b"cache-control" and sets_cookie:
            continue
        if lowered == b"cache-control" or (
            lowered == b"vary" and (b"cookie" in value.lower() or value.strip() == b"*")
        ):
            wanted.pop(lowered, None)
        guarded.append((name, value))
    return guarded + list(wanted.items())


def may_read_later(status: int, headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """Whether a response may be a stream that reads the session when its head has long left: then caches must be kept
    away beforehand.

    Not so if it says how long it is, or how it may be cached or recognised: the app knows what it sends.
    """
    if status in BODILESS:
        return False
    return not any(len(name) in _KNOWN_LENGTHS and name.lower() in _KNOWN for name, _ in headers)
