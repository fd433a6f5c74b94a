"""httpx, httpx2 and requests do the same with leases; here over real sockets."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import httpx
import httpx2
import pytest
import requests

import coatcheck.pool.adapters.httpx as httpx_adapter
import coatcheck.pool.adapters.httpx2 as httpx2_adapter
from coatcheck.errors import ConfigError
from coatcheck.pool import AsyncTokenPool, PoolTimeout, TokenPool
from coatcheck.pool.adapters.aiohttp import PoolMiddleware
from coatcheck.pool.adapters.exchange import UpstreamTokens
from coatcheck.pool.adapters.placing import cookie, from_cookie, from_header, header
from coatcheck.pool.adapters.requests import PoolAdapter

from .upstream import CHUNK, CHUNKS, HEADER, Upstream

BY_HEADER = {"apply": header(HEADER), "extract": from_header(HEADER)}
BY_COOKIE = {"apply": cookie("SID"), "extract": from_cookie("SID")}
OPENERS: dict[str, Callable[..., Any]] = {}


def opener(make: Callable[..., Any]) -> Callable[..., Any]:
    OPENERS[make.__name__.removeprefix("open_")] = make
    return make


@opener
@contextmanager
def open_httpx(pool: Any, upstream: Upstream, **how: Any) -> Iterator[Any]:
    with httpx.Client(base_url=upstream.url, auth=httpx_adapter.PoolAuth(pool, "ANN", **how)) as client:
        yield client


@opener
@contextmanager
def open_httpx2(pool: Any, upstream: Upstream, **how: Any) -> Iterator[Any]:
    with httpx2.Client(base_url=upstream.url, auth=httpx2_adapter.PoolAuth(pool, "ANN", **how)) as client:
        yield client


@opener
@contextmanager
def open_httpx_transport(pool: Any, upstream: Upstream, **how: Any) -> Iterator[Any]:
    transport = httpx_adapter.PoolTransport(pool, "ANN", **{"origin": upstream.url, **how})
    with httpx.Client(base_url=upstream.url, transport=transport) as client:
        yield client


@opener
@contextmanager
def open_httpx2_transport(pool: Any, upstream: Upstream, **how: Any) -> Iterator[Any]:
    transport = httpx2_adapter.PoolTransport(pool, "ANN", **{"origin": upstream.url, **how})
    with httpx2.Client(base_url=upstream.url, transport=transport) as client:
        yield client


@opener
@contextmanager
def open_requests(pool: Any, upstream: Upstream, **how: Any) -> Iterator[Any]:
    class Session(requests.Session):
        def request(self, method: Any, url: Any, *args: Any, **kwargs: Any) -> Any:
            return super().request(method, upstream.url + str(url), *args, **kwargs)

    with Session() as session:
        session.mount(upstream.url, PoolAdapter(pool, "ANN", **how))
        yield session


@pytest.fixture(params=sorted(OPENERS))
def client(request: pytest.FixtureRequest) -> Callable[..., Any]:
    return OPENERS[request.param]


def free_and_leased(pool: TokenPool) -> tuple[int, int]:
    stats = pool.stats()["ANN"]
    return stats.free, stats.leased


@pytest.mark.parametrize("how", [BY_HEADER, BY_COOKIE], ids=["header", "cookie"])
def test_one_login_serves_many_calls_and_tokens_are_renewed(
    client: Callable[..., Any], pool: TokenPool, upstream: Upstream, how: dict[str, Any]
) -> None:
    with client(pool, upstream, **how) as session:
        answers = [session.get("/me").text for _ in range(5)]
    assert answers == ["ANN1"] * 5
    assert (upstream.logins, upstream.refusals) == (1, 0)
    assert free_and_leased(pool) == (1, 0)


def test_an_expired_token_is_replaced_by_one_login(
    client: Callable[..., Any], pool: TokenPool, upstream: Upstream
) -> None:
    with client(pool, upstream, **BY_HEADER) as session:
        assert session.get("/me").text == "ANN1"
        upstream.expire_all()
        assert session.post("/echo", json=["twice"]).json() == ["twice"]
    assert (upstream.logins, upstream.refusals) == (2, 1)
    assert free_and_leased(pool) == (1, 0)


def test_all_dead_tokens_are_found_out_before_the_login(
    client: Callable[..., Any], pool: TokenPool, upstream: Upstream
) -> None:
    held = [pool.lease("ANN").acquire() for _ in range(2)]
    for each in held:
        each.release()
    upstream.expire_all()
    with client(pool, upstream, **BY_HEADER) as session:
        assert session.get("/me").status_code == 200
    assert (upstream.logins, upstream.refusals) == (3, 2)


def test_a_token_that_is_refused_at_once_is_not_tried_for_ever(
    client: Callable[..., Any], pool: TokenPool, upstream: Upstream
) -> None:
    how = {**BY_HEADER, "is_expired": lambda response: True}
    with client(pool, upstream, **how) as session:
        assert session.get("/me").text == "ANN1"
    assert upstream.logins == 1
    assert free_and_leased(pool) == (1, 0), "another one would be no better"


def test_a_forbidden_page_costs_few_logins_and_no_other_call(client: Callable[..., Any], upstream: Upstream) -> None:
    now = [1_000.0]
    with TokenPool(upstream.sign_in, per_user=2, clock=lambda: now[0]) as pool:
        with client(pool, upstream, **BY_HEADER) as session:
            for _ in range(10):
                assert session.get("/forbidden").status_code == 401
                assert session.get("/me").text == "ANN1"
                now[0] += 0.09
            assert upstream.logins == 1, "the first of all calls was the forbidden one, with a fresh token"
            now[0] += 2.0
            assert session.get("/forbidden").status_code == 401
            assert session.get("/me").text == "ANN2"
            assert upstream.logins == 2, "the token was an old one, and might have been dead"
            upstream.expire_all()
            now[0] += 2.0
            assert session.get("/me").text == "ANN3", "as it is now"
        assert free_and_leased(pool) == (1, 0)


def test_a_body_that_is_a_stream_is_not_sent_twice(
    client: Callable[..., Any], pool: TokenPool, upstream: Upstream
) -> None:
    with client(pool, upstream, **BY_HEADER) as session:
        session.get("/me")
        upstream.expire_all()
        streamed = {"data": iter([b"a", b"b"])} if isinstance(session, requests.Session) else {"content": iter([b"a"])}
        assert session.post("/echo", **streamed).status_code == 401
    assert upstream.logins == 1
    assert free_and_leased(pool) == (0, 0)


def test_a_failed_connection_gives_the_lease_back(
    client: Callable[..., Any], pool: TokenPool, upstream: Upstream
) -> None:
    with client(pool, upstream, **BY_HEADER) as session:
        session.get("/me")
        with pytest.raises((httpx.TransportError, httpx2.TransportError, requests.RequestException)):
            session.get("/slow", timeout=0.3)
    assert free_and_leased(pool) == (0, 0)


def test_a_body_that_breaks_off_gives_the_lease_back(
    client: Callable[..., Any], pool: TokenPool, upstream: Upstream
) -> None:
    failures = (httpx.TransportError, httpx2.TransportError, requests.RequestException)
    with client(pool, upstream, **BY_HEADER) as session, pytest.raises(failures):
        session.get("/breaks")
    assert free_and_leased(pool) == (0, 0)


def test_errors_of_the_pool_reach_the_caller(client: Callable[..., Any], upstream: Upstream) -> None:
    with TokenPool(login=upstream.sign_in, per_user=1, wait="0.1s") as pool:
        with pool.lease("ANN"), client(pool, upstream, **BY_HEADER) as session, pytest.raises(PoolTimeout):
            session.get("/me")
        assert pool.stats()["ANN"].waiting == 0


def test_eight_threads_never_use_a_token_twice_at_once(
    client: Callable[..., Any], pool: TokenPool, upstream: Upstream
) -> None:
    statuses: list[int] = []
    with client(pool, upstream, **BY_HEADER) as session:

        def work() -> None:
            statuses.extend(session.get("/me").status_code for _ in range(10))

        threads = [threading.Thread(target=work) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 80
    assert upstream.logins <= 2 and upstream.double_uses == 0 and upstream.refusals == 0


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_a_stream_holds_its_lease_until_it_is_read_or_closed(library: str, pool: TokenPool, upstream: Upstream) -> None:
    with OPENERS[library](pool, upstream, **BY_HEADER) as session:
        with session.stream("GET", "/stream") as response:
            assert free_and_leased(pool) == (0, 1)
            assert len(response.read()) == CHUNKS * len(CHUNK)
            assert free_and_leased(pool) == (1, 0)
        with session.stream("GET", "/stream") as response:
            chunks = response.iter_bytes()
            next(chunks)
            assert free_and_leased(pool) == (0, 1)
        # Closed in the middle: what the upstream does with the session now is unknown.
        assert free_and_leased(pool) == (0, 0)
    assert upstream.double_uses == 0


def test_a_stream_of_requests_holds_its_lease_until_it_is_read_or_closed(pool: TokenPool, upstream: Upstream) -> None:
    with open_requests(pool, upstream, **BY_HEADER) as session:
        response = session.get("/stream", stream=True)
        assert free_and_leased(pool) == (0, 1)
        assert len(response.content) == CHUNKS * len(CHUNK)
        assert free_and_leased(pool) == (1, 0)
        response = session.get("/stream", stream=True)
        assert b"".join(response.iter_content(500)) == CHUNK * CHUNKS
        assert free_and_leased(pool) == (1, 0)
        response = session.get("/stream", stream=True)
        assert response.raw.read() == CHUNK * CHUNKS
        assert free_and_leased(pool) == (1, 0)
        with session.get("/stream", stream=True) as response:
            next(response.iter_content(10))
        assert free_and_leased(pool) == (0, 0)
    assert upstream.double_uses == 0


def redirected(session: Any, path: str) -> Any:
    if not isinstance(session, requests.Session):
        session.follow_redirects = True
    return session.get(path)


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize("how", [BY_HEADER, {"extract": from_header(HEADER)}], ids=["header", "bearer"])
@pytest.mark.parametrize("library", ["httpx_transport", "httpx2_transport", "requests"])
def test_a_redirect_to_another_host_takes_no_token_along(
    library: str, pool: TokenPool, upstream: Upstream, how: dict[str, Any], status: int
) -> None:
    with OPENERS[library](pool, upstream, **how) as session:
        answer = redirected(session, f"/away?status={status}")
        assert (answer.status_code, answer.text) == (status, "elsewhere")
        # And what that host says about a token is not believed.
        assert session.get("/me").text == "ANN1"
    assert upstream.stray_tokens == []
    assert (upstream.logins, upstream.refusals) == (1, 0)
    assert free_and_leased(pool) == (1, 0)


@pytest.mark.parametrize("status", [200, 401])
@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_authorization_stays_at_home_when_httpx_is_redirected(
    library: str, pool: TokenPool, upstream: Upstream, status: int
) -> None:
    with OPENERS[library](pool, upstream, extract=from_header(HEADER)) as session:
        assert redirected(session, f"/away?status={status}").status_code == status
        assert session.get("/me").text == "ANN1"
    assert upstream.stray_tokens == []
    assert (upstream.logins, upstream.refusals) == (1, 0)


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_a_token_that_httpx_took_to_another_host_is_not_used_again(
    library: str, upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    gone: list[str] = []
    with TokenPool(login=upstream.sign_in, logout=lambda user, token: gone.append(token), per_user=2) as pool:
        with OPENERS[library](pool, upstream, **BY_HEADER) as session:
            assert redirected(session, "/away").text == "elsewhere"
        assert free_and_leased(pool) == (0, 0)
    assert gone == upstream.stray_tokens == ["ANN1.1"]
    assert "PoolTransport" in caplog.text and "ANN1.1" not in caplog.text


@pytest.mark.parametrize("how", [BY_HEADER, BY_COOKIE], ids=["header", "cookie"])
@pytest.mark.parametrize("library", ["httpx_transport", "httpx2_transport", "requests"])
def test_each_request_on_the_way_has_the_newest_token(
    library: str, pool: TokenPool, upstream: Upstream, how: dict[str, Any]
) -> None:
    with OPENERS[library](pool, upstream, **how) as session:
        assert redirected(session, "/home").text == "ANN1"
    assert (upstream.logins, upstream.refusals) == (1, 0)
    assert free_and_leased(pool) == (1, 0)


@pytest.mark.parametrize("callback", ["extract", "is_expired"])
def test_a_callback_that_fails_leaves_no_connection_open(pool: TokenPool, upstream: Upstream, callback: str) -> None:
    seen: list[Any] = []

    def fail(response: Any) -> Any:
        seen.append(response)
        raise LookupError("on purpose")

    with requests.Session() as session:
        session.mount(f"{upstream.url}/", PoolAdapter(pool, "ANN", **{**BY_HEADER, callback: fail}))
        with pytest.raises(LookupError):
            session.get(f"{upstream.url}/stream", stream=True, timeout=20)
        assert [response.raw.closed for response in seen] == [True]
    assert free_and_leased(pool) == (0, 0)


@pytest.mark.parametrize("library", ["httpx", "httpx2"])
def test_other_origins_get_no_token(library: str, pool: TokenPool, upstream: Upstream) -> None:
    how = {**BY_HEADER, "origin": upstream.url}
    with OPENERS[library](pool, upstream, **how) as session:
        assert session.get("/me").status_code == 200
        assert session.get(f"http://localhost:{upstream.port}/other").text == "elsewhere"
    assert upstream.stray_tokens == []
    assert pool.stats()["ANN"].leases_total == 1


def test_the_body_is_read_first_when_the_answer_is_in_it(upstream: Upstream) -> None:
    now = [1_000.0]
    with TokenPool(upstream.sign_in, per_user=2, clock=lambda: now[0]) as pool:
        for library in sorted(OPENERS):
            how = {**BY_HEADER, "is_expired": lambda response: "expired" in response.text, "read_body": True}
            with OPENERS[library](pool, upstream, **how) as session:
                for _ in range(2):
                    now[0] += 100  # a token that dies at once is taken for good
                    upstream.expire_all()
                    assert session.get("/me").status_code == 200
        assert free_and_leased(pool) == (1, 0)


def test_a_lease_that_is_over_before_the_answer_keeps_the_answer(
    client: Callable[..., Any], upstream: Upstream, caplog: pytest.LogCaptureFixture
) -> None:
    with TokenPool(login=upstream.sign_in, per_user=1, lease="0.3s") as pool:
        with client(pool, upstream, **BY_HEADER) as session:
            assert session.get("/slow").text == "slow"
        assert "was over before" in caplog.text
        assert free_and_leased(pool) == (0, 0)


def test_the_wrong_kind_of_pool_is_told_at_once() -> None:
    wrong = AsyncTokenPool()
    for make in (httpx_adapter.PoolAuth, httpx2_adapter.PoolAuth, PoolAdapter):
        with pytest.raises(ConfigError):
            make(wrong, "ANN")  # type: ignore[arg-type]
    with TokenPool() as pool:
        with pytest.raises(ConfigError):
            httpx_adapter.AsyncPoolAuth(pool, "ANN")  # type: ignore[arg-type]
        with pytest.raises(ConfigError):
            httpx_adapter.PoolTransport(pool, "ANN")
    with pytest.raises(ConfigError, match="origin"):
        PoolMiddleware(wrong, "ANN")
    for name in ("", "a b", "a:b", "a\r\nb"):
        with pytest.raises(ConfigError):
            header(name)


@pytest.mark.parametrize(
    "origin",
    ["", "api.example.com", "https://", "https://[::1", "https://a:99999", "https://u:p@a", "https://a/b", "ftp://a"],
)
def test_what_is_no_origin_is_told(origin: str) -> None:
    with pytest.raises(ConfigError, match="origin"):
        UpstreamTokens("ANN", origin=origin)


@pytest.mark.parametrize(
    ("origin", "url"),
    [
        ("https://api.example.com:443", "https://api.example.com/x"),
        ("HTTPS://API.example.com/", "https://api.example.com:443/x"),
        ("http://[::1]:8200", "http://[::1]:8200/"),
        ("https://bücher.example", "https://xn--bcher-kva.example/x"),
    ],
)
def test_an_origin_may_be_written_in_several_ways(origin: str, url: str) -> None:
    exchange = UpstreamTokens("ANN", origin=origin)
    assert exchange.concerns(url)
    for other in (url.replace("http", "httpx", 1), "https://api.example.com.evil.example/", "https://[::1", "nonsense"):
        assert not exchange.concerns(other)
