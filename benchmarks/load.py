"""The browsers: keep-alive connections, a cookie jar each, one request at a time each.

Run as a process of its own; prints one line of JSON. It measures itself the CPU time of the server's process over
exactly the requests that it counts, and asks each session in the end whether it has counted as many writes as the
browser was told.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from dataclasses import dataclass, field

from benchmarks.processes import cpu_us

REQUEST_TIMEOUT_S = 10.0
END = b"\r\n\r\n"
SET_COOKIE = b"\r\nset-cookie: "
LENGTH = b"\r\ncontent-length: "


@dataclass
class Window:
    """What is counted while the window is open."""

    open: bool = False
    requests: int = 0
    set_cookies: int = 0
    not_200: int = 0
    waits_s: list[float] = field(default_factory=list)


class Browser(asyncio.Protocol):
    """One connection. :meth:`visit` asks once; :meth:`loop` asks again and again until :meth:`stop`."""

    def __init__(self, host: bytes, window: Window) -> None:
        self._host = host
        self._window = window
        self._transport: asyncio.Transport | None = None
        self._jar: dict[bytes, bytes] = {}
        self._data = b""
        self._path = b"/"
        self._request = b""
        self._sent_at = 0.0
        self._looping = False
        self._lost = False
        self._answered: asyncio.Future[tuple[int, bytes]] | None = None
        self.writes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(ConnectionError("the server closed the connection"))
        if self._looping:
            self._window.not_200 += 1
        self._lost = True

    async def visit(self, path: bytes) -> tuple[int, bytes]:
        self._answered = asyncio.get_running_loop().create_future()
        self._path = path
        self._prepare()
        self._send()
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            return await self._answered

    def loop(self, path: bytes) -> None:
        self._path = path
        self._looping = True
        self._prepare()
        self._send()

    async def stop(self) -> None:
        """Returns when the request that is under way has been answered."""
        self._looping = False
        if self._lost:
            raise SystemExit("the server closed a connection")
        self._answered = asyncio.get_running_loop().create_future()
        async with asyncio.timeout(REQUEST_TIMEOUT_S):
            await self._answered

    def close(self) -> None:
        self._looping = False
        if self._transport is not None:
            self._transport.close()

    def _prepare(self) -> None:
        cookies = b"; ".join(b"%b=%b" % item for item in self._jar.items())
        cookie = b"cookie: %b\r\n" % cookies if cookies else b""
        self._request = b"GET %b HTTP/1.1\r\nhost: %b\r\n%b\r\n" % (self._path, self._host, cookie)

    def _send(self) -> None:
        assert self._transport is not None
        self._sent_at = time.perf_counter()
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        if self._data:
            data = self._data + data
        head = data.find(END)
        if head < 0:
            self._data = data
            return
        names = data[:head].lower()  # servers write them as they like
        at = names.find(LENGTH) + len(LENGTH)
        body = head + len(END)
        if len(data) < body + int(data[at : data.find(b"\r", at)]):
            self._data = data
            return
        self._data = b""
        self._take(data, names, body)

    def _take(self, data: bytes, names: bytes, body: int) -> None:
        """``names``: the head in small letters, where header fields are looked for."""
        window = self._window
        good = data[9:12] == b"200"
        at = names.find(SET_COOKIE)
        if window.open:
            window.requests += 1
            window.waits_s.append(time.perf_counter() - self._sent_at)
            window.set_cookies += at >= 0
            window.not_200 += not good
        if self._path == b"/rw":
            self.writes += good
        if at >= 0:
            while at >= 0:
                at += len(SET_COOKIE)
                name, _, value = data[at : data.find(b";", at)].partition(b"=")
                self._jar[name] = value
                at = names.find(SET_COOKIE, at)
            self._prepare()
        if self._looping:
            self._send()
        elif self._answered is not None and not self._answered.done():
            self._answered.set_result((int(data[9:12]), data[body:]))


async def measure(options: argparse.Namespace) -> dict[str, float]:
    loop = asyncio.get_running_loop()
    window = Window()
    host = b"127.0.0.1:%d" % options.port
    pairs = [
        await loop.create_connection(lambda: Browser(host, window), "127.0.0.1", options.port)
        for _ in range(options.connections)
    ]
    browsers = [browser for _, browser in pairs]
    for browser in browsers:
        status, _ = await browser.visit(b"/start")
        if status != 200:
            raise SystemExit(f"/start was answered with {status}")
    for browser in browsers:
        browser.loop(options.path.encode())
    await asyncio.sleep(options.warm_s)
    cpu, stores, began = cpu_us(options.pid), sum(map(cpu_us, options.store_pid)), time.perf_counter()
    own = time.process_time()
    window.open = True
    await asyncio.sleep(options.window_s)
    window.open = False
    spent_s = time.perf_counter() - began
    cpu, stores = cpu_us(options.pid) - cpu, sum(map(cpu_us, options.store_pid)) - stores
    own = time.process_time() - own
    lost = 0
    for browser in browsers:
        await browser.stop()
        status, body = await browser.visit(b"/count")
        lost += options.counts and (status != 200 or int(body) != browser.writes)
        browser.close()
    requests = max(1, window.requests)
    waits = sorted(window.waits_s) or [0.0]
    return {
        "cpu_us": cpu / requests,
        "store_cpu_us": stores / requests,
        "wall_us": spent_s / requests * 1e6,
        "server_busy": cpu / spent_s / 1e6,
        "load_busy": own / spent_s,
        "p50_us": statistics.median(waits) * 1e6,
        "p99_us": waits[int(len(waits) * 0.99)] * 1e6,
        "set_cookie": window.set_cookies / requests,
        "not_200": window.not_200,
        "wrong_counts": lost,
        "requests": window.requests,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pid", type=int, required=True, help="the server's process")
    parser.add_argument("--store-pid", type=int, action="append", default=[])
    parser.add_argument("--path", default="/ro")
    parser.add_argument("--connections", type=int, default=32)
    parser.add_argument("--warm-s", type=float, default=0.3)
    parser.add_argument("--window-s", type=float, default=1.0)
    parser.add_argument("--counts", action="store_true", help="the app counts its writes: check it")
    options = parser.parse_args()
    try:
        import uvloop
    except ImportError:
        print(json.dumps(asyncio.run(measure(options))))
    else:
        print(json.dumps(uvloop.run(measure(options))))


if __name__ == "__main__":
    main()
