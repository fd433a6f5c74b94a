"""A browser over real connections, as plain as can be: cookies by host, and redirects that it follows."""

from __future__ import annotations

import http.client
import json
import re
from html import unescape
from http.cookies import SimpleCookie
from typing import Any
from urllib.parse import urlsplit

TIMEOUT_S = 60.0


class Page:
    def __init__(self, url: str, status: int, headers: list[tuple[str, str]], body: str) -> None:
        self.url = url
        self.status = status
        self.headers = headers
        self.body = body

    def all(self, name: str) -> list[str]:
        return [value for found, value in self.headers if found.lower() == name]

    @property
    def location(self) -> str | None:
        return next(iter(self.all("location")), None)

    @property
    def says(self) -> dict[str, Any]:
        found = re.search("<pre id=said>(.*?)</pre>", self.body)
        assert found is not None, f"{self.status} {self.url}: {self.body}"
        said: dict[str, Any] = json.loads(unescape(found[1]))
        return said


class Client:
    """All hosts are on loopback, whatever their names."""

    def __init__(self) -> None:
        self.jar: dict[str, dict[str, str]] = {}

    def send(self, url: str, method: str = "GET") -> Page:
        parts = urlsplit(url)
        connection = http.client.HTTPConnection("127.0.0.1", parts.port or 80, timeout=TIMEOUT_S)
        cookies = "; ".join(f"{name}={value}" for name, value in self.jar.get(parts.hostname or "", {}).items())
        headers = {"host": parts.netloc, **({"cookie": cookies} if cookies else {})}
        try:
            connection.request(method, parts.path + (f"?{parts.query}" if parts.query else ""), headers=headers)
            response = connection.getresponse()
            page = Page(url, response.status, response.getheaders(), response.read().decode())
        finally:
            connection.close()
        self.keep(page)
        return page

    def keep(self, page: Page) -> None:
        kept = self.jar.setdefault(urlsplit(page.url).hostname or "", {})
        for line in page.all("set-cookie"):
            for name, morsel in SimpleCookie(line).items():
                if morsel["max-age"] == "0":
                    kept.pop(name, None)
                else:
                    kept[name] = morsel.value

    def visit(self, url: str) -> list[Page]:
        """Follow redirects; the last one is the page."""
        pages = [self.send(url)]
        while (location := pages[-1].location) is not None:
            assert len(pages) <= 20
            pages.append(self.send(location))
        return pages

    def until(self, url: str, parameter: str) -> str:
        """The URL with this parameter that redirects lead to; it is not asked for."""
        while parameter not in url:
            page = self.send(url)
            assert page.location is not None, f"{page.status} at {page.url}"
            url = page.location
        return url
