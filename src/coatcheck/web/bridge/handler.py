"""One request of a WSGI app, in a thread. The server's side of PEP 3333 is the standard library's, ``wsgiref``; here
stands what a response is made of on an event loop."""

from __future__ import annotations

import io
import re
import sys
from collections.abc import Callable, Iterable
from typing import Any, Final
from wsgiref.handlers import BaseHandler
from wsgiref.headers import Headers
from wsgiref.util import is_hop_by_hop

from coatcheck.web.bridge.exchange import Exchange, answered, piece

MAX_JOINED_BYTES: Final = 64 * 1024
"""A body that is a list of small pieces leaves as one, up to this size."""

_BODILESS: Final = (204, 304)
_NO_NAME: Final = re.compile(r"[^!#$%&'*+\-.^_`|~0-9A-Za-z]")
_CONTROL: Final = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")

WsgiApp = Callable[..., Iterable[bytes]]


class WsgiHandler(BaseHandler):
    """Runs the app, and orders of the event loop what it reads and answers.

    The head leaves with the first piece of the body that is not empty, or at the end; what the app did to its session
    until then is stored with it. Of a response with a ``Content-Length`` the piece that completes it is kept back until
    the app has nothing more to say, so that its client has it when all is stored.
    """

    environ: dict[str, Any]
    headers: Headers | None
    status: str | None
    os_environ: dict[str, str] = {}  # noqa: RUF012 - as the base class has it: the process's own are not the app's
    wsgi_multithread = True
    wsgi_multiprocess = True
    origin_server = False

    def __init__(self, exchange: Exchange, variables: dict[str, Any], scheme: str) -> None:
        self._exchange = exchange
        self._variables = variables
        self._scheme = scheme
        self._is_head = variables["REQUEST_METHOD"] == "HEAD"
        self._start: dict[str, Any] | None = None
        """The head, until it has left."""
        self._has_left = False
        self._kept = b""
        self._left: int | None = None
        """Bytes that the response has yet to give, where it says its length."""

    # -- what the base class asks for -------------------------------------------------------------------

    def get_scheme(self) -> str:
        return self._scheme

    def get_stdin(self) -> Any:
        return io.BufferedReader(_Upload(self._exchange))

    def get_stderr(self) -> Any:
        return sys.stderr

    def add_cgi_vars(self) -> None:
        self.environ.update(self._variables)
        self.environ["wsgi.input_terminated"] = True  # it ends where the body does, also without a length

    def run(self, application: WsgiApp) -> None:
        """Raises what the app raises; it is closed in any case."""
        try:
            self.setup_environ()
            self.result = application(self.environ, self.start_response)
            self._join()
            self.finish_response()
        finally:
            result, self.result = self.result, None  # type: ignore[assignment]
            if result is not None and hasattr(result, "close"):
                result.close()

    def finish_response(self) -> None:
        """All that the app has to say."""
        assert self.result is not None
        for data in self.result:
            self.write(data)
        self.finish_content()

    def start_response(self, status: str, headers: list[tuple[str, str]], exc_info: Any = None) -> Any:
        """As PEP 3333 says. Raises :class:`ValueError` for what is no header, or would be two."""
        for name, value in headers:
            if _NO_NAME.search(name) or not name:
                raise ValueError(f"no name of a header: {name!r:.80}")
            if _CONTROL.search(value):
                raise ValueError(f"a control character in the value of the header {name}: {value!r:.80}")
            value.encode("latin-1")
        # Which connection it leaves by is the web server's affair.
        headers = [each for each in headers if not is_hop_by_hop(each[0])]
        return super().start_response(status, headers, exc_info)

    def write(self, data: bytes) -> None:
        """A piece of the body; an empty one says nothing."""
        if data or type(data) is not bytes:
            super().write(data)

    def send_headers(self) -> None:
        assert self.headers is not None
        assert self.status is not None
        self.cleanup_headers()
        self.headers_sent = True
        length = self.headers.get("Content-Length")
        self._left = int(length) if length is not None and length.isdecimal() else None
        self._start = answered(
            int(self.status[:3]),
            [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in self.headers.items()],
        )

    def set_content_length(self) -> None:
        if not self._is_bodiless():
            super().set_content_length()

    def finish_content(self) -> None:
        if not self.headers_sent:
            if self.headers is None:
                raise AssertionError("the app returned without a call of start_response")
            if not self._is_bodiless():
                self.headers.setdefault("Content-Length", "0")
            self.send_headers()
        self._order(self._kept, more=False)

    def _is_bodiless(self) -> bool:
        assert self.status is not None
        return self._is_head or int(self.status[:3]) in _BODILESS

    def _write(self, data: bytes) -> None:
        if self._left is None:
            self._order(data, more=True)
            return
        self._left -= len(data)
        if self._left > 0:
            self._order(data, more=True)
            return
        if self._kept:
            self._order(self._kept, more=True)
        self._kept = data

    def _flush(self) -> None:
        """Everything leaves as soon as it can."""

    # -------------------------------------------------------------------------------------------------

    def _order(self, data: bytes, more: bool) -> None:
        messages = [piece(data, more)]
        start, self._start = self._start, None
        if start is not None:
            messages.insert(0, start)
        self._exchange.send(messages, len(data), waits=start is not None or not more)

    def _join(self) -> None:
        result: Any = self.result
        if type(result) in (list, tuple) and len(result) > 1 and sum(map(len, result)) <= MAX_JOINED_BYTES:
            self.result = [b"".join(result)]


class _Upload(io.RawIOBase):
    """The body of the request, piece by piece as it comes: no more of it is in memory than was asked for."""

    def __init__(self, exchange: Exchange) -> None:
        self._exchange = exchange
        self._rest = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        if not self._rest:
            self._rest = memoryview(self._exchange.read())
        count = min(len(buffer), len(self._rest))
        buffer[:count] = self._rest[:count]
        self._rest = self._rest[count:]
        return count
