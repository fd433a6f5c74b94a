"""Which links are cut when, how and for how long: all of it from a seed."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random

import msgspec

from .links import WAYS, Order, Way

MACHINES = ("a", "b")
STORES = ("1", "2", "3")
DOORS = tuple(f"door-{machine}" for machine in MACHINES)
LINKS = tuple(f"{machine}{store}" for machine in MACHINES for store in STORES)
"""From each machine to each session server; the doors are the browsers' links to the machines."""

LENGTHS_S = (0.1, 0.4, 1.0, 2.0, 4.0, 8.0)
CALM_S = (0.2, 4.0)
AT_ONCE = 0.25
"""How often the next cut does not wait until the last one is over."""


class Cut(msgspec.Struct, frozen=True):
    """``links`` get their orders at ``at_s`` and are healed at ``until_s``, seconds after the start."""

    kind: str
    at_s: float
    until_s: float
    orders: tuple[Order, ...]
    lose: bool

    @property
    def links(self) -> tuple[str, ...]:
        return tuple(order.link for order in self.orders)

    def healing(self) -> list[Order]:
        return [Order(order.link, "heal", lose=self.lose) for order in self.orders]

    def __str__(self) -> str:
        return f"{self.at_s:7.2f} to {self.until_s:7.2f} s: {self.kind} {' '.join(self.links)}"


def _partition(rng: Random) -> list[Order]:
    """Each session server is with one of the two machines; the links across are cut."""
    return [Order(f"{rng.choice(MACHINES)}{store}", "hold") for store in STORES]


def _machine(rng: Random) -> list[Order]:
    machine = rng.choice(MACHINES)
    return [Order(f"{machine}{store}", "hold") for store in STORES]


def _store(rng: Random) -> list[Order]:
    store = rng.choice(STORES)
    return [Order(f"{machine}{store}", "hold") for machine in MACHINES]


def _one_way(rng: Random) -> list[Order]:
    way: Way = rng.choice(WAYS)
    return [Order(link, "hold", (way,)) for link in rng.sample(LINKS, rng.choice((1, 1, 2, 3)))]


def _any(rng: Random) -> list[Order]:
    return [Order(link, "hold") for link in rng.sample(LINKS, rng.randint(1, 5))]


def _delay(rng: Random) -> list[Order]:
    seconds = rng.choice((0.02, 0.1, 0.3, 0.7, 1.5))
    return [Order(link, "delay", seconds=seconds) for link in rng.sample(LINKS, rng.randint(1, 4))]


def _half(rng: Random) -> list[Order]:
    return [Order(link, "half") for link in rng.sample(LINKS, rng.randint(1, 3))]


def _reset(rng: Random) -> list[Order]:
    return [Order(link, "reset") for link in rng.sample(LINKS, rng.randint(1, 6))]


def _refuse(rng: Random) -> list[Order]:
    return [Order(link, "refuse") for link in rng.sample(LINKS, rng.randint(1, 4))]


def _door(rng: Random) -> list[Order]:
    door = rng.choice(DOORS)
    ways = rng.choice((WAYS, ("up",), ("down",)))
    return [rng.choice((Order(door, "hold", ways), Order(door, "reset"), Order(door, "half")))]


KINDS = {
    "partition": (_partition, 6),
    "machine cut off": (_machine, 2),
    "session server cut off": (_store, 2),
    "some links cut": (_any, 4),
    "one direction cut": (_one_way, 4),
    "delay": (_delay, 3),
    "half-open": (_half, 2),
    "reset": (_reset, 2),
    "refused": (_refuse, 2),
    "door": (_door, 2),
}
"""What is drawn, and how often in proportion."""


def draw(seed: int, length_s: float) -> Iterator[Cut]:
    """The cuts of a run; they begin before ``length_s``. No link is in two cuts at once."""
    rng = Random(seed)
    at_s = 1.0
    running: list[Cut] = []
    while True:
        at_s += rng.uniform(*CALM_S)
        if at_s >= length_s:
            return
        kind = rng.choices(list(KINDS), [weight for _, weight in KINDS.values()])[0]
        orders = KINDS[kind][0](rng)
        until_s = at_s + rng.choice(LENGTHS_S) * rng.uniform(0.6, 1.4)
        running = [cut for cut in running if cut.until_s > at_s]
        taken = {link for cut in running for link in cut.links}
        orders = [order for order in orders if order.link not in taken]
        lose = rng.random() < 0.5
        overlapping = rng.random() < AT_ONCE
        if orders:
            cut = Cut(kind, round(at_s, 3), round(until_s, 3), tuple(orders), lose)
            running.append(cut)
            yield cut
        if not overlapping:
            at_s = max(at_s, until_s)
