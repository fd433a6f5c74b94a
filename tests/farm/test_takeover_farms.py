"""What operators do to farms whose TLS connections outlive web servers: restarts, reloads, renewals, mistakes."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from certificate import make_certificate
from ports import free_port

from .farm_process import DEADLINE_S, Farm, eventually
from .live_crowd import LIVE_APP, Client, client
from .live_wire import Certificate, Wire, address, request
from .tls_farm import TAKE_ONCE_PATIENTLY

Start = Callable[..., Farm]
END = ("--tls", "end-to-end", "--takeover", "--session-servers", "1", "--no-insecure-localhost")


def tls(certificate: Certificate) -> tuple[str, ...]:
    return "--tls-certificate", str(certificate[0]), "--tls-key", str(certificate[1])


@pytest.fixture
def start(tmp_path: Path, farm: Start, certificate: Certificate) -> Start:
    (tmp_path / "live.py").write_text(LIVE_APP)
    return lambda *arguments: farm(*tls(certificate), *END, *arguments, app="live:app")


def kill(farm: Farm, name: str) -> None:
    os.kill(farm.pid(name), signal.SIGKILL)


def details(farm: Farm) -> list[dict[str, int]]:
    return [row["details"] for row in farm.healthy_status()["director"]]


# Restarts


@pytest.mark.parametrize("sharing", ["ticket-keys", "take-once"])
def test_a_farm_that_is_stopped_and_started_has_its_sessions_and_makes_full_handshakes(
    start: Start, certificate: Certificate, sharing: str
) -> None:
    how = TAKE_ONCE_PATIENTLY if sharing == "take-once" else ("--tls-sharing", sharing)
    where = ("--web", "2", "--port", str(free_port()), *how)
    farm = start(*where)
    idle = Wire(farm, certificate)
    idle.see()
    browser = client(farm, certificate)
    context = ssl.create_default_context(cafile=str(certificate[0]))
    assert [json.loads(browser.ask("POST", "/count")[1])["count"] for _ in range(2)] == [1, 2]
    session = resumption(farm, context, None)[0]
    there = address(farm)
    farm.process.send_signal(signal.SIGTERM)
    assert idle.says_goodbye()
    assert farm.process.wait(DEADLINE_S) == 0
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(there, DEADLINE_S)
    again = start(*where)
    with pytest.raises((http.client.HTTPException, OSError)):
        browser.ask("POST", "/count")
    browser.reconnect()
    assert json.loads(browser.ask("POST", "/count")[1])["count"] == 3, "its session has waited"
    session, reused = resumption(again, context, session)
    assert not reused, "its key, or the session itself, was the former farm's"
    assert resumption(again, context, session)[1]


def resumption(
    farm: Farm, context: ssl.SSLContext, session: ssl.SSLSession | None
) -> tuple[ssl.SSLSession | None, bool]:
    """The session of a further connection, and whether it resumed the given one."""
    with socket.create_connection(address(farm), DEADLINE_S) as plain:
        connection = context.wrap_socket(plain, server_hostname=address(farm)[0], session=session)
        connection.sendall(request("GET", "/slow/0.3", Connection="close"))
        assert b"200 OK" in b"".join(iter(lambda: connection.recv(1 << 12), b""))
        return connection.session, bool(connection.session_reused)


class Asking:
    """A client that asks in a loop, on one connection; posts, so that nothing may be done twice."""

    def __init__(self, farm: Farm, certificate: Certificate) -> None:
        self.one = client(farm, certificate)
        self.problems: list[str] = []
        self.answered = 0
        self.servers: set[tuple[str, int]] = set()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(DEADLINE_S)

    def _ask(self) -> None:
        while not self._over.wait(0.02):
            try:
                status, said = self.one.ask("POST", "/hello", b"x")
                assert status == 200, said
                found = json.loads(said)
                self.servers.add((found["server"], found["pid"]))
                self.answered += 1
            except (OSError, http.client.HTTPException, AssertionError) as error:
                self.problems.append(repr(error))
                return


def test_a_reload_restarts_every_web_server_under_live_connections(
    start: Start, tmp_path: Path, certificate: Certificate
) -> None:
    farm = start("--web", "2", "--reload")
    eventually(lambda: "reload: watching" in farm.log, "the watch")
    with Asking(farm, certificate) as asking:
        eventually(lambda: asking.answered > 3 or asking.problems, "the first answers")
        (tmp_path / "live.py").write_text(LIVE_APP + "\n# changed\n")
        eventually(lambda: "reload: done" in farm.log, "the reload")
        seen = asking.answered
        eventually(lambda: asking.answered > seen + 3 or asking.problems, "answers after it")
        (tmp_path / "live.py").write_text(LIVE_APP + "\nand broken\n")
        eventually(lambda: "reload: nothing is restarted" in farm.log, "the refusal")
    assert asking.problems == []
    assert asking.one.is_the_first
    assert len(asking.servers) >= 2
    (found,) = details(farm)
    assert (found["broken_off"], found["taken_over"]) == (0, 0)
    assert found["moved"] >= 1


def test_with_two_directors_one_takes_its_connections_with_it_and_the_other_keeps_its_own(
    start: Start, certificate: Certificate
) -> None:
    farm = start("--web", "2", "--director-workers", "2")
    clients = [client(farm, certificate) for _ in range(12)]
    for each in clients:
        each.see()
    held = [row["connections"] for row in details(farm)]
    assert sum(held) == 12
    old = farm.pid("director-1")
    os.kill(old, signal.SIGKILL)
    farm.wait_replaced("director-1", old)
    server = farm.pid("web-1"), farm.pid("web-2")
    broken = 0
    for each in clients:
        try:
            each.see()
            assert each.is_the_first
        except (OSError, http.client.HTTPException):
            broken += 1
    assert broken == held[0]
    assert (farm.pid("web-1"), farm.pid("web-2")) == server
    for name in ("web-1", "web-2"):
        old = farm.pid(name)
        os.kill(old, signal.SIGKILL)
        farm.wait_replaced(name, old)
    survivors = [each for each in clients if each.is_the_first and not each.is_closed]
    assert [each.see()["path"] for each in survivors] == ["/hello"] * held[1]


# Two farms


@pytest.fixture
def other_farm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Farm]]:
    """A farm of a configuration file, in a directory of its own."""
    started: list[Farm] = []

    def begin(settings: str) -> Farm:
        folder = tmp_path_factory.mktemp("other")
        (folder / "live.py").write_text(LIVE_APP)
        (folder / "farm.toml").write_text(settings)
        started.append(Farm(folder, ("--config", "farm.toml"), {}))
        return started[-1]

    yield begin
    for each in started:
        each.end()


def test_a_second_farm_on_the_machine_is_a_farm_of_its_own(
    start: Start, certificate: Certificate, other_farm: Callable[..., Farm]
) -> None:
    here = start("--web", "2")
    there = other_farm(f"""
