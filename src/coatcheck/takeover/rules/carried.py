"""What a director knows of a connection whose TLS it does not end: counts, the client's unanswered records, and a state
that it cannot read (mission C1, C7, C8). Bytes in, bytes out; who is connected to whom is for ``passing``.
"""

from __future__ import annotations

from collections import deque
from enum import Enum
from typing import Final

from coatcheck.takeover.rules.inner_frames import (
    FROM_SERVER,
    MAX_STATE_BYTES,
    Frame,
    Hello,
    hello,
    read_commit,
    read_repeatable,
)
from coatcheck.takeover.rules.tls_records import APPLICATION_DATA, HEADER_BYTES, BadRecord, RecordSplitter

_AROUND_CONTENT_BYTES: Final = HEADER_BYTES + 1 + 16
"""Of a record without padding: its header, its inner type and its tag."""
MAX_SENDS: Final = 3
"""Web servers that may get the same unanswered records: after so many deaths over one request it is at fault itself."""
MAX_GIVES: Final = 15
"""Web servers that a connection may have in a row, without an answer in between: each begins with a KeyUpdate, and some
clients take no more than 16 of those without data (Go's ``crypto/tls``; OpenSSL and BoringSSL: 32)."""
_RECORD_COST: Final = 128
"""What a record that is kept costs besides its bytes."""


class Loss(Enum):
    """What becomes of a connection whose web server is gone."""

    BEGIN_ANEW = "nothing has left for the client: another web server gets its ClientHello"
    RESUME = "another web server goes on with it"
    HANDSHAKE = "its handshake was half done"
    NO_STATE = "its web server left no state"
    HALF_ANSWERED = "a part of a response has left"
    NOT_KEPT = "the client has sent more than is kept since the last answer"
    TOO_OFTEN = "several web servers have died over the same request"

    @property
    def goes_on(self) -> bool:
        """Whether another web server can have it."""
        return self is Loss.BEGIN_ANEW or self is Loss.RESUME


class ServerSays(Enum):
    """What a web server said besides bytes for the client."""

    ESTABLISHED = "the handshake is done"
    RELEASED = "it has let go of the connection"
    CLOSE = "the connection is over"
    BREAK = "the connection is over, and the client is to see a break"


_SAYS: Final = {
    Frame.ESTABLISHED: ServerSays.ESTABLISHED,
    Frame.RELEASED: ServerSays.RELEASED,
    Frame.CLOSE: ServerSays.CLOSE,
    Frame.BREAK: ServerSays.BREAK,
}


