"""Another user of the machine can neither become a part of the farm nor talk to one past the director.

A farm keeps strangers out twice: they cannot reach its sockets (a private directory; ports that only its user can
bind), and whoever reaches one all the same is not believed (the kernel's credentials; a proof of the farm's
credential). Here each half is tried with the other one taken away.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.sync.client import connect

from coatcheck.farm.files.keys import load
from coatcheck.replication.effects import Unreachable
from coatcheck.stores.session_server_store import SessionServerStore
from other_user import as_stranger, error_of, impostor, need_root

from .farm_process import COUNTER_APP, SOURCE, Farm, alive, environment, eventually, memory_of

FORGED = b"GET /client HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 6.6.6.6\r\nConnection: close\r\n\r\n"
CLIENT_APP = """
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route, WebSocketRoute

def told(scope):
    return {"client": scope["client"][0], "scheme": scope["scheme"], "server": scope.get("server")}

async def client(request):
    return JSONResponse(told(request.scope))

async def socket(websocket):
    await websocket.accept()
    await websocket.send_json(told(websocket.scope))
    await websocket.send_text(await websocket.receive_text())
    await websocket.close()

app = Starlette(routes=[Route("/", client), Route("/client", client), WebSocketRoute("/ws", socket)])
"""


def address_of(farm: Farm, name: str) -> str:
    return str(next(row["address"] for row in farm.note()["processes"] if row["name"] == name))


def path_of(farm: Farm, name: str) -> Path:
    return Path(address_of(farm, name).removeprefix("unix:"))


def listen_at(address: str, option: int = 0) -> Callable[[], socket.socket]:
    """Listens at an address of the farm, in whichever way another user might."""

    def listen() -> socket.socket:
        if address.startswith("unix:"):
            path = Path(address.removeprefix("unix:"))
            sock = socket.socket(socket.AF_UNIX)
            path.unlink(missing_ok=True)
            sock.bind(str(path))
            path.chmod(0o777)
        else:
            host, port = address.rsplit(":", 1)
            sock = socket.socket()
            if option:
                sock.setsockopt(socket.SOL_SOCKET, option, 1)
            sock.bind((host, int(port)))
        sock.listen(64)
        return sock

    return listen


def says(path: Path, request: bytes) -> Callable[[], str]:
    """What is answered at this socket, in hex, or the error's name."""

    def ask() -> str:
        with socket.socket(socket.AF_UNIX) as sock:
            sock.settimeout(30)
            sock.connect(str(path))
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                sock.sendall(request)
                return sock.recv(65_536).hex()
            return ""

    return ask


def open_to_all(directory: Path) -> None:
    """What a careless ``chmod -R 777`` leaves of a private directory."""
    directory.chmod(0o777)
    for path in directory.iterdir():
        path.chmod(0o777)


@contextlib.contextmanager
def visitor_of(farm: Farm, server: str) -> Iterator[httpx.Client]:
    """A browser with a session and a route to this web server."""
    with httpx.Client(base_url=farm.base, timeout=60) as browser:
        while browser.post("/").json()["server"] != server:
            browser.cookies.clear()
        yield browser


def kill_for_good(farm: Farm, name: str) -> None:
    os.kill(farm.pid(name), signal.SIGKILL)
    eventually(lambda: farm.state(name) == "dead", f"the death of {name}")


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_nobody_reaches_a_server_past_the_director(farm: Callable[..., Farm], server: str) -> None:
    running = farm("--web", "2", "--server", server)
    directory = path_of(running, "web-1").parent
    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    run_directory = running.directory / ".coatcheck"
    for name in ("web-1", "session-1"):
        path = path_of(running, name)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert as_stranger(lambda path=path: error_of(says(path, FORGED))) == "PermissionError"
        assert as_stranger(lambda path=path: error_of(listen_at(f"unix:{path}"))) == "PermissionError"
    for private in (directory, run_directory, run_directory / "keys.json", run_directory / "sockets"):
        assert as_stranger(lambda private=private: error_of(lambda: list(private.iterdir()))) == "PermissionError"
    assert httpx.get(running.base).status_code == 200


