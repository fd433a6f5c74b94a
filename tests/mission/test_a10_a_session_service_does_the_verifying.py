"""A10: "A session management web service, reachable by both servers, does the verifying." """

from __future__ import annotations

import random
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from coatcheck.service.client import ServiceProblem, SessionClient
from service.pages import node, php
from service.service_process import ServiceProcess, credential_of

COUNTS = 12
"""So far each browser counts; the process is killed when each has come to a third of it."""
BROWSERS = 6


@pytest.fixture
def services(tmp_path: Path, redis_url: str) -> Iterator[list[ServiceProcess]]:
    started = [ServiceProcess(tmp_path, store=redis_url) for _ in range(2)]
    yield started
    for each in started:
        each.end()


def test_a_session_of_one_server_is_verified_at_another_one_by_the_service(
    services: list[ServiceProcess], tmp_path: Path
) -> None:
    env = {"CREDENTIAL": credential_of("shop")}
    with (
        node("client.mjs", tmp_path, SERVICE=services[0].url, **env) as server_1,
        php("client.php", tmp_path, SERVICE=services[1].url, **env) as server_2,
        httpx.Client(timeout=60, trust_env=False) as http,
    ):
        cookie = http.post(f"{server_1}/login/ada").headers["set-cookie"].partition(";")[0]
        http.cookies.clear()
        assert http.get(server_2, headers={"Cookie": cookie}).text == "ada 0"
        assert http.post(f"{server_2}/add", headers={"Cookie": cookie}).text == "1"
        assert http.get(server_1, headers={"Cookie": cookie}).text == "ada 1"
        forged = cookie[:-1] + ("A" if cookie[-1] != "A" else "B")
        assert [http.get(each, headers={"Cookie": forged}).status_code for each in (server_1, server_2)] == [401, 401]
        http.post(f"{server_2}/logout", headers={"Cookie": cookie})
        assert http.get(server_1, headers={"Cookie": cookie}).status_code == 401


class Browser(threading.Thread):
    """Counts up in its own session, over a server that asks the service; some answers get lost on their way to it."""

    def __init__(self, urls: list[str], number: int) -> None:
        super().__init__()
        self._random = random.Random(number)
        self._client = SessionClient(urls, credential_of("shop"))
        self.has_begun = threading.Event()
        self.counted = 0
        self.cookie = ""
        self.wrong: list[str] = []

    def run(self) -> None:
        try:
            self._visit()
        finally:
            self.has_begun.set()

    def _visit(self) -> None:
        with self._client:
            self.cookie = self._client.create(f"user-{self.name}").cookie or ""
            while self.counted < COUNTS:
                try:
                    given = self._client.renew(self.cookie, now=self._random.random() < 0.3)
                    if given is None:
                        self.wrong.append("logged out")
                        break
                    if given.session.data.get("n", 0) not in (self.counted, self.counted + 1):
                        self.wrong.append(f"{given.session.data} after {self.counted}")
                    self.counted = given.session.data.get("n", 0)
                    n = self.counted + 1
                    if given.cookie and self._random.random() < 0.7:
                        self.cookie = given.cookie
                    if self._client.update(self.cookie, {"n": n}, version=given.session.version):
                        self.counted = n
                        if n >= COUNTS // 3:
                            self.has_begun.set()
                except ServiceProblem as problem:
                    # 409: the first try was stored by the process that died with its answer.
                    if problem.status not in (0, 409, 503):
                        self.wrong.append(str(problem))
                        break


def test_one_of_two_processes_is_killed_under_load_and_nobody_is_logged_out(services: list[ServiceProcess]) -> None:
    urls = [each.url for each in services]
    browsers = [Browser(urls if n % 2 else urls[::-1], n) for n in range(BROWSERS)]
    for each in browsers:
        each.start()
    for each in browsers:
        each.has_begun.wait()
    services[0].process.kill()
    for each in browsers:
        each.join()
    assert [each.wrong for each in browsers] == [[]] * BROWSERS
    for each in browsers:
        seen = services[1].ask("/verify", cookie=each.cookie).json()["session"]
        assert seen["data"]["n"] - each.counted in (0, 1), "what was acknowledged is there"
    assert "session.theft" not in services[1].log.read_text()
