"""When a cookie is set and when not, what the verbs do, and what becomes of a response that cannot be kept."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

import in_hand
from coatcheck.errors import ConfigError, SessionDataError
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.policy import SessionPolicy

from .in_process import Act, Served, acting, count, look, served

COOKIE, LOGIN, ROUTE = "__Host-coatcheck", "__Host-coatcheck-login", "__Host-coatcheck-route"


def names_set(response: Any) -> list[str]:
    return [line.partition("=")[0] for line in response.headers.get_list("set-cookie")]


def deleted(response: Any) -> list[str]:
    return [line.partition("=")[0] for line in response.headers.get_list("set-cookie") if "Max-Age=0" in line]


READING: dict[str, Act] = {
    "not touched": lambda s: None,
    "read": lambda s: s.get("n"),
    "read whole": look,
    "set to what it was": lambda s: s.__setitem__("n", 1),
    "changed and changed back": lambda s: (s.update(n=5), s.update(n=1))[1],
    "nested value read": lambda s: s["list"][0],
}


@pytest.mark.parametrize("name", READING)
def test_no_cookie_where_nothing_changed(name: str) -> None:
    async def story() -> None:
        async with served(acting(lambda s: s.update(n=1, list=[1]))) as server, server.client() as browser:
            await browser.get("/")
            server.app = acting(READING[name])
            for _ in range(3):
                assert names_set(await browser.get("/")) == []

    asyncio.run(story())


CHANGING: dict[str, Act] = {
    "changed": count,
    "deleted": lambda s: s.pop("n"),
    "nested": lambda s: s["list"].append(2),
    "rotate": lambda s: s.rotate(),
}


@pytest.mark.parametrize("name", CHANGING)
def test_one_cookie_where_something_changed(name: str) -> None:
    async def story() -> None:
        async with served(acting(lambda s: s.update(n=1, list=[1]))) as server, server.client() as browser:
            created = await browser.get("/")
            assert names_set(created) == [COOKIE]
            before = browser.cookies[COOKIE]
            server.app = acting(CHANGING[name])
            assert names_set(await browser.get("/")) == [COOKIE]
            assert browser.cookies[COOKIE] != before
            server.app = acting(look)
            await browser.get("/")  # shows the new token: that may be noted, and told
            assert names_set(await browser.get("/")) == []

    asyncio.run(story())


def test_no_session_no_cookie() -> None:
    async def story() -> None:
        async with served(acting(look)) as server, server.client() as browser:
            for act in (look, lambda s: s.rotate(), lambda s: s.close(), lambda s: s.clear(), lambda s: s.pop("x", 1)):
                server.app = acting(act)
                assert names_set(await browser.get("/")) == []
            assert all(store.table.entries == 0 for store in server.stores)

    asyncio.run(story())


def test_rotate_gives_a_new_session_id_for_the_same_session() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            tokens = []
            for act in (look, lambda s: s.rotate(), lambda s: s.rotate()):
                server.app = acting(act)
                await browser.get("/")
                token = in_hand.unsealed(server.sessions, browser.cookies[COOKIE].encode(), False)
                assert token is not None
                tokens.append(token)
            assert len({token.session_id for token in tokens}) == 3
            assert len({token.key for token in tokens}) == 1

    asyncio.run(story())


def test_regenerate_moves_to_the_logged_in_cookie() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            server.app = acting(lambda s: s.regenerate("ada"))
            response = await browser.post("/")
            assert names_set(response) == [LOGIN, COOKIE]
            assert deleted(response) == [COOKIE]
            server.app = acting(lambda s: (s.user, s["n"]))
            assert (await browser.get("/")).text == "('ada', 1)"

    asyncio.run(story())


@pytest.mark.parametrize("data", [{}, {"n": 1}])
def test_a_login_without_a_session_begins_one(data: dict[str, int]) -> None:
    login = acting(lambda s: (s.regenerate("ada"), s.update(data))[0])

    async def story() -> None:
        async with served(login) as server, server.client() as browser:
            assert names_set(await browser.post("/")) == [LOGIN]
            server.app = acting(lambda s: (s.user, dict(s)))
            assert (await browser.get("/")).text == repr(("ada", data))

    asyncio.run(story())


@pytest.mark.parametrize("act", [lambda s: s.close(), lambda s: s.clear(), lambda s: (s.close(), s.update(x=1))[0]])
def test_close_deletes_the_cookie(act: Act) -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            server.app = acting(act)
            assert deleted(await browser.post("/")) == [COOKIE]
            assert COOKIE not in browser.cookies
            server.app = acting(look)
            assert (await browser.get("/")).text == "{}"

    asyncio.run(story())


def test_the_apps_own_headers_stand() -> None:
    own = [(b"set-cookie", b"theme=dark"), (b"cache-control", b"private, max-age=5"), (b"vary", b"Accept")]

    async def story() -> None:
        async with served(acting(count, own)) as server, server.client() as browser:
            created = await browser.get("/")
            assert names_set(created) == ["theme", COOKIE]
            assert created.headers["cache-control"] == "no-store", "a token leaves: nobody may keep it"
            server.app = acting(look, own)
            read = await browser.get("/")
            assert read.headers["cache-control"] == "private, max-age=5"
            assert {value.lower() for value in read.headers.get_list("vary")} == {"accept", "cookie"}
            server.app = acting(lambda s: None, own)
            untouched = await browser.get("/")
            assert untouched.headers.get_list("vary") == ["Accept"]

    asyncio.run(story())


@pytest.mark.parametrize(
    ("policy", "name", "has", "lacks"),
    [
        (CookiePolicy(), "__Host-coatcheck", {"Secure", "HttpOnly", "SameSite=Lax", "Path=/"}, {"Domain", "Max-Age"}),
        (CookiePolicy(insecure_localhost=True), "coatcheck", {"HttpOnly", "SameSite=Lax"}, {"Secure"}),
        (CookiePolicy(domain="a.example"), "__Secure-coatcheck", {"Secure", "Domain=a.example"}, set()),
        (CookiePolicy(name="shop", same_site="strict"), "__Host-shop", {"SameSite=Strict"}, set()),
        (CookiePolicy(max_age_s=60, same_site="none"), "__Host-coatcheck", {"Max-Age=60", "SameSite=None"}, set()),
        (CookiePolicy(path="/shop"), "__Secure-coatcheck", {"Secure", "Path=/shop"}, {"Domain"}),
        (CookiePolicy(same_site="none", partitioned=True), "__Host-coatcheck", {"Partitioned", "Secure"}, set()),
    ],
)
def test_cookie_attributes(policy: CookiePolicy, name: str, has: set[str], lacks: set[str]) -> None:
    async def story() -> None:
        async with served(acting(count), cookies=policy) as server, server.client() as browser:
            line = (await browser.get("/")).headers["set-cookie"]
            parts = [part.strip() for part in line.split(";")]
            assert parts[0].startswith(name + "=")
            assert has <= set(parts)
            assert not any(part.startswith(lacked) for part in parts for lacked in lacks)

    asyncio.run(story())


@pytest.mark.parametrize(
    ("wrong", "line"),
    [
        ({"name": ""}, "cookie_name: letters, digits"),
        ({"name": "a b"}, "cookie_name: letters, digits"),
        ({"name": "a;b"}, "cookie_name: letters, digits"),
        ({"name": "a" * 65}, "cookie_name: letters, digits"),
        ({"name": "__Host-shop"}, "cookie_name: the prefix is made from domain and path"),
        ({"domain": "x; HttpOnly=no"}, "cookie_domain: a host name of two labels or more"),
        ({"domain": ".shop.example"}, "cookie_domain: a host name of two labels or more"),
        ({"domain": "localhost"}, "cookie_domain: a host name of two labels or more"),
        ({"domain": "127.0.0.1"}, "cookie_domain: a host name of two labels or more"),
        ({"path": "shop"}, "cookie_path: begins with /"),
        ({"path": "/shop; Domain=x"}, "cookie_path: begins with /"),
        ({"max_age_s": "401d"}, "cookie_max_age_s: must be at most 400d"),
        ({"max_age_s": -1}, "cookie_max_age_s: a duration is finite and not negative"),
        ({"same_site": "None"}, "cookie_same_site: choose one of lax, strict, none (got 'None')"),
        ({"same_site": "none", "insecure_localhost": True}, 'browsers refuse cookie_same_site "none" without Secure'),
        ({"domain": "shop.example", "insecure_localhost": True}, "browsers refuse cookie_domain without Secure"),
        ({"partitioned": True}, 'cookie_partitioned: needs same_site = "none"'),
    ],
)
def test_cookies_that_no_browser_takes_are_refused(wrong: dict[str, Any], line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        CookiePolicy(**wrong)
    assert line in str(refused.value)
    assert "\n" not in str(refused.value)


def test_the_route_cookie_follows_the_session() -> None:
    async def story() -> None:
        async with served(acting(look), route_tag="web-1", sticky="session") as server, server.client() as browser:
            assert names_set(await browser.get("/")) == [], "no session, no route"
            server.app = acting(count)
            assert names_set(await browser.get("/")) == [COOKIE, ROUTE]
            assert browser.cookies[ROUTE] == "web-1"
            server.app = acting(look)
            assert names_set(await browser.get("/")) == []
            browser.cookies.delete(ROUTE)
            browser.cookies.set(ROUTE, "web-9", domain="farm.example", path="/")
            assert names_set(await browser.get("/")) == [ROUTE], "it came from another server"

    asyncio.run(story())


def test_what_cannot_be_stored_says_what_and_where() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            server.app = acting(lambda s: s.update(cart={"when": object()}))
            with pytest.raises(SessionDataError, match=r"'cart'.*object"):
                await browser.get("/")
            server.app = acting(lambda s: s.update({1: 2}))
            with pytest.raises(SessionDataError, match=r"strings.*int"):
                await browser.get("/")
            server.app = acting(lambda s: s.update(big="x" * 2_000_000))
            with pytest.raises(SessionDataError, match="2000"):
                await browser.get("/")
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'n': 1}", "what was stored before still is"

    asyncio.run(story())


def test_the_apps_own_error_page_passes_without_a_session() -> None:
    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["session"]["bad"] = object()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        except SessionDataError as error:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": f"our own page: {error}".encode()})

    async def story() -> None:
        async with served(app) as server, server.client() as browser:
            response = await browser.get("/")
            assert response.status_code == 500
            assert response.text.startswith("our own page: the session cannot be stored: value of 'bad'")
            assert names_set(response) == []

    asyncio.run(story())


async def emptied(server: Served) -> None:
    for store in server.stores:
        await store.aclose()
    await asyncio.sleep(0.1)  # leases end


def test_unavailable_is_503_with_retry_after() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            await emptied(server)
            response = await browser.get("/")
            assert response.status_code == 503
            assert response.headers["retry-after"] == "1"
            assert response.headers["cache-control"] == "no-store"
            assert "no_session_server_answers" in response.text
            assert names_set(response) == []
            for store in server.stores:
                await store.open()
            assert (await browser.get("/")).text == "2"

    asyncio.run(story())


def test_lost_while_the_app_was_running_is_503_and_the_apps_answer_is_dropped() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")

            async def app(scope: Any, receive: Any, send: Any) -> None:
                count(scope["session"])
                await emptied(server)
                await send({"type": "http.response.start", "status": 201, "headers": [(b"x-done", b"yes")]})
                await send({"type": "http.response.body", "body": b"stored!", "more_body": True})
                await send({"type": "http.response.body", "body": b""})

            server.app = app
            response = await browser.get("/")
            assert response.status_code == 503
            assert "stored!" not in response.text
            assert "x-done" not in response.headers
            for store in server.stores:
                await store.open()
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'n': 1}"

    asyncio.run(story())


def test_a_change_that_is_to_be_stored_when_the_web_server_stops_is_503() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")

            async def app(scope: Any, receive: Any, send: Any) -> None:
                count(scope["session"])
                await server.sessions.aclose()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"stored!"})

            server.app = app
            response = await browser.get("/")
            assert (response.status_code, response.headers["retry-after"]) == (503, "1")
            assert "this_web_server_is_stopping" in response.text

    asyncio.run(story())


def test_conflict_is_409() -> None:
    async def story() -> None:
        async with served(acting(count), policy=SessionPolicy(conflict="reject")) as server, server.client() as browser:
            await browser.get("/")
            gate, inside = asyncio.Event(), asyncio.Event()

            async def slow(scope: Any, receive: Any, send: Any) -> None:
                count(scope["session"])
                inside.set()
                await gate.wait()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"counted"})

            server.app = slow
            overtaken = asyncio.create_task(browser.get("/"))
            await inside.wait()
            server.app = acting(count)
            assert (await browser.get("/")).text == "2"
            gate.set()
            response = await overtaken
            assert response.status_code == 409
            assert "'n'" in response.text
            server.app = acting(look)
            assert (await browser.get("/")).text == "{'n': 2}"

    asyncio.run(story())


def test_disjoint_changes_of_parallel_requests_merge() -> None:
    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")

            async def parallel(scope: Any, receive: Any, send: Any) -> None:
                scope["session"][scope["path"]] = True
                await asyncio.sleep(0.02)
                await acting(lambda s: None)(scope, receive, send)

            server.app = parallel
            responses = await asyncio.gather(*(browser.get(f"/{number}") for number in range(8)))
            assert [response.status_code for response in responses] == [200] * 8
            server.app = acting(lambda s: sorted(s))
            assert (await browser.get("/")).text == repr(sorted(["n", *(f"/{number}" for number in range(8))]))

    asyncio.run(story())


def test_two_cookie_headers_are_one() -> None:
    """HTTP/2 splits them (RFC 9113, 8.2.3)."""

    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            text = browser.cookies[COOKIE]
            server.app = acting(look)
            async with server.client() as other:
                response = await other.get("/", headers=[("cookie", "a=b"), ("cookie", f"{COOKIE}={text}")])
                assert response.text == "{'n': 1}"

    asyncio.run(story())


async def in_time(scope: Any, receive: Any, send: Any) -> None:
    """An app with a bound for each answer, and a page for what takes longer."""
    count(scope["session"])
    try:
        async with asyncio.timeout(0.1):
            await send({"type": "http.response.start", "status": 200, "headers": []})
    except TimeoutError:
        await send({"type": "http.response.start", "status": 504, "headers": []})
    await send({"type": "http.response.body", "body": b""})


def test_an_app_that_waits_no_longer_for_its_answer_can_send_its_error_page() -> None:
    """Whether its save was under way, or waited for its turn; and the session goes on."""

    async def story() -> None:
        async with served(acting(count)) as server, server.client() as browser:
            await browser.get("/")
            server.app = in_time
            for store in server.stores:
                store.delay_s = 0.5
            answers = await asyncio.gather(browser.get("/"), browser.get("/"))
            assert [answer.status_code for answer in answers] == [504, 504]
            assert not any("set-cookie" in answer.headers for answer in answers)
            for store in server.stores:
                store.delay_s = 0.0
            server.app = acting(count)
            assert int((await browser.get("/")).text) in (2, 3)

    asyncio.run(story())
