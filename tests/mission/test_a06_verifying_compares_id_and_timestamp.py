"""A6: "Verifying compares both with what the database stored." """

from __future__ import annotations

import os
import time

import pytest

from coatcheck.tokens.chain import Chain, ChainLink, Retired, Shown
from coatcheck.tokens.chain import show as judge

from .conftest import StartFarm
from .mission_farm import Browser, MissionFarm, show
from .strict_mode import STRICT

A, B, C = (ChainLink(bytes([n]) * 16, 1000 * n) for n in (1, 2, 3))
NOW_MS = 10_000
GRACE_MS = 60_000
CHAIN = Chain(B, C, (Retired(A, 2_500),))


@pytest.mark.parametrize(
    ("link", "verdict"), [(A, Shown.IN_GRACE), (B, Shown.CURRENT), (C, Shown.NEXT)], ids=["retired", "current", "next"]
)
def test_both_must_match_the_record(link: ChainLink, verdict: Shown) -> None:
    assert judge(CHAIN, link.session_id, link.minted_at, NOW_MS, GRACE_MS)[0] is verdict
    others = {each.minted_at for each in (A, B, C)} - {link.minted_at}
    for wrong in (*others, link.minted_at - 1, link.minted_at + 1):
        refused, after = judge(CHAIN, link.session_id, wrong, NOW_MS, GRACE_MS)
        assert not refused.accepted, f"right ID, timestamp {wrong}"
        assert after is CHAIN
    for wrong_id in (bytes(16), link.session_id[:-1] + bytes([link.session_id[-1] ^ 1])):
        refused, after = judge(CHAIN, wrong_id, link.minted_at, NOW_MS, GRACE_MS)
        assert not refused.accepted, "right timestamp, another ID"
        assert after is CHAIN


MODES = {
    "a token with every response": STRICT,
    # A token that is neither due nor replaced is accepted without a look at its whole chain: that too must compare.
    "a token for a minute": ("--theft", "refuse"),
    "many tokens in their grace": ("--rotate-after", "200ms", "--grace", "10m", "--theft", "refuse"),
}


@pytest.fixture(scope="module", params=sorted(MODES))
def farm(request: pytest.FixtureRequest, start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "2", *MODES[request.param])


def test_a_farm_refuses_well_sealed_tokens_that_differ_from_the_record(farm: MissionFarm) -> None:
    """The forger here has the farm's key ring: only the comparison with the record stands in the way."""
    with Browser(farm) as browser:
        browser.put("cart", "tea")
        for _ in range(5):  # as its browser uses it, some tokens may be replaced
            assert browser.read()["data"] == {"cart": "tea"}
            time.sleep(0.1)
        right = browser.token
        wrong = [
            right._replace(session_id=os.urandom(16)),
            right._replace(timestamp=right.timestamp + 1),
            right._replace(timestamp=right.timestamp - 1),
            right._replace(session_id=os.urandom(16), timestamp=right.timestamp + 1),
            right._replace(key=os.urandom(16)),
        ]
        resealed = farm.codec.seal(*right).decode()
        for token in wrong:
            for server in farm.names("web"):
                # The session is hosted there, so that its cache judges too.
                assert show(farm, resealed, server).json()["data"] == {"cart": "tea"}, (
                    "ID and timestamp as in the record"
                )
                response = show(farm, farm.codec.seal(*token).decode(), server)
                assert (response.status_code, response.json()["data"]) == (200, {})
                lines = response.headers.get_list("set-cookie")
                assert not [line for line in lines if not line.startswith("coatcheck-route=")]
        assert browser.read()["data"] == {"cart": "tea"}
