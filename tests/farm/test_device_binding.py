"""Sessions bound to a real browser's key: Chromium registers, refreshes and is killed for, and thieves come to nothing.

Its key is a software one, which the browser makes where it is told to; with a security chip it never leaves that.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from certificate import make_certificate
from hand_off.chromium import Chromium, Tab
from tls.test_browser import pin

from .farm_process import DEADLINE_S, Farm, eventually

pytestmark = pytest.mark.apart
"""Cookies live for seconds here, and what a browser then does when is not understood well enough: some runs fail."""
LIFE_S, GRACE_S = 6, 3
NAME = "__Host-coatcheck-login"
FEATURES = "DeviceBoundSessions,EnableBoundSessionCredentialsSoftwareKeysForManualTesting"
EARLY = "DeviceBoundSessionProactiveRefresh"
"""It refreshes when there are two minutes left, which with cookies of a few seconds is always."""
QUOTA = "DeviceBoundSessionSigningQuotaAndCaching"
APP = """
import json, os
from html import escape
from starlette.applications import Starlette
from starlette.responses import HTMLResponse
from starlette.routing import Route

async def page(request):
    session, verb = request.session, request.url.path.rsplit("/", 1)[-1]
    if verb.startswith("login-"):
        session.regenerate(verb.removeprefix("login-"))
    elif verb == "add":
        session["n"] = session.get("n", 0) + 1
    bound, user = session.bound, session.user
    if verb == "logout":
        session.close()
        user = bound = None
    said = {"user": user, "n": session.get("n"), "path": request.url.path, "query": request.url.query,
            "key": bound and bound.thumbprint, "proved": bound and bound.last_proof, "pid": os.getpid()}
    icon = '<link rel="icon" href="data:,">'
    return HTMLResponse(f"<!doctype html>{icon}<body><pre id=said>{escape(json.dumps(said))}</pre>")

app = Starlette(routes=[Route("/{rest:path}", page, methods=["GET", "POST"])])
"""


class Way:
    """What stands between the browser and the farm, and sees what they say: TLS on both sides."""

    def __init__(self, certificate: tuple[Path, Path], to: int) -> None:
        self.seen: list[bytes] = []
        """Heads of the farm's answers and of the browser's requests about bound sessions."""
        self.losing = False
        """Whether the farm's next answer about a bound session is lost."""
        self.before_challenge: Callable[[], None] | None = None
        """What happens, once, between the farm's challenge and the browser's hearing it."""
        self._to = to
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                threading.Thread(target=self._carry, args=(client,), daemon=True).start()

    def _carry(self, raw: socket.socket) -> None:
        trusting = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        trusting.check_hostname, trusting.verify_mode = False, ssl.CERT_NONE
        with contextlib.suppress(OSError), contextlib.ExitStack() as ends:
            client = ends.enter_context(self._context.wrap_socket(ends.enter_context(raw), server_side=True))
            plain = ends.enter_context(socket.create_connection(("127.0.0.1", self._to)))
            server = ends.enter_context(trusting.wrap_socket(plain))
            threading.Thread(target=self._back, args=(server, client), daemon=True).start()
            while data := client.recv(65536):
                if b"secure-session" in data.lower():
                    self.seen.append(data)
                server.sendall(data)

    def _back(self, server: ssl.SSLSocket, client: ssl.SSLSocket) -> None:
        with contextlib.suppress(OSError):
            while data := server.recv(65536):
                if b"secure-session-challenge" in data.lower():
                    self.seen.append(data)
                    if self.losing:
                        self.losing = False
                        client.shutdown(socket.SHUT_RDWR)
                        return
                    hook = self.before_challenge
                    if hook is not None and data.startswith(b"HTTP/1.1 403"):
                        self.before_challenge = None
                        hook()
                client.sendall(data)

    def requests(self, word: bytes) -> int:
        return sum(word in data for data in self.seen)

    def close(self) -> None:
        self._listener.close()


class Site:
    """The farm, the way to it, and browsers that go there."""

    def __init__(self, farm: Farm, certificate: tuple[Path, Path], folder: Path) -> None:
        self.farm = farm
        self.way = Way(certificate, int(farm.note()["address"].rpartition(":")[2]))
        self.base = f"https://localhost:{self.way.port}"
        self._pin, self._folder = pin(certificate[0]), folder
        self._browsers: list[Chromium] = []

    def browser(self, *without: str) -> Tab:
        """A tab of a new browser, which does without these features."""
        arguments = [f"--ignore-certificate-errors-spki-list={self._pin}", f"--enable-features={FEATURES}"]
        arguments += [f"--disable-features={','.join(without)}"] if without else []
        self._browsers.append(Chromium(self._folder / f"profile-{len(self._browsers)}", *arguments, whole=True))
        return self._browsers[-1].tab()

    def other_tab(self) -> Tab:
        return self._browsers[-1].tab()

    def close(self) -> None:
        for each in self._browsers:
            each.close()
        self.way.close()

    def bound_login(self, tab: Tab, user: str = "ada") -> dict[str, Any]:
        """What the page says once the session is bound."""
        assert tab.open(f"{self.base}/login-{user}")["user"] == user
        found: dict[str, Any] = eventually(lambda: bound(tab.open(f"{self.base}/me")), "the binding")
        assert found["user"] == user
        return found

    def copied(self, tab: Tab) -> httpx.Client:
        """Somebody else, with a copy of the browser's cookie, who keeps it whatever he is told."""
        cookie = tab.cookies(self.base)[NAME]
        return httpx.Client(base_url=self.base, verify=False, headers={"Cookie": f"{NAME}={cookie}"})


def bound(said: dict[str, Any]) -> dict[str, Any] | None:
    return said if said["key"] else None


