"""Messages between web servers, carried by the session servers (protocol section 4).

A *notice* tells the old owner of a session that another server has claimed or closed it. An
*answer* tells the claimant that the old owner serves the session no more, and for how long at
most still earlier owners might. Either may be lost: leases bound the harm.
"""

from __future__ import annotations

import struct
from typing import Final

import msgspec

from coatcheck.errors import CorruptEntry
from coatcheck.events import public_id
from coatcheck.replication.version import SERVER_ID_BYTES, Version

_NOTICE = struct.Struct(">B16s16sB")
_ANSWER = struct.Struct(">B16s16sI")
_NOTICE_KIND = 1
_ANSWER_KIND = 2

EVERYBODY: Final = bytes(SERVER_ID_BYTES)
"""The server ID that every web server listens to besides its own. One that draws it hears what all hear."""


class Notice(msgspec.Struct, frozen=True, gc=False):
    """To the old owner: ``version`` has replaced yours. ``version.server_id`` is whom to answer."""

    key: bytes
    version: Version
    closed: bool

    def __repr__(self) -> str:
        return f"<Notice: session {public_id(self.key)} is at {self.version}, closed {self.closed}>"

    def encode(self) -> bytes:
        return _NOTICE.pack(_NOTICE_KIND, self.key, self.version, self.closed)


class ClaimAnswer(msgspec.Struct, frozen=True, gc=False):
    """To the claimant: I serve this session no more; owners before me may for ``others_ms`` yet."""

    key: bytes
    version: Version
    others_ms: int

    def __repr__(self) -> str:
        return f"<ClaimAnswer: session {public_id(self.key)} at {self.version} is yours in {self.others_ms} ms>"

    def encode(self) -> bytes:
        return _ANSWER.pack(_ANSWER_KIND, self.key, self.version, self.others_ms)


def decode_message(raw: bytes) -> Notice | ClaimAnswer:
    """A notice or an answer; raises :class:`CorruptEntry` on anything else."""
    if len(raw) == _NOTICE.size and raw[0] == _NOTICE_KIND:
        _, key, version, closed = _NOTICE.unpack(raw)
        return Notice(key, Version.unpack(version), bool(closed))
    if len(raw) == _ANSWER.size and raw[0] == _ANSWER_KIND:
        _, key, version, others_ms = _ANSWER.unpack(raw)
        return ClaimAnswer(key, Version.unpack(version), others_ms)
    raise CorruptEntry(f"a message of {len(raw)} bytes")
