"""The pages of answers that coatcheck gives itself (400, 408, 409, 429, 431, 502, 503, 504), as the client likes them.

Chosen by the ``Accept`` header (RFC 9110 section 12.5.1) among HTML, JSON (RFC 9457) and plain text. Operators replace
them by pages of their own; a page is sent as it is, nothing is put into it.
"""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from http import HTTPStatus
from typing import Final, NamedTuple

from coatcheck.errors import ConfigError

MAX_PAGE_BYTES: Final = 64 * 1024
MAX_PAGES: Final = 64
MAX_ACCEPT_BYTES: Final = 4096

_NAME: Final = re.compile(r"([45][0-9][0-9]|[45]xx)\.(html|json|txt)")
_RANGE: Final = re.compile(rb"[ \t]*([^ \t;,/]+)/([^ \t;,]+)[ \t]*((?:;[^,]*)?)")
_QUALITY: Final = re.compile(rb";[ \t]*[qQ]=(0(?:\.[0-9]{0,3})?|1(?:\.0{0,3})?)[ \t]*(?:;|$)")

_MEDIA: Final[Mapping[str, tuple[bytes, ...]]] = {
    "html": (b"text/html",),
    "json": (b"application/json", b"application/problem+json"),
    "txt": (b"text/plain",),
}
_TYPES: Final = {
    "html": b"text/html; charset=utf-8",
    "json": b"application/json",
    "txt": b"text/plain; charset=utf-8",
}
_PROBLEM: Final = b"application/problem+json"
OWN_HTML_POLICY: Final = (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'")
NO_SNIFFING: Final = (b"x-content-type-options", b"nosniff")

Headers = tuple[tuple[bytes, bytes], ...]


class Page(NamedTuple):
    """A body, and the headers that say what it is."""

    headers: Headers
    body: bytes


class ErrorPages:
    """Pages by status and form; what is not given is short and built in.

    ``pages``: the content by name: ``503.html``, ``502.json``, ``5xx.html`` (every status from 500 that has none of its
    own), ``404.txt``.

    Raises:
        ConfigError: a name is none of these, or a page is too large.
    """

    def __init__(self, pages: Mapping[str, bytes] | None = None) -> None:
        self._pages = dict(pages or {})
        if len(self._pages) > MAX_PAGES:
            raise ConfigError(f"error_pages: at most {MAX_PAGES} pages, not {len(self._pages)}")
        for name, content in self._pages.items():
            if not _NAME.fullmatch(name):
                shown = name if len(name) <= 80 else name[:80] + "..."
                raise ConfigError(f"error_pages: name pages 503.html, 5xx.html, 404.json or 400.txt (got {shown!r})")
            if len(content) > MAX_PAGE_BYTES:
                raise ConfigError(f"error_pages: {name} is larger than {MAX_PAGE_BYTES} bytes")

    def page(self, status: int, accept: bytes = b"", detail: str = "") -> Page:
        """The page for an answer. ``detail``: a sentence for the built-in ones; it says nothing secret."""
        own = {form: page for form in _MEDIA if (page := self._own(status, form)) is not None}
        form, media = _preferred(accept, tuple(own))
        if form in own:
            return Page((_type(form, media), NO_SNIFFING), own[form])
        return _built_in(status, form, media, detail)

    def _own(self, status: int, form: str) -> bytes | None:
        found = self._pages.get(f"{status}.{form}")
        return self._pages.get(f"{status // 100}xx.{form}") if found is None else found


def _preferred(accept: bytes, own: tuple[str, ...]) -> tuple[str, bytes]:
    """The form that the client likes best, and the media type that it named.

    Of equals, one that the operator has a page for; else plain text, so that nobody who did not ask for HTML gets it.
    """
    ranges = _ranges(accept[:MAX_ACCEPT_BYTES])
    order = (*own, *(form for form in ("txt", "html", "json") if form not in own))
    best, best_quality, best_media = order[0], 0.0, b""
    for form in order:
        for media in _MEDIA[form]:
            quality, named = _quality(media, ranges)
            if quality > best_quality:
                best, best_quality, best_media = form, quality, media if named else b""
    return best, best_media


def _ranges(accept: bytes) -> list[tuple[bytes, bytes, float]]:
    found = []
    for part in accept.lower().split(b","):
        match = _RANGE.fullmatch(part.rstrip(b" \t"))
        if match is not None:
            quality = _QUALITY.search(match[3])
            found.append((match[1], match[2], float(quality[1]) if quality else 1.0))
    return found or [(b"*", b"*", 1.0)]


def _quality(media: bytes, ranges: list[tuple[bytes, bytes, float]]) -> tuple[float, bool]:
    """How much a media type is liked by the most specific range that fits it, and whether that one names it in full."""
    kind, _, subkind = media.partition(b"/")
    for wanted in ((kind, subkind), (kind, b"*"), (b"*", b"*")):
        for one, other, quality in ranges:
            if (one, other) == wanted:
                return quality, wanted == (kind, subkind)
    return 0.0, False


def _type(form: str, media: bytes) -> tuple[bytes, bytes]:
    return (b"content-type", _PROBLEM if form == "json" and media == _PROBLEM else _TYPES[form])


def _built_in(status: int, form: str, media: bytes, detail: str) -> Page:
    phrase = HTTPStatus(status).phrase
    headers: Headers = (_type(form, media), NO_SNIFFING)
    if form == "json":
        problem = {"status": status, "title": phrase} | ({"detail": detail} if detail else {})
        return Page(headers, json.dumps(problem).encode() + b"\n")
    if form == "html":
        said = f"<p>{html.escape(detail)}</p>" if detail else ""
        title = f"{status} {phrase}"
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{title}</title>'
        return Page((*headers, OWN_HTML_POLICY), f"{head}<h1>{title}</h1>{said}</html>\n".encode())
    return Page(headers, f"{detail or f'{status} {phrase}'}\n".encode())
