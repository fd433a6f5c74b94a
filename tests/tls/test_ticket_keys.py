"""Which key seals a ticket and which ones open it: periods, and servers whose knowledge differs."""

from __future__ import annotations

import secrets

from hypothesis import given
from hypothesis import strategies as st

from coatcheck.tls.hosts import Siblings
from coatcheck.tls.ticket_keys import MAX_SECRETS, TicketKeys

HOUR = 3_600_000
LIFE = 2 * HOUR
NOW = 1000 * HOUR + 1


def keys(siblings: Siblings | None = None) -> TicketKeys:
    return TicketKeys(HOUR, LIFE, siblings or Siblings())


def test_the_key_of_the_next_period_is_known_before_anybody_seals_with_it() -> None:
    one = keys()
    assert one.wanted(NOW) == [1000, 1001, 999, 998]
    for period in (1000, 1001, 999, 998):
        one.learn(period, secrets.token_bytes(32))
    assert one.wanted(NOW + HOUR - 2) == []
    assert one.wanted(NOW + HOUR) == [1002]


def test_another_server_opens_what_was_sealed_as_long_as_a_ticket_may_live_and_no_longer() -> None:
    one, other, secret = keys(), keys(), secrets.token_bytes(32)
    one.learn(1000, secret)
    other.learn(1000, secret)
    sealed = one.sealing("shop.test", NOW)
    assert sealed is not None
    found = other.opening(sealed.name, "shop.test", NOW)
    assert found == (sealed, False)
    late = other.opening(sealed.name, "shop.test", NOW + HOUR)
    assert late == (sealed, True), "and the client gets a new ticket"
    end = 1001 * HOUR + LIFE
    assert other.opening(sealed.name, "shop.test", end - 1) is not None
    assert other.opening(sealed.name, "shop.test", end) is None
    assert other.life_ms(1000, NOW) == end - NOW
    other.forget_old(end)
    assert not other._secrets
    assert not other._worked_out


def test_a_ticket_is_for_its_host_and_its_siblings() -> None:
    siblings = Siblings([["shop.test", "www.shop.test"]])
    one, other, secret = keys(siblings), keys(siblings), secrets.token_bytes(32)
    one.learn(1000, secret)
    other.learn(1000, secret)
    sealed = one.sealing("www.shop.test", NOW)
    assert sealed is not None
    assert other.opening(sealed.name, "shop.test", NOW) is not None
    assert other.opening(sealed.name, "blog.test", NOW) is None
    assert other.opening(sealed.name, "", NOW) is None
    blog = one.sealing("blog.test", NOW)
    assert blog is not None
    assert len({sealed.sealing, sealed.marking, blog.sealing, blog.marking}) == 4


def test_without_the_present_key_the_last_one_seals_while_others_open_it() -> None:
    one = keys()
    assert one.sealing("shop.test", NOW) is None
    one.learn(999, b"k" * 32)
    sealed = one.sealing("shop.test", NOW)
    assert sealed is not None
    assert one.opening(sealed.name, "shop.test", NOW) == (sealed, True)
    assert one.sealing("shop.test", 1000 * HOUR + LIFE - 1) == sealed
    one.learn(1001, b"n" * 32)
    assert one.sealing("shop.test", NOW) == sealed
    ahead = keys()
    ahead.learn(1001, b"n" * 32)
    theirs = ahead.sealing("shop.test", NOW + HOUR)
    assert theirs is not None
    early = one.opening(theirs.name, "shop.test", NOW)
    assert early is not None, "another server's clock may be ahead"
    assert not early.is_old


def test_a_second_key_of_a_period_opens_and_seals_nothing() -> None:
    """Two stores could not be reached alike, or one was restarted empty."""
    one, other = keys(), keys()
    one.learn(1000, b"a" * 32)
    first = one.sealing("shop.test", NOW)
    one.learn(1000, b"b" * 32)
    other.learn(1000, b"b" * 32)
    assert one.sealing("shop.test", NOW) == first
    theirs = other.sealing("shop.test", NOW)
    assert theirs is not None
    assert one.opening(theirs.name, "shop.test", NOW) == (theirs, False)


def test_after_a_rotation_a_new_key_seals_and_the_old_one_opens_as_long_as_it_would_have() -> None:
    one, fresh = keys(), iter([b"n" * 32, b"m" * 32])
    one.learn(1000, b"a" * 32)
    one.learn(1001, b"b" * 32)
    before, after = one.sealing("shop.test", NOW), one.sealing("shop.test", NOW + HOUR)
    assert before is not None
    assert after is not None
    one.rotate(NOW, lambda: next(fresh))
    assert one.secret(1000) == b"n" * 32
    assert one.secret(1001) == b"m" * 32, "what was known of the next period may have been seen as well"
    assert one.opening(before.name, "shop.test", NOW) == (before, True), "and the client gets a new ticket"
    end = 1001 * HOUR + LIFE
    assert one.opening(before.name, "shop.test", end - 1) is not None
    assert one.opening(before.name, "shop.test", end) is None
    assert [note.state for note in one.notes(NOW)] == ["seals", "opens", "next", "opens"]
    for period, old in ((1000, b"a" * 32), (1001, b"b" * 32)):
        one.prefer(period, old)  # a store that has not heard of it yet
    assert (one.secret(1000), one.secret(1001)) == (b"n" * 32, b"m" * 32)
    one.prefer(1000, b"x" * 32)  # another server rotated, too
    assert one.secret(1000) == b"x" * 32
    one.forget_old(end)
    assert not one._retired - {b"b" * 32}


def test_what_one_is_told_it_knows_and_nothing_else() -> None:
    one, told = keys(), keys()
    for period in (999, 1000, 1001):
        one.learn(period, b"%032d" % period)
    told.learn(998, b"o" * 32)
    told.replace(one.told())
    assert told.told() == one.told()
    sealed = one.sealing("shop.test", NOW)
    assert sealed is not None
    assert told.opening(sealed.name, "shop.test", NOW) == (sealed, False)
    assert told.sealing("shop.test", NOW) == sealed
    told.replace({})
    assert told.opening(sealed.name, "shop.test", NOW) is None
    assert not told._worked_out


def test_so_many_rotations_in_one_period_are_kept_and_no_more() -> None:
    one = keys()
    for number in range(3 * MAX_SECRETS):
        one.rotate(NOW, lambda number=number: b"%032d" % number)  # type: ignore[misc]
    assert len(one.told()[1000]) == MAX_SECRETS
    assert one.secret(1000) == b"%032d" % (3 * MAX_SECRETS - 1)


@given(st.lists(st.integers(min_value=-3, max_value=3), max_size=20), st.integers(min_value=0, max_value=6 * HOUR))
def test_whatever_is_known_what_one_seals_the_others_open(known: list[int], later: int) -> None:
    """Servers that agree, and know different periods: what is sealed opens wherever that period is known."""
    one, other = keys(), keys()
    for offset in known:
        one.learn(1000 + offset, b"%032d" % offset)
    for offset in range(-3, 10):
        other.learn(1000 + offset, b"%032d" % offset)
    at = NOW + later
    sealed = one.sealing("shop.test", at)
    if sealed is not None:
        assert other.opening(sealed.name, "shop.test", at) is not None