[farm]
app = "live:app"
port = 0
web = 2
session_servers = 1
tls_certificate = "{certificate[0]}"
tls_key = "{certificate[1]}"
tls = "end-to-end"
takeover = true
""")
    there.wait_running()
    clients = [client(farm, certificate) for farm in (here, there)]
    before = [each.see() for each in clients]
    kill(there, before[1]["server"])
    after = [each.see() for each in clients]
    assert after[0] == before[0]
    assert after[1]["server"] != before[1]["server"]
    assert clients[1].is_the_first
    # And a third one that names the port of the first is told so.
    third = other_farm(f"""
[farm]
app = "live:app"
port = {address(here)[1]}
tls_certificate = "{certificate[0]}"
tls_key = "{certificate[1]}"
tls = "end-to-end"
""")
    assert third.process.wait(DEADLINE_S) == 2
    assert f"port: {address(here)[1]} on 127.0.0.1 is in use" in third.log
    assert "Traceback" not in third.log


# Certificates


def test_wrong_files_are_one_clear_line(command: Farm, tmp_path: Path, certificate: Certificate) -> None:
    (tmp_path / "other").mkdir()
    other = make_certificate(tmp_path / "other")
    (tmp_path / "empty.pem").write_text("")
    for chain, key, words in (
        (certificate[0], other[1], "KEY_VALUES_MISMATCH"),
        (certificate[0], tmp_path / "missing.pem", "No such file"),
        (tmp_path / "empty.pem", certificate[1], "cannot load"),
        (certificate[1], certificate[1], "cannot load"),
    ):
        done = command.run("serve", "counter:app", "--port", "0", *END, *tls((chain, key)))
        assert done.returncode == 2, done.stderr
        assert "tls_certificate: cannot load" in done.stderr
        assert words in done.stderr
        assert "Traceback" not in done.stderr


def test_a_renewed_certificate_is_shown_after_a_drain_and_no_connection_breaks(
    start: Start, tmp_path: Path, certificate: Certificate
) -> None:
    folder = tmp_path / "renewed"
    folder.mkdir()
    old = tuple(Path(shutil.copy(each, folder)) for each in certificate)
    farm = start("--web", "2", *tls((old[0], old[1])))
    (tmp_path / "new").mkdir()
    new = make_certificate(tmp_path / "new")
    with Asking(farm, certificate) as asking:
        eventually(lambda: asking.answered > 3 or asking.problems, "the first answers")
        for source, target in zip(new, old, strict=True):
            shutil.copy(source, target)
        for name in ("web-1", "web-2"):
            assert farm.run("drain", name).returncode == 0
            assert farm.run("admit", name).returncode == 0
            eventually(lambda name=name: farm.state(name) == "ready", "its return")  # type: ignore[misc]
        seen = asking.answered
        eventually(lambda: asking.answered > seen + 3 or asking.problems, "answers after it")
        assert client(farm, new).see()["path"] == "/hello"
        with pytest.raises(ssl.SSLCertVerificationError):
            client(farm, certificate)
    assert asking.problems == []
    assert asking.one.is_the_first
    # A renewal that went wrong is said, and the other web server goes on.
    old[1].write_text("no key")
    assert farm.run("drain", "web-1").returncode == 0
    done = farm.run("admit", "web-1")
    assert done.returncode != 0
    assert "tls_certificate: cannot load" in done.stderr + farm.log
    one: Client = client(farm, new)
    assert one.see()["server"] == "web-2"
    shutil.copy(new[1], old[1])
    assert farm.run("admit", "web-1").returncode == 0
