"""The first words to a RESP server, whatever carries them: proof or password, protocol, database."""

from __future__ import annotations

import os
from collections.abc import Generator, Sequence
from typing import Any, Final, TypeVar

from coatcheck import resp
from coatcheck.peers.proof import NONCE_BYTES, Service, Side, is_proof, proof
from coatcheck.stores.address import StoreAddress

T = TypeVar("T")
Steps = Generator[bytes, Any, T]
"""Yields each request and is sent its reply, which is no error. So what is said stands once, whoever waits how."""

_STANDALONE: Final = {b"mode": b"standalone", b"role": b"master"}
"""What a server says in its answer to HELLO whose replies and notices come in order: one process, and no replica."""


class HandshakeRefused(Exception):
    """The server answered a step of the handshake with an error, or with what no server of ours says."""


def greet(address: StoreAddress) -> Steps[bool]:
    """Ends with whether replies and notices keep their order there; raises :class:`HandshakeRefused`."""
    hello = [b"HELLO", b"3"]
    if address.password and address.ours:
        yield from _prove(address)
    elif address.password:
        user = address.username or "default"
        hello += [b"AUTH", user.encode(), address.password.encode()]
    told = yield resp.command(*hello)
    if address.db:
        yield resp.command(b"SELECT", b"%d" % address.db)
    return isinstance(told, dict) and all(told.get(name) == word for name, word in _STANDALONE.items())


def _prove(address: StoreAddress) -> Steps[None]:
    """Have the server prove that it knows the password, then prove the same; see :mod:`coatcheck.peers.proof`."""
    nonce = os.urandom(NONCE_BYTES)
    challenged = yield resp.command(b"CC.CHALLENGE", address.name.encode(), nonce)
    try:
        name, theirs, shown = (bytes(part) for part in challenged)
        mine, expected = (
            proof(
                address.password,
                Service.SESSION_SERVER,
                side,
                address.name or name.decode(),
                client_nonce=nonce,
                server_nonce=theirs,
            )
            for side in (Side.CLIENT, Side.SERVER)
        )
    except (TypeError, ValueError):
        raise HandshakeRefused("not the answer of a session server of ours") from None
    if not is_proof(shown, expected):
        raise HandshakeRefused("it does not know the password")
    yield resp.command(b"CC.ANSWER", mine)


def say(requests: Sequence[bytes]) -> Steps[None]:
    """Requests whose replies say nothing but that all is well."""
    for request in requests:  # noqa: UP028 - a sequence takes no replies
        yield request
