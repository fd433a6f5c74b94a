"""``coatcheck status`` and ``coatcheck sessions``: stable for programs, readable for people."""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shutil
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import httpx
import pytest

from coatcheck.farm.control.lines import ControlError
from coatcheck.farm.operations.status import farm_status
from ports import free_port

from .farm_process import Farm, eventually

if TYPE_CHECKING:
    from coatcheck.farm.supervision.supervisor import Supervisor

BASE = {"name": str, "pid": int, "address": str, "healthy": bool, "state": str, "restarts": int, "uptime_s": float}


def test_status_json_has_its_documented_shape(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2", "--session-servers", "3", "--director-workers", "2")
    with httpx.Client(base_url=running.base) as browser:
        for _ in range(4):
            browser.get("/")
    status = running.healthy_status()
    assert (status["state"], status["pid"], status["restarts"]) == ("running", running.process.pid, 0)
    assert status["uptime_s"] > 0
    assert status["address"] == running.base
    names = {
        "director": ["director-1", "director-2"],
        "web_servers": ["web-1", "web-2"],
        "session_servers": ["session-1", "session-2", "session-3"],
    }
    more = {"director": {}, "web_servers": {"sessions": int, "requests": int}, "session_servers": {"entries": int}}
    for group, expected in names.items():
        assert [row["name"] for row in status[group]] == expected
        for row in status[group]:
            for field, kind in (BASE | more[group]).items():
                assert isinstance(row[field], kind), (group, field, row[field])
    assert sum(row["requests"] for row in status["web_servers"]) == 4
    assert sum(row["sessions"] for row in status["web_servers"]) == 1
    assert sum(row["entries"] for row in status["session_servers"]) == 2


def test_status_for_people(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    running.healthy_status()
    shown = eventually(lambda: all_well(running), "a table without a trouble")
    assert re.match(r"farm farm is running on http://127.0.0.1:\d+, up \d+s", shown[0])
    assert shown[2].split() == (
        ["name", "role", "pid", "address", "health", "sessions", "copies", "requests", "restarts", "uptime"]
    )
    assert [line.split()[0] for line in shown[3:]] == ["director-1", "web-1", "web-2", "session-1", "session-2"]


def all_well(running: Farm) -> list[str]:
    shown = running.run("status").stdout.splitlines()
    return shown if all(" ok " in line for line in shown[3:]) else []


def test_a_frozen_process_is_shown_as_not_healthy(farm: Callable[..., Farm]) -> None:
    import os

    running = farm("--web", "2", "--unresponsive-after", "30")
    os.kill(running.pid("web-1"), signal.SIGSTOP)
    row = running.status()["web_servers"][0]
    assert (row["name"], row["healthy"], row["sessions"]) == ("web-1", False, None)
    assert "no answer" in running.run("status").stdout


def test_watch_ends_with_the_farm_or_ctrl_c(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1")
    import sys

    from .farm_process import environment

    watching = subprocess.Popen(
        [sys.executable, "-m", "coatcheck.cli", "status", "--json", "--watch"],
        cwd=running.directory,
        env=environment(),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert watching.stdout is not None
    for _ in range(2):
        while '"session_servers"' not in (line := watching.stdout.readline()):
            assert line, "it ended"
    watching.send_signal(signal.SIGINT)
    watching.communicate(timeout=60)
    assert watching.returncode in (0, 1, 130)


def test_sessions_are_listed_shown_and_closed(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "2")
    assert running.run("sessions", "ls").stdout == "no sessions\n"
    with httpx.Client(base_url=running.base) as browser:
        for _ in range(3):
            browser.get("/")
        listed = json.loads(running.run("sessions", "ls", "--json").stdout)
        assert len(listed) == 1
        key = listed[0]["key"]
        assert key in running.run("sessions", "ls").stdout
        shown = json.loads(running.run("sessions", "show", key).stdout)
        assert shown["data"] == {"count": 3}
        assert sorted(shown["copies"]) == ["session-1", "session-2"]
        closed = running.run("sessions", "close", key)
        assert closed.returncode == 0, closed.stderr
        # Dead on every server, at the latest when its lease has passed.
        eventually(lambda: browser.get("/").json()["count"] == 1, "a fresh session")
    assert running.run("sessions", "show", "00" * 16).returncode == 1
    wrong = running.run("sessions", "show", "nonsense")
    assert wrong.returncode == 1
    assert "12 hex digits" in wrong.stderr


def test_a_list_that_is_cut_off_says_so(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1")
    for _ in range(3):
        assert httpx.get(running.base, timeout=60).status_code == 200
    part = running.run("sessions", "ls", "--limit", "2")
    assert len(part.stdout.splitlines()) == 1 + 2
    assert "there are more than these 2 sessions; --limit shows up to 10000" in part.stderr
    assert json.loads(running.run("sessions", "ls", "--limit", "2", "--json").stdout) != []
    whole = running.run("sessions", "ls", "--limit", "3")
    assert len(whole.stdout.splitlines()) == 1 + 3
    assert whole.stderr == ""


HOSTILE = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def fill(request):
    request.session["x"] = "\\x01" * 1_000_000 if request.url.path == "/" else {(1, 2): 3}
    request.session.regenerate("\\x1b[2J\\x9b\\n" + "u" * 1_000)
    return PlainTextResponse("ok")

app = Starlette(routes=[Route("/", fill), Route("/odd", fill)])
"""


def test_no_session_can_harm_who_looks_at_it(farm: Callable[..., Farm], tmp_path: Path) -> None:
    (tmp_path / "hostile.py").write_text(HOSTILE)
    running = farm("--web", "2", app="hostile:app")
    assert httpx.get(running.base).text == "ok"
    table = running.run("sessions", "ls")
    assert len(table.stdout.splitlines()) == 2
    assert all(character.isprintable() or character == "\n" for character in table.stdout)
    assert max(len(line) for line in table.stdout.splitlines()) < 150
    key = json.loads(running.run("sessions", "ls", "--json").stdout)[0]["key"]
    shown = running.run("sessions", "show", key)
    assert shown.returncode == 0, shown.stderr
    assert all(character.isprintable() or character == "\n" for character in shown.stdout)
    assert json.loads(shown.stdout)["data"] == {"x": "\x01" * 1_000_000}
    assert httpx.get(running.base + "/odd").text == "ok"
    odd = next(row["key"] for row in json.loads(running.run("sessions", "ls", "--json").stdout) if row["key"] != key)
    shown = running.run("sessions", "show", odd)
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["data"] == {"x": {"(1, 2)": 3}}, "as JSON has it"
    # Nobody died of so long a line.
    status = running.status()
    assert status["restarts"] == 0
    assert all(row["healthy"] for row in status["web_servers"])


@pytest.fixture
def redis_urls(tmp_path: Path) -> Iterator[list[str]]:
    program = shutil.which("redis-server")
    assert program is not None, "redis-server is missing: `make test` installs it"
    servers, urls = [], []
    for n in (1, 2):
        port = free_port()
        arguments = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--requirepass", "s3cret-word"]
        log = (tmp_path / f"redis-{n}.log").open("wb")
        servers.append(subprocess.Popen([program, *arguments, "--dir", str(tmp_path)], stdout=log))
        urls.append(f"cache-{n}=redis://:s3cret-word@127.0.0.1:{port}")
    yield urls
    for server in servers:
        server.terminate()
        server.wait(30)


def test_redis_as_session_servers(farm: Callable[..., Farm], redis_urls: list[str]) -> None:
    import os

    given = [word for url in redis_urls for word in ("--session-server", url)]
    running = farm("--web", "2", *given)
    with httpx.Client(base_url=running.base) as browser:
        first = browser.get("/").json()
        killed = running.pid(first["server"])
        os.kill(killed, signal.SIGKILL)
        assert browser.get("/").json()["count"] == 2
    running.wait_replaced(first["server"], killed)
    status = running.healthy_status()
    assert [row["name"] for row in status["session_servers"]] == ["cache-1", "cache-2"]
    assert all(row["pid"] is None for row in status["session_servers"])
    # The password is on our own command line here; nothing of ours repeats it.
    assert "s3cret-word" not in json.dumps(status) + running.log
    assert "s3cret-word" not in (running.directory / ".coatcheck/farm.json").read_text()


def test_a_session_server_that_refuses_our_password_is_not_healthy(
    farm: Callable[..., Farm], redis_urls: list[str]
) -> None:
    right, wrong = redis_urls[0], redis_urls[1].replace("s3cret-word", "wrong")
    running = farm("--web", "2", "--session-server", right, "--session-server", wrong)
    found = {row["name"]: row["healthy"] for row in running.status()["session_servers"]}
    assert found == {"cache-1": True, "cache-2": False}
    assert "no answer" in running.run("status").stdout


def test_who_was_kept_to_a_bound_is_shown(farm: Callable[..., Farm]) -> None:
    running = farm("--max-connections-per-address", "2")
    host, port = running.note()["address"].rsplit(":", 1)
    with contextlib.ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(socket.create_connection((host, int(port)))).settimeout(60)
        with socket.create_connection((host, int(port)), timeout=60) as one_more:
            assert one_more.recv(12) == b"HTTP/1.1 429"
        shown = running.run("status").stdout
        assert "director-1 refused: 2 too many from address" in shown
        details = running.status()["director"][0]["details"]
        assert details["errors"]["too_many_from_address"] == 2


def test_a_session_server_is_healthy_once_every_web_server_that_answers_reaches_it() -> None:
    """It runs and answers, and a web server has not found it again after a restart: requests there are refused yet."""

    def process(name: str, answer: dict[str, Any] | None) -> Any:
        async def call(question: str, timeout_s: float) -> dict[str, Any]:
            if answer is None:
                raise ControlError("no answer")
            return {"status": answer}

        return SimpleNamespace(
            name=name, pid=1, state="ready", restarts=0, uptime_s=1.0, last_end=None, next_try_s=None, call=call
        )

    def healthy(*reach: bool | None) -> bool:
        webs = [
            ("web_servers", process(f"web-{n}", None if sees is None else {"session_servers": {"session-1": sees}}), "")
            for n, sees in enumerate(reach)
        ]
        farm = SimpleNamespace(
            roster=lambda: [*webs, ("session_servers", process("session-1", {}), "")],
            plan=SimpleNamespace(outside=()), settings=SimpleNamespace(name="farm"), state="running", url="",
            run_directory=SimpleNamespace(path=""), uptime_s=1.0, keepers=[],
        )  # fmt: skip
        (row,) = asyncio.run(farm_status(cast("Supervisor", farm)))["session_servers"]
        return bool(row["healthy"])

    assert healthy(True, True)
    assert healthy(True, None)
    assert not healthy(True, False)
