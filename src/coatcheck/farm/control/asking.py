"""Asking a farm's supervisor, without an event loop."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from coatcheck.farm.control.lines import MAX_LINE_BYTES, ControlError, Message, decode, encode, short_path

CALL_TIMEOUT_S: Final = 10.0


def call_farm(path: Path, message: Message, timeout_s: float = CALL_TIMEOUT_S) -> Iterator[Message]:
    """Ask a supervisor: its messages of progress, then its answer.

    Raises:
        ControlError: no farm is there, it is late, or it refused; the message is one line.
    """
    sock = socket.socket(socket.AF_UNIX)
    sock.settimeout(timeout_s)
    try:
        with sock, short_path(path) as short:
            sock.connect(short)
            sock.sendall(encode(message))
            with sock.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE_BYTES):
                    reply = decode(line)
                    if "error" in reply:
                        raise ControlError(str(reply["error"]))
                    yield reply
                    if "progress" not in reply:
                        return
    except TimeoutError:
        raise ControlError(f"the farm did not answer within {timeout_s:g} s") from None
    except (FileNotFoundError, ConnectionRefusedError):
        raise ControlError(f"no farm is running in {path.parent}; start one, or name its --run-dir") from None
    except OSError as error:
        raise ControlError(f"{path}: {error.strerror}") from None
    raise ControlError("the farm closed the connection without an answer")
