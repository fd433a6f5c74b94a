"""Pages in Node and PHP and files behind nginx, HAProxy, Envoy and Caddy, as the documentation configures them."""

from __future__ import annotations

import contextlib
import http.server
import os
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote, unquote

import httpx
import jwt
import pytest

from coatcheck.service.assertion import LIFE_S, Signer
from coatcheck.tokens.keyring import KeyRing

from .conftest import StartService
from .pages import AUDIENCE, PROXIES, WASM, node, page_env, php, proxy, static
from .service_process import FARM, RING, ServiceProcess

PAGES = ("node", "php", "wasm")


@pytest.fixture(scope="module")
def pages(service: ServiceProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    with ExitStack() as stack:
        folder = tmp_path_factory.mktemp("pages")
        yield {
            "node": stack.enter_context(node("page.mjs", folder, **page_env(service))),
            "php": stack.enter_context(php("page.php", folder, **page_env(service))),
            "wasm": stack.enter_context(static(folder)),
        }


def verified(service: ServiceProcess, assertion: str, audience: str = AUDIENCE) -> dict[str, Any]:
    """By a library that knows nothing of ours."""
    (key,) = service.http.get("/v1/jwks").json()["keys"]
    issuer = f"coatcheck:{FARM}"
    found: dict[str, Any] = jwt.decode(
        assertion, jwt.PyJWK(key), algorithms=["EdDSA"], audience=audience, issuer=issuer
    )
    return found


def test_the_signed_header_says_who_it_is_and_what_the_operator_named(service: ServiceProcess) -> None:
    cookie = service.login("Zoë/ünïcode", role="boss", secret="for nobody")
    answer = service.auth(cookie)
    assert answer.status_code == 200
    assert unquote(answer.headers["x-session-user"]) == "Zoë/ünïcode"
    told = verified(service, answer.headers["x-session-assertion"])
    assert told["sub"] == "Zoë/ünïcode"
    assert told["claims"] == {"role": "boss"}, "and no other key of its data"
    assert 0 < told["exp"] - told["iat"] <= 30
    assert answer.headers["cache-control"] == "no-store"
    with pytest.raises(jwt.InvalidAudienceError):
        verified(service, answer.headers["x-session-assertion"], "https://elsewhere.example")


AN_HOUR_AHEAD = """
import time

right, right_ns = time.time, time.time_ns
time.time = lambda: right() + 3600
time.time_ns = lambda: right_ns() + 3600 * 10**9
"""


def test_what_is_signed_has_the_time_of_the_farm_and_not_of_a_host_whose_clock_is_wrong(
    start: StartService, redis_url: str, tmp_path: Path
) -> None:
    (tmp_path / "sitecustomize.py").write_text(AN_HOUR_AHEAD)
    ahead = start(store=redis_url, PYTHONPATH=f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}")
    answer = ahead.auth(ahead.login("ada"))
    assert answer.status_code == 200
    assert verified(ahead, answer.headers["x-session-assertion"])["sub"] == "ada", "else it is none yet"


def test_nobody_without_a_login_is_let_through(service: ServiceProcess) -> None:
    anonymous = service.ask("", data={"cart": 1}).json()["cookie"]
    for cookie in ("", "theme=dark", anonymous, service.login().replace("=", "=A", 1), "x" * 5000):
        answer = service.auth(cookie)
        assert answer.status_code == 401, cookie
        assert "x-session-assertion" not in answer.headers
    closed = service.login()
    assert service.auth(closed).status_code == 200
    service.ask("/close", cookie=closed)
    assert service.auth(closed).status_code == 401


@pytest.mark.parametrize(
    ("headers", "path", "following"),
    [
        ({"X-Original-URI": "/cart?x=1&y=2"}, "", "/cart?x=1&y=2"),
        ({"X-Forwarded-Uri": "/cart"}, "", "/cart"),
        ({}, "/cart?x=1", "/cart?x=1"),
        ({"X-Original-URI": "//evil.example/"}, "", "/"),
        ({"X-Original-URI": "/\\evil.example/"}, "", "/"),
        ({"X-Original-URI": "https://evil.example/"}, "", "/"),
        ({"X-Original-URI": "/a b"}, "", "/"),
        ({"X-Original-URI": "/" + "a" * 5000}, "", "/"),
        ({}, "//evil.example", "/"),
        ({}, "", "/"),
    ],
)
def test_a_login_leads_back_to_where_the_browser_was_and_never_to_another_host(
    service: ServiceProcess, headers: dict[str, str], path: str, following: str
) -> None:
    answer = service.auth("", "site", path, Accept="text/html,*/*", **headers)
    assert answer.status_code == 302
    login, _, back = answer.headers["location"].partition("&next=")
    assert login == "https://shop.example/login?from=proxy"
    assert unquote(back) == following
    for_scripts = service.auth("", "site", path, Accept="application/json", **headers)
    assert (for_scripts.status_code, for_scripts.headers["x-session-login"]) == (401, answer.headers["location"])


def test_claims_that_do_not_fit_are_refused_and_those_that_json_has_not_are_told(service: ServiceProcess) -> None:
    assert service.auth(service.login(role="x" * 6000)).status_code == 403
    answer = service.auth(service.login(role=None, seen={"a": [1.5, True]}))
    assert verified(service, answer.headers["x-session-assertion"])["claims"] == {
        "role": None,
        "seen": {"a": [1.5, True]},
    }


@pytest.mark.parametrize("method", ["POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"])
def test_any_method_is_judged(service: ServiceProcess, method: str) -> None:
    headers = {**service.of("proxy"), "Cookie": service.login()}
    assert service.http.request(method, "/v1/forward-auth/page", headers=headers).status_code == 200
    headers["Cookie"] = ""
    assert service.http.request(method, "/v1/forward-auth/page", headers=headers).status_code == 401


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("kind", PROXIES)
def test_a_page_behind_a_proxy(
    service: ServiceProcess, pages: dict[str, str], kind: str, page: str, tmp_path: Path
) -> None:
    path = "/static/app.wasm" if page == "wasm" else "/account?tab=1"
    cookie = service.login("ada", role="boss")
    forged = {"X-Session-User": "root", "X-Session-Assertion": service.auth(cookie).headers["x-session-assertion"]}
    (tmp_path / "static").mkdir()
    (tmp_path / "static" / "app.wasm").write_bytes(WASM)
    with (
        proxy(kind, tmp_path / "proxy", service.url, pages[page]) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as browser,
    ):
        person = browser.get(path, headers={"Accept": "text/html"})
        assert person.status_code == 302, person.text
        assert person.headers["location"] == "https://shop.example/login?from=proxy&next=" + quote(path, safe="")
        script = browser.get(path, headers={"Accept": "application/json", **forged})
        assert script.status_code == 401, "headers from outside open nothing"
        mine = browser.get(path, headers={"Cookie": cookie, "Authorization": "Bearer of-the-browser", **forged})
        assert mine.status_code == 200, mine.text
        assert mine.headers["cache-control"].startswith("no-store")
        if page == "wasm":
            assert mine.content == WASM
        else:
            assert mine.text == f"{page} ada boss"
        assert "set-cookie" not in mine.headers, "no new token is due"
        again = service.login("eve")
        service.ask("/renew", cookie=again, now=True)  # whose answer was lost
        # An anonymous cookie was left over: two lines for the browser, which not every proxy can pass on.
        anonymous = again.partition("=")[0].removesuffix("-login")
        renewed = browser.get(path, headers={"Cookie": f"{again}; {anonymous}=left-over"})
        assert renewed.status_code == 200
        lines = renewed.headers.get_list("set-cookie")
        assert len(lines) == 1, "its next token"
        (line,) = lines
        kept = line.partition(";")[0]
        assert kept != again
        assert "HttpOnly" in line and "Secure" in line and "Max-Age=0" not in line
        assert browser.get(path, headers={"Cookie": kept}).status_code == 200, "the browser goes on with it"
        service.ask("/close", cookie=kept)
        assert browser.get(path, headers={"Cookie": kept, "Accept": "*/*"}).status_code == 401


def test_a_page_in_php_keeps_its_keys_while_the_service_is_away(service: ServiceProcess, tmp_path: Path) -> None:
    assertion = service.auth(service.login("ada", role="boss")).headers["x-session-assertion"]
    kept = tmp_path / "coatcheck-jwks.json"
    away = page_env(service) | {"JWKS": "http://127.0.0.1:1/v1/jwks"}
    with php("page.php", tmp_path, **away) as url:
        headers = {"X-Session-Assertion": assertion}
        assert httpx.get(url, headers=headers, timeout=60, trust_env=False).status_code == 503, "it has none yet"
        keys = service.http.get("/v1/jwks").text
        kept.write_text(keys)
        an_hour_ago = time.time() - 3600
        os.utime(kept, (an_hour_ago, an_hour_ago))
        assert httpx.get(url, headers=headers, timeout=60, trust_env=False).text == "php ada boss"
        assert kept.read_text() == keys


def test_a_page_in_node_forgets_a_revoked_key_in_a_minute_and_keeps_its_keys_while_the_service_is_away(
    service: ServiceProcess, tmp_path: Path
) -> None:
    assertion = service.auth(service.login("ada", role="boss")).headers["x-session-assertion"]
    later, clock = tmp_path / "later", tmp_path / "clock.mjs"
    clock.write_text(
        'import fs from "node:fs"; const now = performance.now.bind(performance);'
        f" performance.now = () => now() + Number(fs.readFileSync({str(later)!r}));"
    )
    later.write_text("0")
    with keys_of(service.http.get("/v1/jwks").content) as (keys, url):
        env = page_env(service) | {"JWKS": url, "NODE_OPTIONS": f"--import={clock.as_uri()}"}
        with node("page.mjs", tmp_path, **env) as page:

            def asked(seconds: int) -> tuple[int, str]:
                later.write_text(str(1000 * seconds))
                answer = httpx.get(page, headers={"X-Session-Assertion": assertion}, timeout=60, trust_env=False)
                return answer.status_code, answer.text

            assert asked(0) == (200, "node ada boss")
            keys.content, keys.asked = b'{"keys": []}', 0
            assert asked(20) == (200, "node ada boss")
            assert keys.asked == 0, "it knows the key, and has had it for less than a minute"
            keys.content = b"the service is away"
            assert asked(70) == (200, "node ada boss")
            assert keys.asked == 1
            keys.content = b'{"keys": []}'
            assert asked(90) == (403, "no session"), "its key was revoked"


class Keys:
    """What a key server answers, and how often it was asked."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked = 0


@contextlib.contextmanager
def keys_of(content: bytes) -> Iterator[tuple[Keys, str]]:
    keys = Keys(content)

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            keys.asked += 1
            self.send_response(200)
            self.send_header("Content-Length", str(len(keys.content)))
            self.end_headers()
            self.wfile.write(keys.content)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield keys, f"http://127.0.0.1:{server.server_address[1]}/jwks"
        finally:
            server.shutdown()
            thread.join()


@contextlib.contextmanager
def echo() -> Iterator[str]:
    """A page that shows what it was sent."""

    class Echo(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = str(self.headers).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Tests are quiet."""

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Echo) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_address[1]}"
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize("kind", PROXIES)
def test_no_session_header_from_outside_reaches_a_page(service: ServiceProcess, kind: str, tmp_path: Path) -> None:
    cookie = service.login("ada")
    outside = {"Cookie": cookie}
    for name in ("X-Session-User", "X_Session_User", "X-Session_User", "X_SESSION-User", "x-session-assertion"):
        outside[name] = "from-outside"
    with echo() as page, proxy(kind, tmp_path / "proxy", service.url, page) as url:
        shown = httpx.get(f"{url}/account", headers=outside, timeout=60, trust_env=False)
    assert shown.status_code == 200
    assert "from-outside" not in shown.text
    lines = [line for line in shown.text.lower().splitlines() if line.startswith("x-session-")]
    assert sorted(line.partition(":")[0] for line in lines) == ["x-session-assertion", "x-session-user"]
    assert "x-session-user: ada" in lines


