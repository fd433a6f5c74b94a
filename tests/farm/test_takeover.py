"""``serve --tls end-to-end --takeover``: a TLS connection outlives the web server that made it (mission C1, C6, C7)."""

from __future__ import annotations

import http.client
import json
import os
import random
import signal
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from .farm_process import DEADLINE_S, Farm, eventually
from .live_crowd import BIG, HUGE, LIVE_APP, Client, LiveCrowd, client
from .live_kills import CLIENTS, WEB_SERVERS, counts, kill_at_random

KILLS = 25
"""A thousand: ``farm/live_kills.py``."""

Certificate = tuple[Path, Path]
Start = Callable[..., Farm]


@pytest.fixture
def start(tmp_path: Path, farm: Start, certificate: Certificate) -> Start:
    (tmp_path / "live.py").write_text(LIVE_APP)
    tls = ("--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1]), "--no-insecure-localhost")
    end = ("--tls", "end-to-end", "--takeover")
    return lambda *arguments, end=end: farm(*tls, *end, *arguments, app="live:app")


def kill(farm: Farm, name: str) -> None:
    os.kill(farm.pid(name), signal.SIGKILL)


@pytest.mark.serial
def test_web_servers_are_killed_under_fifty_connections_and_no_client_notices(
    start: Start, certificate: Certificate
) -> None:
    farm = start("--web", str(WEB_SERVERS))
    with LiveCrowd(farm, certificate, CLIENTS, posts=False) as crowd:
        kill_at_random(farm, crowd, KILLS, random.Random(8))
    assert crowd.problems == []
    assert crowd.answered > 20 * CLIENTS
    assert crowd.moved > CLIENTS
    found = counts(farm)
    assert found["taken_over"] >= crowd.moved
    assert found["broken_off"] == 0


@pytest.mark.serial
def test_draining_moves_live_connections_and_nothing_fails(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "3", "--director-workers", "2")
    with LiveCrowd(farm, certificate, CLIENTS, posts=True) as crowd:
        for name in ("web-1", "web-2", "web-3", "web-1"):
            done = farm.run("drain", name)
            assert done.returncode == 0, done.stderr
            assert "is drained" in done.stdout
            assert farm.run("admit", name).returncode == 0
            eventually(lambda name=name: farm.state(name) == "ready", "its return")  # type: ignore[misc]
    assert crowd.problems == []
    assert crowd.moved > CLIENTS
    rows = [row["details"] for row in farm.healthy_status()["director"]]
    found = {name: sum(row[name] for row in rows) for name in ("moved", "taken_over", "broken_off")}
    assert found == {"moved": found["moved"], "taken_over": 0, "broken_off": 0}
    assert found["moved"] >= crowd.moved


def test_an_idle_connection_goes_on_and_its_session_with_it(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "2")
    one = client(farm, certificate)
    assert [json.loads(one.ask("POST", "/count")[1])["count"] for _ in range(2)] == [1, 2]
    before = one.see()
    assert (before["scheme"], before["client"]) == ("https", "127.0.0.1")
    kill(farm, before["server"])
    # Also a request that must not be sent twice: nobody has had it.
    assert json.loads(one.ask("POST", "/count")[1])["count"] == 3
    after = one.see()
    assert after["server"] != before["server"]
    assert one.is_the_first


def test_a_request_in_flight_is_done_again_only_if_it_may_be(
    start: Start, tmp_path: Path, certificate: Certificate
) -> None:
    farm = start("--web", "3")
    carried_out = tmp_path / "carried_out"
    requests: dict[str, dict[str, str]] = {"GET": {}, "POST": {}, "PUT": {}, "keyed": {"Idempotency-Key": '"8e03978e"'}}
    clients = {mark: client(farm, certificate) for mark in requests}
    # One server has up to four connections of one address: a fifth that ends may still be counted.
    server = clients["GET"].see()["server"]
    outcomes: dict[str, tuple[int, bytes]] = {}

    def ask(mark: str) -> None:
        method = mark if mark != "keyed" else "POST"
        outcomes[mark] = clients[mark].ask(method, f"/once/{mark}", b"x" * 100, **requests[mark])

    threads = [threading.Thread(target=ask, args=(mark,)) for mark in requests]
    for thread in threads:
        thread.start()
    eventually(lambda: carried_out.exists() and len(carried_out.read_text().split()) == 4, "four requests in flight")
    kill(farm, server)
    eventually(lambda: len(carried_out.read_text().split()) == 7, "three of them done again")
    (tmp_path / "release").touch()
    for thread in threads:
        thread.join(DEADLINE_S)
    assert {mark: status for mark, (status, _) in outcomes.items()} == {
        "GET": 200,
        "PUT": 200,
        "keyed": 200,
        "POST": 502,
    }
    marks = carried_out.read_text().split()
    assert {mark: marks.count(mark) for mark in requests} == {"GET": 2, "PUT": 2, "keyed": 2, "POST": 1}


def slow_reader(farm: Farm, certificate: Certificate, path: str) -> tuple[ssl.SSLSocket, bytes]:
    """A client that has read the head of a long response and no more."""
    host, _, port = str(farm.note()["address"]).rpartition(":")
    context = ssl.create_default_context(cafile=str(certificate[0]))
    plain = socket.socket()
    plain.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
    plain.settimeout(DEADLINE_S)
    plain.connect((host, int(port)))
    reader = context.wrap_socket(plain, server_hostname=host)
    reader.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}:{port}\r\n\r\n".encode())
    begun = b""
    while b"\r\n\r\n" not in begun:
        begun += reader.recv(1 << 12)
    return reader, begun


