"""A web server as shipped, on a simulated host: an app behind the middleware, called as an ASGI server calls it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, Final

from coatcheck.errors import CoatcheckError
from coatcheck.events import Event
from coatcheck.replication.closes import Closed
from coatcheck.replication.effects import Put
from coatcheck.replication.entry import Entry, Sealer
from coatcheck.replication.version import Version
from coatcheck.simulation.application import Attempt, Response, act
from coatcheck.simulation.ledger import Ledger
from coatcheck.simulation.site.director_host import tag_of
from coatcheck.simulation.site.front import ANSWER, NUMBER, answer_body
from coatcheck.simulation.site.http_server import listen
from coatcheck.simulation.site.observed import ObservedSessions, ObservedStore
from coatcheck.simulation.site.observed_rules import ATTEMPT
from coatcheck.simulation.site.session_host import PORT, SessionHost
from coatcheck.simulation.watched import WatchedWebServer
from coatcheck.simulation.world.machine import Machine
from coatcheck.stores.link import DEFAULT_TIMEOUT_S
from coatcheck.stores.session_server_store import SessionServerStore
from coatcheck.web.asgi import SessionMiddleware

Scope = dict[str, Any]
Done = Callable[[Response, BaseException | None, object], None]
"""Gets the answer, the error of a refused one, and in words why it is."""


FAILING: Final = 7
"""Of so many answers that go through a director one is of an app that fails behind it."""
FAILS_AFTER_S: Final = 0.2
"""As a task does that an app leaves in the background."""


class AppFails(Exception):
    """The app's own error, behind its answer."""


class ServedPage:
    """What the app is to read, and to answer with; ``pause_s``: after the first bytes of the answer; ``fails``: a
    moment after the last."""

    def __init__(self, think_s: float, body: bytes = b"", answer: bytes = b"") -> None:
        self.think_s = think_s
        self.body = body
        self.answer = answer
        self.pause_s = 0.0
        self.fails = False

    def headers(self) -> list[tuple[bytes, bytes]]:
        """An answer without a pause says how long it is."""
        return [] if self.pause_s else [(b"content-length", b"%d" % len(self.answer))]


class WebHostPlan:
    """What all web servers of a farm are started with."""

    def __init__(self, sessions: dict[str, Any], sealer: Sealer, judge: Ledger, password: str) -> None:
        self.sessions = sessions
        self.sealer = sealer
        self.judge = judge
        self.password = password


