"""A4: "The new token replaces the old one in the common session database."

A browser may never have got the response that carried a new token, so the one before it stays good until the new
one is shown for the first time. From then on the old one is in no record and opens nothing.
"""

from __future__ import annotations

import asyncio
import time

import pytest

import in_hand
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.record import decode_record
from coatcheck.tokens.chain import Chain, ChainLink, Retired
from coatcheck.tokens.sealed import SealedToken

from .conftest import StartFarm
from .mission_farm import Browser, MissionFarm, show
from .own_clock import own_clock
from .strict_mode import STRICT


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "2", *STRICT)


def link(token: SealedToken) -> ChainLink:
    return ChainLink(token.session_id, token.timestamp)


def chains(farm: MissionFarm, key: bytes) -> list[Chain]:
    """The session's rotation chain, as each session server holds it."""
    copies = farm.copies_of(key)
    assert sorted(copies) == farm.names("session"), "each session server holds a copy"
    records = [copy.record for copy in copies.values()]
    return [record.chain for record in records if record is not None]


def test_the_record_has_the_new_one_in_place_of_the_old(farm: MissionFarm) -> None:
    with Browser(farm) as browser:
        browser.put("cart", "tea")
        shown = browser.token
        for _ in range(4):
            browser.read()
            sent = browser.token
            for chain in chains(farm, sent.key):
                assert chain == Chain(link(shown), link(sent)), "the one just shown, and its successor: no other"
            shown = sent


def test_the_old_token_is_refused_and_the_new_one_goes_on(farm: MissionFarm) -> None:
    with Browser(farm) as browser:
        browser.put("cart", "tea")
        old, old_link = browser.cookie, link(browser.token)
        browser.read()
        newer = browser.cookie
        browser.read()  # shows the new one: the old one is replaced
        for chain in chains(farm, browser.key):
            assert old_link not in (chain.current, chain.next, *(each.link for each in chain.retired))
        for server in farm.names("web"):
            replay = show(farm, old, server)
            assert (replay.status_code, replay.json()) == (200, {"data": {}, "server": server})
            told = [line for line in replay.headers.get_list("set-cookie") if not line.startswith("coatcheck-route=")]
            assert not told, "nothing is minted for a dead token"
        assert browser.read()["data"] == {"cart": "tea"}, "the refusal harms nobody"
        assert show(farm, newer).json()["data"] == {}, "and by now its successor is dead too"
    events = [row["events"] for row in farm.status()["web_servers"]]
    assert sum(each.get("session.theft", 0) for each in events) >= 3, "each replay is in the audit events"


def test_a_token_whose_successor_was_lost_on_the_way_still_opens(farm: MissionFarm) -> None:
    with Browser(farm) as browser:
        browser.put("cart", "tea")
        old = browser.cookie
    lost = [show(farm, old).json()["data"] for _ in range(3)]  # three responses that the browser never got
    assert lost == [{"cart": "tea"}] * 3
    token = farm.codec.open(old.encode())
    for chain in chains(farm, token.key):
        assert chain.current == link(token)
        assert chain.next is not None
        assert chain.retired == ()


# -- with a grace, as by default: the old one opens for parallel requests only, and for so long


GRACE_MS = 10_000
ROTATE_MS = 60_000
LENIENT = SessionPolicy(rotate_after_ms=ROTATE_MS, grace_ms=GRACE_MS, theft="refuse")


@pytest.mark.parametrize("elsewhere", [False, True], ids=["where it was replaced", "on another web server"])
def test_with_a_grace_one_millisecond_decides(elsewhere: bool) -> None:
    async def story() -> None:
        async with own_clock(LENIENT) as clock, clock.another_server() as other:
            judge = other if elsewhere else clock.sessions
            old = await clock.create()
            clock.now_ms += ROTATE_MS
            new = await clock.use(old)
            assert new.session_id != old.session_id, "it is old enough for a successor"
            replaced_at = clock.now_ms
            new = await clock.use(new)  # shown: from now on the old one is replaced
            clock.now_ms = replaced_at + GRACE_MS + 1
            # The first request after the grace marks that the browser has moved on; this one stores it with a change.
            session = await clock.open(new)
            assert session is not None
            session["cart"] = "coffee"
            issue = (await in_hand.saved(clock.sessions, session)).issue
            newest = new if issue is None else issue.token
            moved_on_at = clock.now_ms
            clock.now_ms = moved_on_at + GRACE_MS
            assert await clock.open(old, judge) == {"cart": "coffee"}, "a request that was late all along"
            clock.now_ms += 1
            assert await clock.open(old, judge) is None
            assert await clock.open(newest, judge) == {"cart": "coffee"}

    asyncio.run(story())


def test_with_a_grace_the_record_tells_the_new_one_from_the_old_one() -> None:
    async def story() -> list[Chain]:
        async with own_clock(LENIENT) as clock:
            found: list[Chain] = []

            async def look() -> None:
                entries: list[object] = []
                for store in clock.stores:
                    store.get(first.key, entries.append)
                records = [
                    decode_record(clock.sessions.copies.sealer.unseal(first.key, entry.header(), entry.payload))  # type: ignore[attr-defined]
                    for entry in entries
                ]
                assert records[0] == records[1], "each session server holds the same"
                found.append(records[0].chain)

            first = await clock.create()
            await look()
            clock.now_ms += ROTATE_MS
            second = await clock.use(first)
            await look()
            await clock.use(second)
            await look()
            clock.now_ms += ROTATE_MS
            third = await clock.use(second)
            clock.now_ms += GRACE_MS + 1
            await clock.use(third)
            await look()
            one, two, three = link(first), link(second), link(third)
            assert found[0] == Chain(one)
            assert found[1] == Chain(one, two), "the old one is current until the new one has come back"
            assert found[2] == Chain(two, None, (Retired(one, one.minted_at + ROTATE_MS),))
            assert found[3].current == three and found[3].next is None
            assert one not in (found[3].current, found[3].next)
            return found

    asyncio.run(story())


def test_a_farm_with_a_grace_refuses_the_old_one_when_it_is_over(start: StartFarm) -> None:
    """Each response is a second after the last one; the grace is half of that."""
    rhythm = ("--rotate-after", "1s", "--grace", "500ms", "--theft", "refuse")
    farm = start("--web", "2", "--session-servers", "2", *rhythm)
    with Browser(farm) as browser:
        browser.put("cart", "tea")
        old, old_link = browser.cookie, link(browser.token)
        for number in range(4):
            time.sleep(1.01)
            browser.put("n", number)
        assert link(browser.token) != old_link
        for chain in chains(farm, browser.key):
            assert old_link not in (chain.current, chain.next)
        for server in farm.names("web"):
            assert show(farm, old, server).json()["data"] == {}, f"replaced, at {server} too"
        assert browser.read()["data"] == {"cart": "tea", "n": 3}
