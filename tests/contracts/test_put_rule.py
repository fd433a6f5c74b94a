"""Every session server takes and refuses the same puts: those that run the one rule, and the script that repeats it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_backends import (
    BACKENDS,
    OWNER_A,
    OWNER_B,
    Backend,
    MemoryBackend,
    RedisBackend,
    ask,
    entry,
    new_key,
    opened,
    run,
    same,
    until,
    version,
)

from coatcheck.replication.effects import GetReply, PutReply
from coatcheck.replication.entry import Entry
from coatcheck.replication.notice import Notice
from coatcheck.replication.put_rule import Verdict, judge_entries
from coatcheck.replication.version import Version
from coatcheck.simulation.bare.session_server import ModelSessionServer
from coatcheck.simulation.schedule import Schedule
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import ACCEPTED, Refused, Store


class SimulatedStore(MemoryStore):
    """A simulated session server, asked as a store is."""

    def __init__(self) -> None:
        super().__init__("simulated", time.monotonic)
        self.simulated = ModelSessionServer("simulated", Schedule(), self, self)  # type: ignore[arg-type]

    def stored(self, server: ModelSessionServer, key: bytes, old: Entry | None, new: Entry) -> None:
        """The witness of every change; here nobody judges."""

    def notify(self, sender: ModelSessionServer, server_id: bytes, message: Notice) -> None:
        self.publish(server_id, message.encode())

    def get(self, key: bytes, reply: Callable[[GetReply], None]) -> None:
        reply(self.simulated.get(key))

    def put(
        self, key: bytes, seen: Version | None, new: Entry, reply: Callable[[PutReply], None], notify: bytes = b""
    ) -> None:
        reply(self.simulated.put(key, seen, new, notify))


class SimulatedBackend(Backend):
    def client(self) -> Store:
        return SimulatedStore()


ALL: dict[str, type[Backend]] = {**BACKENDS, "simulated": SimulatedBackend}


@pytest.fixture(scope="module", params=list(ALL))
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Backend]:
    """Each backend, once; the simulated session server too."""
    backend = ALL[request.param](tmp_path_factory.mktemp(request.param))
    backend.start()
    yield backend
    backend.stop()


def accepts(stored: Entry | None, seen: Version | None, new: Entry) -> bool:
    return judge_entries(stored, seen, new) is not Verdict.REFUSED


V1 = version(1)
V1_NEXT = version(1, seq=1)
V2 = version(2)
RIVAL = version(1, OWNER_B)
TAKEN = version(2, OWNER_B)

# What is stored, what the writer saw here, what it puts, and whether that is accepted (protocol section 3).
PUT_RULE = {
    "first put": (None, None, entry(V1), True),
    "something was seen but nothing is stored": (None, V1, entry(V1_NEXT), False),
    "tombstone where nothing is stored": (None, None, entry(V1, closed=True), True),
    "tombstone where what was seen is gone": (None, V1, entry(V1_NEXT, closed=True), True),
    "exact repeat": (entry(V1), None, entry(V1), True),
    "exact repeat after having seen it": (entry(V1), V1, entry(V1), True),
    "exact repeat of a tombstone": (entry(V1, closed=True), None, entry(V1, closed=True), True),
    "what was seen is stored": (entry(V1), V1, entry(TAKEN), True),
    "what was seen is stored, older epoch put": (entry(V2), V2, entry(RIVAL), True),
    "nothing was seen, something is stored": (entry(V1), None, entry(TAKEN), False),
    "something else was seen": (entry(V1), RIVAL, entry(TAKEN), False),
    "own earlier seq is stored": (entry(V1), None, entry(V1_NEXT), True),
    "own earlier seq, several writes on": (entry(V1), RIVAL, entry(version(1, seq=70_000)), True),
    "own later seq is stored": (entry(V1_NEXT), None, entry(V1), False),
    "seq 256 after 255": (entry(version(1, seq=255)), None, entry(version(1, seq=256)), True),
    "seq 255 after 256": (entry(version(1, seq=256)), None, entry(version(1, seq=255)), False),
    "largest seq": (entry(version(1, seq=2**31)), None, entry(version(1, seq=2**32 - 1)), True),
    "same epoch, other owner": (entry(V1), None, entry(version(1, OWNER_B, 9)), False),
    "same owner, other epoch": (entry(V1), None, entry(version(2, OWNER_A, 9)), False),
    "tombstone over a live entry": (entry(V1), None, entry(TAKEN, closed=True), True),
    "tombstone over a later entry": (entry(V2), None, entry(RIVAL, closed=True), True),
    "tombstone of the stored version": (entry(V1), None, entry(V1, closed=True), True),
    "write over a tombstone": (entry(V1, closed=True), V1, entry(V1_NEXT), False),
    "claim over a tombstone": (entry(V1, closed=True), V1, entry(TAKEN), False),
    "tombstone over another tombstone": (entry(V1, closed=True), V1, entry(TAKEN, closed=True), False),
    "the tombstone's version alive again": (entry(V1, closed=True), V1, entry(V1), False),
    "provisional tombstone where nothing was seen nor stored": (None, None, entry(TAKEN, lapsed=True), True),
    "provisional tombstone where what was seen is gone": (None, V1, entry(TAKEN, lapsed=True), False),
    "provisional tombstone over what was seen": (entry(V1), V1, entry(TAKEN, lapsed=True), True),
    "provisional tombstone over a later write": (entry(V1_NEXT), V1, entry(TAKEN, lapsed=True), False),
    "provisional tombstone that saw nothing": (entry(V1), None, entry(TAKEN, lapsed=True), False),
    "provisional tombstone as a later write of the owner": (entry(V1), None, entry(V1_NEXT, lapsed=True), False),
    "provisional tombstone of the stored version, unseen": (entry(V1), None, entry(V1, lapsed=True), False),
    "provisional tombstone over a tombstone": (entry(V1, closed=True), V1, entry(TAKEN, lapsed=True), False),
    "provisional tombstone over the tombstone of its version": (
        entry(V1, closed=True),
        V1,
        entry(V1, lapsed=True),
        False,
    ),
    "exact repeat of a provisional tombstone": (entry(V1, lapsed=True), None, entry(V1, lapsed=True), True),
    "provisional tombstone over another that was seen": (entry(V1, lapsed=True), V1, entry(TAKEN, lapsed=True), True),
    "tombstone over a provisional one": (entry(V2, lapsed=True), None, entry(RIVAL, closed=True), True),
    "tombstone over the provisional one of its version": (entry(V1, lapsed=True), None, entry(V1, closed=True), True),
    "claim over a provisional tombstone that was seen": (entry(V1, lapsed=True), V1, entry(TAKEN), True),
    "claim over a provisional tombstone that was not seen": (entry(V1, lapsed=True), None, entry(TAKEN), False),
    "write over a provisional tombstone of its own owner": (entry(V1, lapsed=True), None, entry(V1_NEXT), False),
}


@pytest.mark.parametrize("case", PUT_RULE)
def test_put_rule(backend: Backend, case: str) -> None:
    stored, seen, new, expected = PUT_RULE[case]

    async def story() -> None:
        async with opened(backend.client()) as store:
            key = new_key()
            if stored is not None:
                assert await ask(store.put, key, None, stored) == ACCEPTED
            answer = await ask(store.put, key, seen, new)
            found = await ask(store.get, key)
            if expected:
                assert answer == ACCEPTED
                assert same(found, new)
            elif stored is None:
                assert answer == Refused(None)
                assert found is None
            else:
                assert isinstance(answer, Refused)
                assert same(answer.stored, stored), "a refusal says what is stored"
                assert same(found, stored), "a refused put changes nothing"

    run(story)
    if isinstance(backend, RedisBackend):
        assert accepts(stored, seen, new) is expected, "its script and the rule say different things"


VERSIONS = st.builds(
    Version,
    epoch=st.sampled_from([0, 1, 2, 255, 256, 2**32 - 1]),
    owner=st.sampled_from([OWNER_A, OWNER_B, bytes(8), b"\xff\x00\r\n\x80\x0a\x00\xff"]),
    seq=st.sampled_from([0, 1, 127, 128, 255, 256, 2**31, 2**32 - 1]),
)
PUTS = st.tuples(
    st.one_of(st.none(), st.just("stored"), VERSIONS),
    VERSIONS,
    st.sampled_from(["", "", "closed", "lapsed"]),
    st.binary(max_size=40),
)


@given(puts=st.lists(PUTS, max_size=12))
@settings(max_examples=60)
def test_any_series_of_puts_is_answered_as_the_rule_says(backend: Backend, puts: list[tuple]) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            key = new_key()
            stored: Entry | None = None
            for saw, v, kind, payload in puts:
                seen = (stored.version if stored is not None else None) if saw == "stored" else saw
                new = entry(v, payload, closed=kind == "closed", lapsed=kind == "lapsed")
                answer = await ask(store.put, key, seen, new)
                if accepts(stored, seen, new):
                    assert answer == ACCEPTED
                    stored = new
                else:
                    assert isinstance(answer, Refused)
                    assert answer.stored is None if stored is None else same(answer.stored, stored)
            found = await ask(store.get, key)
            assert found is None if stored is None else same(found, stored)

    run(story)


# -- the script, beside the rule -----------------------------------------------------------------

SERVER_IDS = (OWNER_A[:3], OWNER_B[:3])
GENERATED = st.tuples(
    st.one_of(st.none(), st.just("stored"), st.just("stored before"), VERSIONS),
    st.one_of(VERSIONS, st.just("stored"), st.just("next write"), st.just("write before")),
    st.sampled_from(["", "", "closed", "lapsed"]),
    st.sampled_from([60_000, 60_000, 60_000, 1]),
    st.binary(max_size=40),
    st.sampled_from([b"", b"", SERVER_IDS[0], SERVER_IDS[1], b"".join(SERVER_IDS)]),
)
SHORT_LIFE_S = 0.003
"""After an entry that lives for a millisecond: it is gone on both."""


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisBackend]:
    backend = RedisBackend(tmp_path_factory.mktemp("redis"))
    backend.start()
    yield backend
    backend.stop()


def _offered(stored: Entry | None, wanted: Version | str) -> Version:
    if not isinstance(wanted, str):
        return wanted
    base = stored.version if stored is not None else V1_NEXT
    step = {"stored": 0, "next write": 1, "write before": -1}[wanted]
    return Version(base.epoch, base.owner, min(max(base.seq + step, 0), 2**32 - 1))


@given(puts=st.lists(GENERATED, min_size=1, max_size=16))
@settings(max_examples=250, deadline=None)
def test_the_script_says_what_the_rule_says(redis: RedisBackend, puts: list[tuple]) -> None:
    """The same puts to a real server that runs the script and to the table that runs the rule: the same verdicts, the
    same stored bytes, the same notices, also where what was stored has expired."""

    async def story() -> None:
        script, rule, key = redis.client(), MemoryBackend(redis.tmp_path).client(), new_key()
        heard: dict[str, list[tuple[bytes, bytes]]] = {"script": [], "rule": []}
        async with opened(script, rule):
            for name, store in (("script", script), ("rule", rule)):
                for server_id in SERVER_IDS:
                    store.subscribe(server_id, lambda raw, to=server_id, at=heard[name]: at.append((to, raw)))
            stored: Entry | None = None
            before: Version | None = None
            for saw, offered, kind, life_ms, payload, notify in puts:
                current = stored.version if stored is not None else None
                seen = {"stored": current, "stored before": before}.get(saw) if isinstance(saw, str) else saw
                new = entry(
                    _offered(stored, offered),
                    payload,
                    closed=kind == "closed",
                    lapsed=kind == "lapsed",
                    life_ms=life_ms,
                )
                said = await ask(partial(script.put, notify=notify), key, seen, new)
                expected = await ask(partial(rule.put, notify=notify), key, seen, new)
                assert (said == ACCEPTED) is accepts(stored, seen, new)
                assert (said == ACCEPTED) is (expected == ACCEPTED)
                if said == ACCEPTED:
                    before, stored = current, new
                else:
                    assert isinstance(said, Refused)
                    assert said.stored is None if stored is None else same(said.stored, stored)
                if life_ms == 1:
                    await asyncio.sleep(SHORT_LIFE_S)
                    stored = None if said == ACCEPTED else stored
                kept, wanted = await ask(script.get, key), await ask(rule.get, key)
                assert (kept is None) is (wanted is None) is (stored is None)
                assert stored is None or (same(kept, stored) and same(wanted, stored))
            await until(lambda: len(heard["script"]) >= len(heard["rule"]))
            await ask(script.get, key)  # notices travel ahead of this
            assert heard["script"] == heard["rule"]

    run(story)