def read_on(reader: ssl.SSLSocket, begun: bytes) -> bytes:
    body = begun.partition(b"\r\n\r\n")[2]
    while len(body) < len(HUGE) and (piece := reader.recv(1 << 16)):
        body += piece
    return body


def test_the_rest_of_a_response_comes_from_another_web_server(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "2")
    server = client(farm, certificate).see()["server"]
    reader, begun = slow_reader(farm, certificate, "/big/8/tagged")
    kill(farm, server)
    body = read_on(reader, begun)
    assert (len(body), body == HUGE) == (len(HUGE), True), (begun, farm.log[-3000:], counts(farm))
    assert counts(farm)["broken_off"] == 0


def test_a_half_response_that_may_differ_next_time_is_broken_off(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "2")
    server = client(farm, certificate).see()["server"]
    reader, begun = slow_reader(farm, certificate, "/big/8/untagged")
    kill(farm, server)
    body = b""
    with pytest.raises((ssl.SSLError, OSError)):
        body = read_on(reader, begun)
        assert len(body) < len(HUGE), "it must not look whole"
        raise ssl.SSLEOFError("the connection ended")
    assert counts(farm)["broken_off"] == 1


def test_a_frozen_web_server_is_given_up_and_its_connections_go_on(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "2", "--unresponsive-after", "1s")
    one = client(farm, certificate)
    before = one.see()
    os.kill(farm.pid(before["server"]), signal.SIGSTOP)
    after = one.see()
    assert after["server"] != before["server"]
    assert one.is_the_first


def test_curl_goes_on_in_the_midst_of_its_download(start: Start, certificate: Certificate, tmp_path: Path) -> None:
    farm = start("--web", "2")
    server = client(farm, certificate).see()["server"]
    url = f"https://{farm.note()['address']}"
    command = ["curl", "--silent", "--show-error", "--fail", "--cacert", str(certificate[0]), "--limit-rate", "4M"]
    paths = [word for path in ("/big/8/tagged", "/hello") for word in ("-o", path.replace("/", "-")[1:], url + path)]
    with subprocess.Popen([*command, "--verbose", *paths], cwd=tmp_path, stderr=subprocess.PIPE) as curl:
        eventually(lambda: (tmp_path / "big-8-tagged").exists(), "the first bytes")
        kill(farm, server)
        said = curl.communicate(timeout=DEADLINE_S)[1].decode()
    assert curl.returncode == 0, said
    assert (tmp_path / "big-8-tagged").read_bytes() == HUGE
    assert said.count("SSL connection using") == 1, "one handshake"
    assert json.loads((tmp_path / "hello").read_text())["server"] != server
    assert counts(farm) == {"taken_over": 1, "moved": 0, "broken_off": 0}


def test_with_one_web_server_connections_wait_for_its_return(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "1", "--no-server-wait", "60s")
    one = client(farm, certificate)
    before = one.see()
    kill(farm, "web-1")
    after = one.see()
    assert (after["server"], after["pid"] == before["pid"]) == ("web-1", False)
    assert one.is_the_first


def test_keys_are_rotated_and_live_connections_go_on(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "2")
    one = client(farm, certificate)
    before = one.see()
    done = farm.run("keys", "rotate")
    assert done.returncode == 0, done.stderr
    kill(farm, before["server"])
    assert one.see()["server"] != before["server"]
    assert one.is_the_first


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
def test_a_new_connection_resumes_the_session_of_a_dead_web_server(
    start: Start, certificate: Certificate, version: ssl.TLSVersion
) -> None:
    farm = start("--web", "2")
    host, _, port = str(farm.note()["address"]).rpartition(":")
    context = ssl.create_default_context(cafile=str(certificate[0]))
    context.minimum_version = context.maximum_version = version

    def visit(session: ssl.SSLSession | None) -> tuple[str, ssl.SSLSession | None, bool]:
        with socket.create_connection((host, int(port)), DEADLINE_S) as plain:
            tls = context.wrap_socket(plain, server_hostname=host, session=session)
            tls.sendall(f"GET /hello HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode())
            said = b"".join(iter(lambda: tls.recv(1 << 12), b""))
            return json.loads(said.partition(b"\r\n\r\n")[2])["server"], tls.session, bool(tls.session_reused)

    server, session, reused = visit(None)
    assert not reused
    kill(farm, server)
    other, _, reused = visit(session)
    assert (other != server, reused) == (True, True)


def test_tls_1_2_is_served_and_ends_with_its_web_server(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "2")
    one = client(farm, certificate, ssl.TLSVersion.TLSv1_2)
    before = one.see()
    assert one.ask("GET", "/big/1/tagged") == (200, BIG)
    kill(farm, before["server"])
    with pytest.raises((http.client.HTTPException, OSError)):
        one.see()


def test_without_takeover_a_connection_ends_with_its_web_server(start: Start, certificate: Certificate) -> None:
    farm = start("--web", "2", end=("--tls", "end-to-end"))
    one: Client = client(farm, certificate)
    before = one.see()
    assert one.ask("GET", "/big/1/tagged") == (200, BIG)
    kill(farm, before["server"])
    with pytest.raises((http.client.HTTPException, OSError)):
        one.see()
    assert client(farm, certificate).see()["server"] != before["server"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("--takeover",), "takeover: only with tls = end-to-end"),
        (("--tls", "end-to-end"), "tls: end-to-end needs tls_certificate"),
        (("--tls", "end"), "tls: "),
    ],
)
def test_a_wrong_setting_is_one_clear_line(command: Farm, arguments: tuple[str, ...], line: str) -> None:
    done = command.run("serve", "counter:app", "--port", "0", *arguments)
    assert done.returncode == 2
    assert line in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
