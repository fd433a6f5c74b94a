"""A Django project and a Flask app, unmodified, in a farm of three: servers die and drain while browsers click.

``KILL_SECONDS=600 python -m pytest tests/farm/test_framework_apps.py -k crowd`` kills for ten minutes per app.
"""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest
import requests
import socketio

from hand_off.chromium import Chromium, Tab

from .farm_process import SOURCE, Farm, environment, eventually
from .identity_provider import IdentityProvider
from .kill_crowd import Listener, Seen, for_a_while, freeze, shop
from .test_kill import FREEZE_S, arrive, crowd_of, go_round, judge, kill

TESTS = Path(__file__).parents[1]
SHOPPERS = 24
AT_ONCE = 4
PAUSE_S = 0.05
SECONDS = float(os.environ.get("KILL_SECONDS", "0"))
"""0: each victim once."""
REQUESTS = 200
ACKNOWLEDGED = 50
PATIENT = ("--store-timeout", "5s")
"""A busy machine is no fault; a killed session server is noticed at once all the same."""
MAKE = f"from farm.django_app import make; make({SHOPPERS})"

pytestmark = [pytest.mark.serial]


@pytest.fixture(scope="module")
def provider() -> Iterator[IdentityProvider]:
    with IdentityProvider() as running:
        yield running


@pytest.fixture(scope="module", params=["django", "flask"])
def running(request: Any, tmp_path_factory: pytest.TempPathFactory, provider: IdentityProvider) -> Iterator[Farm]:
    folder = tmp_path_factory.mktemp(request.param)
    env = {"PYTHONPATH": f"{SOURCE}:{TESTS}", "SHOP_FOLDER": str(folder), "PROVIDER": provider.base}
    if request.param == "django":
        subprocess.run([sys.executable, "-c", MAKE], env=environment(**env), check=True)
    standard = (f"farm.{request.param}_app:app", "--port", "0", "--insecure-localhost", "--stop-grace", "5")
    farm = Farm(folder, (*standard, "--web", "3", "--session-servers", "2", "--threads", "4", *PATIENT), env)
    try:
        farm.wait_running()
        yield farm
        assert "Traceback" not in farm.log, farm.log
    finally:
        farm.end()


in_django = pytest.mark.parametrize("running", ["django"], indirect=True)
in_flask = pytest.mark.parametrize("running", ["flask"], indirect=True)
in_both = pytest.mark.parametrize("running", ["django", "flask"], indirect=True)


@in_both
def test_a_crowd_loses_nothing_and_stays_logged_in_while_servers_are_killed(running: Farm) -> None:
    steps: list[tuple[str, Callable[[], object]]] = [
        ("kill web-1", lambda: kill(running, "web-1")),
        ("freeze web-2", lambda: freeze(running.pid("web-2"), FREEZE_S)),
        ("kill session-2", lambda: kill(running, "session-2")),
        ("kill web-3", lambda: kill(running, "web-3")),
    ]

    async def story() -> None:
        crowd, seen = crowd_of(running, SHOPPERS, Listener), Seen()
        await arrive(crowd)
        enough = for_a_while(seen, SECONDS, REQUESTS)
        killer = asyncio.create_task(go_round(running, steps, SECONDS))
        await shop(
            crowd, seen, lambda: killer.done() and (killer.exception() is not None or enough()), AT_ONCE, PAUSE_S
        )
        await killer
        for shopper in crowd:
            await shopper.listen(seen)
        await judge(running, crowd, seen, ACKNOWLEDGED)
        assert sum(len(shopper.told) for shopper in crowd) >= ACKNOWLEDGED

    asyncio.run(story())


# -- a browser ------------------------------------------------------------------------------------------


class AdminPages:
    """Django's admin, as somebody uses it who adds groups."""

    home = "/admin/"
    refused_at = "/admin/login/"

    def enter(self, tab: Tab, base: str) -> None:
        tab.open(f"{base}/admin/")
        tab.fill("#id_username", "ada")
        tab.fill("#id_password", "ada")
        tab.click("#login-form [type=submit]")

    def who(self, tab: Tab) -> list[str]:
        return tab.texts("#user-tools strong")

    def look(self, tab: Tab, base: str) -> None:
        tab.open(f"{base}/admin/auth/group/")

    def add(self, tab: Tab, base: str, what: str) -> None:
        tab.open(f"{base}/admin/auth/group/add/")
        tab.fill("#id_name", what)
        tab.click("[name=_save]")

    def said(self, tab: Tab) -> list[str]:
        return tab.texts(".messagelist li")

    def message(self, what: str) -> str:
        return f"The group “{what}” was added successfully."

    def added(self, tab: Tab) -> int:
        return len(tab.texts("#result_list tbody tr"))

    def leave(self, tab: Tab) -> None:
        tab.click("#logout-form [type=submit]")


