"""Live connections in trouble: clients that do not read, come and go, change keys; drains, stops, keys and outages."""

from __future__ import annotations

import json
import os
import signal
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from .farm_process import DEADLINE_S, Farm, eventually
from .live_crowd import BIG, LIVE_APP
from .live_kills import counts
from .live_wire import Certificate, KeyChanger, Wire, connected, half_shaken, request, wait_stalled

APP = (
    LIVE_APP
    + """
async def done(request):
    with open("carried_out", "a") as file:
        file.write(request.path_params["mark"] + "\\n")
    return await answer(request)

async def sized(request):
    size = int(request.path_params["size"])
    return Response((BIG * (size // len(BIG) + 1))[:size], headers={"etag": '"as-ever"'})

app.router.routes[:0] = [Route("/done/{mark}", done, methods=METHODS), Route("/sized/{size}", sized)]
while os.path.exists("hold-start"):
    __import__("time").sleep(0.02)
"""
)
TLS_1_2, TLS_1_3 = ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3
TAKEOVER = ("--tls", "end-to-end", "--takeover")
KEPT_BY_ONE_SERVER = [
    pytest.param(TAKEOVER, TLS_1_2, id="tls-1.2"),
    pytest.param(("--tls", "end-to-end"), TLS_1_3, id="no-takeover"),
]
"""Connections with which no other web server can go on, so that the director knows less of them."""

Start = Callable[..., Farm]
Connect = Callable[..., Wire]


@pytest.fixture
def start(tmp_path: Path, farm: Start, certificate: Certificate) -> Start:
    (tmp_path / "live.py").write_text(APP)
    tls = ("--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1]), "--no-insecure-localhost")
    return lambda *arguments, end=TAKEOVER: farm(*tls, *end, "--session-servers", "1", *arguments, app="live:app")


@pytest.fixture
def connect(certificate: Certificate) -> Iterator[Connect]:
    wires: list[Wire] = []

    def one(farm: Farm, version: ssl.TLSVersion = TLS_1_3, **how: bool) -> Wire:
        wires.append(Wire(farm, certificate, version, **how))
        return wires[-1]

    yield one
    for wire in wires:
        wire.close()


@pytest.fixture
def carried_out(tmp_path: Path) -> Callable[[], list[str]]:
    """The marks of requests that were begun, as often as they were."""
    file = tmp_path / "carried_out"
    return lambda: file.read_text().split() if file.exists() else []


def kill(farm: Farm, name: str) -> None:
    os.kill(farm.pid(name), signal.SIGKILL)


def details(farm: Farm) -> dict[str, Any]:
    found: dict[str, Any] = farm.healthy_status()["director"][0]["details"]
    return found


def entrances(farm: Farm) -> list[dict[str, Any]]:
    """What happens behind the TLS of each web server."""
    return [row["tls"]["entrance"] for row in farm.healthy_status()["web_servers"]]


# Clients that do not read


def test_a_post_behind_an_answer_that_nobody_reads_is_carried_out_once(
    start: Start, connect: Connect, carried_out: Callable[[], list[str]]
) -> None:
    farm = start("--web", "2")
    witness = connect(farm)
    server = witness.see()["server"]
    # How much lies in kernels and buffers is theirs to say: with one of these sizes the answer has left the web server
    # for the most part, and there is no room for one word more.
    sizes = [2_400_000 + 150_000 * n for n in range(12)]
    late = [connect(farm) for _ in sizes]
    for wire, size in zip(late, sizes, strict=True):
        wire.send(request("GET", f"/sized/{size}"))
    wait_stalled(*late)
    for n, wire in enumerate(late):
        wire.send(request("POST", f"/done/{n}", b"x" * 10))
    for _ in range(5):
        # What came before these has been looked at, by the director and by the web server.
        assert witness.see()["server"] == server
    kill(farm, server)
    for n, (wire, size) in enumerate(zip(late, sizes, strict=True)):
        status, _, body = wire.answer()
        assert (status, len(body)) == (200, size)
        status, _, body = wire.answer()
        assert (status, json.loads(body)["path"]) == (200, f"/done/{n}")
    assert sorted(carried_out(), key=int) == [str(n) for n in range(len(sizes))]


def test_a_body_behind_an_answer_that_nobody_reads_does_not_fill_the_memory(start: Start, connect: Connect) -> None:
    farm = start("--web", "1")
    wire = connect(farm)
    wire.send(request("GET", "/big/16/untagged"))
    wait_stalled(wire)
    before = memory_mb(farm.pid("web-1"))
    wire.send(b"POST /hello HTTP/1.1\r\nHost: farm\r\nContent-Length: 100000000000\r\n\r\n")
    wire.socket.settimeout(1)
    sent = 0
    with pytest.raises(TimeoutError):
        while sent < 200:
            wire.send(BIG)
            sent += 1
    assert sent < 100, "megabytes were taken, and nobody reads them"
    assert memory_mb(farm.pid("web-1")) < before + 50


def memory_mb(pid: int) -> int:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) // 1024


