"""A durable WebSocket's half towards its client: what that says is numbered and kept until it is done (RFC 6455)."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from enum import Enum
from typing import Final

from coatcheck.director.rules.actions import Action, Order, ToClient
from coatcheck.director.rules.admission import Guest
from coatcheck.director.rules.durable_upgrade import Upgrade
from coatcheck.director.rules.response_stream import ResponseStream
from coatcheck.director.rules.routing import ServerState
from coatcheck.director.rules.traffic import Traffic
from coatcheck.director.rules.websocket_frames import (
    GOING_AWAY,
    GONE,
    PING,
    PONG,
    CloseFrame,
    Ping,
    WebSocketReader,
    WebSocketViolation,
    WholeMessage,
    close_frame,
    frame,
)
from coatcheck.durable_words import MAX_TICKET_BYTES, WORD_BYTES, Ended, Have, NumberedMessage

PING_EVERY_S: Final = 20.0
"""How long a client may say nothing before it is asked whether it is there; it has twice as long to answer."""
NEVER: Final = float("inf")


class ClientSide(Enum):
    """What is left of the client's connection."""

    OPEN = "it may say more, and is told what comes"
    ENDED = "it has said its last word; ours may still be on its way"
    GONE = "there is none any more"


class ServerSide(Enum):
    """How the web server is reached."""

    JOINED = "a web server has the WebSocket"
    WAITING = "there is none that takes it"
    CONNECTING = "a connection to one is being opened"
    ASKED = "one was asked to go on, and has not answered"
    OVER = "none is needed any more"


_OPEN, _ENDED, _GONE = ClientSide
_JOINED, _WAITING, _CONNECTING, _ASKED, _OVER = ServerSide
_MOVING: Final = (_WAITING, _CONNECTING, _ASKED)


