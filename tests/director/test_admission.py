"""The rules of admission: nobody is counted twice or forgotten, and a proxy's word is read from its end."""

from __future__ import annotations

import ipaddress
import random
from collections import Counter

import pytest

from coatcheck.director.rules.admission import (
    Admission,
    AdmissionPolicy,
    Guest,
    Refusal,
    client_behind,
    client_of,
)
from coatcheck.director.rules.forwarding import ClientAddress

POLICY = AdmissionPolicy(max_connections=20, max_connections_per_address=5, max_handshakes=4, max_websockets=4)
TRUSTED = (ipaddress.ip_network("10.0.0.0/8"), ipaddress.ip_network("fd00::/8"))


@pytest.mark.parametrize("seed", range(20))
def test_any_order_of_coming_and_going_is_counted_right(seed: int) -> None:
    dice = random.Random(seed)
    admission, inside = Admission(POLICY), list[Guest]()
    for _ in range(500):
        if inside and dice.random() < 0.48:
            guest = inside.pop(dice.randrange(len(inside)))
            guest.leave()
            guest.leave()
        else:
            address = dice.choice([None, "a", "b", "c", "d"])
            guest = admission.enter(address, is_connection=dice.random() < 0.8)
            held = Counter(each.address for each in inside)[address] + 1
            connections = sum(each.is_connection for each in inside) + guest.is_connection
            refusal = admission.refusal(guest)
            if address is not None and held > 5:
                assert refusal is Refusal.ADDRESS
            elif guest.is_connection and connections > 20:
                assert refusal is Refusal.CONNECTIONS
            else:
                assert refusal is None
            inside.append(guest)
        counted = Counter(each.address for each in inside if each.address is not None)
        assert admission.connections == sum(each.is_connection for each in inside)
        assert (admission.addresses, admission.most_of_one_address) == (
            len(counted),
            max(counted.values(), default=0),
        )
    for guest in inside:
        guest.leave()
    assert (admission.connections, admission.addresses) == (0, 0)


@pytest.mark.parametrize(
    ("address", "client"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("2001:db8:1:2::9", "2001:db8:1:2::/64"),
        ("fe80::1%eth0", "fe80::/64"),
        ("unknown", "unknown"),
    ],
)
def test_whose_an_address_is(address: str, client: str) -> None:
    assert client_of(address) == client


@pytest.mark.parametrize(
    ("lines", "client"),
    [
        ([b"192.0.2.1"], "192.0.2.1"),
        ([b"9.9.9.9, 192.0.2.1"], "192.0.2.1"),
        ([b"192.0.2.1, 10.0.0.1, 10.0.0.2"], "192.0.2.1"),
        ([b"192.0.2.1", b"10.0.0.1"], "192.0.2.1"),
        ([b"192.0.2.1:4711, 10.0.0.1"], "192.0.2.1"),
        ([b"[2001:db8::1]:80"], "2001:db8::/64"),
        ([b"2001:db8::1, fd00::7"], "2001:db8::/64"),
        ([b"10.0.0.1, 10.0.0.2"], None),
        ([b""], None),
        ([], None),
        ([b"192.0.2.1, "], None),
        ([b"nonsense\xff"], "nonsense\ufffd"),
        ([b"192.0.2.1" + b", 10.0.0.1" * 16], None),
    ],
)
def test_who_is_behind_trusted_proxies(lines: list[bytes], client: str | None) -> None:
    assert client_behind(lines, TRUSTED) == client


@pytest.mark.parametrize("peer", ["192.0.2.7", "::ffff:192.0.2.7"])
def test_on_a_socket_for_both_kinds_an_ipv4_address_is_one(peer: str) -> None:
    address = ClientAddress(peer, tls=True, trusted=(ipaddress.ip_network("192.0.2.0/24"),))
    assert (address.peer, address.is_trusted) == ("192.0.2.7", True)
    assert ClientAddress("2001:db8::1", tls=True, trusted=()).peer == "2001:db8::1"
