"""The session service and the farm's keys: it knows what the farm's servers know, and answers nothing from less."""

from __future__ import annotations

import asyncio
import itertools
import os
import secrets
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from coatcheck import CookiePolicy, connect
from coatcheck.farm.files.keys import ENV, FarmKeys, load, save
from coatcheck.farm.files.run_directory import RING_FILE
from coatcheck.service.callers import credential
from coatcheck.service.client import ServiceProblem, SessionClient
from coatcheck.service.token_generator import TokenGenerator
from coatcheck.tokens.keyring import KeyRing
from ports import free_port
from tls.conftest import redis_url

from .farm_process import DEADLINE_S, Command, Farm, environment, eventually

__all__ = ["redis_url"]

CALLERS = """
[shop]
scopes = ["create", "verify", "close", "list-user", "close-user"]
[watcher]
scopes = ["events"]
[proxy]
scopes = ["forward-auth"]
audience = "https://shop.example"
"""
LOGIN_APP = """
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Route

async def who(request):
    return PlainTextResponse(request.session.user or "nobody")

async def login(request):
    request.session.regenerate(request.path_params["user"])
    return PlainTextResponse("welcome")

app = Starlette(routes=[Route("/", who), Route("/login/{user}", login)])
"""


def credential_of(caller: str, keys: FarmKeys) -> str:
    return credential(caller, 1, KeyRing(keys.keys, keys.primary), "farm")


class Beside:
    """``coatcheck service serve`` in a process of its own, on the farm's key file and session server."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.log = folder / "service.log"
        command = [sys.executable, "-m", "coatcheck.cli", "service", "serve", "--listen", "127.0.0.1:0"]
        command += ["--callers", "callers.toml", "--insecure-localhost", *arguments]
        with self.log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, cwd=folder, env=environment(), stdout=subprocess.PIPE, stderr=errors, text=True
            )
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert " at http" in line, self.log.read_text()
        self.url = line.split()[-1]

    def end(self) -> None:
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        self.process.wait(DEADLINE_S)
        assert self.process.stdout is not None
        self.process.stdout.close()


class Site:
    """A farm whose app logs in, and a service beside it that nobody tells anything."""

    def __init__(self, farm: Callable[..., Farm], folder: Path) -> None:
        (folder / "login.py").write_text(LOGIN_APP)
        (folder / "callers.toml").write_text(CALLERS)
        self.file = folder / ".coatcheck" / "keys.json"
        store = ("--session-server", f"sqlite:///{folder / 'sessions.db'}")
        self.farm = farm("--web", "1", *store, app="login:app")
        self.service = Beside(folder, "--keys-file", str(self.file), *store)

    def keys(self) -> FarmKeys:
        return load(self.file)

    def rotate(self) -> None:
        done = self.farm.run("keys", "rotate")
        assert done.returncode == 0, done.stderr

    def revoke_oldest(self) -> None:
        done = self.farm.run("keys", "revoke", self.keys().rows()[0]["key"], "--yes")
        assert done.returncode == 0, done.stderr

    def login(self, user: str) -> str:
        """At the farm's app; the browser's Cookie header."""
        answer = httpx.get(f"{self.farm.base}/login/{user}", trust_env=False, timeout=DEADLINE_S)
        return "; ".join(f"{name}={value}" for name, value in answer.cookies.items())

    def who(self, cookie: str) -> str:
        """As the farm's app knows the browser."""
        return httpx.get(self.farm.base, headers={"Cookie": cookie}, trust_env=False, timeout=DEADLINE_S).text

    def client(self, keys: FarmKeys) -> SessionClient:
        return SessionClient(self.service.url, credential_of("shop", keys))

    def forward_auth(self, cookie: str, keys: FarmKeys) -> int:
        headers = {"Authorization": f"Bearer {credential_of('proxy', keys)}", "Cookie": cookie}
        answer = httpx.get(f"{self.service.url}/v1/forward-auth", headers=headers, trust_env=False, timeout=DEADLINE_S)
        return answer.status_code


@pytest.fixture
def site(farm: Callable[..., Farm], tmp_path: Path) -> Iterator[Site]:
    made = Site(farm, tmp_path)
    yield made
    made.service.end()


