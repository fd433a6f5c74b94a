"""Token rotation, rule by rule (protocol section 7)."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.tokens.chain import MAX_RETIRED, Chain, ChainLink, Retired, Shown, mint, needs_successor, show

GRACE = 1_000
ROTATE_AFTER = 5_000
OLD, NOW, SOON = ChainLink(b"old" * 4, 1), ChainLink(b"now" * 4, 1_000), ChainLink(b"soon" * 4, 2_000)
T = 10_000


def shown(
    chain: Chain, link: ChainLink, now: int = T, grace: int = GRACE, newest_shown_at: int | None = None
) -> tuple[Shown, Chain]:
    return show(chain, link.session_id, link.minted_at, now, grace, newest_shown_at)


def test_current_is_accepted_and_changes_nothing() -> None:
    chain = Chain(NOW, SOON)
    now = SOON.minted_at + GRACE
    verdict, after = shown(chain, NOW, now)
    assert verdict is Shown.CURRENT
    assert after is chain
    assert after.told(now, GRACE) is SOON, "the loser of a race gets the winner's token"


def test_a_successor_that_does_not_come_back_is_told_for_one_grace_and_given_up_after_two() -> None:
    """The last answer that told it may be under way for one grace more."""
    chain, told_until = Chain(NOW, SOON), SOON.minted_at + GRACE
    assert chain.told(told_until + 1, GRACE) is NOW
    given_up_at = told_until + GRACE + 1
    assert shown(chain, NOW, given_up_at - 1)[1] is chain
    after = shown(chain, NOW, given_up_at)[1]
    assert after == Chain(NOW, None, (Retired(SOON, given_up_at, given_up_at),))
    assert needs_successor(after, Shown.CURRENT, given_up_at, GRACE)
    assert shown(after, SOON, given_up_at)[0] is Shown.IN_GRACE, "if it does come back, nobody is accused at once"
    assert shown(chain, NOW, T + 9 * GRACE, grace=0)[1] is chain, "without a grace it is told for ever"


def test_a_browser_that_lost_its_newer_cookies_goes_on_from_the_one_it_has() -> None:
    chain = Chain(NOW, SOON, (Retired(OLD, T - 3 * GRACE),))
    assert shown(chain, OLD, T, newest_shown_at=T - 2 * GRACE)[0] is Shown.LATE, "the newer ones may be in use"
    verdict, after = shown(chain, OLD, T, newest_shown_at=T - 2 * GRACE - 1)
    assert verdict is Shown.RETURNED
    assert after == Chain(OLD, None, (Retired(NOW, T, T), Retired(SOON, T, T)))
    assert needs_successor(after, verdict, T, 1)
    assert mint(after, b"x", 5).next == ChainLink(b"x", SOON.minted_at + 1), "each is later, also than a lost one"


def test_a_dead_token_does_not_return_however_silent_the_newer_ones_are() -> None:
    chain = Chain(NOW, None, (Retired(OLD, T - 9 * GRACE, T - 5 * GRACE),))
    assert shown(chain, OLD, T, newest_shown_at=T - 5 * GRACE)[0] is Shown.STOLEN


def test_shown_next_becomes_current_and_retires_the_old_one() -> None:
    verdict, after = shown(Chain(NOW, SOON), SOON)
    assert verdict is Shown.NEXT
    assert after == Chain(SOON, None, (Retired(NOW, T),))


def test_the_chain_never_has_a_second_successor() -> None:
    with pytest.raises(ValueError, match="not shown yet"):
        mint(Chain(NOW, SOON), b"x", T)


def test_a_successor_has_a_new_id_and_a_later_timestamp() -> None:
    assert mint(Chain(NOW), b"x", T).next == ChainLink(b"x", T)
    assert mint(Chain(NOW), b"x", NOW.minted_at - 500).next == ChainLink(b"x", NOW.minted_at + 1)
    assert mint(Chain(NOW), b"x", NOW.minted_at).next == ChainLink(b"x", NOW.minted_at + 1)


@pytest.mark.parametrize(
    ("chain", "verdict", "age", "rotate_after", "due"),
    [
        (Chain(NOW), Shown.CURRENT, ROTATE_AFTER, ROTATE_AFTER, True),
        (Chain(NOW), Shown.CURRENT, ROTATE_AFTER - 1, ROTATE_AFTER, False),
        (Chain(NOW), Shown.NEXT, ROTATE_AFTER, ROTATE_AFTER, True),
        (Chain(NOW), Shown.CURRENT, 0, 0, True),
        (Chain(NOW), Shown.CURRENT, -ROTATE_AFTER, 0, True),
        (Chain(NOW), Shown.CURRENT, -ROTATE_AFTER, 1, False),
        (Chain(NOW, SOON), Shown.CURRENT, ROTATE_AFTER, ROTATE_AFTER, False),
        (Chain(NOW), Shown.IN_GRACE, ROTATE_AFTER, ROTATE_AFTER, False),
        (Chain(NOW), Shown.STOLEN, ROTATE_AFTER, ROTATE_AFTER, False),
        (Chain(NOW), Shown.DEAD, ROTATE_AFTER, ROTATE_AFTER, False),
    ],
)
def test_when_a_successor_is_due(chain: Chain, verdict: Shown, age: int, rotate_after: int, due: bool) -> None:
    assert needs_successor(chain, verdict, NOW.minted_at + age, rotate_after) is due


# A retired link, when it is shown at T: (retired_at, moved_on_at) -> verdict.
RETIRED = [
    ("just replaced", T, None, Shown.IN_GRACE),
    ("replaced exactly one grace ago", T - GRACE, None, Shown.IN_GRACE),
    ("long ago, but nobody moved on: the browser slept", T - 100 * GRACE, None, Shown.LATE),
    ("moved on within the grace", T - 3 * GRACE, T - GRACE + 1, Shown.LATE),
    ("moved on exactly one grace ago", T - 3 * GRACE, T - GRACE, Shown.LATE),
    ("moved on longer ago", T - 3 * GRACE, T - GRACE - 1, Shown.STOLEN),
]


@pytest.mark.parametrize(("retired_at", "moved_on_at", "verdict"), [row[1:] for row in RETIRED], ids=lambda x: str(x))
def test_a_retired_token_is_theft_only_after_the_browser_moved_on(
    retired_at: int, moved_on_at: int | None, verdict: Shown
) -> None:
    chain = Chain(NOW, None, (Retired(OLD, retired_at, moved_on_at),))
    found, after = shown(chain, OLD)
    assert found is verdict
    assert after is chain, "a thief changes nothing"
    assert found.accepted is (verdict is not Shown.STOLEN)


def test_moving_on_is_marked_once_and_only_after_the_grace() -> None:
    chain = Chain(NOW, None, (Retired(OLD, T),))
    assert shown(chain, NOW, T + GRACE)[1] is chain
    marked = shown(chain, NOW, T + GRACE + 1)[1]
    assert marked.retired == (Retired(OLD, T, T + GRACE + 1),)
    assert shown(marked, NOW, T + 50 * GRACE)[1] is marked


def test_each_retired_link_has_its_own_grace() -> None:
    chain = Chain(NOW, None, (Retired(OLD, T - GRACE - 1), Retired(SOON, T - GRACE)))
    assert shown(chain, NOW)[1].retired == (Retired(OLD, T - GRACE - 1, T), Retired(SOON, T - GRACE))


def test_showing_next_marks_those_that_were_retired_before() -> None:
    chain = Chain(NOW, SOON, (Retired(OLD, T - 2 * GRACE),))
    assert shown(chain, SOON)[1].retired == (Retired(OLD, T - 2 * GRACE, T), Retired(NOW, T))


def test_an_overwritten_cookie_of_a_sleeping_browser_accuses_nobody() -> None:
    """A slow answer overwrites the newer cookie, and the browser sleeps for a week."""
    chain = shown(Chain(NOW, SOON), SOON, T)[1]
    week = 7 * 24 * 3600 * 1000
    assert shown(chain, NOW, T + week)[0] is Shown.LATE
    verdict, chain = shown(chain, NOW, T + week, newest_shown_at=T)
    assert verdict is Shown.RETURNED
    assert shown(chain, NOW, T + week + 1)[0] is Shown.CURRENT


@pytest.mark.parametrize("link", [NOW, SOON, OLD])
def test_id_and_timestamp_must_both_match(link: ChainLink) -> None:
    chain = Chain(NOW, SOON, (Retired(OLD, T),))
    assert shown(chain, link)[0].accepted
    assert not shown(chain, ChainLink(link.session_id, link.minted_at + 1))[0].accepted
    assert not shown(chain, ChainLink(b"other", link.minted_at))[0].accepted


def test_an_unknown_link_of_a_live_session_is_theft_unless_it_may_be_forgotten() -> None:
    unknown = ChainLink(b"unknown", 500)
    assert shown(Chain(NOW), unknown)[0] is Shown.STOLEN
    assert shown(Chain(NOW, None, (), 499), unknown)[0] is Shown.STOLEN
    assert shown(Chain(NOW, None, (), 500), unknown)[0] is Shown.DEAD


def test_without_grace_a_replaced_token_is_dead_at_once_and_not_kept() -> None:
    verdict, chain = shown(Chain(NOW, SOON), SOON, T, grace=0)
    assert verdict is Shown.NEXT
    assert chain == Chain(SOON)
    assert shown(chain, NOW, T, grace=0)[0] is Shown.STOLEN
    kept = Chain(SOON, None, (Retired(NOW, T),))
    assert shown(kept, NOW, T, grace=0)[0] is Shown.STOLEN


def test_the_list_of_retired_is_bounded_and_the_forgotten_accuse_nobody() -> None:
    chain, links = Chain(ChainLink(b"0", 0)), [ChainLink(b"0", 0)]
    for step in range(1, MAX_RETIRED + 10):
        chain = mint(chain, b"%d" % step, step)
        assert chain.next is not None
        links.append(chain.next)
        verdict, chain = shown(chain, chain.next, step)
        assert verdict is Shown.NEXT
        assert len(chain.retired) <= MAX_RETIRED
    verdicts = [shown(chain, link, MAX_RETIRED + 10)[0] for link in links]
    assert verdicts == [Shown.DEAD] * 9 + [Shown.IN_GRACE] * MAX_RETIRED + [Shown.CURRENT]


def test_what_is_dead_is_forgotten_first_and_still_judged_as_theft() -> None:
    dead = Retired(OLD, T - 9 * GRACE, T - 5 * GRACE)
    chain = shown(Chain(NOW, SOON, (dead,)), SOON)[1]
    assert dead not in chain.retired
    assert shown(chain, OLD)[0] is Shown.STOLEN


# One browser whose requests overlap by less than the grace; answers may be lost, and the order of answers may be
# anything. Whatever it does, it is never accused (promise 4).
STEPS = st.lists(st.tuples(st.integers(0, 2 * ROTATE_AFTER), st.integers(0, 3), st.booleans()), max_size=60)


@given(STEPS)
def test_an_honest_browser_is_never_accused(steps: list[tuple[int, int, bool]]) -> None:
    now = T
    chain = Chain(ChainLink(b"first", now))
    cookie, minted, newest_shown_at = chain.current, 0, now
    for pause, parallel, lost in steps:
        now += pause
        cookies_sent, answers = [cookie] * (parallel + 1), []
        for sent in cookies_sent:  # all carry the cookie as it was when the page began to load
            now += GRACE // 8
            verdict, chain = shown(chain, sent, now, newest_shown_at=newest_shown_at)
            assert verdict.accepted, verdict
            if verdict not in (Shown.IN_GRACE, Shown.LATE):
                newest_shown_at = now
            if needs_successor(chain, verdict, now, ROTATE_AFTER):
                minted += 1
                chain = mint(chain, b"%d" % minted, now)
            if verdict not in (Shown.IN_GRACE, Shown.LATE):
                answers.append(chain.told(now, GRACE))
        if not lost and answers:
            cookie = answers[-1] if pause % 2 else answers[0]
        assert len(chain.retired) <= MAX_RETIRED
        assert len({link.session_id for link in links_of(chain)}) == len(links_of(chain))


@given(STEPS, st.integers(0, 5))
def test_a_thief_who_comes_after_the_victim_moved_on_is_found(
    steps: list[tuple[int, int, bool]], stolen_at: int
) -> None:
    now, chain, minted = T, Chain(ChainLink(b"first", T)), 0
    used: list[ChainLink] = []
    for pause, _, _ in [*steps, (ROTATE_AFTER, 0, False), (ROTATE_AFTER, 0, False)]:
        now += pause
        used.append(chain.next or chain.current)
        verdict, chain = shown(chain, used[-1], now)
        if needs_successor(chain, verdict, now, ROTATE_AFTER):
            minted += 1
            chain = mint(chain, b"%d" % minted, now)
    victim = chain.next or chain.current
    for _ in range(2):  # once to make it current, once more than the grace later to show that it moved on
        now += GRACE + 1
        chain = shown(chain, victim, now)[1]
    now += GRACE + 1
    booty = used[min(stolen_at, len(used) - 1)]
    assert shown(chain, booty, now)[0] is (Shown.CURRENT if booty == victim else Shown.STOLEN)


def links_of(chain: Chain) -> list[ChainLink]:
    return [old.link for old in chain.retired] + [chain.current] + ([chain.next] if chain.next else [])
