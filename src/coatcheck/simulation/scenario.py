"""What a seed stands for: the farm's settings, its traffic and its faults."""

from __future__ import annotations

from random import Random
from typing import Literal

import msgspec

from coatcheck.replication.policy import BelowTarget, Durability, ReplicationPolicy, TooFewAnswers
from coatcheck.sessions.policy import AtSessionLimit, SessionPolicy

MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS

Profile = Literal[
    "mixed", "all", "calm", "expiry", "storm", "duel", "leases", "sleepers", "thieves", "wide", "lists", "newcomers",
    "clocks", "many", "director", "links", "users", "sites",
]  # fmt: skip
"""Kinds of histories. ``mixed``: each seed is one of the others, half of them ``all``: small farms and every fault
that a message, a process or a link can have. ``duel``: three web servers at once at one session, and no fault.
``leases``: long leases, many closes, and notices that are lost. ``sleepers``: late answers, and browsers that sleep
for longer than the grace. ``thieves``: stolen cookies, one web server, no fault. ``wide``: up to six session servers,
camps that are cut off from each other, keys that vanish, servers that refuse writes. ``lists``: the same, and a list
of session servers that changes. ``newcomers``: sessions that live for seconds until their cookie comes back.
``clocks``: one clock at a time is wrong by hours. ``many``: as ``wide``, with nine or sixteen session servers.
``director``: the shipped director stands between browsers and web servers; no fault, deaths of web servers alone, or
every fault that a director, a web server and the way between them can have.
``users``: many logins of two users, with limits or without, who close their other sessions, or
all, and of operators who close everybody's.
``links``: any of the others over connections that keep their order, with pauses that are longer than a lease.
``sites``: any of the others at a farm of two sites, between which browsers go back and forth, and URLs are stolen; for
the bare flows only."""


Damage = Literal["narrow", "wide", "lists", "clocks", "deaths", "door"]
"""What befalls a farm: see :data:`coatcheck.simulation.weather.BY_DAMAGE`."""


class Scenario(msgspec.Struct, frozen=True):
    """One simulated farm. Times that end in ``_s`` are seconds, ``_ms`` milliseconds."""

    seed: int
    web_servers: int
    session_servers: int
    copies: int | Literal["all"]
    durability: Durability
    below_target: BelowTarget
    too_few_answers: TooFewAnswers
    lease_s: float
    rotate_after_ms: int
    grace_ms: int
    theft: Literal["close", "refuse", "report"]
    rolled_back: Literal["close", "accept"]
    conflict: Literal["last_write", "reject"]
    idle_timeout_ms: int
    absolute_timeout_ms: int
    leeway_ms: int
    lingering: bool
    browsers: int
    tabs: int
    requests: int
    gap_s: float
    stickiness: float
    retries: bool
    thief: bool
    logins: bool
    skew_ms: int
    faults: int
    loss: float
    duplication: float
    lateness: float
    lost_notices: float
    lost_responses: float
    cancelled: float
    real_seal: bool
    patience_s: float = 30.0
    sleep_s: float = 4.0
    closes: bool = False
    damage: Damage = "narrow"
    new_session_ms: int = 0
    director: bool = False
    """Whether requests go through the shipped director; for the shipped shells only."""
    users: bool = False
    """Whether web servers keep an index of each user."""
    everyone: bool = False
    """Whether operators close everybody's sessions."""
    user_limit: int = 0
    """How many sessions a user may have; 0: any number."""
    at_limit: AtSessionLimit = "close-oldest"
    sites: bool = False
    """Whether the farm has two sites, with the web servers in turn."""
    stolen_urls: float = 0.0
    """How many of the URLs that browsers are sent to are opened by another browser as well."""
    ordered: bool = False
    """Whether replies and notices of a session server come in order, on one connection."""

    @property
    def faultless(self) -> bool:
        return not (
            self.faults
            or self.loss
            or self.duplication
            or self.lateness
            or self.lost_notices
            or self.lost_responses
            or self.cancelled
            or self.skew_ms
        )

    @property
    def wanted(self) -> int:
        return self.session_servers if self.copies == "all" else min(self.copies, self.session_servers)

    @property
    def keeps_quorums(self) -> bool:
        """Whether any two acknowledged writes, and any look, have a session server in common (copies above N/2).

        And whether nobody goes on from an older state.
        """
        return (
            self.session_servers >= 3
            and self.below_target != "degrade"
            and self.durability == "all"
            and self.too_few_answers == "refuse"
            and self.rolled_back == "close"
        )

    def replication_policy(self) -> ReplicationPolicy:
        return ReplicationPolicy(
            durability=self.durability,
            below_target=self.below_target,
            too_few_answers=self.too_few_answers,
            lease_s=self.lease_s,
            patience_s=self.patience_s,
            tombstone_ms=self.session_policy().tombstone_ms,
            linger_ms=self.session_policy().linger_ms if self.lingering else 0,
        )

    def session_policy(self) -> SessionPolicy:
        return SessionPolicy(
            rotate_after_ms=self.rotate_after_ms,
            grace_ms=self.grace_ms,
            theft=self.theft,
            rolled_back=self.rolled_back,
            conflict=self.conflict,
            idle_timeout_ms=self.idle_timeout_ms,
            absolute_timeout_ms=self.absolute_timeout_ms,
            leeway_ms=self.leeway_ms,
            new_session_ms=self.new_session_ms,
            sessions_per_user=self.user_limit,
            at_session_limit=self.at_limit,
        )

    def describe(self) -> str:
        fields = (f"{name}={getattr(self, name)}" for name in self.__struct_fields__)
        return ", ".join(fields)


