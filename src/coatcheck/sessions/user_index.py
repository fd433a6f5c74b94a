"""What is stored of a user: which sessions he has (protocol section 11; ASVS 7.5.2).

Pure data: flows that read and write it are in :mod:`coatcheck.sessions.users`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Final

import msgspec

from coatcheck.errors import CorruptEntry
from coatcheck.sessions.policy import MAX_SESSIONS_OF_USER

KIND: Final = b"\xc1u"
"""How the body of an index begins. No MessagePack value begins with 0xC1, so no record of a session does, and none of
the two is ever opened as the other."""
MAX_DEVICE: Final = 160
"""Characters of a User-Agent that are kept."""
MAX_ADDRESS: Final = 64
"""Characters of a client's address that are kept."""


class Listed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One session of a user. Times are Unix ms of the farm's time.

    ``since``: the session's creation, as its record has it. ``ends_at``: it cannot live longer, unless it is used
    again and listed anew. ``doomed``: somebody has closed it; it stays listed until no server can serve it.
    ``after``: the session that it replaces, if that is listed, too: its close may have failed, and then nobody was told
    of this one.
    """

    key: bytes
    since: int
    ends_at: int
    device: str = ""
    address: str = ""
    doomed: bool = False
    after: bytes = b""

    def __repr__(self) -> str:
        return f"<Listed since {self.since}{', doomed' if self.doomed else ''}>"


class UserIndex(msgspec.Struct, frozen=True, array_like=True):
    """``closed_before`` (Unix ms; 0: never): all sessions were closed then. One that was begun by then and is not
    listed has no right to live."""

    closed_before: int = 0
    listed: tuple[Listed, ...] = ()

    def find(self, key: bytes) -> Listed | None:
        return next((one for one in self.listed if one.key == key), None)

    def living(self) -> list[Listed]:
        """Those that nobody has closed, the oldest first."""
        return sorted((one for one in self.listed if not one.doomed), key=lambda one: (one.since, one.key))

    def doomed(self) -> list[bytes]:
        return [one.key for one in self.listed if one.doomed]

    def with_one(self, new: Listed) -> UserIndex:
        """With this session in the place of what was listed under its key. Of too many the oldest leave the list: they
        stay open, and list themselves again when they are used."""
        others = tuple(one for one in self.listed if one.key != new.key)
        return msgspec.structs.replace(self, listed=(*others, new)[-MAX_SESSIONS_OF_USER:])

    def without(self, keys: Collection[bytes]) -> UserIndex:
        return msgspec.structs.replace(self, listed=tuple(one for one in self.listed if one.key not in keys))

    def dooming(self, keys: Collection[bytes]) -> UserIndex:
        """With these sessions marked as closed."""
        return self._each(lambda one: msgspec.structs.replace(one, doomed=True) if one.key in keys else one)

    def closed_at(self, now_ms: int, but: bytes | None = None) -> UserIndex:
        """With all sessions marked as closed, ``but`` one. Unlisted ones that were begun by now are closed as well."""
        doomed = self.dooming([one.key for one in self.listed if one.key != but])
        return msgspec.structs.replace(doomed, closed_before=max(self.closed_before, now_ms))

    def closed_until(self, moment_ms: int, every_one: bool) -> UserIndex:
        """With those marked as closed that are listed since ``moment_ms`` or before, or every one. So are unlisted
        ones that were begun by then."""
        doomed = self.dooming([one.key for one in self.listed if every_one or one.since <= moment_ms])
        return msgspec.structs.replace(doomed, closed_before=max(self.closed_before, moment_ms))

    def pruned(self, now_ms: int, longest_ms: int) -> UserIndex:
        """Without what has ended by itself; no session lives for longer than ``longest_ms``."""
        listed = tuple(one for one in self.listed if one.ends_at > now_ms)
        closed_before = self.closed_before if self.closed_before + longest_ms > now_ms else 0
        return UserIndex(closed_before, listed)

    def ends_at(self, longest_ms: int) -> int:
        """When nothing of it is needed any more (Unix ms): that of its longest session."""
        ends = [one.ends_at for one in self.listed]
        return max([*ends, self.closed_before + longest_ms if self.closed_before else 0])

    def _each(self, change: Callable[[Listed], Listed]) -> UserIndex:
        return msgspec.structs.replace(self, listed=tuple(map(change, self.listed)))


def union(indexes: Iterable[UserIndex]) -> UserIndex:
    """What several indexes of one user say together: the branches of a fork, or those under several keys of the ring.

    A session that is closed in one of them is closed; so is one that only others list, if it was begun before one of
    them closed all.
    """
    indexes = list(indexes)
    closed_before = max((one.closed_before for one in indexes), default=0)
    listed: dict[bytes, Listed] = {}
    for index in indexes:
        for one in index.listed:
            known = listed.get(one.key)
            listed[one.key] = one if known is None else _of_both(known, one)
    for key, one in listed.items():
        closers = [index for index in indexes if index.closed_before >= one.since]
        if any(index.find(key) is None for index in closers):
            listed[key] = msgspec.structs.replace(one, doomed=True)
    in_order = sorted(listed.values(), key=lambda one: (one.since, one.key))
    return UserIndex(closed_before, tuple(in_order[-MAX_SESSIONS_OF_USER:]))


def _of_both(one: Listed, other: Listed) -> Listed:
    later = one if one.ends_at >= other.ends_at else other
    return msgspec.structs.replace(later, doomed=one.doomed or other.doomed)


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(UserIndex)


def encode_index(index: UserIndex) -> bytes:
    return KIND + _encoder.encode(index)


def is_index(body: bytes) -> bool:
    """Whether what an entry holds is a user's index, and no session."""
    return body.startswith(KIND)


def decode_index(body: bytes) -> UserIndex:
    """Raises :class:`CorruptEntry` for anything else than an index, such as a session's record."""
    if not is_index(body):
        raise CorruptEntry("not a user's index")
    try:
        return _decoder.decode(body[len(KIND) :])
    except msgspec.MsgspecError as error:
        raise CorruptEntry(f"not a user's index: {error}") from None


def merge_bodies(bodies: Sequence[bytes]) -> bytes | None:
    """What a fork of an index becomes: all that its branches list. ``None``: those are sessions."""
    return encode_index(union(map(decode_index, bodies))) if all(map(is_index, bodies)) else None


def shortened(text: str, longest: int) -> str:
    """Printable characters alone: what a client says of itself steers no terminal and no page."""
    return "".join(filter(str.isprintable, text[: 4 * longest]))[:longest]


def device_of(headers: Iterable[Sequence[bytes]]) -> str:
    """The User-Agent header (RFC 9110, 10.1.5), shortened: what a client says it is, believed by nobody."""
    for name, value in headers:
        if name.lower() == b"user-agent":
            return shortened(bytes(value).decode("latin-1"), MAX_DEVICE)
    return ""