class DurableClientHalf(ABC):
    """Takes messages in, in order and within bounds, and sees the client off."""

    __slots__ = (
        "_asked_client_at", "_blamed", "_client", "_client_full", "_close_by", "_committed",
        "_draining_since", "_end", "_finish_by", "_from_client", "_from_server", "_guests", "_have",
        "_heard_client_at", "_kept", "_kept_bytes", "_last", "_last_byte_at", "_move_by", "_not_before",
        "_reading_client", "_response", "_side", "_ticket", "_traffic", "_tried", "_tries", "_upgrade", "actions",
        "server",
    )  # fmt: skip

    def __init__(self, traffic: Traffic, server: ServerState, guests: Sequence[Guest], upgrade: Upgrade) -> None:
        """``upgrade``: what was asked of the first web server, and what that has answered."""
        limits = traffic.limits
        self._traffic = traffic
        self.server: ServerState | None = server
        self._guests = guests
        self._upgrade = upgrade
        self._ticket = upgrade.ticket
        self.actions: list[Action] = []
        self._from_client = WebSocketReader(masked=True, max_bytes=limits.max_websocket_message_bytes)
        self._from_server = self._server_reader(deflated=upgrade.deflated)
        self._response = ResponseStream(traffic.response_reader, limits.max_response_head_bytes)
        self._client, self._side = _OPEN, _JOINED
        self._client_full = False
        self._reading_client = True
        self._kept: deque[NumberedMessage] = deque()
        """The client's messages that are not committed, in order."""
        self._kept_bytes = 0
        self._last = self._committed = self._have = 0
        self._end: Ended | None = None
        self._blamed = self._tries = 0
        self._tried: set[ServerState] = set()
        self._move_by = self._close_by = self._finish_by = NEVER
        self._not_before = 0.0
        self._draining_since: float | None = None
        self._last_byte_at = self._heard_client_at = self._asked_client_at = traffic.now

    def _server_reader(self, *, deflated: bool) -> WebSocketReader:
        most = self._traffic.limits.max_websocket_message_bytes + WORD_BYTES + MAX_TICKET_BYTES
        return WebSocketReader(masked=False, max_bytes=most, deflated=deflated)

    # The client

    def client_bytes(self, data: bytes) -> None:
        """Bytes came from the client."""
        self._last_byte_at = self._heard_client_at = self._traffic.now
        if self._client is _GONE:
            return
        self._from_client.feed(data)
        self._read_client()

    def client_full(self) -> None:
        """The client does not take what is written."""
        self._client_full = True
        if self._side is _JOINED:
            self.actions.append(Order.PAUSE_SERVER)
        self._read_client()

    def client_ready(self) -> None:
        """The client takes bytes again."""
        self._client_full = False
        if self._side is _JOINED:
            self.actions.append(Order.RESUME_SERVER)
        self._read_client()

    def client_eof(self) -> None:
        """The client ends its side: without a close frame it is gone (RFC 6455, 7.1.5)."""
        if self._client is not _GONE:
            self.actions.append(Order.CLOSE_CLIENT)
            self._client_ended(GONE, "")

    def client_lost(self) -> None:
        """The client's connection is gone."""
        self._client_ended(GONE, "")
        self._client = _GONE
        for guest in self._guests:
            guest.leave()
        self._check_over()

    @property
    def _may_take_more(self) -> bool:
        """Whether there is room for one more message of the client's, and for what answers a ping."""
        limits = self._traffic.limits
        return (
            not self._client_full
            and self._kept_bytes < limits.kept_websocket_bytes
            and len(self._kept) < limits.kept_websocket_messages
        )

    def _read_client(self) -> None:
        try:
            while self._client is not _GONE and (self._client is _ENDED or self._may_take_more):
                event = self._from_client.next()
                if event is None:
                    break
                if isinstance(event, CloseFrame):
                    self._client_closed(event)
                    return
                if self._client is _OPEN:
                    self._take_from_client(event)
        except WebSocketViolation as violation:
            if self._client is _OPEN:
                self._close_client(violation.code, str(violation))
            else:
                self.actions.append(Order.ABORT_CLIENT)
            return
        reads = self._client is _ENDED or self._may_take_more
        if reads is not self._reading_client and self._client is not _GONE:
            self._reading_client = reads
            self.actions.append(Order.RESUME_CLIENT if reads else Order.PAUSE_CLIENT)

    def _take_from_client(self, event: object) -> None:
        if isinstance(event, Ping):
            self.actions.append(ToClient(frame(PONG, event.data)))
        elif isinstance(event, WholeMessage):
            self._last += 1
            message = NumberedMessage(self._last, event.is_text, event.data)
            self._kept.append(message)
            self._kept_bytes += len(event.data)
            if self._side is _JOINED:
                self._tell_server(message)

    def _client_closed(self, close: CloseFrame) -> None:
        """Its close frame: the answer to ours, or to be answered (RFC 6455, 5.5.1)."""
        if self._client is _OPEN:
            self.actions.append(ToClient(close_frame(close.code)))
        self.actions.append(Order.CLOSE_CLIENT)
        self._client_ended(close.code, close.reason)

    def _close_client(self, code: int, reason: str) -> None:
        """Our close frame: nothing is said behind it, and what comes is not read but for the client's own."""
        if self._client is _OPEN:
            self.actions.append(ToClient(close_frame(code, reason)))
            self._client_ended(code, reason)

    def _client_ended(self, code: int, reason: str) -> None:
        """No more messages of it count; those that it has sent still reach the app."""
        if self._client is not _OPEN:
            return
        limits, now = self._traffic.limits, self._traffic.now
        self._client = _ENDED
        self._close_by = now + limits.websocket_close_s
        self._finish_by = now + limits.first_byte_timeout_s
        self._end = Ended(code, reason)
        if self._side is _JOINED:
            self._tell_server(self._end)
        elif self._side in _MOVING and not self._kept:
            self._give_up(code, reason)
        if not self._reading_client:
            self._reading_client = True
            self.actions.append(Order.RESUME_CLIENT)

    def _look_after_client(self, now: float) -> None:
        if now - self._last_byte_at >= self._traffic.limits.websocket_timeout_s:
            self._close_client(GOING_AWAY, "silent for too long")
        elif not self._reading_client:
            self._heard_client_at = now
        elif now - self._heard_client_at >= 3 * PING_EVERY_S:
            self.actions.append(Order.ABORT_CLIENT)
        elif now - max(self._heard_client_at, self._asked_client_at) >= PING_EVERY_S:
            self._asked_client_at = now
            self.actions.append(ToClient(frame(PING, b"")))

    # What it asks of the half towards the web servers

    @abstractmethod
    def _tell_server(self, word: NumberedMessage | Have | Ended) -> None:
        """Say it to the web server that has the WebSocket."""

    @abstractmethod
    def _give_up(self, code: int, reason: str) -> None:
        """No web server is to have it any more."""

    @abstractmethod
    def _check_over(self) -> None:
        """Is anything left of it?"""
