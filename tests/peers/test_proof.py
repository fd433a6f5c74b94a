"""Mutual proof of the farm's credential: what is accepted, and above all what is not."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Callable

import pytest

from coatcheck.errors import ForeignPeer
from coatcheck.peers.preamble import MAX_LINE_BYTES, ClientPreamble, ServerPreamble
from coatcheck.peers.proof import Service, Side, proof

SECRET = "the farm's credential"
ONE, TWO = b"\x01" * 32, b"\x02" * 32


def always(nonce: bytes) -> Callable[[int], bytes]:
    return lambda count: nonce


def test_a_proof_is_what_the_documentation_says() -> None:
    text = b"coatcheck link 1\x00web server\x00client\x00" + ONE + TWO + b"web-1"
    expected = hmac.new(SECRET.encode(), text, hashlib.sha256).digest()
    shown = proof(SECRET, Service.WEB_SERVER, Side.CLIENT, "web-1", client_nonce=ONE, server_nonce=TWO)
    assert shown == expected


def test_no_proof_stands_for_another() -> None:
    made = {
        proof(secret, service, side, name, client_nonce=mine, server_nonce=theirs)
        for secret in (SECRET, "another")
        for service in Service
        for side in Side
        for name in ("web-1", "web-2")
        for mine, theirs in ((ONE, TWO), (TWO, ONE), (ONE, ONE))
    }
    assert len(made) == 2 * 2 * 2 * 2 * 3


@pytest.mark.parametrize(("secret", "nonce"), [("", ONE), (SECRET, b""), (SECRET, ONE + b"x")])
def test_what_proves_nothing_is_refused(secret: str, nonce: bytes) -> None:
    with pytest.raises(ValueError, match=r"nonce|empty"):
        proof(secret, Service.WEB_SERVER, Side.CLIENT, "web-1", client_nonce=nonce, server_nonce=TWO)


def meet(client: ClientPreamble, server: ServerPreamble) -> None:
    assert server.feed(client.answer(server.feed(client.greeting))) == b""
    assert server.done


def test_both_ends_are_convinced_however_the_bytes_come() -> None:
    meet(ClientPreamble(SECRET, "web-1", os.urandom), ServerPreamble(SECRET, "web-1", os.urandom))
    client, server = ClientPreamble(SECRET, "web-1", os.urandom), ServerPreamble(SECRET, "web-1", os.urandom)
    said = b"".join(server.feed(client.greeting[at : at + 1]) for at in range(len(client.greeting)))
    last = client.answer(said)
    for at in range(len(last)):
        assert not server.done
        server.feed(last[at : at + 1])
    assert server.done
    client, server = ClientPreamble(SECRET, "web-1", os.urandom), ServerPreamble(SECRET, "web-1", os.urandom)
    server.feed(client.answer(server.feed(client.greeting)) + b"GET / HTTP/1.1\r\n")
    assert (server.done, server.rest) == (True, b"GET / HTTP/1.1\r\n")


def test_a_client_proves_nothing_to_a_server_that_does_not_know_the_credential() -> None:
    client = ClientPreamble(SECRET, "web-1", os.urandom)
    assert SECRET.encode() not in client.greeting
    wrong = ServerPreamble("a guess", "web-1", os.urandom).feed(client.greeting)
    # Its own words sent back, an answer for another nonce, and what is no answer at all.
    other = ServerPreamble(SECRET, "web-1", os.urandom).feed(ClientPreamble(SECRET, "web-1", os.urandom).greeting)
    for line in (
        wrong,
        other,
        client.greeting,
        b"HTTP/1.1 400 Bad Request\r\n",
        b"",
        b"\xff\r\n",
        wrong[:-3] + b"\r\n",
    ):
        with pytest.raises(ForeignPeer):
            client.answer(line)


def test_another_server_of_the_farm_cannot_help_the_one_who_took_a_port() -> None:
    client = ClientPreamble(SECRET, "web-1", os.urandom)
    with pytest.raises(ForeignPeer):
        ServerPreamble(SECRET, "web-2", os.urandom).feed(client.greeting)
    relayed = client.greeting.replace(b"web-1", b"web-2")
    with pytest.raises(ForeignPeer):
        client.answer(ServerPreamble(SECRET, "web-2", os.urandom).feed(relayed))


def test_a_server_serves_nobody_who_does_not_know_the_credential() -> None:
    greeting = ClientPreamble(SECRET, "web-1", always(ONE)).greeting
    for wrong in (b"0" * 64, b"", b"f" * 63, b"\xff" * 64):
        server = ServerPreamble(SECRET, "web-1", os.urandom)
        server.feed(greeting)
        with pytest.raises(ForeignPeer):
            server.feed(wrong + b"\r\n")
    # What the server said itself, and what an earlier connection was answered.
    server = ServerPreamble(SECRET, "web-1", always(TWO))
    said = server.feed(greeting)
    with pytest.raises(ForeignPeer):
        server.feed(said.split(b" ")[2])
    earlier = ClientPreamble(SECRET, "web-1", always(ONE)).answer(said)
    replayed = ServerPreamble(SECRET, "web-1", os.urandom)
    replayed.feed(greeting)
    with pytest.raises(ForeignPeer):
        replayed.feed(earlier)


@pytest.mark.parametrize(
    "hostile",
    [b"GET / HTTP/1.1\r\n", b"\r\n", b"x" * (MAX_LINE_BYTES + 1), b"COATCHECK/1 web-1 zz\r\n", b"COATCHECK/1  \r\n"],
)
def test_anything_else_is_no_greeting(hostile: bytes) -> None:
    with pytest.raises(ForeignPeer):
        ServerPreamble(SECRET, "web-1", os.urandom).feed(hostile)
