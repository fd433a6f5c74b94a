"""The proof of the farm's credential before HTTP begins, on TCP connections from directors to web servers.

Three lines of ASCII; then the connection is HTTP as if nothing had been::

    client  COATCHECK/1 web-1 <client nonce>
    server  COATCHECK/1 <server nonce> <proof>
    client  <proof>

Nonces and proofs are in hex (:mod:`coatcheck.peers.proof` says what they are). Pure: randomness is given.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

from coatcheck.errors import ForeignPeer
from coatcheck.peers.proof import MAX_NAME_BYTES, NONCE_BYTES, Service, Side, is_proof, proof

MAX_LINE_BYTES: Final = 256
_MAGIC: Final = b"COATCHECK/1 "
_NAME: Final = re.compile(rb"[A-Za-z0-9._-]{1,%d}" % MAX_NAME_BYTES)
_HEX: Final = re.compile(rb"[0-9a-f]{64}")

Random = Callable[[int], bytes]


class ClientPreamble:
    """The client's two lines of one connection."""

    def __init__(self, credential: str, name: str, random: Random) -> None:
        self._credential = credential
        self._name = name
        self._nonce = random(NONCE_BYTES)
        self.greeting = _MAGIC + name.encode() + b" " + self._nonce.hex().encode() + b"\r\n"

    def answer(self, line: bytes) -> bytes:
        """The last line, once the server has proved itself.

        Raises :class:`ForeignPeer` if it has not; then nothing of ours has been sent that proves anything.
        """
        nonce, shown = _two(line.removesuffix(b"\r\n"), _HEX)
        if nonce is None or not is_proof(bytes.fromhex(shown.decode()), self._proof(Side.SERVER, nonce)):
            raise ForeignPeer(f"what listens there did not prove that it is {self._name} of this farm")
        return self._proof(Side.CLIENT, nonce).hex().encode() + b"\r\n"

    def _proof(self, side: Side, nonce: bytes) -> bytes:
        server_nonce = bytes.fromhex(nonce.decode())
        return proof(
            self._credential,
            Service.WEB_SERVER,
            side,
            self._name,
            client_nonce=self._nonce,
            server_nonce=server_nonce,
        )


class ServerPreamble:
    """The server's part of one connection: fed with bytes until :attr:`done`; then :attr:`rest` belongs to HTTP."""

    def __init__(self, credential: str, name: str, random: Random) -> None:
        self._credential = credential
        self._name = name
        self._nonce = random(NONCE_BYTES)
        self._expected: bytes | None = None
        self.done = False
        self.rest = b""

    def feed(self, data: bytes) -> bytes:
        """Take what came; answers what to send now, if anything.

        Raises :class:`ForeignPeer` for anything but the next line of a director of this farm.
        """
        self.rest += data
        out = b""
        while not self.done:
            line, end, rest = self.rest.partition(b"\r\n")
            if not end:
                if len(self.rest) > MAX_LINE_BYTES:
                    raise ForeignPeer("what came is no proof of the farm's credential")
                return out
            self.rest = rest
            out += self._take(line)
        return out

    def _take(self, line: bytes) -> bytes:
        if self._expected is None:
            name, nonce = _two(line, _NAME)
            if name is None or name != self._name.encode():
                raise ForeignPeer("what came is no greeting of a director of this farm")
            client_nonce = bytes.fromhex(nonce.decode())
            self._expected = self._proof(Side.CLIENT, client_nonce).hex().encode()
            shown = self._proof(Side.SERVER, client_nonce).hex().encode()
            return _MAGIC + self._nonce.hex().encode() + b" " + shown + b"\r\n"
        if not is_proof(line, self._expected):
            raise ForeignPeer("a director that does not know the farm's credential")
        self.done = True
        return b""

    def _proof(self, side: Side, client_nonce: bytes) -> bytes:
        return proof(
            self._credential,
            Service.WEB_SERVER,
            side,
            self._name,
            client_nonce=client_nonce,
            server_nonce=self._nonce,
        )


def _two(line: bytes, first: re.Pattern[bytes]) -> tuple[bytes | None, bytes]:
    """The two words behind the magic one, one that matches ``first`` and 64 hex digits; ``None``: no such line."""
    words = line[len(_MAGIC) :].split(b" ") if line.startswith(_MAGIC) else []
    if len(words) != 2 or not first.fullmatch(words[0]) or not _HEX.fullmatch(words[1]):
        return None, b""
    return words[0], words[1]
