"""A store on Valkey or Redis 6+: the put rule as a script, notices by publish/subscribe."""

from __future__ import annotations

from functools import partial
from typing import Any, Final

from coatcheck import resp
from coatcheck.errors import ConfigError
from coatcheck.event_log import log_event
from coatcheck.stores.address import StoreAddress, parse_url
from coatcheck.stores.events import EventSink, StoreEvent, StoreEventKind
from coatcheck.stores.greeting import say
from coatcheck.stores.link import DEFAULT_IDLE_PING_S, DEFAULT_TIMEOUT_S, Link
from coatcheck.stores.networked import NetworkedStore
from coatcheck.stores.valkey_scripts import BEAT, GET, PUT, digest

MAX_FARM_NAME_BYTES: Final = 64


class ValkeyStore(NetworkedStore):
    """Keeps entries in Valkey or Redis, under ``coatcheck:{<farm>}:`` and the key's 16 bytes.

    ``where`` is a URL (``redis://``, ``rediss://``, ``valkey://``, ``valkeys://``, ``unix://``) or an
    :class:`StoreAddress`. Every call is answered within ``timeout_s`` (seconds). Farms with different names share
    a server without meeting. Raises :class:`ConfigError` for a bad URL or farm name.
    """

    def __init__(
        self,
        name: str,
        where: str | StoreAddress,
        *,
        farm: str = "farm",
        timeout_s: float = DEFAULT_TIMEOUT_S,
        idle_ping_s: float = DEFAULT_IDLE_PING_S,
        on_event: EventSink = log_event,
    ) -> None:
        address = parse_url(where) if isinstance(where, str) else where
        if not farm or len(farm.encode()) > MAX_FARM_NAME_BYTES or set(farm) & set("{}\r\n"):
            raise ConfigError(
                f"farm: a name of 1 to {MAX_FARM_NAME_BYTES} bytes without braces is needed, not {farm!r}"
            )
        prefix = b"coatcheck:{%b}:" % farm.encode()
        channels = prefix + b"notices:"
        scripts = tuple(resp.command(b"SCRIPT", b"LOAD", script) for script in (PUT, GET))
        link = Link(
            name,
            address,
            prepare=partial(say, scripts),
            beat=resp.command(b"EVAL", BEAT, b"0"),
            channel_prefix=channels,
            timeout_s=timeout_s,
            idle_ping_s=idle_ping_s,
            on_event=on_event,
            on_connected=self._ask_for_eviction,
        )
        super().__init__(
            link,
            get_head=_script_head(GET, 0, prefix),
            put_head=_script_head(PUT, 4, prefix),
            notifying_head=_script_head(PUT, 5, prefix),
            put_tail=resp.bulk(channels),
            key_prefix=prefix,
            scripts=scripts,
            on_event=on_event,
        )
        self._eviction_reported = False

    def _ask_for_eviction(self) -> None:
        if not self._eviction_reported:
            self._link.call(resp.command(b"INFO", b"memory"), self._check_eviction)

    def _check_eviction(self, reply: Any) -> None:
        """All our keys expire, so with a memory limit every policy but ``noeviction`` may drop sessions."""
        if not isinstance(reply, bytes | str):
            return
        text = reply.decode("ascii", "replace") if isinstance(reply, bytes) else reply
        info = dict(line.split(":", 1) for line in text.split("\r\n") if ":" in line)
        policy = info.get("maxmemory_policy", "noeviction")
        if info.get("maxmemory", "0") != "0" and policy != "noeviction" and not self._eviction_reported:
            self._eviction_reported = True
            detail = f"maxmemory-policy is {policy}: the server may drop sessions; set it to noeviction"
            self._on_event(StoreEvent(self.name, StoreEventKind.EVICTION_POSSIBLE, detail))


def _script_head(script: bytes, arguments: int, prefix: bytes) -> bytes:
    """EVALSHA up to the key's 16 bytes."""
    return b"*%d\r\n$7\r\nEVALSHA\r\n%b$1\r\n1\r\n$%d\r\n%b" % (
        4 + arguments,
        resp.bulk(digest(script)),
        len(prefix) + 16,
        prefix,
    )
