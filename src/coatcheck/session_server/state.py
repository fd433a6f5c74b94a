"""What a session server knows: its table, its subscribers and its counters. No sockets."""

from __future__ import annotations

import asyncio
import hmac
import logging
from collections.abc import Callable
from typing import Final, Protocol

from coatcheck import resp
from coatcheck.peers.proof import Service, Side, proof
from coatcheck.seldom import Seldom
from coatcheck.session_server.table import DEFAULT_MAX_ENTRIES, EntryTable
from coatcheck.take_once.table import ItemTable

MAX_CHANNELS_PER_CLIENT: Final = 64
MAX_CHANNEL_BYTES: Final = 64
MAX_MESSAGE_BYTES: Final = 4096


log = logging.getLogger("coatcheck.session_server")


class Client(Protocol):
    """A connected client, as the commands see it."""

    authenticated: bool
    resp3: bool
    closing: bool
    failed_logins: int
    awaited_proof: bytes
    """What it has to answer to our challenge; empty if it was not challenged."""
    channels: set[bytes]

    @property
    def transport(self) -> asyncio.BaseTransport | None:
        """The connection; ``None`` before it is made and after it is lost."""
        ...

    def push(self, message: bytes) -> None:
        """Send bytes that answer no request."""
        ...

    def overdue(self, now: float) -> bool:
        """Whether it has kept us waiting for too long."""
        ...

    def abort(self) -> None:
        """Drop the connection at once."""
        ...


class Items(Protocol):
    """What may be taken once, as the commands see it: :class:`coatcheck.take_once.table.ItemTable`, or what passes each
    call on and raises :class:`coatcheck.take_once.port.TakeOnceUnavailable`."""

    held_bytes: int

    def __len__(self) -> int: ...

    def put(self, key: bytes, item: bytes, life_ms: int, after: bytes, now_ms: int) -> bool: ...

    def take(self, key: bytes, nonce: bytes, now_ms: int) -> bytes | None: ...

    def purge(self, key: bytes, now_ms: int) -> bool: ...

    def agree(self, key: bytes, proposal: bytes, life_ms: int, instead_of: bytes, now_ms: int) -> bytes: ...

    def sweep(self, now_ms: int, steps: int) -> None: ...


class SessionState:
    """The state behind all connections of one session server.

    ``clock`` answers seconds and never goes back; ``unix_s`` is what this host takes for the time, in Unix seconds.
    """

    def __init__(
        self,
        name: str,
        password: str,
        clock: Callable[[], float],
        unix_s: Callable[[], float],
        max_bytes: int,
        max_entries: int = DEFAULT_MAX_ENTRIES,
    ) -> None:
        self.name = name
        self.unix_s = unix_s
        self.started_at = unix_s()
        self.table = EntryTable(self.publish, max_bytes, max_entries)
        self.items: Items = ItemTable()
        """What may be taken once; it dies with this process."""
        self.taken_over = 0
        """Entries that were a predecessor's."""
        self.puts = 0
        self.gets = 0
        self.refused = 0
        self.refused_full = 0
        """Puts for which there was no room."""
        self.clients: dict[Client, None] = {}
        self.seldom = Seldom(log, clock)
        self._password = password.encode()
        self._clock = clock
        self._channels: dict[bytes, dict[Client, None]] = {}

    def now_ms(self) -> int:
        return int(self._clock() * 1000)

    @property
    def needs_password(self) -> bool:
        return bool(self._password)

    def is_password(self, shown: bytes) -> bool:
        return hmac.compare_digest(shown, self._password)

    def proofs(self, client_nonce: bytes, server_nonce: bytes) -> tuple[bytes, bytes]:
        """Our proof that we know the password, and the one that the client has to show.

        Raises ``ValueError`` for nonces of a wrong length.
        """
        ours, theirs = (
            proof(
                self._password.decode(),
                Service.SESSION_SERVER,
                side,
                self.name,
                client_nonce=client_nonce,
                server_nonce=server_nonce,
            )
            for side in (Side.SERVER, Side.CLIENT)
        )
        return ours, theirs

    def subscribe(self, client: Client, channel: bytes) -> None:
        self._channels.setdefault(channel, {})[client] = None
        client.channels.add(channel)

    def unsubscribe(self, client: Client, channel: bytes) -> None:
        client.channels.discard(channel)
        listeners = self._channels.get(channel)
        if listeners is not None:
            listeners.pop(client, None)
            if not listeners:
                del self._channels[channel]

    def forget(self, client: Client) -> None:
        """The client is gone."""
        self.clients.pop(client, None)
        for channel in list(client.channels):
            self.unsubscribe(client, channel)

    def publish(self, channel: bytes, message: bytes) -> int:
        """Send a message to the subscribers of a channel; answers how many there are."""
        listeners = list(self._channels.get(channel, ()))
        for client in listeners:
            client.push(resp.push(client.resp3, resp.bulk(b"message"), resp.bulk(channel), resp.bulk(message)))
        return len(listeners)

    def status(self) -> dict[str, str | int | float]:
        """Figures for operators: entries (tombstones included), bytes, their bounds, items that may be taken once,
        connections, puts, refused, start.

        ``full``: new sessions are refused; those that exist go on.
        """
        return {
            "name": self.name,
            "entries": self.table.entries,
            "tombstones": self.table.tombstones,
            "bytes": self.table.held_bytes,
            "max_entries": self.table.max_entries,
            "max_bytes": self.table.max_bytes,
            "items": len(self.items),
            "item_bytes": self.items.held_bytes,
            "full": self.table.is_full,
            "refused_full": self.refused_full,
            "connections": len(self.clients),
            "taken_over": self.taken_over,
            "puts": self.puts,
            "gets": self.gets,
            "refused": self.refused,
            "started_at": self.started_at,
        }
