"""Who may come in: how many connections there are, and how many of them one client holds. Rules only.

A connection counts from the moment that it is accepted, before any handshake, until it is closed. A client is an IPv4
address or an IPv6 network of 64 bits, which is what one subscriber is given (RFC 6177). Behind a trusted proxy all
connections are the proxy's, so there a client is counted by its requests and WebSockets.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from enum import Enum
from typing import Final

import msgspec

Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_MAX_HOPS: Final = 16
"""Addresses of one X-Forwarded-For that are looked at, from the right."""
_MAPPED: Final = "::ffff:"
_SUBSCRIBER_BITS: Final = 64


class AdmissionPolicy(msgspec.Struct, frozen=True):
    """How many there may be at a time, in one director."""

    max_connections: int
    max_connections_per_address: int
    max_handshakes: int
    max_websockets: int


class Refusal(Enum):
    """Why one more is too many."""

    CONNECTIONS = "connections"
    ADDRESS = "address"
    WEBSOCKETS = "websockets"


class Guest:
    """Something that counts until it leaves: a connection, or a request that came through a proxy."""

    __slots__ = ("_admission", "address", "is_connection")

    def __init__(self, admission: Admission | None, address: str | None, *, is_connection: bool) -> None:
        self._admission = admission
        self.address = address
        self.is_connection = is_connection

    def leave(self) -> None:
        """It counts no more. Leaving twice is leaving once."""
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._left(self)


class Admission:
    """Counts who is in."""

    def __init__(self, policy: AdmissionPolicy) -> None:
        self.policy = policy
        self.connections = 0
        # An address is forgotten with its last guest, so there are never more than guests.
        self._by_address: dict[str, int] = {}

    def enter(self, address: str | None, *, is_connection: bool = True) -> Guest:
        """Count one more; ``address`` is ``None`` for a trusted proxy."""
        self.connections += is_connection
        if address is not None:
            self._by_address[address] = self._by_address.get(address, 0) + 1
        return Guest(self, address, is_connection=is_connection)

    def refusal(self, guest: Guest) -> Refusal | None:
        """Why this guest, who has just been counted, is one too many; ``None``: it is not."""
        if guest.address is not None and self.excess(guest) > 0:
            return Refusal.ADDRESS
        if guest.is_connection and self.connections > self.policy.max_connections:
            return Refusal.CONNECTIONS
        return None

    def excess(self, guest: Guest) -> int:
        """How many more than allowed this guest's address holds; negative below the bound."""
        held = 0 if guest.address is None else self._by_address[guest.address]
        return held - self.policy.max_connections_per_address

    @property
    def addresses(self) -> int:
        """How many clients hold anything."""
        return len(self._by_address)

    @property
    def most_of_one_address(self) -> int:
        """What the client that holds most holds."""
        return max(self._by_address.values(), default=0)

    def _left(self, guest: Guest) -> None:
        self.connections -= guest.is_connection
        if guest.address is not None:
            left = self._by_address[guest.address] - 1
            if left:
                self._by_address[guest.address] = left
            else:
                del self._by_address[guest.address]


def unmapped(address: str) -> str:
    """An IPv4 address as such, also where a socket for both kinds shows it as one of IPv6 (RFC 4291, 2.5.5.2)."""
    return address.removeprefix(_MAPPED) if "." in address else address


def client_of(address: str) -> str:
    """The client that an address belongs to: itself, or its network of 64 bits."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.IPv6Network((parsed, _SUBSCRIBER_BITS), strict=False))


def client_behind(forwarded_for: Iterable[bytes], trusted: tuple[Network, ...]) -> str | None:
    """The client that trusted proxies name in their X-Forwarded-For lines, as far as they can be believed.

    That is the last address which is not a trusted proxy's own: what stands before it, the client may have written.
    """
    hops = b",".join(forwarded_for).split(b",")
    for hop in reversed(hops[-_MAX_HOPS:]):
        text = hop.strip(b" \t").decode("ascii", "replace")
        if text.startswith("["):
            text = text[1:].partition("]")[0]
        elif text.count(":") == 1:
            text = text.partition(":")[0]
        if not text:
            return None
        if not is_within(text, trusted):
            return client_of(text)
    return None


def is_within(address: str, networks: tuple[Network, ...]) -> bool:
    """Whether an address is in one of the networks; what is no address is in none."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    return any(parsed in network for network in networks)
