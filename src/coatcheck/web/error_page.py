"""What the middleware's own answers look like: pages by name, or a function of the app's."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from typing import Any, Final

from coatcheck.error_pages import MAX_PAGE_BYTES, NO_SNIFFING, ErrorPages, Page

ErrorPage = Callable[[MutableMapping[str, Any], int, str], tuple[str, bytes | str] | None]
"""``page(scope, status, detail)`` returns the content type and the body, or ``None`` for the built-in page. It is
called on the event loop, so it neither waits nor asks a database: something is away already."""

MAX_CONTENT_TYPE: Final = 128

log = logging.getLogger("coatcheck.web")
_BUILT_IN: Final = ErrorPages()


def page_for(pages: ErrorPages | ErrorPage | None, scope: MutableMapping[str, Any], status: int, detail: str) -> Page:
    """The page of an answer. A function that fails or returns no page is logged, and the built-in page leaves."""
    accept = b",".join(value for name, value in scope["headers"] if name == b"accept")
    if pages is None or isinstance(pages, ErrorPages):
        return (pages or _BUILT_IN).page(status, accept, detail)
    try:
        found = pages(scope, status, detail)
        if found is not None:
            return _checked(*found)
    except Exception:
        log.exception("the app's error page for %d failed; the built-in one is sent", status)
    return _BUILT_IN.page(status, accept, detail)


def _checked(content_type: str, body: bytes | str) -> Page:
    """Raises ValueError for a page that cannot be sent."""
    kind = content_type.encode("ascii")
    if not 0 < len(kind) <= MAX_CONTENT_TYPE or any(byte < 32 or byte == 127 for byte in kind):
        raise ValueError(f"no content type: {content_type!r:.80}")
    content = body.encode() if isinstance(body, str) else bytes(body)
    if len(content) > MAX_PAGE_BYTES:
        raise ValueError(f"an error page of {len(content)} bytes; at most {MAX_PAGE_BYTES}")
    return Page(((b"content-type", kind), NO_SNIFFING), content)
