"""What a durable WebSocket does besides outliving its web server: failures, ends, limits, fences, and no director."""

from __future__ import annotations

import asyncio
from typing import Any

import msgspec
import pytest
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from coatcheck import ConfigError, DurableWebSocket, SessionMiddleware, connect, durable_websocket
from coatcheck.director.rules.durable_socket import MAX_TRIES
from coatcheck.director.rules.limits import Limits
from coatcheck.director.rules.server_half import Ending
from coatcheck.durable_words import HEADER
from coatcheck.events import EventKind
from coatcheck.sessions.policy import SessionPolicy

from .durable_site import Site, talk

KEY = "for-tests-only-for-tests-only-for-tests-001"
SOON = Limits(websocket_move_s=0.2, websocket_close_s=0.2)


class Opened:
    """A site whose client has its WebSocket."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        self._arguments, self._named = arguments, named

    async def __aenter__(self) -> Site:
        self.site = Site(*self._arguments, **self._named)
        await self.site.opened()
        return self.site

    async def __aexit__(self, *_: object) -> None:
        await self.site.end()


def lose_server(site: Site) -> None:
    """The connection to the web server breaks, and the web server goes on."""
    site.machine.server_ended(Ending.BROKEN)
    site.perform()


async def sockets_of(site: Site) -> dict[bytes, Any]:
    """What the session keeps of its durable WebSockets."""
    await site.stored()
    sessions = site.processes["web-1"].sessions
    (row,) = await sessions.list_sessions(1) if sessions.is_open else await _listed(site)
    key = bytes.fromhex(row.key)
    for process in site.processes.values():
        copy = process.sessions.copies.cache.get(key)
        if copy is not None and copy.record is not None and copy.record.sockets:
            return dict(copy.record.sockets)
    return {}


async def _listed(site: Site) -> Any:
    await site.processes["web-1"].sessions.start()
    return await site.processes["web-1"].sessions.list_sessions(1)


def test_the_client_is_told_nothing_of_it() -> None:
    async def scenario() -> None:
        async with Opened() as site:
            assert HEADER not in site.head.lower()
            site.say("a")
            site.say(b"b")
            site.say("c")
            await site.until(lambda: len(site.answers) == 3, "answers")
            assert site.answers == ["1.0 a", "1.1 a", "3.0 c"], "the second one has none"

    asyncio.run(scenario())


def test_a_message_at_which_the_app_fails_changes_nothing() -> None:
    async def scenario() -> None:
        async def fails(socket: DurableWebSocket) -> None:
            await socket.accept()
            async for message in socket:
                socket.session["seen"] = [*socket.session.get("seen", []), message]
                socket.send(f"heard {message}")
                if message == "bad":
                    raise RuntimeError("the app has failed")

        async with Opened(fails) as site:
            site.say("good")
            site.say("bad")
            site.say("never")
            await site.until(lambda: site.closed, "the close")
            assert site.closed is not None
            assert site.closed.code == 1011
            assert site.answers == ["heard good"]
            assert await site.stored() == {"seen": ["good"]}
            assert site.traffic.resumed_websockets == 0

    asyncio.run(scenario())


def test_a_message_that_kills_web_servers_is_not_given_to_ever_more_of_them() -> None:
    async def scenario() -> None:
        tries: list[str] = []

        async def dies(socket: DurableWebSocket) -> None:
            await socket.accept()
            async for message in socket:
                tries.append(str(message))
                if message == "poison":
                    site.processes[site.machine.server.name].die()
                    await asyncio.Event().wait()
                socket.send("well")

        async with Opened(dies) as site:
            site.say("food")
            await site.until(lambda: site.answers, "an answer")
            site.say("poison")
            await site.until(lambda: site.closed, "the close")
            assert site.closed is not None
            assert site.closed.code == 1011
            assert tries == ["food"] + ["poison"] * MAX_TRIES

    asyncio.run(scenario())


def test_without_any_web_server_the_client_is_asked_to_come_again() -> None:
    async def scenario() -> None:
        async with Opened(limits=SOON, web_servers=1) as site:
            site.states[0].draining = True
            site.say("a")
            lose_server(site)
            await site.until(lambda: site.closed, "the close")
            assert site.closed is not None
            assert site.closed.code == 1012
            await site.until(lambda: not site.traffic.tunnels, "the end")
            assert site.states[0].in_flight == 0

    asyncio.run(scenario())


def test_a_web_server_that_is_thought_dead_can_store_nothing_any_more() -> None:
    """It was only slow: its client's message is done elsewhere, and what it still does is not stored."""

    async def scenario() -> None:
        gate, begun = asyncio.Event(), list[str]()

        async def slow(socket: DurableWebSocket) -> None:
            await socket.accept()
            async for message in socket:
                begun.append(str(message))
                turn = len(begun)
                if turn == 1:
                    await gate.wait()
                # Keys of its own, so that nothing else stands in its way but the entry of the WebSocket.
                socket.session[f"turn {turn}"] = message
                socket.send(f"{message} {turn}")

        async with Opened(slow) as site:
            site.say("a")
            await site.until(lambda: begun, "the first web server's turn")
            lose_server(site)
            await site.until(lambda: site.answers, "the second one's")
            gate.set()
            await asyncio.sleep(0.05)
            site.say("b")
            await site.until(lambda: len(site.answers) == 2, "two answers")
            assert site.answers == ["a 2", "b 3"]
            assert await site.stored() == {"turn 2": "a", "turn 3": "b"}

    asyncio.run(scenario())


