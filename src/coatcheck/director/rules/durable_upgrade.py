"""How a durable WebSocket begins, and begins again: the request for it, and what web servers answer (RFC 6455, 4)."""

from __future__ import annotations

import re
from typing import Final

import msgspec

from coatcheck.director.rules.response_head import ResponseHead
from coatcheck.director.rules.response_stream import ResponseStream
from coatcheck.durable_words import HEADER, MAX_TICKET_BYTES, OFFER, going_on

OFFER_LINE: Final = HEADER + b": " + OFFER + b"\r\n"
_EXTENSIONS: Final = b"sec-websocket-extensions"
_EXTENSION_LINES: Final = re.compile(rb"^sec-websocket-extensions:[^\r]*\r\n", re.IGNORECASE | re.MULTILINE)


class Upgrade(msgspec.Struct, frozen=True, gc=False):
    """``request``: the one that a web server has agreed to; ``tag``: of its route; ``browser``: its cookies.

    ``ticket``: for the next web server. ``deflated``: whether the first web server may compress what it sends.
    ``behind``: what came with its answer.
    """

    request: bytes
    tag: bytes | None
    browser: bytes
    ticket: bytes
    deflated: bool
    behind: bytes

    def again(self, have: int, ticket: bytes) -> bytes:
        """The request to the next web server, where ``have`` messages of the one before have come."""
        request = _EXTENSION_LINES.sub(b"", self.request)
        return request.replace(OFFER_LINE, HEADER + b": " + going_on(have, ticket) + b"\r\n", 1)


class UpgradeAnswer(msgspec.Struct, frozen=True, gc=False):
    """What a web server answers that was asked to go on."""

    goes_on: bool
    is_final: bool
    """Whether no other one would say anything else."""
    is_refused: bool
    """Whether the app does not want this client any more."""
    behind: bytes


def ticket_of(head: ResponseHead) -> bytes | None:
    """The ticket with which an app opts in; ``None``: it does not."""
    found = _value(head, HEADER)
    return found if found and len(found) <= MAX_TICKET_BYTES else None


def for_client(head: ResponseHead) -> ResponseHead:
    """What the client is told: nothing of the ticket, and that nothing is compressed."""
    lines = [line for line in head.lines if line.partition(b":")[0].lower() not in (HEADER, _EXTENSIONS)]
    return msgspec.structs.replace(head, lines=lines)


def is_deflated(head: ResponseHead) -> bool:
    """Whether the web server may compress its messages (RFC 7692)."""
    return b"permessage-deflate" in (_value(head, _EXTENSIONS) or b"")


def read_answer(response: ResponseStream, data: bytes) -> UpgradeAnswer | None:
    """The answer, once its head is whole. Raises BadHead."""
    while True:
        head = response.head(data)
        if head is None:
            return None
        behind, response.data = response.data[response.end :], b""
        if head.status >= 200 or head.status == 101:
            break
        data = behind
    goes_on = head.status == 101 and head.websocket and ticket_of(head) is not None
    return UpgradeAnswer(goes_on, head.status < 500, head.status in (401, 403), behind)


def _value(head: ResponseHead, name: bytes) -> bytes | None:
    for line in head.lines:
        found, _, value = line.partition(b":")
        if found.lower() == name:
            return value.strip(b" \t")
    return None
