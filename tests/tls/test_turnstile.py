"""Handshakes that could begin in one moment begin a few at a time, in the order in which they came."""

from __future__ import annotations

import asyncio

from coatcheck.tls.turnstile import PER_ROUND, Turnstile


async def rounds_of(count: int, cancelled: tuple[int, ...] = ()) -> list[tuple[int, int]]:
    """By whom and in which round of the loop the turnstile was passed."""
    loop = asyncio.get_running_loop()
    turnstile, passed, at = Turnstile(loop), [], 0

    def tick() -> None:
        nonlocal at
        at += 1
        if at < 1000:
            loop.call_soon(tick)

    async def pass_through(number: int) -> None:
        await turnstile.turn()
        passed.append((number, at))

    loop.call_soon(tick)
    tasks = [asyncio.create_task(pass_through(number)) for number in range(count)]
    await asyncio.sleep(0)
    for number in cancelled:
        tasks[number].cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
    return passed


def test_a_few_pass_in_each_round_and_nobody_overtakes() -> None:
    passed = asyncio.run(rounds_of(20))
    assert [number for number, _ in passed] == list(range(20))
    by_round = [at for _, at in passed]
    assert max(by_round.count(at) for at in by_round) == PER_ROUND


def test_who_goes_away_in_the_line_takes_no_turn() -> None:
    gone = (PER_ROUND, PER_ROUND + 1, 19)
    passed = asyncio.run(rounds_of(20, gone))
    assert [number for number, _ in passed] == [number for number in range(20) if number not in gone]


def test_a_turnstile_that_was_idle_lets_the_next_ones_pass_at_once() -> None:
    async def story() -> int:
        turnstile = Turnstile(asyncio.get_running_loop())
        for _ in range(5):
            await turnstile.turn()
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        return len(turnstile._line)

    assert asyncio.run(story()) == 0
