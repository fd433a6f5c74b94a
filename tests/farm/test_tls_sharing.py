"""TLS sessions between the director workers of a farm: resumed at every worker, whatever dies, also after new keys."""

from __future__ import annotations

import contextlib
import functools
import os
import secrets
import signal
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from coatcheck.farm.files.keys import load
from ports import free_port
from tls.conftest import start_redis
from tls.farm import TLS_1_3, VERSIONS

from .farm_process import COUNTER_APP, SOURCE, Farm, eventually, memory_of
from .tls_farm import PATIENCE_S, TAKE_ONCE, TAKE_ONCE_PATIENTLY, Browser, TlsFarm, s_client

both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


@both_versions
def test_with_ticket_keys_every_worker_resumes_also_after_a_death_and_after_new_keys(
    farm: Callable[..., Farm], tmp_path: Path, version: ssl.TLSVersion
) -> None:
    shop = TlsFarm(farm, tmp_path, workers=3)
    browser = Browser(shop, version)
    assert not browser.visit("director-1")
    early = browser.session
    for worker in shop.workers:
        assert browser.visit(worker), worker
    kept = str(tmp_path / "session.pem")
    with shop.only("director-2"):
        assert "New, TLSv1" in s_client(shop, version, "-sess_out", kept)
    with shop.only("director-3"):
        assert "Reused, TLSv1" in s_client(shop, version, "-sess_in", kept)

    shop.kill("director-1")
    assert browser.visit("director-1"), "its successor has the keys from its start"

    before = {key["name"] for key in shop.of("director-1")["keys"] if key["state"] == "seals"}
    done = shop.running.run("tls", "rotate-ticket-keys")
    assert (done.returncode, done.stderr) == (0, "")
    found = shop.tls()
    sealing = {key["name"] for row in found["directors"] for key in row["tls"]["keys"] if key["state"] == "seals"}
    assert len(sealing) == 1
    assert not sealing & before
    for worker in shop.workers:
        assert browser.visit(worker, session=early), "the key before opens"
    assert browser.visit("director-2"), "and so does the new one"
    shop.kill("director-3")
    assert browser.visit("director-3")
    assert {key["name"] for key in shop.of("director-3")["keys"] if key["state"] == "seals"} == sealing


def test_a_ticket_outlives_the_period_of_its_key_and_not_its_own_life(
    farm: Callable[..., Farm], tmp_path: Path
) -> None:
    shop = TlsFarm(farm, tmp_path, "--tls-ticket-period", "4s", "--tls-session-lifetime", "6s")
    browser = Browser(shop, TLS_1_3)
    began = time.time()
    assert not browser.visit("director-1")
    early = browser.session
    ends = (began // 4 + 1) * 4
    time.sleep(max(0.0, ends + 0.5 - time.time()))
    resumed = browser.visit("director-2", session=early)
    assert resumed or time.time() > ends + 6, "the period is over, the ticket is not"
    for _ in range(3):
        time.sleep(2.0)
        assert all(row["tls"]["has_the_key"] for row in shop.tls()["directors"]), "the next key is told ahead"
    time.sleep(max(0.0, ends + 11 - time.time()))
    assert not browser.visit("director-2", session=early)
    assert browser.visit("director-1")


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Callable[..., TlsFarm]]:
    """Farms as on machines of their own: other run directories, the same keys, one Redis for all."""
    keys, started = secrets.token_urlsafe(32), []

    def start(name: str, redis_port: int, *arguments: str) -> TlsFarm:
        folder = tmp_path / name
        folder.mkdir()
        (folder / "counter.py").write_text(COUNTER_APP)

        def begin(*more: str) -> Farm:
            words = ("counter:app", "--port", "0", "--stop-grace", "5", *more, *arguments)
            started.append(Farm(folder, words, {"COATCHECK_KEYS": keys}))
            started[-1].wait_running()
            return started[-1]

        return TlsFarm(begin, tmp_path, "--session-server", f"redis://127.0.0.1:{redis_port}")

    yield start
    for each in started:
        each.end()


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[Callable[[int], subprocess.Popen[bytes]]]:
    running = []

    def start(port: int) -> subprocess.Popen[bytes]:
        running.append(start_redis(port, tmp_path))
        return running[-1]

    yield start
    for each in running:
        each.kill()
        each.wait(PATIENCE_S)


