"""The client of the embedded session server."""

from __future__ import annotations

import ssl

from coatcheck.event_log import log_event
from coatcheck.stores.address import StoreAddress
from coatcheck.stores.events import EventSink
from coatcheck.stores.link import DEFAULT_IDLE_PING_S, DEFAULT_TIMEOUT_S, Link
from coatcheck.stores.networked import NetworkedStore


class SessionServerStore(NetworkedStore):
    """Keeps entries in a :class:`coatcheck.session_server.server.SessionServer`, at ``host`` and ``port`` or ``path``.

    Every call is answered within ``timeout_s`` (seconds). With ``tls`` the server's certificate is verified
    as the context says. The ``password`` is proved by both ends and never sent; ``server_name``: take the proof of the
    server of this name alone. Behind a Unix socket only a server of our own user is believed.
    """

    def __init__(
        self,
        name: str,
        host: str = "",
        port: int = 0,
        *,
        path: str = "",
        server_name: str = "",
        password: str = "",
        tls: ssl.SSLContext | None = None,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        idle_ping_s: float = DEFAULT_IDLE_PING_S,
        on_event: EventSink = log_event,
    ) -> None:
        link = Link(
            name,
            StoreAddress(host=host, port=port, path=path, password=password, tls=tls, ours=True, name=server_name),
            timeout_s=timeout_s,
            idle_ping_s=idle_ping_s,
            on_event=on_event,
        )
        super().__init__(
            link,
            get_head=b"*2\r\n$6\r\nCC.GET\r\n$16\r\n",
            put_head=b"*5\r\n$6\r\nCC.PUT\r\n$16\r\n",
            notifying_head=b"*6\r\n$6\r\nCC.PUT\r\n$16\r\n",
            put_tail=b"",
            key_prefix=b"",
            scripts=(),
            on_event=on_event,
        )