def test_draining_finishes_the_message_that_is_handled() -> None:
    """What comes next goes elsewhere; nothing is begun twice, and nothing closes."""

    async def scenario() -> None:
        begun: list[str] = []
        gate = asyncio.Event()

        async def slow(socket: DurableWebSocket) -> None:
            await socket.accept()
            async for message in socket:
                begun.append(str(message))
                await gate.wait()
                socket.session["log"] = [*socket.session.get("log", []), message]
                socket.send(message)

        async with Opened(slow) as site:
            site.say("a")
            site.say("b")
            await site.until(lambda: begun, "the first message")
            server = site.machine.server
            server.draining = True
            site.processes[server.name].drain()
            await asyncio.sleep(0.05)
            assert site.machine.server is server
            gate.set()
            await site.has_heard(2)
            assert site.answers == begun == ["a", "b"]
            assert site.machine.server is not server
            assert site.closed is None
            assert (await site.stored())["log"] == ["a", "b"]

    asyncio.run(scenario())


def test_a_logout_elsewhere_ends_it_also_between_two_web_servers() -> None:
    async def scenario() -> None:
        for between in (False, True):
            async with Opened() as site:
                site.say("a")
                await site.until(lambda: site.answers, "an answer")
                here = site.machine.server.name
                sessions = next(p for name, p in site.processes.items() if name != here).sessions
                await sessions.start()
                (row,) = await sessions.list_sessions(1)
                if between:
                    for state in site.states:
                        state.draining = True
                    lose_server(site)
                await sessions.close_key(bytes.fromhex(row.key))
                for state in site.states:
                    state.draining = False
                await site.until(lambda: site.closed, "the close")
                assert site.closed is not None
                assert (site.closed.code, between) == (1008, between)

    asyncio.run(scenario())


def test_no_web_server_takes_the_browser_for_a_thief() -> None:
    """Its token is never asked for again, while tokens are replaced with every answer to its other requests."""

    async def scenario() -> None:
        events: list[EventKind] = []
        async with Opened(policy=SessionPolicy(rotate_after_ms=0, grace_ms=10, theft="close")) as site:
            for process in site.processes.values():
                process.sessions._observer = lambda event: events.append(event.kind)
            for n in range(4):
                site.say(f"m{n}")
                await site.until(lambda n=n: site.machine._committed == n + 1, "it is done")  # type: ignore[misc]
                await asyncio.sleep(0.05)  # longer than the grace
                lose_server(site)
            site.say("last")
            await site.until(lambda: site.answers and str(site.answers[-1]).endswith("last"), "the last answer")
            assert site.traffic.resumed_websockets == 4
            assert EventKind.SESSION_THEFT not in events
            assert EventKind.SESSION_ROTATED not in events, "a token that nobody can be told"

    asyncio.run(scenario())


def test_a_close_of_the_apps_comes_behind_its_last_answer() -> None:
    async def scenario() -> None:
        after: list[str] = []

        async def parting(socket: DurableWebSocket) -> None:
            await socket.accept()
            async for message in socket:
                socket.session["last"] = message
                socket.send("good bye")
                await socket.close(4000, "that was all")
                after.append(str(message))

        async with Opened(parting) as site:
            site.say("a")
            site.say("b")
            await site.until(lambda: site.closed, "the close")
            assert site.closed is not None
            assert (site.closed.code, site.closed.reason) == (4000, "that was all")
            assert site.answers == ["good bye"]
            assert after == ["a"], "the app goes on behind it, and gets no further message"
            await site.until(lambda: not site.traffic.tunnels, "the end")
            assert await site.stored() == {"last": "a"}
            assert await sockets_of(site) == {}, "nothing of it is kept"

    asyncio.run(scenario())


def test_what_answers_nothing_leaves_at_once_or_with_the_message_that_is_handled() -> None:
    async def scenario() -> None:
        told: list[DurableWebSocket] = []

        async def pushes(socket: DurableWebSocket) -> None:
            await socket.accept()
            told.append(socket)
            async for message in socket:
                await socket.push("one")
                socket.send("two")
                assert site.answers == ["news"]
                del message

        async with Opened(pushes) as site:
            await site.until(lambda: told, "the app")
            await told[0].push("news")
            await site.until(lambda: site.answers, "what was pushed")
            site.say("a")
            await site.until(lambda: len(site.answers) == 3, "answers")
            assert site.answers == ["news", "one", "two"]

    asyncio.run(scenario())


def test_the_app_is_told_what_the_client_has_left_with_and_may_store_it() -> None:
    async def scenario() -> None:
        codes: list[int | None] = []

        async def remembers(socket: DurableWebSocket) -> None:
            await socket.accept()
            async for message in socket:
                socket.send(message)
            codes.append(socket.close_code)
            socket.session["left"] = True

        async with Opened(remembers) as site:
            site.say("a")
            await site.until(lambda: site.answers, "an answer")
            await site.closes()
            assert codes == [1000]
            assert await site.stored() == {"left": True}

    asyncio.run(scenario())


