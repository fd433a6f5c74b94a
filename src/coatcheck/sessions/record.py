"""A session as it is stored, and when it has expired (protocol section 7; mission A7, ASVS 7.3)."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from coatcheck.device.binding import Binding
from coatcheck.errors import CorruptEntry, SessionDataError
from coatcheck.replication.entry import MAX_ENTRY_BYTES
from coatcheck.sessions.durable import SocketState
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.sessions.provider import ProviderLogin
from coatcheck.sessions.value_names import lookalikes
from coatcheck.sessions.value_reading import Raising
from coatcheck.sessions.value_writing import Lowering
from coatcheck.sessions.values import MAX_DEPTH, PLAIN, Kept
from coatcheck.tokens.chain import Chain

MAX_DATA_BYTES = MAX_ENTRY_BYTES - 16_384
"""Room for the header, the chain and the seal; a larger session is refused with a clear error."""
EMPTY_DATA = b"\x80"


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

    @property
    def bound(self) -> Binding | None:
        """The browser that it is bound to, if there is one (:class:`BoundRecord`)."""
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
    return EndingRecord(**{**msgspec.structs.asdict(record), "ends_at": ends_at})


class BoundRecord(EndingRecord, frozen=True, array_like=True, gc=False):
    """One of a session that is bound to a browser's key."""

    binding: Binding | None = None

    @property
    def bound(self) -> Binding | None:
        return self.binding


def binding_to(record: Record, binding: Binding) -> BoundRecord:
    """The same, bound to a key."""
    return BoundRecord(**{**msgspec.structs.asdict(record), "binding": binding})


NINE_FIELDS: Final = 0x99
"""How the MessagePack of an :class:`EndingRecord` begins."""
TEN_FIELDS: Final = 0x9A
"""How that of a :class:`BoundRecord` begins, or with a higher number, of a later release."""

KNOWN_MS: Final = 1
"""By so much the last activity of a session whose token was shown again is later than its creation, at least."""


class _HasValues(Exception):
    """The data has extensions, which :mod:`coatcheck.sessions.values` reads."""


def _plain_text(value: Any) -> str:
    """Kinds of text are stored as text. Of all else that the encoder does not know, a closer look says more."""
    if isinstance(value, str):
        return str.__str__(value)
    raise TypeError(f"{type(value).__name__} cannot be encoded")


def _has_values(code: int, payload: memoryview) -> Any:
    raise _HasValues


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain_text)
_record_decoder = msgspec.msgpack.Decoder(Record)
_ending_decoder = msgspec.msgpack.Decoder(EndingRecord)
_bound_decoder = msgspec.msgpack.Decoder(BoundRecord)
_data_decoder = msgspec.msgpack.Decoder(dict[str, Any], ext_hook=_has_values)
_Leaf = bool | int | float | str | None
_Flat = _Leaf | list[_Leaf] | dict[str, _Leaf]
_Nested = _Leaf | list[_Flat] | dict[str, _Flat]
_decode_nearly_all = msgspec.msgpack.Decoder(dict[str, _Leaf | list[_Nested] | dict[str, _Nested]]).decode
"""Decodes what nearly all sessions consist of, and nothing else."""
encode_record = _encoder.encode
encode_chain: Callable[[Chain], bytes] = _encoder.encode
decode_chain = msgspec.msgpack.Decoder(Chain).decode


def decode_record(body: bytes) -> Record:
    """Raises :class:`CorruptEntry` if the body is no record: another version of coatcheck sealed it."""
    try:
        if body and body[0] >= TEN_FIELDS:
            with contextlib.suppress(msgspec.ValidationError):
                return _bound_decoder.decode(body)
        if body and body[0] >= NINE_FIELDS:
            with contextlib.suppress(msgspec.ValidationError):
                return _ending_decoder.decode(body)
        return _record_decoder.decode(body)
    except msgspec.MsgspecError as error:
        raise CorruptEntry(f"not a session record: {error}") from None


NOT_PLAIN: Final = (_HasValues, msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, RecursionError)
"""What :data:`decode_plain` raises."""
decode_plain: Final[Callable[[bytes], dict[str, Any]]] = _data_decoder.decode
"""The mapping of plain values. For any other bytes :data:`NOT_PLAIN`: then ask :func:`open_data`."""


