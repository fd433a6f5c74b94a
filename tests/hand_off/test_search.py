"""Every order of a few visits with one ticket, and every fault of the session server that has its item.

The rules are the product's, and so are the take-once rule and what becomes of the record; reading and storing the
record is one step, as the put rule makes it. Each choice is followed: who goes on, and which message is lost, or comes
though its answer is lost, or meets a session server that was restarted empty.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from random import Random
from typing import Any

import pytest

from coatcheck.errors import SessionClosed
from coatcheck.hand_off.messages import HandOffCodec, binder_hash, page_hash
from coatcheck.hand_off.messages import HandOffTicket as TicketMessage
from coatcheck.hand_off.rules import KEPT_MS, TICKET, Go, HandOffs, SiteVisit
from coatcheck.hand_off.sites import Site, Sites
from coatcheck.replication.effects import PutItem, TakeItem, Unreachable
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.handing import Arrival, Handing
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.record import Record
from coatcheck.sessions.site_chains import without_chain
from coatcheck.take_once.rule import NEVER_STORED
from coatcheck.take_once.table import ItemTable
from coatcheck.tokens.chain import NO_CHAIN
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SealedToken

HERE, THERE = "https://tickets.example", "https://shop.example"
SITES = Sites(
    table=(Site(name="shop", origin=THERE), Site(name="tickets", origin=HERE, paths=("/tickets/*",))), here="tickets"
)
SESSION, NOW = bytes(16), 1_763_700_000_000
STEP_MS = 1_500
"""Between two visits: a third comes within the time in which a take is answered again, or after it."""
BINDER, OTHER = b"b" * 43, b"o" * 43
ITEM_KEY = bytes(range(32))
CODEC = HandOffCodec(KeyRing([bytes(range(32))]), "farm", THERE, Random(2).randbytes)
URL = f"{TICKET}=" + CODEC.seal(
    TicketMessage(
        source=THERE, page=page_hash("/tickets/1"), session=SESSION, promised=bytes(16), list_number=0, login=True,
        store="session-1", item=ITEM_KEY, binder=binder_hash(BINDER), attempt=1, made_at=NOW,
    ),
    HERE,
)  # fmt: skip


class Step:
    """One atomic change of the record."""

    def __init__(self, change: Callable[[], Any]) -> None:
        self.change = change


class World:
    """One record, one session server with items, and clocks that go on with each visit."""

    def __init__(self) -> None:
        self.dice = Random(1)
        self.now = NOW
        self.items = ItemTable()
        self.items.put(ITEM_KEY, b"\x01", 10_000, NEVER_STORED, self.now)
        self.record = Record(b"\x80", NOW - 5_000, NOW - 4_000, "ada", NO_CHAIN)
        self.begun: list[bytes] = []
        self.revoked = 0
        self.closed = False
        self.told: list[tuple[str, bytes]] = []
        world = self

        class Rules(Handing):
            """What the product does to the record, in one step."""

            def __init__(self) -> None:
                self.policy = SessionPolicy()
                self.site = "tickets.example"
                self._world = world  # type: ignore[assignment]
                self.copies = world  # type: ignore[assignment]

            def arrive(self, arrival: Arrival, kept_ms: int) -> Any:
                assert kept_ms == KEPT_MS
                return (yield Step(lambda: world.arrive(self, arrival)))

            def revoke(self, arrival: Arrival) -> Any:
                return (yield Step(lambda: world.revoke(arrival)))

        self.world = self
        self.rules = HandOffs(SITES, CODEC, Rules(), CookiePolicy())  # type: ignore[arg-type]

    def random_bytes(self, count: int) -> bytes:
        return self.dice.randbytes(count)

    def now_ms(self) -> int:
        return self.now

    def report(self, event: Any) -> None:
        """Reports decide nothing."""

    def arrive(self, rules: Handing, arrival: Arrival) -> Issue:
        if self.closed:
            raise SessionClosed("closed")
        before = self.record.chain
        self.record = rules._with_own_chain(self.record, arrival.ticket, self.now, KEPT_MS)
        if before == NO_CHAIN:
            self.begun.append(arrival.ticket)
        link = self.record.chain.told(self.now, rules.policy.grace_ms)
        return Issue(SealedToken(SESSION, link.session_id, link.minted_at, bytes(16)), True)

    def revoke(self, arrival: Arrival) -> bool:
        left = without_chain(self.record, arrival.ticket, "tickets.example")
        if left is None or self.closed:
            return False
        self.record = left
        self.revoked += 1
        return True


class Choices:
    """What was chosen, and what else could have been: each path is walked again from the start."""

    def __init__(self, prefix: list[int]) -> None:
        self._prefix = prefix
        self.taken: list[tuple[int, int]] = []

    def among(self, count: int) -> int:
        at = len(self.taken)
        choice = self._prefix[at] if at < len(self._prefix) else 0
        self.taken.append((choice, count))
        return choice

    def next(self) -> list[int] | None:
        path = list(self.taken)
        while path:
            choice, count = path.pop()
            if choice + 1 < count:
                return [one for one, _ in path] + [choice + 1]
        return None


Visits = dict[str, bytes | None]
STORIES: dict[str, Visits] = {
    "delivered three times": {"browser": BINDER, "browser again": BINDER, "browser once more": BINDER},
    "thief without cookies": {"browser": BINDER, "thief": None, "browser again": BINDER},
    "thief with a binder": {"browser": BINDER, "thief": OTHER, "browser again": BINDER},
}


def walk(visits: Visits, choices: Choices, closes: bool, faults: int) -> World:
    world = World()
    flows: dict[str, Generator[Any, Any, Any]] = {}
    waiting: dict[str, Any] = {}
    left = list(visits)
    ends = closes
    while left or flows:
        names = [*flows, *left[:1], *(["logout"] if ends else []), *(["restart"] if faults else [])]
        name = names[choices.among(len(names))]
        if name == "restart":
            world.items, faults = ItemTable(), faults - 1
            continue
        if name == "logout":
            world.closed, ends = True, False
            continue
        if name in left:
            left.remove(name)
            world.now += STEP_MS
            visit = SiteVisit(method="GET", path="/tickets/1", query=URL, binder=visits[name])
            flows[name] = world.rules.answer(visit)
            waiting[name] = (None, None)
        answer, failure = waiting[name]
        flow = flows[name]
        try:
            effect = flow.send(answer) if failure is None else flow.throw(failure)
        except StopIteration as end:
            del flows[name]
            assert isinstance(end.value, Go)
            if end.value.issue is not None:
                world.told.append((name, end.value.issue.token.session_id))
                assert not (closes and world.closed and answer is None), "a closed session opens nowhere"
            continue
        waiting[name] = (None, None)
        if isinstance(effect, Step):
            try:
                waiting[name] = (effect.change(), None)
            except SessionClosed as closed:
                waiting[name] = (None, closed)
            continue
        assert not isinstance(effect, PutItem)
        assert isinstance(effect, TakeItem)
        outcome = choices.among(3 if faults else 1)
        reply: Any = Unreachable("lost")
        if outcome < 2:
            reply = world.items.take(effect.key, effect.nonce, world.now)
        if outcome:
            reply, faults = Unreachable("lost"), faults - 1
        waiting[name] = (reply, None)
    return world


def judge(world: World) -> None:
    assert len(world.begun) <= 1, "a ticket opens at most one chain"
    assert all(name.startswith("browser") for name, _ in world.told), "in the browser that asked for it"
    assert len({link for _, link in world.told}) <= 1, "and tells its one token"
    if world.revoked:
        assert world.record.chain == NO_CHAIN, "what was revoked does not come back by the same ticket"


def explore(visits: Visits, closes: bool, faults: int) -> tuple[int, set[tuple[bool, bool, bool]]]:
    """How many paths there are, and what came of them."""
    prefix: list[int] | None = []
    paths, seen = 0, set[tuple[bool, bool, bool]]()
    while prefix is not None:
        choices = Choices(prefix)
        world = walk(visits, choices, closes, faults)
        judge(world)
        seen.add((bool(world.begun), bool(world.revoked), len(world.told) > 1))
        paths += 1
        prefix = choices.next()
    return paths, seen


@pytest.mark.parametrize("story", STORIES)
def test_every_order_and_every_fault(story: str) -> None:
    paths, seen = explore(STORIES[story], closes=False, faults=1)
    assert paths > 1000
    assert {begun for begun, _, _ in seen} == {True, False}
    assert any(revoked for _, revoked, _ in seen), "a second use revokes"
    assert any(twice for _, _, twice in seen), "a lost answer is told again"


@pytest.mark.parametrize("story", STORIES)
def test_a_logout_at_any_moment(story: str) -> None:
    paths, seen = explore(STORIES[story], closes=True, faults=0)
    assert paths > 500
    assert {begun for begun, _, _ in seen} == {True, False}
