"""TLS sessions between web servers that end TLS themselves, each resumed once: whoever took it, and whatever dies."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import re
import shutil
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tls.farm import HOST, TLS_1_2, TLS_1_3, VERSIONS

from .farm_process import DEADLINE_S, Farm, eventually
from .tls_farm import PATIENCE_S, TAKE_ONCE_PATIENTLY, Browser, TlsFarm, s_client

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


class EndToEndFarm(TlsFarm):
    """Three web servers that end TLS. A director brings all connections of one address to one of them."""

    def __init__(self, start: Callable[..., Farm], folder: Path, *arguments: str, **env: str) -> None:
        end = ("--tls", "end-to-end", "--takeover", "--web", "3")
        super().__init__(start, folder, *end, *TAKE_ONCE_PATIENTLY, *arguments, workers=1, **env)

    def kill(self, worker: str) -> None:
        """And wait until its successor is given its clients: the director hears of it a moment after it is ready."""
        super().kill(worker)
        if source := self.sources.get(worker):
            eventually(lambda: self.asked_from(source) == worker, f"connections from {source} at {worker}")

    def asked_from(self, source: str) -> str:
        """The web server that a new client at this address is answered by."""
        browser = Browser(self, TLS_1_3)
        browser.source = source
        browser.shake(None)
        return made_by(browser)

    @functools.cached_property
    def sources(self) -> dict[str, str]:
        """An address of clients for each web server."""
        found: dict[str, str] = {}
        for number in itertools.count(2):
            source = f"127.0.0.{number}"
            found.setdefault(self.asked_from(source), source)
            if len(found) == 3:
                return found
        raise AssertionError("there are no more addresses")

    def counts(self, name: str) -> int:
        """What all web servers together have counted under this name."""
        return sum(row["tls"][name] for row in self.tls()["directors"])


def made_by(browser: Browser) -> str:
    """The web server that answered last."""
    found: str = json.loads(browser.answer.partition(b"\r\n\r\n")[2])["server"]
    return found


def visit(browser: Browser, server: str, *, session: ssl.SSLSession | None = None) -> bool:
    """Whether the session was resumed at this web server."""
    browser.farm.settle()
    browser.source = browser.farm.sources[server]  # type: ignore[attr-defined]
    resumed = browser.visit(session=session)
    assert made_by(browser) == server
    return resumed


@both_versions
def test_every_web_server_resumes_once_also_after_a_death_and_after_a_new_key(
    farm: Callable[..., Farm], tmp_path: Path, version: ssl.TLSVersion
) -> None:
    shop = EndToEndFarm(farm, tmp_path)
    browser = Browser(shop, version)
    assert not visit(browser, "web-1")
    early = browser.session
    for server in ("web-2", "web-3", "web-1"):
        assert visit(browser, server), server
    if version is TLS_1_3:  # in TLS 1.2 a session moves along with its ID
        assert not visit(browser, "web-2", session=early), "it was taken before"
    assert shop.counts("not_ahead") == 0
    kept = str(tmp_path / "session.pem")
    assert "New, TLSv1" in s_client(shop, version, "-sess_out", kept, "-bind", f"{shop.sources['web-2']}:0")
    shop.settle()
    assert "Reused, TLSv1" in s_client(shop, version, "-sess_in", kept, "-bind", f"{shop.sources['web-3']}:0")
    if version is TLS_1_3:
        assert "New, TLSv1" in s_client(shop, version, "-sess_in", kept, "-bind", f"{shop.sources['web-1']}:0")

    visit(browser, "web-1")
    shop.settle()
    shop.kill("web-1")
    assert visit(browser, "web-1"), "its session was not in its memory"
    assert shop.running.run("keys", "rotate").returncode == 0
    assert visit(browser, "web-2"), "what the old key sealed opens"
    shop.settle()
    shop.kill("web-3")
    assert visit(browser, "web-3"), "and it has the new one"
    assert visit(browser, "web-1"), "as the others have"
    done = shop.running.run("tls", "rotate-ticket-keys")
    assert (done.returncode, done.stdout) == (1, "")
    said = shop.running.run("tls", "status").stdout
    assert "each is resumed once" in said
    assert re.search(r"web-2 +ready +yes +[1-9]", said), said
    rows = shop.running.healthy_status()["session_servers"]
    assert set(shop.of("web-1")["stores"]) == {row["name"] for row in rows}, "the farm's own session servers"
    assert sum(row["items"] for row in rows) > 0
    assert shop.running.status()["tls_sessions"] == [], "there is no process for it"


@pytest.mark.parametrize("version", VERSIONS)
def test_curl_resumes_at_web_servers_that_did_not_make_its_sessions(
    farm: Callable[..., Farm], tmp_path: Path, version: str
) -> None:
    shop = EndToEndFarm(farm, tmp_path)
    curl = shutil.which("curl")
    assert curl is not None, "curl is missing: apt-get install curl"
    # By the time of the answer its session is stored.
    url = f"https://{HOST}:{shop.port}/slow?s=0.5"
    common = ["--silent", "--show-error", "--http1.1", "--cacert", str(tmp_path / "ca.pem"), "--tlsv" + version]
    common += ["--tls-max", version, "--resolve", f"{HOST}:{shop.port}:127.0.0.1", "--header", "Connection: close"]
    servers = ["web-1", "web-2", "web-3", "web-1"]
    before = shop.counts("resumed")
    visits = [["--interface", shop.sources[server], *common, url] for server in servers]
    command = [curl, *visits[0], *(word for each in visits[1:] for word in ("--next", *each))]
    done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    assert re.findall(r'"server":"(web-\d)"', done.stdout) == servers
    assert shop.counts("resumed") - before == 3


def test_of_many_that_show_one_session_at_all_web_servers_one_gets_it(
    farm: Callable[..., Farm], tmp_path: Path
) -> None:
    shop = EndToEndFarm(farm, tmp_path)
    browser = Browser(shop, TLS_1_3)
    sources = list(shop.sources.values())
    for _ in range(4):
        browser.visit()
        offered = browser.session
        shop.settle()
        where = ("127.0.0.1", shop.port)
        connections = [
            socket.create_connection(where, timeout=PATIENCE_S, source_address=(sources[number % 3], 0))
            for number in range(12)
        ]
        with ThreadPoolExecutor(len(connections)) as pool:
            resumed = list(pool.map(functools.partial(browser.shake_hands, offered=offered), connections))
        assert sum(resumed) == 1
        assert not browser.visit(session=offered)
    assert shop.counts("not_ahead") == 0


def test_session_servers_that_hang_or_die_cost_full_handshakes_and_stop_nobody(
    farm: Callable[..., Farm], tmp_path: Path
) -> None:
    shop = EndToEndFarm(farm, tmp_path, "--session-servers", "2", "--tls-fetch-timeout", "2s")
    stores = ["session-1", "session-2"]
    browsers = [Browser(shop, version) for version in (TLS_1_2, TLS_1_3) for _ in range(3)]

    def shake_all() -> list[bool]:
        """Each at another web server than the last time; nobody sees an error, whatever the app says of its store."""
        for browser, source in zip(browsers, itertools.cycle(shop.sources.values()), strict=False):
            browser.source = source
        with ThreadPoolExecutor(len(browsers)) as pool:
            return list(pool.map(lambda browser: browser.shake(browser.session), browsers))

    assert shake_all() == [False] * 6
    shop.settle()
    assert shake_all() == [True] * 6
    shop.settle()
    for name in stores:
        os.kill(shop.running.pid(name), signal.SIGSTOP)
    assert shake_all() == [False] * 6, "served, though the stores say nothing"
    for name in stores:
        os.kill(shop.running.pid(name), signal.SIGCONT)
        shop.kill(name)
    assert shake_all().count(True) <= 6, "what they held is gone with them"

    def resumes() -> bool:
        shake_all()
        shop.settle()
        return all(shake_all())

    eventually(resumes, "sessions that are stored and taken again")
    assert shop.counts("unavailable") > 0
    assert shop.counts("not_ahead") == 0


def test_a_connection_that_began_with_a_resumption_outlives_its_web_server(
    farm: Callable[..., Farm], tmp_path: Path
) -> None:
    shop = EndToEndFarm(farm, tmp_path)
    browser = Browser(shop, TLS_1_3)
    visit(browser, "web-1")
    shop.settle()
    where = ("127.0.0.1", shop.port)
    raw = socket.create_connection(where, timeout=DEADLINE_S, source_address=(shop.sources["web-2"], 0))
    with raw, browser.context.wrap_socket(raw, server_hostname=HOST, session=browser.session) as tls:
        assert tls.session_reused
        servers = []
        for _ in range(2):
            tls.sendall(f"GET / HTTP/1.1\r\nHost: {HOST}\r\n\r\n".encode())
            said = b""
            while not said.endswith(b"}"):
                piece = tls.recv(65536)
                assert piece, said
                said += piece
            servers.append(json.loads(said.partition(b"\r\n\r\n")[2])["server"])
            shop.kill(servers[-1])
    assert servers[0] == "web-2" != servers[1]


def test_a_hello_in_many_records_and_half_a_hello_hold_nobody_up(farm: Callable[..., Farm], tmp_path: Path) -> None:
    shop = EndToEndFarm(farm, tmp_path, "--tls-handshake-timeout", "2s")
    browser = Browser(shop, TLS_1_3)
    visit(browser, "web-1")
    shop.settle()
    record = browser.hello()
    message = record[5:]
    pieces = [message[at : at + 100] for at in range(0, len(message), 100)]
    with socket.create_connection(("127.0.0.1", shop.port), timeout=PATIENCE_S) as raw:
        for piece in pieces:
            raw.sendall(record[:3] + len(piece).to_bytes(2, "big") + piece)
        assert raw.recv(1) == b"\x16", "a ServerHello"
    eventually(lambda: shop.counts("offered") == 1, "the session, found in its pieces")
    with socket.create_connection(("127.0.0.1", shop.port), timeout=PATIENCE_S) as raw:
        raw.sendall(record[:3] + len(pieces[0]).to_bytes(2, "big") + pieces[0])
        others: list[bool] = []
        thread = threading.Thread(target=lambda: others.append(Browser(shop, TLS_1_3).visit()))
        thread.start()
        thread.join(PATIENCE_S)
        assert others == [False], "served meanwhile"
        with contextlib.suppress(ConnectionResetError):
            assert raw.recv(1) == b"", "and that is its end"
    assert shop.counts("ahead") == 0


def test_what_was_fetched_for_a_handshake_that_failed_is_nobodys(farm: Callable[..., Farm], tmp_path: Path) -> None:
    shop = EndToEndFarm(farm, tmp_path)
    browser = Browser(shop, TLS_1_3)
    browser.visit()
    shop.settle()
    hello = browser.hello()
    assert hello[9:11] == b"\x03\x03"
    with socket.create_connection(("127.0.0.1", shop.port), timeout=PATIENCE_S) as raw:
        raw.sendall(hello[:9] + b"\x03\x00" + hello[11:])  # SSL 3.0: OpenSSL reads no further
        with contextlib.suppress(ConnectionResetError):
            while raw.recv(4096):
                pass
    assert [shop.counts(name) for name in ("ahead", "offered", "gone")] == [0, 0, 0]
    assert not browser.visit(), "it was taken"
    assert [shop.counts(name) for name in ("ahead", "offered", "gone")] == [0, 1, 1]
