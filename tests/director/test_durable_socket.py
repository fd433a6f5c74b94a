"""The director's rules of durable WebSockets, event by event (RFC 6455; docs/durable-websockets.md)."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from coatcheck.director.rules.actions import Order, Reach, ReleaseServer, ToClient, ToServer
from coatcheck.director.rules.connection import ProxiedConnection
from coatcheck.director.rules.delivery import Failure
from coatcheck.director.rules.durable_client_half import PING_EVERY_S
from coatcheck.director.rules.durable_socket import MAX_TRIES, DurableSocket
from coatcheck.director.rules.forwarding import ClientAddress
from coatcheck.director.rules.limits import Limits
from coatcheck.director.rules.routing import Check, servers_of
from coatcheck.director.rules.server_half import Ending
from coatcheck.director.rules.traffic import ConnectFault, Traffic
from coatcheck.director.rules.websocket_frames import (
    BINARY,
    CLOSE,
    PING,
    PONG,
    TEXT,
    CloseFrame,
    WebSocketReader,
    WholeMessage,
    close_frame,
    frame,
)
from coatcheck.durable_words import Committed, Ended, Have, NumberedMessage, Word, decode, encode

UPGRADE = (
    b"GET /talk HTTP/1.1\r\nHost: shop.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\nX-Session-Durable: 7 forged\r\n"
    b"Cookie: coatcheck-route=one\r\n\r\n"
)
AGREED = (
    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Extensions: permessage-deflate\r\n"
    b"X-Session-Durable: first-ticket\r\nSet-Cookie: a=b\r\n\r\n"
)
AGAIN = AGREED.replace(b"Sec-WebSocket-Extensions: permessage-deflate\r\n", b"")


class Scene:
    """A director with three web servers, and one client whose WebSocket ``web-1`` has."""

    def __init__(self, **limits: Any) -> None:
        self.servers = servers_of([("web-1", "one"), ("web-2", "two"), ("web-3", "three")])
        self.traffic = Traffic(Limits(**limits), self.servers, now=0.0, max_connections=100, tls=False)
        for server in self.servers:
            self.traffic.health_checked(server, Check.PASSED)
        connection = ProxiedConnection(
            self.traffic, ClientAddress("192.0.2.1", tls=False, trusted=()), can_half_close=True
        )
        connection.opened()
        connection.client_bytes(UPGRADE)
        connection.connected(reused=False, full=False)
        self.request = next(action.data for action in connection.actions if isinstance(action, ToServer))
        connection.actions.clear()
        connection.server_bytes(AGREED)
        head = next(action.data for action in connection.actions if isinstance(action, ToClient))
        self.head = head
        self.traffic.actions.clear()
        machine = connection.join()
        assert isinstance(machine, DurableSocket)
        self.machine = machine
        self.taken()

    def taken(self) -> list[Any]:
        actions = list(self.machine.actions)
        self.machine.actions.clear()
        return actions

    def said(self) -> list[Any]:
        """What the client got: messages and close frames."""
        reader, found = WebSocketReader(masked=False, max_bytes=1 << 22), []
        for action in self.taken():
            if isinstance(action, ToClient):
                reader.feed(action.data)
        while (event := reader.next()) is not None:
            found.append(event)
        return found

    def told(self) -> list[Any]:
        """What the web server got: words, close frames, and heads of requests as they are."""
        found: list[Any] = []
        for action in self.taken():
            if isinstance(action, ToServer) and action.data.startswith(b"GET "):
                found.append(action.data)
            elif isinstance(action, ToServer):
                reader = WebSocketReader(masked=True, max_bytes=1 << 22)
                reader.feed(action.data)
                while (event := reader.next()) is not None:
                    found.append(decode(event.data) if isinstance(event, WholeMessage) else event)
        return found

    def client(self, *messages: str) -> None:
        self.machine.client_bytes(b"".join(frame(TEXT, message.encode(), masked=True) for message in messages))

    def server(self, *words: Word) -> None:
        self.machine.server_bytes(b"".join(frame(BINARY, encode(word)) for word in words))

    def moves_to(self, name: str) -> list[Any]:
        """The next web server goes on; returns what it was told."""
        (reach,) = [action for action in self.taken() if isinstance(action, Reach)]
        assert reach.server.name == name
        assert reach.fresh
        self.machine.connected(reused=False, full=False)
        (request,) = self.told()
        self.machine.server_bytes(AGAIN)
        return [request, *self.told()]


def text(number: int, data: str) -> NumberedMessage:
    return NumberedMessage(number, True, data.encode())


def test_the_client_is_told_its_own_and_nothing_of_ours() -> None:
    scene = Scene()
    assert b"X-Session-Durable" not in scene.head
    assert b"x-session-durable" not in scene.head.lower()
    assert b"deflate" not in scene.head
    assert b"Set-Cookie: a=b\r\n" in scene.head
    assert scene.request.count(b"x-session-durable: offered\r\n") == 1
    assert b"forged" not in scene.request


def test_messages_are_numbered_kept_and_forgotten_when_they_are_done() -> None:
    scene = Scene()
    scene.client("a", "b")
    assert scene.told() == [text(1, "a"), text(2, "b")]
    scene.server(text(1, "A"), Committed(1, b"second"))
    assert scene.said() == [WholeMessage(True, b"A")]
    scene.machine.server_ended(Ending.BROKEN)
    request, *words = scene.moves_to("web-2")
    assert b"x-session-durable: 1 second\r\n" in request
    assert b"deflate" not in request
    assert b"Cookie: coatcheck-route=one\r\n" in request
    assert words == [text(2, "b")]


def test_the_director_says_what_it_has() -> None:
    scene = Scene()
    scene.server(text(1, "A"), text(2, "B"))
    assert Have(2) in scene.told()


def test_what_was_passed_on_is_not_passed_on_again() -> None:
    scene = Scene()
    scene.client("a")
    scene.server(text(1, "A"))
    scene.taken()
    scene.machine.server_ended(Ending.RESET)
    request, *words = scene.moves_to("web-2")
    assert b"x-session-durable: 1 first-ticket\r\n" in request
    assert words == [text(1, "a")]
    scene.server(text(1, "A"), text(2, "B"), Committed(1, b"t"))
    assert scene.said() == [WholeMessage(True, b"B")]


@pytest.mark.parametrize(
    "words",
    [
        [text(2, "B")],
        [Committed(1, b"t")],
        [Have(1)],
        [Ended(1000, "")],
    ],
    ids=["a number that is left out", "done before it was said", "a director's word", "another one"],
)
def test_a_web_server_that_speaks_nonsense_is_left(words: list[Word]) -> None:
    scene = Scene()
    scene.server(*words)
    actions = scene.taken()
    assert Order.LEAVE_SERVER in actions
    assert [action.server.name for action in actions if isinstance(action, Reach)] == ["web-2"]


def test_a_message_for_the_client_that_is_too_long_ends_it() -> None:
    scene = Scene(max_websocket_message_bytes=1024)
    scene.server(NumberedMessage(1, False, bytes(3000)))
    (closed,) = scene.said()
    assert isinstance(closed, CloseFrame)
    assert closed.code == 1009


def test_pings_are_answered_on_both_sides() -> None:
    scene = Scene()
    scene.machine.client_bytes(frame(PING, b"1", masked=True))
    assert scene.taken() == [ToClient(frame(PONG, b"1"))]
    scene.machine.server_bytes(frame(PING, b"2"))
    assert scene.taken() == [ToServer(frame(PONG, b"2", masked=True))]


def test_no_more_is_kept_than_the_bounds_say() -> None:
    for limits in ({"kept_websocket_bytes": 1000}, {"kept_websocket_messages": 10}):
        scene = Scene(**limits)
        scene.client(*["x" * 100] * 30)
        kept = [word for word in scene.told() if isinstance(word, NumberedMessage)]
        assert len(kept) == 10
        scene.client("y")
        assert scene.taken() == []
        scene.server(Committed(4, b"t"))
        assert [word.number for word in scene.told() if isinstance(word, NumberedMessage)] == [11, 12, 13, 14]
        scene.server(Committed(14, b"t"))
        scene.server(Committed(24, b"t"))
        scene.server(Committed(31, b"t"))
        assert Order.RESUME_CLIENT in scene.machine.actions


def test_the_client_is_not_read_while_too_much_is_kept() -> None:
    scene = Scene(kept_websocket_messages=2)
    scene.client("a", "b", "c")
    assert scene.taken()[-1] is Order.PAUSE_CLIENT
    scene.server(Committed(2, b"t"))
    assert scene.taken()[-1] is Order.RESUME_CLIENT


def test_a_client_that_takes_nothing_stops_its_web_server_and_is_not_read() -> None:
    scene = Scene()
    scene.machine.client_full()
    assert scene.taken() == [Order.PAUSE_SERVER, Order.PAUSE_CLIENT]
    scene.machine.server_ended(Ending.BROKEN)
    scene.taken()
    scene.machine.connected(reused=False, full=False)
    scene.machine.server_bytes(AGAIN)
    assert Order.PAUSE_SERVER in scene.taken()
    scene.machine.client_ready()
    assert scene.taken() == [Order.RESUME_SERVER, Order.RESUME_CLIENT]


def test_where_it_goes_when_web_servers_fail_one_after_the_other() -> None:
    scene = Scene()
    scene.machine.server_ended(Ending.BROKEN)
    assert [action.server.name for action in scene.taken() if isinstance(action, Reach)] == ["web-2"]
    scene.traffic.connect_failed(scene.servers[1], ConnectFault.REFUSED, "refused")
    scene.machine.not_connected(Failure.REFUSED)
    assert [action.server.name for action in scene.taken() if isinstance(action, Reach)] == ["web-3"]
    scene.machine.connected(reused=False, full=False)
    scene.machine.server_bytes(b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n")
    assert [action for action in scene.taken() if isinstance(action, Reach)] == []
    assert [server.in_flight for server in scene.servers] == [0, 0, 0]
    scene.traffic.tick(0.2, lambda member: 0)
    assert [action.server.name for action in scene.taken() if isinstance(action, Reach)] == ["web-1"]


@pytest.mark.parametrize(
    ("status", "code"), [(b"403 Forbidden", 1008), (b"404 Not Found", 1012), (b"200 OK", 1012)], ids=str
)
def test_an_app_that_does_not_want_it_any_more(status: bytes, code: int) -> None:
    scene = Scene()
    scene.machine.server_ended(Ending.BROKEN)
    scene.machine.connected(reused=False, full=False)
    scene.taken()
    scene.machine.server_bytes(b"HTTP/1.1 " + status + b"\r\nContent-Length: 0\r\n\r\n")
    assert scene.said() == [CloseFrame(code, "")]


def test_without_a_web_server_it_waits_so_long_and_no_longer() -> None:
    scene = Scene(websocket_move_s=10.0)
    for server in scene.servers:
        scene.traffic.eject(server, "away")
    scene.machine.server_ended(Ending.BROKEN)
    scene.taken()
    scene.traffic.tick(9.9, lambda member: 0)
    assert scene.taken() == []
    scene.traffic.tick(10.1, lambda member: 0)
    assert scene.said() == [CloseFrame(1012, "service restart")]


def test_a_web_server_that_goes_on_and_says_nothing_is_no_end_of_the_wait() -> None:
    scene = Scene(websocket_move_s=10.0)
    scene.machine.server_ended(Ending.BROKEN)
    scene.moves_to("web-2")
    scene.traffic.tick(10.1, lambda member: 0)
    assert scene.said() == [CloseFrame(1012, "service restart")]
    scene = Scene(websocket_move_s=10.0)
    scene.machine.server_ended(Ending.BROKEN)
    scene.moves_to("web-2")
    scene.server(Committed(0, b"t"))
    scene.traffic.tick(10.1, lambda member: 0)
    assert scene.said() == []


def test_a_message_that_no_web_server_finishes_ends_it() -> None:
    scene = Scene()
    scene.client("poison")
    scene.taken()
    for number in range(MAX_TRIES - 1):
        scene.machine.server_ended(Ending.BROKEN)
        if not any(isinstance(action, Reach) for action in scene.machine.actions):
            scene.traffic.tick(1.0 + number, lambda member: 0)
        scene.taken()
        scene.machine.connected(reused=False, full=False)
        scene.machine.server_bytes(AGAIN)
        scene.server(Committed(0, b"t"))
    scene.taken()
    scene.machine.server_ended(Ending.BROKEN)
    assert scene.said() == [CloseFrame(1011, "a message that no web server finishes")]


def test_one_that_lets_go_is_followed_by_another_at_once() -> None:
    scene = Scene()
    scene.servers[0].draining = True
    scene.client("a")
    scene.taken()
    scene.machine.server_bytes(close_frame(1012))
    actions = scene.taken()
    assert ReleaseServer(keep=False) in actions
    assert [action.server.name for action in actions if isinstance(action, Reach)] == ["web-2"]


def test_one_that_cannot_store_a_message_is_followed_by_pauses() -> None:
    scene = Scene()
    scene.client("a")
    scene.taken()
    reached: list[float] = []
    now = 0.0
    for _ in range(MAX_TRIES - 1):
        scene.machine.server_bytes(close_frame(1012))
        while not any(isinstance(action, Reach) for action in scene.machine.actions):
            now += 0.1
            scene.traffic.tick(now, lambda member: 0)
        reached.append(round(now, 1))
        scene.taken()
        scene.machine.connected(reused=False, full=False)
        scene.machine.server_bytes(AGAIN)
        scene.server(Committed(0, b"t"))
    assert reached[0] == 0.0
    pauses = [later - before for before, later in itertools.pairwise(reached)]
    assert pauses == sorted(pauses)
    assert pauses[0] >= 0.4


@pytest.mark.parametrize(
    ("said", "told"),
    [((4001, "done"), (4001, "done")), ((4912, "lost"), (1012, "service restart")), ((1005, ""), (1005, ""))],
    ids=str,
)
def test_how_a_web_server_closes_it(said: tuple[int, str], told: tuple[int, str]) -> None:
    scene = Scene()
    scene.machine.server_bytes(close_frame(*said))
    assert scene.said() == [CloseFrame(*told)]
    scene.machine.client_bytes(frame(CLOSE, b"\x03\xe8", masked=True))
    assert scene.taken() == [Order.CLOSE_CLIENT]
    scene.machine.client_lost()
    assert scene.machine.is_over
    assert scene.traffic.tunnels == {}
    assert scene.traffic.admission.connections == 0


def test_a_client_that_leaves_is_answered_and_what_it_said_still_counts() -> None:
    scene = Scene()
    scene.client("a")
    scene.taken()
    scene.machine.client_bytes(close_frame(4000, "enough", masked=True))
    actions = scene.machine.actions
    assert ToClient(close_frame(4000)) in actions
    assert Order.CLOSE_CLIENT in actions
    assert scene.told() == [Ended(4000, "enough")]
    scene.machine.client_lost()
    assert not scene.machine.is_over
    scene.machine.server_ended(Ending.BROKEN)
    _, *words = scene.moves_to("web-2")
    assert words == [text(1, "a"), Ended(4000, "enough")]
    scene.server(text(1, "A"), Committed(1, b"t"))
    scene.machine.server_bytes(close_frame(1000))
    assert scene.machine.is_over
    assert [server.in_flight for server in scene.servers] == [0, 0, 0]


def test_nothing_is_moved_for_a_client_that_left_with_all_done() -> None:
    scene = Scene()
    scene.machine.client_lost()
    scene.machine.server_ended(Ending.BROKEN)
    assert scene.machine.is_over
    assert not any(isinstance(action, Reach) for action in scene.machine.actions)


def test_an_app_that_never_finishes_with_a_client_that_left_is_left() -> None:
    scene = Scene(first_byte_timeout_s=30.0)
    scene.client("a")
    scene.machine.client_lost()
    scene.taken()
    scene.traffic.tick(30.1, lambda member: 0)
    assert Order.LEAVE_SERVER in scene.taken()
    assert scene.machine.is_over


def test_a_client_that_is_silent_is_asked_and_then_dropped() -> None:
    scene = Scene()
    scene.traffic.tick(PING_EVERY_S + 1, lambda member: 0)
    assert scene.taken() == [ToClient(frame(PING, b""))]
    scene.machine.client_bytes(frame(PONG, b"", masked=True))
    scene.traffic.tick(2 * PING_EVERY_S, lambda member: 0)
    assert scene.taken() == []
    scene.traffic.tick(4 * PING_EVERY_S + 2, lambda member: 0)
    assert scene.taken() == [Order.ABORT_CLIENT]


def test_a_client_that_never_answers_our_close_is_dropped() -> None:
    scene = Scene()
    scene.machine.server_bytes(close_frame(1000))
    scene.taken()
    scene.traffic.tick(10.1, lambda member: 0)
    assert scene.taken() == [Order.ABORT_CLIENT]


def test_what_breaks_the_rules_ends_it() -> None:
    scene = Scene()
    scene.machine.client_bytes(frame(TEXT, b"not masked"))
    assert [type(event) for event in scene.said()] == [CloseFrame]
    scene.machine.client_lost()
    scene.machine.server_bytes(close_frame(1000))
    assert scene.machine.is_over


def test_the_death_of_a_web_server_is_believed_before_its_connection_shows_it() -> None:
    scene = Scene()
    scene.traffic.server_died(scene.servers[0])
    actions = scene.taken()
    assert actions[0] is Order.LEAVE_SERVER
    assert [action.server.name for action in actions if isinstance(action, Reach)] == ["web-2"]


def test_when_the_director_stops_nothing_is_moved() -> None:
    scene = Scene()
    scene.traffic.stop()
    scene.machine.server_bytes(close_frame(1012, "service restart"))
    assert scene.said() == [CloseFrame(1012, "service restart")]


def test_messages_in_pieces_are_one() -> None:
    scene = Scene()
    first, last = bytes.fromhex("018337fa213d7f9f4d"), bytes.fromhex("808237fa213d5b95")
    scene.machine.client_bytes(first)
    assert scene.told() == []
    scene.machine.client_bytes(last)
    assert scene.told() == [text(1, "Hello")]
