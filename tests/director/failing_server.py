"""A web server process that fails as it is told by the path, and notes each request that it begins to carry out.

    python failing_server.py NAME PORT NOTES

``/MARK/WHAT/WHERE``: it does WHAT if WHERE holds its name, and else answers. The note is written before anything else,
with one write, so that a death loses none.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time

NAME, PORT, NOTES = sys.argv[1:4]
_notes = os.open(NOTES, os.O_WRONLY | os.O_APPEND | os.O_CREAT)


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            method, target, _ = head.split("\r\n")[0].split(" ")
            if target == "/.well-known/coatcheck/health":
                writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                break
            _, mark, what, where = target.split("/")
            os.write(_notes, f"{NAME} {mark}\n".encode())
            await handle(method, head, what if NAME in where.split(",") else "answer", reader, writer)
    except (asyncio.IncompleteReadError, OSError):
        return
    finally:
        writer.close()


async def handle(method: str, head: str, what: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    lines = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
    if "expect" in lines and what != "hold":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    if "expect" not in lines or what != "hold":
        await reader.readexactly(int(lines.get("content-length", 0)))
    if what == "block":
        time.sleep(1.0)
    elif what == "hold":
        await asyncio.sleep(600)
    elif what == "half":
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n" + (b"" if method == "HEAD" else b"half"))
        await asyncio.sleep(0 if method == "HEAD" else 600)
        return
    elif what == "stream":
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        if method != "HEAD":
            writer.write(b"4\r\nhalf\r\n")
            await asyncio.sleep(600)
        return
    elif what == "nonsense":
        writer.write(b"220 mail.example ESMTP\r\n\r\n")
        return
    body = NAME.encode()
    writer.write(b"HTTP/1.1 200 OK\r\nX-Server: %s\r\nContent-Length: %d\r\n\r\n" % (body, len(body)))
    writer.write(b"" if method == "HEAD" else body)


async def main() -> None:
    server = await asyncio.start_server(serve, "127.0.0.1", int(PORT))
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    await server.serve_forever()


asyncio.run(main())
