"""Bound sessions under the ASGI middleware, without a server: what is answered, and what hostile clients come to."""

from __future__ import annotations

import asyncio
import json
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
from aiohttp import web

from coatcheck import CookiePolicy, connect
from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import ConfigError
from coatcheck.events import Event, EventKind
from coatcheck.hand_off.sites import Site, Sites
from coatcheck.web.aiohttp import setup
from coatcheck.web.asgi import SessionMiddleware
from device.software_key import SoftwareKey

SECRET = os.urandom(32)
REGISTER, REFRESH = "/.coatcheck/device/register", "/.coatcheck/device/refresh"
NAME = "__Host-coatcheck-login"
KEY = SoftwareKey()


class BoundSite:
    """Sessions in memory behind the middleware, and what was reported of them."""

    def __init__(self, cookies: CookiePolicy | None = None, **settings: Any) -> None:
        self.events: list[Event] = []
        self.paths: list[str] = []
        defaults = {"device_binding": "offer", "grace_s": 0.3, **settings}
        self.sessions: Sessions = connect(
            "memory://", key=SECRET, observer=self.events.append, cookies=cookies or CookiePolicy(), **defaults
        )
        self.app = SessionMiddleware(self._app, self.sessions)

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        session, path = scope["session"], scope["path"]
        self.paths.append(path)
        if path.startswith("/login-"):
            session.regenerate(path.removeprefix("/login-"))
        elif path == "/add":
            session["n"] = session.get("n", 0) + 1
        bound = session.bound
        said = {"user": session.user, "n": session.get("n"), "key": bound and bound.thumbprint}
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]})
        await send({"type": "http.response.body", "body": json.dumps(said).encode()})

    def refusals(self) -> list[str]:
        return [event.detail for event in self.events if event.kind is EventKind.PROOF_REFUSED]

    @asynccontextmanager
    async def client(self) -> AsyncIterator[httpx.AsyncClient]:
        transport = httpx.ASGITransport(self.app)  # type: ignore[arg-type]
        async with httpx.AsyncClient(transport=transport, base_url="https://farm.test") as client:
            yield client


