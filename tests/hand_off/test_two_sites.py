"""A browser goes from site to site, and its session with it: every case of protocol section 12."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import pytest

from coatcheck.events import EventKind
from coatcheck.hand_off.rules import ASK, CALL, KEPT_MS, TICKET
from coatcheck.hand_off.sites import MAX_PAGE, Site, Sites
from coatcheck.sessions.cookies import CookiePolicy
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.record import _encoder
from coatcheck.web.hand_off import MAX_BODY

from .two_sites import SHOP, TABLE, TICKETS, Browser, Farm, farm

PAGE = "/tickets/42?seat=3"
BINDER, LOGIN, ANONYMOUS = "__Host-coatcheck-binder", "__Host-coatcheck-login", "__Host-coatcheck"
Story = Callable[[Farm, Browser], Awaitable[None]]


def told(story: Story, **options: Any) -> None:
    """Of one browser, logged in at the shop."""

    async def main() -> None:
        async with farm(**options) as both:
            browser = Browser(both)
            await browser.visit(f"{SHOP}/login-ada")
            await story(both, browser)

    asyncio.run(main())


def test_a_link_takes_the_session_along_and_the_clean_url_is_left() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        await browser.visit(f"{SHOP}/add")
        replies = await browser.visit(SHOP + PAGE)
        assert [reply.status for reply in replies] == [303, 303, 303, 303, 200]
        assert replies[-1].url == TICKETS + PAGE
        assert (replies[-1].json()["user"], replies[-1].json()["cart"]) == ("ada", 1)
        assert replies[-1].json()["query"] == "seat=3"
        for reply in replies[:-1]:
            assert reply.all("referrer-policy") == ["no-referrer"]
            assert reply.all("cache-control") == ["no-store"]
        again = await browser.visit(f"{SHOP}/tickets/43")
        assert [reply.status for reply in again] == [303, 303, 200], "the session is there already"
        back = await browser.visit(f"{TICKETS}/add")
        assert [reply.status for reply in back] == [303, 303, 200]
        assert (back[-1].url, back[-1].json()["cart"]) == (f"{SHOP}/add", 2)
        assert both.count(EventKind.SESSION_HANDED_OVER) == 1

    told(story)


def test_each_site_has_a_cookie_of_its_own_that_is_refused_at_the_other() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        await browser.visit(SHOP + PAGE)
        at_shop, at_tickets = browser.jar["shop.example"], browser.jar["tickets.example"]
        assert at_shop[LOGIN] != at_tickets[LOGIN]
        thief = Browser(both)
        thief.jar = {"shop.example": {LOGIN: at_tickets[LOGIN]}, "tickets.example": {LOGIN: at_shop[LOGIN]}}
        rejected = both.count(EventKind.TOKEN_REJECTED)
        assert await thief.who(f"{SHOP}/") is None
        assert await thief.who(TICKETS + PAGE) is None
        assert both.count(EventKind.TOKEN_REJECTED) == rejected + 2
        assert both.count(EventKind.SESSION_THEFT) == 0

    told(story)


@pytest.mark.parametrize("at", [SHOP, TICKETS + "/tickets"])
def test_a_logout_at_one_site_ends_the_session_at_all(at: str) -> None:
    async def story(both: Farm, browser: Browser) -> None:
        await browser.visit(SHOP + PAGE)
        thief = browser.copy()
        await browser.visit(f"{at}/logout")
        for one in (browser, thief):
            assert await one.who(f"{SHOP}/") is None
            assert await one.who(TICKETS + PAGE) is None
        assert (await thief.visit(SHOP + PAGE))[-1].json()["user"] is None

    told(story)


def test_a_session_that_begins_at_the_other_site_comes_home() -> None:
    async def main() -> None:
        async with farm() as both:
            browser = Browser(both)
            await browser.visit(f"{TICKETS}/tickets/login-bob")
            replies = await browser.visit(f"{TICKETS}/basket")
            assert (replies[-1].url, replies[-1].json()["user"]) == (f"{SHOP}/basket", "bob")
            assert len(replies) == 5

    asyncio.run(main())


@pytest.mark.parametrize("step", [ASK, CALL, TICKET])
def test_a_lost_answer_restarts_nothing_but_itself(step: str) -> None:
    """The browser shows an error page; its user tries that URL again."""

    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, step)
        await browser.send(url, lost=True)
        replies = await browser.visit(url)
        assert (replies[-1].url, replies[-1].json()["user"]) == (TICKETS + PAGE, "ada")
        assert both.count(EventKind.HAND_OFF_REPLAYED) == 0
        assert both.count(EventKind.SESSION_THEFT) == 0

    told(story)


def test_the_answer_to_the_ticket_is_lost_and_asked_for_much_later() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        await browser.send(url, lost=True)
        both.ahead_ms += 3_600_000 // 4
        replies = await browser.visit(url)
        assert (replies[-1].url, replies[-1].json()["user"]) == (TICKETS + PAGE, "ada")
        assert len(replies) == 4, "the ticket, a call, another ticket, and the clean URL"

    told(story)


def test_the_same_ticket_in_the_same_browser_is_one_chain_and_the_same_token() -> None:
    """A double click, a prefetch, a proxy that delivers twice."""

    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        first, second = await asyncio.gather(browser.send(url, lost=True), browser.send(url, lost=True))
        assert [first.location, second.location] == [TICKETS + PAGE] * 2
        for reply in (first, second):
            one = browser.copy()
            one.keep(reply)
            assert await one.who(TICKETS + PAGE) == "ada"
        assert both.count(EventKind.HAND_OFF_REPLAYED) == 0

    told(story)


def test_parallel_tabs_share_one_chain() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        pages = await asyncio.gather(*(browser.visit(f"{SHOP}/tickets/{n}") for n in range(5)))
        assert [replies[-1].json()["user"] for replies in pages] == ["ada"] * 5
        assert [replies[-1].url for replies in pages] == [f"{TICKETS}/tickets/{n}" for n in range(5)]
        assert max(map(len, pages)) <= 7, "four redirects; six where another tab's binder took the place of one's own"
        for _ in range(3):
            assert await browser.who(TICKETS + PAGE) == "ada"
        assert both.count(EventKind.SESSION_THEFT) == 0

    told(story)


def test_parallel_tabs_with_a_token_for_each_answer_accuse_nobody() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        for round_number in range(6):
            both.ahead_ms += 700
            urls = [f"{SHOP}/tickets/{n}" for n in range(3)] + [f"{TICKETS}/tickets/9", f"{SHOP}/add"]
            pages = await asyncio.gather(*(browser.visit(url) for url in urls))
            if round_number:
                assert {replies[-1].json()["user"] for replies in pages} == {"ada"}
        assert both.count(EventKind.SESSION_THEFT) == 0

    told(story, policy=SessionPolicy(rotate_after_ms=0, grace_ms=2_000))


def test_a_used_ticket_where_the_session_is_leads_to_the_clean_url() -> None:
    """Reload, bookmark, a tab that is brought back."""

    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        await browser.visit(url)
        both.ahead_ms += 60_000
        replies = await browser.visit(url)
        assert [reply.status for reply in replies] == [303, 200]
        assert (replies[-1].url, replies[-1].json()["user"]) == (TICKETS + PAGE, "ada")
        assert both.count(EventKind.HAND_OFF_REPLAYED) == 0

    told(story)


def test_a_url_stolen_before_it_is_redeemed_gives_nothing_and_takes_nothing() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        thieves = [Browser(both), Browser(both)]
        await thieves[1].visit(f"{SHOP}/add")  # this one has a session, and a binder of its own
        await thieves[1].visit(f"{SHOP}/tickets/1")
        for thief in thieves:
            replies = await thief.visit(url)
            assert (replies[-1].url, replies[-1].json()["user"]) == (TICKETS + PAGE, None)
            assert LOGIN not in thief.jar["tickets.example"]
        assert both.count(EventKind.HAND_OFF_REPLAYED) == 0
        assert (await browser.visit(url))[-1].json()["user"] == "ada"

    told(story)


def test_a_url_stolen_after_it_was_redeemed_revokes_what_it_issued() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        await browser.visit(url)
        thief = Browser(both)
        assert (await thief.visit(url))[-1].json()["user"] is None
        assert both.count(EventKind.HAND_OFF_REPLAYED) == 1
        assert await browser.who(TICKETS + PAGE) is None, "its chain is gone"
        assert await browser.who(f"{SHOP}/") == "ada", "the session lives"
        assert (await browser.visit(SHOP + PAGE))[-1].json()["user"] == "ada", "and comes again"
        assert both.count(EventKind.SESSION_THEFT) == 0

    told(story)


@pytest.mark.parametrize("later_ms", [1_000, -1_000])
def test_what_was_revoked_accuses_nobody_when_its_browser_has_come_again(later_ms: int) -> None:
    """Another tab of the same browser may have asked with the revoked token before it was given a new one. Below zero:
    the clock of the server that begins the new chain is behind that of the one that minted the token."""

    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        await browser.visit(url)
        tab = Browser(both)
        tab.jar["tickets.example"] = dict(browser.jar["tickets.example"])
        assert await tab.who(TICKETS + PAGE) == "ada"
        await Browser(both).visit(url)
        both.ahead_ms += later_ms
        assert (await browser.visit(SHOP + PAGE))[-1].json()["user"] == "ada"
        assert await tab.who(TICKETS + PAGE) is None
        assert both.count(EventKind.SESSION_THEFT) == 0
        assert await browser.who(TICKETS + PAGE) == "ada"

    told(story)


def test_long_after_its_time_a_stolen_url_revokes_nothing() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        await browser.visit(url)
        both.ahead_ms += KEPT_MS + 1_000
        assert (await Browser(both).visit(url))[-1].json()["user"] is None
        assert await browser.who(TICKETS + PAGE) == "ada"

    told(story)


def test_a_ticket_ends_after_ten_seconds() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        both.ahead_ms += 10_500
        reply = await browser.send(url)
        assert reply.location is not None
        assert reply.location.startswith(f"{SHOP}/.coatcheck/hand-off?"), "a call for another one"
        assert LOGIN not in browser.jar["tickets.example"]

    told(story)


def test_an_attackers_link_logs_nobody_in_as_the_attacker() -> None:
    async def story(both: Farm, victim: Browser) -> None:
        attacker = Browser(both)
        await attacker.visit(f"{SHOP}/login-mallory")
        for step in (ASK, CALL, TICKET):
            url = await attacker.until(SHOP + PAGE, step)
            replies = await victim.visit(url)
            assert replies[-1].url == TICKETS + PAGE
            assert replies[-1].json()["user"] != "mallory", step
            assert len(replies) <= 7

    told(story)


@pytest.mark.parametrize("step", [ASK, TICKET])
def test_what_is_for_one_page_or_origin_is_nothing_for_another(step: str) -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, step)
        for other in (
            url.replace("/42", "/43"),
            url.replace("seat=3", "seat=4"),
            url[:-1] + ("A" if url[-1] != "A" else "B"),
        ):
            reply = await browser.send(other)
            assert reply.status == 303
            assert reply.location == other.replace(f"&{step}", f"?{step}").split(f"?{step}")[0]
        assert LOGIN not in browser.jar.get("tickets.example", {})
        elsewhere = await browser.send(url.replace("tickets.example", "shop.example"))
        assert elsewhere.status == 421

    told(story)


@pytest.mark.parametrize("step", [ASK, TICKET])
def test_what_others_put_behind_a_message_leaves_no_message_in_the_url(step: str) -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, step)
        clean = url.partition(f"&{step}=")[0]
        for behind in ("&from=mail", "&from=mail&to=me", "&"):
            reply = await browser.send(url + behind)
            assert (reply.status, reply.location) == (303, clean + behind)
        posted = await browser.send(f"{url}&from=mail", method="POST")
        assert posted.json()["query"] == "seat=3&from=mail", "the app sees no message of ours"
        assert LOGIN not in browser.jar.get("tickets.example", {})

    told(story)


def test_an_anonymous_session_is_handed_over_and_takes_no_place() -> None:
    async def main() -> None:
        async with farm() as both:
            browser = Browser(both)
            await browser.visit(f"{SHOP}/add")
            assert (await browser.visit(SHOP + PAGE))[-1].json()["cart"] == 1
            assert ANONYMOUS in browser.jar["tickets.example"]
            other = Browser(both)
            await other.visit(f"{TICKETS}/tickets/login-bob")
            await other.visit(f"{SHOP}/add")
            replies = await other.visit(SHOP + PAGE)
            assert (replies[-1].json()["user"], len(replies)) == ("bob", 3)

    asyncio.run(main())


def test_who_arrives_logged_in_takes_the_place_of_another_session_which_is_left_alone() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        await browser.visit(f"{TICKETS}/tickets/login-bob")
        as_bob = browser.copy()
        assert (await browser.visit(SHOP + PAGE))[-1].json()["user"] == "ada"
        assert await as_bob.who(TICKETS + PAGE) == "bob"

    told(story)


def test_an_anonymous_cookie_goes_when_a_login_arrives() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        await browser.visit(f"{TICKETS}/tickets/add")
        assert ANONYMOUS in browser.jar["tickets.example"]
        replies = await browser.visit(SHOP + PAGE)
        assert (replies[-1].json()["user"], replies[-1].json()["cart"]) == ("ada", None)
        assert ANONYMOUS not in browser.jar["tickets.example"]

    told(story)


def test_without_a_session_nothing_is_handed_over() -> None:
    async def main() -> None:
        async with farm() as both:
            browser = Browser(both)
            replies = await browser.visit(SHOP + PAGE)
            assert [reply.status for reply in replies] == [303, 303, 200]
            assert replies[-1].url == TICKETS + PAGE
            assert browser.jar.get("tickets.example", {}) == {}, "no binder for who has nothing to bind"

    asyncio.run(main())


def test_a_form_goes_along_where_the_browser_sends_its_cookies() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        first = await browser.visit(SHOP + PAGE, "POST", b"two seats", {"sec-fetch-site": "same-site"})
        assert [reply.status for reply in first] == [307] * 4 + [200]
        assert (first[-1].json()["method"], first[-1].json()["body"], first[-1].json()["user"]) == (
            "POST",
            "two seats",
            "ada",
        )
        second = await browser.visit(SHOP + PAGE, "POST", b"one more", {"sec-fetch-site": "cross-site"})
        assert [reply.status for reply in second] == [307, 200], "its cookie came along"
        assert (second[-1].json()["body"], second[-1].json()["query"]) == ("one more", "seat=3")

    told(story)


def test_a_form_from_another_site_is_refused_and_not_turned_into_a_get() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        replies = await browser.visit(SHOP + PAGE, "POST", b"two seats", {"sec-fetch-site": "cross-site"})
        assert [reply.status for reply in replies] == [307, 409]
        assert b"form" in replies[-1].body

    told(story)


def test_a_body_that_is_too_large_is_refused_before_it_travels() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        replies = await browser.visit(SHOP + PAGE, "PUT", bytes(MAX_BODY + 1))
        assert [reply.status for reply in replies] == [413]

    told(story)


def test_a_page_of_any_length_is_no_way_out() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        assert (await browser.send(f"{SHOP}/tickets/{'x' * MAX_PAGE}")).status == 414

    told(story)


@pytest.mark.parametrize(
    "path",
    ["/tickets//evil.example/", "/tickets/@evil.example", "/tickets/..%2f..%2f", "/tickets/https://evil.example/"],
)
def test_every_redirect_leads_to_a_site_of_the_table(path: str) -> None:
    async def story(both: Farm, browser: Browser) -> None:
        replies = await browser.visit(SHOP + path)
        assert {reply.url.split("/")[2] for reply in replies} <= {"shop.example", "tickets.example"}

    told(story)


def test_paths_that_are_read_in_two_ways_go_nowhere() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        for path in ("/tickets/../admin", "/tickets/%2e%2E/admin", "/tickets/./1"):
            assert (await browser.send(SHOP + path)).status == 200, "the app here answers, as it did before"

    told(story)


def test_tables_that_contradict_each_other_send_nobody_round_and_round() -> None:
    mine = (Site(name="shop", origin=SHOP), Site(name="tickets", origin=TICKETS, paths=("/tickets/*", "/about")))
    theirs = (Site(name="shop", origin=SHOP), Site(name="tickets", origin=TICKETS, paths=("/tickets/*",)))

    async def story(both: Farm, browser: Browser) -> None:
        both.serve(TICKETS, Sites(table=theirs, here="tickets"), SessionPolicy())
        replies = await browser.visit(f"{SHOP}/about")
        assert [reply.status for reply in replies] == [303, 421]
        assert both.count(EventKind.HAND_OFF_REFUSED) == 1

    told(story, table=mine)


def test_sites_that_share_a_cookie_need_no_ticket() -> None:
    shop, tickets = "https://shop.example.com", "https://tickets.example.com"
    table = (Site(name="shop", origin=shop), Site(name="tickets", origin=tickets, paths=("/tickets/*",)))

    async def main() -> None:
        async with farm(table=table, cookies=CookiePolicy(domain="example.com")) as both:
            browser = Browser(both)
            await browser.visit(f"{shop}/login-ada")
            browser.jar["tickets.example.com"] = browser.jar["shop.example.com"]  # as their Domain says
            replies = await browser.visit(f"{shop}/tickets/1")
            assert [reply.status for reply in replies] == [303, 200]
            assert (replies[-1].url, replies[-1].json()["user"]) == (f"{tickets}/tickets/1", "ada")
            assert both.count(EventKind.SESSION_HANDED_OVER) == 0

    asyncio.run(main())


def test_the_token_itself_in_the_url_is_a_mode_that_is_asked_for() -> None:
    async def literal(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, "coatcheck-token")
        thief = Browser(both)
        assert (await thief.visit(url))[-1].json()["user"] == "ada", "what this mode costs"
        replies = await browser.visit(url)
        assert (replies[-1].url, replies[-1].json()["user"]) == (TICKETS + PAGE, "ada")
        for cookies in (browser.jar["tickets.example"], thief.jar["tickets.example"]):
            assert cookies[LOGIN] != browser.jar["shop.example"][LOGIN], "a token of the second site's own"
        both.ahead_ms += 31_000
        assert (await Browser(both).visit(url))[-1].json()["user"] is None, "the time is over"

    told(literal, mode="token-in-url")

    async def refused(both: Farm, browser: Browser) -> None:
        both.serve(TICKETS, Sites(table=TABLE, here="tickets"), SessionPolicy())
        url = await browser.until(SHOP + PAGE, "coatcheck-token")
        reply = await browser.send(url)
        assert (reply.status, reply.location, reply.all("set-cookie")) == (303, TICKETS + PAGE, [])

    told(refused, mode="token-in-url")


def test_a_logged_out_session_in_a_url_opens_nothing() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, "coatcheck-token")
        await browser.visit(f"{SHOP}/logout")
        assert (await browser.visit(url))[-1].json()["user"] is None

    told(story, mode="token-in-url")


def test_the_logout_is_faster_than_the_ticket() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        await browser.visit(f"{SHOP}/logout")
        replies = await browser.visit(url)
        assert (replies[-1].url, replies[-1].json()["user"]) == (TICKETS + PAGE, None)
        assert len(replies) <= 7

    told(story)


def test_a_session_server_that_lost_the_item_costs_one_more_round() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        both.lose_items()
        replies = await browser.visit(url)
        assert (replies[-1].url, replies[-1].json()["user"], len(replies)) == (TICKETS + PAGE, "ada", 4)

    told(story)


def test_items_that_are_always_lost_end_without_a_session() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        replies = [await browser.send(SHOP + PAGE)]
        while (location := replies[-1].location) is not None:
            both.lose_items()
            replies.append(await browser.send(location))
        assert (replies[-1].url, replies[-1].json()["user"]) == (TICKETS + PAGE, None)
        assert len(replies) == 7, "six redirects"

    told(story)


def test_a_call_that_an_attacker_began_hands_over_nothing() -> None:
    """It is bound to the attacker's binder: a ticket for the victim's session must not be."""

    async def story(both: Farm, victim: Browser) -> None:
        attacker = Browser(both)
        await attacker.visit(f"{SHOP}/login-mallory")
        url = await attacker.until(SHOP + PAGE, CALL)
        reply = await victim.send(url)
        assert (reply.status, reply.location) == (303, TICKETS + PAGE), "the clean page, and no ticket"

    told(story)


@pytest.mark.parametrize("message", [ASK, TICKET])
def test_a_path_that_looks_like_a_host_leads_to_no_other_host(message: str) -> None:
    async def story(both: Farm, browser: Browser) -> None:
        reply = await browser.send(f"{SHOP}//evil.example/x?{message}=A")
        assert reply.all("location") == [f"{SHOP}//evil.example/x"]

    told(story)


def test_a_write_at_one_site_leaves_the_chain_of_the_other() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        await browser.visit(SHOP + PAGE)
        for number in range(1, 4):
            both.ahead_ms += 61_000  # and a rotation
            await browser.send(f"{SHOP}/add")
            assert (await browser.send(f"{TICKETS}/tickets/add")).json() | {"query": ""} == {
                "user": "ada", "cart": 2 * number, "query": "", "method": "GET", "body": "",
            }  # fmt: skip
        assert both.count(EventKind.DEAD_TOKEN) == both.count(EventKind.SESSION_THEFT) == 0

    told(story)


def test_a_web_server_of_the_release_before_drops_the_other_chains_and_accuses_nobody() -> None:
    """It reads the record, and writes the five fields that it knows."""

    async def story(both: Farm, browser: Browser) -> None:
        await browser.visit(SHOP + PAGE)
        shop = both.sessions(SHOP).lifecycle
        now = shop._encode
        shop._encode = lambda record: _encoder.encode(msgspec.structs.astuple(record)[:5])
        await browser.send(f"{SHOP}/add")
        shop._encode = now
        await asyncio.sleep(0.1)  # the lease at the other site is over
        assert await browser.who(TICKETS + PAGE) is None
        assert both.count(EventKind.DEAD_TOKEN) == 1
        assert both.count(EventKind.SESSION_THEFT) == 0
        assert (await browser.visit(SHOP + PAGE))[-1].json() == {
            "user": "ada", "cart": 1, "query": "seat=3", "method": "GET", "body": "",
        }  # fmt: skip

    told(story)


def test_a_remembered_login_is_remembered_at_the_other_site() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        replies = await browser.visit(SHOP + PAGE)
        assert "Max-Age" not in replies[-2].all("set-cookie")[0]
        await browser.visit(f"{SHOP}/remember-ada")
        browser.jar["tickets.example"].clear()
        replies = await browser.visit(SHOP + PAGE)
        assert "Max-Age=43200" in replies[-2].all("set-cookie")[0]

    told(story)


def test_a_session_in_use_at_both_sites_times_out_at_both() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        await browser.visit(url)
        both.ahead_ms += 3_000_000
        assert await browser.who(TICKETS + PAGE) is None
        assert await browser.who(f"{SHOP}/") is None
        assert (await browser.visit(SHOP + PAGE))[-1].json()["user"] is None

    told(story)


def test_a_replaced_token_in_a_url_is_refused() -> None:
    """ID and timestamp are compared with the source's chain (mission A6): here one is retired and dead."""

    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, "coatcheck-token")
        for _ in range(4):
            both.ahead_ms += 5_000
            await browser.send(f"{SHOP}/add")
        assert (await Browser(both).visit(url))[-1].json()["user"] is None

    told(story, mode="token-in-url", policy=SessionPolicy(rotate_after_ms=1_000, grace_ms=2_000))


def test_a_request_whose_chain_is_revoked_meanwhile_is_given_no_token() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        url = await browser.until(SHOP + PAGE, TICKET)
        await browser.visit(url)
        sessions = both.sessions(TICKETS)
        opened = await sessions.open(browser.cookie_header("tickets.example").encode())
        assert opened.session.user == "ada"
        opened.session["slow"] = True
        await Browser(both).visit(url)
        assert both.count(EventKind.HAND_OFF_REPLAYED) == 1
        answer = await sessions.finish(opened)
        assert answer.cookies == []
        assert await browser.who(TICKETS + PAGE) is None

    told(story)
