"""The judge of the network test notices each broken promise, and excuses what a cut excuses and nothing else."""

from __future__ import annotations

import pytest

from .cuts import KINDS, LINKS, Cut, draw
from .judge import SETTLE_S, Account, Answer, Disturbances, Judge

USER = "user-1"


class Bench:
    """A judge, a network and one account that is logged in."""

    def __init__(self) -> None:
        self.network = Disturbances()
        self.judge = Judge(self.network)
        self.account = Account(USER, self.judge)
        self.account.login(answer(user=USER))

    def says(self, *words: str) -> None:
        """The broken promises are these."""
        assert len(self.judge.broken) == len(words), self.judge.broken
        for broken, word in zip(self.judge.broken, words, strict=True):
            assert word in broken


def answer(status: int = 200, user: str | None = None, *written: int, at: float = 100.0) -> Answer:
    return Answer("a", "GET /", at, at + 0.1, status, user, frozenset(written))


def test_an_honest_story_breaks_nothing() -> None:
    bench = Bench()
    bench.account.write(answer(200, USER, 1), 1)
    bench.account.read(answer(200, USER, 1))
    assert bench.account.logout(answer())
    bench.account.buried(answer())
    bench.account.login(answer(user=USER))
    bench.account.read(answer(200, USER))
    bench.says()


def test_a_lost_write() -> None:
    bench = Bench()
    bench.account.write(answer(200, USER, 1), 1)
    bench.account.write(answer(200, USER, 1, 2), 2)
    bench.account.read(answer(200, USER, 2))
    bench.says("acknowledged writes lost")


def test_a_write_that_is_not_in_its_own_answer() -> None:
    bench = Bench()
    bench.account.write(answer(200, USER), 1)
    bench.says("not in its own answer")


def test_what_an_answer_showed_once_must_stay() -> None:
    bench = Bench()
    bench.network.begin("a1", 99.0)
    bench.network.begin("a2", 99.0)
    bench.account.write(answer(503), 1)
    bench.account.read(answer(200, USER))
    bench.account.read(answer(200, USER, 1))
    bench.says()
    bench.account.read(answer(200, USER))
    bench.says("acknowledged writes lost")


def test_what_nobody_wrote() -> None:
    bench = Bench()
    bench.account.read(answer(200, USER, 7))
    bench.says("strange [7]")


@pytest.mark.parametrize("user", [None, "user-2"])
def test_logged_out_or_another_user(user: str | None) -> None:
    bench = Bench()
    bench.account.read(answer(200, user))
    bench.says("logged out")


def test_a_logout_whose_answer_was_lost_may_have_happened_or_not() -> None:
    bench = Bench()
    bench.network.begin("door-a", 99.0)
    assert not bench.account.logout(answer(0))
    bench.account.read(answer(200, USER))
    bench.account.read(answer(200, None))
    bench.says()
    assert not bench.account.logged_in


def test_an_undone_logout() -> None:
    bench = Bench()
    assert bench.account.logout(answer())
    bench.account.buried(answer(200, USER, 3))
    bench.says("a logout was undone")


@pytest.mark.parametrize(("status", "links", "excused"), [
    (503, (), False), (503, ("a1",), False), (503, ("a1", "a3"), True), (503, ("b1", "b2", "b3"), False),
    (503, ("door-a",), False), (0, ("door-a",), True), (0, ("a1", "a2", "a3"), False), (0, ("door-b",), False),
    (502, ("a1", "a2", "a3", "door-a"), False), (401, ("a1", "a2"), False), (409, ("a1", "a2"), False),
])  # fmt: skip
def test_what_a_cut_excuses(status: int, links: tuple[str, ...], excused: bool) -> None:
    bench = Bench()
    for link in links:
        bench.network.begin(link, 99.0)
    bench.account.read(answer(status))
    assert (not bench.judge.broken) is excused, bench.judge.broken


@pytest.mark.parametrize(
    ("at", "excused"), [(98.0, False), (99.5, True), (104.0 + SETTLE_S, True), (105.1 + SETTLE_S, False)]
)
def test_an_excuse_lasts_until_the_machine_can_have_settled(at: float, excused: bool) -> None:
    bench = Bench()
    for link in ("a1", "a2"):
        bench.network.begin(link, 99.0)
        bench.network.end(link, 105.0)
    bench.account.read(answer(503, at=at))
    assert (not bench.judge.broken) is excused


def test_links_that_stood_still_for_want_of_time_excuse_as_a_cut_does() -> None:
    bench = Bench()
    bench.account.read(answer(503))
    assert bench.judge.broken
    for link in ("a1", "a2", "a3"):
        bench.network.during(link, 99.5, 100.05)
    assert not bench.judge.broken, "it was heard of afterwards"


def test_a_seed_draws_the_same_cuts_of_every_kind_and_no_link_twice_at_once() -> None:
    cuts = list(draw(7, 2000.0))
    assert cuts == list(draw(7, 2000.0)) != list(draw(8, 2000.0))
    assert {cut.kind for cut in cuts} == set(KINDS)
    assert {link for cut in cuts for link in cut.links} >= set(LINKS)
    for at, cut in enumerate(cuts):
        assert 0 < cut.at_s < 2000.0 and cut.until_s > cut.at_s
        for other in cuts[max(0, at - 20) : at]:
            assert not overlap(cut, other), f"{cut} and {other}"


def overlap(one: Cut, other: Cut) -> bool:
    return set(one.links) & set(other.links) != set() and one.at_s < other.until_s and other.at_s < one.until_s