def test_a_service_beside_the_farm_follows_its_keys(site: Site) -> None:
    old, before = site.login("ada"), site.keys()
    with site.client(before) as client:
        assert client.verify(old) is not None
        site.rotate()
        new, other = site.login("ada"), site.login("bob")
        seen = client.verify(new)
        assert seen is not None and seen.user == "ada", "what the new key seals is no logout"
        assert client.verify(old) is not None, "and the old one opens until it is revoked"
        assert site.forward_auth(new, before) == 200
        assert client.close_user("bob") == 1
        assert site.who(other) == "nobody"
        assert client.close(new).closed
        assert site.who(new) == "nobody"
        site.revoke_oldest()
        with pytest.raises(ServiceProblem, match="unauthorized"):
            client.verify(old)
    with site.client(site.keys()) as client:
        assert client.verify(old) is None, "the revoked key opens nothing"
        made = client.create("carol").cookie
        assert made is not None and site.who(made) == "carol", "the farm opens what the service seals"


def test_by_the_name_of_a_user_it_finds_what_was_sealed_a_moment_ago(site: Site) -> None:
    """Nothing that this caller shows names a key: only a look at the file tells that there is a new one."""
    with site.client(site.keys()) as client:
        site.rotate()
        cookie = site.login("ada")
        assert client.close_user("ada") == 1
        assert site.who(cookie) == "nobody"


def test_a_service_that_slept_through_a_rotation_and_a_revocation_goes_on_with_the_farm(site: Site) -> None:
    os.kill(site.service.process.pid, signal.SIGSTOP)
    site.rotate()
    site.revoke_oldest()
    cookie = site.login("ada")
    os.kill(site.service.process.pid, signal.SIGCONT)
    with site.client(site.keys()) as client:
        seen = client.verify(cookie)
        assert seen is not None and seen.user == "ada"


def test_a_key_file_of_another_farm_is_not_taken(site: Site, tmp_path: Path) -> None:
    cookie, keys = site.login("ada"), site.keys()
    text = site.file.read_bytes()
    site.farm.stop()
    site.file.unlink()
    elsewhere = Farm(tmp_path, ("login:app", "--port", "0", "--insecure-localhost"), {})
    try:
        elsewhere.wait_running()
        with site.client(keys) as client:
            assert client.verify(cookie) is not None
            eventually(lambda: "which seals; put it back" in site.service.log.read_text(), "the reason")
            site.file.write_bytes(text)
            assert client.verify(cookie) is not None
    finally:
        elsewhere.end()


def test_the_farms_own_service_asks_before_it_refuses(farm: Callable[..., Farm], tmp_path: Path) -> None:
    """Another machine seals with a key of which this farm was not told; its file is there, and nobody looked."""
    (tmp_path / "callers.toml").write_text(CALLERS)
    store, port = f"sqlite:///{tmp_path / 'sessions.db'}", free_port()
    serves = ("--service", f"127.0.0.1:{port}", "--service-callers", "callers.toml")
    farm("--web", "1", "--session-server", store, *serves)
    file = tmp_path / ".coatcheck" / "keys.json"
    for _ in range(3):
        keys = load(file)
        theirs = keys.with_new().sealing_with_newest()
        cookie = asyncio.run(login_elsewhere(store, theirs))
        save(file, theirs)
        with SessionClient(f"http://127.0.0.1:{port}", credential_of("shop", keys)) as client:
            seen = client.verify(cookie)
            assert seen is not None and seen.user == "ada"
        cookie, newest = asyncio.run(login_elsewhere(store, theirs.with_new().sealing_with_newest())), load(file)
        with SessionClient(f"http://127.0.0.1:{port}", credential_of("shop", newest)) as client:
            assert client.verify(cookie) is None, "a key that is in no file was asked about, and opens nothing"
        newer = newest.with_new().sealing_with_newest()
        save(file, newer)
        with SessionClient(f"http://127.0.0.1:{port}", credential_of("shop", newer)) as client:
            assert client.verify("") is None, "who comes with a credential of a new key is no stranger"
        for secret in ("1.1", f"shop.1.{'A' * 43}"):
            with (
                SessionClient(f"http://127.0.0.1:{port}", secret) as client,
                pytest.raises(ServiceProblem, match="unauthorized"),
            ):
                client.verify("")


async def login_elsewhere(store: str, keys: FarmKeys) -> str:
    """The cookie that another machine of the farm gives."""
    order = [keys.keys[keys.primary], *(key for key in keys.keys if key != keys.keys[keys.primary])]
    sessions = connect(store, key=order, farm="farm", cookies=CookiePolicy(insecure_localhost=True))
    await sessions.start()
    try:
        made = await TokenGenerator(sessions).create("ada")
    finally:
        await sessions.aclose()
    assert made.cookie is not None
    return made.cookie


