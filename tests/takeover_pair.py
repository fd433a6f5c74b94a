"""A TLS client, what a director knows of its connection, and a web server's end that echoes: in memory, for tests."""

from __future__ import annotations

import os
import ssl
from pathlib import Path

from coatcheck.takeover.io.handshake import Handshake, OpenSslTls
from coatcheck.takeover.io.key_log import KeyLog
from coatcheck.takeover.rules.carried import CarriedConnection
from coatcheck.takeover.rules.established import EstablishedTls
from coatcheck.takeover.rules.inner_frames import Frame, commit, frame, read_hello
from coatcheck.takeover.rules.live_state import LiveState, LiveStateSealer
from coatcheck.takeover.rules.tls_records import APPLICATION_DATA, RecordSplitter
from coatcheck.tokens.keyring import KeyRing

KEPT_BYTES = 1 << 17
ADDRESS = ("192.0.2.1", 40000)


class Pair:
    """One connection; the web server's end can be lost, and another one goes on."""

    def __init__(
        self,
        certificate: tuple[Path, Path],
        *,
        version: ssl.TLSVersion = ssl.TLSVersion.TLSv1_3,
        client_log: Path | None = None,
        ring: bytes = b"the ring of this farm" * 2,
    ) -> None:
        asks = ssl.create_default_context(cafile=str(certificate[0]))
        asks.maximum_version = version
        if client_log is not None:
            asks.keylog_filename = str(client_log)
        self._in, self._out = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = asks.wrap_bio(self._in, self._out, server_hostname="127.0.0.1")
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(*certificate)
        self._key_log = KeyLog(self._context)
        self.carried = CarriedConnection(KEPT_BYTES)
        self.sealer = LiveStateSealer(KeyRing([ring]), "farm", os.urandom)
        self._connection = os.urandom(16)
        self._server: EstablishedTls | OpenSslTls | None = None
        self._splitter = RecordSplitter(0, 255)
        self._taken = b""

    def shake_hands(self) -> None:
        handshake = Handshake(self._context, self._key_log)
        self.carried.give(ADDRESS, ADDRESS, looked_at=False)
        while handshake.done is None:
            try:
                self.client.do_handshake()
            except ssl.SSLWantReadError:
                pass
            for record in self._splitter.feed(self.carried.from_client(self._out.read())):
                said = handshake.feed(record)
                if handshake.done is not None:
                    said = self._established(handshake.done, said)
                self._deliver(said)
        self._server = handshake.done

    def _established(self, tls: EstablishedTls | OpenSslTls, said: bytes) -> bytes:
        words = frame(Frame.ESTABLISHED)
        if isinstance(tls, EstablishedTls):
            words = self._checkpoint(tls, tls.read) + words + commit(tls.read, len(RecordSplitter().feed(said)))
        return words + said

    def _checkpoint(self, tls: EstablishedTls, answered: int) -> bytes:
        self._taken = self.sealer.seal(tls.state(self._connection, os.urandom(16), answered))
        return frame(Frame.STATE, self._taken)

    def _deliver(self, said: bytes) -> None:
        out, _ = self.carried.from_server(said)
        self._in.write(out)

    def ask(self, data: bytes) -> bytes:
        """Send data, have it echoed, and read that."""
        self.client.write(data)
        self._take(self._splitter.feed(self.carried.from_client(self._out.read())))
        found = b""
        while len(found) < len(data):
            found += self.client.read(1 << 17)
        return found

    def _take(self, records: list[bytes]) -> None:
        assert isinstance(self._server, EstablishedTls)
        echo = b""
        for record in records:
            assert record[0] == APPLICATION_DATA
            data, reply = self._server.open(record)
            assert reply == b""
            echo += data
        sealed = self._server.seal(echo)
        self._deliver(commit(self._server.read, len(sealed)) + b"".join(sealed))

    def lose_server(self) -> None:
        """It is gone; another one is given what the director has."""
        assert self.carried.loss().goes_on
        records = RecordSplitter(0, 255).feed(self.carried.give(ADDRESS, ADDRESS, looked_at=True))
        hello = read_hello(records[0])
        state = self.sealer.open(hello.state)
        assert state is not None
        suite = state.cipher_suite
        self._server = EstablishedTls(suite, state.client, state.server, hello.committed, hello.delivered)
        update = self._server.update_key()
        words = self._checkpoint(self._server, hello.committed) + frame(Frame.ESTABLISHED)
        self._deliver(words + commit(hello.committed, 1) + update)
        assert records[1:] == []

    def carried_bytes(self) -> bytes:
        """The sealed state, as the director holds it."""
        return self.carried.state

    def state(self) -> LiveState:
        state = self.sealer.open(self.carried.state)
        assert state is not None
        return state
