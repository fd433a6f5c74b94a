"""Seals for the simulation: the product's own, or stand-ins with the same promises that cost nothing."""

from __future__ import annotations

from random import Random
from typing import Any, Protocol

from coatcheck.errors import CorruptEntry
from coatcheck.replication.entry import Sealer
from coatcheck.tokens.keyring import KeyRing, PayloadSealer
from coatcheck.tokens.sealed import SealedToken, TokenCodec

FARM = "simulated"


class PlainSealer:
    """Binds the payload to key and header as the real one does, without any secret."""

    def seal(self, key: bytes, header: bytes, body: bytes) -> bytes:
        return key + header + body

    def knows(self, payload: bytes) -> bool:
        return True

    def unseal(self, key: bytes, header: bytes, payload: bytes) -> bytes:
        bound = key + header
        if not payload.startswith(bound):
            raise CorruptEntry("payload of another entry")
        return payload[len(bound) :]


class Codecs(Protocol):
    """What browsers hold, and how the farm reads it."""

    def seal(self, token: SealedToken, login: bool) -> Any: ...

    def open(self, sealed: Any, login: bool) -> SealedToken: ...


class PlainCodecs:
    """The token itself; nobody in the simulation looks into it."""

    def seal(self, token: SealedToken, login: bool) -> Any:
        return token

    def open(self, sealed: Any, login: bool) -> SealedToken:
        token: SealedToken = sealed
        return token


class RealCodecs:
    """The product's sealed tokens."""

    def __init__(self, ring: KeyRing, rng: Random) -> None:
        self._codecs = {
            login: TokenCodec(ring, "login" if login else "anonymous", FARM, rng.randbytes) for login in (False, True)
        }

    def seal(self, token: SealedToken, login: bool) -> Any:
        return self._codecs[login].seal_token(token)

    def open(self, sealed: Any, login: bool) -> SealedToken:
        return self._codecs[login].open(sealed)


def seals(real: bool, rng: Random) -> tuple[Sealer, Codecs]:
    """The seals of one farm."""
    if not real:
        return PlainSealer(), PlainCodecs()
    ring = KeyRing([rng.randbytes(32)])
    return PayloadSealer(ring, FARM, rng.randbytes), RealCodecs(ring, rng)
