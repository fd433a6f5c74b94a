"""Who is asked, who is not asked any more, and what is left of an event loop that ended."""

from __future__ import annotations

import asyncio
import gc
import os
from typing import Any

from coatcheck.stores.take_once.opening import items_in_memory
from coatcheck.take_once.port import TakeOnceFull, TakeOncePlace, TakeOnceUnavailable
from coatcheck.tls.breaker import FAILURES_IN_A_ROW
from coatcheck.tls.repository import SessionRepository
from coatcheck.tls.session_id import store_tag

TAG = store_tag("store")
KEY, NONCE = b"k" * 32, b"n" * 16


class Hung:
    """Whatever is sent to it is gone; what is asked is not answered."""

    name = "store"

    def __init__(self, why: type[TakeOnceUnavailable] = TakeOnceUnavailable) -> None:
        self.asked = 0
        self._why = why

    def put(self, *_: Any) -> bool:
        raise self._why("full, or silent")

    def hand_over(self, *_: Any) -> None:
        if self._why is TakeOnceFull:
            raise self._why("full")

    def take(self, *_: Any) -> bytes | None:
        self.asked += 1
        if self._why is TakeOnceFull:
            return None
        raise self._why("silent")

    def purge(self, *_: Any) -> bool:
        return False

    def check(self, limit_s: float) -> bool:
        return False

    def settle(self) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None: ...


def repository_of(store: Hung) -> SessionRepository:
    def no_loop() -> Any:
        raise AssertionError

    made = SessionRepository(lambda: [TakeOncePlace("store", lambda: store, no_loop)], store_tag, put_limit_s=1.0)
    made.start()
    return made


def test_what_is_sent_to_a_store_that_hangs_is_no_sign_of_life() -> None:
    store = Hung()
    repository = repository_of(store)
    for _ in range(20):
        try:
            repository.take(TAG, KEY, NONCE, 1.0)
        except TakeOnceUnavailable:
            pass
        repository.put(TAG, KEY, b"item", 1000)
    assert store.asked == FAILURES_IN_A_ROW
    assert repository.place() is None


def test_a_store_without_room_is_asked_for_what_it_has() -> None:
    store = Hung(TakeOnceFull)
    repository = repository_of(store)
    for _ in range(20):
        repository.put(TAG, KEY, b"item", 1000)
        assert repository.take(TAG, KEY, NONCE, 1.0) is None
    assert (store.asked, repository.dropped) == (20, 20)


def test_nothing_is_left_of_a_loop_that_ended_without_closing() -> None:
    repository = SessionRepository(lambda: [items_in_memory("store")], store_tag, put_limit_s=1.0)
    repository.start()
    for _ in range(3):
        asyncio.run(repository.open_here())
        gc.collect()
    assert len(repository._loops) == 1
    assert repository.status() == {"store": True}
    assert not repository._loops


def test_a_loop_that_gave_up_opening_holds_nothing() -> None:
    class Slow:
        name = "store"
        reachable = False
        closed = False

        async def open(self) -> None:
            await asyncio.sleep(60)

        async def aclose(self) -> None:
            Slow.closed = True

    place: Any = TakeOncePlace("store", lambda: Hung(), Slow)  # type: ignore[arg-type, return-value]
    repository = SessionRepository(lambda: [place], store_tag, put_limit_s=1.0)
    repository.start()

    async def story() -> None:
        opening = asyncio.create_task(repository.open_here())
        await asyncio.sleep(0.01)
        opening.cancel()
        await asyncio.gather(opening, return_exceptions=True)
        assert not repository._loops

    asyncio.run(story())
    assert Slow.closed


def test_a_forked_process_has_stores_of_its_own() -> None:
    repository = SessionRepository(lambda: [items_in_memory("store")], store_tag, put_limit_s=1.0)
    repository.start()
    repository.put(TAG, KEY, b"item", 10_000)
    read, write = os.pipe()
    if not (child := os.fork()):
        found = repository.take(TAG, KEY, NONCE, 1.0)
        os.write(write, b"nothing" if found is None else b"the item")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 100) == b"nothing"
    assert repository.take(TAG, KEY, NONCE, 1.0) == b"item"