class ShopPages:
    """The Flask app: Flask-Login, and a message after each step."""

    home = "/"
    refused_at = "/form"

    def enter(self, tab: Tab, base: str) -> None:
        tab.open(f"{base}/")
        tab.fill("#name", "ada")
        tab.click("#enter")
        assert self.said(tab) == ["welcome ada"]

    def who(self, tab: Tab) -> list[str]:
        return tab.texts("#who")

    def look(self, tab: Tab, base: str) -> None:
        tab.click("#look")

    def add(self, tab: Tab, base: str, what: str) -> None:
        tab.fill("#what", what)
        tab.click("#buy")

    def said(self, tab: Tab) -> list[str]:
        return tab.texts(".said")

    def message(self, what: str) -> str:
        return f"bought {what}"

    def added(self, tab: Tab) -> int:
        return int(tab.texts("#cart")[0])

    def leave(self, tab: Tab) -> None:
        tab.click("#leave")
        assert self.said(tab) == ["good bye"]


class Visitor:
    """Clicks, and sees to it that each page is one of somebody logged in."""

    def __init__(self, pages: Any, tab: Tab, base: str) -> None:
        self.pages = pages
        self.tab = tab
        self.base = base
        self.added = 0

    def server(self) -> str:
        """The web server that has this browser."""
        ask = "(() => { const ask = new XMLHttpRequest(); ask.open('GET', '/server', false); ask.send(); "
        return str(self.tab.run(ask + "return ask.responseText; })()"))

    def look(self) -> None:
        self.pages.look(self.tab, self.base)
        assert self.pages.who(self.tab) == ["ada"], self.tab.run("document.body.innerText")
        assert self.pages.said(self.tab) == []
        assert self.pages.added(self.tab) == self.added

    def add(self) -> None:
        what = f"number {self.added}"
        self.pages.add(self.tab, self.base, what)
        self.added += 1
        assert self.pages.who(self.tab) == ["ada"], self.tab.run("document.body.innerText")
        assert [said.strip() for said in self.pages.said(self.tab)] == [self.pages.message(what)]
        self.look()


@pytest.fixture
def chromium(tmp_path: Path) -> Iterator[Chromium]:
    browser = Chromium(tmp_path / "profile")
    yield browser
    browser.close()


@in_both
def test_a_browser_notices_neither_a_kill_nor_a_drain(running: Farm, chromium: Chromium, request: Any) -> None:
    pages = AdminPages() if "django" in request.node.callspec.id else ShopPages()
    stolen = click_on(running, pages, chromium.tab())
    if isinstance(pages, ShopPages):  # Flask-Login forgets the user; the session itself is to be dead as well
        assert httpx.get(f"{running.base}/read", cookies=stolen, timeout=60).json()["cart"] is None


def click_on(running: Farm, pages: Any, tab: Tab) -> dict[str, str]:
    """Log in, and work on while the web server dies, and another one drains; the cookies of before the logout."""
    base = running.base
    pages.enter(tab, base)
    visitor = Visitor(pages, tab, base)
    visitor.add()

    name = visitor.server()
    old = running.pid(name)
    os.kill(old, signal.SIGKILL)
    visitor.look()
    visitor.add()
    assert visitor.server() != name

    def looked_until_it_is_back() -> bool:
        visitor.look()
        row = next(row for row in running.note()["processes"] if row["name"] == name)
        return row["pid"] not in (None, old) and row["state"] == "ready"

    eventually(looked_until_it_is_back, f"the restart of {name}")

    name = visitor.server()
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(running.run, "drain", name)
        while not drained.done():
            visitor.add()
    assert drained.result().returncode == 0, drained.result().stderr
    visitor.add()
    assert visitor.server() != name
    assert running.run("admit", name).returncode == 0

    stolen = tab.cookies(base)
    assert httpx.get(f"{base}{pages.home}", cookies=stolen, timeout=60).status_code == 200
    pages.leave(tab)
    answer = httpx.get(f"{base}{pages.home}", cookies=stolen, timeout=60)
    assert (answer.status_code, answer.headers["location"].partition("?")[0]) == (302, pages.refused_at)
    assert pages.refused_at in tab.open(f"{base}{pages.home}")["url"]
    return stolen


# -- a login at an identity provider --------------------------------------------------------------------


