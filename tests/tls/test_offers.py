"""What a client offers to whom: its own host, relatives that the same certificate covers, and nobody else."""

from __future__ import annotations

import pytest

from coatcheck.errors import ConfigError
from coatcheck.tls.offers import MAX_PLACES, MAX_SESSIONS, KeptSession, Offers, covers

BOTH = ("a.shop.test", "b.shop.test")


def kept(session: str, host: str = "a.shop.test", names: tuple[str, ...] = BOTH, once: bool = True) -> KeptSession:
    return KeptSession(session, host, names, 100.0, once)


def test_a_session_is_offered_to_its_own_host_and_port_once() -> None:
    offers = Offers()
    offers.keep(443, kept("one"))
    assert offers.offer("b.shop.test", 443, 0.0) is None, "nobody called them related"
    assert offers.offer("a.shop.test", 8443, 0.0) is None
    assert offers.offer("a.shop.test", 443, 0.0) == "one"
    assert offers.offer("a.shop.test", 443, 0.0) is None


def test_one_of_tls_1_2_is_offered_until_it_ends_or_another_takes_its_place() -> None:
    offers = Offers()
    offers.keep(443, kept("old", once=False))
    offers.keep(443, kept("one", once=False))
    assert [offers.offer("a.shop.test", 443, at) for at in (0.0, 99.0, 100.0)] == ["one", "one", None]
    assert len(offers) == 0


@pytest.mark.parametrize(
    ("host", "names", "is_offered"),
    [
        ("b.shop.test", BOTH, True),
        ("b.shop.test", ("a.shop.test",), False),
        ("b.shop.test", ("*.shop.test",), True),
        ("shop.test", ("*.shop.test",), False),
        ("x.y.shop.test", ("*.shop.test",), False),
        ("b.shop.test.evil.test", BOTH, False),
        ("b.otherSHOP.test".lower(), ("*.othershop.test",), False),
    ],
)
def test_a_relative_is_offered_it_if_the_certificate_covers_it(
    host: str, names: tuple[str, ...], is_offered: bool
) -> None:
    offers = Offers(["shop.test"])
    offers.keep(443, kept("one", names=names))
    assert (offers.offer(host, 443, 0.0) == "one") is is_offered
    assert offers.offer("a.shop.test", 443, 0.0) == (None if is_offered else "one")


def test_several_connections_can_resume_at_once_and_what_is_kept_is_bounded() -> None:
    offers = Offers()
    for number in range(MAX_SESSIONS + 3):
        offers.keep(443, kept(str(number)))
    found = [offers.offer("a.shop.test", 443, 0.0) for _ in range(MAX_SESSIONS + 1)]
    assert found == ["6", "5", "4", "3", None]
    for number in range(MAX_PLACES + 10):
        offers.keep(number, kept("one"))
    assert len(offers) == MAX_PLACES


def test_who_refused_one_is_not_offered_the_others() -> None:
    offers = Offers()
    offers.keep(443, kept("one"))
    offers.keep(443, kept("two"))
    assert offers.offer("a.shop.test", 443, 0.0) == "two"
    offers.forget("a.shop.test", 443)
    assert offers.offer("a.shop.test", 443, 0.0) is None


def test_a_star_stands_for_one_label() -> None:
    assert covers(("*.Shop.Test.",), "a.shop.test")
    assert not covers(("*.test",), "test")
    assert not covers(("*.",), "test")


@pytest.mark.parametrize("wrong", ["test", "", "*.shop.test", ".shop.test", 5, "ü.test"])
def test_a_domain_that_is_none_is_named(wrong: object) -> None:
    with pytest.raises(ConfigError, match="related"):
        Offers([wrong])  # type: ignore[list-item]
