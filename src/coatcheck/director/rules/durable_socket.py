"""A durable WebSocket without its sockets: the client is held here, and its web server may be another one tomorrow.

The director ends the WebSocket of both sides. It numbers the client's messages and keeps each until a web server says
that what it did is stored; what web servers send has numbers, too, and is passed on once (docs/durable-websockets.md).
Events come in as calls; what is to be done comes out in :attr:`DurableSocket.actions`.
"""

from __future__ import annotations

from typing import Final

from coatcheck.director.rules.actions import Order, Reach, ReleaseServer, ToClient, ToServer
from coatcheck.director.rules.delivery import Failure
from coatcheck.director.rules.durable_client_half import NEVER, ClientSide, DurableClientHalf, ServerSide
from coatcheck.director.rules.durable_upgrade import UpgradeAnswer, read_answer
from coatcheck.director.rules.http_framing import BadHead
from coatcheck.director.rules.routing import Health
from coatcheck.director.rules.server_half import Ending
from coatcheck.director.rules.websocket_frames import (
    BINARY,
    FAILED,
    NORMAL,
    PONG,
    RESTART,
    TEXT,
    TOO_BIG,
    CloseFrame,
    Ping,
    WebSocketViolation,
    WholeMessage,
    close_frame,
    frame,
)
from coatcheck.durable_words import (
    CONNECT_ANEW,
    GO_ELSEWHERE,
    BadWord,
    Committed,
    Ended,
    Have,
    NumberedMessage,
    decode,
    encode,
)

MAX_TRIES: Final = 5
"""Web servers that may have the same message of the client's one after the other, and not finish it: dead or not, the
message may be why."""
FIRST_PAUSE_S: Final = 0.1
"""Behind a web server that could not store what a message did; twice as long behind the next."""
_POLICY_VIOLATION: Final = 1008


_OPEN, _ENDED, _GONE = ClientSide
_JOINED, _WAITING, _CONNECTING, _ASKED, _OVER = ServerSide
_MOVING: Final = (_WAITING, _CONNECTING, _ASKED)


