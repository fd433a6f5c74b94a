"""Sessions that were made at one server process are resumed at another one, once, whatever serves and stores."""

from __future__ import annotations

import ssl
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from .farm import HOST, OTHER_HOST, TLS_1_2, TLS_1_3, VERSIONS, Client, Servers

WAYS = ["threads", "asyncio", "uvloop"]
pytestmark = pytest.mark.parametrize("mode", [*WAYS, *("stand-in-" + way for way in WAYS)])


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_session_goes_from_server_to_server(
    mode: str, store: str, version: ssl.TLSVersion, certificates: Path, servers: Servers
) -> None:
    one, other = servers(store, mode)
    client = Client(certificates, version)
    said = [client.visit(server) for server in (one, other, one, one, other)]
    assert [each["reused"] for each in said] == [False, True, True, True, True]
    assert [each["server"] for each in said] == ["web-1", "web-2", "web-1", "web-1", "web-2"]


def test_the_second_taker_of_a_session_gets_a_full_handshake(
    mode: str, certificates: Path, redis_url: str, servers: Servers
) -> None:
    one, other = servers(redis_url, mode)
    client = Client(certificates, TLS_1_3)
    client.visit(one)
    first = client.session
    assert client.visit(other, session=first)["reused"]
    for server in (one, other, one):
        assert not client.visit(server, session=first)["reused"]


def test_of_clients_that_race_with_one_session_one_resumes(
    mode: str, certificates: Path, redis_url: str, servers: Servers
) -> None:
    running = servers(redis_url, mode)
    client = Client(certificates, TLS_1_3)
    client.visit(running[0])
    session, said = client.session, Counter[bool]()

    def race(port: int) -> None:
        said[client.ask(port, session=session)["reused"]] += 1

    threads = [threading.Thread(target=race, args=(running[at % 2].port,)) for at in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert said == {True: 1, False: 19}


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_session_of_another_host_name_is_not_resumed(
    mode: str, version: ssl.TLSVersion, certificates: Path, redis_url: str, servers: Servers
) -> None:
    one, other = servers(redis_url, mode)
    client = Client(certificates, version)
    client.visit(one, host=HOST)
    before = other.status()["refused"]
    assert not client.visit(other, host=OTHER_HOST)["reused"]
    other.wait_for(lambda status: status["refused"] == before + 1)


def test_siblings_resume_each_others_sessions(mode: str, certificates: Path, redis_url: str, servers: Servers) -> None:
    one, other = servers(redis_url, mode, siblings=[[HOST, OTHER_HOST]])
    client = Client(certificates, TLS_1_3)
    client.visit(one, host=HOST)
    assert client.visit(other, host=OTHER_HOST)["reused"]


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_clients_certificate_is_known_after_a_resumption_elsewhere(
    mode: str, version: ssl.TLSVersion, certificates: Path, redis_url: str, servers: Servers
) -> None:
    one, other = servers(redis_url, mode, verify="CERT_REQUIRED")
    client = Client(certificates, version, with_certificate=True)
    assert client.visit(one)["client"] == "test client"
    again = client.visit(other)
    assert (again["reused"], again["client"]) == (True, "test client")


def test_a_server_that_demands_a_certificate_takes_no_session_that_was_made_without(
    mode: str, certificates: Path, redis_url: str, servers: Servers
) -> None:
    (lax,) = servers(redis_url, mode, names="web-1")
    (strict,) = servers(redis_url, mode, names="web-2", verify="CERT_OPTIONAL")
    client = Client(certificates, TLS_1_2)
    client.visit(lax)
    before = strict.status()["refused"]
    assert not client.visit(strict)["reused"]
    strict.wait_for(lambda status: status["refused"] == before + 1)


def test_farms_do_not_resume_each_others_sessions(
    mode: str, certificates: Path, redis_url: str, servers: Servers
) -> None:
    (one,) = servers(redis_url, mode, names="web-1")
    (other,) = servers(redis_url, mode, names="web-2", farm="two")
    client = Client(certificates, TLS_1_3)
    client.visit(one)
    assert not client.visit(other)["reused"]
    assert other.status()["offered"] == 0, "it cost no look-up"


def test_a_session_whose_life_is_over_is_not_resumed(
    mode: str, certificates: Path, redis_url: str, servers: Servers
) -> None:
    one, other = servers(redis_url, mode, lifetime=1)
    client = Client(certificates, TLS_1_2)
    client.visit(one)
    assert client.visit(other)["reused"]
    time.sleep(1.1)
    assert not client.visit(one)["reused"]
