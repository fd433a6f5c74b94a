"""How long requests took: from the whole head to the end of the answer, by the class of its status."""

from __future__ import annotations

from typing import Any

import pytest

from coatcheck.director.rules.connection import ProxiedConnection
from coatcheck.director.rules.durations import BOUNDS_S, CLASSES, Durations
from coatcheck.director.rules.forwarding import ClientAddress
from coatcheck.director.rules.limits import Limits
from coatcheck.director.rules.routing import Health, servers_of
from coatcheck.director.rules.traffic import Traffic

REQUEST = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"


class Watch:
    """A director with one web server and one client, whose clock is set by hand."""

    def __init__(self) -> None:
        self.now = 100.0
        servers = servers_of([("web-1", "one")])
        servers[0].health = Health.HEALTHY
        self.traffic = Traffic(Limits(), servers, 0.0, max_connections=10, tls=False, clock=lambda: self.now)
        address = ClientAddress("192.0.2.1", tls=False, trusted=())
        self.machine = ProxiedConnection(self.traffic, address, can_half_close=True)
        self.machine.opened()
        self.machine.actions.clear()

    def send(self, took_s: float, *pieces: bytes) -> None:
        """Each piece of bytes from the client after so long."""
        for piece in pieces:
            self.now += took_s
            self.machine.client_bytes(piece)
            self.machine.actions.clear()

    def answer(self, took_s: float, *pieces: bytes) -> None:
        """The web server's bytes, each after so long."""
        self.machine.connected(reused=False, full=False)
        for piece in pieces:
            self.now += took_s
            self.machine.server_bytes(piece)
            self.machine.actions.clear()

    def found(self) -> dict[str, tuple[int, float]]:
        """How many requests of each class there were, and how long all of them took."""
        status = self.traffic.durations.status()
        return {name: (sum(each["counts"]), each["sum_s"]) for name, each in status.items() if any(each["counts"])}


def test_a_duration_is_from_the_whole_head_to_the_end_of_the_answer() -> None:
    watch = Watch()
    watch.send(5.0, REQUEST[:7], REQUEST[7:])
    watch.answer(0.25, b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n", b"ab", b"cd")
    assert watch.found() == {"2xx": (1, 0.75)}


def test_each_request_of_a_connection_counts_by_its_own_status() -> None:
    watch = Watch()
    for code in (b"201 A", b"304 B", b"404 C", b"503 D", b"799 E"):
        watch.send(1.0, REQUEST)
        watch.answer(0.5, b"HTTP/1.1 " + code + b"\r\nContent-Length: 0\r\n\r\n")
    assert watch.found() == {"2xx": (1, 0.5), "3xx": (1, 0.5), "4xx": (1, 0.5), "5xx": (2, 1.0)}


def test_answers_of_the_director_count_and_what_is_not_answered_does_not() -> None:
    watch = Watch()
    watch.send(1.0, b"GET /.well-known/coatcheck/health HTTP/1.1\r\nHost: a\r\n\r\n")
    assert watch.found() == {"4xx": (1, 0.0)}
    watch.send(1.0, b"POST" + REQUEST[3:])
    watch.machine.connected(reused=False, full=False)
    watch.now += 2.0
    watch.machine.client_lost()
    assert watch.found() == {"4xx": (1, 0.0)}
    assert watch.traffic.errors["client_gone"] == 1
    refused = Watch()
    refused.send(1.0, b"\x16\x03\x01\x02\x00\r\n\r\n")
    assert refused.found() == {}, "what is no request took no time"


@pytest.mark.parametrize("took_s, place", [(0.0, 0), (0.005, 0), (0.0051, 1), (10.0, 13), (10.1, 14), (1e9, 14)])
def test_a_bound_is_the_last_of_its_bucket(took_s: float, place: int) -> None:
    durations = Durations()
    durations.add(200, took_s)
    found: dict[str, Any] = durations.status()
    assert list(found) == list(CLASSES)
    assert found["2xx"]["counts"] == [int(at == place) for at in range(len(BOUNDS_S) + 1)]
