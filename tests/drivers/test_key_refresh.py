"""A key that is not known here is asked about, once for all who want to know; floods of made-up keys cost nothing."""

from __future__ import annotations

import asyncio
import os
import time
from base64 import urlsafe_b64encode

from coatcheck.drivers.key_refresh import KeyRefresh
from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import SessionUnavailable, TokenRejected, UnavailableReason
from coatcheck.host_clock import HeldClock
from coatcheck.stores.memory import MemoryStore
from coatcheck.tokens.freshness import ASK_EVERY_S, MAX_WAITING
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import TOKEN_CHARS

OLD, NEW = (bytes([number]) + bytes(range(31)) for number in (1, 2))
FORGED = [os.urandom(4) for _ in range(2000)]


def cookie(text: bytes) -> bytes:
    return b"coatcheck=" + text


def forged(identity: bytes) -> bytes:
    return cookie(urlsafe_b64encode(b"\x01" + identity + os.urandom(TOKEN_CHARS * 3 // 4 - 5)))


class Server:
    """A web server whose source of keys is here."""

    def __init__(self, store: MemoryStore, keys: tuple[bytes, ...], primary: int = 0, is_heard: bool = True) -> None:
        self.asked = 0
        self.newest = (keys, primary)
        self.is_heard = is_heard
        self.sessions = Sessions(
            farm="farm", server_name="web", stores=[store], ring=KeyRing(keys, primary), copies=1, in_memory=True,
            refresh_keys=self._refresh,
        )  # fmt: skip

    async def _refresh(self) -> bool:
        self.asked += 1
        await asyncio.sleep(0.01)
        if self.is_heard:
            self.sessions.change_keys(*self.newest)
        return self.is_heard


async def begun(server: Server) -> bytes:
    opened = await server.sessions.open(b"")
    opened.session["name"] = "ada"
    answer = await server.sessions.finish(opened)
    return next(value for _, value in answer.headers if value.startswith(b"coatcheck=")).partition(b";")[0]


async def name_shown(server: Server, header: bytes) -> object:
    return (await server.sessions.open(header)).session.get("name")


def test_who_learns_late_asks_once_and_opens_the_token_and_the_copy() -> None:
    async def story() -> None:
        store = MemoryStore("store", HeldClock().now_s)
        ahead, late = (
            Server(store, (OLD, NEW), 1),
            Server(MemoryStore("store", HeldClock().now_s, beside=store), (OLD,)),
        )
        await ahead.sessions.start()
        await late.sessions.start()
        shown = await begun(ahead)
        late.newest = ((OLD, NEW), 1)
        names = await asyncio.gather(*(name_shown(late, shown) for _ in range(20)))
        assert names == ["ada"] * 20
        assert late.asked == 1
        await ahead.sessions.aclose()
        await late.sessions.aclose()

    asyncio.run(story())


def test_a_copy_that_a_newer_key_sealed_is_asked_about_and_never_taken_for_lost() -> None:
    async def story() -> None:
        store = MemoryStore("store", HeldClock().now_s)
        beside = MemoryStore("store", HeldClock().now_s, beside=store)
        ahead, late = Server(store, (OLD, NEW)), Server(beside, (OLD,))
        await ahead.sessions.start()
        await late.sessions.start()
        shown = await begun(ahead)  # sealed with the old key
        ahead.sessions.change_keys((OLD, NEW), 1)
        opened = await ahead.sessions.open(shown)
        opened.session["name"] = "grace"
        await ahead.sessions.finish(opened)
        late.is_heard = False
        try:
            await late.sessions.open(shown)
            raise AssertionError("it went on without the newest copy")
        except SessionUnavailable as unavailable:
            assert unavailable.reason is UnavailableReason.KEYS
        late.is_heard, late.newest = True, ((OLD, NEW), 1)
        assert await name_shown(late, shown) == "grace"
        await ahead.sessions.aclose()
        await late.sessions.aclose()

    asyncio.run(story())


def test_where_nobody_answers_an_unknown_key_makes_nobody_anonymous() -> None:
    async def story() -> None:
        server = Server(MemoryStore("store", HeldClock().now_s), (OLD,), is_heard=False)
        await server.sessions.start()
        assert await _attempt(server, forged(FORGED[0])) == "refused"
        await server.sessions.aclose()

    asyncio.run(story())


def test_a_flood_of_made_up_keys_asks_once_a_second_and_honest_browsers_do_not_notice() -> None:
    async def story() -> None:
        server = Server(MemoryStore("store", HeldClock().now_s), (OLD,))
        await server.sessions.start()
        shown = await begun(server)
        began = time.monotonic()
        flood = [asyncio.create_task(_attempt(server, forged(identity))) for identity in FORGED]
        await asyncio.sleep(0)
        asked = server.asked
        assert await name_shown(server, shown) == "ada"
        assert server.asked == asked, "its key is known: nobody was asked"
        outcomes = await asyncio.gather(*flood)
        assert outcomes.count("refused") == len(FORGED) - MAX_WAITING
        assert outcomes.count("anonymous") == MAX_WAITING
        assert server.asked <= 1 + (time.monotonic() - began) / ASK_EVERY_S
        await server.sessions.aclose()

    asyncio.run(story())


async def _attempt(server: Server, header: bytes) -> str:
    try:
        opened = await server.sessions.open(header)
    except SessionUnavailable as unavailable:
        assert unavailable.reason is UnavailableReason.KEYS
        return "refused"
    return "anonymous" if opened.session.is_new else "someone's"


def test_an_answer_counts_for_who_came_before_the_question() -> None:
    """What a token shows that comes while somebody is asked may be newer than the answer."""

    async def story() -> None:
        began: list[float] = []

        async def ask() -> bool:
            began.append(time.monotonic())
            await asyncio.sleep(0.02)
            return True

        refresh = KeyRefresh(ask, every_s=0.05)
        first = asyncio.create_task(refresh())
        await asyncio.sleep(0.005)
        assert len(began) == 1
        assert await refresh()
        assert await first
        assert len(began) == 2, "the second one had a question of its own"
        assert began[1] - began[0] >= 0.05

    asyncio.run(story())


def test_who_does_not_answer_is_not_waited_for_without_end() -> None:
    async def story() -> bool:
        return await KeyRefresh(lambda: asyncio.sleep(3600, True), every_s=0.0, limit_s=0.05)()

    assert asyncio.run(story()) is False


def test_a_revoked_key_opens_no_token_that_was_remembered_on_any_event_loop() -> None:
    ring = KeyRing([OLD, NEW], 0)
    store = MemoryStore("store", HeldClock().now_s)
    sessions = Sessions(farm="farm", server_name="web", stores=lambda: [store], ring=ring, copies=1, in_memory=True)
    twin = Sessions(farm="farm", server_name="web", stores=lambda: [store], ring=ring, copies=1, in_memory=True)
    text = sessions._codecs[False].seal(bytes(16), bytes(16), 1, bytes(16))
    for each in (sessions, twin):
        assert each._codecs[False].open(text).timestamp == 1
    sessions.change_keys((NEW,), 0)
    for each in (sessions, twin):
        try:
            each._codecs[False].open(text)
            raise AssertionError("a revoked key opened a token")
        except TokenRejected:
            continue
