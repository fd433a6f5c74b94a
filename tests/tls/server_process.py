"""A server that shares its TLS sessions: says its port, answers each connection with what it knows of it.

Argument: its settings as JSON. A mode that begins with "stand-in-" is served over the system's OpenSSL. A line on
standard input is answered by the status of the sharing; "ahead 600" first sets the clock of its ticket keys that many
seconds ahead.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import logging
import socket
import ssl
import sys
import threading
import time
from pathlib import Path
from typing import Any

from coatcheck.tls import (
    Peers,
    SharedSessions,
    SharedTickets,
    agreement,
    new_event_loop,
    share_sessions,
    share_ticket_keys,
)
from coatcheck.tls.ahead import fetching_ahead
from coatcheck.tls.stand_in import stand_in_context

VERSIONS = {"1.2": ssl.TLSVersion.TLSv1_2, "1.3": ssl.TLSVersion.TLSv1_3}
STAND_IN = "stand-in-"


def main(settings: dict[str, Any]) -> None:
    logging.basicConfig(level=logging.WARNING)
    context, shared = shared_context(settings)
    threading.Thread(target=answer_questions, args=(shared,), daemon=True).start()
    mode = settings["mode"].removeprefix(STAND_IN)
    if mode == "threads":
        serve_in_threads(context)
    else:
        if mode == "plain-asyncio":
            loop: asyncio.AbstractEventLoop = asyncio.new_event_loop()
        elif mode == "asyncio":
            loop = fetching_ahead(asyncio.SelectorEventLoop)()
        else:
            loop = new_event_loop()
            assert "uvloop" in type(loop).__mro__[2].__module__
        loop.run_until_complete(serve_on_a_loop(context))


def shared_context(settings: dict[str, Any]) -> tuple[ssl.SSLContext, SharedSessions | SharedTickets]:
    folder = Path(settings["folder"])
    is_stand_in = settings["mode"].startswith(STAND_IN)
    context = stand_in_context() if is_stand_in else ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "server.pem")
    if newest := settings.get("newest"):
        context.maximum_version = VERSIONS[newest]
    if curve := settings.get("curve"):
        context.set_ecdh_curve(curve)
    if settings.get("verify"):
        context.verify_mode = ssl.VerifyMode[settings["verify"]]
        context.load_verify_locations(folder / "ca.pem")
    store = settings["store"]
    if settings.get("tickets"):
        return context, share_ticket_keys(
            context,
            store=store,
            keyring=settings["key"],
            farm=settings.get("farm", "farm"),
            siblings=settings.get("siblings", ()),
            required=True,
            **settings["tickets"],
        )
    shared = share_sessions(
        context,
        store=Peers(**store) if isinstance(store, dict) else store,
        server=settings["name"],
        keyring=settings["key"],
        farm=settings.get("farm", "farm"),
        lifetime=settings.get("lifetime", 300),
        fetch_timeout=settings.get("fetch_timeout", 10),  # a busy machine is no fault
        siblings=settings.get("siblings", ()),
        required=True,
    )
    return context, shared


def answer_questions(shared: SharedSessions | SharedTickets) -> None:
    while line := sys.stdin.readline():
        word, _, seconds = line.partition(" ")
        if word == "ahead":
            agreement.now_ms = functools.partial(ahead_by, float(seconds))
        print(json.dumps(shared.status()), flush=True)


def ahead_by(seconds: float) -> int:
    """Milliseconds of a clock that is so far ahead."""
    return int((time.time() + seconds) * 1000)


def words(tls: Any, request: bytes) -> bytes:
    """What is known of the connection; or the page that the settings have, for who asks for ``/page``."""
    if request.startswith(b"GET /page "):
        page = json.loads(sys.argv[1])["page"].encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b"
        return head % (len(page), page)
    name = json.loads(sys.argv[1])["name"]
    subject = dict(part[0] for part in (tls.getpeercert() or {}).get("subject", ()))
    said = {"server": name, "reused": tls.session_reused, "version": tls.version(), "client": subject.get("commonName")}
    body = json.dumps(said).encode()
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n%b" % (len(body), body)


def serve_in_threads(context: ssl.SSLContext) -> None:
    listener = socket.create_server(("127.0.0.1", 0), backlog=512)
    print(listener.getsockname()[1], flush=True)

    def answer(raw: socket.socket) -> None:
        with contextlib.suppress(OSError), context.wrap_socket(raw, server_side=True) as tls:
            tls.sendall(words(tls, tls.recv(65536)))
            tls.unwrap()

    while True:
        raw, _ = listener.accept()
        threading.Thread(target=answer, args=(raw,), daemon=True).start()


async def serve_on_a_loop(context: ssl.SSLContext) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            request = await reader.readuntil(b"\r\n\r\n")
            writer.write(words(writer.get_extra_info("ssl_object"), request))
            await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0, ssl=context)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
