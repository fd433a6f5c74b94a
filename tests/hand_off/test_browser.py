"""A real browser goes back and forth between two farms on two host names: headless Chromium."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from .chromium import Chromium
from .two_farms import TwoFarms, two_farms

SIBLINGS = {"shop": "shop.farm.localhost", "tickets": "tickets.farm.localhost"}
"""Two hosts of one site, as far as browsers are concerned."""


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Chromium]:
    browser = Chromium(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.fixture(scope="module")
def farms(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[TwoFarms]:
    urls = [f"one={redis_url}/0", f"two={redis_url}/1"]
    with two_farms(tmp_path_factory.mktemp("farms"), urls) as both:
        yield both


def test_it_logs_in_at_one_and_follows_links_to_the_other_and_back(farms: TwoFarms, chromium: Chromium) -> None:
    tab = chromium.tab()
    assert tab.open(f"{farms.shop}/login-ada")["user"] == "ada"
    assert tab.follow("basket")["cart"] == 1
    seats = tab.follow("seats")
    assert seats["url"] == f"{farms.tickets}/tickets/seats?row=3"
    assert (seats["farm"], seats["user"], seats["cart"], seats["query"]) == ("tickets", "ada", 1, "row=3")
    assert "coatcheck" not in seats["referrer"]
    home = tab.follow("basket")
    assert (home["url"], home["farm"], home["user"], home["cart"]) == (f"{farms.shop}/add", "shop", "ada", 2)
    assert "coatcheck" not in " ".join(tab.history()), "no message is in the history"


def test_the_back_button_finds_pages_and_no_tickets(farms: TwoFarms, chromium: Chromium) -> None:
    tab = chromium.tab()
    tab.open(f"{farms.shop}/login-ada")
    tab.follow("seats")
    assert tab.follow("basket")["farm"] == "shop"
    assert (tab.back()["user"], tab.says()["farm"]) == ("ada", "tickets")
    assert tab.reload()["user"] == "ada"
    assert (tab.back()["farm"], tab.says()["user"]) == ("shop", "ada")


def test_parallel_tabs(farms: TwoFarms, chromium: Chromium) -> None:
    first = chromium.tab()
    first.open(f"{farms.shop}/login-ada")
    tabs = [chromium.tab() for _ in range(6)]
    for number, tab in enumerate(tabs):
        tab.begin(f"{farms.shop}/tickets/{number}")
    said = [tab.loaded() for tab in tabs]
    assert [each["url"] for each in said] == [f"{farms.tickets}/tickets/{number}" for number in range(6)]
    assert [each["user"] for each in said] == ["ada"] * 6
    assert [tab.reload()["user"] for tab in (*tabs, first)] == ["ada"] * 7


def test_the_answer_with_the_token_is_lost(farms: TwoFarms, chromium: Chromium) -> None:
    tab = chromium.tab()
    tab.open(f"{farms.shop}/login-ada")
    before = farms.way.lost
    farms.way.losing = b"coatcheck-ticket="
    tab.begin(f"{farms.shop}/tickets/7")
    assert "user" not in tab.loaded(), "the browser's own error page"
    assert farms.way.lost > before
    farms.way.losing = b""
    assert not any(name.endswith("-login") for name in tab.cookies(farms.tickets))
    again = tab.reload()
    assert (again["url"], again["user"]) == (f"{farms.tickets}/tickets/7", "ada")


@pytest.mark.parametrize("at", ["shop", "tickets"])
def test_a_logout_anywhere_ends_it_everywhere(at: str, farms: TwoFarms, chromium: Chromium) -> None:
    shop, tickets = chromium.tab(), chromium.tab()
    shop.open(f"{farms.shop}/login-ada")
    assert tickets.open(f"{farms.shop}/tickets/1")["user"] == "ada"
    (tickets if at == "tickets" else shop).open(
        f"{farms.tickets}/tickets/logout" if at == "tickets" else f"{farms.shop}/logout"
    )
    assert shop.open(f"{farms.shop}/basket")["user"] is None
    assert tickets.open(f"{farms.tickets}/tickets/1")["user"] is None
    assert shop.open(f"{farms.shop}/tickets/1")["user"] is None


def test_a_form_from_another_site_is_refused_until_its_session_is_there(farms: TwoFarms, chromium: Chromium) -> None:
    tab = chromium.tab()
    tab.open(f"{farms.shop}/login-ada")
    assert "user" not in tab.follow("buy")
    assert "409" in tab.run("document.title + document.body.textContent + performance.getEntries()[0].responseStatus")


def test_a_form_goes_from_host_to_host_of_one_site(tmp_path: Path, redis_url: str, chromium: Chromium) -> None:
    with two_farms(tmp_path, [f"three={redis_url}/2", f"four={redis_url}/3"], SIBLINGS) as both:
        tab = chromium.tab()
        tab.open(f"{both.shop}/login-ada")
        bought = tab.follow("buy")
        assert (bought["url"], bought["method"]) == (f"{both.tickets}/tickets/buy", "POST")
        assert (bought["body"], bought["user"]) == ("seats=two", "ada")
        assert tab.follow("buy")["body"] == "seats=two", "and once more, where the session is"
