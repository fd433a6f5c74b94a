"""A web server's sessions, as its requests ask for them: open, finish and end, on asyncio."""

from __future__ import annotations

import asyncio
import logging
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cache
from typing import Final, TypeVar

from coatcheck.drivers.asyncio_driver import AsyncioDriver
from coatcheck.drivers.own_loop import on_own_loop
from coatcheck.drivers.visit import VISIT, visiting
from coatcheck.drivers.watching import Watching
from coatcheck.errors import ConflictError, SessionUnavailable, TokenReason, TokenRejected, UnavailableReason
from coatcheck.events import Event, EventKind
from coatcheck.replication.effects import Exclusive, Flow
from coatcheck.replication.stall_guard import StallGuard
from coatcheck.sessions.answer import NO_HEADERS, Answer, CookieTransport
from coatcheck.sessions.by_token import ByToken
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.durable import SocketState, SocketTicket, TicketCodec
from coatcheck.sessions.ending import SessionEnd
from coatcheck.sessions.issuing import Issue
from coatcheck.sessions.lifecycle import Lifecycle
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.opened import Opened, Phase
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.request_state import RequestState
from coatcheck.sessions.requests import Requests
from coatcheck.sessions.routes import Header, Sticky
from coatcheck.tokens.sealed import TokenCodec

T = TypeVar("T")

_log: Final = logging.getLogger("coatcheck.sessions")


@cache
def _warn_once(line: str) -> None:
    _log.warning("%s", line)


