"""WebSockets that outlive their web server: what an app writes, and what is kept of it in the session (mission N15)."""

from __future__ import annotations

import asyncio
import contextlib
import os
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, NoReturn

from coatcheck.durable_words import (
    CONNECT_ANEW,
    GO_ELSEWHERE,
    Committed,
    Ended,
    Have,
    NumberedMessage,
    Word,
    decode,
    encode,
)
from coatcheck.errors import CoatcheckError, ConfigError, ConflictError, SessionClosed, SessionUnavailable
from coatcheck.sessions.durable import SOCKET_ID_BYTES, SentMessage, SocketChange, SocketState
from coatcheck.sessions.going_on import give_up_changes
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Phase
from coatcheck.web.holding import HOLDING_KEY, HeldWebSocket
from coatcheck.web.interface import Header, Receive, Scope, Send
from coatcheck.web.open_websocket import POLICY_VIOLATION, SCOPE_KEY, TRY_AGAIN_LATER, HungUp

NORMAL: Final = 1000
INTERNAL_ERROR: Final = 1011
LAST_WORD_S: Final = 5.0
"""How long the director may take to have the last answers, before the web server forgets them."""

Handler = Callable[["DurableWebSocket"], Awaitable[None]]


def durable_websocket(handler: Handler) -> DurableApp:
    """An ASGI app of a function that is given a :class:`DurableWebSocket`: put it on a WebSocket route.

    The function is called again on another web server when this one dies, is drained or replaced: what it needs to go
    on is in the session.
    """
    return DurableApp(handler)


