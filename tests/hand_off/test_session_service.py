"""A site in another language behind the session service, and a farm of ours: sessions go back and forth."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from coatcheck.service.client import ServiceProblem, SessionClient
from farm.farm_process import Farm
from ports import free_port
from service.pages import node_at
from service.service_process import FARM, KEY, ServiceProcess, credential_of

from .two_farms import APP
from .web_client import Client

CALLERS = """
[tickets]
scopes = ["hand-off", "renew", "close", "create", "verify"]
[reader]
scopes = ["verify"]
"""


class Shops:
    """``shop``: `coatcheck serve`; ``tickets``: a server in Node, which asks ``service``."""

    def __init__(self, folder: Path) -> None:
        ports = {name: free_port() for name in ("shop", "tickets")}
        self.shop, self.tickets = (f"http://{name}.localhost:{port}" for name, port in ports.items())
        self.ports = ports
        store = f"sqlite:///{folder / 'sessions.db'}"
        table = (
            f'[sites.shop]\norigin = "{self.shop}"\n'
            f'[sites.tickets]\norigin = "{self.tickets}"\npaths = ["/tickets/*"]\n'
        )
        for name in ports:
            home = folder / name
            home.mkdir()
            (home / "farm.toml").write_text(
                f'[farm]\nname = "{FARM}"\nsite = "{name}"\nport = {ports[name]}\nsession_server = ["{store}"]\n'
                f"[cookie]\ninsecure_localhost = true\n{table}"
            )
        (folder / "shop" / "app.py").write_text(APP)
        self.farm = Farm(folder / "shop", ("app:app", "--config", "farm.toml"), {"FARM": "shop", "COATCHECK_KEYS": KEY})
        self.service = ServiceProcess(folder / "tickets", "--config", "farm.toml", store=store, callers=CALLERS)
        self.farm.wait_running()

    def close(self) -> None:
        self.service.end()
        self.farm.end()


@pytest.fixture(scope="module")
def shops(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shops]:
    folder = tmp_path_factory.mktemp("shops")
    both = Shops(folder)
    env = {"SERVICE": both.service.url, "CREDENTIAL": credential_of("tickets")}
    try:
        with node_at(both.ports["tickets"], "site.mjs", folder, **env):
            yield both
    finally:
        both.close()


def test_a_session_goes_to_a_site_in_node_and_back_and_ends_everywhere(shops: Shops) -> None:
    browser = Client()
    browser.visit(f"{shops.shop}/login-ada")
    pages = browser.visit(f"{shops.shop}/tickets/42?seat=3")
    assert (pages[-1].url, pages[-1].body) == (f"{shops.tickets}/tickets/42?seat=3", "ada at /tickets/42?seat=3")
    assert len(pages) == 5, "four redirects"
    for page in pages[:-1]:
        assert page.status == 303
        assert page.all("referrer-policy") == ["no-referrer"]
        assert page.all("cache-control") == ["no-store"]
    assert browser.visit(f"{shops.shop}/tickets/7")[-1].body == "ada at /tickets/7"
    back = browser.visit(f"{shops.tickets}/basket")[-1]
    assert (back.says["user"], back.url) == ("ada", f"{shops.shop}/basket")
    assert browser.visit(f"{shops.tickets}/tickets/logout")[-1].body == "ada at /tickets/logout", "a link is no logout"
    assert browser.visit(f"{shops.shop}/basket")[-1].says["user"] == "ada"
    browser.visit(f"{shops.tickets}/tickets/42")
    assert browser.send(f"{shops.tickets}/tickets/logout", "POST").body == "good bye"
    assert browser.visit(f"{shops.shop}/basket")[-1].says["user"] is None
    assert browser.visit(f"{shops.shop}/tickets/42")[-1].body == "nobody at /tickets/42"


def test_a_session_that_began_in_node_goes_to_our_farm(shops: Shops) -> None:
    with SessionClient(shops.service.url, credential_of("tickets")) as service:
        made = service.create("eve")
        assert made.cookie is not None
    browser = Client()
    name, _, value = made.cookie.partition("=")
    browser.jar["tickets.localhost"] = {name: value}
    assert browser.visit(f"{shops.tickets}/tickets/1")[-1].body == "eve at /tickets/1"
    assert browser.visit(f"{shops.tickets}/add")[-1].says["user"] == "eve"


def test_a_ticket_opens_once_and_in_its_own_browser(shops: Shops) -> None:
    browser, thief = Client(), Client()
    browser.visit(f"{shops.shop}/login-ada")
    stolen = browser.until(f"{shops.shop}/tickets/42", "coatcheck-ticket")
    assert thief.visit(stolen)[-1].body == "nobody at /tickets/42"
    assert browser.visit(stolen)[-1].body == "ada at /tickets/42", "which took nothing from its owner"
    assert thief.visit(stolen)[-1].body == "nobody at /tickets/42"
    assert browser.visit(f"{shops.tickets}/tickets/43")[-1].body == "nobody at /tickets/43", "what it issued is revoked"
    assert browser.visit(f"{shops.shop}/tickets/43")[-1].body == "ada at /tickets/43", "the session lives"


def test_bodies_are_sent_on_or_refused_and_pages_elsewhere_are_not_served(shops: Shops) -> None:
    with SessionClient(shops.service.url, credential_of("tickets")) as service:
        away = service.hand_off("/basket?x=1", method="POST")
        assert (away.todo, away.status) == ("redirect", 307)
        assert away.url.startswith(f"{shops.shop}/basket?x=1&coatcheck-ask=")
        assert away.headers == {"cache-control": "no-store", "referrer-policy": "no-referrer"}
        here = service.hand_off("/tickets/1?coatcheck-ask=forged")
        assert (here.todo, here.status, here.url) == ("redirect", 303, f"{shops.tickets}/tickets/1")
        posted = service.hand_off("/tickets/1?a=b&coatcheck-ask=forged", method="POST")
        assert (posted.todo, posted.url) == ("serve", "/tickets/1?a=b")
        wrong = service.hand_off("/basket?coatcheck-ask=forged")
        assert (wrong.todo, wrong.status) == ("refuse", 421)
        assert wrong.words
        long = service.hand_off("/" + "x" * 3000)
        assert (long.todo, long.status) == ("refuse", 414)
        for url in ("tickets", "//evil.example/", "/tickets/1\r\nX: y", "/tickets/1#x", ""):
            if url == "//evil.example/":
                assert service.hand_off(url).url.startswith(f"{shops.shop}//evil.example/")
                continue
            with pytest.raises(ServiceProblem, match="bad-request"):
                service.hand_off(url)
    reader = SessionClient(shops.service.url, credential_of("reader"))
    with reader, pytest.raises(ServiceProblem, match="not-allowed"):
        reader.hand_off("/tickets/1")


def test_a_service_without_sites_says_so(tmp_path: Path) -> None:
    service = ServiceProcess(tmp_path, callers=CALLERS)
    try:
        with SessionClient(service.url, credential_of("tickets")) as client:
            with pytest.raises(ServiceProblem, match="no-sites") as said:
                client.hand_off("/tickets/1")
            assert said.value.status == 404
    finally:
        assert service.end() == 0
