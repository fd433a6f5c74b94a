"""WebSockets whose app has opted in, while their web servers are killed, drained and logged out of (mission N15)."""

from __future__ import annotations

import os
import random
import secrets
import signal
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from certificate import make_certificate
from websocket_over_tls import websocket_over_tls

from .durable_crowd import DEADLINE_S, TALK_APP, Talking
from .farm_process import Farm, eventually

CLIENTS = 10
KILLS = 12
Start = Callable[..., Farm]


def begun(start: Start, tmp_path: Path, tls: str, *arguments: str) -> tuple[Farm, ssl.SSLContext | None]:
    (tmp_path / "talk.py").write_text(TALK_APP)
    if tls == "none":
        return start("--web", "3", *arguments, app="talk:app"), None
    chain, key = make_certificate(tmp_path)
    given = ("--tls-certificate", str(chain), "--tls-key", str(key), "--tls", tls, "--no-insecure-localhost")
    return start("--web", "3", *given, *arguments, app="talk:app"), ssl.create_default_context(cafile=chain)


def stored(farm: Farm, context: ssl.SSLContext | None, cookie: str) -> Any:
    base = farm.base if context is None else farm.base.replace("http", "https")
    verify: Any = context if context is not None else True
    return httpx.get(base, headers={"cookie": cookie}, verify=verify, timeout=DEADLINE_S).json()


def judge(farm: Farm, talking: Talking, context: ssl.SSLContext | None) -> None:
    """Each client heard each answer once, and each message has its effect in the session once."""
    assert talking.problems == []
    for talker in talking.talkers:
        assert talker.heard == talker.said > 0
        log = [f"{talker.number}-{n}" for n in range(1, talker.said + 1)]
        assert stored(farm, context, talker.cookie) == {"count": talker.said, "log": log}


def ready(farm: Farm, killed: list[int]) -> list[int]:
    """The processes of two web servers or more, but those that have been killed, which a busy farm may not know yet."""
    names = ("web-1", "web-2", "web-3")
    found = [farm.pid(name) for name in names if farm.state(name) == "ready"]
    found = [pid for pid in found if pid not in killed]
    return found if len(found) > 1 else []


@pytest.mark.parametrize("tls", ["none", "director"])
def test_kill_9_under_websockets_loses_and_doubles_no_message(farm: Start, tmp_path: Path, tls: str) -> None:
    running, context = begun(farm, tmp_path, tls)
    seed = secrets.randbits(32)
    dice = random.Random(seed)
    print("seed", seed)
    killed: list[int] = []
    with Talking(running.base, CLIENTS, context) as talking:
        for _ in range(KILLS):
            enough = talking.heard + 3 * CLIENTS
            eventually(lambda enough=enough: talking.heard > enough or talking.problems, "answers")  # type: ignore[misc]
            killed.append(dice.choice(eventually(lambda: ready(running, killed), "two web servers")))
            os.kill(killed[-1], signal.SIGKILL)
            time.sleep(dice.random() * 0.3)
    judge(running, talking, context)
    assert {server for talker in talking.talkers for server in talker.servers} == {"web-1", "web-2", "web-3"}
    details = running.healthy_status()["director"][0]["details"]
    assert details["resumed_websockets"] >= KILLS // 2


def test_draining_closes_none(farm: Start, tmp_path: Path) -> None:
    running, context = begun(farm, tmp_path, "director", "--director-workers", "2")
    with Talking(running.base, CLIENTS, context) as talking:
        for name in ("web-1", "web-2", "web-3"):
            enough = talking.heard + 3 * CLIENTS
            eventually(lambda enough=enough: talking.heard > enough or talking.problems, "answers")  # type: ignore[misc]
            done = running.run("drain", name)
            assert done.returncode == 0, done.stderr
            assert running.run("admit", name).returncode == 0
    judge(running, talking, context)


def test_with_one_web_server_they_wait_for_it_to_come_back(farm: Start, tmp_path: Path) -> None:
    (tmp_path / "talk.py").write_text(TALK_APP)
    running = farm("--web", "1", app="talk:app")
    with Talking(running.base, 2) as talking:
        for _ in range(2):
            enough = talking.heard + 20
            eventually(lambda enough=enough: talking.heard > enough or talking.problems, "answers")  # type: ignore[misc]
            old = running.pid("web-1")
            os.kill(old, signal.SIGKILL)
            running.wait_replaced("web-1", old)
    judge(running, talking, None)


def test_a_logout_ends_one_that_has_moved(farm: Start, tmp_path: Path) -> None:
    running, _ = begun(farm, tmp_path, "none")
    with connect(running.base.replace("http", "ws") + "/talk") as websocket:
        assert websocket.response is not None
        assert "x-session-durable" not in websocket.response.headers
        assert "sec-websocket-extensions" not in websocket.response.headers, "it would compress"
        cookies = websocket.response.headers.get_all("set-cookie")
        cookie = "; ".join(each.partition(";")[0] for each in cookies)
        websocket.send("a")
        name = str(websocket.recv(DEADLINE_S)).split()[2]
        os.kill(running.pid(name), signal.SIGKILL)
        websocket.send("b")
        assert str(websocket.recv(DEADLINE_S)).split()[:2] == ["2", "b"]
        done = httpx.post(f"{running.base}/logout", headers={"cookie": cookie}, timeout=DEADLINE_S)
        assert done.status_code == 200
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(DEADLINE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1008


def test_a_stop_of_the_farm_asks_them_to_connect_anew(farm: Start, tmp_path: Path) -> None:
    running, _ = begun(farm, tmp_path, "none")
    with connect(running.base.replace("http", "ws") + "/talk") as websocket:
        websocket.send("a")
        assert str(websocket.recv(DEADLINE_S)).startswith("1 a")
        running.process.send_signal(signal.SIGTERM)
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(DEADLINE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
    assert running.process.wait(DEADLINE_S) == 0
    assert "Traceback" not in running.log


@pytest.mark.parametrize("how", ["granian", "end-to-end"])
def test_where_none_can_go_on_they_are_as_any_other(farm: Start, tmp_path: Path, how: str) -> None:
    """Drained, its client is asked to connect elsewhere."""
    if how == "granian":
        running, context = begun(farm, tmp_path, "none", "--server", "granian")
    else:
        running, context = begun(farm, tmp_path, "end-to-end", "--takeover")
    address = running.base.replace("http", "ws" if context is None else "wss", 1) + "/talk"
    with connect(address) if context is None else websocket_over_tls(address, context) as websocket:
        websocket.send("a")
        count, message, name = str(websocket.recv(DEADLINE_S)).split()
        assert (count, message) == ("1", "a")
        done = running.run("drain", name)
        assert done.returncode == 0, done.stderr
        with pytest.raises(ConnectionClosed) as closed:
            websocket.recv(DEADLINE_S)
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012
