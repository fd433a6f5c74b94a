"""How many new sessions one client address may begin, in bounded memory: a token bucket for each address.

A client that keeps no cookies begins a session with each request that stores something; one address cannot fill the
session servers so. An office behind one address is let through: what counts is who has no session yet.
"""

from __future__ import annotations

import ipaddress
from typing import Final

import msgspec

MAX_ADDRESSES: Final = 65_536
"""Addresses that are remembered; for one more, the one that was longest without a new session is forgotten."""
IPV6_PREFIX: Final = 64
"""What one customer is given at least, and may use each address of (RFC 6177)."""


class _Bucket(msgspec.Struct, gc=False):
    left: float
    filled_at: float


class Newcomers:
    """Counts the new sessions of each client address; of an IPv6 address its /64 counts.

    ``burst``: new sessions at once; ``per_minute``: and so many a minute from then on. 0 a minute: without a limit.
    What comes from this machine itself is not limited: it is no stranger, or a proxy that was not named as one.
    """

    def __init__(self, burst: int, per_minute: float) -> None:
        self.burst = burst
        self.per_minute = per_minute
        self.refused = 0
        self._buckets: dict[object, _Bucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def admit(self, host: str | None, now_s: float) -> bool:
        """Whether a client may begin one more session. ``host``: its address as the server tells it, ``None`` if it
        does not; ``now_s``: seconds that never go back."""
        network = _network(host) if self.per_minute else None
        if network is None:
            return True
        bucket = self._buckets.pop(network, None)
        if bucket is None:
            if len(self._buckets) >= MAX_ADDRESSES:
                del self._buckets[next(iter(self._buckets))]
            bucket = _Bucket(float(self.burst), now_s)
        self._buckets[network] = bucket
        grown = bucket.left + (now_s - bucket.filled_at) * self.per_minute / 60
        bucket.left, bucket.filled_at = min(float(self.burst), grown), now_s
        if bucket.left < 1:
            self.refused += 1
            return False
        bucket.left -= 1
        return True

    @property
    def retry_after_s(self) -> int:
        """When a refused address may begin its next session, in whole seconds."""
        return max(1, round(60 / self.per_minute)) if self.per_minute else 1


def _network(host: str | None) -> object | None:
    """What counts as one client; ``None``: nothing to count by, or this machine."""
    if not host:
        return None
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return host[:64]
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is None:
            return None if address.is_loopback else int(address) >> (128 - IPV6_PREFIX) << IPV6_PREFIX
        address = address.ipv4_mapped
    return None if address.is_loopback else int(address)
