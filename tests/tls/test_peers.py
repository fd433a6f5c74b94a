"""Servers that keep their sessions and give them to each other, and to nobody else."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from coatcheck import resp
from coatcheck.errors import ConfigError
from coatcheck.tls import Peers
from coatcheck.tls.peers import Revocations
from ports import free_port

from .farm import PATIENCE_S, TLS_1_2, TLS_1_3, VERSIONS, Client, Server
from .peer_farm import Authority

NAMES = ("web-1", "web-2", "web-3")


class PeerFarm:
    def __init__(self, folder: Path, certificates: Path, mode: str = "threads") -> None:
        self.authority = Authority(folder)
        self.where = {name: f"127.0.0.1:{free_port()}" for name in NAMES}
        self._certificates = certificates
        self._mode = mode
        self.servers: dict[str, Server] = {}

    def settings(self, name: str, **others: Any) -> dict[str, Any]:
        """See :class:`coatcheck.tls.Peers`."""
        return {
            "listen": self.where[name],
            "servers": self.where,
            "certificate": str(self.authority.issue(name)),
            "authority": str(self.authority.certificate),
            "revoked": str(self.authority.revoked),
            **others,
        }

    def start(self, name: str, **others: Any) -> Server:
        server = Server(self._certificates, name, self.settings(name, **others), self._mode, fetch_timeout=5)
        self.servers[name] = server
        return server

    def start_all(self) -> list[Server]:
        running = [self.start(name) for name in NAMES]
        for name, server in self.servers.items():
            server.wait_for(lambda status: set(status["stores"].values()) == {True} and len(status["stores"]) == 3)
            assert name in NAMES
        return running

    def stop(self) -> None:
        for server in self.servers.values():
            server.stop()


@pytest.fixture(params=["threads", "uvloop"])
def farm(request: pytest.FixtureRequest, tmp_path: Path, certificates: Path) -> Iterator[PeerFarm]:
    farm = PeerFarm(tmp_path / "peers", certificates, request.param)
    yield farm
    farm.stop()


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_the_server_that_made_a_session_gives_it_once(
    farm: PeerFarm, version: ssl.TLSVersion, certificates: Path
) -> None:
    one, two, three = farm.start_all()
    client = Client(certificates, version)
    said = [client.visit(server) for server in (one, two, three, one)]
    assert [each["reused"] for each in said] == [False, True, True, True]
    if version is TLS_1_3:
        first = Client(certificates, version)
        first.visit(one)
        session = first.session
        assert first.visit(two, session=session)["reused"]
        assert not first.visit(three, session=session)["reused"]
        assert not first.visit(one, session=session)["reused"]


def test_the_server_that_is_named_is_asked_and_no_other(farm: PeerFarm, certificates: Path) -> None:
    one, two, three = farm.start_all()
    at_one, at_two = (Client(certificates, TLS_1_2) for _ in range(2))
    at_one.visit(one)
    at_two.visit(two)
    one.stop()
    three.wait_for(lambda status: status["stores"]["web-1"] is False)
    assert at_two.visit(three)["reused"]
    assert not at_one.visit(three)["reused"], "it went with its server: a full handshake, and no error"


def test_a_server_whose_certificate_is_revoked_gets_nothing_more(farm: PeerFarm, certificates: Path) -> None:
    one, two, three = farm.start_all()
    client = Client(certificates, TLS_1_3)
    client.visit(one)
    assert client.visit(two)["reused"], "it is connected, and gets what it asks for"
    farm.authority.revoke("web-2")
    two.wait_for(lambda status: status["stores"] == {"web-1": False, "web-2": True, "web-3": False})
    client = Client(certificates, TLS_1_3)
    client.visit(one)
    session = client.session
    assert not client.visit(two, session=session)["reused"]
    assert client.visit(three, session=session)["reused"], "it is still there, for those who may"


def test_a_server_that_is_on_no_list_gets_nothing(farm: PeerFarm, certificates: Path) -> None:
    only = {"web-2": farm.where["web-2"]}
    one = farm.start("web-1", servers=only)
    two, three = farm.start("web-2"), farm.start("web-3")
    two.wait_for(lambda status: status["stores"].get("web-1") is True)
    client = Client(certificates, TLS_1_3)
    client.visit(one)
    session = client.session
    assert not client.visit(three, session=session)["reused"]
    assert three.status()["stores"]["web-1"] is False
    assert client.visit(two, session=session)["reused"]


@contextlib.contextmanager
def door(settings: dict[str, Any], name: str) -> Iterator[None]:
    """The door of a server, open."""
    own = Peers(**settings).places(name, 1.0)[0].for_threads()
    try:
        assert own.check(1.0)
        yield
    finally:
        own.close()


async def said_by(farm: PeerFarm, context: ssl.SSLContext, name: str = "web-1") -> bytes:
    """What the door answers to a request for an item; empty if it says nothing."""
    host, _, port = farm.where["web-1"].partition(":")
    try:
        async with asyncio.timeout(PATIENCE_S):
            reader, writer = await asyncio.open_connection(host, int(port), ssl=context, server_hostname=name)
            writer.write(resp.command(b"CC.ITEM.TAKE", bytes(32), b"n" * 16))
            answer = await reader.read(100)
            writer.close()
            return answer
    except (ssl.SSLError, ConnectionError):
        return b""


def test_who_shows_no_certificate_of_the_farm_hears_nothing(tmp_path: Path, certificates: Path) -> None:
    farm = PeerFarm(tmp_path / "peers", certificates)
    stranger = Authority(tmp_path / "stranger")

    async def story() -> list[bytes]:
        with door(farm.settings("web-1"), "web-1"):
            contexts = []
            for chain in (None, stranger.issue("web-2"), farm.authority.issue("web-9"), farm.authority.issue("web-2")):
                context = ssl.create_default_context(cafile=str(farm.authority.certificate))
                if chain is not None:
                    context.load_cert_chain(chain)
                contexts.append(context)
            return [await said_by(farm, context) for context in contexts]

    assert asyncio.run(story()) == [b"", b"", b"", b"$-1\r\n"]


def test_who_answers_must_be_the_server_that_is_named(tmp_path: Path, certificates: Path) -> None:
    """web-3 listens where web-2 should be: the one that asks does not take it for web-2."""
    farm = PeerFarm(tmp_path / "peers", certificates)

    async def story() -> bool:
        with door({**farm.settings("web-3"), "listen": farm.where["web-2"]}, "web-3"):
            places = Peers(**farm.settings("web-1"))._ways("web-1", 1.0)
            way = next(place for place in places if place.name == "web-2")
            link = way.for_a_loop()
            await link.open()
            reachable = link.reachable
            await link.aclose()
            return reachable or await asyncio.to_thread(way.for_threads().check, 1.0)

    assert asyncio.run(story()) is False


def test_a_list_of_revocations_that_is_damaged_or_forged_changes_nothing(tmp_path: Path) -> None:
    from cryptography import x509

    authority, forger = Authority(tmp_path / "farm"), Authority(tmp_path / "forger")
    certificate = x509.load_pem_x509_certificate(authority.issue("web-2").read_bytes())
    now = [0.0]
    revocations = Revocations(authority.certificate, authority.revoked, lambda: now[0])
    assert not revocations.has(certificate)
    authority.revoke("web-2")
    now[0] += 1.0
    assert revocations.has(certificate)
    for bad in (b"", b"no list", forger.revoked.read_bytes()):
        authority.revoked.write_bytes(bad)
        now[0] += 1.0
        assert revocations.has(certificate)
    authority.revoke()
    now[0] += 1.0
    assert not revocations.has(certificate)
    with pytest.raises(ConfigError, match="revoked"):
        Revocations(authority.certificate, forger.revoked)


@pytest.mark.parametrize(
    "wrong",
    [{"listen": "nowhere"}, {"certificate": "/nonexistent.pem"}, {"revoked": "/nonexistent.pem"},
     {"servers": {"web-2": "nowhere"}}, {"servers": {"a b": "127.0.0.1:1"}}],
)  # fmt: skip
def test_a_wrong_setting_is_one_clear_line(wrong: dict[str, Any], tmp_path: Path, certificates: Path) -> None:
    farm = PeerFarm(tmp_path / "peers", certificates)
    with pytest.raises(ConfigError, match="peers") as raised:
        Peers(**farm.settings("web-1", **wrong)).check("web-1")
    assert "\n" not in str(raised.value)


FORKED = """
import json, os, socket, ssl, sys, time
from coatcheck.errors import ConfigError
from coatcheck.tls import Peers, share_sessions
settings = json.loads(sys.argv[1])
host, _, port = settings["listen"].partition(":")
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(settings["certificate"])
def share(**more):
    peers = Peers(**settings)
    return share_sessions(context, store=peers, server="web-1", keyring=os.urandom(32), required=True, **more)
try:
    share(siblings=[["a", ""], 5])
except (ConfigError, TypeError) as wrong:
    print("wrong:", type(wrong).__name__)
shared = share()
print("parent", shared.status()["stores"]["web-1"])
child = os.fork()
if not child:
    print("child", shared.status()["stores"]["web-1"], flush=True)
    time.sleep(60)
    os._exit(0)
time.sleep(0.5)
shared.close()
socket.create_server((host, int(port))).close()
print("free")
os.kill(child, 9)
os.wait()
"""


def test_a_door_is_that_of_one_process_and_closed_with_it(tmp_path: Path, certificates: Path) -> None:
    """Nothing is opened by a call that fails; a forked child does not hold the port of its parent."""
    farm = PeerFarm(tmp_path / "peers", certificates)
    words = [sys.executable, "-c", FORKED, json.dumps({**farm.settings("web-1")})]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert said.stdout.splitlines() == ["wrong: ConfigError", "parent True", "child False", "free"], said.stderr
