"""Cookie and browser checks, by their numbers in OWASP ASVS 5.0 (3.3, 3.5, 14.2)."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from coatcheck.sessions.cookies import MAX_COOKIE_BYTES, CookieJar, CookiePolicy

from .two_servers import COOKIE, LOGIN, Browser, Servers, shopper, two_servers


def told(story: Callable[[Servers], Awaitable[None]]) -> None:
    async def tell() -> None:
        async with two_servers() as servers:
            await story(servers)

    asyncio.run(tell())


def attributes(line: str) -> set[str]:
    return {part.strip().lower() for part in line.split(";")[1:]}


def test_3_3_every_cookie_is_secure_httponly_samesite_and_of_this_host_alone() -> None:
    async def story(servers: Servers) -> None:
        browser = Browser(servers)
        answers = [await browser.put(1), await browser.post(1, "/login"), await browser.post(1, "/logout")]
        lines = [line for answer in answers for line in answer.headers.get_list("set-cookie")]
        assert len(lines) == 4, "created; logged in and the anonymous one deleted; logged out"
        for line in lines:
            assert line.startswith("__Host-")
            assert {"secure", "httponly", "samesite=lax", "path=/"} <= attributes(line)
            assert not any(part.startswith("domain=") for part in attributes(line)), "__Host- forbids it"
            assert len(line) < MAX_COOKIE_BYTES

    told(story)


def test_3_3_two_values_of_one_name_never_mix() -> None:
    async def story(servers: Servers) -> None:
        one, other = await shopper(servers), await shopper(servers)
        header = f"{COOKIE}={one.jar[COOKIE]}; {COOKIE}={other.jar[COOKIE]}"
        answer = await Browser(servers).send(1, "GET", "/", cookie=header)
        assert answer.body["data"] == {"n": 1}
        assert COOKIE not in answer.cookies

    told(story)


def test_3_3_deleting_a_cookie_repeats_its_attributes() -> None:
    for policy in (CookiePolicy(), CookiePolicy(domain="farm.example"), CookiePolicy(insecure_localhost=True)):
        jar = CookieJar(policy, "-login")
        given, deleted = (line.decode() for _, line in (jar.set_cookie(b"x"), jar.delete_cookie()))
        assert attributes(given) <= attributes(deleted) | {"max-age=0"}
        assert "max-age=0" in attributes(deleted)


def test_3_5_a_get_that_only_reads_changes_nothing() -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        before = [store.table.get(browser.token().key, 0) for store in servers.stores]
        for _ in range(5):
            answer = await browser.get(1)
            assert not answer.cookies
        assert [store.table.get(browser.token().key, 0) for store in servers.stores] == before

    told(story)


def test_3_5_a_strangers_site_cannot_post_with_the_session() -> None:
    """``SameSite=Lax``, or stricter: the browser leaves the cookie out. It is never ``None`` by default."""
    assert CookiePolicy().same_site == "lax"
    assert "samesite=strict" in attributes(CookieJar(CookiePolicy(same_site="strict")).set_cookie(b"x")[1].decode())


def test_14_2_1_a_token_in_a_url_opens_nothing() -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        text = browser.jar[COOKIE]
        for path in (f"/?{COOKIE}={text}", f"/?session={text}", f"/;{COOKIE}={text}"):
            answer = await Browser(servers).send(1, "GET", path)
            assert answer.status == 404 or answer.body["data"] == {}
        for header in ("authorization", "x-session-token", "cookie2"):
            answer = await Browser(servers).send(1, "GET", "/", **{header: f"{COOKIE}={text}"})
            assert answer.body["data"] == {}

    told(story)


def test_14_2_2_no_store_wherever_a_session_was_touched() -> None:
    async def story(servers: Servers) -> None:
        browser = Browser(servers)
        for answer in (
            await browser.get(1),
            await browser.put(1),
            await browser.get(2),
            await browser.post(2, "/login"),
            await browser.get(1),
            await browser.post(1, "/logout"),
        ):
            assert answer.headers["cache-control"] == "no-store"
            assert "cookie" in answer.headers["vary"].lower()
        untouched = await browser.get(1, "/nowhere")
        assert untouched.status == 404
        assert "cache-control" not in untouched.headers

    told(story)


def test_the_token_is_nowhere_but_in_set_cookie() -> None:
    async def story(servers: Servers) -> None:
        browser = Browser(servers)
        answer = await browser.put(1)
        text = browser.jar[COOKIE]
        others = [value for name, value in answer.headers.multi_items() if name != "set-cookie"]
        assert text not in answer.text
        assert not any(text in value for value in others)
        assert LOGIN not in browser.jar

    told(story)
