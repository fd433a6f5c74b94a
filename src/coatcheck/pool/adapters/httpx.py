"""Outbound tokens for httpx (extra: ``httpx``).

```python
client = httpx.Client(auth=PoolAuth(pool, "SADMIN", apply=header("X-Session"), extract=from_header("X-Session")))
client = httpx.AsyncClient(auth=AsyncPoolAuth(async_pool, "SADMIN"))
client = httpx.Client(transport=PoolTransport(pool, "SADMIN", origin="https://api.example.com"), follow_redirects=True)
```
"""

from __future__ import annotations

import httpx

from coatcheck.pool.adapters.httpx_family import (
    AsyncFlow,
    AsyncLeasedStream,
    AsyncTransport,
    LeasedStream,
    SyncFlow,
    SyncTransport,
)


class _Stream(LeasedStream, httpx.SyncByteStream):
    pass


class _AsyncStream(AsyncLeasedStream, httpx.AsyncByteStream):
    pass


class PoolAuth(SyncFlow, httpx.Auth):
    """Gives each request of a ``Client`` a leased token (mission D1).

    The keyword arguments are those of :class:`~.exchange.UpstreamTokens`: ``apply``, ``extract``,
    ``is_expired``, ``read_body``, ``origin``. A refused token is dropped and the request sent again, once after a
    login (mission D7); a request whose body is a stream is not sent again. Requests raise the pool's errors.
    """

    stream_class = _Stream
    byte_stream = httpx.ByteStream


class AsyncPoolAuth(AsyncFlow, httpx.Auth):
    """Gives each request of an ``AsyncClient`` a leased token; see :class:`PoolAuth`."""

    stream_class = _AsyncStream
    byte_stream = httpx.ByteStream


class PoolTransport(SyncTransport, httpx.BaseTransport):
    """:class:`PoolAuth` as a transport: for clients that follow redirects, which then take no token to other hosts.

    ``origin``: needed, because redirects pass through here as well. ``transport``: the one that sends; an
    ``HTTPTransport`` without it.
    """

    auth_class = PoolAuth
    request_class = httpx.Request
    transport_class = httpx.HTTPTransport


class AsyncPoolTransport(AsyncTransport, httpx.AsyncBaseTransport):
    """The same for an ``AsyncClient``; see :class:`PoolTransport`."""

    auth_class = AsyncPoolAuth
    request_class = httpx.Request
    transport_class = httpx.AsyncHTTPTransport
