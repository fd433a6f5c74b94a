"""Hand-off and browser checks over two farms of real processes: tickets, redirects, and what other sites can cause.

By their numbers in OWASP ASVS 5.0 (3.4.5, 3.5.1, 3.7.2, 14.2.1, 14.2.7), and what docs/protocol.md, 12 says of tickets.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

import pytest
import redis

from coatcheck.farm.files.keys import load
from coatcheck.hand_off.messages import HandOffCodec, HandOffTicket, UrlToken, page_hash
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import TokenCodec, audience_of
from hand_off.chromium import Chromium, Tab
from hand_off.two_farms import HOSTS, TwoFarms, two_farms
from hand_off.web_client import Client
from tls.conftest import redis_url

__all__ = ["redis_url"]

LOGIN = "coatcheck-login"
PAGE = "/tickets/42?seat=3"
ASK, CALL, TICKET = "coatcheck-ask=", "coatcheck-call=", "coatcheck-ticket="
TICKET_LIFE_S = 10.0
SAME_TAKE_S = 5.0
LONGEST_LIFE_MS = (12 * 3600 + 300) * 1000
"""The absolute timeout, and what a session is kept for longer so that its end can be told from a loss."""
TABLES = (10, 11)


@pytest.fixture(scope="module")
def farms(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[TwoFarms]:
    urls = [f"{name}={redis_url}/{table}" for name, table in zip(("one", "two"), TABLES, strict=True)]
    with two_farms(tmp_path_factory.mktemp("sites"), urls) as both:
        yield both


@pytest.fixture(scope="module")
def ring(farms: TwoFarms) -> KeyRing:
    keys = load(Path(farms.farms["shop"].directory).parent / "keys.json")
    return KeyRing(keys.keys, keys.primary)


class Aged(NamedTuple):
    """A ticket, its browser, and when it had it."""

    browser: Client
    url: str
    had_at: float

    def wait(self, seconds: float) -> None:
        time.sleep(max(0.0, self.had_at + seconds - time.monotonic()))


def ticket(farms: TwoFarms) -> Aged:
    browser = customer(farms)
    return Aged(browser, browser.until(farms.shop + PAGE, TICKET), time.monotonic())


@pytest.fixture(scope="module")
def aged(farms: TwoFarms) -> Aged:
    return ticket(farms)


@pytest.fixture(scope="module")
def used(farms: TwoFarms) -> Aged:
    """Redeemed, by the very browser that it is for, and the answer was lost."""
    found = ticket(farms)
    kept = {host: dict(jar) for host, jar in found.browser.jar.items()}
    assert found.browser.send(found.url).location == farms.tickets + PAGE
    assert found.browser.jar[HOSTS["tickets"]][LOGIN]
    found.browser.jar = kept
    return found


def customer(farms: TwoFarms, user: str = "ada") -> Client:
    browser = Client()
    browser.visit(f"{farms.shop}/login-{user}")
    return browser


def is_logged_in(browser: Client, farms: TwoFarms) -> bool:
    return bool(browser.send(farms.tickets + PAGE).says["user"])


def test_no_redirect_tells_where_one_came_from_or_is_kept(farms: TwoFarms, aged: Aged, used: Aged) -> None:
    """3.4.5, 14.2.2: neither the ticket, nor the pages that led to it."""
    pages = customer(farms).visit(farms.shop + PAGE)
    assert [page.status for page in pages] == [303, 303, 303, 303, 200]
    for page in pages[:-1]:
        assert page.all("referrer-policy") == ["no-referrer"]
        assert page.all("cache-control") == ["no-store"]
    assert pages[-1].url == farms.tickets + PAGE, "the clean URL"


@pytest.mark.parametrize("step", [ASK, CALL, TICKET])
def test_what_is_sealed_for_one_purpose_is_nothing_for_another(step: str, farms: TwoFarms) -> None:
    browser = customer(farms)
    url = browser.until(farms.shop + PAGE, step)
    sealed = url.partition(step)[2]
    token = browser.jar[HOSTS["shop"]][LOGIN]
    for name in (ASK, CALL, TICKET):
        for text in {sealed, token} if name != step else {token}:
            where = f"{farms.shop}/.coatcheck/hand-off?" if name == CALL else f"{farms.tickets}{PAGE}&"
            page = browser.send(where + name + text)
            assert page.status < 500
            assert TICKET not in (page.location or ""), f"{step} is taken for {name}"
            assert LOGIN not in browser.jar.get(HOSTS["tickets"], {})
    as_token = Client()
    as_token.jar[HOSTS["tickets"]] = {LOGIN: sealed}
    assert not is_logged_in(as_token, farms)


def test_a_ticket_is_for_one_page_and_one_origin(farms: TwoFarms, ring: KeyRing) -> None:
    browser = customer(farms)
    url = browser.until(farms.shop + PAGE, TICKET)
    for other in (
        url.replace("/42", "/43"),
        url.replace("seat=3", "seat=4"),
        url[:-1] + ("A" if url[-1] != "A" else "B"),
    ):
        page = browser.send(other)
        assert page.status == 303
        assert LOGIN not in browser.jar[HOSTS["tickets"]]
    codec = HandOffCodec(ring, "farm", farms.shop, os.urandom)
    genuine = codec.open(HandOffTicket, url.partition(TICKET)[2], farms.tickets)
    browser.send(url.partition(TICKET)[0] + TICKET + codec.seal(genuine, farms.shop))
    assert LOGIN not in browser.jar[HOSTS["tickets"]], "for another origin, though all else fits"
    assert browser.visit(url)[-1].says["user"] == "ada", "and none of that used it up"


def test_a_ticket_is_for_the_browser_that_asked(farms: TwoFarms) -> None:
    browser, stranger = customer(farms), Client()
    url = browser.until(farms.shop + PAGE, TICKET)
    other = customer(farms, "eve")
    other.visit(farms.shop + "/tickets/1")  # with a session and a binder of its own
    assert stranger.visit(url)[-1].says["user"] is None
    assert other.visit(url)[-1].says["user"] == "eve"
    assert browser.visit(url)[-1].says["user"] == "ada", "nothing was taken"


def test_of_many_uses_at_once_one_begins_a_chain(farms: TwoFarms, ring: KeyRing) -> None:
    """On two web servers, by one browser: an atomic take. What it opens is one token chain, whoever is told of it."""
    browser = customer(farms)
    url = browser.until(farms.shop + PAGE, TICKET)
    tabs = [Client() for _ in range(8)]
    for tab in tabs:
        tab.jar = {host: dict(jar) for host, jar in browser.jar.items()}
    with ThreadPoolExecutor(len(tabs)) as pool:
        pages = list(pool.map(lambda tab: tab.send(url), tabs))
    assert [page.status for page in pages] == [303] * len(tabs)
    codec = TokenCodec(ring, "login", audience_of("farm", HOSTS["tickets"]), os.urandom)
    tokens = {
        codec.open(tab.jar[HOSTS["tickets"]][LOGIN].encode()).session_id
        for tab in tabs
        if LOGIN in tab.jar[HOSTS["tickets"]]
    }
    assert len(tokens) == 1, "one chain, one current token"


def test_a_second_use_revokes_what_the_first_one_issued_and_no_more(farms: TwoFarms) -> None:
    browser, thief = customer(farms), Client()
    url = browser.until(farms.shop + PAGE, TICKET)
    assert browser.visit(url)[-1].says["user"] == "ada"
    issued = browser.jar[HOSTS["tickets"]][LOGIN]
    assert thief.visit(url)[-1].says["user"] is None
    assert LOGIN not in thief.jar[HOSTS["tickets"]]
    browser.jar[HOSTS["tickets"]] = {LOGIN: issued}
    assert not is_logged_in(browser, farms)
    assert browser.send(f"{farms.shop}/").says["user"] == "ada", "the source session stays"
    assert browser.visit(farms.shop + PAGE)[-1].says["user"] == "ada", "and the next link brings it"


@pytest.mark.parametrize("step", [ASK, CALL, TICKET])
def test_a_lost_answer_only_restarts_the_hand_off(step: str, farms: TwoFarms) -> None:
    browser = customer(farms)
    url = browser.until(farms.shop + PAGE, step)
    kept = {host: dict(jar) for host, jar in browser.jar.items()}
    browser.send(url)
    browser.jar = kept  # its cookies are lost, too
    page = browser.visit(url)[-1]
    assert (page.url, page.says["user"]) == (farms.tickets + PAGE, "ada")
    assert browser.send(f"{farms.shop}/").says["user"] == "ada"


@pytest.mark.parametrize("step", [ASK, CALL, TICKET])
def test_3_5_1_an_attackers_link_redeems_nothing_in_a_victims_browser(step: str, farms: TwoFarms) -> None:
    attacker, victim, stranger = customer(farms, "mallory"), customer(farms), Client()
    url = attacker.until(farms.shop + PAGE, step)
    for browser in (victim, stranger):
        page = browser.visit(url)[-1]
        assert page.url == farms.tickets + PAGE
        assert page.says["user"] != "mallory", "nobody works in the attacker's session unawares"


def ask_for_logout(tab: Tab, farms: TwoFarms, method: str) -> None:
    """By a script of the page that is shown, and wait for the answer."""
    options = f"{{method: '{method}', mode: 'no-cors', credentials: 'include'}}"
    tab.run(f"window.done = false; fetch('{farms.shop}/logout', {options}).finally(() => window.done = true)")
    deadline = time.monotonic() + 60
    while not tab.run("window.done"):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_3_5_1_another_site_can_neither_close_nor_use_a_session(farms: TwoFarms, tmp_path: Path) -> None:
    """A real browser, with a session at one site, and a page of another: it posts a form, and asks for addresses."""
    chromium = Chromium(tmp_path / "profile")
    try:
        tab = chromium.tab()
        assert tab.open(f"{farms.shop}/login-ada")["user"] == "ada"
        tab.open(f"{farms.tickets}/tickets/")  # another site, as browsers see it
        ask_for_logout(tab, farms, "GET")
        ask_for_logout(tab, farms, "POST")
        assert tab.open(f"{farms.shop}/basket")["user"] == "ada", "they came without the cookie"
        tab.open(f"{farms.tickets}/tickets/")
        form = f"<form method=post action='{farms.shop}/logout'><button id=out>x</button></form>"
        tab.run(f'document.body.innerHTML = "{form}"')
        assert tab.follow("out")["user"] is None, "the page is shown, to nobody"
        assert tab.open(f"{farms.shop}/basket")["user"] == "ada"
        ask_for_logout(tab, farms, "POST")
        assert tab.open(f"{farms.shop}/basket")["user"] is None, "the very same from its own page ends it"
    finally:
        chromium.close()


@pytest.mark.parametrize(
    "path",
    [
        "/tickets//evil.example/", "/tickets/@evil.example", "/tickets/..%2f..%2fevil.example",
        "/tickets/\\evil.example",
        "/tickets/https://evil.example/", "/tickets/%0d%0alocation:%20https://evil.example", "//evil.example/tickets/1",
        "/tickets/1?coatcheck-ask=https://evil.example", "/.coatcheck/hand-off?coatcheck-call=https://evil.example",
        "/.coatcheck/hand-off?next=https://evil.example",
    ],
)  # fmt: skip
def test_3_7_2_every_redirect_leads_to_a_site_of_the_table(path: str, farms: TwoFarms) -> None:
    allowed = {urlsplit(farms.shop).netloc, urlsplit(farms.tickets).netloc}
    browser = customer(farms)
    for origin in (farms.shop, farms.tickets):
        url: str | None = origin + path
        for _ in range(20):
            assert url is not None
            page = browser.send(url)
            assert page.status < 500
            if (url := page.location) is None:
                break
            assert urlsplit(url).netloc in allowed, f"{path} leads to {url}"
            assert url.startswith(("http://shop.localhost:", "http://tickets.localhost:"))


def test_14_2_1_no_url_has_a_session_token_by_default(farms: TwoFarms, ring: KeyRing) -> None:
    browser = customer(farms)
    urls = " ".join(page.url for page in browser.visit(farms.shop + PAGE))
    assert "coatcheck-token" not in urls
    tokens = [jar[LOGIN] for jar in browser.jar.values() if LOGIN in jar]
    assert len(tokens) == 2
    assert not [token for token in tokens if token in urls]
    own = TokenCodec(ring, "login", "farm", os.urandom).open(browser.jar[HOSTS["shop"]][LOGIN].encode())
    literal = UrlToken(
        source=farms.shop, chain="", page=page_hash(PAGE), session=own.key, session_id=own.session_id,
        timestamp=own.timestamp, promised=own.version, list_number=own.list_number, login=True,
        made_at=round(time.time() * 1000),
    )  # fmt: skip
    sealed = HandOffCodec(ring, "farm", farms.shop, os.urandom).seal(literal, farms.tickets)
    for text in (*tokens, sealed):
        stranger = Client()
        assert stranger.visit(f"{farms.tickets}{PAGE}&coatcheck-token={text}")[-1].says["user"] is None
        assert LOGIN not in stranger.jar[HOSTS["tickets"]], "as the compatibility mode would take it"


def test_14_2_7_all_that_is_stored_ends_by_itself(farms: TwoFarms, redis_url: str) -> None:
    """Sessions, users' lists, tombstones, tickets: the store drops each when its time is over, whoever is alive."""
    browser, other = customer(farms), customer(farms, "bob")
    browser.visit(farms.shop + PAGE)
    other.visit(f"{farms.shop}/logout")
    found = []
    for table in TABLES:
        with redis.Redis.from_url(f"{redis_url}/{table}") as store:
            found += [(key, store.pttl(key)) for key in store.scan_iter()]
    assert len(found) > 4
    endless = {key for key, left in found if not 0 <= left <= LONGEST_LIFE_MS and left != -2}  # -2: gone meanwhile
    assert endless == set()


def test_a_ticket_is_taken_once_also_by_the_browser_that_it_is_for(farms: TwoFarms, used: Aged) -> None:
    """Within five seconds a second use is the same take (docs/protocol.md, 12); later it gets nothing."""
    used.wait(SAME_TAKE_S + 0.5)
    page = used.browser.send(used.url)
    assert LOGIN not in used.browser.jar[HOSTS["tickets"]]
    assert (page.location or "").startswith(f"{farms.shop}/.coatcheck/hand-off?"), "a call for another one"


def test_a_ticket_ends_after_ten_seconds(farms: TwoFarms, aged: Aged) -> None:
    aged.wait(TICKET_LIFE_S + 0.5)
    page = aged.browser.send(aged.url)
    assert (page.location or "").startswith(f"{farms.shop}/.coatcheck/hand-off?"), "a call for another one"
    assert LOGIN not in aged.browser.jar[HOSTS["tickets"]]
