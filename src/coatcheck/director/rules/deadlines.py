"""The deadlines of a client's connection: there is one at a time, it has a name, and it is data.

A shell keeps no timers of its own meaning: it looks which connections are due and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from typing import Final, NamedTuple


class DeadlineKind(Enum):
    """What has to happen in time; the value says it in words."""

    HEADER = "a request's head must be whole"
    IDLE = "the next request must begin"
    BODY = "the next bytes of the request's body must come"
    ANSWER = "the web server must begin its answer"
    RESPONSE = "the next bytes of the response must come"
    HELD = "a response that is held back must leave, whole or not"
    QUEUE = "a web server must be had for a request that waits"
    NO_SERVER = "any web server must take requests again"
    CLIENT_TAKES = "the client must take some of what waits for it"
    LINGER = "the client must end its side too"


LIMIT_OF: Final[Mapping[DeadlineKind, str]] = {
    DeadlineKind.HEADER: "header_timeout_s",
    DeadlineKind.IDLE: "keep_alive_timeout_s",
    DeadlineKind.BODY: "body_timeout_s",
    DeadlineKind.ANSWER: "first_byte_timeout_s",
    DeadlineKind.RESPONSE: "body_timeout_s",
    DeadlineKind.HELD: "hold_response_s",
    DeadlineKind.QUEUE: "first_byte_timeout_s",
    DeadlineKind.NO_SERVER: "no_server_wait_s",
    DeadlineKind.CLIENT_TAKES: "body_timeout_s",
    DeadlineKind.LINGER: "linger_s",
}
"""The field of :class:`~coatcheck.director.rules.limits.Limits` that says how long each is."""


class Deadline(NamedTuple):
    """When what has to have happened."""

    kind: DeadlineKind
    at: float
    """On the clock of the last tick, in seconds."""

    @property
    def why(self) -> str:
        """What has to happen by then, in words."""
        return self.kind.value