def test_a_client_that_takes_nothing_ends_in_time_though_it_was_taken_over(start: Start, connect: Connect) -> None:
    farm = start("--web", "2", "--body-timeout", "4s")
    server = connect(farm).see()["server"]
    wire = connect(farm)
    wire.send(request("GET", "/big/16/tagged"))
    wait_stalled(wire)
    kill(farm, server)
    eventually(lambda: details(farm)["errors"]["client_timeout"], "its end")
    assert counts(farm)["taken_over"] >= 1


# Handshakes


def test_clients_that_go_before_their_handshake_leave_room_for_others(start: Start, connect: Connect) -> None:
    farm = start("--web", "2", "--max-handshakes", "4")
    for _ in range(6):
        connected(farm).close()
    for _ in range(12):
        # The web server has answered its hello.
        half_shaken(farm).close()
    for _ in range(6):
        assert connect(farm).see()["scheme"] == "https"
    eventually(lambda: details(farm)["handshakes"] == 0, "a director without handshakes")
    # Nor does a web server take those for handshakes that are under way, and so one too many.
    assert [row["errors"]["too_many_handshakes"] for row in entrances(farm)] == [0, 0]


def test_a_drain_moves_a_connection_whose_handshake_was_under_way(start: Start, connect: Connect) -> None:
    farm = start("--web", "2", "--drain-timeout", "20s")
    idle = connect(farm)
    server = idle.see()["server"]
    late = connect(farm, hold_handshake=True)
    with drained(farm, server) as outcome:
        eventually(lambda: idle.see()["server"] != server, "the drain")
        late.shake_hands()
    assert outcome == [f"{server} is drained and stopped"]
    assert late.see()["server"] != server


class drained:
    """Drains a web server beside the block; what was said of it is there behind the block."""

    def __init__(self, farm: Farm, name: str) -> None:
        self._farm, self._name = farm, name
        self._said: list[str] = []
        self._thread = threading.Thread(target=self._drain)

    def _drain(self) -> None:
        done = self._farm.run("drain", self._name)
        self._said.append(done.stdout.strip().partition(" (")[0] or done.stderr)

    def __enter__(self) -> list[str]:
        self._thread.start()
        return self._said

    def __exit__(self, *_: object) -> None:
        self._thread.join(DEADLINE_S)


# Connections of one web server alone


@pytest.mark.parametrize(("end", "version"), KEPT_BY_ONE_SERVER)
def test_what_cannot_move_is_not_taken_for_idle(
    start: Start,
    connect: Connect,
    carried_out: Callable[[], list[str]],
    tmp_path: Path,
    end: tuple[str, ...],
    version: ssl.TLSVersion,
) -> None:
    farm = start("--web", "2", "--max-connections", "4", "--stop-grace", "30s", end=end)
    busy = connect(farm, version)
    busy.send(request("GET", "/once/busy"))
    eventually(carried_out, "the request under way")
    # Newcomers make room for each other, not at the cost of the one that is busy.
    newcomers = [half_shaken(farm) for _ in range(6)]
    seen = details(farm)
    assert (seen["evicted"], seen["errors"]["too_many_handshakes"]) == (0, 3)
    for newcomer in newcomers:
        newcomer.close()
    idle = connect(farm, version)
    assert idle.see()["scheme"] == "https"
    farm.process.send_signal(signal.SIGTERM)
    assert idle.says_goodbye(), "the director stops"
    (tmp_path / "release").touch()
    status, headers, body = busy.answer()
    assert (status, json.loads(body)["path"], headers["connection"]) == (200, "/once/busy", "close")
    assert busy.says_goodbye()
    assert farm.process.wait(DEADLINE_S) == 0


def test_a_drain_says_goodbye_to_what_cannot_move(start: Start, connect: Connect) -> None:
    farm = start("--web", "2", "--drain-timeout", "20s")
    idle = connect(farm, TLS_1_2)
    server = idle.see()["server"]
    with drained(farm, server) as outcome:
        assert idle.says_goodbye()
    assert outcome == [f"{server} is drained and stopped"]


# Keys


def test_a_connection_goes_on_though_the_key_of_its_beginning_is_revoked(start: Start, connect: Connect) -> None:
    farm = start("--web", "2")
    wire = connect(farm)
    server = wire.see()["server"]
    assert farm.run("keys", "rotate").returncode == 0
    old = next(row["key"] for row in json.loads(farm.run("keys", "ls", "--json").stdout) if row["state"] == "retiring")
    assert farm.run("keys", "revoke", old, "--yes").returncode == 0
    kill(farm, server)
    assert wire.see()["server"] != server


