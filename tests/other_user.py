"""Doing something as another user of this machine: what a neighbour, or a service that was broken into, can do."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

STRANGER = 65_534
"""The user and group ID of "nobody", who owns nothing of a farm's."""


def need_root() -> None:
    """Fail, and say why, where this process cannot become another user."""
    if os.geteuid() != 0:
        pytest.fail(
            "this test becomes another user, so it must run as root, or as root of a user namespace with more than one "
            "user: unshare --map-root-user --map-auto python -m pytest ..."
        )


def become_stranger() -> None:
    """Give up this process's user, group and all privileges for good."""
    os.setgroups([])
    os.setresgid(STRANGER, STRANGER, STRANGER)
    os.setresuid(STRANGER, STRANGER, STRANGER)


def as_stranger(work: Callable[[], Any]) -> Any:
    """What ``work`` answers (anything that JSON can hold) in a process of another user."""
    need_root()
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            become_stranger()
            os.write(theirs, json.dumps(work()).encode())
            os._exit(0)
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as the test's
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(1)
    os.close(theirs)
    with os.fdopen(ours, "rb") as answer:
        text = answer.read()
    _, status = os.waitpid(child, 0)
    assert status == 0, "the stranger failed; see above"
    return json.loads(text)


def error_of(work: Callable[[], Any]) -> str:
    """The name of the error that ``work`` ends with, as :mod:`errno` and the exceptions call it; "" if it succeeds."""
    try:
        work()
    except OSError as error:
        return type(error).__name__ if type(error) is not OSError else str(error)
    return ""


class Impostor:
    """A process of another user that listens on a socket, answers every request with 200 and keeps what it heard."""

    def __init__(self, pid: int, heard: int) -> None:
        self._pid = pid
        self._heard = heard

    def end(self) -> bytes:
        """End it; answers all that it was sent."""
        os.kill(self._pid, signal.SIGTERM)
        os.waitpid(self._pid, 0)
        with os.fdopen(self._heard, "rb") as heard:
            return heard.read()


@contextlib.contextmanager
def impostor(listen: Callable[[], socket.socket]) -> Iterator[Impostor]:
    """An impostor that is listening, on what ``listen`` gives to the other user."""
    need_root()
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(ours)
            become_stranger()
            listening = listen()
            os.write(theirs, b"+")
            _answer_all(listening, theirs)
        except BaseException:  # noqa: BLE001 - whatever it is, this process must not go on as the test's
            traceback.print_exc(file=sys.stderr)
        finally:
            os._exit(1)
    os.close(theirs)
    assert os.read(ours, 1) == b"+", "the impostor could not listen; see above"
    standing = Impostor(child, ours)
    try:
        yield standing
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def _answer_all(listening: socket.socket, heard: int) -> None:
    import selectors

    listening.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listening, selectors.EVENT_READ)
    while True:
        for key, _ in selector.select():
            sock = key.fileobj
            assert isinstance(sock, socket.socket)
            if sock is listening:
                client, _ = listening.accept()
                os.write(heard, b"<connected>")
                selector.register(client, selectors.EVENT_READ)
                continue
            with contextlib.suppress(OSError):
                said = sock.recv(65_536)
                if said:
                    os.write(heard, said)
                    sock.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nstolen")
                    continue
            selector.unregister(sock)
            sock.close()
