"""A session as it is stored, and when it has expired (protocol section 7; mission A7, ASVS 7.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, Final

import msgspec

from coatcheck.errors import CorruptEntry, SessionDataError
from coatcheck.replication.entry import MAX_ENTRY_BYTES
from coatcheck.sessions.durable import SocketState
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.provider import ProviderLogin
from coatcheck.tokens.chain import Chain

MAX_DATA_BYTES = MAX_ENTRY_BYTES - 16_384
"""Room for the header, the chain and the seal; a larger session is refused with a clear error."""
MAX_DEPTH = 100
"""Of nested values; what is encoded must be decoded again, wherever the stack stands then."""
EMPTY_DATA = b"\x80"
_STRINGS = {str}


class SiteChain(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The chain of a site; ``site`` is the host of its cookie, empty for the home site."""

    site: str
    chain: Chain


class Redeemed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """A ticket that began, or joined, the chain of a site; what is younger than a ticket's life is kept. ``revoked``:
    that chain was taken away, and the ticket opens nothing any more."""

    ticket: bytes
    site: str
    redeemed_at: int
    revoked: bool = False


class Handed(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """What a record holds of a session that is used at several sites (protocol section 12)."""

    chains: tuple[SiteChain, ...] = ()
    redeemed: tuple[Redeemed, ...] = ()


class Record(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """``data``: the mapping, encoded (MessagePack). Times are Unix ms of the server's clock.

    ``chain``: stored, the home site's; while a web server has it in hand, that of its own site, and ``handed`` has the
    others (:mod:`coatcheck.sessions.site_chains`).
    """

    data: bytes
    created_at: int
    last_seen_at: int
    user: str | None
    chain: Chain
    sockets: dict[bytes, SocketState] | None = None
    """Its durable WebSockets, if it has any."""
    handed: Handed | None = None
    provider: ProviderLogin | None = None
    """The session of an identity provider that it came from, if the app has named one."""

    @property
    def deadline(self) -> int | None:
        """Unix ms: when the app wants it to be over, if it said so (:class:`EndingRecord`)."""
        return None

    def __repr__(self) -> str:
        return f"<Record of {len(self.data)} bytes, last seen at {self.last_seen_at}>"

    @property
    def is_new(self) -> bool:
        """Whether nobody has come back with its token, so that its browser may be one that keeps no cookies.

        The creation is all the activity that there was. Whoever logs in counts as known: see :data:`KNOWN_MS`.
        """
        return self.last_seen_at == self.created_at

    def expires_at(self, policy: SessionPolicy) -> int:
        """Unix ms. The idle timeout counts from the last activity; ``last_seen_at`` may be one touch older."""
        idle = self.last_seen_at + policy.idle_timeout_ms + policy.touch_ms + policy.leeway_ms
        if policy.new_session_ms and self.is_new:
            idle = min(idle, self.created_at + policy.new_session_ms + policy.leeway_ms)
        return min(idle, self.created_at + policy.absolute_timeout_ms)


class EndingRecord(Record, frozen=True, array_like=True, gc=False):
    """One of which the app has said when it ends, whatever the timeouts; they may only end it sooner."""

    ends_at: int | None = None
    """Unix ms."""

    @property
    def deadline(self) -> int | None:
        return self.ends_at

    def expires_at(self, policy: SessionPolicy) -> int:
        within = Record.expires_at(self, policy)
        return within if self.ends_at is None else min(within, self.ends_at)


def ending(record: Record, ends_at: int) -> EndingRecord:
    """The same with an end (Unix ms)."""
    return EndingRecord(
        record.data, record.created_at, record.last_seen_at, record.user, record.chain, record.sockets, record.handed,
        record.provider, ends_at,
    )  # fmt: skip


NINE_FIELDS: Final = 0x99
"""How the MessagePack of an :class:`EndingRecord` begins, or with a higher number, of a later release."""

KNOWN_MS: Final = 1
"""By so much the last activity of a session whose token was shown again is later than its creation, at least."""


def _plain_text(value: Any) -> str:
    """A kind of text, as template engines mark it safe, is stored as text; it comes back as that."""
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"{type(value).__name__} cannot be encoded")


_LEAVES: Final = frozenset({str, int, float, bool, bytes, type(None)})
_encoder = msgspec.msgpack.Encoder(enc_hook=_plain_text)
_record_decoder = msgspec.msgpack.Decoder(Record)
_ending_decoder = msgspec.msgpack.Decoder(EndingRecord)
_data_decoder = msgspec.msgpack.Decoder(dict[str, Any])
_Leaf = bool | int | float | str | None
_Flat = _Leaf | list[_Leaf] | dict[str, _Leaf]
_Nested = _Leaf | list[_Flat] | dict[str, _Flat]
_plain_decoder = msgspec.msgpack.Decoder(dict[str, _Leaf | list[_Nested] | dict[str, _Nested]])
"""Decodes what nearly all sessions consist of, and nothing else."""
encode_record = _encoder.encode
encode_chain: Callable[[Chain], bytes] = _encoder.encode
decode_chain = msgspec.msgpack.Decoder(Chain).decode


def decode_record(body: bytes) -> Record:
    """Raises :class:`CorruptEntry` if the body is no record: another version of coatcheck sealed it."""
    try:
        if body and body[0] >= NINE_FIELDS:
            with contextlib.suppress(msgspec.ValidationError):
                return _ending_decoder.decode(body)
        return _record_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise CorruptEntry(f"not a session record: {error}") from None


decode_data = _data_decoder.decode


def encode_data(data: dict[str, Any]) -> bytes:
    """The mapping as MessagePack; raises :class:`SessionDataError` for what cannot be stored."""
    try:
        encoded = _encoder.encode(data)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise SessionDataError(f"the session cannot be stored: {_culprit(data)}: {error}") from error
    if len(encoded) > MAX_DATA_BYTES:
        raise SessionDataError(f"the session has {len(encoded)} bytes; at most {MAX_DATA_BYTES} can be stored")
    return encoded


def check_room(data: bytes, sockets: dict[bytes, SocketState]) -> None:
    """Raises :class:`SessionDataError` if a session with such data has no room for what its WebSockets keep."""
    size = len(data) + len(_encoder.encode(sockets))
    if size > MAX_DATA_BYTES:
        raise SessionDataError(
            f"the session and the answers of its durable WebSockets have {size} bytes; at most {MAX_DATA_BYTES} can be "
            "stored"
        )


def check_data(data: dict[str, Any], encoded: bytes) -> None:
    """Keys are strings, and values come back as what they were stored as (tuples as lists, every kind of text as text).

    The encoder takes more than that: a set would come back as a list, a date without a zone as text. ``encoded``: the
    same mapping. Raises :class:`SessionDataError`.
    """
    try:
        if _plain_decoder.decode(encoded) == data:
            return  # a shortcut, in C
    except msgspec.ValidationError:
        """Deeper, or of other types: a closer look."""
    _check_keys(data)
    _check_values(data, encoded)


def _check_keys(data: dict[str, Any]) -> None:
    if set(map(type, dict.keys(data))) <= _STRINGS:
        return
    for key in data:
        if not isinstance(key, str):
            raise SessionDataError(f"session keys must be strings, not {type(key).__name__}: {key!r:.80}")


def _check_values(data: dict[str, Any], encoded: bytes) -> None:
    level = [value for value in dict.values(data) if type(value) not in _LEAVES]
    depth = 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise SessionDataError(f"the session cannot be stored: values are nested more than {MAX_DEPTH} deep")
        level = [inner for value in level for inner in _inside(value) if type(inner) not in _LEAVES]
    if decode_data(encoded) != data:
        for key, value in dict.items(data):
            _check_value(key, value)


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list | tuple) else ()


def _check_value(where: str, value: Any) -> None:
    if isinstance(value, dict):
        for key, inner in value.items():
            _check_value(where, key)
            _check_value(where, inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            _check_value(where, inner)
    elif not _comes_back(value):
        words = f"value of {where!r:.80}: {type(value).__name__} would come back as another type"
        raise SessionDataError(f"the session cannot be stored: {words}")


def _comes_back(value: Any) -> bool:
    if value is None or isinstance(value, str | int | float | bytes):
        return True
    return isinstance(value, datetime) and value.tzinfo is not None


def _culprit(data: dict[str, Any]) -> str:
    for key, value in data.items():
        try:
            _encoder.encode(value)
        except (TypeError, ValueError, OverflowError, RecursionError):
            return f"value of {key!r:.80}"
    return "a key"