def _before_a_director(seed: int) -> Scenario:
    dice = Random(f"director {seed}")
    damage = dice.choice(("", "deaths", "door", "door"))
    web_servers, gap_s = dice.choice((2, 3)), dice.choice((0.05, 0.2, 0.6))
    if damage == "door":
        return msgspec.structs.replace(
            draw(seed, "storm"), director=True, damage="door", web_servers=web_servers, gap_s=gap_s, thief=False
        )
    calm = msgspec.structs.replace(draw(seed, "calm"), director=True, gap_s=gap_s, thief=False)
    if not damage:
        return calm
    return msgspec.structs.replace(
        calm, damage="deaths", faults=dice.randint(1, 5), web_servers=3, session_servers=dice.choice((2, 3)), copies=2,
        durability="all", skew_ms=0,
    )  # fmt: skip


_MIXED: tuple[Profile, ...] = (
    "all", "all", "all", "all", "all", "all",
    "wide", "wide", "lists", "clocks", "leases", "newcomers",
)  # fmt: skip

_OF_SITES: tuple[Profile, ...] = (
    "calm",
    "all",
    "all",
    "storm",
    "storm",
    "wide",
    "leases",
    "sleepers",
    "expiry",
    "links",
)


def _of_two_sites(seed: int) -> Scenario:
    dice = Random(f"sites {seed}")
    return msgspec.structs.replace(
        draw(seed, dice.choice(_OF_SITES)), sites=True, web_servers=dice.choice((2, 2, 3, 4)),
        browsers=dice.choice((1, 2, 2)), gap_s=dice.choice((0.05, 0.2, 0.6)), requests=dice.randint(10, 24),
        stolen_urls=dice.choice((0.0, 0.1, 0.4)), thief=False, real_seal=False,
    )  # fmt: skip


_LINKED: tuple[Profile, ...] = ("all", "storm", "wide", "wide", "wide", "lists", "leases", "sleepers", "clocks")