class DurableSocket(DurableClientHalf):
    """A WebSocket whose app has opted in, between a client and whichever web server has it.

    It counts as a request in flight where it is, and as a WebSocket until it is over.
    """

    __slots__ = ()

    def opened(self, early: bytes, *, client_full: bool) -> None:
        """Both connections are ours now; ``early``: what the client sent before the upgrade was agreed."""
        self._traffic.tunnels[self] = None
        self._client_full = client_full
        self.actions.append(Order.PAUSE_SERVER if client_full else Order.RESUME_SERVER)
        self._from_client.feed(early)
        self._reading_client = False
        self._read_client()
        if self._upgrade.behind:
            self.server_bytes(self._upgrade.behind)

    # What the traffic asks of its members

    @property
    def is_over(self) -> bool:
        """Whether nothing is left of it."""
        return self._client is _GONE and self._side is _OVER

    def server_died(self) -> None:
        """The process that has it has ended."""
        if self._side in (_JOINED, _CONNECTING, _ASKED):
            self._leave_server()
            self._server_lost()

    def abort(self) -> None:
        """End both connections now."""
        if self._side in (_JOINED, _CONNECTING, _ASKED):
            self._leave_server()
        self._server_over()
        if self._client is not _GONE:
            self.actions.append(Order.ABORT_CLIENT)

    def tick(self) -> None:
        """Time has passed."""
        now, limits = self._traffic.now, self._traffic.limits
        if self._client is _OPEN:
            self._look_after_client(now)
        elif now >= self._close_by:
            self._close_by = NEVER
            self.actions.append(Order.ABORT_CLIENT)
        if now >= self._move_by or (self._side is not _OVER and now >= self._finish_by):
            self._give_up(RESTART, "service restart")
        elif self._side in _MOVING:
            self._look_after_move(now)
        elif self._side is _JOINED and self.server is not None:
            if not self.server.draining:
                self._draining_since = None
            elif self._draining_since is None:
                self._draining_since = now
            elif now - self._draining_since >= limits.tunnel_drain_s:
                self._leave_server()
                self._move()

    def _look_after_move(self, now: float) -> None:
        if self._traffic.stopping:
            self._give_up(RESTART, "service restart")
        elif self._side is _WAITING and now >= self._not_before:
            self._tried.clear()
            self._choose()
        elif self._side is _ASKED and self.server is not None and self.server.health is not Health.HEALTHY:
            self._leave_server()
            self._choose()

    # The web server that has it

    def server_bytes(self, data: bytes) -> None:
        """Bytes came from the web server."""
        self._last_byte_at = self._traffic.now
        self._traffic.heard(self.server)
        try:
            if self._side is _ASKED:
                data = self._take_answer(data)
            had = self._have
            if self._side is _JOINED:
                self._from_server.feed(data)
            while self._side is _JOINED and (event := self._from_server.next()) is not None:
                self._take_from_server(event)
        except (BadHead, BadWord, WebSocketViolation) as error:
            if isinstance(error, WebSocketViolation) and error.code == TOO_BIG:
                # The next web server would say the same.
                self._give_up(TOO_BIG, str(error))
                return
            self._leave_server()
            self._server_lost()
            return
        if self._side is _JOINED and self._have > had:
            self._tell_server(Have(self._have))

    def _take_from_server(self, event: object) -> None:
        if isinstance(event, Ping):
            self.actions.append(ToServer(frame(PONG, event.data, masked=True)))
        elif isinstance(event, CloseFrame):
            self._server_closes(event)
        elif isinstance(event, WholeMessage):
            word = decode(event.data)
            if isinstance(word, NumberedMessage):
                self._pass_on(word)
            elif isinstance(word, Committed):
                self._commit(word)
            else:
                raise BadWord("a word that only directors say")

    def _pass_on(self, message: NumberedMessage) -> None:
        if message.number <= self._have:
            return  # It left before the web server before this one died.
        if message.number != self._have + 1:
            raise BadWord(f"message {message.number} behind {self._have}")
        self._have = message.number
        if self._client is _OPEN:
            self.actions.append(ToClient(frame(TEXT if message.is_text else BINARY, message.data)))

    def _commit(self, word: Committed) -> None:
        if not self._committed <= word.number <= self._last:
            raise BadWord(f"{word.number} is done, of {self._last}")
        self._committed = word.number
        self._ticket = word.ticket
        self._move_by = NEVER
        while self._kept and self._kept[0].number <= word.number:
            self._kept_bytes -= len(self._kept.popleft().data)
        self._read_client()

    def _server_closes(self, close: CloseFrame) -> None:
        self.actions += [ToServer(close_frame(close.code, masked=True)), ReleaseServer(keep=False)]
        if close.code == GO_ELSEWHERE and not self._traffic.stopping:
            self._not_finished()
            if self._tries > 1:
                self._not_before = self._traffic.now + FIRST_PAUSE_S * 2**self._tries
            self._move()
            return
        self._server_over()
        if close.code == CONNECT_ANEW:
            self._close_client(RESTART, "service restart")
        elif close.code == GO_ELSEWHERE:
            self._close_client(RESTART, close.reason)
        else:
            self._close_client(close.code if close.code >= NORMAL else FAILED, close.reason)

    def server_ended(self, ending: Ending) -> None:
        """The connection to the web server has ended, and no close frame said so."""
        if self._side in (_JOINED, _ASKED):
            self._leave_server()
            self._server_lost()

    def server_full(self) -> None:
        """It takes no more for now: what is kept is bounded, and so is what waits for it."""

    def server_ready(self) -> None:
        """It takes bytes again."""

    def _tell_server(self, word: NumberedMessage | Have | Ended) -> None:
        self.actions.append(ToServer(frame(BINARY, encode(word), masked=True)))

    def _leave_server(self) -> None:
        self.actions.append(Order.LEAVE_SERVER)

    def _let_go_of_server(self) -> None:
        if self.server is not None:
            self.server.in_flight -= 1
            self.server = None
        self._draining_since = None

    def _server_lost(self) -> None:
        """It died, or speaks nonsense."""
        self._not_finished()
        if self.server is not None:
            self.server.failures += 1
            self._tried.add(self.server)
            self._traffic.check_now(self.server)
        self._move()

    def _not_finished(self) -> None:
        """It had the first of the client's messages, and has not finished it."""
        if self._side is _JOINED and self._kept:
            first = self._kept[0].number
            self._tries = self._tries + 1 if first == self._blamed else 1
            self._blamed = first

    def _give_up(self, code: int, reason: str) -> None:
        """No web server is to have it any more."""
        if self._side in (_JOINED, _CONNECTING, _ASKED):
            self._leave_server()
        self._move_by = NEVER
        self._server_over()
        self._close_client(code, reason)

    def _server_over(self) -> None:
        self._let_go_of_server()
        self._side = _OVER
        self._check_over()

    def _check_over(self) -> None:
        if self.is_over:
            self._traffic.tunnels.pop(self, None)

    # On to another one

    def _move(self) -> None:
        self._let_go_of_server()
        if self._client is not _OPEN and not self._kept:
            self._server_over()
        elif self._tries >= MAX_TRIES:
            self._give_up(FAILED, "a message that no web server finishes")
        else:
            if self._move_by == NEVER:
                self._move_by = self._traffic.now + self._traffic.limits.websocket_move_s
            self._side = _WAITING
            if self._traffic.now >= self._not_before:
                self._choose()

    def _choose(self) -> None:
        self._let_go_of_server()
        upgrade, balancer = self._upgrade, self._traffic.balancer
        chosen = balancer.choose(upgrade.tag, self._tried, browser=upgrade.browser, patient=False)
        if chosen is None or chosen in self._tried:
            # Not at once: who has just failed may be asked again a tick later.
            self._side = _WAITING
            return
        self._tried.add(chosen)
        self.server = chosen
        chosen.in_flight += 1
        chosen.requests += 1
        self._side = _CONNECTING
        self.actions.append(Reach(chosen, certain=True, fresh=True))

    def connected(self, *, reused: bool, full: bool) -> None:
        """A connection was had: ask for the very same WebSocket."""
        self._side = _ASKED
        self._response.forget()
        self.actions.append(ToServer(self._upgrade.again(self._have, self._ticket)))

    def not_connected(self, failure: Failure) -> None:
        """No connection was to be had."""
        self._choose()

    def _take_answer(self, data: bytes) -> bytes:
        """The head of what a web server answers that was asked to go on; returns what came behind it."""
        answer: UpgradeAnswer | None = read_answer(self._response, data)
        if answer is None:
            return b""
        if not answer.goes_on:
            if answer.is_final:
                self._give_up(_POLICY_VIOLATION if answer.is_refused else RESTART, "")
            else:
                self._leave_server()
                self._choose()
            return b""
        self._traffic.resumed_websockets += 1
        # Whether it goes on is settled by its first word about what is done.
        self._side = _JOINED
        self._tried.clear()
        self._from_server = self._server_reader(deflated=False)
        if self._client_full:
            self.actions.append(Order.PAUSE_SERVER)
        for message in self._kept:
            self._tell_server(message)
        if self._end is not None:
            self._tell_server(self._end)
        return answer.behind