def test_whoever_reaches_a_server_all_the_same_gets_no_word(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1", "--session-servers", "2")
    password = load(running.directory / ".coatcheck/keys.json").session_server_password
    open_to_all(path_of(running, "web-1").parent)
    for path, asked in (
        (path_of(running, "web-1"), FORGED),
        (path_of(running, "session-1"), b"AUTH " + password.encode() + b"\r\nDBSIZE\r\n"),
    ):
        assert says(path, asked)() != "", "its own user is served"
        assert as_stranger(lambda path=path, asked=asked: says(path, asked)()) == ""
    eventually(lambda: running.log.count("was refused: user 65534 is at the other end") >= 2, "both lines in the log")
    assert httpx.get(running.base).status_code == 200


@pytest.mark.parametrize("name", ["web-1", "session-1"])
def test_nobody_takes_the_place_of_a_dead_process(farm: Callable[..., Farm], name: str) -> None:
    """By Unix sockets, in a directory that was opened to all: only the kernel's credentials are left."""
    running = farm("--web", "2", "--no-restart", "--store-timeout", "2s")
    address = address_of(running, name)
    with visitor_of(running, "web-1") as browser:
        open_to_all(path_of(running, name).parent)
        kill_for_good(running, name)
        with impostor(listen_at(address)) as standing:
            # They do try: its queue is full of connections that were given up.
            time.sleep(2)
            answers = [browser.post("/") for _ in range(20)]
            heard = standing.end()
    assert {answer.status_code for answer in answers} == {200}
    assert "stolen" not in {answer.text for answer in answers}
    assert heard.replace(b"<connected>", b"") == b""
    assert heard, "the farm never tried to connect, so this test has shown nothing"


@pytest.mark.parametrize("name", ["web-1", "session-1"])
def test_nobody_takes_the_port_of_a_dead_process(farm: Callable[..., Farm], name: str) -> None:
    running = farm("--web", "2", "--no-restart", "--internal-links", "tcp")
    address = address_of(running, name)
    with visitor_of(running, "web-1") as browser:
        kill_for_good(running, name)
        for option in (0, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
            taking = listen_at(address, option)
            assert "Address already in use" in as_stranger(lambda taking=taking: error_of(taking))
        assert {browser.post("/").status_code for _ in range(10)} == {200}


@pytest.mark.parametrize("name", ["web-1", "session-1"])
def test_who_has_the_port_gets_neither_cookie_nor_password(farm: Callable[..., Farm], name: str) -> None:
    """By TCP, at a port that nobody kept free: only the proof is left. So the impostor is of our own user here."""
    running = farm("--web", "2", "--no-restart", "--internal-links", "tcp")
    password = load(running.directory / ".coatcheck/keys.json").session_server_password
    address = address_of(running, name)
    with visitor_of(running, "web-1") as browser:
        cookies = [each.value or "" for each in browser.cookies.jar]
        kill_for_good(running, name)
        with Hearing(listen_at(address, socket.SO_REUSEPORT)()) as hearing:
            eventually(lambda: hearing.heard, "a connection from the farm")
            time.sleep(2)
            answers = [browser.post("/") for _ in range(20)]
            heard = b"".join(hearing.heard)
    assert {answer.status_code for answer in answers} == {200}
    assert "stolen" not in {answer.text for answer in answers}
    assert cookies
    for secret in (*cookies, password):
        assert secret.encode() not in heard
    assert b"COATCHECK/1 web-1 " in heard or b"CC.CHALLENGE" in heard


class Hearing:
    """Listens in a thread, answers every piece with 200 and keeps what was said."""

    def __init__(self, listening: socket.socket) -> None:
        self.heard: list[bytes] = []
        self._listening = listening
        self._loop = asyncio.new_event_loop()

    def __enter__(self) -> Hearing:
        import threading

        self._thread = threading.Thread(target=self._run)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def _run(self) -> None:
        hearing = self

        class Client(asyncio.Protocol):
            def connection_made(self, transport: Any) -> None:
                self.transport = transport

            def data_received(self, data: bytes) -> None:
                hearing.heard.append(data)
                self.transport.write(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen")

        server = self._loop.run_until_complete(self._loop.create_server(Client, sock=self._listening))
        self._loop.run_forever()
        server.close()


def test_by_tcp_nobody_is_served_past_the_director(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1", "--internal-links", "tcp")
    host, port = address_of(running, "web-1").rsplit(":", 1)
    for said in (FORGED, b"\x00" * 1000, b"COATCHECK/1 web-1 " + b"0" * 64 + b"\r\n" + b"0" * 64 + b"\r\n" + FORGED):
        with socket.create_connection((host, int(port)), timeout=30) as sock:
            with contextlib.suppress(ConnectionResetError, BrokenPipeError):
                sock.sendall(said)
            heard = b""
            with contextlib.suppress(ConnectionResetError):
                while piece := sock.recv(4096):
                    heard += piece
        assert b"HTTP" not in heard
    session_host, session_port = address_of(running, "session-1").rsplit(":", 1)

    async def ask(password: str) -> object:
        store = SessionServerStore("x", session_host, int(session_port), password=password, server_name="session-1")
        await store.open()
        answered: asyncio.Future[object] = asyncio.get_running_loop().create_future()
        store.get(b"k" * 16, answered.set_result)
        try:
            return await answered
        finally:
            await store.aclose()

    assert isinstance(asyncio.run(ask("guess")), Unreachable)
    assert asyncio.run(ask(load(running.directory / ".coatcheck/keys.json").session_server_password)) is None
    assert httpx.get(running.base).status_code == 200


@pytest.mark.parametrize(("server", "links"), [("uvicorn", "unix"), ("granian", "unix"), ("uvicorn", "tcp")])
def test_the_app_learns_who_its_client_is(farm: Callable[..., Farm], tmp_path: Path, server: str, links: str) -> None:
    (tmp_path / "client_app.py").write_text(CLIENT_APP)
    running = farm("--server", server, "--internal-links", links, app="client_app:app")
    forged = {"X-Forwarded-For": "6.6.6.6", "X-Forwarded-Proto": "https"}
    told = httpx.get(f"{running.base}/client", headers=forged).json()
    assert (told["client"], told["scheme"]) == ("127.0.0.1", "http")
    assert "/" not in str(told["server"])
    with connect(running.base.replace("http", "ws") + "/ws", additional_headers=forged) as channel:
        import json

        told = json.loads(channel.recv())
        assert (told["client"], told["scheme"]) == ("127.0.0.1", "ws")
        channel.send("through the tunnel")
        assert channel.recv() == "through the tunnel"


@pytest.mark.parametrize(("server", "links"), [("uvicorn", "unix"), ("granian", "unix"), ("uvicorn", "tcp")])
def test_a_trusted_proxy_says_who_the_client_is(
    farm: Callable[..., Farm], tmp_path: Path, server: str, links: str
) -> None:
    (tmp_path / "client_app.py").write_text(CLIENT_APP)
    arguments = (
        "--server",
        server,
        "--internal-links",
        links,
        "--trusted-proxy",
        "127.0.0.0/8",
        "--trusted-proxy",
        "10.0.0.0/8",
    )
    running = farm(*arguments, app="client_app:app")
    proxied = {"X-Forwarded-For": "6.6.6.6, 203.0.113.9, 10.1.1.1", "X-Forwarded-Proto": "https"}
    told = httpx.get(f"{running.base}/client", headers=proxied).json()
    assert (told["client"], told["scheme"]) == ("203.0.113.9", "https")


@pytest.mark.parametrize("server", ["uvicorn", "granian"])
def test_a_successor_takes_the_socket_over(farm: Callable[..., Farm], server: str) -> None:
    running = farm("--web", "2", "--server", server)
    before = {name: address_of(running, name) for name in ("web-1", "session-1")}
    for name in before:
        old = running.pid(name)
        os.kill(old, signal.SIGKILL)
        running.wait_replaced(name, old)
        assert httpx.get(running.base, timeout=60).status_code == 200
    running.healthy_status()
    assert before == {name: address_of(running, name) for name in before}
    left = {path.name for path in path_of(running, "web-1").parent.iterdir()}
    assert left == {"web-1.sock", "web-2.sock", "session-1.sock", "session-2.sock"}
    assert running.run("drain", "web-1").returncode == 0
    assert httpx.get(running.base, timeout=60).status_code == 200
    assert running.run("admit", "web-1").returncode == 0
    assert running.stop() == 0
    assert not path_of_dead(before).exists()


def path_of_dead(addresses: dict[str, str]) -> Path:
    return Path(addresses["web-1"].removeprefix("unix:")).parent


def test_what_a_killed_farm_left_is_removed_by_the_next(farm: Callable[..., Farm]) -> None:
    first = farm("--web", "1")
    left = path_of(first, "web-1").parent
    first.process.kill()
    first.process.wait(30)
    eventually(lambda: not any(alive(pid) for pid in first.seen), "the end of its processes")
    assert left.is_dir()
    second = farm("--web", "1")
    assert not left.exists()
    fresh = path_of(second, "web-1").parent
    assert (second.directory / ".coatcheck/sockets").resolve() == fresh
    assert httpx.get(second.base).status_code == 200
    assert second.stop() == 0
    assert not fresh.exists()
    assert not (second.directory / ".coatcheck/sockets").is_symlink()


def test_a_test_that_kills_its_farm_leaves_nothing(tmp_path: Path) -> None:
    """Its run directory is kept for a while, to be looked at; no next start comes there."""
    (tmp_path / "counter.py").write_text(COUNTER_APP)
    killed = Farm(tmp_path, ("counter:app", "--port", "0", "--insecure-localhost", "--web", "1"), {})
    killed.wait_running()
    left = path_of(killed, "web-1").parent
    assert left.is_dir()
    killed.end()
    assert not left.exists()
    assert not (tmp_path / ".coatcheck/sockets").is_symlink()


def test_two_farms_share_no_socket(farm: Callable[..., Farm]) -> None:
    one, other = farm("--web", "1", "--run-dir", ".coatcheck"), farm("--web", "1", "--run-dir", "second", wait=False)
    note = other.directory / "second/farm.json"

    def theirs() -> str:
        import json

        try:
            found = json.loads(note.read_text())
        except (OSError, ValueError):
            return ""
        return str(found["processes"][-1]["address"]) if found["state"] == "running" else ""

    assert Path(eventually(theirs, "the second farm").removeprefix("unix:")).parent != path_of(one, "web-1").parent
    third = subprocess.run(
        [sys.executable, "-m", "coatcheck.cli", "serve", "counter:app", "--port", "0"],
        cwd=one.directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert third.returncode == 2
    assert "a farm is running in" in third.stderr
    assert httpx.get(one.base).status_code == 200
    other.process.send_signal(signal.SIGTERM)
    assert other.process.wait(60) == 0


def test_a_run_directory_that_is_a_link_is_refused(farm: Callable[..., Farm]) -> None:
    need_root()
    running = farm("--web", "1", wait=False, app="counter:nothing")
    running.process.wait(60)
    elsewhere = running.directory / "elsewhere"
    elsewhere.mkdir()
    shutil.rmtree(running.directory / ".coatcheck", ignore_errors=True)
    (running.directory / ".coatcheck").symlink_to(elsewhere)
    refused = running.run("serve", "counter:app", "--port", "0")
    assert refused.returncode == 2
    assert "is a symbolic link; name the directory itself" in refused.stderr
    (running.directory / ".coatcheck").unlink()
    os.chown(elsewhere, 65_534, 65_534)
    refused = running.run("serve", "counter:app", "--port", "0", "--run-dir", "elsewhere")
    assert refused.returncode == 2
    assert "belongs to another user" in refused.stderr


def test_children_are_told_no_secret_of_the_environment(farm: Callable[..., Farm], tmp_path: Path) -> None:
    running = farm(
        "--web",
        "1",
        COATCHECK_SESSION_SERVER=f"sqlite:///{tmp_path}/s.db",
        COATCHECK_COPIES="1",
        DATABASE_URL="postgres://app:secret@db/x",
        PYTHONPATH=str(SOURCE),
    )
    app = set(httpx.get(f"{running.base}/say?words=names", timeout=60).json()["environment"])
    assert {each for each in app if each.startswith("COATCHECK_")} == {"COATCHECK_SERVER"}, "its own name"
    assert {"DATABASE_URL", "PATH", "PYTHONPATH"} <= app, "they are the app's"
    director = memory_of(running.pid("director-1"))
    assert b"PYTHONPATH=" in director
    assert b"app:secret@db" not in director
    assert f"sqlite:///{tmp_path}".encode() not in director


def test_the_run_directory_is_never_committed(farm: Callable[..., Farm]) -> None:
    running = farm("--web", "1")
    git = ["git", "-c", "safe.directory=*", "-C", str(running.directory)]
    subprocess.run([*git, "init", "-q"], check=True, timeout=60)
    subprocess.run([*git, "add", "--all"], check=True, timeout=60)
    added = subprocess.run([*git, "ls-files"], check=True, capture_output=True, text=True, timeout=60).stdout
    assert "counter.py" in added
    assert ".coatcheck" not in added
