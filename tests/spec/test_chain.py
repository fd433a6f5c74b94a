"""The chain, as docs/spec/chain.md has it, worked out by hand: the grace is 100, the time about 1000."""

from __future__ import annotations

import asyncio

import msgspec
import pytest

from coatcheck.drivers.sessions import Sessions
from coatcheck.host_clock import HeldClock
from coatcheck.sessions.record import encode_chain
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.chain import MAX_RETIRED, Chain, ChainLink, Retired, Shown, mint, needs_successor, show
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import TOKEN_CHARS

from .citing import cites

GRACE = 100


def link(number: int, minted_at: int = 0) -> ChainLink:
    return ChainLink(bytes([number]) * 16, minted_at)


CURRENT, NEXT, OLD, OLDER = link(3, 900), link(4, 950), link(2, 500), link(1, 100)


def shown(chain: Chain, one: ChainLink, now: int, newest: int | None = None, grace: int = GRACE) -> tuple[Shown, Chain]:
    return show(chain, one.session_id, one.minted_at, now, grace, newest)


@cites("C1", "C4")
def test_a_new_chain_knows_its_current_link() -> None:
    chain = Chain(CURRENT)
    assert (chain.next, chain.retired, chain.forgotten_at) == (None, (), 0)
    assert shown(chain, CURRENT, 1000) == (Shown.CURRENT, chain)


@cites("C2")
def test_both_id_and_timestamp_must_be_the_links() -> None:
    chain = Chain(CURRENT, NEXT, (Retired(OLD, 950),))
    for one in (CURRENT, NEXT, OLD):
        assert shown(chain, one, 1000)[0].accepted
        for wrong in (ChainLink(one.session_id, one.minted_at + 1), ChainLink(bytes(16), one.minted_at)):
            assert not shown(chain, wrong, 1000)[0].accepted


@cites("C3", "C9")
@pytest.mark.parametrize(
    ("old", "now", "newest", "grace", "verdict"),
    [
        (Retired(OLD, 900), 1000, None, 100, Shown.IN_GRACE),
        (Retired(OLD, 900), 1001, None, 100, Shown.LATE),
        (Retired(OLD, 100, 900), 1000, None, 100, Shown.LATE),
        (Retired(OLD, 100, 900), 1001, None, 100, Shown.STOLEN),
        (Retired(OLD, 1000), 1000, None, 0, Shown.STOLEN),
        (Retired(OLD, 900), 1000, 800, 100, Shown.IN_GRACE),
        (Retired(OLD, 100, 900), 1001, 500, 100, Shown.STOLEN),
    ],
)
def test_a_retired_link(old: Retired, now: int, newest: int | None, grace: int, verdict: Shown) -> None:
    chain = Chain(CURRENT, NEXT, (old,))
    assert shown(chain, OLD, now, newest, grace) == (verdict, chain)


@cites("C9")
def test_of_two_that_are_alike_the_newest_counts() -> None:
    chain = Chain(CURRENT, None, (Retired(OLD, 100, 200), Retired(OLD, 990)))
    assert shown(chain, OLD, 1000)[0] is Shown.IN_GRACE


@cites("C5")
def test_a_lost_successor_is_retired_two_graces_after_it_was_minted() -> None:
    chain = Chain(CURRENT, NEXT)
    assert shown(chain, CURRENT, 1150) == (Shown.CURRENT, chain)
    assert shown(chain, CURRENT, 1151) == (Shown.CURRENT, Chain(CURRENT, None, (Retired(NEXT, 1151, 1151),)))
    assert shown(chain, CURRENT, 9999, grace=0) == (Shown.CURRENT, chain)


@cites("C6")
def test_who_shows_a_newer_one_a_grace_later_has_moved_on() -> None:
    chain = Chain(CURRENT, None, (Retired(OLDER, 100, 300), Retired(OLD, 900)))
    assert shown(chain, CURRENT, 1000)[1] == chain
    assert shown(chain, CURRENT, 1001)[1].retired == (Retired(OLDER, 100, 300), Retired(OLD, 900, 1001))


@cites("C7")
def test_a_shown_next_becomes_current_and_what_was_retires() -> None:
    chain = Chain(CURRENT, NEXT, (Retired(OLD, 800),))
    verdict, after = shown(chain, NEXT, 1000)
    assert verdict is Shown.NEXT
    assert after == Chain(NEXT, None, (Retired(OLD, 800, 1000), Retired(CURRENT, 1000)))


@cites("C8")
def test_the_dead_are_dropped_and_then_the_oldest() -> None:
    dead = Retired(OLDER, 100, 300)
    retired = tuple(Retired(link(10 + n, 200 + n), 950) for n in range(MAX_RETIRED + 1))
    _, after = shown(Chain(CURRENT, NEXT, (dead, *retired), forgotten_at=150), NEXT, 1000)
    assert after.retired == (*retired[2:], Retired(CURRENT, 1000))
    assert len(after.retired) == MAX_RETIRED == 32
    assert after.forgotten_at == 201
    _, after = shown(Chain(CURRENT, NEXT, (dead, *retired), forgotten_at=5000), NEXT, 1000)
    assert after.forgotten_at == 5000