class SessionRequests(ABC):
    """What :class:`coatcheck.drivers.sessions.Sessions` does for requests."""

    requests: Requests
    by_token: ByToken
    lifecycle: Lifecycle
    transport: CookieTransport
    loop: asyncio.AbstractEventLoop | None
    _policy: SessionPolicy
    _codecs: dict[bool, TokenCodec]
    _tickets: TicketCodec
    _driver: AsyncioDriver | None
    _stall_guard: StallGuard | None

    @abstractmethod
    async def on_this_loop(self) -> SessionRequests:
        """Those of the running event loop, started."""

    @property
    @abstractmethod
    def watching(self) -> Watching:
        """Who is told when sessions end."""

    @abstractmethod
    def report(self, event: Event) -> None:
        """Tell operators."""

    def transport_of(
        self, cookies: CookiePolicy, route_tag: str | None = None, sticky: Sticky = "browser"
    ) -> CookieTransport:
        """How these sessions travel in cookies of that kind; raises :class:`ConfigError`.

        What they promise and these sessions do not hold is a warning in the log, once in each process.
        """
        for line in cookies.misfits(self._policy.idle_timeout_ms / 1000, self._policy.rotate_after_ms / 1000):
            _warn_once(line)
        return CookieTransport(cookies, self._policy.absolute_timeout_ms / 1000, route_tag, sticky)

    async def open(
        self,
        cookie_header: bytes = b"",
        client: str | None = None,
        transport: CookieTransport | None = None,
        method: str = "",
        headers: Iterable[Header] = NO_HEADERS,
    ) -> Opened:
        """Begin with a request: its session, at once where it is hosted here. ``cookie_header``: its Cookie headers,
        joined by ``; ``; ``client``: the host that asks, if the server knows it; ``method`` and ``headers``: the
        request's own, of which a user is shown the User-Agent, and by which a GET is known.

        Raises :class:`SessionUnavailable`: no session is invented while the right one is out of reach;
        :meth:`Answer.refusal` says what to answer then.
        """
        home = self if self.loop is asyncio.get_running_loop() else await self.on_this_loop()
        opened = Opened(home, cookie_header, client, transport or self.transport, method, headers)
        await home.load(opened)
        return opened

    async def load(self, opened: Opened) -> None:
        """Open the session of a request that was begun, on the event loop that these sessions belong to."""
        loading = self.requests.open(opened)
        if loading is not None:
            await self.run_for(opened, loading)

    def beats(self) -> bool:
        """Whether the heart-beat is in time, so that another thread may be served from what is hosted here."""
        return self._stall_guard is not None and not self._stall_guard.is_late()

    async def finish(self, opened: Opened, status: int = 200, headers: Iterable[Header] = NO_HEADERS) -> Answer:
        """When the app's response starts, with this status and these headers: what to send instead of them.

        Returns when what the request did is acknowledged, or with a refusal (:attr:`Answer.refused`) when it was not.
        Raises :class:`SessionDataError` for what cannot be stored, with nothing stored: then the app's error page can
        be finished. Raises :class:`CoatcheckError` for a request that was finished before.
        """
        home: SessionRequests = opened.home
        answer = home.requests.finish(opened, status, headers)
        if isinstance(answer, Answer):
            return answer
        try:
            return await home.run_for(opened, answer)
        except SessionUnavailable as unavailable:
            return home.requests.refuse(opened, unavailable)

    async def save(self, opened: Opened) -> None:
        """Between :meth:`finish` and :meth:`end`, for what stays open (a WebSocket): store what was changed since.

        Returns when it is acknowledged. Repeatable. Raises as :meth:`end` does, and then nothing of this request can be
        stored any more.
        """
        home: SessionRequests = opened.home
        storing = home.requests.save(opened)
        if storing is not None:
            await home.run_for(opened, storing)

    async def look_again(self, opened: Opened) -> None:
        """See in the session what others have stored since it was read; what was changed and not saved is dropped then.

        Raises :class:`SessionUnavailable`, and :class:`SessionClosed` if it is over.
        """
        home: SessionRequests = opened.home
        looking = home.lifecycle.look_again(opened.session)
        if looking is not None:
            await home.run_for(opened, looking)

    async def take_over(self, opened: Opened, ticket: bytes) -> tuple[SocketTicket, SocketState]:
        """Begin, in place of :meth:`open`, with a WebSocket that another web server had.

        Raises :class:`SessionClosed` if its session is over, :class:`SessionUnavailable` if that cannot be known now,
        and :class:`ConflictError` if nobody can go on with it.
        """
        home: SessionRequests = opened.home
        opened.demand(Phase.OPENING, "take_over")
        try:
            found = home._tickets.open(ticket)
        except TokenRejected as rejection:
            self._rejected(rejection.reason, opened.client)
            raise ConflictError(f"the WebSocket's ticket: {rejection.reason.value}") from None
        opened.session, state = await home.run_for(opened, home.lifecycle.take_over(found))
        opened.phase = Phase.OPEN
        return found, state

    def ticket(self, opened: Opened, socket: bytes) -> bytes:
        """What :meth:`take_over` takes, of a WebSocket of this request, as its session is stored now."""
        home: SessionRequests = opened.home
        return home._tickets.seal(home.lifecycle.ticket_for(opened.session, socket))

    async def end(self, opened: Opened) -> None:
        """Before the last piece of a streamed body leaves: store what was changed since :meth:`finish`. Repeatable.

        Raises :class:`CoatcheckError` for what needs a cookie (a new session, a login): its time has passed; and
        :class:`SessionUnavailable`, :class:`SessionClosed`, :class:`ConflictError` and :class:`SessionDataError` for
        what was not stored.
        """
        home: SessionRequests = opened.home
        storing = home.requests.end(opened)
        if storing is not None:
            await home.run_for(opened, storing)

    async def run_for(self, opened: Opened, flow: Flow[T] | Exclusive) -> T:
        """Run a flow in the name of the client that asks.

        Raises what the flow raises, and :class:`SessionUnavailable` where the sessions were closed meanwhile.
        """
        before = VISIT.set(opened)
        try:
            if self._driver is None:
                raise SessionUnavailable(UnavailableReason.STOPPING)
            result: T = await self._driver.run(flow)
        except BaseException:
            opened.give_up()
            raise
        finally:
            VISIT.reset(before)
        if opened.lost is not None and opened.session.is_new:
            opened.session._request.lost = opened.lost
        return result

    def _rejected(self, reason: TokenReason, client: str | None) -> None:
        with visiting(client):
            self.report(Event(EventKind.TOKEN_REJECTED, detail=reason.value))

    def seal(self, issue: Issue) -> bytes:
        """The text of a token for the browser."""
        return self._codecs[issue.login].seal_token(issue.token)

    # -- by the token that names it, outside of a request --------------------------------------------

    async def find_by_token(self, text: bytes) -> Session | None:
        """The session that a token names, or ``None``; raises as :meth:`ByToken.find`, and changes nothing."""
        found: Session | None = await self._run(self.by_token.find(text))
        return found

    async def store_now(self, session: Session) -> bytes:
        """Store what was done to a session that was found or opened, or is to begin, before any answer leaves.

        Returns the text of its newest token when it is acknowledged. Raises as :meth:`ByToken.store`.
        """
        stored: bytes = await self._run(self.by_token.store(session))
        return stored

    async def close_by_token(self, text: bytes) -> None:
        """Close the session that a token names; raises as :meth:`ByToken.close`."""
        await self._run(self.by_token.close(text))

    async def _run(self, flow: Flow[T]) -> T:
        if self._driver is None:
            flow.close()
            raise SessionUnavailable(UnavailableReason.STOPPING)
        result: T = await self._driver.run(flow)
        return result

    @on_own_loop
    async def ended(self, request: RequestState) -> SessionEnd:
        """Wait until the session is over, wherever it is ended, and return why."""
        over: asyncio.Future[SessionEnd] = asyncio.get_running_loop().create_future()
        copy = request.copy_held
        if copy is None:
            return await over  # what does not exist does not end
        watch = self.watching.watch(copy.key, lambda end: None if over.done() else over.set_result(end))
        try:
            return await over
        finally:
            self.watching.forget(watch)
