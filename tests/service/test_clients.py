"""The clients: Python's, blocking and for event loops, and the examples in Node and PHP, each against real services."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest

from coatcheck.errors import ConfigError
from coatcheck.service.client import AsyncSessionClient, ServiceProblem, SessionClient

from .conftest import StartService
from .pages import node, php
from .service_process import ServiceProcess, credential_of


def test_a_blocking_client(service: ServiceProcess) -> None:
    with SessionClient(service.url, credential_of("shop")) as client:
        made = client.create("ada", {"n": 1}, client="192.0.2.1", remember=True)
        assert made.cookie is not None
        assert "Max-Age" in made.set_cookie[0]
        seen = client.verify(made.cookie)
        assert seen is not None and seen.user == "ada"
        changed = client.update(made.cookie, {"n": 2}, ["_remember"], version=seen.version)
        assert changed is not None and changed.session.data == {"n": 2}
        with pytest.raises(ServiceProblem) as late:
            client.update(made.cookie, {"n": 3}, version=seen.version)
        assert (late.value.status, late.value.name) == (409, "conflict")
        renewed = client.renew(made.cookie, now=True)
        assert renewed is not None and renewed.cookie not in (None, made.cookie)
        assert client.close(renewed.cookie or "").closed
        assert client.verify(made.cookie) is None
        assert client.renew(made.cookie) is None
        assert client.update(made.cookie, {}) is None
        with pytest.raises(ServiceProblem, match="a session begins"):
            client.create()


def test_a_client_for_event_loops(service: ServiceProcess) -> None:
    async def use() -> None:
        async with AsyncSessionClient(service.url, credential_of("shop")) as client:
            made = await client.create("ada")
            assert made.cookie is not None
            given = await asyncio.gather(*(client.renew(made.cookie, now=True) for _ in range(10)))
            assert all(one is not None and one.session.user == "ada" for one in given)
            seen = await client.verify(made.cookie)
            assert seen is not None
            changed = await client.update(made.cookie, {"n": 1}, version=seen.version)
            assert changed is not None
            assert (await client.close(made.cookie)).closed
            assert await client.verify(made.cookie) is None
        async with AsyncSessionClient(service.url, "shop.1.wrong") as stranger:
            with pytest.raises(ServiceProblem, match="unauthorized"):
                await stranger.verify("")

    asyncio.run(use())


def test_a_client_goes_on_with_the_next_process(start: StartService) -> None:
    one, other = start(), start()
    with SessionClient([one.url, other.url], credential_of("shop")) as client:
        cookie = client.create("ada").cookie or ""
        one.process.kill()
        one.process.wait()
        seen = client.verify(cookie)
        assert seen is not None and seen.user == "ada"
    with SessionClient("http://127.0.0.1:1", credential_of("shop")) as nowhere:
        with pytest.raises(ServiceProblem) as nobody:
            nowhere.verify(cookie)
        assert (nobody.value.status, nobody.value.name) == (0, "no-answer")
    with pytest.raises(ConfigError):
        SessionClient([], "x")
    with pytest.raises(ConfigError):
        SessionClient("ftp://shop.example", "x")


@pytest.fixture(params=["node", "php"])
def app(request: pytest.FixtureRequest, service: ServiceProcess, tmp_path: Path) -> Iterator[str]:
    env = {"SERVICE": service.url, "CREDENTIAL": credential_of("shop")}
    example = node("client.mjs", tmp_path, **env) if request.param == "node" else php("client.php", tmp_path, **env)
    with example as url:
        yield url


def test_an_app_of_another_language_has_its_sessions_in_the_service(app: str, service: ServiceProcess) -> None:
    def ask(method: str, path: str, cookie: str = "") -> httpx.Response:
        return httpx.request(method, app + path, headers={"Cookie": cookie}, timeout=60, trust_env=False)

    assert ask("GET", "/").status_code == 401
    login = ask("POST", "/login/ada%20%C3%A9")
    assert login.text == "welcome, ada é"
    cookie = login.headers["set-cookie"].partition(";")[0]
    assert [ask("POST", "/add", cookie).text for _ in range(3)] == ["1", "2", "3"]
    assert ask("GET", "/", cookie).text == "ada é 3"
    assert service.ask("/verify", cookie=cookie).json()["session"]["data"] == {"items": 3}, "anybody's, at the service"
    service.ask("/renew", cookie=cookie, now=True)
    renewed = ask("GET", "/", cookie)
    newer = renewed.headers["set-cookie"].partition(";")[0]
    assert newer != cookie
    assert ask("GET", "/", newer).text == "ada é 3"
    with ThreadPoolExecutor(6) as pool:
        asked = [pool.submit(ask, "POST", "/add", newer) for _ in range(12)]
        statuses = [one.result().status_code for one in asked]
    counted = 3 + statuses.count(200)
    assert set(statuses) <= {200, 409}
    assert ask("GET", "/", newer).text == f"ada é {counted}", "what was acknowledged counts, once"
    gone = ask("POST", "/logout", newer)
    assert "Max-Age=0" in gone.headers["set-cookie"]
    assert ask("GET", "/", newer).status_code == 401


@pytest.mark.parametrize("foreign", [b"theme=\xe6\x97\xa5", b"name=Ren\xc3\xa9", b"old=\xff\xfe"])
def test_a_cookie_of_others_locks_nobody_out(app: str, service: ServiceProcess, foreign: bytes) -> None:
    def ask(method: str, path: str, cookie: bytes) -> httpx.Response:
        return httpx.request(method, app + path, headers={b"Cookie": cookie}, timeout=60, trust_env=False)

    cookie = service.login("ada").encode()
    for shown in (foreign + b"; " + cookie, cookie + b"; " + foreign):
        found = ask("GET", "/", shown)
        assert (found.status_code, found.text) == (200, "ada 0")
    # Beside ours a header has the same bytes, whoever passes it on: text in which each character is one of them.
    assert service.ask("/verify", cookie=(foreign + b"; " + cookie).decode("latin-1")).status_code == 200


def test_what_an_app_is_asked_wrongly_is_no_error_of_the_app(app: str, tmp_path: Path) -> None:
    """A user's name that is no UTF-8."""
    found = httpx.post(f"{app}/login/%ff", timeout=60, trust_env=False)
    assert found.status_code == 503
    assert found.text == "try again"
    for log in tmp_path.glob("*.log"):
        assert "Uncaught" not in log.read_text()


@pytest.mark.parametrize("wrong", ["\n", "\r\nX-Evil: 1", " ", "\u20ac", "\x00", "\udc80"])
@pytest.mark.parametrize("kind", [SessionClient, AsyncSessionClient])
def test_no_error_shows_a_credential(kind: type[SessionClient | AsyncSessionClient], wrong: str) -> None:
    """As of a file with a line break at its end."""
    with pytest.raises(ConfigError, match=r"^credential: ") as refused:
        kind("http://127.0.0.1:1", f"shop.1.SECRET{wrong}")
    error: BaseException | None = refused.value
    while error is not None:
        assert "SECRET" not in f"{error} {error!r}"
        error = error.__cause__ or error.__context__


def test_an_error_of_our_own_side_is_named_and_not_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise httpx.LocalProtocolError("Illegal header value b'Bearer shop.1.SECRET'")

    monkeypatch.setattr(httpx.HTTPTransport, "handle_request", refuse)
    with SessionClient("http://127.0.0.1:1", "shop.1.x") as client, pytest.raises(ServiceProblem) as said:
        client.verify("")
    assert str(said.value) == "no-answer: LocalProtocolError"
