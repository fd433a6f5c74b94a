"""Tickets that any server opens: real servers and clients, a store that goes, periods that end, forks."""

from __future__ import annotations

import os
import secrets
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from coatcheck.errors import ConfigError
from coatcheck.tls import share_sessions, share_ticket_keys
from ports import free_port

from .conftest import start_redis
from .farm import HOST, KEY, OTHER_HOST, PATIENCE_S, TLS_1_2, TLS_1_3, VERSIONS, Client, Server

LONG = {"period": 600, "lifetime": 600}
both_versions = pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)


class Farm:
    def __init__(self, certificates: Path, url: str | list[str], **options: object) -> None:
        self._certificates, self._url, self._options = certificates, url, options
        self.running: list[Server] = []

    def start(self, name: str, mode: str = "threads", **more: object) -> Server:
        options = {"tickets": LONG, **self._options, **more}
        server = Server(self._certificates, name, self._url, mode, **options)
        self.running.append(server)
        server.wait_for(lambda status: status["has_the_key"])
        return server

    def stop(self) -> None:
        for server in self.running:
            server.stop()


@pytest.fixture
def farm(certificates: Path, redis_url: str) -> Iterator[Farm]:
    farm = Farm(certificates, redis_url, farm=secrets.token_hex(8))
    yield farm
    farm.stop()


@both_versions
@pytest.mark.parametrize("mode", ["threads", "plain-asyncio", "uvloop", "stand-in-threads", "stand-in-plain-asyncio"])
def test_any_server_opens_them(farm: Farm, certificates: Path, version: ssl.TLSVersion, mode: str) -> None:
    """Also on event loops that know nothing of coatcheck: no handshake asks a store."""
    one, other = farm.start("web-1", mode), farm.start("web-2", mode)
    client = Client(certificates, version)
    client.visit(one)
    for server in (other, one, other):
        assert client.visit(server)["reused"]
    assert other.status()["opened"] == 2


def test_a_client_of_tls_1_3_gets_a_new_ticket_whenever_it_has_used_one(farm: Farm, certificates: Path) -> None:
    """Browsers offer each once, RFC 8446 appendix C.4."""
    one, other = farm.start("web-1"), farm.start("web-2")
    client = Client(certificates, TLS_1_3)
    client.visit(one)
    seen = set()
    for server in (other, one, other, one):
        assert client.session is not None
        assert client.session.id not in seen
        seen.add(client.session.id)
        assert client.visit(server)["reused"]
    assert other.status()["made"] == 2


@both_versions
def test_openssl_itself_comes_back_to_another_server(
    farm: Farm, certificates: Path, tmp_path: Path, version: ssl.TLSVersion
) -> None:
    one, other = farm.start("web-1"), farm.start("web-2")

    def connect(server: Server, *more: str) -> str:
        words = ["openssl", "s_client", "-connect", f"127.0.0.1:{server.port}", "-servername", HOST, "-ign_eof"]
        flag = "-tls1_2" if version is TLS_1_2 else "-tls1_3"
        request = b"GET / HTTP/1.1\r\n\r\n"
        ran = subprocess.run([*words, flag, *more], input=request, capture_output=True, timeout=PATIENCE_S, check=False)
        return ran.stdout.decode("ascii", "replace")

    kept = str(tmp_path / "session.pem")
    assert "New, TLSv1" in connect(one, "-sess_out", kept)
    assert "Reused, TLSv1" in connect(other, "-sess_in", kept)


def test_another_host_makes_a_full_handshake_and_a_sibling_does_not(farm: Farm, certificates: Path) -> None:
    one, other = farm.start("web-1"), farm.start("web-2")
    client = Client(certificates, TLS_1_3)
    client.visit(one)
    assert not client.visit(other, host=OTHER_HOST)["reused"]
    assert other.status()["refused"] == 1
    family = [[HOST, OTHER_HOST]]
    third, fourth = farm.start("web-3", siblings=family), farm.start("web-4", siblings=family)
    client = Client(certificates, TLS_1_3)
    client.visit(third)
    assert client.visit(fourth, host=OTHER_HOST)["reused"]


