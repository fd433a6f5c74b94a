"""Mutated records, frames, hellos and states: none may be accepted, and none may do more than be refused.

``python -m takeover.fuzz --inputs 1000000`` (with ``PYTHONPATH=tests``) does so many of each kind.
"""

from __future__ import annotations

import argparse
import logging
import random
import ssl
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Final

from coatcheck.takeover.io.live_entrance import InnerLink
from coatcheck.takeover.rules.carried import CarriedConnection
from coatcheck.takeover.rules.established import EstablishedTls
from coatcheck.takeover.rules.inner_frames import Frame, Hello, commit, frame, hello, repeatable
from coatcheck.takeover.rules.live_state import FORMAT, LiveState, LiveStateSealer
from coatcheck.takeover.rules.tls_records import BadRecord, RecordSplitter
from coatcheck.takeover.rules.traffic_keys import SUITES, Epoch, RecordWriter, TlsViolation
from coatcheck.tokens.keyring import KeyRing
from tls.farm import make_certificates

from .machine_room import Clock, Process, ends, joined
from .peers import MemoryClient
from .random_walk import RING, Server, Walk, server_context

LONGEST_S: Final = 1.0
"""Of CPU, for one input: more is a hang."""
ADDRESS = ("192.0.2.1", 40_000)


def mutated(rng: random.Random, data: bytes) -> bytes:
    """Some bytes changed, missing, doubled, or cut off."""
    made = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(6):
            case 0 if at < len(made):
                made[at] = rng.randrange(256)
            case 1 if at < len(made):
                made[at] ^= 1 << rng.randrange(8)
            case 2:
                del made[at : at + rng.randint(1, 8)]
            case 3:
                made[at:at] = rng.randbytes(rng.randint(1, 8))
            case 4:
                made[at:at] = made[at : at + rng.randint(1, 40)]
            case _:
                del made[at:]
    return bytes(made)