@cites("C9", "C10")
def test_a_browser_that_lost_its_newer_tokens_comes_back() -> None:
    other = Retired(OLDER, 950)
    chain = Chain(CURRENT, NEXT, (other, Retired(OLD, 800)))
    assert shown(chain, OLD, 1100, newest=900)[0] is Shown.LATE
    verdict, after = shown(chain, OLD, 1101, newest=900)
    assert verdict is Shown.RETURNED
    assert after == Chain(OLD, None, (other, Retired(CURRENT, 1101, 1101), Retired(NEXT, 1101, 1101)))


@cites("C11")
def test_a_link_of_no_chain_is_stolen_unless_it_may_have_been_forgotten() -> None:
    chain = Chain(CURRENT, forgotten_at=500)
    assert shown(chain, link(9, 500), 1000) == (Shown.DEAD, chain)
    assert shown(chain, link(9, 501), 1000) == (Shown.STOLEN, chain)


@cites("C12")
def test_what_is_accepted() -> None:
    accepted = {Shown.CURRENT, Shown.NEXT, Shown.IN_GRACE, Shown.LATE, Shown.RETURNED, Shown.TOLERATED}
    assert {one for one in Shown if one.accepted} == accepted


@cites("C13")
def test_when_a_link_is_minted() -> None:
    for verdict in Shown:
        wanted = verdict in (Shown.CURRENT, Shown.NEXT, Shown.RETURNED)
        assert needs_successor(Chain(CURRENT), verdict, 1000, 100) is wanted
        assert not needs_successor(Chain(CURRENT), verdict, 999, 100)
        assert needs_successor(Chain(CURRENT), verdict, CURRENT.minted_at - 1, 0) is wanted
        assert not needs_successor(Chain(CURRENT, NEXT), verdict, 9999, 100)
    with pytest.raises(ValueError, match="has a successor"):
        mint(Chain(CURRENT, NEXT), bytes(16), 1000)


@cites("C14")
def test_time_only_goes_on_along_a_chain() -> None:
    assert mint(Chain(CURRENT), bytes(16), 1000).next == ChainLink(bytes(16), 1000)
    assert mint(Chain(CURRENT), bytes(16), 5).next == ChainLink(bytes(16), 901)
    assert mint(Chain(CURRENT, None, (Retired(link(9, 3000), 1),)), bytes(16), 5).next == ChainLink(bytes(16), 3001)


@cites("C15")
def test_which_token_is_told() -> None:
    chain = Chain(CURRENT, NEXT)
    assert Chain(CURRENT).told(1000, GRACE) == CURRENT
    assert chain.told(1050, GRACE) == NEXT
    assert chain.told(1051, GRACE) == CURRENT
    assert chain.told(9999, 0) == NEXT


@cites("C16")
def test_a_token_leaves_when_its_chain_is_stored() -> None:
    stored: list[int] = []

    class Noting(MemoryStore):
        def put(self, key: bytes, seen: object, new: object, reply: object, notify: bytes = b"") -> None:
            stored.append(len(told))
            super().put(key, seen, new, reply, notify)  # type: ignore[arg-type]

    told: list[bytes] = []

    async def story() -> None:
        store = Noting("store", HeldClock().now_s)
        sessions = Sessions(
            farm="farm", server_name="web", stores=[store], ring=KeyRing([bytes(range(32))]), copies=1, in_memory=True
        )
        await sessions.start()
        opened = await sessions.open(b"")
        opened.session["name"] = "ada"
        answer = await sessions.finish(opened)
        told.extend(value for _, value in answer.headers if len(value) > TOKEN_CHARS)
        await sessions.aclose()

    asyncio.run(story())
    assert len(told) == 1
    assert stored, "it was stored"
    assert set(stored) == {0}, "before anything was told"


@cites("C17")
def test_the_bytes_of_a_chain() -> None:
    chain = Chain(link(3, 900), None, (Retired(link(1, 5), 70_000, 1 << 33),), 127)
    packed_link = b"\x92\xc4\x10" + b"\x03" * 16 + b"\xcd\x03\x84"
    retired = (
        b"\x93\x92\xc4\x10" + b"\x01" * 16 + b"\x05" + b"\xce\x00\x01\x11\x70" + b"\xcf\x00\x00\x00\x02" + bytes(4)
    )
    assert encode_chain(chain) == b"\x94" + packed_link + b"\xc0\x91" + retired + b"\x7f"
    assert msgspec.msgpack.decode(encode_chain(chain), type=Chain) == chain
