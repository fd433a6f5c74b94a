"""The contract of the store port: every adapter takes this one suite, against real files and processes."""

from __future__ import annotations

import asyncio
import time
from functools import partial

import pytest
from store_backends import (
    OWNER_A,
    OWNER_B,
    Backend,
    ask,
    entry,
    new_key,
    opened,
    run,
    same,
    until,
    version,
)

from coatcheck.replication.entry import HEAD_BYTES, MAX_ENTRY_BYTES, Entry
from coatcheck.replication.notice import Notice, decode_message
from coatcheck.replication.version import MAX_HISTORY, PACKED_BYTES
from coatcheck.stores.events import StoreEventKind
from coatcheck.stores.port import ACCEPTED, Refused, Unreachable

V1 = version(1)
V1_NEXT = version(1, seq=1)
V2 = version(2)
RIVAL = version(1, OWNER_B)
TAKEN = version(2, OWNER_B)


def test_a_server_tells_its_own_time_and_a_local_store_has_none(backend: Backend) -> None:
    told: list[tuple[str, float, float]] = []
    watched: list[bool] = []

    async def watch() -> None:
        store = backend.client()
        watched.append(store.watch_clock(lambda *reading: told.append(reading)))
        async with opened(store):
            if watched[0]:
                await until(lambda: len(told) >= 2)

    run(watch)
    assert watched == [backend.networked]
    for name, round_trip_s, unix_ms in told:
        assert name
        assert 0 <= round_trip_s <= 1
        assert abs(unix_ms / 1000 - time.time()) < 60