def draw(seed: int, profile: Profile = "all") -> Scenario:
    """The scenario of a seed: the same in every process."""
    if profile == "mixed":
        return draw(seed, Random(f"mixed {seed}").choice(_MIXED))
    if profile == "sites":
        return _of_two_sites(seed)
    if profile == "duel":
        return msgspec.structs.replace(
            draw(seed, "calm"), web_servers=3, tabs=4, gap_s=0.003, stickiness=0.0, requests=24, durability="all"
        )
    if profile == "leases":
        return msgspec.structs.replace(
            draw(seed, "storm"), lease_s=2.0, gap_s=0.05, lost_notices=1.0, logins=True, closes=True
        )
    if profile == "sleepers":
        return msgspec.structs.replace(
            draw(seed, "calm"), grace_ms=6_000, rotate_after_ms=200, theft="close", lateness=0.15, sleep_s=30.0,
            lease_s=0.5, gap_s=0.2, tabs=3, logins=False, idle_timeout_ms=HOUR_MS, absolute_timeout_ms=12 * HOUR_MS,
        )  # fmt: skip
    if profile == "thieves":
        return msgspec.structs.replace(
            draw(seed, "calm"), grace_ms=300, rotate_after_ms=0, theft="close", thief=True, web_servers=1, gap_s=0.2,
            tabs=1, logins=False, idle_timeout_ms=HOUR_MS, absolute_timeout_ms=12 * HOUR_MS,
        )  # fmt: skip
    if profile in ("wide", "lists", "clocks"):
        dice = Random(f"wide {seed}")
        web_servers, session_servers = dice.choice((2, 2, 3, 3)), dice.choice((1, 2, 2, 3, 3, 3, 4, 5, 6))
        copies = dice.choice((1, 2, 2, 2, 3))
        if profile == "lists" and copies == 1:
            # The only copy may be on the server that is taken off the list, or be brought there by a web server that
            # does not know that yet (lists 7320055, 960029 with one copy): operators are told to raise copies first.
            copies = 2
        return msgspec.structs.replace(
            draw(seed, "storm"), damage=profile, web_servers=web_servers, session_servers=session_servers,
            copies=copies, faults=dice.randint(1, 6),
        )  # fmt: skip
    if profile == "director":
        return _before_a_director(seed)
    if profile == "many":
        return msgspec.structs.replace(draw(seed, "wide"), session_servers=Random(f"many {seed}").choice((9, 9, 16)))
    if profile == "newcomers":
        dice = Random(f"newcomers {seed}")
        return msgspec.structs.replace(
            draw(seed, dice.choice(("calm", "expiry", "storm"))), new_session_ms=dice.choice((300, 800, 2_000)),
            leeway_ms=dice.choice((0, 200)), browsers=2, gap_s=dice.choice((0.05, 0.2, 0.6)),
        )  # fmt: skip
    if profile == "users":
        dice = Random(f"users {seed}")
        return msgspec.structs.replace(
            draw(seed, dice.choice(("calm", "storm", "storm", "wide", "expiry"))), users=True, logins=True,
            user_limit=dice.choice((0, 1, 1, 2)), at_limit=dice.choice(("refuse", "close-oldest")),
            browsers=dice.choice((2, 3)), tabs=dice.choice((1, 2)), gap_s=dice.choice((0.003, 0.05, 0.2, 0.6)),
            conflict="last_write", everyone=Random(f"everyone {seed}").random() < 0.4,
        )  # fmt: skip
    if profile == "links":
        dice = Random(f"links {seed}")
        return msgspec.structs.replace(
            draw(seed, dice.choice(_LINKED)), ordered=True, lease_s=0.5, gap_s=dice.choice((0.05, 0.3, 0.8, 1.5)),
            stickiness=dice.choice((0.5, 0.9, 0.97)), closes=dice.random() < 0.5,
        )  # fmt: skip
    rng = Random(seed * 2 + 1)
    pick = rng.choice
    calm = profile == "calm" or (profile != "storm" and rng.random() < 0.15)
    session_servers = pick((1, 2, 2, 2, 3, 3, 4))
    grace_ms = pick((0, 300, 2_000, 10_000, 60_000))
    short = profile == "expiry" or rng.random() < 0.15
    storm = profile == "storm" or rng.random() < 0.15
    later = Random(seed * 2 + 1 << 32)
    """For what was thought of later, so that older seeds keep the rest of their scenario."""
    below_target: BelowTarget = later.choice(("quorum", "quorum", "quorum", "degrade", "refuse"))
    return Scenario(
        seed=seed,
        web_servers=pick((1, 2, 2, 3)),
        session_servers=session_servers,
        copies=pick((1, 2, 2, 2, "all")),
        durability=pick(("all", "all", "all", "one", "async")),
        below_target=below_target if pick(("degrade", "degrade", "refuse")) == "degrade" else "refuse",
        too_few_answers=pick(("refuse", "refuse", "refuse", "serve")),
        lease_s=pick((0.0, 0.5, 2.0, 2.0)),
        rotate_after_ms=pick((0, 200, 1_000, MINUTE_MS)),
        grace_ms=grace_ms,
        theft="refuse" if grace_ms == 0 else pick(("close", "close", "refuse", "report")),
        rolled_back=pick(("close", "close", "accept")),
        conflict=pick(("last_write", "last_write", "reject")),
        idle_timeout_ms=pick((2_000, 6_000)) if short else pick((MINUTE_MS, 30 * MINUTE_MS)),
        absolute_timeout_ms=pick((5_000, 12_000)) if short else 12 * HOUR_MS,
        leeway_ms=pick((0, 500)) if short else 5_000,
        lingering=rng.random() < 0.5,
        browsers=pick((1, 1, 2)),
        tabs=pick((1, 2, 3, 4)),
        requests=rng.randint(10, 28),
        gap_s=pick((0.003, 0.05, 0.2, 0.6)),
        stickiness=pick((0.0, 0.5, 0.9, 0.97)),
        retries=rng.random() < 0.6,
        thief=rng.random() < 0.08,
        logins=rng.random() < 0.7,
        skew_ms=0 if calm else pick((0, 0, 50, 1_500)),
        faults=0 if calm else rng.randint(1, 8 if storm else 4),
        loss=0.0 if calm else pick((0.0, 0.0, 0.01, 0.08)),
        duplication=0.0 if calm else pick((0.0, 0.0, 0.03, 0.1)),
        lateness=0.0 if calm else pick((0.0, 0.0, 0.02, 0.1)),
        lost_notices=0.0 if calm else pick((0.0, 0.0, 0.4, 1.0)),
        lost_responses=0.0 if calm else pick((0.0, 0.0, 0.1)),
        cancelled=0.0 if calm else pick((0.0, 0.0, 0.05)),
        real_seal=seed % 64 == 0,
        patience_s=later.choice((0.3, 2.0, 30.0)),
    )
