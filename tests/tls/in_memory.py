"""Two ends of a TLS connection in memory, and what came of it in words that can be compared."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

from coatcheck.tls.stand_in import StandInContext, stand_in_context

from .farm import HOST

MAX_ROUNDS = 20


def plain_context() -> ssl.SSLContext:
    return ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)


CONTEXTS: dict[str, Callable[[], ssl.SSLContext]] = {"ssl": plain_context, "stand-in": stand_in_context}
"""What a stand-in is held against, and itself."""


class Pair:
    """A client's and a server's end; what one sends, the other has."""

    def __init__(self, server: ssl.SSLContext, client: ssl.SSLContext, **options: Any) -> None:
        self.to_client, self.to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.client = client.wrap_bio(self.to_client, self.to_server, server_hostname=HOST, **options)
        self.server = server.wrap_bio(self.to_server, self.to_client, server_side=True)

    def shake(self) -> Pair:
        """Raises what the first end to fail raises."""
        waiting = [self.client, self.server]
        for _ in range(MAX_ROUNDS):
            for side in list(waiting):
                try:
                    side.do_handshake()
                    waiting.remove(side)
                except ssl.SSLWantReadError:
                    continue
            if not waiting:
                return self
        raise AssertionError("the handshake does not end")


def outcome(call: Callable[..., Any], *arguments: Any) -> tuple[Any, ...]:
    """What a call answers or raises, without the words that name a line of Python's source."""
    try:
        return ("answers", call(*arguments))
    except ssl.SSLCertVerificationError as error:
        return (type(error), error.args[0], error.library, error.reason, error.verify_code, error.verify_message)
    except ssl.SSLError as error:
        if getattr(error, "reason", None) == "UNEXPECTED_EOF_WHILE_READING":  # the first releases of 3.11 had no name
            return (ssl.SSLEOFError, int(ssl.SSL_ERROR_EOF), "SSL", error.reason)
        return (type(error), error.args[0], getattr(error, "library", None), getattr(error, "reason", None))
    except (OSError, ValueError) as error:
        return (type(error), str(error))


def client_context(certificates: Path, version: ssl.TLSVersion | None = None) -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=certificates / "ca.pem")
    if version is not None:
        context.minimum_version = context.maximum_version = version
    return context


def is_stand_in(context: ssl.SSLContext) -> bool:
    return isinstance(context, StandInContext)
