"""Which user is at the other end of a Unix socket: the kernel says so, and nobody can lie to it."""

from __future__ import annotations

import os
import socket
import struct
import sys
from typing import Final

from coatcheck.errors import ForeignPeer

_LINUX_UCRED: Final = struct.Struct("3i")
"""pid, uid, gid: unix(7), SO_PEERCRED."""
_BSD_SOL_LOCAL: Final = 0
_BSD_LOCAL_PEERCRED: Final = 1
_BSD_XUCRED: Final = struct.Struct("2I")
"""version, uid; the groups that follow are of no use here: unix(4)."""
_BSD_XUCRED_BYTES: Final = 76


def peer_uid(sock: socket.socket) -> int:
    """The user ID of the process that connected, or that listens, at the other end of a Unix socket.

    Raises ``OSError`` if the kernel does not say (it does on Linux, macOS and the BSDs).
    """
    if sys.platform == "linux":
        found = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _LINUX_UCRED.size)
        return int(_LINUX_UCRED.unpack(found)[1])
    found = sock.getsockopt(_BSD_SOL_LOCAL, _BSD_LOCAL_PEERCRED, _BSD_XUCRED_BYTES)
    return int(_BSD_XUCRED.unpack_from(found)[1])


def check_same_user(sock: socket.socket) -> None:
    """Let only our own user be at the other end of this Unix socket.

    Raises :class:`ForeignPeer`.
    """
    try:
        uid = peer_uid(sock)
    except OSError as error:
        raise ForeignPeer(f"the kernel does not say who is at the other end ({error.strerror})") from None
    if uid != os.geteuid():
        raise ForeignPeer(f"user {uid} is at the other end, not {os.geteuid()}")
