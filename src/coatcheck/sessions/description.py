"""A session as those see it who are no app of this process: the session service and its callers."""

from __future__ import annotations

from base64 import urlsafe_b64encode
from hashlib import blake2b
from typing import Any, Final

import msgspec

from coatcheck.events import public_id
from coatcheck.sessions.json_form import json_form
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.record import Record, decode_record, look_into_data

VERSION_BYTES: Final = 12


class LiveSession(msgspec.Struct, frozen=True):
    """A live session. Times are Unix ms.

    ``id`` is what logs and audit records call it; ``version`` names what its data is now, and changes with nothing else
    (not with a new token): whoever gives it back says what its change was made for. ``data`` is as JSON can have it.
    """

    id: str
    user: str | None
    data: dict[str, Any]
    version: str
    created_at: int
    last_seen_at: int
    expires_at: int

    def __repr__(self) -> str:
        return f"<LiveSession of session {self.id}>"


def describe(session: Session, policy: SessionPolicy) -> LiveSession | None:
    """What is acknowledged of it; ``None`` for one that exists nowhere."""
    copy = session._request.copy_held
    if copy is None:
        return None
    record: Record = copy.record or decode_record(copy.body)
    return LiveSession(
        id=public_id(copy.key),
        user=record.user,
        data=json_form(look_into_data(record.data)),
        version=_data_version(copy.key, record.data),
        created_at=record.created_at,
        last_seen_at=record.last_seen_at,
        expires_at=record.expires_at(policy),
    )


def demand_version(session: Session, policy: SessionPolicy, version: str) -> bool:
    """Whether the session's data is of this version. If so, what the request does to it is stored only if nobody has
    changed it by then; else finishing the request is refused (409)."""
    state = describe(session, policy)
    session._request.demands_version = True
    return state is not None and state.version == version


def _data_version(key: bytes, data: bytes) -> str:
    digest = blake2b(data, digest_size=VERSION_BYTES, key=key, person=b"coatcheck-data").digest()
    return urlsafe_b64encode(digest).decode()
