"""A1: "Server 1 receives a request carrying an encrypted session token for a page that lives on server 2; it decrypts
the token, redirects the request to server 2 handing the session over, and the session is verified there." """

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coatcheck.farm.files.keys import load
from coatcheck.hand_off.messages import HandOffCodec, HandOffTicket
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import TokenCodec, audience_of
from hand_off.two_farms import HOSTS, TwoFarms, two_farms
from hand_off.web_client import Client

LOGIN = "coatcheck-login"


@pytest.fixture(scope="module")
def farms(tmp_path_factory: pytest.TempPathFactory, redis_url: str) -> Iterator[TwoFarms]:
    folder = tmp_path_factory.mktemp("sites")
    with two_farms(folder, [f"one={redis_url}/4", f"two={redis_url}/5"], more="web = 1") as both:
        yield both


@pytest.fixture
def ring(farms: TwoFarms) -> KeyRing:
    keys = load(Path(farms.farms["shop"].directory).parent / "keys.json")
    return KeyRing(keys.keys, keys.primary)


def no_bytes(count: int) -> bytes:
    raise AssertionError("nothing is sealed here")


def test_the_request_is_redirected_with_the_session_that_its_token_opens(farms: TwoFarms, ring: KeyRing) -> None:
    browser = Client()
    assert browser.visit(f"{farms.shop}/login-ada")[-1].says["farm"] == "shop"
    browser.visit(f"{farms.shop}/add")
    at_shop = TokenCodec(ring, "login", "farm", no_bytes).open(browser.jar[HOSTS["shop"]][LOGIN].encode())
    url = browser.until(f"{farms.shop}/tickets/42", "coatcheck-ticket=")
    assert url.startswith(f"{farms.tickets}/tickets/42?")
    codec = HandOffCodec(ring, "farm", farms.shop, no_bytes)
    assert codec.open(HandOffTicket, url.partition("=")[2], farms.tickets).session == at_shop.key
    page = browser.visit(url)[-1]
    assert page.url == f"{farms.tickets}/tickets/42"
    assert {name: page.says[name] for name in ("farm", "user", "cart")} == {"farm": "tickets", "user": "ada", "cart": 1}
    audience = audience_of("farm", HOSTS["tickets"])
    own = TokenCodec(ring, "login", audience, no_bytes).open(browser.jar[HOSTS["tickets"]][LOGIN].encode())
    assert own.key == at_shop.key, "the same session"
    assert own.session_id != at_shop.session_id, "with a token of server 2's own (A2)"


def test_the_session_is_verified_there(farms: TwoFarms) -> None:
    browser = Client()
    browser.visit(f"{farms.shop}/login-ada")
    url = browser.until(f"{farms.shop}/tickets/42", "coatcheck-ticket=")
    browser.visit(f"{farms.shop}/logout")
    page = browser.visit(url)[-1]
    assert (page.status, page.url, page.says["user"]) == (200, f"{farms.tickets}/tickets/42", None)
    assert LOGIN not in browser.jar[HOSTS["tickets"]]


def test_what_is_changed_there_is_the_same_session_here(farms: TwoFarms) -> None:
    browser = Client()
    browser.visit(f"{farms.shop}/login-ada")
    browser.visit(f"{farms.shop}/tickets/1")
    browser.send(f"{farms.tickets}/tickets/add")
    assert browser.send(f"{farms.shop}/basket").says["cart"] == 1
    browser.send(f"{farms.tickets}/tickets/logout")
    assert browser.send(f"{farms.shop}/basket").says["user"] is None