def test_a_client_may_change_its_key_as_often_as_it_likes(
    start: Start, certificate: Certificate, tmp_path: Path, carried_out: Callable[[], list[str]]
) -> None:
    farm = start("--web", "2")
    often = KeyChanger(farm, certificate, tmp_path)
    often.send(request("POST", "/hello", b"", **{"Transfer-Encoding": "chunked"}))
    for _ in range(600):
        often.update_key(ask=False)
        often.send(b"1\r\nz\r\n")
    often.send(b"0\r\n\r\n")
    line, said = often.answer()
    assert (line, said["body"]) == (b"HTTP/1.1 200 OK", 600)
    # In the midst of a request, and then its web server dies.
    often.send(request("GET", "/once/asked"))
    eventually(carried_out, "the request under way")
    often.update_key(ask=True)
    while not often.updates:
        often.record()
    kill(farm, said["server"])
    eventually(lambda: len(carried_out()) == 2, "the request, done again")
    (tmp_path / "release").touch()
    line, again = often.answer()
    assert (line, again["path"], again["server"] != said["server"]) == (b"HTTP/1.1 200 OK", "/once/asked", True)
    assert counts(farm) == {"taken_over": 1, "moved": 0, "broken_off": 0}
    often.close()


# Outages and stops


def test_who_asks_for_nothing_waits_longer_for_a_web_server_than_who_does(
    start: Start, connect: Connect, tmp_path: Path
) -> None:
    farm = start("--web", "1")
    idle, asking = connect(farm), connect(farm)
    pids = {wire.see()["pid"] for wire in (idle, asking)}
    (tmp_path / "hold-start").touch()
    (old,) = pids
    kill(farm, "web-1")
    eventually(lambda: farm.state("web-1") != "ready", "its death")
    asking.send(request("GET", "/hello"))
    with pytest.raises(OSError, match=r"."):
        asking.answer()
    # That was --no-server-wait, and the other one has waited for longer.
    (tmp_path / "hold-start").unlink()
    farm.wait_replaced("web-1", old)
    eventually(lambda: details(farm)["servers"][0]["healthy"], "its return")
    assert idle.see()["pid"] != old


def test_at_a_stop_clients_are_told_and_no_request_is_broken(
    start: Start, connect: Connect, carried_out: Callable[[], list[str]], tmp_path: Path
) -> None:
    farm = start("--web", "2", "--stop-grace", "30s")
    held, idle = connect(farm), connect(farm)
    held.send(request("POST", "/once/held", b"x"))
    eventually(carried_out, "a request under way")
    posting = [Posting(n, connect(farm)) for n in range(8)]
    eventually(lambda: all(one.answered for one in posting), "the first answers")
    farm.process.send_signal(signal.SIGTERM)
    assert idle.says_goodbye()
    (tmp_path / "release").touch()
    status, headers, _ = held.answer()
    assert (status, headers["connection"]) == (200, "close")
    assert held.says_goodbye()
    assert farm.process.wait(DEADLINE_S) == 0
    for one in posting:
        one.thread.join(DEADLINE_S)
        assert one.end in ("told", "goodbye")
        # What was not answered, because the goodbye was under way to it, was not begun either.
        assert len([mark for mark in carried_out() if mark.startswith(f"{one.number}-")]) == one.answered


class Posting:
    """A client that posts in a loop until it is told to end."""

    def __init__(self, number: int, wire: Wire) -> None:
        self.number = number
        self.answered = 0
        self.end = ""
        self._wire = wire
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            while not self.end:
                self._wire.send(request("POST", f"/done/{self.number}-{self.answered}", b"x" * 50))
                status, headers, body = self._wire.answer()
                assert status == 200, body
                self.answered += 1
                self.end = "told" if headers["connection"] == "close" else ""
        except EOFError:
            self.end = "goodbye"
        except (OSError, AssertionError) as error:
            self.end = repr(error)


# What is seen of it


def test_the_status_shows_what_happens_in_the_web_servers(start: Start, connect: Connect) -> None:
    farm = start("--web", "2")
    good, bad = connect(farm), connect(farm)
    for _ in range(3):
        good.see()
    bad.send(b"GARBAGE\r\n\r\n")
    assert bad.answer()[0] == 400
    under_way = half_shaken(farm)
    rows = {row["name"]: row["tls"] for row in farm.healthy_status()["web_servers"]}
    here = rows.pop(good.see()["server"])
    (there,) = rows.values()
    assert (here["entrance"]["requests"], here["entrance"]["errors"]["bad_request"]) == (3, 1)
    assert (here["handshakes"], here["entrance"]["handshakes"]) == (2, 1), "done, and under way, as in a director"
    under_way.close()
    entrance = there["entrance"]
    assert (entrance["requests"], entrance["errors"]["bad_request"], entrance["connections"]) == (0, 0, 0)


def test_a_web_server_that_takes_no_connections_gets_none(start: Start, connect: Connect) -> None:
    farm = start("--web", "2")
    server = connect(farm).see()["server"]
    path = next(row["address"] for row in farm.status()["web_servers"] if row["name"] == server)
    Path(path.removeprefix("unix:").replace(".sock", "-tls.sock")).unlink()
    eventually(lambda: healthy(farm)[server] is False, "the end of its health")
    assert {connect(farm).see()["server"] for _ in range(5)} == set(healthy(farm)) - {server}
    assert healthy(farm)[server] is False, "its app's own socket is not asked"


def healthy(farm: Farm) -> dict[str, bool]:
    """The web servers as the director sees them."""
    return {row["name"]: row["healthy"] for row in details(farm)["servers"]}