class DurableApp:
    """What :func:`durable_websocket` makes."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        holding = scope.get(HOLDING_KEY)
        if scope["type"] != "websocket" or holding is None:
            raise ConfigError("durable_websocket: it serves WebSockets that come through coatcheck's SessionMiddleware")
        socket = DurableWebSocket(scope, receive, send, holding)
        try:
            await self._handler(socket)
            await socket.close()
        except HungUp:
            return  # Another web server has it by now, or nobody is there any more.
        except Exception:
            await socket._fail()
            raise
        finally:
            socket._stop_reading()


class DurableWebSocket:
    """One WebSocket, whichever web server has it; made by :func:`durable_websocket`.

    A message is done when the next one is asked for: then what was changed in :attr:`session` meanwhile, and what was
    sent, is stored in one write, and leaves. A web server that dies before has done nothing; the next one gets the
    message again. Behind a director that cannot hold it, it is a WebSocket as any other.
    """

    def __init__(self, scope: Scope, receive: Receive, send: Send, holding: HeldWebSocket) -> None:
        self.scope = scope
        self._receive = receive
        self._send = send
        self._holding = holding
        self._held = holding.offered
        self._state = holding.left
        self.resumed = holding.left is not None
        """Whether another web server had it before."""
        self.close_code: int | None = None
        """With which code the client has left; ``None``: it is there."""
        self._have = holding.have
        self._number = 0
        self._handling = self._accepted = self._over = False
        self._answers: list[SentMessage] = []
        # In a farm the director keeps, and sends, a bounded number of messages; else the client is read one by one.
        self._queue: asyncio.Queue[NumberedMessage | Ended | None] = asyncio.Queue(0 if self._held else 1)
        self._lock = asyncio.Lock()
        self._reader: asyncio.Task[None] | None = None
        self._restart: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._progress = asyncio.Event()

    @property
    def session(self) -> Session:
        """The session: change it while a message is handled, and read from it what others have changed since."""
        return self._holding.opened.session

    # -- what an app calls -------------------------------------------------------------------------

    async def accept(self, subprotocol: str | None = None, headers: Iterable[Header] = ()) -> None:
        """Agree to the handshake, or go on with what another web server had."""
        connect = await self._receive()
        if connect["type"] != "websocket.connect":
            raise HungUp("the client was gone before it was accepted")
        self._hold()
        self._accepted = True
        await self._say({"type": "websocket.accept", "subprotocol": subprotocol, "headers": list(headers)})
        if self._holding.opened.phase is Phase.ENDED:
            self._over = True
            raise HungUp("its session cannot be stored, so it was refused")
        self._reader = asyncio.get_running_loop().create_task(self._read())
        if self._state is None:
            return
        websocket = self.scope.get(SCOPE_KEY)
        if websocket is not None:
            websocket.on_restart = self._let_go_soon
        self._number = self._state.done
        await self._tell_committed(self._state.sent, self._state.answers)
        if self._state.close is not None:
            await self._end(*self._state.close)

    def __aiter__(self) -> DurableWebSocket:
        return self

    async def __anext__(self) -> str | bytes:
        """The client's next message; the one before is done. The loop ends when the client has left."""
        await self._commit()
        word = await self._next()
        if isinstance(word, Ended):
            self.close_code = word.code
            raise StopAsyncIteration
        await self._guard(self._home.look_again(self._holding.opened))
        self._number, self._handling = word.number, True
        return word.data.decode() if word.is_text else word.data

    def send(self, message: str | bytes) -> None:
        """Answer the message that is handled: it leaves when that is done. Raises :class:`TypeError`."""
        if not isinstance(message, str | bytes):
            raise TypeError(f"a WebSocket carries text or bytes, not {type(message).__name__}")
        if self._over:
            raise HungUp("this web server does not have the WebSocket any more")
        is_text = isinstance(message, str)
        self._answers.append(SentMessage(is_text, message.encode() if isinstance(message, str) else message))

    async def push(self, message: str | bytes) -> None:
        """Send what answers nothing: at once, or with the message that is handled just now."""
        self.send(message)
        if not self._handling:
            await self._commit()

    async def close(self, code: int = NORMAL, reason: str = "") -> None:
        """Close it, behind what was sent. Repeatable; done at the end of the function, if not before."""
        if self._over:
            return
        if not self._accepted:
            self._over = True
            await self._say({"type": "websocket.close", "code": code, "reason": reason})
            return
        await self._commit((code, reason))
        with contextlib.suppress(HungUp):  # that is what was asked for
            await self._end(code, reason)

    # -- what the session keeps --------------------------------------------------------------------

    @property
    def _home(self) -> Any:
        return self._holding.opened.home

    def _hold(self) -> None:
        """With the acceptance the session begins, if there is none, and learns of this WebSocket."""
        holding = self._holding
        holding.accepted = self._held
        if self._state is None and (self._held or self.session.is_new):
            holding.socket = os.urandom(SOCKET_ID_BYTES)
            if self._held:
                self._state = SocketState(1, 0, 0, (), None, self._home.requests.now_ms())
            request = holding.opened.session._request
            request.socket, request.unsettled = SocketChange(holding.socket, None, self._state), True

    async def _commit(self, close: tuple[int, str] | None = None) -> None:
        """Store what was done and what is to be said for it, then say it."""
        async with self._lock:
            if self._over:
                raise HungUp("this web server does not have the WebSocket any more")
            if not (self._handling or self._answers or close):
                return
            answers, before = tuple(self._answers), self._state
            after = None
            if before is not None:
                now = self._home.requests.now_ms()
                after = before.after(self._number, answers, self._have, close, now)
                self._holding.opened.session._request.socket = SocketChange(self._holding.socket, before, after)
            await self._guard(self._home.save(self._holding.opened))
            self._state, self._handling = after, False
            del self._answers[: len(answers)]
            if before is None:
                for answer in answers:
                    await self._say(_plain(answer))
            else:
                await self._tell_committed(before.sent + len(before.answers), answers)

    async def _tell_committed(self, sent: int, answers: tuple[SentMessage, ...]) -> None:
        for number, answer in enumerate(answers, sent + 1):
            if number > self._have:
                await self._tell(NumberedMessage(number, answer.is_text, answer.data))
        if self._state is not None:
            opened = self._holding.opened
            await self._tell(Committed(self._state.done, self._home.ticket(opened, self._holding.socket)))

    async def _guard(self, work: Awaitable[None]) -> None:
        """What cannot be stored here is done by another web server, or by nobody: the session is over."""
        try:
            await work
        except SessionClosed:
            await self._leave(POLICY_VIOLATION, "session closed")
        except (ConflictError, SessionUnavailable) as error:
            code = GO_ELSEWHERE if self._held else TRY_AGAIN_LATER
            await self._leave(code, str(error))

    async def _forget(self) -> None:
        """Nothing of it need be kept: the client has all, or it has failed."""
        if self._state is not None:
            request = self._holding.opened.session._request
            request.socket = SocketChange(self._holding.socket, self._state, None)
        with contextlib.suppress(CoatcheckError):  # its session is over, or another web server has it
            await self._home.save(self._holding.opened)

    # -- the end -----------------------------------------------------------------------------------

    async def _end(self, code: int, reason: str) -> NoReturn:
        """Close when the director has what was said: after that nobody can ask for it again."""
        has_all = self._state is None or await self._said_all(self._state.sent + len(self._state.answers))
        if has_all:
            await self._forget()
        await self._leave(code, reason)

    async def _said_all(self, number: int) -> bool:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LAST_WORD_S):
                while self._have < number and self._reader is not None and not self._reader.done():
                    self._progress.clear()
                    await self._progress.wait()
        return self._have >= number

    async def _leave(self, code: int, reason: str = "") -> NoReturn:
        self._over = True
        await self._say({"type": "websocket.close", "code": code, "reason": reason[:100]})
        raise HungUp(f"the web server has closed this WebSocket: {code} {reason}")

    async def _fail(self) -> None:
        """The app has failed: of the message that it was at, nothing is kept."""
        if self._over or not self._accepted:
            return
        give_up_changes(self.session)
        await self._forget()
        with contextlib.suppress(HungUp):
            await self._leave(INTERNAL_ERROR)

    def _let_go_soon(self) -> None:
        """The web server stops, or is drained: behind the message that is handled, another one goes on."""
        if not self._restart.done():
            self._restart.set_result(None)

    # -- the wire ----------------------------------------------------------------------------------

    async def _next(self) -> NumberedMessage | Ended:
        getting = asyncio.ensure_future(self._queue.get())
        try:
            both: list[asyncio.Future[Any]] = [getting, self._restart]
            await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            if self._restart.done():
                await self._leave(GO_ELSEWHERE, "service restart")
        finally:
            if not getting.done():
                getting.cancel()
        word = getting.result()
        if word is None:
            self._over = True
            raise HungUp("the connection has ended")
        if isinstance(word, NumberedMessage) and self._held and word.number != self._number + 1:
            await self._leave(CONNECT_ANEW, "messages were lost")
        return word

    async def _read(self) -> None:
        """All that comes is taken in: a server that is not read answers no ping."""
        try:
            while True:
                event = await self._receive()
                if event["type"] == "websocket.disconnect":
                    ended = Ended(event.get("code") or 1005, event.get("reason") or "")
                    await self._queue.put(None if self._held else ended)
                    return
                await self._take(event)
        finally:
            self._progress.set()

    async def _take(self, event: Any) -> None:
        text = event.get("text")
        if not self._held:
            data = event["bytes"] if text is None else text.encode()
            await self._queue.put(NumberedMessage(0, text is not None, data))
            return
        word = decode(event.get("bytes") or b"")
        if isinstance(word, Have):
            self._have = max(self._have, word.number)
            self._progress.set()
        elif isinstance(word, Ended) or (isinstance(word, NumberedMessage) and word.number > self._done):
            await self._queue.put(word)

    @property
    def _done(self) -> int:
        return 0 if self._state is None else self._state.done

    def _stop_reading(self) -> None:
        if self._reader is not None:
            self._reader.cancel()

    async def _tell(self, word: Word) -> None:
        await self._say({"type": "websocket.send", "bytes": encode(word)})

    async def _say(self, message: dict[str, Any]) -> None:
        try:
            await self._send(message)
        except HungUp:
            self._over = True
            raise
        except OSError as error:  # ASGI: the other end is gone
            self._over = True
            raise HungUp(str(error)) from None


def _plain(answer: SentMessage) -> dict[str, Any]:
    if answer.is_text:
        return {"type": "websocket.send", "text": answer.data.decode()}
    return {"type": "websocket.send", "bytes": answer.data}