class WebHost(WatchedWebServer):
    """One run of a web server."""

    TIMEOUT_S = DEFAULT_TIMEOUT_S

    def __init__(
        self,
        site: Any,
        name: str,
        run: int,
        machine: Machine,
        plan: WebHostPlan,
        servers: dict[str, SessionHost],
        list_number: int,
    ) -> None:
        super().__init__(name, run, servers)
        self._site = site
        self.machine = machine
        self.judge = plan.judge
        self.sealer = plan.sealer
        self.hosts = servers
        self._is_ready = False
        self.ready_at = float("inf")
        self.tasks: dict[asyncio.Task[None], Attempt] = {}
        self._asking: Any = None
        self._puts: tuple[Attempt | None, bytes, Entry, dict[str, Version | None]] | None = None
        machine.call(self._build, plan, list_number)
        self._serving = machine.start(self._serve())

    def _build(self, plan: WebHostPlan, list_number: int) -> None:
        stores = [
            ObservedStore(
                SessionServerStore(
                    name, host.address, PORT, password=plan.password, server_name=name, on_event=lambda event: None
                ),
                self,
            )
            for name, host in self.hosts.items()
        ]
        self.sessions = ObservedSessions(
            self, server_name=self.name, stores=stores, list_number=list_number, observer=self._report,
            **plan.sessions, **self._site.keys.starts(self),
        )  # fmt: skip
        self.route_tag = tag_of(self.name)
        self.middleware = SessionMiddleware(self._app, self.sessions, route_tag=self.route_tag)
        cookies = self.sessions.cookies
        self.cookie_names = (cookies.full_name(), cookies.full_name("-login"))
        """Of the session of a browser, and of the one of a user who has logged in."""

    # -- what the judge asks -----------------------------------------------------------------------

    @property
    def alive(self) -> bool:
        return self.machine.alive

    @property
    def ready(self) -> bool:
        return self._is_ready

    @property
    def is_connected(self) -> bool:
        """Whether it serves, and reaches all its session servers."""
        return self.ready and all(map(self.copies.world.reachable, self.servers))

    def now_ms(self) -> int:
        answer: int = self.machine.call(self.copies.world.now_ms) if self.alive else 0
        return answer

    def unfinished(self) -> list[Any]:
        driver: Any = self.sessions.driver
        return [f"#{attempt.number}" for attempt in self.tasks.values()] + ["detached"] * len(driver._detached)

    # -- what the judge sees -----------------------------------------------------------------------

    def _report(self, event: Event) -> None:
        if self.alive:
            self._site.keys.judge(self, event)
            self.judge.reported(self, event)

    def asked(self, key: bytes, server: str) -> dict[str, Any]:
        """A copy is asked for; where the replies of this question belong."""
        now = self.judge.schedule.now
        _, replies = self.answered.get(key, (-1.0, {}))
        asking = (asyncio.current_task(), key, now)
        if asking != self._asking or server in replies:
            self._asking = asking
            replies = {}
            self.answered[key] = (now, replies)
            self.judge.looking(self, key, ATTEMPT.get())
            self._sent(key, now)
        return replies

    def _sent(self, key: bytes, now: float) -> None:
        self.note_sent(key, now, (name for name, host in self.hosts.items() if self._is_in_reach(name, host)))

    def _is_in_reach(self, name: str, host: SessionHost) -> bool:
        wire = self.machine._hosts.wire
        cut = wire.is_cut(self.name, name) or wire.is_cut(name, self.name)
        return host.alive and not host.frozen and not cut and self.copies.world.reachable(name)

    def putting(self, key: bytes, entry: Entry, server: str, seen: Version | None) -> None:
        """Puts of one entry to several servers are one."""
        puts = self._puts
        if puts is not None and puts[2] is entry and server not in puts[3]:
            puts[3][server] = seen
            return
        self._tell_puts()
        self._puts = (ATTEMPT.get(), key, entry, {server: seen})
        self._sent(key, self.judge.schedule.now)
        self.machine.loop.call_soon(self._tell_puts)

    def _tell_puts(self) -> None:
        puts, self._puts = self._puts, None
        if puts is not None and self.alive:
            attempt, key, entry, all_seen = puts
            self.judge.putting(self, attempt, Put(key, entry, all_seen))

    def loses_notice(self) -> bool:
        """Whether a message is lost that a session server has published. Its connection goes with it: on one that
        lives, none is missing."""
        chance = self._site.lost_notices
        return bool(chance) and self._site.dice.random() < chance

    # -- the process -------------------------------------------------------------------------------

    async def _serve(self) -> None:
        """The life of the app, as an ASGI server leads it."""
        started = False

        async def receive() -> Scope:
            nonlocal started
            if started:
                await asyncio.get_running_loop().create_future()  # it is never stopped in order
            started = True
            return {"type": "lifespan.startup"}

        async def send(message: Scope) -> None:
            if self._site.front is not None:
                await listen(self.name, self.machine.address, self._answer_http)
            self._is_ready = message["type"] == "lifespan.startup.complete"
            self.ready_at = self.judge.schedule.now
            self.judge.trace.name_server(self.server_id, self.name if not self.run else f"{self.name}#{self.run}")

        await self.middleware({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)  # type: ignore[arg-type]

    def freeze(self) -> None:
        if not self.machine.frozen:
            self.note_frozen(self.judge.schedule.now)
        self.machine.freeze()

    def thaw(self) -> None:
        if self.machine.frozen:
            self.note_thawed(self.judge.schedule.now)
        self.machine.thaw()

    def jump(self, by_ms: int) -> None:
        self.machine.skew_ms += by_ms

    def kill(self, silently: bool = False) -> None:
        self.machine.kill(silently)
        self._is_ready = False

    def after(self, delay_s: float, act: Callable[..., Any], *args: Any) -> None:
        self.judge.schedule.after(delay_s, act, *args)

    def close(self, key: bytes, done: Callable[[Closed], None]) -> None:
        self.machine.start(self._close(key, done))

    async def _close(self, key: bytes, done: Callable[[Closed], None]) -> None:
        try:
            closed = await self.sessions.close_key(key)
        except CoatcheckError:
            return
        done(closed)

    # -- requests ----------------------------------------------------------------------------------

    def arrive(self, attempt: Attempt, think_s: float, done: Done) -> None:
        """A request is in the socket: it becomes a task when the event loop reads it."""
        self.machine.call(self.machine.loop.call_soon, self._begin, attempt, think_s, done)

    def _begin(self, attempt: Attempt, think_s: float, done: Done) -> None:
        response = Response(0)
        task = self.machine.loop.create_task(self._call(attempt, think_s, response))
        attempt.task = task
        self.tasks[task] = attempt

        def end(task: asyncio.Task[None]) -> None:
            del self.tasks[task]
            if task.cancelled():
                return
            crash = task.exception()
            if crash is not None:
                done(Response(500), crash, crash)
            else:
                done(response, attempt.error, f"{response.status} {attempt.error}")

        task.add_done_callback(end)

    def cancel(self, attempt: Attempt) -> None:
        """The client hangs up, and the ASGI server tells the app so in the rudest way."""
        if attempt.task is not None and self.alive:
            self.machine.call(attempt.task.cancel)

    async def _call(self, attempt: Attempt, think_s: float, response: Response) -> None:
        shown = zip(self.cookie_names, (attempt.cookies.anonymous, attempt.cookies.login), strict=True)
        cookies = b"; ".join(name + b"=" + value for name, value in shown if value is not None)
        scope: Scope = {
            "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "https",
            "path": "/", "raw_path": b"/", "query_string": b"", "root_path": "", "server": (self.machine.address, 443),
            "client": ("192.0.2.1", 1024 + attempt.number), "headers": [(b"cookie", cookies)] if cookies else [],
        }  # fmt: skip

        async def receive() -> Scope:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def send(message: Scope) -> None:
            """Nobody looks at the body."""

        await self._serve_one(attempt, ServedPage(think_s), response, scope, receive, send)

    async def _answer_http(self, scope: Any, receive: Any, send: Any) -> None:
        """A request that the director has brought; its answer says which delivery of it this is."""
        attempt, errand = self._site.front.begins(self, int(dict(scope["headers"])[NUMBER]))
        task = asyncio.current_task()
        assert task is not None
        attempt.task = task
        self.tasks[task] = attempt
        response = Response(0)

        async def say_which(message: Scope) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], (ANSWER, b"%d" % attempt.number)]
            await send(message)

        page = ServedPage(errand.think_s, errand.body, answer_body(attempt.number, errand.answer_bytes))
        page.pause_s = errand.answer_pause_s
        page.fails = attempt.number % FAILING == 0
        try:
            await self._serve_one(attempt, page, response, scope, receive, say_which)
        except Exception as error:
            if self.alive and not isinstance(error, AppFails):
                self.judge.crashed(self, error)
            raise
        finally:
            del self.tasks[task]
        if response.status not in (0, 200):
            self._site.judge_refusal(attempt, self, attempt.error, f"{response.status} {attempt.error}")

    async def _serve_one(
        self, attempt: Attempt, page: ServedPage, response: Response, scope: Scope, receive: Any, send: Any
    ) -> None:
        ATTEMPT.set(attempt)
        scope["simulation"] = (attempt, page)

        async def watched(message: Scope) -> None:
            if message["type"] == "http.response.start":
                self._note_head(attempt, message, response)
            await send(message)

        await self.middleware(scope, receive, watched)  # type: ignore[arg-type]

    def _note_head(self, attempt: Attempt, message: Scope, response: Response) -> None:
        response.status = message["status"]
        for name, value in message.get("headers", ()):
            if name.lower() == b"set-cookie":
                self.note_cookie(value, response)
        if response.status == 200:
            assert attempt.session is not None
            self.judge.responding(self, attempt, attempt.session)

    def note_cookie(self, header: bytes, response: Response) -> None:
        """As a browser reads it: ``Max-Age=0`` deletes."""
        pair, _, attributes = header.partition(b";")
        name, _, value = pair.partition(b"=")
        deleted = b"max-age=0" in attributes.lower()
        if name == self.cookie_names[0]:
            response.clear_anonymous, response.set_anonymous = deleted, None if deleted else value
        elif name == self.cookie_names[1]:
            response.clear_login, response.set_login = deleted, None if deleted else value

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            return
        attempt, page = scope["simulation"]
        attempt.session = scope["session"]
        if not await self._has_come(page, receive):
            return
        if page.think_s:
            await asyncio.sleep(page.think_s)
        act(attempt, scope["session"])
        await send({"type": "http.response.start", "status": 200, "headers": page.headers()})
        if page.pause_s:
            await send({"type": "http.response.body", "body": page.answer[:5], "more_body": True})
            await asyncio.sleep(page.pause_s)
            page.answer = page.answer[5:]
        await send({"type": "http.response.body", "body": page.answer})
        if page.fails:
            await asyncio.sleep(FAILS_AFTER_S)
            raise AppFails

    async def _has_come(self, page: ServedPage, receive: Any) -> bool:
        """Read the request's body; whether it is whole."""
        body, more = b"", True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return False
            body += message["body"]
            more = message["more_body"]
        if body != page.body:
            self.judge.fail("director", f"{self.name} gets {len(body)} bytes that are not the request's")
        return True