@both_versions
def test_a_ticket_outlives_the_period_of_its_key_and_not_its_own_life(
    farm: Farm, certificates: Path, version: ssl.TLSVersion
) -> None:
    short = {"period": 20, "lifetime": 30}
    one, other = farm.start("web-1", tickets=short), farm.start("web-2", tickets=short)
    client = Client(certificates, version)
    client.visit(one)
    session = client.session
    ends = (time.time() // 20 + 1) * 20

    def now_it_is(moment: float) -> None:
        for server in (one, other):
            server.status(f"ahead {moment - time.time()}")
            server.wait_for(lambda status: status["has_the_key"])

    now_it_is(ends + 1)
    assert client.visit(other, session=session)["reused"], "the period is over, the ticket is not"
    now_it_is(ends + 31)
    assert not client.visit(other, session=session)["reused"]
    client.visit(one)
    assert client.visit(other)["reused"], "with the keys of now it goes on"


def test_a_server_that_starts_later_opens_what_was_sealed_before(farm: Farm, certificates: Path) -> None:
    short = {"period": 2, "lifetime": 20}
    one = farm.start("web-1", tickets=short)
    client = Client(certificates, TLS_1_3)
    client.visit(one)
    time.sleep(2.2)
    assert client.visit(farm.start("web-2", tickets=short))["reused"]


def test_without_a_store_handshakes_are_full_ones_and_with_one_again_shared(certificates: Path, tmp_path: Path) -> None:
    port = free_port()
    farm = Farm(certificates, f"redis://127.0.0.1:{port}", tickets={"period": 4, "lifetime": 600})
    redis = None
    try:
        servers = [Server(certificates, name, f"redis://127.0.0.1:{port}", tickets={"period": 4, "lifetime": 600})
                   for name in ("web-1", "web-2")]  # fmt: skip
        farm.running += servers
        one, other = servers
        client = Client(certificates, TLS_1_3)
        assert [client.visit(server)["reused"] for server in (one, other)] == [False, False]
        assert one.status()["alone"] > 0
        redis = start_redis(port, tmp_path)
        for server in servers:
            server.wait_for(lambda status: status["has_the_key"] and all(status["stores"].values()))
        client.visit(one)
        assert client.visit(other)["reused"]
        redis.kill()
        redis.wait(PATIENCE_S)
        assert client.visit(one)["reused"], "no handshake asks it"
        redis = start_redis(port, tmp_path)
        third = farm.start("web-3")
        client = Client(certificates, TLS_1_3)
        client.visit(one)
        one.wait_for(lambda status: all(status["stores"].values()))
        assert client.visit(other)["reused"]
        assert third.status()["active"]
    finally:
        farm.stop()
        if redis is not None:
            redis.kill()
            redis.wait(PATIENCE_S)


def test_a_store_that_was_restarted_empty_is_told_of_the_key(certificates: Path, tmp_path: Path) -> None:
    """Before a server that starts then could propose another one."""
    port, short = free_port(), {"period": 20, "lifetime": 600}
    farm = Farm(certificates, f"redis://127.0.0.1:{port}", tickets=short)
    redis = start_redis(port, tmp_path)
    try:
        one = farm.start("web-1")
        redis.kill()
        redis.wait(PATIENCE_S)
        one.wait_for(lambda status: not any(status["stores"].values()))
        redis = start_redis(port, tmp_path)
        one.wait_for(lambda status: all(status["stores"].values()))
        client = Client(certificates, TLS_1_3)
        client.visit(one)
        assert client.visit(farm.start("web-2"))["reused"]
        assert farm.running[-1].status()["opened"] == 1
    finally:
        farm.stop()
        redis.kill()
        redis.wait(PATIENCE_S)


def test_a_server_with_another_ring_opens_nothing(farm: Farm, certificates: Path, redis_url: str) -> None:
    one = farm.start("web-1")
    stranger = Server(certificates, "web-9", redis_url, tickets=LONG, key="x" * 11 + KEY[11:][::-1], **farm._options)
    farm.running.append(stranger)
    client = Client(certificates, TLS_1_3)
    client.visit(one)
    assert not client.visit(stranger)["reused"]
    assert not stranger.status()["has_the_key"]


FORKED = """
import os, ssl, sys
from pathlib import Path
from tls.farm import HOST
from coatcheck.tls import share_ticket_keys
folder, key = Path(sys.argv[1]), sys.argv[2]
context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
context.load_cert_chain(folder / "server.pem")
shared = share_ticket_keys(context, store="sqlite:///" + sys.argv[3], keyring=key, required=True)
client = ssl.create_default_context(cafile=folder / "ca.pem")

def shake(session):
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=HOST, session=session)
    other = context.wrap_bio(to_server, to_client, server_side=True)
    done = set()
    while len(done) < 2:
        for side in (one, other):
            try:
                side.do_handshake()
                done.add(side)
            except ssl.SSLWantReadError:
                continue
    other.write(b"x")
    one.read(1)
    return one

session = shake(None).session
child = os.fork()
if not child:
    print(shake(session).session_reused, len(os.listdir("/proc/self/task")) > 1, flush=True)
    os._exit(0)
os.waitpid(child, 0)
"""


def test_forked_workers_have_the_keys_and_ask_for_the_next_ones_themselves(certificates: Path, tmp_path: Path) -> None:
    words = [sys.executable, "-c", FORKED, str(certificates), KEY, str(tmp_path / "keys.db")]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    said = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert said.stdout == "True True\n", said.stderr


@pytest.mark.parametrize(
    "wrong",
    [{"period": 0.5}, {"period": "25h"}, {"lifetime": "7d"}, {"farm": "a b"}, {"store": []}, {"siblings": [""]}],
)
def test_a_wrong_setting_is_one_clear_line(wrong: dict[str, object], certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    settings: dict[str, object] = {"store": "memory://", "keyring": KEY, **wrong}
    with pytest.raises(ConfigError) as raised:
        share_ticket_keys(context, **settings)  # type: ignore[arg-type]
    assert "\n" not in str(raised.value)


def test_a_context_is_shared_in_one_way(certificates: Path) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    shared = share_ticket_keys(context, store="memory://", keyring=KEY, required=True)
    with pytest.raises(ConfigError, match="already"):
        share_sessions(context, store="memory://", server="web-1", keyring=KEY)
    shared.close()
