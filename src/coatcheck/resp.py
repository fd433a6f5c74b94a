"""RESP, the wire protocol of Redis: building requests and replies (``session_server.requests`` parses requests)."""

from __future__ import annotations


def command(*parts: bytes) -> bytes:
    """One request as an array of bulk strings."""
    return b"*%d\r\n" % len(parts) + b"".join([bulk(part) for part in parts])


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array(*encoded: bytes) -> bytes:
    return b"*%d\r\n" % len(encoded) + b"".join(encoded)


def push(resp3: bool, *encoded: bytes) -> bytes:
    """A message that answers no request: RESP3 marks it, RESP2 cannot."""
    return (b">%d\r\n" if resp3 else b"*%d\r\n") % len(encoded) + b"".join(encoded)


def integer(value: int) -> bytes:
    return b":%d\r\n" % value


def error(code: str, text: str) -> bytes:
    """An error reply; line ends in the text are replaced, for they would end the reply."""
    line = f"{code} {text}".replace("\r", " ").replace("\n", " ")
    return b"-%b\r\n" % line.encode("ascii", "replace")


OK = b"+OK\r\n"
PONG = b"+PONG\r\n"
EMPTY = b"*0\r\n"
ONE = b":1\r\n"
ZERO = b":0\r\n"


def nothing(resp3: bool) -> bytes:
    return b"_\r\n" if resp3 else b"$-1\r\n"
