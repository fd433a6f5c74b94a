"""A shared token through every client library, over real sockets; and the ready logins of OAuth."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import aiohttp
import httpx
import httpx2
import pytest
import requests

import coatcheck.pool.adapters.httpx as httpx_adapter
import coatcheck.pool.adapters.httpx2 as httpx2_adapter
from coatcheck.errors import ConfigError
from coatcheck.pool import AsyncTokenPool, LoginFailed, LoginRefused, SignedIn, TokenPool
from coatcheck.pool.adapters.aiohttp import PoolMiddleware
from coatcheck.pool.adapters.placing import cookie, every, form, from_header, payload_cookies, payload_header, query
from coatcheck.pool.adapters.requests import PoolAdapter
from coatcheck.pool.grants import ClientCredentials, RefreshToken

from .bearer_upstream import CLIENT, SECRET, BearerUpstream


@pytest.fixture
def upstream() -> Iterator[BearerUpstream]:
    service = BearerUpstream()
    service.start()
    yield service
    service.stop()


def grant(upstream: BearerUpstream) -> ClientCredentials:
    return ClientCredentials(f"{upstream.url}/token", CLIENT, SECRET)


class Sync:
    """Each call by a thread of its own, with a client of its own."""

    def __init__(self, upstream: BearerUpstream, make: Callable[[TokenPool], Any], **options: Any) -> None:
        self.upstream = upstream
        self.pool = TokenPool(grant(upstream), wait="60s", login_rate=None, **options)
        self.make = make
        self.clients = threading.local()

    def get(self, path: str) -> int:
        if not hasattr(self.clients, "mine"):
            self.clients.mine = self.make(self.pool)
        return int(self.clients.mine.get(self.upstream.url + path).status_code)

    def many(self, path: str, callers: int, times: int = 1) -> list[int]:
        with ThreadPoolExecutor(callers) as pool:
            return [status for each in pool.map(lambda _: self._some(path, times), range(callers)) for status in each]

    def _some(self, path: str, times: int) -> list[int]:
        return [self.get(path) for _ in range(times)]

    def close(self) -> None:
        self.pool.close()


class Async:
    """Each call by a task of its own."""

    def __init__(self, upstream: BearerUpstream, name: str, **options: Any) -> None:
        self.upstream = upstream
        self.name = name
        self.loop = asyncio.new_event_loop()
        self.pool = AsyncTokenPool(grant(upstream), wait="60s", login_rate=None, **options)

    async def _some(self, client: Any, path: str, times: int) -> list[int]:
        found = []
        for _ in range(times):
            if self.name == "aiohttp":
                async with client.get(self.upstream.url + path) as response:
                    await response.read()
                    found.append(response.status)
            else:
                found.append((await client.get(self.upstream.url + path)).status_code)
        return found

    def client(self) -> Any:
        origin = self.upstream.url
        if self.name == "aiohttp":
            return aiohttp.ClientSession(middlewares=[PoolMiddleware(self.pool, "svc", origin=origin, shared=True)])
        if self.name == "httpx_async":
            return httpx.AsyncClient(auth=httpx_adapter.AsyncPoolAuth(self.pool, "svc", shared=True))
        transport = httpx2_adapter.AsyncPoolTransport(self.pool, "svc", origin=origin, shared=True)
        return httpx2.AsyncClient(transport=transport)

    def get(self, path: str) -> int:
        return self.many(path, 1)[0]

    def many(self, path: str, callers: int, times: int = 1) -> list[int]:
        async def work() -> list[int]:
            async with self.client() as client:
                found = await asyncio.gather(*[self._some(client, path, times) for _ in range(callers)])
            return [status for each in found for status in each]

        return self.loop.run_until_complete(work())

    def close(self) -> None:
        self.loop.run_until_complete(self.pool.close())
        self.loop.close()


def with_requests(pool: TokenPool) -> requests.Session:
    session = requests.Session()
    session.mount("http://", PoolAdapter(pool, "svc", shared=True))
    return session


KINDS: dict[str, Callable[..., Any]] = {
    "httpx": lambda up, **how: Sync(
        up, lambda pool: httpx.Client(auth=httpx_adapter.PoolAuth(pool, "svc", shared=True)), **how
    ),
    "httpx2_transport": lambda up, **how: Sync(
        up,
        lambda pool: httpx2.Client(
            transport=httpx2_adapter.PoolTransport(pool, "svc", origin=up.url, shared=True),
        ),
        **how,
    ),
    "requests": lambda up, **how: Sync(up, with_requests, **how),
    "aiohttp": lambda up, **how: Async(up, "aiohttp", **how),
    "httpx_async": lambda up, **how: Async(up, "httpx_async", **how),
    "httpx2_async": lambda up, **how: Async(up, "httpx2_async", **how),
}


@pytest.fixture(params=sorted(KINDS))
def world(request: pytest.FixtureRequest, upstream: BearerUpstream) -> Iterator[Any]:
    made = KINDS[request.param](upstream)
    yield made
    made.close()


def test_many_calls_at_once_with_one_token(world: Any, upstream: BearerUpstream) -> None:
    assert world.many("/api", 12, 3) == [200] * 36
    assert (upstream.logins, upstream.refusals) == (1, 0)


def test_a_stampede_of_refusals_costs_one_login(world: Any, upstream: BearerUpstream) -> None:
    world.get("/api")
    upstream.revoke_all()
    assert world.many("/api", 12, 2) == [200] * 24
    assert upstream.logins == 2
    assert 1 <= upstream.refusals <= 12


def test_a_page_that_is_forbidden_costs_few_logins_and_harms_no_other_call(
    world: Any, upstream: BearerUpstream
) -> None:
    for _ in range(10):
        assert world.get("/forbidden") == 401
        assert world.get("/api") == 200
    assert upstream.logins <= 6, "each later than twice as long as the one before"


@pytest.mark.parametrize("kind", ["httpx", "requests", "aiohttp"])
def test_tokens_that_end_all_the_time_cost_one_login_each_and_no_refusal(kind: str) -> None:
    upstream = BearerUpstream(life_s=5.0, login_s=0.3)
    upstream.start()
    world = KINDS[kind](upstream, refresh_before="2s")
    began = time.monotonic()
    statuses: list[int] = []
    while time.monotonic() - began < 8.0:
        statuses += world.many("/api", 16, 3)
        time.sleep(0.1)  # three bursts in the time of a login are enough
    lasted_s = time.monotonic() - began
    world.close()
    upstream.stop()
    assert set(statuses) == {200}
    assert 2 <= upstream.logins <= lasted_s / 2.5 + 2


def test_a_shared_token_is_renewed_by_logins_alone(upstream: BearerUpstream) -> None:
    with TokenPool(grant(upstream)) as pool, pytest.raises(ConfigError, match="renewed by logins alone"):
        httpx_adapter.PoolAuth(pool, "svc", shared=True, extract=from_header("X-Token"))


PAYLOAD = {"route": "node 7", "XSRF-TOKEN": "x", "csrf": "c"}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("library", ["httpx", "requests", "aiohttp"])
def test_several_cookies_and_a_header_of_the_payload(library: str, shared: bool, upstream: BearerUpstream) -> None:
    placed = every(cookie("SID"), payload_cookies("route", "XSRF-TOKEN"), payload_header("X-CSRF-Token", of="csrf"))
    found = ask_parts(library, upstream, {"apply": placed, "shared": shared}, SignedIn("t", payload=PAYLOAD))
    assert found["cookies"] == {"SID": "t", "route": "node 7", "XSRF-TOKEN": "x"}
    assert found["csrf"] == "c"


@pytest.mark.parametrize("library", ["httpx", "requests", "aiohttp"])
def test_a_parameter_of_the_url_with_a_warning(library: str, upstream: BearerUpstream) -> None:
    with pytest.warns(UserWarning, match="ends up in logs"):
        placed = query("access_token")
    found = ask_parts(library, upstream, {"apply": placed}, "t & = ?")
    assert found["query"] == {"a": "1", "access_token": "t & = ?"}


@pytest.mark.parametrize("library", ["httpx", "requests"])
def test_a_field_of_the_form_with_a_warning(library: str, upstream: BearerUpstream) -> None:
    with pytest.warns(UserWarning, match="ends up in logs"):
        placed = form("access_token")
    found = ask_parts(library, upstream, {"apply": placed}, "t & =", {"b": "2"})
    assert found["form"] == {"b": ["2"], "access_token": ["t & ="]}
    assert ask_parts(library, upstream, {"apply": placed}, "t")["form"] == {}


def ask_parts(
    library: str, upstream: BearerUpstream, how: dict[str, Any], login: Any, data: dict[str, str] | None = None
) -> Any:
    url, method = f"{upstream.url}/parts?a=1", "POST" if data else "GET"
    if library == "aiohttp":

        async def ask() -> Any:
            async with AsyncTokenPool(lambda user: login) as pool:
                middleware = PoolMiddleware(pool, "svc", origin=upstream.url, **how)
                async with (
                    aiohttp.ClientSession(middlewares=[middleware]) as session,
                    session.request(method, url, data=data) as response,
                ):
                    return await response.json()

        return asyncio.run(ask())
    with TokenPool(lambda user: login) as pool:
        if library == "httpx":
            with httpx.Client(auth=httpx_adapter.PoolAuth(pool, "svc", **how)) as client:
                return client.request(method, url, data=data).json()
        with requests.Session() as session:
            session.mount(upstream.url, PoolAdapter(pool, "svc", **how))
            return session.request(method, url, data=data).json()


def test_client_credentials(upstream: BearerUpstream) -> None:
    login = ClientCredentials(f"{upstream.url}/token", CLIENT, SECRET, scope="orders", parameters={"audience": "api"})
    with TokenPool(login) as pool:
        token = pool.shared("svc").get()
        assert token.token == "token-1"
        assert token.payload == {"instance_url": upstream.url}
        assert 90 < token.remaining_s() <= 100
    assert upstream.seen == [{"grant_type": "client_credentials", "scope": "orders", "audience": "api"}]
    assert SECRET not in repr(login)


def test_a_client_that_is_refused_is_not_tried_again(upstream: BearerUpstream) -> None:
    login = ClientCredentials(f"{upstream.url}/token", CLIENT, "WRONG")
    with TokenPool(login, on_event=lambda event: None) as pool:
        for _ in range(3):
            with pytest.raises(LoginRefused):
                pool.shared("svc").get()
    assert len(upstream.seen) == 1


def test_other_errors_of_the_token_endpoint_are_tried_again(upstream: BearerUpstream) -> None:
    upstream.error = "temporarily_unavailable"
    with TokenPool(grant(upstream), login_backoff=("10ms", "20ms"), on_event=lambda event: None) as pool:
        with pytest.raises(LoginFailed) as failure:
            pool.shared("svc").get()
        assert not isinstance(failure.value, LoginRefused)
        upstream.error = ""
        assert pool.shared("svc").get().token == "token-1"


def test_refresh_tokens_are_rotated_and_a_revoked_one_falls_back_to_the_first(upstream: BearerUpstream) -> None:
    login = RefreshToken(f"{upstream.url}/token", CLIENT, SECRET, refresh_token="consent")
    now = [0.0]
    with TokenPool(login, clock=lambda: now[0], on_event=lambda event: None) as pool:
        shared = pool.shared("ada")
        shared.get()
        first = next(name for name in upstream.refresh_tokens if name != "consent")
        now[0] += 200
        shared.get()
        assert [each["refresh_token"] for each in upstream.seen] == ["consent", first]
        assert upstream.refresh_tokens[first] is False, "used up"
        upstream.refresh_tokens = {"consent": True}
        now[0] += 200
        assert shared.get().token
        assert upstream.seen[-1]["refresh_token"] == "consent"
        upstream.refresh_tokens = {}
        now[0] += 200
        with pytest.raises(LoginRefused):
            shared.get()
