"""How many new sessions an address may begin."""

from __future__ import annotations

import pytest

from coatcheck.sessions import newcomers
from coatcheck.sessions.newcomers import Newcomers


def admitted(limit: Newcomers, host: str | None, tries: int, now_s: float = 0.0) -> int:
    return sum(limit.admit(host, now_s) for _ in range(tries))


def test_an_address_gets_its_burst_and_then_its_rate() -> None:
    limit = Newcomers(burst=100, per_minute=60)
    assert admitted(limit, "203.0.113.7", 1000) == 100
    assert limit.refused == 900
    assert admitted(limit, "203.0.113.8", 1000) == 100, "another address is another matter"
    assert admitted(limit, "203.0.113.7", 1000, now_s=10.0) == 10
    assert admitted(limit, "203.0.113.7", 1000, now_s=10_000.0) == 100, "it saves up no more than a burst"


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("2001:db8:0:1::1", "2001:db8:0:1:ffff::2", True),
        ("2001:db8:0:1::1", "2001:db8:0:2::1", False),
        ("::ffff:203.0.113.7", "203.0.113.7", True),
        ("fe80::1%eth0", "fe80::2%eth1", True),
        ("no address", "another", False),
    ],
)
def test_an_ipv6_address_counts_by_its_64(one: str, other: str, same: bool) -> None:
    limit = Newcomers(burst=1, per_minute=1)
    assert limit.admit(one, 0.0)
    assert limit.admit(other, 0.0) is not same


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "::ffff:127.0.0.1", None, ""])
def test_this_machine_and_an_unknown_client_are_not_limited(host: str | None) -> None:
    assert admitted(Newcomers(burst=1, per_minute=1), host, 1000) == 1000


def test_no_limit_is_no_limit() -> None:
    limit = Newcomers(burst=1, per_minute=0)
    assert admitted(limit, "203.0.113.7", 1000) == 1000
    assert len(limit) == 0


def test_memory_is_bounded_and_the_busy_are_not_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    most = 4_096
    assert most < newcomers.MAX_ADDRESSES <= 65_536
    monkeypatch.setattr(newcomers, "MAX_ADDRESSES", most)
    limit = Newcomers(burst=1, per_minute=1)
    assert limit.admit("203.0.113.7", 0.0)
    for number in range(3 * most):
        limit.admit(f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}", 0.0)
        if number % 100 == 0:
            assert not limit.admit("203.0.113.7", 0.0)
    assert len(limit) == most
