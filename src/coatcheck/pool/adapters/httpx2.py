"""Outbound tokens for httpx2, the maintained fork of httpx (extra: ``httpx2``).

```python
client = httpx2.Client(auth=PoolAuth(pool, "SADMIN", apply=header("X-Session"), extract=from_header("X-Session")))
client = httpx2.AsyncClient(auth=AsyncPoolAuth(async_pool, "SADMIN"))
client = httpx2.Client(transport=PoolTransport(pool, "SADMIN", origin="https://api.example.com"), follow_redirects=True)
```
"""

from __future__ import annotations

import httpx2

from coatcheck.pool.adapters.httpx_family import (
    AsyncFlow,
    AsyncLeasedStream,
    AsyncTransport,
    LeasedStream,
    SyncFlow,
    SyncTransport,
)


class _Stream(LeasedStream, httpx2.SyncByteStream):
    pass


class _AsyncStream(AsyncLeasedStream, httpx2.AsyncByteStream):
    pass


class PoolAuth(SyncFlow, httpx2.Auth):
    """Gives each request of a ``Client`` a leased token (mission D1).

    The keyword arguments are those of :class:`~.exchange.UpstreamTokens`: ``apply``, ``extract``,
    ``is_expired``, ``read_body``, ``origin``. A refused token is dropped and the request sent again, once after a
    login (mission D7); a request whose body is a stream is not sent again. Requests raise the pool's errors.
    """

    stream_class = _Stream
    byte_stream = httpx2.ByteStream


class AsyncPoolAuth(AsyncFlow, httpx2.Auth):
    """Gives each request of an ``AsyncClient`` a leased token; see :class:`PoolAuth`."""

    stream_class = _AsyncStream
    byte_stream = httpx2.ByteStream


class PoolTransport(SyncTransport, httpx2.BaseTransport):
    """:class:`PoolAuth` as a transport: for clients that follow redirects, which then take no token to other hosts.

    ``origin``: needed, because redirects pass through here as well. ``transport``: the one that sends; an
    ``HTTPTransport`` without it.
    """

    auth_class = PoolAuth
    request_class = httpx2.Request
    transport_class = httpx2.HTTPTransport


class AsyncPoolTransport(AsyncTransport, httpx2.AsyncBaseTransport):
    """The same for an ``AsyncClient``; see :class:`PoolTransport`."""

    auth_class = AsyncPoolAuth
    request_class = httpx2.Request
    transport_class = httpx2.AsyncHTTPTransport
