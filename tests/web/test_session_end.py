"""What is open when its session ends: what the app sees of it, and what is left alone (mission N4)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.responses import StreamingResponse

import in_hand
from coatcheck.drivers.watching import Watching
from coatcheck.web import open_stream

from .in_process import App, Served, acting, count, look, served

COOKIE = "__Host-coatcheck"
DEADLINE_S = 30.0
LATE = "a stream that reads the session when its head has left"


class Request:
    """One request by hand: what the server was sent, as it comes."""

    def __init__(self, server: Served, cookie: str, kind: str = "http") -> None:
        self.sent: list[Any] = []
        self.gate = asyncio.Event()
        self.gate.set()
        scope = {"type": kind, "method": "GET", "path": "/", "query_string": b"", "headers": [], "http_version": "1.1"}
        scope["headers"] = [(b"cookie", f"{COOKIE}={cookie}".encode())]
        scope["asgi"] = {"version": "3.0", "spec_version": "2.4"}
        self.task = asyncio.create_task(server.middleware(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        await asyncio.Event().wait()

    async def _send(self, message: Any) -> None:
        await self.gate.wait()
        self.sent.append(message)

    async def until(self, count: int) -> None:
        deadline = asyncio.get_running_loop().time() + DEADLINE_S
        while len(self.sent) < count:
            assert asyncio.get_running_loop().time() < deadline, f"{count} messages were due: {self.sent}"
            await asyncio.sleep(0.005)

    @property
    def bodies(self) -> list[bytes]:
        return [message["body"] for message in self.sent if message["type"] == "http.response.body"]

    @property
    def is_over(self) -> bool:
        return not self.sent[-1].get("more_body", False)


def streaming(headers: list[tuple[bytes, bytes]], more: asyncio.Event, ends: list[str]) -> App:
    """Sends a piece, waits, and sends four more."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await more.wait()
        try:
            for number in range(2, 6):
                await send({"type": "http.response.body", "body": b"%d" % number, "more_body": number < 5})
            ends.append("done")
        except OSError:
            ends.append("told")
            raise

    return app


class Scene:
    def __init__(self, server: Served, cookie: str, key: bytes) -> None:
        self.server, self.cookie, self.key = server, cookie, key
        self.more, self.ends = asyncio.Event(), list[str]()

    def request(self, kind: str = "http") -> Request:
        return Request(self.server, self.cookie, kind)

    async def close(self) -> None:
        await self.server.sessions.close_key(self.key)


@asynccontextmanager
async def scene(headers: list[tuple[bytes, bytes]] | None = None) -> AsyncIterator[Scene]:
    async with served(acting(count)) as server, server.client() as browser:
        await browser.get("/")
        token = in_hand.unsealed(server.sessions, browser.cookies[COOKIE].encode(), False)
        assert token is not None
        made = Scene(server, browser.cookies[COOKIE], token.key)
        server.app = streaming(headers or [], made.more, made.ends)
        yield made


def test_a_stream_ends_in_order_and_an_app_that_sends_on_has_not_failed() -> None:
    async def story() -> None:
        async with scene() as made:
            request = made.request()
            await request.until(2)
            await made.close()
            await request.until(3)
            assert request.bodies == [b"1", b""]
            assert request.is_over
            made.more.set()
            await asyncio.wait_for(request.task, DEADLINE_S)
            assert made.ends == ["told"]
            assert request.bodies == [b"1", b""]

    asyncio.run(story())


def test_starlettes_stream_that_sends_on_has_not_failed_either() -> None:
    async def story() -> None:
        async with scene() as made:

            async def pieces() -> AsyncIterator[bytes]:
                yield b"1"
                await made.more.wait()
                while True:
                    yield b"2"

            made.server.app = StreamingResponse(pieces())
            request = made.request()
            await request.until(2)
            await made.close()
            await request.until(3)
            made.more.set()
            await asyncio.wait_for(request.task, DEADLINE_S)
            assert request.bodies == [b"1", b""]

    asyncio.run(story())