def test_a_credential_is_made_with_the_ring_that_the_service_has(
    farm: Callable[..., Farm], redis_url: str, tmp_path: Path
) -> None:
    """Machines share it, and the first key, which is the one in the key file, is revoked."""
    (tmp_path / "callers.toml").write_text(CALLERS)
    port, store = free_port(), ("--session-server", redis_url)
    serves = ("--service", f"127.0.0.1:{port}", "--service-callers", "callers.toml")
    running = farm("--web", "1", *store, "--key-ring", "shared", *serves)
    directory, own = tmp_path / ".coatcheck", tmp_path / ".coatcheck" / "keys.json"
    (first,) = load(own).rows()
    assert running.run("keys", "rotate").returncode == 0
    assert running.run("keys", "revoke", first["key"], "--yes").returncode == 0
    link = tmp_path / "link.json"
    link.symlink_to(own)
    given = [(), ("--run-dir", str(directory)), ("--keys-file", str(own)), ("--keys-file", "link.json")]
    printed = {printed_by(running, *options) for options in given}
    assert len(printed) == 1
    (credential,) = printed
    with SessionClient(f"http://127.0.0.1:{port}", credential) as client:
        assert client.verify("") is None, "it is known"
    # What names keys of others, or another farm, is refused.
    other = tmp_path / "other.json"
    save(other, FarmKeys((os.urandom(32),), 0, "password"))
    assert f"has its keys in {own}, and not in {other}" in refused_by(running, 1, "--keys-file", str(other))
    assert f"other keys than those in {ENV}" in refused_by(running, 1, **{ENV: secrets.token_urlsafe(32)})
    assert "the farm that runs here is farm" in refused_by(running, 1, "--name", "shop")
    # And so while it does not run.
    assert running.stop() == 0
    assert {printed_by(running, *options) for options in given} == printed
    assert "is not sealed by the keys of keys_file" in refused_by(running, 2, "--keys-file", str(other))
    assert "for a farm of this name" in refused_by(running, 2, "--name", "shop")
    beside = running.run("service", "serve", "--callers", "callers.toml", *store)
    assert beside.returncode == 2
    assert beside.stderr.count("\n") == 1 and "shared keys are in no file" in beside.stderr
    (directory / RING_FILE).unlink()
    (tmp_path / "farm.toml").write_text(f'[farm]\nkey_ring = "shared"\nsession_server = ["{redis_url}"]\n')
    assert "and there is no" in refused_by(running, 2, "--config", "farm.toml")


def printed_by(command: Command, *options: str) -> str:
    done = command.run("service", "credential", "shop", *options)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def refused_by(command: Command, status: int, *options: str, **env: str) -> str:
    done = command.run("service", "credential", "shop", *options, **env)
    assert done.returncode == status, (done.stdout, done.stderr)
    (line,) = done.stderr.splitlines()
    return line


def test_a_credential_of_a_running_farm_whose_keys_are_elsewhere(farm: Callable[..., Farm], tmp_path: Path) -> None:
    elsewhere = tmp_path / "ring.json"
    save(elsewhere, FarmKeys((os.urandom(32),), 0, "password"))
    running = farm("--web", "1", "--keys-file", "ring.json")
    save(tmp_path / ".coatcheck" / "keys.json", FarmKeys((os.urandom(32),), 0, "left by an earlier start"))
    assert printed_by(running) == credential_of("shop", load(elsewhere))


def test_an_open_stream_ends_when_the_farm_revokes_the_key_of_its_credential(
    farm: Callable[..., Farm], tmp_path: Path
) -> None:
    (tmp_path / "callers.toml").write_text(CALLERS)
    port = free_port()
    running = farm("--web", "1", "--service", f"127.0.0.1:{port}", "--service-callers", "callers.toml")
    keys = load(tmp_path / ".coatcheck" / "keys.json")
    headers = {"Authorization": f"Bearer {credential_of('watcher', keys)}"}
    with (
        httpx.Client(base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=DEADLINE_S) as http,
        http.stream("GET", "/v1/events", headers=headers) as stream,
    ):
        # A comment comes after each 15 s in which nothing is told: then this test has waited for long enough.
        lines = itertools.takewhile(lambda line: line != ": ", stream.iter_lines())
        assert next(lines) == ": session events"
        assert running.run("keys", "rotate").returncode == 0
        with SessionClient(str(http.base_url).rstrip("/"), credential_of("shop", keys)) as client:
            client.create("ada")
        assert next(line for line in lines if line.startswith("event: ")) == "event: session.login"
        assert running.run("keys", "revoke", keys.rows()[0]["key"], "--yes").returncode == 0
        assert [line for line in lines if line][-2:] == ["event: ended", 'data: {"reason":"revoked"}']
        assert http.get("/v1/events", headers=headers).status_code == 401