def test_messages_before_a_close_still_count_when_the_web_server_dies_of_the_first() -> None:
    async def scenario() -> None:
        async with Opened(deaths=[3]) as site:
            for n in range(3):
                site.say(f"m{n}")
            await site.closes()
            assert site.deaths == 1
            assert (await site.stored())["log"] == ["m0", "m1", "m2"]

    asyncio.run(scenario())


def test_a_message_that_is_too_long_ends_it() -> None:
    async def scenario() -> None:
        async with Opened(limits=Limits(max_websocket_message_bytes=1024)) as site:
            site.say("x" * 1024)
            await site.until(lambda: site.answers, "an answer")
            site.say("x" * 1025)
            await site.until(lambda: site.closed, "the close")
            assert site.closed is not None
            assert site.closed.code == 1009

    asyncio.run(scenario())


def test_a_ticket_of_somebody_else_opens_nothing() -> None:
    async def scenario() -> None:
        async with Opened() as site:
            site.say("a")
            await site.until(lambda: site.answers, "an answer")
            site.machine._ticket = b"A" * 100
            lose_server(site)
            await site.until(lambda: site.closed, "the close")
            assert site.closed is not None
            assert site.closed.code == 1012

    asyncio.run(scenario())


def test_what_is_forgotten_cannot_be_gone_on_with() -> None:
    async def scenario() -> None:
        async with Opened() as site:
            site.say("a")
            await site.until(lambda: site.answers, "an answer")
            upgrade = site.machine._upgrade
            ticket = site.processes[site.machine.server.name].sessions._tickets.open(site.machine._ticket)
            other = msgspec.structs.replace(ticket, socket=b"another1")
            site.machine._ticket = site.processes["web-1"].sessions._tickets.seal(other)
            lose_server(site)
            await site.until(lambda: site.closed, "the close")
            assert site.closed is not None
            assert site.closed.code == 1012
            assert upgrade.tag is None

    asyncio.run(scenario())


def test_without_a_session_there_is_none() -> None:
    """No session server answers when it is accepted: refused, as any request that cannot be stored."""
    ended: list[str] = []

    async def scenario() -> None:
        async def accepts(socket: DurableWebSocket) -> None:
            for store in site.stores:
                store._closed = True
            try:
                await socket.accept()
            except OSError as error:
                ended.append(str(error))
                raise

        site = Site(accepts)
        try:
            await site.opened()
            assert site.head.startswith(b"HTTP/1.1 403 ")
            await site.until(lambda: ended, "the app is told")
        finally:
            await site.end()

    asyncio.run(scenario())
    assert ended == ["its session cannot be stored, so it was refused"]


def make_client() -> TestClient:
    routes = [WebSocketRoute("/talk", durable_websocket(talk))]
    return TestClient(SessionMiddleware(Starlette(routes=routes), connect("memory://", key=KEY)))


def test_without_a_director_it_is_a_websocket_as_any_other() -> None:
    with make_client().websocket_connect("/talk") as websocket:
        websocket.send_text("a")
        assert [websocket.receive_text(), websocket.receive_text()] == ["1.0 a", "1.1 a"]
        websocket.send_text("b")
        websocket.send_text("c")
        assert websocket.receive_text() == "3.0 c"


def test_the_header_of_directors_is_believed_from_nobody_else() -> None:
    with make_client().websocket_connect("/talk", headers={HEADER.decode(): "offered"}) as websocket:
        websocket.send_text("a")
        assert websocket.receive_text() == "1.0 a"


def test_an_app_that_fails_without_a_director_is_an_internal_error() -> None:
    async def fails(socket: DurableWebSocket) -> None:
        await socket.accept()
        async for _ in socket:
            raise RuntimeError("the app has failed")

    app = SessionMiddleware(durable_websocket(fails), connect("memory://", key=KEY))
    with pytest.raises(RuntimeError, match="the app has failed"), TestClient(app).websocket_connect("/") as websocket:
        websocket.send_text("a")
        with pytest.raises(WebSocketDisconnect) as ended:
            websocket.receive_text()
        assert ended.value.code == 1011


def test_it_needs_the_middleware() -> None:
    with (
        pytest.raises(ConfigError, match="SessionMiddleware"),
        TestClient(durable_websocket(talk)).websocket_connect("/"),
    ):
        raise AssertionError("it was accepted")


def test_what_is_no_message_is_refused() -> None:
    async def scenario() -> None:
        failed: list[str] = []

        async def wrong(socket: DurableWebSocket) -> None:
            await socket.accept()
            async for _ in socket:
                try:
                    socket.send(1)  # type: ignore[arg-type]
                except TypeError as error:
                    failed.append(str(error))
                socket.send("told")

        async with Opened(wrong) as site:
            site.say("a")
            await site.until(lambda: site.answers, "an answer")
            assert failed == ["a WebSocket carries text or bytes, not int"]

    asyncio.run(scenario())