def test_nothing_stored_is_none(backend: Backend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            assert await ask(store.get, new_key()) is None

    run(story)


def test_any_bytes_may_be_keys_and_payloads(backend: Backend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            for key in (bytes(16), b"\xff" * 16, b"\r\n$16\r\n*1\r\n*[?]\\", b"{}%d%s\x00\x0a:;'-.*?]"):
                for payload in (b"", bytes(range(256)), b"\r\n-ERR\r\n"):
                    put = Entry(V1, (), False, 60_000, payload)
                    seen = await ask(store.get, key)
                    assert await ask(store.put, key, seen and seen.version, put) == ACCEPTED
                    assert same(await ask(store.get, key), put)

    run(story)


def test_wrong_keys_are_refused_by_an_error(backend: Backend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            for key in (b"", b"short", b"x" * 17):
                with pytest.raises(ValueError, match="16 bytes"):
                    store.get(key, pytest.fail)
                with pytest.raises(ValueError, match="16 bytes"):
                    store.put(key, None, entry(V1), pytest.fail)

    run(story)


def test_an_entry_expires_and_says_how_long_it_has(backend: Backend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            key = new_key()
            assert await ask(store.put, key, None, entry(V1, life_ms=60_000)) == ACCEPTED
            first = await ask(store.get, key)
            assert 0 < first.expires_in_ms <= 60_000
            await asyncio.sleep(0.1)
            later = await ask(store.get, key)
            assert 0 < later.expires_in_ms <= first.expires_in_ms - 80
            key, began = new_key(), time.monotonic()
            assert await ask(store.put, key, None, entry(V1, life_ms=300)) == ACCEPTED
            while await ask(store.get, key) is not None:
                assert time.monotonic() - began < 20
                await asyncio.sleep(0.02)
            assert time.monotonic() - began > 0.28, "not before its time"
            assert await ask(store.put, key, V1, entry(V1_NEXT)) == Refused(None)
            assert await ask(store.put, key, None, entry(RIVAL)) == ACCEPTED, "it leaves no trace"

    run(story)


def test_a_put_renews_the_life_and_a_refused_one_does_not(backend: Backend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            key = new_key()
            await ask(store.put, key, None, entry(V1, life_ms=20_000))
            assert isinstance(await ask(store.put, key, None, entry(TAKEN, life_ms=90_000)), Refused)
            assert (await ask(store.get, key)).expires_in_ms <= 20_000
            assert await ask(store.put, key, V1, entry(V1_NEXT, life_ms=90_000)) == ACCEPTED
            assert (await ask(store.get, key)).expires_in_ms > 60_000
            assert await ask(store.put, key, None, entry(version(1, seq=2), life_ms=5_000)) == ACCEPTED
            assert (await ask(store.get, key)).expires_in_ms <= 5_000, "a shorter life counts too"

    run(story)


@pytest.mark.parametrize("life_ms", [0, -5, 2**62])
def test_lives_out_of_range_are_bounded(backend: Backend, life_ms: int) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            key = new_key()
            assert await ask(store.put, key, None, entry(V1, life_ms=life_ms)) == ACCEPTED
            await asyncio.sleep(0.02)
            found = await ask(store.get, key)
            assert found is None if life_ms <= 0 else found.expires_in_ms > 10**9

    run(story)


def test_notices_go_to_the_old_owner(backend: Backend) -> None:
    async def story() -> None:
        writer = backend.client()
        listener = backend.client() if backend.shares_notices else writer
        heard: list[bytes] = []
        async with opened(writer, listener):
            listener.subscribe(OWNER_A[:3], heard.append)
            listener.subscribe(OWNER_B[:3], lambda message: heard.append(b"to B: " + message))
            await ask(listener.get, new_key())  # subscriptions travel ahead of this
            key = new_key()
            await ask(writer.put, key, None, entry(V1))
            await ask(writer.put, key, V1, entry(V1_NEXT))
            assert await ask(writer.put, key, V1_NEXT, entry(TAKEN)) == ACCEPTED
            assert isinstance(await ask(writer.put, key, V1, entry(V1)), Refused)
            assert await ask(writer.put, key, None, entry(TAKEN, closed=True)) == ACCEPTED
            assert await ask(writer.put, key, None, entry(TAKEN, closed=True)) == ACCEPTED
            await until(lambda: len(heard) >= 2)
            await asyncio.sleep(0.05)
            assert decode_message(heard[0]) == Notice(key, TAKEN, closed=False)
            assert decode_message(heard[1].removeprefix(b"to B: ")) == Notice(key, TAKEN, closed=True)
            assert len(heard) == 2, "writes of the same owner, refused puts and repeats are no news"
            lapsed = new_key()
            await ask(writer.put, lapsed, None, entry(V1))
            assert await ask(writer.put, lapsed, V1, entry(TAKEN, lapsed=True)) == ACCEPTED
            await until(lambda: len(heard) >= 3)
            assert decode_message(heard[2]) == Notice(lapsed, TAKEN, closed=True)

    run(story)


def test_notices_go_to_those_that_the_writer_names(backend: Backend) -> None:
    """By the step that stores the entry, once each, where it is taken: also where nothing was stored."""

    async def story() -> None:
        writer = backend.client()
        listener = backend.client() if backend.shares_notices else writer
        heard: list[tuple[str, bytes]] = []
        async with opened(writer, listener):
            listener.subscribe(OWNER_A[:3], lambda message: heard.append(("A", message)))
            listener.subscribe(OWNER_B[:3], lambda message: heard.append(("B", message)))
            await ask(listener.get, new_key())  # subscriptions travel ahead of this
            key = new_key()
            both = partial(writer.put, notify=OWNER_A[:3] + OWNER_B[:3])
            assert await ask(both, key, None, entry(V1)) == ACCEPTED
            await until(lambda: len(heard) >= 2)
            assert await ask(both, key, V1, entry(TAKEN)) == ACCEPTED
            await until(lambda: len(heard) >= 4)
            assert isinstance(await ask(both, key, V1, entry(V1)), Refused)
            await asyncio.sleep(0.05)
            first, second = Notice(key, V1, closed=False), Notice(key, TAKEN, closed=False)
            told = [(who, decode_message(raw)) for who, raw in heard]
            assert told == [("A", first), ("B", first), ("A", second), ("B", second)]

    run(story)


def test_messages_reach_every_subscriber_of_the_server_id_only(backend: Backend) -> None:
    async def story() -> None:
        sender = backend.client()
        listener = backend.client() if backend.shares_notices else sender
        heard: list[tuple[int, bytes]] = []

        def broken(message: bytes) -> None:
            raise RuntimeError("a listener's fault")

        async with opened(sender, listener):
            listener.subscribe(b"\x00\r\n", broken)
            listener.subscribe(b"\x00\r\n", lambda message: heard.append((1, message)))
            listener.subscribe(b"\x00\r\n", lambda message: heard.append((2, message)))
            listener.subscribe(b"xyz", lambda message: heard.append((3, message)))
            await ask(listener.get, new_key())
            sender.publish(b"\x00\r\n", b"\x00\x01\r\n")
            sender.publish(b"not", b"heard")
            await until(lambda: len(heard) >= 2)
            await asyncio.sleep(0.05)
            assert sorted(heard) == [(1, b"\x00\x01\r\n"), (2, b"\x00\x01\r\n")]

    run(story)


def test_scan_finds_every_key(backend: Backend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            keys = {new_key() for _ in range(300)}
            for key in keys:
                await ask(store.put, key, None, entry(V1, closed=key[0] % 2 == 0))
            gone = new_key()
            await ask(store.put, gone, None, entry(V1, life_ms=1))
            await asyncio.sleep(0.02)
            found: list[bytes] = []
            cursor, pages = 0, 0
            while True:
                cursor, page = await ask(store.scan, cursor, 50)
                found += page
                pages += 1
                if cursor == 0:
                    break
                assert pages < 1000
            assert keys <= set(found)
            assert gone not in found
            assert pages >= 4, "a limit is kept, more or less"

    run(story)


@pytest.mark.parametrize(
    "raw", [b"x", b"\x02" + bytes(40), b"\x01\x07" + bytes(40), b"\x01\x00" + bytes(16) + b"\xff", bytes(500)]
)
def test_corrupt_stored_bytes_are_unreachable_and_reported(backend: Backend, raw: bytes) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            key, other = new_key(), new_key()
            await ask(store.put, key, None, entry(V1))
            await ask(store.put, other, None, entry(V1))
            if not backend.corrupt(key, raw):
                return  # the session server checks every put: nobody can store such bytes (see tests/stores)
            backend.events.clear()
            assert isinstance(await ask(store.get, key), Unreachable)
            assert [event.kind for event in backend.events] == [StoreEventKind.CORRUPT_ENTRY]
            if raw[:2] != b"\x01\x00":  # a script looks no further than the version
                assert isinstance(await ask(store.put, key, V1, entry(V1_NEXT)), Unreachable)
            assert same(await ask(store.get, other), entry(V1)), "the others are well"
            assert store.reachable

    run(story)


def test_of_rivals_that_saw_the_same_exactly_one_wins(backend: Backend) -> None:
    async def story() -> None:
        clients = [backend.client() for _ in range(4)]
        async with opened(*clients):
            for round_number in range(15):
                key = new_key()
                seen = None
                if round_number % 2:
                    seen = V1
                    await ask(clients[0].put, key, None, entry(V1))
                offers = [entry(version(2, b"owner-%02d" % at)) for at in range(8)]
                answers = await asyncio.gather(
                    *[ask(clients[at % 4].put, key, seen, offer) for at, offer in enumerate(offers)]
                )
                winners = [o for o, answer in zip(offers, answers, strict=True) if answer == ACCEPTED]
                assert len(winners) == 1
                for answer in answers:
                    assert answer == ACCEPTED or same(answer.stored, winners[0])
                assert same(await ask(clients[1].get, key), winners[0])

    run(story)


def test_calls_of_one_client_are_kept_in_order(backend: Backend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            key = new_key()
            puts = [ask(store.put, key, None, entry(version(1, seq=seq))) for seq in range(500)]
            assert set(await asyncio.gather(*puts)) == {ACCEPTED}
            assert (await ask(store.get, key)).version.seq == 499

    run(story)


def test_the_largest_entry_is_kept_and_a_larger_one_clearly_refused(backend: Backend) -> None:
    async def story() -> None:
        async with opened(backend.client()) as store:
            history = tuple(version(epoch) for epoch in range(MAX_HISTORY))
            head = HEAD_BYTES + MAX_HISTORY * PACKED_BYTES
            payload = bytes(range(256)) * (MAX_ENTRY_BYTES // 256)
            largest = Entry(V1, history, False, 60_000, payload[: MAX_ENTRY_BYTES - head])
            key = new_key()
            assert await ask(store.put, key, None, largest) == ACCEPTED
            assert same(await ask(store.get, key), largest)
            assert same((await ask(store.put, key, None, entry(TAKEN))).stored, largest)
            larger = Entry(V1_NEXT, history, False, 60_000, largest.payload + b"x")
            refused = await ask(store.put, key, V1, larger)
            assert isinstance(refused, Unreachable)
            assert str(MAX_ENTRY_BYTES) in refused.why
            too_old = Entry(V1_NEXT, (*history, V1_NEXT), False, 60_000, b"")
            assert isinstance(await ask(store.put, key, V1, too_old), Unreachable)
            assert same(await ask(store.get, key), largest), "nothing is lost"
            assert store.reachable

    run(story)


def test_closing_answers_what_is_outstanding_and_later_calls(backend: Backend) -> None:
    async def story() -> None:
        store = backend.client()
        await store.open()
        replies: list[object] = []
        for _ in range(20):
            store.put(new_key(), None, entry(V1), replies.append)
            store.get(new_key(), replies.append)
        await store.aclose()
        await asyncio.sleep(0.05)
        assert len(replies) == 40
        assert all(reply in (ACCEPTED, None) or isinstance(reply, Unreachable) for reply in replies)
        assert store.reachable is False
        for method, arguments in ((store.get, [new_key()]), (store.scan, [0, 10])):
            assert isinstance(await ask(method, *arguments), Unreachable)
        assert isinstance(await ask(store.put, new_key(), None, entry(V1)), Unreachable)
        store.publish(b"abc", b"nobody hears this")
        await store.aclose()

    run(story)


def test_watchers_hear_of_opening_and_closing(backend: Backend) -> None:
    async def story() -> None:
        store = backend.client()
        changes: list[tuple[str, bool]] = []
        store.watch(lambda name, reachable: changes.append((name, reachable)))
        await store.open()
        await store.aclose()
        assert changes == [(store.name, True), (store.name, False)]

    run(story)