def elsewhere(base: str, than: str) -> tuple[str, str]:
    """Another web server, and the cookie that leads to it."""

    def found() -> tuple[str, str] | None:
        with httpx.Client(base_url=base, timeout=60) as another:
            name = another.get("/server").text
            return (name, another.cookies["coatcheck-route"]) if name != than else None

    there: tuple[str, str] = eventually(found, "an answer of another web server")
    return there


@in_flask
def test_an_oauth_login_comes_back_to_another_web_server_and_only_once(
    running: Farm, provider: IdentityProvider
) -> None:
    with httpx.Client(base_url=running.base, timeout=60) as browser:
        asked = browser.get("/oauth").headers["location"]
        assert asked.startswith(provider.base)
        callback = httpx.get(asked).headers["location"]
        with httpx.Client(base_url=running.base, timeout=60) as victim:
            refused = victim.get(callback)
            assert (refused.status_code, refused.json()["error"]) == (400, "mismatching_state")
            assert victim.get("/read").json()["who"] is None, "nobody is logged in as somebody else"
        name, route = elsewhere(running.base, browser.get("/server").text)
        browser.cookies.delete("coatcheck-route")
        browser.cookies.set("coatcheck-route", route)
        before = dict(browser.cookies)
        assert browser.get(callback).json() == {"who": "ada", "server": name}
        assert browser.get("/read").json()["who"] == "ada"
        assert httpx.get(f"{running.base}/read", cookies=before, timeout=60).json()["who"] is None, "a new session"

        for cookies in ({}, before):
            with httpx.Client(base_url=running.base, cookies=cookies or browser.cookies, timeout=60) as replaying:
                refused = replaying.get(callback)
                assert (refused.status_code, refused.json()["error"]) == (400, "mismatching_state")
        assert browser.get("/read").json()["who"] == "ada"


# -- Socket.IO ------------------------------------------------------------------------------------------


@in_flask
def test_flask_socketio_polls_at_one_web_server_and_knows_who_is_logged_in(running: Farm) -> None:
    servers = set()
    for number in range(4):
        with requests.Session() as browser:
            assert browser.post(f"{running.base}/login/user{number}", timeout=60).status_code == 200
            client = socketio.Client(reconnection=False, http_session=browser)
            client.connect(running.base, transports=["polling"], wait_timeout=60)
            answers = [client.call("say", f"word {turn}", timeout=60) for turn in range(3)]
            client.eio.disconnect(abort=True)
            name = answers[0][1]
            assert answers == [[f"word {turn}", name, f"user{number}", turn + 1] for turn in range(3)]
            servers.add(name)
    assert len(servers) > 1, "browsers are spread"
    with pytest.raises(socketio.exceptions.ConnectionError):
        socketio.Client(reconnection=False).connect(running.base, transports=["polling"], wait_timeout=60)


@in_flask
def test_flask_socketio_connects_again_at_another_web_server_with_the_same_login(running: Farm) -> None:
    with requests.Session() as browser:
        assert browser.post(f"{running.base}/login/ada", timeout=60).status_code == 200
        client = socketio.Client(reconnection_delay=0.1, reconnection_delay_max=0.1, http_session=browser)
        client.connect(running.base, transports=["polling"], wait_timeout=60)
        _, name, who, heard = client.call("say", "before", timeout=60)
        assert (who, heard) == ("ada", 1)
        again = threading.Event()
        client.on("connect", again.set)
        os.kill(running.pid(name), signal.SIGKILL)
        assert again.wait(60)
        _, other, who, heard = client.call("say", "after", timeout=60)
        assert (other != name, who, heard) == (True, "ada", 1), "what was with the connection has gone with it"
        client.eio.disconnect(abort=True)
        assert browser.get(f"{running.base}/read", timeout=60).json()["who"] == "ada"


@in_flask
def test_a_socketio_client_that_would_like_a_websocket_goes_on_polling(running: Farm) -> None:
    async def talk() -> tuple[str, Any]:
        # aiohttp's own jar keeps no cookies of hosts that are addresses.
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as browser:
            async with browser.post(f"{running.base}/login/ada") as answer:
                assert answer.status == 200
            client = socketio.AsyncClient(reconnection=False, http_session=browser)
            await client.connect(running.base, wait_timeout=60)
            words, _, who, _ = await client.call("say", "hello", timeout=60)
            transport = client.transport()
            await client.eio.disconnect(abort=True)
            return transport, (words, who)

    assert asyncio.run(talk()) == ("polling", ("hello", "ada"))
