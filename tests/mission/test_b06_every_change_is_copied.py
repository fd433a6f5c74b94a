"""B6: "All cached session data is copied to the session servers as it changes."

A response says that its change is stored. To see that the copies were there before it, and did not follow it, the
web server is frozen the moment that the first byte of the response arrives; and the other way round, with a session
server frozen no response comes.
"""

from __future__ import annotations

import os
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import pytest

from .conftest import StartFarm
from .crowd import crowd_of, holders
from .mission_farm import COOKIE, Browser, MissionFarm

VISITORS = 10
CHANGES = 8
SILENCE_S = 0.5
"""How long a session server is frozen: a write that did not wait for it would be answered in a few ms."""


@pytest.fixture(scope="module")
def farm(start: StartFarm) -> MissionFarm:
    return start("--web", "2", "--session-servers", "2")


def put_and_freeze(farm: MissionFarm, server: str, cookie: str, value: str) -> int:
    """Send a change straight to a web server and stop it with the response's first byte; returns its pid."""
    pid = farm.pid(server)
    body = f'"{value}"'
    request = (
        f"PUT /change HTTP/1.1\r\nHost: localhost\r\nCookie: {COOKIE}={cookie}\r\n"
        f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n{body}"
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(60)
        connection.connect(farm.socket_of(server))
        connection.sendall(request.encode())
        first = connection.recv(1)
        os.kill(pid, signal.SIGSTOP)
        rest = connection.recv(65_536)
    assert (first + rest).startswith(b"HTTP/1.1 200 "), first + rest
    return pid


def test_the_copies_are_there_before_the_response(farm: MissionFarm) -> None:
    with Browser(farm, "web-1") as browser:
        browser.put("cart", "tea")
        key, cookie = browser.key, browser.cookie
    for number in range(CHANGES):
        pid = put_and_freeze(farm, "web-1", cookie, f"value {number}")
        try:
            copies = farm.copies_of(key)
        finally:
            os.kill(pid, signal.SIGCONT)
        assert sorted(copies) == farm.names("session")
        assert all(copy.data == {"cart": "tea", "change": f"value {number}"} for copy in copies.values())


def test_no_response_before_each_copy_is_acknowledged(start: StartFarm) -> None:
    farm = start("--web", "1", "--session-servers", "2", "--store-timeout", "30s")
    with Browser(farm) as browser, ThreadPoolExecutor(1) as thread:
        browser.put("cart", "tea")
        for frozen in farm.names("session"):
            with farm.frozen(frozen):
                answer = thread.submit(browser.put, "cart", frozen)
                with pytest.raises(TimeoutError):
                    answer.result(SILENCE_S)
            assert answer.result(60)["data"] == {"cart": frozen}
            copies = farm.copies_of(browser.key)
            assert sorted(copies) == farm.names("session")
            assert all(copy.data == {"cart": frozen} for copy in copies.values())


def test_every_kind_of_change_is_copied(farm: MissionFarm) -> None:
    with Browser(farm) as browser:
        changes = [
            ("PUT", "/cart", {"tea": 1}, {"cart": {"tea": 1}}),
            ("PUT", "/cart", {"tea": 2}, {"cart": {"tea": 2}}),
            ("POST", "/append/a", None, {"cart": {"tea": 2}, "nested": {"list": ["a"]}}),
            ("POST", "/append-deep/b", None, {"cart": {"tea": 2}, "nested": {"list": ["a", "b"]}}),
            ("DELETE", "/cart", None, {"nested": {"list": ["a", "b"]}}),
        ]
        for method, path, body, data in changes:
            assert browser.request(method, path, json=body).json()["data"] == data
            copies = farm.copies_of(browser.key)
            assert sorted(copies) == farm.names("session")
            assert all(copy.data == data for copy in copies.values())


def test_all_sessions_of_all_web_servers_are_copied(farm: MissionFarm) -> None:
    with crowd_of(farm, VISITORS) as crowd:
        assert {visitor.server for visitor in crowd} == {"web-1", "web-2"}
        for number in range(3):
            for visitor in crowd:
                visitor.put(f"item {number}", ["x" * 1000, number])
            holdings = farm.holdings()
            for visitor in crowd:
                assert holders(holdings, visitor) == set(farm.names("session"))
    assert sum(row["under_replicated"] for row in farm.status()["web_servers"]) == 0
