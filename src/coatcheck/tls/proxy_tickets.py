"""The farm's ticket keys for proxies that end TLS: files for nginx, HAProxy and Envoy, and HAProxy's runtime socket.

Each proxy of the farm gets the keys of three periods: the present one seals, the one before and the next open. They are
changed in the proxy at the beginning of each period, everywhere alike. A proxy knows no hosts: its tickets open for any
of its host names, and are no use at a Python server that shares its own.
"""

from __future__ import annotations

import base64
import json
import logging
import os
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from coatcheck.errors import ConfigError
from coatcheck.seldom import Seldom
from coatcheck.tls.ticket_keys import TicketKey

RELOAD_LIMIT_S: Final = 30.0
SOCKET_LIMIT_S: Final = 2.0
MAX_ANSWER_BYTES: Final = 4096
NGINX_FILES: Final = ("now.key", "before.key", "next.key")
ENVOY_SECRET: Final = "ticket_keys"

_log: Final = logging.getLogger("coatcheck.tls")
_seldom: Final = Seldom(_log, time.monotonic)


class ProxyFiles(msgspec.Struct, frozen=True, kw_only=True):
    """What is written where; at least one of the first three.

    ``nginx``: a folder for ``now.key``, ``before.key`` and ``next.key``, to be named in this order by
    ``ssl_session_ticket_key``. ``haproxy``: the file that ``tls-ticket-keys`` names; ``haproxy_socket``: its runtime
    socket, so that it need not be reloaded. ``envoy``: a file for SDS (``path_config_source``), which Envoy watches;
    the secret is called ``ticket_keys``. ``reload``: a command that is run when files have changed (nginx needs one).
    """

    nginx: str = ""
    haproxy: str = ""
    haproxy_socket: str = ""
    envoy: str = ""
    reload: str = ""

    def check(self) -> None:
        """Raise :class:`ConfigError` if nothing is to be written, or cannot be."""
        if not (self.nginx or self.haproxy or self.envoy):
            raise ConfigError("ticket keys: name a place for nginx, haproxy or envoy")
        if self.haproxy_socket and not self.haproxy:
            raise ConfigError("ticket keys: haproxy_socket goes with haproxy, the file that HAProxy knows them by")
        if self.nginx and not self.reload:
            raise ConfigError("ticket keys: nginx reads its keys when it is reloaded: name a reload command")
        for place in (
            Path(self.nginx) if self.nginx else None,
            *[Path(f).parent for f in (self.haproxy, self.envoy) if f],
        ):
            if place is not None and not place.is_dir():
                raise ConfigError(f"ticket keys: there is no folder {place}")


class ProxyTickets:
    """Writes the keys of a moment where proxies look for them, when they are others than before."""

    def __init__(self, files: ProxyFiles) -> None:
        files.check()
        self._files = files
        self._last: list[bytes] = []
        self.changes = 0

    def write(self, keys: Sequence[TicketKey | None]) -> None:
        """``keys``: of the period before, the present one and the next. Without the present one nothing is changed: a
        proxy that has the keys of yesterday still opens what it sealed."""
        before, now, after = keys
        if now is None:
            _seldom.warning("the proxies keep the TLS ticket keys that they have: the farm's is not known")
            return
        whole = [_raw(one if one is not None else now) for one in (before, now, after)]
        if whole == self._last:
            return
        files = self._files
        if files.nginx:
            for name, raw in zip(NGINX_FILES, (whole[1], whole[0], whole[2]), strict=True):
                _replace(Path(files.nginx) / name, raw)
        if files.haproxy:
            _replace(Path(files.haproxy), b"".join(base64.b64encode(raw) + b"\n" for raw in whole))
        if files.envoy:
            _replace(Path(files.envoy), _envoy(whole))
        done = not files.reload or self._reload(files.reload)
        done = (not files.haproxy_socket or self._tell_haproxy(whole)) and done
        if done:
            self._last = whole
            self.changes += 1

    def _reload(self, command: str) -> bool:
        try:
            ran = subprocess.run(shlex.split(command), capture_output=True, timeout=RELOAD_LIMIT_S, check=False)
        except (OSError, subprocess.TimeoutExpired) as wrong:
            _seldom.warning("the reload command failed: %s", wrong, kind="reload")
            return False
        if ran.returncode:
            said = ran.stderr.decode("utf-8", "replace").strip()[-500:]
            _seldom.warning("the reload command ended with %d: %s", ran.returncode, said, kind="reload")
        return not ran.returncode

    def _tell_haproxy(self, whole: list[bytes]) -> bool:
        """HAProxy keeps three and seals with the last but one; each new one drops the first. One that is not there
        will read the file."""
        new = whole[2:] if self._last and whole[:2] == self._last[1:] else whole
        try:
            for raw in new:
                said = self._ask_haproxy(f"set ssl tls-key {self._files.haproxy} {base64.b64encode(raw).decode()}\n")
                if b"updated" not in said:
                    _seldom.warning("HAProxy did not take a TLS ticket key: %s", said.decode("utf-8", "replace")[:200])
                    return False
        except OSError as wrong:
            _seldom.warning("HAProxy's socket: %s", wrong, kind="haproxy")
            return False
        return True

    def _ask_haproxy(self, words: str) -> bytes:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(SOCKET_LIMIT_S)
            connection.connect(self._files.haproxy_socket)
            connection.sendall(words.encode())
            return connection.recv(MAX_ANSWER_BYTES)


def _raw(key: TicketKey) -> bytes:
    """80 bytes: name, marking key, sealing key; as nginx and Envoy read them."""
    return key.name + key.marking + key.sealing


def _envoy(whole: list[bytes]) -> bytes:
    """The first one seals (envoy.extensions.transport_sockets.tls.v3.TlsSessionTicketKeys)."""
    keys = [{"inline_bytes": base64.b64encode(raw).decode()} for raw in (whole[1], whole[0], whole[2])]
    secret: dict[str, Any] = {
        "@type": "type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.Secret",
        "name": ENVOY_SECRET,
        "session_ticket_keys": {"keys": keys},
    }
    return json.dumps({"resources": [secret]}).encode()


def _replace(path: Path, content: bytes) -> None:
    """Whole or not at all, and for our own user alone."""
    new = path.with_name(path.name + ".new")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(content)
    new.replace(path)