def test_a_fault_of_the_apps_own_after_the_end_is_still_one() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        await scope["session"].ended()
        raise ZeroDivisionError

    async def story() -> None:
        async with scene() as made:
            made.server.app = app
            request = made.request()
            await request.until(2)
            await made.close()
            with pytest.raises(ZeroDivisionError):
                await asyncio.wait_for(request.task, DEADLINE_S)

    asyncio.run(story())


def test_a_response_of_known_length_runs_to_its_end() -> None:
    async def story() -> None:
        async with scene([(b"Content-Length", b"5")]) as made:
            request = made.request()
            await request.until(2)
            await made.close()
            made.more.set()
            await asyncio.wait_for(request.task, DEADLINE_S)
            assert b"".join(request.bodies) == b"12345"

    asyncio.run(story())


def test_a_response_that_logs_out_says_good_bye_in_as_many_pieces_as_it_likes() -> None:
    async def story() -> None:
        async with scene() as made:
            plain = made.server.app

            async def app(scope: Any, receive: Any, send: Any) -> None:
                scope["session"].close()
                await plain(scope, receive, send)

            made.server.app = app
            made.more.set()
            request = made.request()
            await asyncio.wait_for(request.task, DEADLINE_S)
            assert b"".join(request.bodies) == b"12345"

    asyncio.run(story())


def test_a_logout_within_the_stream_itself_sends_its_last_piece() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"1", "more_body": True})
        scope["session"].close()
        await send({"type": "http.response.body", "body": b"2"})

    async def story() -> None:
        async with scene() as made:
            made.server.app = app
            request = made.request()
            await asyncio.wait_for(request.task, DEADLINE_S)
            assert request.bodies == [b"1", b"2"]

    asyncio.run(story())


def test_a_client_that_reads_nothing_is_sent_nothing_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_stream, "UNREAD_S", 0.1)

    async def story() -> None:
        async with scene() as made:
            request = made.request()
            await request.until(2)
            request.gate.clear()
            made.more.set()
            await made.close()
            await asyncio.sleep(0.3)
            request.gate.set()
            await asyncio.wait_for(request.task, DEADLINE_S)
            assert made.ends == ["told"]
            assert request.bodies == [b"1", b"2"], "what was on its way, and no more"

    asyncio.run(story())


def test_nothing_stays_watched_when_a_response_or_a_websocket_is_over() -> None:
    async def talk(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "websocket.accept"})
        assert len(watching[0]) == 1
        await send({"type": "websocket.close"})

    watching: list[Watching] = []

    async def story() -> None:
        async with scene() as made:
            watching.append(made.server.sessions.watching)
            made.more.set()
            await made.request().task
            assert made.ends == ["done"]
            made.server.app = talk
            await made.request("websocket").task
            assert len(watching[0]) == 0

    asyncio.run(story())


NO_STORE: dict[str, tuple[int, list[tuple[bytes, bytes]], bool]] = {
    LATE: (200, [(b"content-type", b"text/event-stream")], True),
    "of known length": (200, [(b"Content-Length", b"5")], False),
    "with a Cache-Control of its own": (200, [(b"Cache-Control", b"public, max-age=60")], False),
    "a file": (200, [(b"etag", b'"1"')], False),
    "not modified": (304, [], False),
}


@pytest.mark.parametrize("name", NO_STORE)
def test_caches_are_kept_from_what_may_read_the_session_later(name: str) -> None:
    status, headers, kept_away = NO_STORE[name]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        await send({"type": "http.response.body", "body": b"first", "more_body": True})
        await send({"type": "http.response.body", "body": look(scope["session"])["n"].__repr__().encode()})

    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            server.app = app
            answer = await browser.get("/")
            assert (answer.headers.get("cache-control") == "no-store") == kept_away
            assert (answer.headers.get("vary") == "Cookie") == kept_away

    asyncio.run(story())