class Fuzz:
    """One kind of input after another; each answers what became of it."""

    def __init__(self, seed: int, certificate: Path) -> None:
        self.rng = random.Random(seed)
        self._certificate = certificate
        self._context = server_context(certificate)
        self._sealer = LiveStateSealer(KeyRing([RING]), "farm", self.rng.randbytes)
        epoch = Epoch(0, 0, bytes(32))
        self._suite = SUITES["TLS_AES_128_GCM_SHA256"]
        self._epoch = epoch
        keys = (Epoch(3, 0, bytes(32)),)
        self._state = LiveState(FORMAT, bytes(16), bytes(16), self._suite.name, keys, keys)
        self._sealed = self._sealer.seal(self._state)
        self._hello = hello(Hello(ADDRESS, ADDRESS, self._sealed, 3, 3, 1, 1))
        self._client_hello = MemoryClient().handshake()
        self._walk = Walk(0, lambda: server_context(certificate))
        self._server = self._new_server()
        self.kinds: dict[str, Callable[[], str]] = {
            "records": self.record, "frames": self.frames, "client streams": self.client_stream,
            "states": self.state, "inner links": self.inner_link, "client hellos": self.client_hello,
        }  # fmt: skip

    def _new_server(self) -> Server:
        return Server(self._walk, "web")

    def record(self) -> str:
        """A record of the client's, changed."""
        rng = self.rng
        content = rng.randbytes(rng.choice([0, 1, 5, 100]))
        record = RecordWriter(self._suite, self._epoch, 0).seal(rng.choice([21, 22, 23]), content)
        changed = mutated(rng, record)
        server = EstablishedTls(self._suite, (self._epoch,), (self._epoch,), 0, 0)
        if len(changed) < 5 or changed == record:
            return "nothing"
        try:
            server.open(changed)
        except TlsViolation:
            assert server.read == server.sent == 0
            return "refused"
        raise AssertionError(f"accepted: {changed.hex()}")

    def frames(self) -> str:
        """What a web server says, changed."""
        carried = CarriedConnection(5000)
        carried.from_client(b"\x16\x03\x03\0\x01x\x17\x03\x03\0\x01x")
        said = b"".join(
            (frame(Frame.STATE, b"state"), frame(Frame.ESTABLISHED), commit(1, 1), b"\x17\x03\x03\0\x02ab",
             repeatable(5, 1, b"r"), frame(Frame.BEGUN), b"\x17\x03\x03\0\x01a", frame(Frame.RELEASED))
        )  # fmt: skip
        try:
            out, _ = carried.from_server(mutated(self.rng, said))
        except BadRecord:
            return "refused"
        assert all(20 <= record[0] <= 23 for record in RecordSplitter().feed(out))
        assert carried._committed <= carried.received
        carried.loss()
        return "taken"

    def client_stream(self) -> str:
        """What a client says, changed, in any pieces."""
        carried, rng = CarriedConnection(200), self.rng
        data = mutated(rng, self._client_hello + b"\x14\x03\x03\0\x01\x01" + b"\x17\x03\x03\0\x09whatever!" * 9)
        out = b""
        try:
            while data:
                size = rng.randint(1, 200)
                out += carried.from_client(data[:size])
                data = data[size:]
                assert sum(len(record) for _, record in carried._kept) <= 200
        except BadRecord:
            return "refused"
        return "taken"

    def state(self) -> str:
        """A sealed state, changed; and one that is sealed rightly and has something else in it."""
        changed = mutated(self.rng, self._sealed)
        assert changed == self._sealed or self._sealer.open(changed) is None
        assert self._sealer.open_repeatable(changed) is None
        return "refused"

    def inner_link(self) -> str:
        """What a director says first, changed: nothing but the end of the link may come of it."""
        rng, server, kept = self.rng, self._server, len(ends)
        director = Process("director", Clock())
        here, there = joined(director, server.process, 1 << 18)
        link = InnerLink(server.entrance)
        there.begin(link)
        link.data_received(mutated(rng, self._hello + self._client_hello))
        if not there.is_closing():
            link.data_received(mutated(rng, self._client_hello))
        said = bytes(here._in.queue)
        there.abort()
        while server.process.loop.turn():
            pass
        director.kill()
        server.process.loop._later.clear()
        assert not server.relay.traffic.connections, "somebody is let in"
        assert not server.relay.traffic.handshakes
        assert not server.process.ends
        assert len(ends) == kept, "a connection is kept"
        return f"{said[0]:#x}" if said else "silence"

    def client_hello(self) -> str:
        """A ClientHello, changed, for OpenSSL."""
        from coatcheck.takeover.io.handshake import Handshake

        handshake = Handshake(self._context, None)
        try:
            for record in RecordSplitter().feed(mutated(self.rng, self._client_hello)):
                handshake.feed(record)
        except (BadRecord, ssl.SSLError, OSError, ValueError) as error:
            return type(error).__name__
        assert handshake.done is None
        return "goes on"

    def run(self, kind: str, inputs: int) -> Counter[str]:
        """So many inputs of a kind. Raises whatever must not be raised."""
        came: Counter[str] = Counter()
        one = self.kinds[kind]
        for number in range(inputs):
            before = self.rng.getstate() if number % 64 == 0 else None
            began = time.process_time()
            came[one()] += 1
            assert time.process_time() - began < LONGEST_S, (kind, before)
        return came


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=1000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("kinds", nargs="*")
    arguments = parser.parse_args()
    logging.disable(logging.CRITICAL)
    with tempfile.TemporaryDirectory() as folder:
        make_certificates(Path(folder))
        fuzz = Fuzz(arguments.seed, Path(folder) / "server.pem")
        for kind in arguments.kinds or fuzz.kinds:
            began = time.process_time()
            came = fuzz.run(kind, arguments.inputs)
            print(f"{kind}: {dict(came.most_common(8))} in {time.process_time() - began:.1f} s", flush=True)


if __name__ == "__main__":
    main()