def open_data(data: bytes) -> tuple[dict[str, Any], Kept | None]:
    """The mapping, and what is to be written back beside it: ``None`` if all its values are plain.

    Raises :class:`CorruptEntry` for what no release stores.
    """
    try:
        return _data_decoder.decode(data), None
    except _HasValues:
        """A closer look."""
    except _NONSENSE as error:
        raise CorruptEntry(f"not a session's data: {error}") from None
    raising = Raising()
    return _raised(raising, data), raising.kept


def decode_data(data: bytes) -> dict[str, Any]:
    """The mapping. Raises :class:`CorruptEntry`."""
    return open_data(data)[0]


def look_into_data(data: bytes) -> dict[str, Any]:
    """The mapping for those who only look, and run no code of an app: values of registered classes are
    :class:`coatcheck.sessions.value_reading.UnknownValue`. Raises :class:`CorruptEntry`."""
    return _raised(Raising(opaque=True), data)


def _raised(raising: Raising, data: bytes) -> dict[str, Any]:
    try:
        return raising.mapping(data)
    except _NONSENSE as error:
        raise CorruptEntry(f"not a session's data: {error}") from None


_NONSENSE: Final = (msgspec.MsgspecError, ValueError, TypeError, ArithmeticError, RecursionError)
"""What reading raises for bytes that nobody can have stored."""


def encode_plain(data: dict[str, Any]) -> bytes:
    """The mapping as MessagePack, of which the caller knows that it holds nothing but plain values. Raises
    :class:`SessionDataError` for what cannot be stored."""
    try:
        encoded = _encoder.encode(data)
    except _UNENCODED:
        return encode_data(data)
    if len(encoded) > MAX_DATA_BYTES:
        raise _too_large(encoded)
    return encoded


def encode_data(data: dict[str, Any], kept: Kept | None = None, *, unless: bytes = b"") -> bytes:
    """The mapping as MessagePack: values come back as what they were (docs/values.md), or are refused.

    ``kept``: as :func:`open_data` gave it. ``unless``: bytes of plain values; if they come out again at once, there is
    no closer look. Raises :class:`SessionDataError` for what cannot be stored.
    """
    encoded = b""
    if kept is None:
        try:
            encoded = _encoder.encode(data)
            # A shortcut, in C: a set is written as a list and a UUID as text, which do not equal what they were.
            if encoded == unless or (_decode_nearly_all(encoded) == data and not lookalikes):
                return encoded if len(encoded) <= MAX_DATA_BYTES else _checked(encoded)
        except _NOT_AT_ONCE:
            if encoded and _is_plain(data):
                return _checked(encoded)
    try:
        lowered = Lowering(kept).mapping(data)
        if lowered is not data or not encoded:
            encoded = _encoder.encode(lowered)
    except _UNENCODED as error:
        raise SessionDataError(f"the session cannot be stored: {error}") from error
    return _checked(encoded)


_UNENCODED: Final = (TypeError, ValueError, OverflowError, RecursionError)


def _is_plain(data: dict[str, Any]) -> bool:
    """Whether there is nothing but plain values in it, and not too deep: all levels at once, in few steps of Python."""
    if not set(map(type, dict.keys(data))) <= _STRINGS:
        return False
    values: Iterable[Any] = dict.values(data)
    for _ in range(MAX_DEPTH + 1):
        level = [value for value in values if type(value) not in PLAIN]
        if not level:
            return True
        values = inside = list[Any]()
        for value in level:
            if type(value) is list:
                inside += value
            elif type(value) is dict and set(map(type, value)) <= _STRINGS:
                inside += value.values()
            else:
                return False
    return False


_STRINGS: Final = frozenset({str})
_NOT_AT_ONCE: Final = (*_UNENCODED, ArithmeticError, msgspec.ValidationError)


def _checked(encoded: bytes) -> bytes:
    if len(encoded) > MAX_DATA_BYTES:
        raise _too_large(encoded)
    return encoded


def _too_large(encoded: bytes) -> SessionDataError:
    return SessionDataError(f"the session has {len(encoded)} bytes; at most {MAX_DATA_BYTES} can be stored")


def check_room(data: bytes, sockets: dict[bytes, SocketState]) -> None:
    """Raises :class:`SessionDataError` if a session with such data has no room for what its WebSockets keep."""
    size = len(data) + len(_encoder.encode(sockets))
    if size > MAX_DATA_BYTES:
        raise SessionDataError(
            f"the session and the answers of its durable WebSockets have {size} bytes; at most {MAX_DATA_BYTES} can be "
            "stored"
        )
