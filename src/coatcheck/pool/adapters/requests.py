"""Outbound tokens for requests (extra: ``requests``).

```python
session = requests.Session()
session.mount("https://api.example.com/", PoolAdapter(pool, "SADMIN"))
```

A transport adapter and not an ``AuthBase``: a response hook is never called when the connection fails, so a token that
was checked out for an ``AuthBase`` would leak. Mounted at a prefix, it never sees requests to other hosts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import requests
from requests.adapters import HTTPAdapter

from coatcheck.errors import ConfigError
from coatcheck.pool import PoolError, TokenPool
from coatcheck.pool.adapters.exchange import MAX_ATTEMPTS, UpstreamTokens, refresh, refuse, report
from coatcheck.pool.adapters.streaming import streams_of


class PoolAdapter(HTTPAdapter):
    """Gives each request a leased token (mission D1).

    The keyword arguments are those of :class:`~.exchange.UpstreamTokens`, and ``transport``: those of
    ``HTTPAdapter``. A refused token is dropped and the request sent again, once after a login (mission D7); a request
    whose body is a stream is not sent again. Requests raise the pool's errors.
    """

    def __init__(
        self, pool: TokenPool, user: Any, *, transport: Mapping[str, Any] | None = None, **upstream: Any
    ) -> None:
        if not isinstance(pool, TokenPool):
            raise ConfigError("PoolAdapter needs a TokenPool: requests has no asyncio")
        self._pool = pool
        self._exchange = UpstreamTokens(user, **upstream)
        self._streams = streams_of(pool)
        super().__init__(**(transport or {}))

    def send(self, request: requests.PreparedRequest, *args: Any, **options: Any) -> requests.Response:
        exchange = self._exchange
        if not exchange.concerns(request.url or ""):
            return super().send(request, *args, **options)
        user = exchange.user_of(request)
        again = request.body is None or isinstance(request.body, (bytes, str))
        attempt = 0
        while True:
            attempt += 1
            held = exchange.lend(self._pool, user, attempt).acquire()
            response = None
            try:
                # A copy: redirects start from the original, and must not carry the token to other hosts.
                prepared = exchange.prepare(request.copy(), held)
                response = super().send(prepared, *args, **options)
                if exchange.read_body:
                    _ = response.content
                expired = exchange.is_expired(response)
                better = expired and refuse(held)
                if not expired:
                    refresh(held, exchange.extract(response))
            except BaseException:
                # Nobody gets to see it, so nobody else closes it.
                if response is not None:
                    response.close()
                self._end(user, held, failed=True)
                raise
            if not (better and again and attempt < MAX_ATTEMPTS):
                self._keep(user, held, response)
                return response
            response.close()
            self._end(user, held)

    def _keep(self, user: str, held: Any, response: requests.Response) -> None:
        """The lease ends with the body, or with the response."""
        if response._content_consumed:  # type: ignore[attr-defined]
            self._end(user, held)
            return

        def end(complete: bool) -> None:
            if held.fencing:
                self._end(user, held, failed=not complete)

        response.raw = body = LeasedBody(response.raw, end)
        self._streams.keep(held, body)

    def _end(self, user: str, held: Any, *, failed: bool = False) -> None:
        self._streams.end(held)
        try:
            held.release(failed=failed)
        except PoolError as error:
            report(user, error)


class LeasedBody:
    """A urllib3 response that tells when it is read to its end, or closed before."""

    def __init__(self, raw: Any, end: Callable[[bool], None]) -> None:
        self._raw = raw
        self._end = end

    def __getattr__(self, name: str) -> Any:
        return getattr(self._raw, name)

    def __iter__(self) -> Iterator[bytes]:
        return self._watched(iter(self._raw))

    def stream(self, *args: Any, **options: Any) -> Iterator[bytes]:
        return self._watched(self._raw.stream(*args, **options))

    def _watched(self, chunks: Iterator[bytes]) -> Iterator[bytes]:
        try:
            yield from chunks
        except GeneratorExit:
            # Nobody reads on for now; the response is still to be closed, or read again.
            raise
        except BaseException:
            self._end(False)
            raise
        self._end(True)

    def read(self, *args: Any, **options: Any) -> Any:
        try:
            chunk = self._raw.read(*args, **options)
        except BaseException:
            self._end(False)
            raise
        if self._raw.closed or not chunk or not (args or options.get("amt")):
            self._end(True)
        return chunk

    def release_conn(self) -> None:
        self._raw.release_conn()
        self._end(False)

    def close(self) -> None:
        self._raw.close()
        self._end(False)
