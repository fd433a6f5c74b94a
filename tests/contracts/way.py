"""A port in front of a server, whose answers come late, or on whose connections nothing comes any more."""

from __future__ import annotations

import contextlib
import socket
import threading
import time


class Way:
    """``delay_s``: how late each piece of an answer comes. ``dials``: connections that were made."""

    def __init__(self, to: int) -> None:
        self.delay_s = 0.0
        self.dials = 0
        self._to = to
        self._lost_until = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._listener.getsockname()[1])
        threading.Thread(target=self._run, daemon=True).start()

    def lose_all(self) -> None:
        """The connections that there are carry nothing any more, and nobody is told."""
        self._lost_until = self.dials

    def close(self) -> None:
        self._listener.close()

    def _run(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self.dials += 1
                server = socket.create_connection(("127.0.0.1", self._to))
                for pair in ((client, server, 0.0), (server, client, None)):
                    threading.Thread(target=self._pour, args=(self.dials, *pair), daemon=True).start()

    def _pour(self, number: int, one: socket.socket, other: socket.socket, delay_s: float | None) -> None:
        with contextlib.suppress(OSError):
            while piece := one.recv(65536):
                time.sleep(self.delay_s if delay_s is None else delay_s)
                if number > self._lost_until:
                    other.sendall(piece)
            other.close()
