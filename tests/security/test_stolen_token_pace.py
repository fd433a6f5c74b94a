"""How long a thief is served beside an active victim, and how soon theft is found: the figures of the threat model.

Both behave like people: the pauses between their requests are random, around a mean. Default settings; the time is the
farm's own, so 90 minutes pass in a moment.
"""

from __future__ import annotations

import random
from statistics import median

import pytest

from coatcheck.events import EventKind
from coatcheck.tokens.sealed import SealedToken
from replication.tiny_farm import Farm, WebServer

THEFT_AFTER_S = 600
WATCHED_S = 90 * 60
COUPLES = 40


def moments(rng: random.Random, mean_s: float, start_s: float) -> list[float]:
    found, at = [], start_s
    while at < THEFT_AFTER_S + WATCHED_S:
        at += rng.expovariate(1 / mean_s)
        found.append(at)
    return found


def request(web: WebServer, token: SealedToken, writes: bool) -> SealedToken | None:
    session = web.open(token)
    if session is None:
        return None
    if writes:
        session["n"] = session.get("n", 0) + 1
    issue = web.save(session).issue
    return issue.token if issue else token


def found_after_s(seed: int, victim_s: float, thief_s: float, thief_writes: bool) -> float | None:
    """Seconds from the theft until the session was closed for it; ``None``: not within 90 minutes."""
    rng = random.Random(seed)
    farm = Farm()
    web = farm.web()
    jars: dict[str, SealedToken | None] = {"victim": web.create(n=0), "thief": None}
    visits = [(at, "victim") for at in moments(rng, victim_s, 0)]
    visits += [(at, "thief") for at in moments(rng, thief_s, THEFT_AFTER_S)]
    now = 0.0
    for at, who in sorted(visits):
        farm.wait(at - now)
        now = at
        if at > THEFT_AFTER_S and jars["thief"] is None:
            jars["thief"] = jars["victim"]
        token = jars[who]
        assert token is not None
        jars[who] = request(web, token, thief_writes and who == "thief")
        if jars[who] is None:
            assert web.kinds().count(EventKind.SESSION_THEFT) == 1, web.kinds()
            return now - THEFT_AFTER_S
    return None


# Mean pause of the victim and of the thief, whether the thief writes -> never found (of 100), median until found.
FIGURES = [
    (20, 20, False, 0, 5 * 60),
    (60, 60, False, 0, 7 * 60),
    (120, 120, False, 0, 9 * 60),
    (60, 300, False, 0, 10 * 60),
    (300, 60, False, 0, 10 * 60),
    (20, 20, True, 0, 7 * 60),
    (60, 60, True, 0, 8 * 60),
]


@pytest.mark.parametrize(("victim_s", "thief_s", "writes", "never_percent", "median_s"), FIGURES)
def test_a_thief_beside_an_active_victim_is_found(
    victim_s: float, thief_s: float, writes: bool, never_percent: float, median_s: float
) -> None:
    outcomes = [found_after_s(seed, victim_s, thief_s, writes) for seed in range(COUPLES)]
    found = sorted(each for each in outcomes if each is not None)
    never = 100 * (COUPLES - len(found)) / COUPLES
    assert never <= never_percent
    assert median(found) <= median_s


@pytest.mark.parametrize("victim_s", [20, 60, 90])
def test_a_thief_who_only_reads_with_the_replaced_token_is_served_at_most_so_long(victim_s: float) -> None:
    """After the victim has moved on: two graces and the victim's next pause. If the victim pauses for longer than the
    grace, the thief's token counts as the one in use for a while: two graces more, until the victim shows the other."""
    farm = Farm()
    web = farm.web()
    booty = web.create(n=0)
    farm.wait(60)
    token = web.save(web.opened(booty)).issue
    assert token is not None
    held = request(web, token.token, writes=False)
    assert held is not None
    served_s, elapsed_s = 0, 0
    while elapsed_s < 600:
        farm.wait(1)
        elapsed_s += 1
        if elapsed_s % victim_s == 0:
            held = request(web, held, writes=False)
            if held is None:
                break
        if elapsed_s % 10 == 5:
            if request(web, booty, writes=False) is None:
                break
            served_s = elapsed_s
    assert web.kinds().count(EventKind.SESSION_THEFT) == 1
    assert served_s <= (2 if victim_s <= 60 else 4) * 60 + victim_s
