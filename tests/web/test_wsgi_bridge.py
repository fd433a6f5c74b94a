"""WSGI apps in threads of an event loop: PEP 3333 under wsgiref's validator, sessions, streams, bodies and bounds."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any
from wsgiref.validate import validator

import httpx
import pytest

from coatcheck import connect
from coatcheck.drivers.asked_in_threads import LoopAskedInThreads
from coatcheck.errors import CoatcheckError, SessionDataError
from coatcheck.web.bridge.asgi import WsgiBridge
from coatcheck.web.bridge.exchange import MAX_AHEAD_BYTES, MAX_UNSENT_BYTES
from coatcheck.web.bridge.thread_pool import ThreadPool
from coatcheck.web.wsgi import KEY, SESSIONS_KEY, SessionMiddleware

from .in_process import Served, served

DEADLINE_S = 30.0
PLAIN = [("Content-Type", "text/plain")]
MESSAGE = 8192
"""Bytes of a body that a web server hands on at once."""


@asynccontextmanager
async def bridged(app: Any, threads: int = 4, waiting: int = 100) -> AsyncIterator[Served]:
    async def later(*_: Any) -> None: ...

    async with served(later) as server:
        server.app = WsgiBridge(app, ThreadPool(threads, waiting), LoopAskedInThreads(server.sessions))
        yield server


class Request:
    """One request by hand; ``body`` is what its client has sent so far."""

    def __init__(
        self, app: Any, *body: bytes, method: str = "POST", more: bool = False, leaves: bool = False, **scope: Any
    ) -> None:
        self.sent: list[Any] = []
        self.received = 0
        self.gate = asyncio.Event()
        self.gate.set()
        self.left = asyncio.Event()
        self._body = list(body) or [b""]
        self._more = more
        if leaves:
            self.left.set()
        self.scope = {
            "type": "http", "http_version": "1.1", "method": method, "path": "/", "raw_path": b"/",
            "query_string": b"", "headers": [], "scheme": "http", "client": ("192.0.2.7", 4711), "server": None,
            **scope,
        }  # fmt: skip
        self.task = asyncio.create_task(app(self.scope, self._receive, self._send))

    async def _receive(self) -> Any:
        if self.received < len(self._body):
            self.received += 1
            more = self._more or self.received < len(self._body)
            return {"type": "http.request", "body": self._body[self.received - 1], "more_body": more}
        await self.left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        await self.gate.wait()
        self.sent.append(message)

    async def done(self) -> Request:
        await asyncio.wait_for(self.task, DEADLINE_S)
        return self

    @property
    def status(self) -> int:
        return int(self.sent[0]["status"])

    @property
    def headers(self) -> dict[bytes, bytes]:
        return dict(self.sent[0]["headers"])

    @property
    def body(self) -> bytes:
        return b"".join(message["body"] for message in self.sent[1:])


async def until(condition: Callable[[], Any], what: str) -> None:
    deadline = asyncio.get_running_loop().time() + DEADLINE_S
    while not condition():
        assert asyncio.get_running_loop().time() < deadline, what
        await asyncio.sleep(0.005)


def asked(app: Any, *body: bytes, **more: Any) -> Request:
    """One request to a WSGI app, to its end; no session is around."""

    async def story() -> Request:
        return await Request(WsgiBridge(app, ThreadPool(2)), *body, **more).done()

    return asyncio.run(story())


def telling(tell: Callable[[dict[str, Any]], object]) -> Any:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        text = repr(tell(environ)).encode()
        start("200 OK", PLAIN)
        return [text]

    return app


# -- PEP 3333 ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST"])
@pytest.mark.parametrize("streams", [True, False])
def test_the_validator_of_wsgiref_has_nothing_to_say(method: str, streams: bool) -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"]
        found = body.read(3) + body.readline() + b"".join(body.readlines()) + b"".join(body)
        environ["wsgi.errors"].write("")
        environ["wsgi.errors"].flush()
        start("200 OK", PLAIN if method != "HEAD" else [*PLAIN, ("Content-Length", "5")])
        answer = [] if method == "HEAD" else [found, b"!"]
        return iter(answer) if streams else answer

    sent = asked(validator(app), b"one\ntwo\nth", b"ree", method=method)
    assert sent.status == 200
    assert sent.body == (b"" if method == "HEAD" else b"one\ntwo\nthree!")
    assert sent.sent[-1]["more_body"] is False


def test_a_list_of_small_pieces_leaves_as_one_and_says_its_length() -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        start("200 OK", PLAIN)
        return [b"one ", b"two"]

    sent = asked(app)
    assert [len(sent.sent), sent.body, sent.headers[b"content-length"]] == [2, b"one two", b"7"]


def test_what_the_app_is_told_is_true() -> None:
    headers = [
        (b"host", b"shop.example:8443"), (b"cookie", b"a=1"), (b"cookie", b"b=2"), (b"accept", b"x"),
        (b"accept", b"y"), (b"content-type", b"text/x"), (b"content-length", b"3"), (b"x-name", b"caf\xe9"),
    ]  # fmt: skip
    wanted = {
        "REQUEST_METHOD": "POST", "SCRIPT_NAME": "", "PATH_INFO": "/caf\xc3\xa9", "QUERY_STRING": "q=\xfc",
        "SERVER_PROTOCOL": "HTTP/1.1", "SERVER_NAME": "shop.example", "SERVER_PORT": "8443",
        "REMOTE_ADDR": "192.0.2.7", "REMOTE_PORT": "4711", "HTTP_HOST": "shop.example:8443",
        "HTTP_COOKIE": "a=1; b=2", "HTTP_ACCEPT": "x,y", "CONTENT_TYPE": "text/x", "CONTENT_LENGTH": "3",
        "HTTP_X_NAME": "caf\xe9", "wsgi.url_scheme": "https", "wsgi.version": (1, 0), "wsgi.multithread": True,
        "wsgi.run_once": False, "wsgi.input_terminated": True,
    }  # fmt: skip
    found: dict[str, Any] = {}
    scope = {"path": "/café", "raw_path": b"/caf%C3%A9", "query_string": b"q=\xfc", "scheme": "https"}
    asked(telling(found.update), b"abc", headers=headers, **scope)
    assert {name: found.get(name) for name in wanted} == wanted
    assert found["wsgi.errors"] is sys.stderr
    assert "PATH" not in found, "the variables of the process are not the app's"


def test_bytes_of_a_path_that_are_no_utf8_arrive() -> None:
    sent = asked(telling(lambda environ: environ["PATH_INFO"]), path="/a b\ufffd", raw_path=b"/a%20b%FF")
    assert sent.body == repr("/a b\xff").encode()


def test_an_app_that_is_mounted() -> None:
    tell = telling(lambda environ: (environ["SCRIPT_NAME"], environ["PATH_INFO"], environ["SERVER_NAME"]))
    told = asked(tell, root_path="/shop", path="/shop/cart", server=("127.0.0.1", 80)).body
    assert told == b"('/shop', '/cart', '127.0.0.1')"
    assert asked(tell, root_path="/shop", path="/shopping").body == b"('/shop', '/shopping', 'localhost')"


def test_a_header_with_an_underscore_cannot_pass_for_one_that_a_proxy_has_checked() -> None:
    headers = [(b"x-forwarded-for", b"192.0.2.7"), (b"x_forwarded_for", b"10.0.0.1"), (b"x_user", b"admin")]
    sent = asked(telling(lambda environ: sorted(name for name in environ if name[:6] == "HTTP_X")), headers=headers)
    assert sent.body == b"['HTTP_X_FORWARDED_FOR']"
    sent = asked(telling(lambda environ: environ["HTTP_X_FORWARDED_FOR"]), headers=headers)
    assert sent.body == b"'192.0.2.7'"


def test_an_error_before_the_first_piece_still_has_its_own_page() -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        start("200 OK", [*PLAIN, ("X-Late", "no")])
        yield b""
        try:
            raise KeyError("mistake")
        except KeyError:
            start("500 Oops", [("Content-Type", "text/html")], sys.exc_info())
        yield b"an error page"

    sent = asked(app)
    assert (sent.status, sent.body) == (500, b"an error page")
    assert b"x-late" not in sent.headers


def test_an_error_behind_the_first_piece_is_raised_and_the_body_is_closed() -> None:
    closed = threading.Event()

    def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        try:
            start("200 OK", PLAIN)
            yield b"half"
            raise KeyError("mistake")
        except KeyError:
            start("500 Oops", [], sys.exc_info())
        finally:
            closed.set()

    with pytest.raises(KeyError, match="mistake"):
        asked(app)
    assert closed.is_set()


@pytest.mark.parametrize(
    ("name", "value"),
    [("X-Evil", "a\r\nSet-Cookie: b=1"), ("X-Evil", "a\x00"), ("X Evil", "a"), ("X-Evil:", "a"), ("", "a"), ("X", "€")],
)
def test_headers_that_would_be_two_or_are_no_latin_1_are_the_apps_error(name: str, value: str) -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        with pytest.raises(ValueError):
            start("200 OK", [(name, value)])
        start("400 Bad Request", [("X-Name", "caf\xe9"), ("Connection", "close"), ("Transfer-Encoding", "chunked")])
        return [b"refused"]

    sent = asked(app)
    assert (sent.status, sent.body) == (400, b"refused")
    assert sent.headers == {b"x-name": b"caf\xe9", b"content-length": b"7"}, "how it travels is the server's affair"


@pytest.mark.parametrize(("status", "length"), [("204 No Content", None), ("304 Not Modified", None), ("200 OK", b"0")])
def test_a_response_without_a_body(status: str, length: bytes | None) -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        start(status, [])
        return []

    assert asked(app).headers.get(b"content-length") == length


def test_the_old_write() -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        write = start("200 OK", PLAIN)
        write(b"one ")
        write(b"two ")
        return [b"three"]

    assert asked(app).body == b"one two three"


@pytest.mark.parametrize("what", ["no start", "no bytes", "exit"])
def test_a_broken_app_fails_its_own_request_only(what: str) -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[Any]:
        if what == "no bytes":
            start("200 OK", PLAIN)
            return ["text"]
        if what == "exit":
            sys.exit(3)
        return []

    with pytest.raises((AssertionError, RuntimeError)):
        asked(app)


# -- bodies --------------------------------------------------------------------------------------------


def test_lines_of_a_body_that_has_not_come_yet() -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        body = environ["wsgi.input"]
        start("200 OK", PLAIN)
        return [repr([body.readline(65536), body.readline(2), body.read(4), body.readlines(1), body.read()]).encode()]

    head = b"x" * MAX_AHEAD_BYTES + b"\n"
    sent = asked(app, head, b"ab", b"cd", b"ef\n", b"last\nrest")
    assert sent.body == repr([head, b"ab", b"cdef", [b"\n", b"last\n"], b"rest"]).encode()


@pytest.mark.parametrize("size", [4, MAX_AHEAD_BYTES])
def test_half_of_a_body_is_not_taken_for_the_whole(size: int) -> None:
    raised: list[Exception] = []

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            raised.append(error)
            raise
        raise AssertionError("half of it was taken")

    asked(app, b"x" * size, more=True, leaves=True)
    # A small one is waited for before a thread is taken, and the app not even called.
    assert [type(error).__name__ for error in raised] == ([] if size < MAX_AHEAD_BYTES else ["ClientGone"])


def test_an_upload_is_read_as_the_app_reads_it() -> None:
    pieces = 400
    may_go_on = threading.Event()

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        may_go_on.wait(DEADLINE_S)
        size = 0
        while found := environ["wsgi.input"].read(MESSAGE):
            size += len(found)
        start("200 OK", PLAIN)
        return [b"%d" % size]

    async def story() -> None:
        request = Request(WsgiBridge(app, ThreadPool(1)), *[b"x" * MESSAGE] * pieces)
        await until(lambda: request.received >= MAX_AHEAD_BYTES / MESSAGE, "nothing was read ahead")
        await asyncio.sleep(0.1)
        assert request.received == MAX_AHEAD_BYTES / MESSAGE
        may_go_on.set()
        assert (await request.done()).body == b"%d" % (pieces * MESSAGE)

    asyncio.run(story())


def test_a_client_that_asks_first_is_answered_when_the_app_reads() -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        start("413 Too Large", PLAIN)
        return [b"no"]

    async def story() -> None:
        request = await Request(
            WsgiBridge(app, ThreadPool(1)), b"x", headers=[(b"expect", b"100-continue")]
        ).done()  # fmt: skip
        assert (request.status, request.received) == (413, 0)

    asyncio.run(story())


def test_an_app_is_not_far_ahead_of_a_slow_client() -> None:
    made = 0

    def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        nonlocal made
        start("200 OK", PLAIN)
        for _ in range(1000):
            made += MESSAGE
            yield b"x" * MESSAGE

    async def story() -> None:
        request = Request(WsgiBridge(app, ThreadPool(1)))
        await until(lambda: len(request.sent) > 2, "nothing was sent")
        request.gate.clear()
        await until(lambda: made - len(request.body) >= MAX_UNSENT_BYTES, "it is not ahead at all")
        await asyncio.sleep(0.1)
        assert made - len(request.body) <= MAX_UNSENT_BYTES + 2 * MESSAGE
        request.gate.set()
        assert len((await request.done()).body) == 1000 * MESSAGE

    asyncio.run(story())


def test_a_stream_ends_when_its_client_leaves_and_its_thread_is_free_again() -> None:
    closed = threading.Event()

    def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        start("200 OK", PLAIN)
        try:
            while environ["PATH_INFO"] == "/endless":
                yield b"tick"
            yield b"free"
        finally:
            closed.set()

    async def story() -> None:
        bridge = WsgiBridge(app, ThreadPool(1))
        request = Request(bridge, path="/endless")
        await until(lambda: len(request.sent) > 5, "no stream")
        request.left.set()
        await request.done()
        assert closed.is_set()
        assert (await Request(bridge).done()).body == b"free"

    asyncio.run(story())


def test_what_cannot_be_sent_frees_the_thread_too() -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        start("200 OK", PLAIN)
        while True:
            yield b"x" * MESSAGE

    async def raising() -> None:
        pool, count = ThreadPool(1), 0

        async def receive() -> Any:
            if count:
                await asyncio.Event().wait()
            return {"type": "http.request"}

        async def send(message: Any) -> None:
            nonlocal count
            count += 1
            if count > 3:
                raise ValueError("longer than it said")

        scope = {"type": "http", "http_version": "1.1", "method": "GET", "path": "/", "headers": []}
        with pytest.raises(ValueError, match="longer"):
            await asyncio.wait_for(WsgiBridge(app, pool)(scope, receive, send), DEADLINE_S)
        await until(lambda: pool.status()["busy"] == 0, "the thread is kept")

    asyncio.run(raising())


# -- threads -------------------------------------------------------------------------------------------


def test_a_slow_app_blocks_no_loop_and_what_is_too_much_is_refused() -> None:
    release = threading.Event()

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        release.wait(DEADLINE_S)
        start("200 OK", PLAIN)
        return [threading.current_thread().name.encode()]

    async def story() -> None:
        pool = ThreadPool(2, max_waiting=3)
        bridge = WsgiBridge(app, pool)
        slow = [Request(bridge) for _ in range(5)]
        await until(lambda: pool.status() == {"most": 2, "busy": 2, "waiting": 3}, "two run and three wait")
        refused = Request(bridge)
        await until(refused.task.done, "it waits too")
        assert refused.status == 503
        assert refused.headers[b"retry-after"] == b"1"
        assert refused.headers[b"cache-control"] == b"no-store"
        assert b"no thread is free" in refused.body
        assert not any(request.task.done() for request in slow)
        release.set()
        names = {(await request.done()).body for request in slow}
        assert names <= {b"coatcheck wsgi 1", b"coatcheck wsgi 2"}
        assert (await Request(bridge).done()).status == 200

    asyncio.run(story())


def test_a_request_that_is_given_up_while_it_waits_is_not_run() -> None:
    release, calls = threading.Event(), []

    def app(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
        calls.append(environ["PATH_INFO"])
        release.wait(DEADLINE_S)
        start("200 OK", PLAIN)
        return [b"done"]

    async def story() -> None:
        pool = ThreadPool(1)
        bridge = WsgiBridge(app, pool)
        first, second = Request(bridge, path="/first"), Request(bridge, path="/second")
        await until(lambda: pool.status()["waiting"] == 1, "one waits")
        second.task.cancel()
        await asyncio.wait([second.task])
        release.set()
        assert (await first.done()).body == b"done"
        await until(lambda: pool.status()["busy"] == 0, "all are done")
        assert calls == ["/first"]

    asyncio.run(story())


# -- sessions ------------------------------------------------------------------------------------------


def shop(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
    session, sessions = environ[KEY], environ[SESSIONS_KEY]
    match environ["PATH_INFO"]:
        case "/login":
            session.regenerate("ada")
        case "/logout":
            session.close()
        case "/late":
            start("200 OK", PLAIN)
            session.setdefault("cart", {})["late"] = True
            return [b"changed behind the start"]
        case "/stream" | "/measured":
            return stream(environ, start)
        case "/unstorable":
            session["what"] = object()
        case "/500":
            session["cart"] = 5
            start("500 Oops", PLAIN)
            return [b"oops"]
        case "/devices":
            found = repr([each.current for each in sessions.devices(session)]).encode()
            start("200 OK", PLAIN)
            return [found]
        case "/close-others":
            found = repr(sessions.close_other_devices(session)).encode()
            start("200 OK", PLAIN)
            return [found]
        case "/async":
            found = repr(len(asyncio.run(awaiting(session)))).encode()
            start("200 OK", PLAIN)
            return [found]
        case "/wrongly-async":
            with pytest.raises(CoatcheckError, match="would block the event loop"):
                asyncio.run(waiting(sessions, session))
    start("200 OK", PLAIN)
    return [repr((session.user, session.get("cart"))).encode()]


def stream(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
    session = environ[KEY]
    session["cart"] = {"first": 1}
    start("200 OK", [*PLAIN, ("Content-Length", "7")] if environ["PATH_INFO"] == "/measured" else PLAIN)
    yield b"one "
    session["cart"]["second"] = 2
    yield b"two"
    session["cart"]["third"] = 3


async def awaiting(session: Any) -> list[Any]:
    found: list[Any] = await session.devices()
    return found


async def waiting(sessions: Any, session: Any) -> None:
    sessions.devices(session)


def browsing(story: Callable[[Served, httpx.AsyncClient], Any]) -> None:
    async def run() -> None:
        async with bridged(validator(shop)) as server, server.client() as browser:
            await asyncio.wait_for(story(server, browser), 2 * DEADLINE_S)

    asyncio.run(run())


def test_what_is_changed_behind_the_start_is_stored_before_the_head_leaves() -> None:
    async def story(server: Served, browser: httpx.AsyncClient) -> None:
        assert (await browser.post("/late")).text == "changed behind the start"
        assert "__Host-coatcheck" in browser.cookies
        assert (await browser.get("/")).text == "(None, {'late': True})"

    browsing(story)


@pytest.mark.parametrize("path", ["/stream", "/measured"])
def test_what_is_changed_in_a_stream_is_stored_before_its_client_has_it_all(path: str) -> None:
    seen: list[Any] = []

    async def story(server: Served, browser: httpx.AsyncClient) -> None:
        await browser.post("/late")
        [key] = [bytes.fromhex(info.key) for info in await server.sessions.list_sessions()]
        cookie = f"__Host-coatcheck={browser.cookies['__Host-coatcheck']}".encode()

        class Watched(Request):
            async def _send(self, message: Any) -> None:
                body = self.body + message.get("body", b"") if self.sent else b""
                if body == b"one two" and (path == "/measured" or not message.get("more_body")) and not seen:
                    seen.append(await server.sessions.show(key))
                self.sent.append(message)

        request = await Watched(server.middleware, path=path, headers=[(b"cookie", cookie)]).done()
        assert request.body == b"one two"
        [info] = seen
        assert info is not None
        assert info.data == {"cart": {"first": 1, "second": 2, "third": 3}}

    browsing(story)


def test_a_login_a_logout_and_what_fails() -> None:
    async def story(server: Served, browser: httpx.AsyncClient) -> None:
        await browser.post("/late")
        assert (await browser.post("/login")).text == "('ada', {'late': True})"
        assert (await browser.post("/500")).status_code == 500
        assert (await browser.get("/")).text == "('ada', {'late': True})"
        with pytest.raises(SessionDataError, match="what"):
            await browser.post("/unstorable")
        assert (await browser.get("/")).text == "('ada', {'late': True})"
        stolen = "; ".join(f"{name}={value}" for name, value in browser.cookies.items())
        await browser.post("/logout")
        assert (await browser.get("/", headers={"cookie": stolen})).text == "(None, None)"

    browsing(story)


def test_a_page_of_ones_devices() -> None:
    async def story(server: Served, browser: httpx.AsyncClient) -> None:
        await browser.post("/login")
        async with server.client() as other:
            await other.post("/login")
            assert (await browser.get("/devices")).text == "[True, False]"
            assert (await browser.get("/async")).text == "2"
            await browser.get("/wrongly-async")
            with pytest.raises(CoatcheckError, match="a GET request closes no sessions"):
                await browser.get("/close-others")
            assert (await browser.post("/close-others")).text == "1"
            assert (await other.get("/")).text == "(None, None)"
            assert (await browser.get("/")).text == "('ada', None)"

    browsing(story)


def test_a_stream_ends_with_its_session() -> None:
    def app(environ: dict[str, Any], start: Any) -> Iterator[bytes]:
        environ[KEY]["n"] = 1
        start("200 OK", PLAIN)
        while True:
            yield b"tick"

    async def closing() -> None:
        async with bridged(app) as server:
            await server.sessions.start()
            request = Request(server.middleware)
            await until(lambda: len(request.sent) > 3, "no stream")
            [info] = await server.sessions.list_sessions()
            await server.sessions.close_key(bytes.fromhex(info.key))
            await request.done()
            assert request.sent[-1] == {"type": "http.response.body", "body": b"", "more_body": False}

    asyncio.run(closing())


def test_our_own_middleware_inside_steps_back() -> None:
    inner = connect("memory://", key="for-tests-only-for-tests-only-for-tests-001", driver="threads")

    async def run() -> None:
        async with bridged(SessionMiddleware(shop, inner)) as server, server.client() as browser:
            await browser.post("/late")
            assert (await browser.get("/")).text == "(None, {'late': True})"
            assert len(await server.sessions.list_sessions()) == 1
            assert len(browser.cookies) == 1

    try:
        asyncio.run(run())
        assert inner.list_sessions() == []
    finally:
        inner.close()


def test_a_websocket_is_refused_and_a_lifespan_goes_through() -> None:
    sent: list[Any] = []

    async def story() -> None:
        messages = iter([{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}, {"type": "websocket.connect"}])

        async def receive() -> Any:
            return next(messages)

        async def send(message: Any) -> None:
            sent.append(message["type"])

        bridge = WsgiBridge(shop, ThreadPool(1))
        await bridge({"type": "lifespan"}, receive, send)
        await bridge({"type": "websocket"}, receive, send)

    asyncio.run(story())
    assert sent == ["lifespan.startup.complete", "lifespan.shutdown.complete", "websocket.close"]
