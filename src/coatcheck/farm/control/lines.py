"""What goes over the control channel: JSON objects, one a line."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import msgspec

from coatcheck.errors import CoatcheckError

MAX_LINE_BYTES: Final = 16 << 20
"""A session's 1 MiB of data may be six times as long in JSON."""
FORK_SERVER_READY: Final = b"ready"
"""What the fork server says when it has imported everything; after that, the process IDs of what it forked."""
FORK_WORD: Final = b"begin"
"""What the supervisor says to a process that was forked, before that one touches its control channel."""

Message = dict[str, Any]


class ControlError(CoatcheckError):
    """The other side of a control channel is gone, late, or refused the request."""


def encode(message: Message) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def decode(line: bytes) -> Message:
    """Read one line.

    Raises:
        ControlError: not a JSON object.
    """
    try:
        return msgspec.json.decode(line, type=dict[str, Any])
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise ControlError(f"not a control message: {error}") from None


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path short enough for a unix socket (108 bytes), through the directory's descriptor if need be."""
    if len(os.fsencode(path)) < 100:
        yield str(path)
        return
    directory = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{directory}/{path.name}"
    finally:
        os.close(directory)