@pytest.mark.parametrize("end", ["director", "end-to-end"])
@pytest.mark.parametrize("sharing", ["ticket-keys", "take-once"])
def test_two_machines_with_the_same_session_servers_resume_each_others_sessions(
    machine: Callable[..., TlsFarm], redis: Callable[[int], subprocess.Popen[bytes]], sharing: str, end: str
) -> None:
    redis(port := free_port())
    how = TAKE_ONCE_PATIENTLY if sharing == "take-once" else ("--tls-sharing", sharing)
    here, there = (machine(name, port, *how, "--tls", end) for name in ("here", "there"))
    browser = Browser(here, TLS_1_3)
    assert not browser.visit()
    early = browser.session
    for shop in (there, here, there):
        if sharing == "take-once":
            browser.farm.settle()
        browser.farm = shop
        assert browser.visit()
    again = browser.visit(session=early)
    assert again == (sharing == "ticket-keys"), "one way it is resumed as often as it is shown, the other way once"


def test_ticket_keys_are_shared_while_the_session_servers_are_away(
    machine: Callable[..., TlsFarm], redis: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    """No handshake asks them."""
    server = redis(port := free_port())
    here, there = machine("here", port), machine("there", port)
    browser = Browser(here, TLS_1_3)
    assert not browser.visit()
    assert here.tls()["stores"] == {"session-1": True}
    server.kill()
    server.wait(PATIENCE_S)
    browser.farm = there
    assert browser.shake(browser.session), "the app has no sessions now, and TLS has"
    browser.farm = here
    assert browser.shake(browser.session)


def test_sessions_on_outside_servers_that_hang_cost_full_handshakes(
    machine: Callable[..., TlsFarm], redis: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    server = redis(port := free_port())
    shop = machine("here", port, *TAKE_ONCE)
    browser = Browser(shop, TLS_1_3)
    assert not browser.visit()
    shop.settle()
    server.send_signal(signal.SIGSTOP)
    try:
        for _ in range(5):
            assert not browser.shake(browser.session)
    finally:
        server.send_signal(signal.SIGCONT)

    def resumes() -> bool:
        browser.session = None
        browser.shake(None)
        shop.settle()
        return browser.shake(browser.session)

    eventually(resumes, "a session that is stored and taken again")


def sealing(shop: TlsFarm) -> set[str]:
    """The names of the keys that its directors seal with."""
    return {key["name"] for row in shop.tls()["directors"] for key in row["tls"]["keys"] if key["state"] == "seals"}


def test_new_keys_of_one_machine_are_those_of_all(
    machine: Callable[..., TlsFarm], redis: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    redis(port := free_port())
    often = ("--tls-ticket-period", "1m", "--tls-session-lifetime", "10m")
    here, there = machine("here", port, *often), machine("there", port, *often)
    browser = Browser(here, TLS_1_3)
    assert not browser.visit()
    old = sealing(here)
    assert here.running.run("tls", "rotate-ticket-keys").returncode == 0
    assert not sealing(here) & old
    eventually(lambda: sealing(there) == sealing(here), "the new key on the other machine")
    assert browser.visit()
    browser.farm = there
    assert browser.visit()
    assert not sealing(there) & old


def test_a_machine_that_starts_without_its_session_servers_shares_among_its_own_workers(
    machine: Callable[..., TlsFarm], redis: Callable[[int], subprocess.Popen[bytes]]
) -> None:
    shop = machine("here", port := free_port(), "--tls-ticket-period", "30s")
    browser = Browser(shop, TLS_1_3)
    assert not browser.shake(None, "director-1")
    assert browser.shake(browser.session, "director-2")
    assert shop.tls()["stores"] == {"session-1": False}
    assert "session-1 does not answer" in shop.running.run("tls", "status").stdout
    redis(port)
    eventually(lambda: shop.tls()["stores"] == {"session-1": True}, "the agreement with the session server")
    browser.farm = machine("there", port, "--tls-ticket-period", "30s")
    assert browser.shake(browser.session), "what the first had meanwhile is what all have"


def test_a_director_that_was_frozen_hears_of_the_new_key_when_it_goes_on(
    farm: Callable[..., Farm], tmp_path: Path
) -> None:
    shop = TlsFarm(farm, tmp_path, "--tls-ticket-period", "10s", "--tls-session-lifetime", "10m")
    frozen = shop.running.pid("director-2")
    os.kill(frozen, signal.SIGSTOP)
    try:
        done = shop.running.run("tls", "rotate-ticket-keys", "--timeout", "1s")
    finally:
        os.kill(frozen, signal.SIGCONT)
    assert done.returncode == 0, done.stderr
    assert "director-2 could not be told yet" in done.stderr

    def alike() -> bool:
        one, other = (row["tls"]["keys"] for row in shop.tls()["directors"])
        return bool(one == other)

    eventually(alike, "the same keys at both")


@both_versions
def test_with_take_once_every_worker_resumes_once_also_after_a_death_and_after_a_new_key(
    farm: Callable[..., Farm], tmp_path: Path, version: ssl.TLSVersion
) -> None:
    shop = TlsFarm(farm, tmp_path, *TAKE_ONCE_PATIENTLY, workers=3)
    browser = Browser(shop, version)
    assert not browser.visit("director-1")
    early = browser.session
    for worker in ("director-2", "director-3", "director-1"):
        shop.settle()
        assert browser.visit(worker), worker
    if version is TLS_1_3:  # in TLS 1.2 a session moves along with its ID
        assert not browser.visit("director-2", session=early), "it was taken before"
    kept = str(tmp_path / "session.pem")
    with shop.only("director-2"):
        assert "New, TLSv1" in s_client(shop, version, "-sess_out", kept)
    shop.settle()
    with shop.only("director-3"):
        assert "Reused, TLSv1" in s_client(shop, version, "-sess_in", kept)

    browser.visit("director-1")
    shop.settle()
    shop.kill("director-1")
    assert browser.visit("director-1"), "its session was not in its memory"
    shop.settle()
    assert shop.running.run("keys", "rotate").returncode == 0
    assert browser.visit("director-2"), "what the old key sealed opens"
    shop.settle()
    shop.kill("director-3")
    assert browser.visit("director-3"), "and it has the new one"
    shop.settle()
    assert browser.visit("director-1"), "as the others have"
    done = shop.running.run("tls", "rotate-ticket-keys")
    assert (done.returncode, done.stdout) == (1, "")
    assert "sessions are stored, and no ticket carries one" in done.stderr


def test_of_many_that_show_one_session_one_gets_it(farm: Callable[..., Farm], tmp_path: Path) -> None:
    shop = TlsFarm(farm, tmp_path, *TAKE_ONCE_PATIENTLY, workers=3)
    browser = Browser(shop, TLS_1_3)
    for _ in range(4):
        browser.visit()
        offered = browser.session
        shop.settle()
        connections = [socket.create_connection(("127.0.0.1", shop.port), timeout=PATIENCE_S) for _ in range(12)]
        with ThreadPoolExecutor(len(connections)) as pool:
            resumed = list(pool.map(functools.partial(browser.shake_hands, offered=offered), connections))
        assert sum(resumed) == 1
        assert not browser.visit(session=offered)


def test_a_store_of_sessions_that_hangs_or_dies_costs_full_handshakes_and_stops_nobody(
    farm: Callable[..., Farm], tmp_path: Path
) -> None:
    shop = TlsFarm(farm, tmp_path, *TAKE_ONCE, workers=1)
    browser = Browser(shop, TLS_1_3)
    browser.visit()
    shop.settle()
    store = shop.running.pid("tls-sessions")
    os.kill(store, signal.SIGSTOP)
    offering = threading.Thread(target=browser.visit)
    offering.start()
    others = [Browser(shop, TLS_1_3).visit() for _ in range(5)]
    offering.join()
    assert others == [False] * 5, "served, though the store says nothing"
    os.kill(store, signal.SIGCONT)
    os.kill(store, signal.SIGKILL)
    assert browser.visit() in (False, True)
    shop.running.wait_replaced("tls-sessions", store)
    eventually(lambda: all(shop.of("director-1")["stores"].values()), "the link to the new store")
    browser.session = None
    assert not browser.visit()
    shop.settle()
    assert browser.visit()
    assert shop.of("director-1")["unavailable"] > 0
    status = shop.running.healthy_status()
    assert [(row["name"], row["items"] > 0) for row in status["tls_sessions"]] == [("tls-sessions", True)]


def test_what_was_fetched_for_a_handshake_that_failed_is_nobodys(farm: Callable[..., Farm], tmp_path: Path) -> None:
    shop = TlsFarm(farm, tmp_path, *TAKE_ONCE_PATIENTLY, workers=1)
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
    found = shop.of("director-1")
    assert (found["ahead"], found["offered"], found["gone"]) == (0, 0, 0), "OpenSSL did not come to ask for it"
    assert not browser.visit(), "it was taken"
    assert shop.of("director-1")["gone"] == 1


def test_half_a_hello_has_the_time_of_a_handshake_and_no_more(farm: Callable[..., Farm], tmp_path: Path) -> None:
    """Whether nothing comes, or its beginning: looking at it before the handshake lifts no bound of the director."""
    shop = TlsFarm(farm, tmp_path, *TAKE_ONCE, "--tls-handshake-timeout", "1s", "--max-handshakes", "4", workers=1)
    began = time.monotonic()
    silent = [socket.create_connection(("127.0.0.1", shop.port), timeout=PATIENCE_S) for _ in range(3)]
    silent[0].sendall(b"\x16\x03\x01\x02\x00\x01")
    assert not Browser(shop, TLS_1_3).visit(), "others are served meanwhile"
    for each in silent:
        with contextlib.suppress(ConnectionResetError):
            assert each.recv(1) == b""
        each.close()
    assert time.monotonic() - began >= 0.9
    many = [socket.create_connection(("127.0.0.1", shop.port), timeout=PATIENCE_S) for _ in range(6)]
    errors = shop.running.status()["director"][0]["details"]["errors"]
    assert errors["too_many_handshakes"] == 2
    assert errors["handshake_failed"] >= 3
    for each in many:
        each.close()


def test_with_off_each_worker_resumes_its_own_and_there_is_nothing_to_rotate(
    farm: Callable[..., Farm], tmp_path: Path
) -> None:
    shop = TlsFarm(farm, tmp_path, "--tls-sharing", "off")
    browser = Browser(shop, TLS_1_3)
    assert not browser.visit("director-1")
    assert browser.visit("director-1")
    assert not browser.visit("director-2")
    done = shop.running.run("tls", "rotate-ticket-keys")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("coatcheck: tls: there are no ticket keys to rotate: tls_sharing is off")
    assert "TLS sessions are not shared" in shop.running.run("tls", "status").stdout
    seen = {row["name"]: (row["tls"]["handshakes"], row["tls"]["resumed"]) for row in shop.tls()["directors"]}
    assert seen == {"director-1": (2, 1), "director-2": (1, 0)}


@pytest.mark.parametrize("wish", ["ticket-keys", "take-once"])
def test_with_another_openssl_a_farm_serves_and_says_that_nothing_is_shared(
    farm: Callable[..., Farm], tmp_path: Path, wish: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import ssl\nssl.OPENSSL_VERSION = 'LibreSSL 3.9'\n")
    path = f"{tmp_path}:{SOURCE}"
    shop = TlsFarm(farm, tmp_path, "--tls-sharing", wish, PYTHONPATH=path)
    browser = Browser(shop, TLS_1_3)
    assert not browser.visit("director-1")
    assert browser.visit("director-1")
    assert not browser.visit("director-2")
    why = "LibreSSL 3.9 is not OpenSSL 3.0 or newer"
    assert f"director-1: TLS sessions are not shared with the other director workers: {why}" in shop.running.log
    assert f"director-2 shares no TLS sessions: {why}" in shop.running.run("status").stdout
    assert f"director-2: {why}" in shop.running.run("tls", "status").stdout
    server = str(tmp_path / "server.pem")
    files = ("--tls-certificate", server, "--tls-key", server, "--tls-sharing", wish, "--run-dir", "other")
    checked = shop.running.run("check", "counter:app", *files, PYTHONPATH=path)
    assert f"weak: tls_sharing: this Python cannot: {why}" in checked.stdout


def test_a_farm_without_tls_says_so(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1")
    assert running.run("tls", "status").stdout.startswith("this farm speaks no TLS")
    done = running.run("tls", "rotate-ticket-keys")
    assert (done.returncode, done.stdout) == (1, "")
    assert "this farm speaks no TLS" in done.stderr


@pytest.mark.parametrize("sharing", ["ticket-keys", "take-once"])
def test_a_director_holds_neither_the_key_ring_nor_the_session_servers_password(
    farm: Callable[..., Farm], tmp_path: Path, sharing: str
) -> None:
    """Whoever takes a director over has the TLS sessions, and no key to the app's."""
    shop = TlsFarm(farm, tmp_path, "--tls-sharing", sharing)
    assert not Browser(shop, TLS_1_3).visit("director-1")
    ring = load(tmp_path / ".coatcheck" / "keys.json")
    held = memory_of(shop.running.pid("web-1"))
    assert ring.keys[0] in held, "where it belongs it is found in this way"
    assert ring.session_server_password.encode() in held
    for worker in shop.workers:
        held = memory_of(shop.running.pid(worker))
        assert shop.running.note()["name"].encode() in held
        for secret in ring.keys:
            for form in (secret, secret.hex().encode()):
                assert form not in held
        assert ring.session_server_password.encode() not in held
