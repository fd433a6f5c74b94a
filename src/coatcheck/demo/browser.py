"""A browser as small as the tour needs: one kept connection, a cookie jar, JSON."""

from __future__ import annotations

import asyncio
from typing import Any, Final

import msgspec

TIMEOUT_S: Final = 15.0
MAX_BODY_BYTES: Final = 1 << 20


class BrowserError(Exception):
    """No usable response came."""


class ShopBrowser:
    """Sends one request at a time to one address."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (host, port)
        self._cookies: dict[str, str] = {}
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        """Send it and return status and decoded JSON (``None`` if it is none).

        Raises:
            BrowserError: the connection broke, or nothing came within 15 s.
        """
        content = msgspec.json.encode(body) if body is not None else b""
        head = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(content)}"]
        if self._cookies:
            head.append("Cookie: " + "; ".join(f"{name}={value}" for name, value in self._cookies.items()))
        if content:
            head.append("Content-Type: application/json")
        try:
            async with asyncio.timeout(TIMEOUT_S):
                return await self._exchange(("\r\n".join(head) + "\r\n\r\n").encode() + content)
        except (OSError, EOFError, ValueError, TimeoutError) as error:
            await self.aclose()
            raise BrowserError(f"{type(error).__name__}: {error}") from error

    async def _exchange(self, request: bytes) -> tuple[int, Any]:
        if self._streams is None:
            self._streams = await asyncio.open_connection(*self._address)
        reader, writer = self._streams
        writer.write(request)
        await writer.drain()
        lines = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        status = int(lines[0].split(" ", 2)[1])
        headers = [(name.strip().lower(), value.strip()) for name, _, value in (x.partition(":") for x in lines[1:])]
        for name, value in headers:
            if name == "set-cookie":
                self._take_cookie(value)
        fields = dict(headers)
        body = await self._read_body(reader, fields)
        if fields.get("connection", "").lower() == "close":
            await self.aclose()
        is_json = fields.get("content-type", "").startswith("application/json")
        return status, msgspec.json.decode(body) if is_json else None

    async def _read_body(self, reader: asyncio.StreamReader, fields: dict[str, str]) -> bytes:
        if fields.get("transfer-encoding", "").lower() != "chunked":
            return await reader.readexactly(min(int(fields.get("content-length", "0")), MAX_BODY_BYTES))
        body = b""
        while size := int((await reader.readuntil(b"\r\n")).split(b";")[0], 16):
            body += (await reader.readexactly(size + 2))[:-2]
            if len(body) > MAX_BODY_BYTES:
                raise ValueError("body too large")
        await reader.readuntil(b"\r\n")
        return body

    def _take_cookie(self, text: str) -> None:
        pair, _, attributes = text.partition(";")
        name, _, value = pair.partition("=")
        if "max-age=0" in attributes.replace(" ", "").lower():
            self._cookies.pop(name, None)
        else:
            self._cookies[name] = value

    async def aclose(self) -> None:
        """Close the connection; the cookies stay."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None
