"""The shortcuts of the hot path say what the rules say: compared on random histories, on a clock of their own."""

from __future__ import annotations

import asyncio
import os
import random
import time

import pytest

from coatcheck.drivers.sessions import Sessions
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.saving import NOTHING
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.chain import Shown, show
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SealedToken
from in_hand import must_save, saved

POLICIES = [
    SessionPolicy(),
    SessionPolicy(rotate_after_ms=1_000, grace_ms=700, idle_timeout_ms=20_000, absolute_timeout_ms=60_000),
    SessionPolicy(rotate_after_ms=0, grace_ms=500, idle_timeout_ms=20_000),
    SessionPolicy(rotate_after_ms=0, grace_ms=0, theft="refuse", idle_timeout_ms=20_000),
]


class Story:
    """One web server, one browser that may show old tokens; time passes between the requests."""

    def __init__(self, policy: SessionPolicy, seed: int) -> None:
        self.policy = policy
        self.random = random.Random(seed)
        self.now_ms = 1_800_000_000_000
        self.settled = self.unsettled = 0
        stores = [MemoryStore(name, time.monotonic) for name in ("one", "two")]
        self.sessions = Sessions(
            farm="farm", server_name="web", stores=stores, ring=KeyRing([os.urandom(32)]), policy=policy
        )
        self.sessions.copies.world.now_ms = lambda: self.now_ms  # type: ignore[method-assign]
        self.tokens: list[SealedToken] = []

    async def begin(self) -> None:
        session = Session()
        session["n"] = 0
        assert must_save(self.sessions.lifecycle, session)
        await self.answer(session)

    async def answer(self, session: Session) -> None:
        """As the middleware does; the browser may miss the answer."""
        self.compare(session)
        issue = (await saved(self.sessions, session)).issue
        if issue is not None and (not self.tokens or self.random.random() < 0.8):
            self.tokens.append(issue.token)

    def compare(self, session: Session) -> None:
        if not self.sessions.lifecycle.is_settled(session):
            self.unsettled += 1
            return
        self.settled += 1
        assert self.sessions.lifecycle.finish(session) is NOTHING

    def judged(self, token: SealedToken) -> Shown:
        copy = self.sessions.copies.cache.get(token.key)
        assert copy is not None
        record = self.sessions.lifecycle._record(copy)
        policy, newest_shown_at = self.policy, copy.shown_at or self.now_ms
        shown = token.session_id, token.timestamp
        verdict, _ = show(record.chain, *shown, self.now_ms, policy.grace_ms, newest_shown_at)
        return verdict

    async def request(self) -> None:
        self.now_ms += self.random.choice([0, 1, 50, 400, 900, 2_500, 4_000])
        token = self.tokens[-1] if self.random.random() < 0.8 else self.random.choice(self.tokens)
        expected = self.judged(token)
        session = self.sessions.lifecycle.open_cached(token, False)
        if session is None:
            return
        assert session._request.verdict is expected
        parallel = self.sessions.lifecycle.open_cached(token, False) if self.random.random() < 0.2 else None
        act = self.random.random()
        if act < 0.4:
            session["n"] = session.get("n", 0) + 1
        elif act < 0.5:
            session.rotate()
        elif act < 0.8:
            session.get("n")
        await self.answer(session)
        if parallel is not None:
            await self.answer(parallel)


@pytest.mark.parametrize("policy", POLICIES)
def test_settled_means_nothing_to_save_and_nothing_to_tell(policy: SessionPolicy) -> None:
    async def tell(seed: int) -> tuple[int, int]:
        story = Story(policy, seed)
        await story.sessions.start()
        try:
            await story.begin()
            for _ in range(60):
                await story.request()
        finally:
            await story.sessions.aclose()
        return story.settled, story.unsettled

    async def many() -> list[tuple[int, int]]:
        return [await tell(seed) for seed in range(25)]

    counts = asyncio.run(many())
    assert sum(unsettled for _, unsettled in counts) > 100
    if policy.rotate_after_ms:
        assert sum(settled for settled, _ in counts) > 50, "plain reads take the shortcut"