class CarriedConnection:
    """One client's connection: counts records in both directions, and keeps what may have to be sent again."""

    __slots__ = (
        "_begun",
        "_commits",
        "_committed",
        "_from_client",
        "_from_server",
        "_given",
        "_kept",
        "_kept_bytes",
        "_kept_to",
        "_left",
        "_left_at",
        "_max_kept_bytes",
        "_repeatable",
        "_since_commit",
        "_spoken",
        "delivered",
        "established",
        "received",
        "sends",
        "state",
    )  # fmt: skip

    def __init__(self, max_kept_bytes: int) -> None:
        """``max_kept_bytes``: of the client's unanswered records; beyond it no other web server can go on."""
        self._max_kept_bytes = max_kept_bytes
        self._from_client = RecordSplitter()
        self._from_server = RecordSplitter(*FROM_SERVER)
        self.state = b""
        """What the web server left with us; sealed."""
        self._kept: deque[tuple[int, bytes]] = deque()
        """The client's records behind the last commit, each with the count of encrypted ones up to it."""
        self._kept_bytes = 0
        self._kept_to = 0
        """Behind this count all of them are kept: beyond the bound they are let go of."""
        self._commits: deque[tuple[int, int]] = deque()
        """What is answered when so many records have been delivered."""
        self._committed = 0
        self._since_commit = 0
        self._given = 0
        """How many web servers have had it since the last answer."""
        self._begun = False
        """Whether of what is not answered something was begun that must not be done twice."""
        self._repeatable = b""
        """What the web server said of the response of which a part has left."""
        self._left = 0
        """How many bytes of content have left behind the last commit."""
        self._left_at: tuple[int, int] | None = None
        """Behind which record so many of them have left."""
        self._spoken = False
        self.received = 0
        """Encrypted records of the client's."""
        self.delivered = 0
        """Encrypted records that have left for the client."""
        self.established = False
        self.sends = 0
        """How many web servers were given the unanswered records."""

    @property
    def is_settled(self) -> bool:
        """Whether all that the client has sent is answered."""
        return self.established and self._committed >= self.received and self._from_client.is_empty

    @property
    def is_kept_whole(self) -> bool:
        """Whether all that is not answered can be given to another web server."""
        return self._kept_to <= self._committed

    def from_client(self, data: bytes) -> bytes:
        """What of it is whole records, for the web server. Raises :class:`BadRecord`."""
        records = self._from_client.feed(data)
        for record in records:
            if record[0] == APPLICATION_DATA:
                self.received += 1
            self._keep(record)
        return b"".join(records)

    def _keep(self, record: bytes) -> None:
        if self.established and not self.state:
            return
        self._kept.append((self.received, record))
        self._kept_bytes += len(record) + _RECORD_COST
        if self._kept_bytes > self._max_kept_bytes:
            self._kept.clear()
            self._kept_bytes = 0
            # Records that are not encrypted count with the next one that is.
            self._kept_to = self.received if record[0] == APPLICATION_DATA else self.received + 1

    def from_server(self, data: bytes) -> tuple[bytes, list[ServerSays]]:
        """What of it goes to the client, and what the web server said besides. Raises :class:`BadRecord`."""
        out: list[bytes] = []
        said: list[ServerSays] = []
        for record in self._from_server.feed(data):
            kind = record[0]
            if kind <= APPLICATION_DATA:
                self._spoken = True
                if kind == APPLICATION_DATA:
                    self.delivered += 1
                    self._since_commit += 1
                    self._left += len(record) - _AROUND_CONTENT_BYTES
                    self._settle()
                out.append(record)
            elif kind == Frame.COMMIT:
                answered, after = read_commit(record)
                if not self._committed <= answered <= self.received:
                    raise BadRecord("a commit of records that did not come")
                self._commits.append((answered, self.delivered + after))
                self._settle()
            elif kind == Frame.REPEATABLE:
                left, after, sealed = read_repeatable(record)
                self._repeatable = _bounded(sealed)
                self._left_at = (self.delivered + after, left)
                self._settle()
            elif kind == Frame.BEGUN:
                self._begun = True
            elif kind == Frame.STATE:
                self.state = _bounded(record[HEADER_BYTES:])
            elif kind in _SAYS:
                self.established = self.established or kind == Frame.ESTABLISHED
                if kind == Frame.ESTABLISHED and not self.state:
                    self._forget_kept()
                said.append(_SAYS[Frame(kind)])
            else:
                raise BadRecord(f"a frame of the type {kind}")
        return b"".join(out), said

    def _settle(self) -> None:
        """What was announced to be answered is answered once its records have left."""
        if self._left_at is not None and self._left_at[0] <= self.delivered:
            self._left, self._left_at = self._left_at[1], None
        while self._commits and self._commits[0][1] <= self.delivered:
            answered, _ = self._commits.popleft()
            self._since_commit = self._left = 0
            self._repeatable, self._left_at = b"", None
            if answered > self._committed:
                self._committed = answered
                self.sends = 1
                self._begun = False
                self._given = 1
            kept = self._kept
            while kept and kept[0][0] <= self._committed:
                self._kept_bytes -= len(kept.popleft()[1]) + _RECORD_COST

    def _forget_kept(self) -> None:
        self._kept.clear()
        self._kept_bytes = 0

    # Who goes on

    def loss(self) -> Loss:
        """What becomes of it, now that its web server is gone without a word."""
        if not self._spoken:
            if self._given >= MAX_SENDS:
                return Loss.TOO_OFTEN
            return Loss.BEGIN_ANEW if self.is_kept_whole else Loss.NOT_KEPT
        if not self.established:
            return Loss.HANDSHAKE
        if not self.state:
            return Loss.NO_STATE
        if self._since_commit and not self._repeatable:
            return Loss.HALF_ANSWERED
        if not self.is_kept_whole:
            return Loss.NOT_KEPT
        if not self.may_be_given or (self._kept and self.sends >= MAX_SENDS):
            return Loss.TOO_OFTEN
        return Loss.RESUME

    @property
    def may_be_given(self) -> bool:
        """Whether one more web server may have it before it has an answer."""
        return self._given < MAX_GIVES

    def give(self, peer: tuple[str, int], local: tuple[str, int], *, looked_at: bool) -> bytes:
        """What a web server is sent first; then the client's further records follow.

        ``looked_at``: whether the one before may have carried out what is not answered.
        """
        self._from_server = RecordSplitter(*FROM_SERVER)
        self._commits.clear()
        self._left_at = None
        if not looked_at or not self._kept:
            self.sends = 0
            self._begun = False
        self._given += 1
        records = [record for _, record in self._kept]
        half = self._repeatable if self._since_commit else b""
        said = Hello(
            peer,
            local,
            self.state,
            self._committed,
            self.delivered,
            replayed=len(records) if self.sends else 0,
            sends=self.sends,
            begun=self._begun,
            repeatable=half,
            left=self._left if half else 0,
        )
        self.sends += 1
        return hello(said) + b"".join(records)


def _bounded(sealed: bytes) -> bytes:
    if len(sealed) > MAX_STATE_BYTES:
        raise BadRecord(f"{len(sealed)} bytes to be kept for the next web server")
    return sealed
