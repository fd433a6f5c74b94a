"""Services that answer as no session service of ours does, for the clients in front of them."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar

SESSION = {
    "id": "2c2200000000",
    "user": "victim",
    "data": {},
    "version": "v",
    "created_at": 1,
    "last_seen_at": 1,
    "idle_timeout_at": 2,
    "absolute_timeout_at": 2,
    "logged_in_at": 1,
}
GIVEN = json.dumps({"session": SESSION, "set_cookie": [], "cookie": None, "keys": []}).encode()
"""What opens a page, for who believes it."""


class OddHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen: ClassVar[list[str]]
    odd: ClassVar[Callable[[OddHandler], None]]

    def log_message(self, *_: Any) -> None: ...

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("content-length") or 0))
        self.seen.append(f"{self.command} {self.path} {self.headers} {body!r}")
        with contextlib.suppress(OSError):  # who asked has gone
            type(self).odd(self)

    do_GET = do_POST


@contextlib.contextmanager
def odd_service(odd: Callable[[OddHandler], None]) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what it was asked."""
    seen: list[str] = []
    handler = type("Handler", (OddHandler,), {"odd": staticmethod(odd), "seen": seen})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, args=(0.05,))
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}", seen
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def answers(status: int, body: bytes, **headers: str) -> Callable[[OddHandler], None]:
    return lambda handler: handler.answer(status, body, **headers)


def redirects(status: int, origin: str) -> Callable[[OddHandler], None]:
    return lambda handler: handler.answer(status, b"{}", Location=origin + handler.path)


def sends_without_end(piece: bytes, pause_s: float, most: int) -> Callable[[OddHandler], None]:
    """A body of ``most`` such pieces, each of which is noted as ``"piece"``."""

    def send(handler: OddHandler) -> None:
        handler.close_connection = True
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(piece) * most))
        handler.end_headers()
        for _ in range(most):
            handler.wfile.write(piece)
            handler.seen.append("piece")
            time.sleep(pause_s)

    return send
