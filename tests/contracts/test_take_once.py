"""What every store of items that may be taken once promises: :mod:`coatcheck.take_once.port`."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import signal
import sqlite3
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store_backends import RedisBackend, SessionServerBackend, run, until
from take_once_backends import (
    ITEM_BACKENDS,
    InThreads,
    ItemBackend,
    RedisItemBackend,
    ServedItemBackend,
    SessionServerItemBackend,
    client_of,
    start_taker,
)

from coatcheck.stores.take_once.sqlite import SqliteItems, SqliteItemsForThreads
from coatcheck.take_once.port import TakeOnceStore, TakeOnceUnavailable
from coatcheck.take_once.rule import MAX_ITEM_BYTES, MAX_LIFE_MS, PURGED_BY
from coatcheck.take_once.table import ItemTable

LIFE_MS = 60_000
PROCESSES, TAKERS, ITEMS = 4, 250, 3
"""1,000 takers of each item, in four processes."""


SIDES = [
    pytest.param((kind, in_threads), id=f"{kind}-{'threads' if in_threads else 'loop'}")
    for kind in ITEM_BACKENDS
    for in_threads in (False, True)
]
"""Each store, as event loops have it and as threads have it."""


@pytest.fixture(scope="module", params=SIDES)
def backend(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ItemBackend]:
    kind, in_threads = request.param
    backend = ITEM_BACKENDS[kind](tmp_path_factory.mktemp(kind), in_threads)
    backend.start()
    yield backend
    backend.stop()


@contextlib.asynccontextmanager
async def opened(*stores: TakeOnceStore) -> AsyncIterator[TakeOnceStore]:
    for store in stores:
        await store.open()
    try:
        await until(lambda: all(store.reachable for store in stores))
        yield stores[0]
    finally:
        for store in stores:
            await store.aclose()


def key() -> bytes:
    return secrets.token_bytes(32)


def nonce() -> bytes:
    return secrets.token_bytes(16)


def test_what_was_put_is_taken_once(backend: ItemBackend) -> None:
    async def story() -> None:
        first, second = backend.client(), backend.client()
        async with opened(first, second):
            place = key()
            assert await first.put(place, b"\x00item\r\n\xff", LIFE_MS)
            assert await second.take(place, nonce()) == b"\x00item\r\n\xff"
            assert await first.take(place, nonce()) is None
            assert await second.take(place, nonce()) is None

    run(story)


def test_what_was_never_stored_is_refused_and_stays_free(backend: ItemBackend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            place = key()
            assert await store.take(place, nonce()) is None
            assert await store.put(place, b"item", LIFE_MS, after=nonce()) is False
            assert await store.purge(place) is False
            assert await store.put(place, b"item", LIFE_MS)
            assert await store.take(place, nonce()) == b"item"

    run(story)


def test_the_same_nonce_may_ask_again_and_no_other(backend: ItemBackend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            place, winner = key(), nonce()
            await store.put(place, b"item", LIFE_MS)
            assert [await store.take(place, winner) for _ in range(3)] == [b"item"] * 3
            assert await store.take(place, nonce()) is None

    run(story)


def test_nothing_is_put_over_an_item_nor_over_its_mark(backend: ItemBackend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            place = key()
            assert await store.put(place, b"item", LIFE_MS)
            assert not await store.put(place, b"other", LIFE_MS)
            assert await store.take(place, nonce()) == b"item"
            assert not await store.put(place, b"item", LIFE_MS), "the mark stays"
            assert await store.take(place, nonce()) is None

    run(story)


def test_only_its_taker_puts_an_item_back_and_once(backend: ItemBackend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            place, first, second = key(), nonce(), nonce()
            await store.put(place, b"item", LIFE_MS)
            assert not await store.put(place, b"mine", LIFE_MS, after=first), "it was not taken"
            assert await store.take(place, first) == b"item"
            assert not await store.put(place, b"mine", LIFE_MS, after=second)
            assert await store.put(place, b"moved", LIFE_MS, after=first)
            assert not await store.put(place, b"again", LIFE_MS, after=first)
            assert await store.take(place, second) == b"moved"
            assert await store.take(place, first) is None

    run(story)


def test_what_was_purged_is_taken_by_nobody_and_not_put_back(backend: ItemBackend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            free, held, holder = key(), key(), nonce()
            for place in (free, held):
                await store.put(place, b"item", LIFE_MS)
            await store.take(held, holder)
            assert await store.purge(free)
            assert await store.purge(held)
            assert await store.take(free, nonce()) is None
            assert await store.take(held, holder) is None, "its own taker neither"
            assert not await store.put(held, b"item", LIFE_MS, after=holder)
            assert not await store.put(free, b"item", LIFE_MS)

    run(story)


def test_items_expire_and_so_do_their_marks(backend: ItemBackend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            left, lost = key(), key()
            for place in (left, lost):
                await store.put(place, b"item", 150)
            assert await store.take(lost, nonce()) == b"item"
            await asyncio.sleep(0.3)
            assert await store.take(left, nonce()) is None
            assert await store.put(lost, b"item", LIFE_MS)

    run(story)


def test_the_largest_item_and_the_longest_life_are_kept(backend: ItemBackend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            place, item = key(), secrets.token_bytes(MAX_ITEM_BYTES)
            assert await store.put(place, item, MAX_LIFE_MS)
            assert await store.take(place, nonce()) == item

    run(story)


@pytest.mark.parametrize(
    "wrong",
    [
        ("put", b"short", b"item", 1),
        ("put", bytes(32), b"", 1),
        ("put", bytes(32), bytes(MAX_ITEM_BYTES + 1), 1),
        ("put", bytes(32), b"item", 0),
        ("put", bytes(32), b"item", MAX_LIFE_MS + 1),
        ("put", bytes(32), b"item", 1, b"short"),
        ("take", b"short", b"n" * 16),
        ("take", bytes(32), b""),
        ("take", bytes(32), PURGED_BY),
        ("purge", b"short"),
    ],
    ids=lambda wrong: "-".join(str(len(part)) if isinstance(part, bytes) else str(part) for part in wrong),
)
def test_arguments_that_make_no_sense_are_refused(backend: ItemBackend, wrong: tuple[object, ...]) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            with pytest.raises(ValueError, match=r"bytes|lives"):
                await getattr(store, str(wrong[0]))(*wrong[1:])

    run(story)


def test_of_a_thousand_takers_in_four_processes_one_wins(tmp_path_factory: pytest.TempPathFactory) -> None:
    """For each store that several processes can reach."""
    for kind, make in ITEM_BACKENDS.items():
        if not make.shared:
            continue
        backend = make(tmp_path_factory.mktemp(kind))
        backend.start()
        try:
            assert _race(backend) == dict.fromkeys(range(ITEMS), 1), kind
        finally:
            backend.stop()


def _race(backend: ItemBackend) -> dict[int, int]:
    """How many takers won each item, and that each of them got it whole."""

    async def put_all() -> None:
        async with opened(backend.client()) as store:
            for item in range(ITEMS):
                assert await store.put(b"%032d" % item, b"item", LIFE_MS * 10)

    run(put_all)
    takers = [start_taker(backend, number, TAKERS, ITEMS) for number in range(PROCESSES)]
    won: Counter[int] = Counter()
    for taker in takers:
        assert taker.stdout is not None
        assert taker.stdout.readline() == "ready\n"
    for taker in takers:
        assert taker.stdin is not None
        taker.stdin.write("go\n")
        taker.stdin.flush()
    for taker in takers:
        said, _ = taker.communicate(timeout=300)
        assert taker.returncode == 0
        for line in said.splitlines():
            item, winners, whole = map(int, line.split())
            assert winners == whole
            won[item] += winners
    return dict(won)


def test_of_a_thousand_takers_in_one_process_one_wins(backend: ItemBackend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            place = key()
            await store.put(place, b"item", LIFE_MS)
            answers = await asyncio.gather(*[store.take(place, nonce()) for _ in range(1000)])
            assert answers.count(b"item") == 1
            assert answers.count(None) == 999

    run(story)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "back", "take", "take", "purge"]),
        st.integers(0, 1),
        st.sampled_from([b"1" * 16, b"2" * 16]),
    ),
    max_size=12,
)


@given(stories=st.lists(STEPS, min_size=1, max_size=4))
@settings(max_examples=25)
def test_generated_stories_end_alike_everywhere(
    backend: ItemBackend, stories: list[list[tuple[str, int, bytes]]]
) -> None:
    """The scripts, SQLite and the session server are held to the table, which runs the rule."""

    async def story() -> None:
        async with opened(backend.client()) as store:
            table, places = ItemTable(), [key(), key()]
            for number, (step, at, who) in enumerate(step for steps in stories for step in steps):
                place, item = places[at], b"%d" % number
                match step:
                    case "put":
                        said = await store.put(place, item, LIFE_MS), table.put(place, item, LIFE_MS, b"", 0)
                    case "back":
                        said = await store.put(place, item, LIFE_MS, who), table.put(place, item, LIFE_MS, who, 0)
                    case "take":
                        taken = await store.take(place, who), table.take(place, who, 0)
                        assert taken[0] == taken[1]
                        continue
                    case _:
                        said = await store.purge(place), table.purge(place, 0)
                assert said[0] == said[1], (number, step)

    run(story)


@pytest.mark.parametrize("backend", [side for side in SIDES if "threads" in str(side.id)], indirect=True)
def test_what_is_handed_over_is_stored_and_refusals_are_counted(backend: ItemBackend) -> None:
    """In threads: items are handed over, and the next question is asked on the same connection."""

    async def story() -> None:
        async with opened(backend.client()) as client:
            assert isinstance(client, InThreads)
            store, places = client.store, [key() for _ in range(10)]
            for number, place in enumerate(places):
                store.hand_over(place, b"item %d" % number, LIFE_MS, b"", 5.0)
            store.hand_over(places[0], b"second", LIFE_MS, b"", 5.0)
            taken = [store.take(place, nonce(), 5.0) for place in places]
            assert taken == [b"item %d" % number for number in range(10)]
            store.hand_over(places[0], b"third", LIFE_MS, b"", 5.0)
            store.check(5.0)
            unanswered, refused = store.settle()
            assert unanswered == 0
            assert refused == 2

    run(story)


def test_who_proposes_first_decides_for_all(backend: ItemBackend) -> None:
    async def story() -> None:
        first, second = backend.client(), backend.client()
        async with opened(first, second):
            place = key()
            proposals = [b"\x00%d\r\n" % number for number in range(20)]
            said = await asyncio.gather(
                *[
                    (first, second)[number % 2].agree(place, proposal, LIFE_MS)
                    for number, proposal in enumerate(proposals)
                ]
            )
            assert len(set(said)) == 1
            assert said[0] in proposals
            assert await second.agree(place, b"late", LIFE_MS) == said[0]
            assert await second.agree(key(), b"late", LIFE_MS) == b"late"
            assert await first.take(place, nonce()) is None, "it is no item"
            assert await first.put(place, b"item", LIFE_MS)
            assert await second.agree(place, b"late", LIFE_MS) == said[0]

    run(story)


def test_an_agreement_is_replaced_by_who_knows_it_and_by_nobody_else(backend: ItemBackend) -> None:
    """Of many that replace one value, one does; the others hear of it."""

    async def story() -> None:
        first, second = backend.client(), backend.client()
        async with opened(first, second):
            place = key()
            assert await first.agree(place, b"old", LIFE_MS) == b"old"
            assert await first.agree(place, b"wrong", LIFE_MS, b"older") == b"old"
            proposals = [b"new-%d" % number for number in range(20)]
            said = await asyncio.gather(
                *[
                    (first, second)[number % 2].agree(place, proposal, LIFE_MS, b"old")
                    for number, proposal in enumerate(proposals)
                ]
            )
            assert len(set(said)) == 1
            assert said[0] in proposals
            assert await second.agree(place, said[0], LIFE_MS, b"old") == said[0], "an answer that was lost"
            assert await second.agree(place, b"old", LIFE_MS) == said[0]
            assert await second.agree(key(), b"first", LIFE_MS, b"old") == b"first"

    run(story)


def test_an_agreement_ends_with_its_life(backend: ItemBackend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            place = key()
            assert await store.agree(place, b"one", 50) == b"one"
            await asyncio.sleep(0.2)
            assert await store.agree(place, b"two", LIFE_MS) == b"two"
            for wrong in (b"", b"x" * (MAX_ITEM_BYTES + 1)):
                with pytest.raises(ValueError, match="bytes"):
                    await store.agree(place, wrong, LIFE_MS)

    run(story)


@pytest.mark.parametrize("kind", ["session-server", "redis"])
def test_a_late_answer_to_what_was_handed_over_is_no_answer_to_a_question(kind: str, tmp_path: Path) -> None:
    backend = {"session-server": SessionServerItemBackend, "redis": RedisItemBackend}[kind](tmp_path, True)
    backend.start()

    async def story() -> None:
        async with opened(backend.client()) as client:
            assert isinstance(client, InThreads)
            place = key()
            backend.server.signal(signal.SIGSTOP)
            client.store.hand_over(place, b"item", LIFE_MS, b"", 5.0)
            asked = asyncio.create_task(client.take(place, nonce()))
            await asyncio.sleep(0.1)
            assert not asked.done()
            backend.server.signal(signal.SIGCONT)
            assert await asyncio.gather(asked, return_exceptions=True) == [b"item"]

    try:
        run(story)
    finally:
        backend.stop()


both_sides = pytest.mark.parametrize("in_threads", [False, True], ids=["loop", "threads"])


@both_sides
@pytest.mark.parametrize("kind", ["session-server", "redis"])
def test_a_server_that_is_gone_is_an_error_and_one_that_is_back_refuses(
    kind: str, in_threads: bool, tmp_path: Path
) -> None:
    """It was restarted empty: it cannot know what was taken, so nothing stored is refused."""
    backend = {"session-server": SessionServerItemBackend, "redis": RedisItemBackend}[kind](tmp_path)
    backend.start()

    async def story() -> None:
        async with opened(client_of(kind, backend.place(), 1.0, in_threads)) as store:
            place = key()
            assert await store.put(place, b"item", LIFE_MS)
            backend.server.kill()
            with pytest.raises(TakeOnceUnavailable):
                await store.take(place, nonce())
            with pytest.raises(TakeOnceUnavailable):
                await store.put(key(), b"item", LIFE_MS)
            await until(lambda: not store.reachable)
            backend.start()
            await until(lambda: store.reachable)
            assert await store.take(place, nonce()) is None

    try:
        run(story)
    finally:
        backend.stop()


class PersistentRedis(RedisBackend):
    """One that comes back from its snapshot with older data."""

    def command(self) -> list[str]:
        words = super().command()
        words[words.index("--save") + 1] = "3600 1000000"
        return words


class PersistentRedisItemBackend(RedisItemBackend):
    server_type = PersistentRedis


@both_sides
def test_a_redis_that_comes_back_with_older_data_gives_nothing_out_twice(tmp_path: Path, in_threads: bool) -> None:
    backend = PersistentRedisItemBackend(tmp_path)
    backend.start()
    server = backend.server
    assert isinstance(server, RedisBackend)

    async def story() -> None:
        async with opened(client_of("redis", backend.place(), 1.0, in_threads)) as store:
            place = key()
            assert await store.put(place, b"item", LIFE_MS)
            assert server.raw(b"SAVE").startswith(b"+OK")
            assert await store.take(place, nonce()) == b"item"
            server.kill()
            await until(lambda: not store.reachable)
            backend.start()
            await until(lambda: store.reachable)
            assert server.raw(b"DBSIZE").startswith(b":1"), "the snapshot has the item"
            assert await store.take(place, nonce()) is None

    try:
        run(story)
    finally:
        backend.stop()


@both_sides
def test_a_redis_that_has_forgotten_the_scripts_is_given_them_again(tmp_path: Path, in_threads: bool) -> None:
    backend = RedisItemBackend(tmp_path, in_threads)
    backend.start()
    server = backend.server
    assert isinstance(server, RedisBackend)

    async def story() -> None:
        async with opened(backend.client()) as store:
            server.raw(b"SCRIPT", b"FLUSH")
            assert await store.put(place := key(), b"item", LIFE_MS)
            server.raw(b"SCRIPT", b"FLUSH")
            assert await store.take(place, nonce()) == b"item"

    try:
        run(story)
    finally:
        backend.stop()


def test_items_of_another_boot_of_the_machine_are_dropped(tmp_path: Path) -> None:
    """A power cut may have lost the last takes, so nothing from before it can be taken."""

    def store(boot: str) -> SqliteItems:
        items = SqliteItemsForThreads("sqlite", tmp_path / "items.db", time.time, boot=lambda: boot)
        return SqliteItems(items, timeout_s=20.0)

    async def story() -> None:
        place = key()
        async with opened(store("monday")) as before:
            await before.put(place, b"item", LIFE_MS)
        async with opened(store("monday")) as same:
            assert await same.take(place, winner := nonce()) == b"item"
            assert await same.put(place, b"item", LIFE_MS, after=winner)
        async with opened(store("tuesday")) as after:
            assert await after.take(place, nonce()) is None

    run(story)


def test_a_file_of_another_program_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "items.db"
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE theirs (x)")

    async def story() -> None:
        store = SqliteItems(SqliteItemsForThreads("sqlite", path, time.time))
        await store.open()
        assert not store.reachable
        with pytest.raises(TakeOnceUnavailable, match="no store of items"):
            await store.put(key(), b"item", LIFE_MS)
        await store.aclose()

    run(story)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT name FROM sqlite_master").fetchall() == [("theirs",)]


def test_a_session_servers_items_are_no_entries_and_bounded(tmp_path: Path) -> None:
    backend = SessionServerItemBackend(tmp_path)
    backend.start()
    assert isinstance(backend, ServedItemBackend)

    async def story() -> None:
        async with opened(backend.client()) as items, entries_of(backend.server) as entries:
            place = key()
            await items.put(place, b"item", LIFE_MS)
            pages: list[object] = []
            entries.scan(0, 1000, pages.append)
            found: list[object] = []
            entries.get(place[:16], found.append)
            await until(lambda: pages and found)
            assert pages == [(0, [])]
            assert found == [None]

    try:
        run(story)
    finally:
        backend.stop()


@contextlib.asynccontextmanager
async def entries_of(server: object) -> AsyncIterator[object]:
    assert isinstance(server, SessionServerBackend)
    store = server.client()
    await store.open()
    await until(lambda: store.reachable)
    yield store
    await store.aclose()
