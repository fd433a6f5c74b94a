"""A9: "The hand-over travels in a URL: by default a one-time ticket; the token itself only in a labelled compatibility
mode." """

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from hand_off.two_farms import HOSTS, TwoFarms, two_farms
from hand_off.web_client import Client

LOGIN = "coatcheck-login"
PAGE = "/tickets/42?seat=3"


@pytest.fixture(scope="module")
def farms(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[TwoFarms]:
    folder = tmp_path_factory.mktemp("sites")
    with two_farms(folder, [f"one={redis_url}/6", f"two={redis_url}/7"], more="web = 1") as both:
        yield both


def test_a_ticket_in_the_url_opens_the_session_once_and_in_one_browser(farms: TwoFarms) -> None:
    browser, thief = Client(), Client()
    browser.visit(f"{farms.shop}/login-ada")
    url = browser.until(farms.shop + PAGE, "coatcheck-ticket=")
    assert thief.visit(url)[-1].says["user"] is None
    pages = browser.visit(url)
    assert [page.status for page in pages] == [303, 200]
    assert (pages[-1].url, pages[-1].says["user"]) == (farms.tickets + PAGE, "ada")
    assert pages[0].all("referrer-policy") == ["no-referrer"]
    assert pages[0].all("cache-control") == ["no-store"]
    assert thief.visit(url)[-1].says["user"] is None
    assert LOGIN not in thief.jar[HOSTS["tickets"]]
    # The second use revoked what the first one issued; the session itself lives.
    assert browser.send(farms.tickets + PAGE).says["user"] is None
    assert browser.visit(farms.shop + PAGE)[-1].says["user"] == "ada"


def test_no_session_token_is_in_any_url(farms: TwoFarms) -> None:
    browser = Client()
    browser.visit(f"{farms.shop}/login-ada")
    pages = browser.visit(farms.shop + PAGE)
    urls = " ".join(page.url for page in pages)
    assert "coatcheck-token" not in urls
    for jar in browser.jar.values():
        for name in (LOGIN, "coatcheck"):
            assert jar.get(name, "none") not in urls


def test_the_token_itself_is_in_the_url_where_that_is_asked_for_by_name(tmp_path: Path, redis_url: str) -> None:
    more = 'web = 1\nhand_off = "token-in-url"'
    with two_farms(tmp_path, [f"three={redis_url}/8", f"four={redis_url}/9"], more=more) as both:
        browser = Client()
        browser.visit(f"{both.shop}/login-ada")
        pages = browser.visit(both.shop + PAGE)
        assert [page.status for page in pages] == [303, 303, 200]
        assert "&coatcheck-token=" in pages[1].url
        assert (pages[-1].url, pages[-1].says["user"]) == (both.tickets + PAGE, "ada")
        assert browser.jar[HOSTS["tickets"]][LOGIN] != browser.jar[HOSTS["shop"]][LOGIN], "a token of its own"
        done = both.farms["shop"].run("check", "--config", "farm.toml", "app:app")
        assert "hand_off: with token-in-url whoever sees the URL" in done.stdout + done.stderr