def with_clients(story: Callable[[BoundSite, httpx.AsyncClient], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        site = BoundSite(**settings)
        try:
            async with site.client() as client:
                await story(site, client)
        finally:
            await site.sessions.aclose()

    asyncio.run(run())


def offered(login: httpx.Response) -> str:
    value = login.headers["secure-session-registration"]
    assert value.startswith(f'(ES256 RS256);path="{REGISTER}";challenge="')
    return str(value.split('challenge="')[1].rstrip('"'))


def asked(answer: httpx.Response) -> str:
    return str(answer.headers["secure-session-challenge"].split('"')[1])


async def bind(client: httpx.AsyncClient, user: str = "ada", key: SoftwareKey = KEY) -> dict[str, Any]:
    """The instructions that a browser gets whose session is bound now."""
    login = await client.get(f"/login-{user}")
    answer = await client.post(REGISTER, headers={"Secure-Session-Response": key.registration(offered(login))})
    assert answer.status_code == 200, answer.text
    assert (await client.get("/")).json()["key"] is not None
    return {**answer.json(), "challenge": asked(answer)}


async def refresh(client: httpx.AsyncClient, name: str, proof: str = "") -> httpx.Response:
    headers = {"Sec-Secure-Session-Id": name} | ({"Secure-Session-Response": proof} if proof else {})
    return await client.post(REFRESH, headers=headers)


def test_registration_and_refresh_and_their_end() -> None:
    async def story(site: BoundSite, client: httpx.AsyncClient) -> None:
        told = await bind(client)
        assert told["refresh_url"] == REFRESH
        assert told["scope"] == {"include_site": False}
        (credential,) = told["credentials"]
        assert credential == {"type": "cookie", "name": NAME, "attributes": "Path=/; HttpOnly; Secure; SameSite=Lax"}
        name, old = told["session_identifier"], client.cookies[NAME]
        answer = await refresh(client, name, KEY.refresh(told["challenge"]))
        assert answer.status_code == 200
        assert answer.headers["cache-control"] == "no-store"
        cookie = answer.headers["set-cookie"]
        assert "; Max-Age=600;" in cookie
        assert cookie.partition("; ")[2].replace("Max-Age=600; ", "") == credential["attributes"]
        assert client.cookies[NAME] != old
        assert (await client.get("/add")).json()["n"] == 1
        again = await refresh(client, name, KEY.refresh(asked(answer)))
        assert again.status_code == 200, "the challenge that was sent ahead"
        assert site.paths.count(REFRESH) == site.paths.count(REGISTER) == 0, "the app sees none of it"
        await site.sessions.close_user("ada")
        ended = await refresh(client, name)
        assert (ended.status_code, ended.json()) == (200, {"session_identifier": name, "continue": False})

    with_clients(story)


def test_what_the_browser_has_is_what_it_was_told_also_below_a_path() -> None:
    async def story(site: BoundSite, client: httpx.AsyncClient) -> None:
        login = await client.get("/login-ada")
        assert 'path="/shop/.coatcheck/device/register"' in login.headers["secure-session-registration"]

    with_clients(story, cookies=CookiePolicy(path="/shop"))


def test_a_challenge_or_a_proof_is_good_once_and_for_one_session() -> None:
    async def story(site: BoundSite, ada: httpx.AsyncClient) -> None:
        told = await bind(ada)
        name, good = told["session_identifier"], KEY.refresh(told["challenge"])
        async with site.client() as bob:
            others = await bind(bob, "bob", SoftwareKey())
            foreign = await refresh(bob, others["session_identifier"], good)
            assert foreign.status_code == 403
            assert (await refresh(bob, name, SoftwareKey().refresh(told["challenge"]))).status_code == 403
            login = await bob.get("/login-carl")
            mine = await ada.post(
                REGISTER, headers={"Secure-Session-Response": SoftwareKey().registration(offered(login))}
            )
            assert (mine.status_code, "set-cookie" in mine.headers) == (403, False)
        assert (await refresh(ada, name, good)).status_code == 200
        replayed = await refresh(ada, name, good)
        assert replayed.status_code == 403
        assert (await refresh(ada, name, KEY.refresh(asked(replayed)))).status_code == 200
        assert site.refusals() == [
            "challenge_for_something_else",
            "wrong_signature",
            "challenge_for_something_else",
            "challenge_used",
        ]

    with_clients(story)


def test_whatever_is_sent_is_refused_without_a_server_error_and_changes_nothing() -> None:
    drawn = random.Random(13)

    async def story(site: BoundSite, client: httpx.AsyncClient) -> None:
        told = await bind(client)
        name, before = told["session_identifier"], client.cookies[NAME]
        texts = [
            "",
            '"',
            '""',
            "a.b.c",
            '"a.b.c";x',
            "\u00e9",
            "x" * 20_000,
            name,
            told["challenge"],
            "(a b)",
        ]
        good = KEY.refresh(told["challenge"])
        for _ in range(150):
            at = drawn.randrange(len(good))
            texts.append(good[:at] + drawn.choice("aZ9-_.=") * drawn.randrange(3) + good[at + 1 :])
        for text in texts:
            raw = text.encode()
            for path, headers in (
                (REFRESH, [(b"sec-secure-session-id", raw)]),
                (REFRESH, [(b"sec-secure-session-id", name.encode()), (b"secure-session-response", raw)]),
                (REFRESH, [(b"sec-secure-session-id", name.encode())] * 2),
                (REGISTER, [(b"secure-session-response", raw)]),
                ("/", [(b"secure-session-skipped", raw), (b"secure-session-response", raw)]),
            ):
                if text == good or (text == name and headers[0][0] == b"sec-secure-session-id"):
                    continue
                answer = await client.post(path, headers=headers)
                assert answer.status_code in (200, 400, 403), (path, text[:80])
                assert path == "/" or answer.status_code != 200
                assert "set-cookie" not in answer.headers
        assert client.cookies[NAME] == before
        assert (await refresh(client, name, good)).status_code == 200, "the challenge was not used up"
        async with site.client() as stranger:
            for path in (REGISTER, REFRESH):
                assert (await stranger.post(path)).status_code in (400, 403)
                assert (await stranger.get(path)).status_code == 405

    with_clients(story)


def test_who_shows_a_token_that_is_too_old_is_sent_to_sign_and_never_to_another_host() -> None:
    async def story(site: BoundSite, client: httpx.AsyncClient) -> None:
        policy = site.sessions._policy
        assert policy.bound_token_ms == 5_300
        told = await bind(client)
        token = client.cookies[NAME]
        await asyncio.sleep(5.4)
        seen = len(site.paths)
        client.cookies.clear()
        late = {"Cookie": f"{NAME}={token}"}
        for path in ("/", "/a%2Fb?x=%20y&z", "/?next=//evil.test"):
            answer = await client.get(path, headers=late)
            assert (answer.status_code, answer.headers["location"]) == (307, path)
            assert answer.headers["set-cookie"].startswith(f'{NAME}=""; Expires=')
        for method, path in (("POST", "/"), ("GET", "//evil.test/"), ("DELETE", "/")):
            answer = await client.request(method, f"https://farm.test{path}", headers=late)
            assert (answer.status_code, "location" in answer.headers) == (403, False)
            assert answer.headers["set-cookie"].startswith(f'{NAME}=""; Expires=')
        client.cookies.clear()
        assert len(site.paths) == seen, "the app sees none of it"
        assert (await client.get("/")).json() == {"user": None, "n": None, "key": None}, "and without it a stranger"
        name = told["session_identifier"]
        skipped = {"Secure-Session-Skipped": f'quota_exceeded;session_identifier="{name}"'}
        answer = await client.get("/", headers=skipped)
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        wanted = await refresh(client, name)
        assert (await refresh(client, name, KEY.refresh(asked(wanted)))).status_code == 200
        assert (await client.get("/", headers=skipped)).json()["user"] == "ada"
        await site.sessions.close_user("ada")
        client.cookies.clear()
        assert (await client.get("/", headers=skipped)).status_code == 200, "what has ended is waited for by nobody"

    with_clients(story, bound_cookie_life_s=5)


def test_nothing_is_offered_where_it_is_off_or_cannot_be() -> None:
    async def story(site: BoundSite, client: httpx.AsyncClient) -> None:
        login = await client.get("/login-ada")
        assert "secure-session-registration" not in login.headers
        assert (await client.post(REFRESH)).status_code == 200
        assert site.paths[-1] == REFRESH, "the address is the app's"

    with_clients(story, device_binding="off")
    with_clients(story, cookies=CookiePolicy(insecure_localhost=True))


@pytest.mark.parametrize(
    ("settings", "cookies", "words"),
    [
        ({"driver": "threads"}, None, "only with driver"),
        ({"device_binding": "sometimes"}, None, "device_binding"),
        ({"bound_cookie_life_s": 1}, None, "bound_cookie_life"),
        ({}, CookiePolicy(domain="farm.test"), "at one host"),
        ({"device_binding": "require-after-login"}, CookiePolicy(insecure_localhost=True), "without TLS"),
    ],
)
def test_what_cannot_be_is_refused_at_the_start(
    settings: dict[str, Any], cookies: CookiePolicy | None, words: str
) -> None:
    with pytest.raises(ConfigError, match=words):
        connect("memory://", key=SECRET, cookies=cookies, **{"device_binding": "offer", **settings})


def test_sites_and_adapters_that_bind_nothing_say_so() -> None:
    sites = Sites(
        table=(Site(name="a", origin="https://a.test"), Site(name="b", origin="https://b.test", paths=("/b/*",)))
    )
    with pytest.raises(ConfigError, match="not with sites"):
        connect("memory://", key=SECRET, sites=sites, cookies=CookiePolicy(), device_binding="offer")
    demanding = connect("memory://", key=SECRET, cookies=CookiePolicy(), device_binding="require-after-login")
    with pytest.raises(ConfigError, match="ASGI middleware alone"):
        setup(web.Application(), demanding)