@pytest.mark.parametrize("kind", PROXIES)
def test_without_the_service_nobody_is_let_through(
    service: ServiceProcess, pages: dict[str, str], kind: str, tmp_path: Path
) -> None:
    cookie = service.login()
    with (
        proxy(kind, tmp_path / "proxy", "http://127.0.0.1:1", pages["node"]) as url,
        httpx.Client(base_url=url, timeout=60, trust_env=False) as browser,
    ):
        answer = browser.get("/account", headers={"Cookie": cookie})
        assert answer.status_code in (502, 503)
        assert "ada" not in answer.text


@pytest.mark.parametrize("page", ["node", "php"])
def test_a_page_believes_no_header_that_the_service_did_not_sign_for_it(
    service: ServiceProcess, pages: dict[str, str], page: str
) -> None:
    def seen(assertion: str) -> int:
        return httpx.get(
            pages[page], headers={"X-Session-Assertion": assertion}, trust_env=False, timeout=60
        ).status_code

    now, ours = int(time.time()), Signer(RING, FARM)
    good = ours.sign(AUDIENCE, "ada", "0" * 12, {}, now)
    assert seen(good) == 200
    assert seen(ours.sign(AUDIENCE, "ada", "0" * 12, {}, now - LIFE_S - 10)) == 403, "it is over"
    assert seen(ours.sign(AUDIENCE, "ada", "0" * 12, {}, now + 60)) == 403, "it has not begun"
    assert seen(ours.sign("https://elsewhere.example", "ada", "0" * 12, {}, now)) == 403
    assert seen(Signer(RING, "another").sign(AUDIENCE, "ada", "0" * 12, {}, now)) == 403
    assert seen(Signer(KeyRing([b"\x07\x01" * 20 + bytes(range(32))]), FARM).sign(AUDIENCE, "ada", "0", {}, now)) == 403
    head, body, signature = good.split(".")
    none = jwt.encode({"sub": "ada", "aud": AUDIENCE}, None, algorithm="none")
    for forged in (
        "",
        ".",
        "..",
        none,
        f"{head}.{body}.",
        f"{head}.{body}.{signature}.x",
        f"{head}.{body[:-2]}AA.{signature}",
    ):
        assert seen(forged) == 403, forged
    for at in range(0, len(good), 11):
        flipped = good[:at] + ("A" if good[at] != "A" else "B") + good[at + 1 :]
        assert seen(flipped) == 403, at
