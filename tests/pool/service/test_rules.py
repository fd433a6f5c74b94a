"""The pure parts: names of leases, bearer tokens, replays."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.pool.inspection import UserStats
from coatcheck.pool.service.lease_id import LeaseName, format_lease_id, parse_lease_id
from coatcheck.pool.service.metrics import WAIT_BUCKETS_S, Totals, WaitTimes
from coatcheck.pool.service.replays import Replays
from coatcheck.service_kit.bearer import BearerTokens, shown_bearer

USERS = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=50)


@given(USERS, st.integers(1, 2**63 - 1))
def test_a_lease_has_one_name(user: str, fencing: int) -> None:
    name = format_lease_id(user, fencing)
    assert parse_lease_id(name) == LeaseName(user, fencing)
    assert name.isascii() and not set(name) & set("/?#%=+ ")
    assert parse_lease_id("0" + name) is None
    assert parse_lease_id(name + "=") is None


@given(st.text(max_size=60))
def test_anything_else_is_no_name(text: str) -> None:
    found = parse_lease_id(text)
    assert found is None or format_lease_id(*found) == text


@given(st.text(max_size=60))
def test_only_the_bearer_tokens_are_accepted(shown: str) -> None:
    tokens = BearerTokens(["a" * 20, "b" * 20])

    def opens(authorization: str) -> bool:
        return tokens.accept(shown_bearer(authorization))

    assert not opens(shown) and not opens(f"Bearer {shown}") and not tokens.accept(shown)
    assert opens("Bearer " + "a" * 20) and opens("bearer " + "b" * 20)
    assert not opens("a" * 20) and not opens("Basic " + "a" * 20)
    assert "aaaa" not in repr(tokens)


def test_replays_run_once_are_bounded_and_forget_failures() -> None:
    async def run() -> None:
        calls: list[str] = []
        replays = Replays(most=3)

        async def end() -> None:
            calls.append("end")
            await asyncio.sleep(0)

        async def fail() -> None:
            calls.append("fail")
            raise ValueError

        await asyncio.gather(*(replays.once("a", b"1", end) for _ in range(5)))
        assert calls == ["end"]
        await replays.once("a", b"2", end)
        assert calls == ["end", "end"]
        for _ in range(2):
            with pytest.raises(ValueError):
                await replays.once("b", b"1", fail)
        assert calls[2:] == ["fail", "fail"]
        for lease in "cdefgh":
            await replays.once(lease, b"1", end)
        assert len(replays._known) == 3
        waiting = asyncio.create_task(replays.once("z", b"1", end))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        before = len(calls)
        await replays.once("z", b"1", end)
        assert len(calls) == before

    asyncio.run(run())


def test_waits_are_counted_in_buckets() -> None:
    waits = WaitTimes()
    for waited_s in (0.0, *WAIT_BUCKETS_S, 1e9):
        waits.add(waited_s)
    buckets = waits.buckets()
    assert [bound for bound, _ in buckets] == [*map(str, WAIT_BUCKETS_S), "+Inf"]
    counts = [count for _, count in buckets]
    assert counts == sorted(counts) and counts[-1] == len(WAIT_BUCKETS_S) + 2


def user_stats(**counters: int) -> UserStats:
    fields = dict.fromkeys(UserStats.__struct_fields__, 0)
    return UserStats(**{**fields, **{f"{name}_total": count for name, count in counters.items()}})


def test_totals_never_shrink_when_users_are_forgotten() -> None:
    totals = Totals()
    totals.add({"ANN": user_stats(leases=5, logins=1), "BOB": user_stats(leases=3)})
    totals.add({"BOB": user_stats(leases=4)})
    assert (totals["leases"], totals["logins"]) == (9, 1)
    totals.add({"ANN": user_stats(leases=2), "BOB": user_stats(leases=4)})
    assert (totals["leases"], totals["logins"]) == (11, 1)
    # Forgotten and come back between two looks.
    totals.add({"ANN": user_stats(leases=1), "BOB": user_stats(leases=4)})
    assert totals["leases"] == 12
