"""A4: "The new token replaces the old one in the common session database."

A browser may never have got the response that carried a new token, so the one before it stays good until the new
one is shown for the first time. From then on the old one is in no record and opens nothing.
"""

from __future__ import annotations

import pytest

from coatcheck.tokens.chain import Chain, Link
from coatcheck.tokens.sealed import SealedToken

from .conftest import StartFarm
from .mission_farm import Browser, MissionFarm, show
from .strict_mode import STRICT


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "2", *STRICT)


def link(token: SealedToken) -> Link:
    return Link(token.session_id, token.timestamp)


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
            assert "set-cookie" not in replay.headers, "nothing is minted for a dead token"
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