def signed_in(said: dict[str, Any]) -> dict[str, Any] | None:
    return said if said.get("user") else None


@pytest.fixture
def site(farm: Callable[..., Farm], tmp_path: Path) -> Iterator[Site]:
    (tmp_path / "bound.py").write_text(APP)
    certificate = make_certificate(tmp_path)
    tls = ("--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1]), "--no-insecure-localhost")
    binding = ("--device-binding", "offer", "--bound-cookie-life", f"{LIFE_S}s", "--grace", f"{GRACE_S}s")
    running = farm(*tls, *binding, "--web", "2", app="bound:app")
    found = Site(running, certificate, tmp_path)
    yield found
    found.close()


def wait_until_over(tab: Tab, base: str) -> None:
    """Until the browser has no cookie any more."""
    eventually(lambda: NAME not in tab.cookies(base), "the end of the cookie")


def test_it_registers_and_refreshes_by_itself_and_a_copied_cookie_is_refused_after_its_life(site: Site) -> None:
    tab = site.browser(EARLY, QUOTA)
    first = site.bound_login(tab)
    thief = site.copied(tab)
    copied_at = time.monotonic()
    with thief:
        assert '"user": "ada"' in thief.get("/me").text.replace("&quot;", '"'), "a copy is good while its life lasts"
        for _ in range(2):
            wait_until_over(tab, site.base)
            said = tab.open(f"{site.base}/add")
            assert (said["user"], said["key"]) == ("ada", first["key"])
            assert said["proved"] > first["proved"]
        eventually(lambda: time.monotonic() > copied_at + LIFE_S + GRACE_S + 2, "the end of the copy's life")
        refused = thief.get("/me?a=b")
        assert (refused.status_code, refused.headers["location"]) == (307, "/me?a=b")
        assert refused.headers["set-cookie"].startswith(f'{NAME}=""; Expires=Thu, 01 Jan 1970')
        assert refused.headers["cache-control"] == "no-store"
        assert thief.post("/me").status_code == 403
    assert tab.open(f"{site.base}/me")["n"] == 2, "the browser goes on"


def test_two_tabs_that_come_at_once_when_the_cookie_is_over(site: Site) -> None:
    tab = site.browser(EARLY, QUOTA)
    key = site.bound_login(tab)["key"]
    tabs = [tab, *(site.other_tab() for _ in range(3))]
    for _ in range(2):
        wait_until_over(tab, site.base)
        for each in tabs:
            each.begin(f"{site.base}/add")
        said = [each.loaded() for each in tabs]
        assert [(one["user"], one["key"]) for one in said] == [("ada", key)] * len(tabs)
    assert tab.open(f"{site.base}/me")["user"] == "ada"


def test_a_logout_ends_the_binding_and_the_next_login_has_a_key_of_its_own(site: Site) -> None:
    tab = site.browser(EARLY, QUOTA)
    key = site.bound_login(tab)["key"]
    assert tab.open(f"{site.base}/logout")["user"] is None
    assert tab.open(f"{site.base}/me")["user"] is None
    asked = site.way.requests(b"/.coatcheck/device/refresh")
    assert tab.open(f"{site.base}/me")["user"] is None
    assert site.way.requests(b"/.coatcheck/device/refresh") == asked, "the browser has forgotten the session"
    assert site.bound_login(tab, "bob")["key"] not in (None, key)


def test_the_web_servers_are_killed_between_challenge_and_proof(site: Site) -> None:
    tab = site.browser(EARLY, QUOTA)
    first = site.bound_login(tab)
    pids: list[int] = []

    def kill_all() -> None:
        for name in ("web-1", "web-2"):
            old = site.farm.pid(name)
            os.kill(old, signal.SIGKILL)
            pids.append(old)
            site.farm.wait_replaced(name, old)

    # The challenge that was sent ahead with the last answer is as good as a fresh one: the browser asks for another one
    # only when that is used, by a proof whose answer is lost.
    wait_until_over(tab, site.base)
    site.way.losing, site.way.before_challenge = True, kill_all
    said = eventually(lambda: signed_in(tab.open(f"{site.base}/add")), "the way back")
    assert not site.way.losing
    assert len(pids) == 2, "they were killed between a challenge and its proof"
    assert (said["user"], said["key"], said["n"]) == ("ada", first["key"], 1)
    assert said["pid"] != first["pid"]


def test_a_browser_that_may_not_sign_any_more_is_told_to_come_later_and_is_not_signed_out(site: Site) -> None:
    tab = site.browser()  # it signs ahead of each request, six times in a short while, and then it says so
    site.bound_login(tab)

    def skipped() -> bool:
        tab.open(f"{site.base}/me")
        return site.way.requests(b"quota_exceeded") > 0

    eventually(skipped, "the end of its quota", DEADLINE_S)
    wait_until_over(tab, site.base)
    tab.open(f"{site.base}/me")
    shown = tab.run("document.title + document.body.textContent + performance.getEntries()[0].responseStatus")
    assert "503" in shown


def test_a_browser_that_knows_nothing_of_it_goes_on_as_ever(site: Site) -> None:
    with httpx.Client(base_url=site.base, verify=False) as client:
        login = client.get("/login-ada")
        assert login.headers["secure-session-registration"].startswith(
            '(ES256 RS256);path="/.coatcheck/device/register";challenge="'
        )
        until = time.monotonic() + LIFE_S + GRACE_S + 1
        while time.monotonic() < until:
            answer = client.get("/add")
            assert "ada" in answer.text
            assert "secure-session-registration" not in answer.headers, "it is offered once"
            time.sleep(1)
        assert client.post("/.coatcheck/device/refresh").status_code == 400
        assert client.get("/.coatcheck/device/refresh").status_code == 405
