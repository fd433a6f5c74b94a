"""The door to the OpenSSL behind Python's ``ssl``: what its C interface has and Python's does not, through ``ctypes``.

A wrong pointer would be a crash or worse, so :func:`open_door` believes nothing: the library is the one that the
module ``_ssl`` itself is bound to, the pointer is readable, what both ways of looking show is equal, and a random value
that is set through ``ssl`` is read back through the pointer. What is not proved is refused, and sharing stays off.
"""

from __future__ import annotations

import ctypes
import os
import secrets
import ssl
import sys
from ctypes import POINTER, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint64, c_void_p
from functools import cache
from typing import Any, ClassVar, Final, NamedTuple, Protocol

from coatcheck.errors import CoatcheckError

_NEW_CALLBACK: Final = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p)
_GET_CALLBACK: Final = ctypes.CFUNCTYPE(c_void_p, c_void_p, c_void_p, c_int, POINTER(c_int))
_ID_CALLBACK: Final = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, POINTER(c_uint))

_TICKET_CALLBACK: Final = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_void_p, c_int)

TICKET_NAME_BYTES: Final = 16
TICKET_SECRET_BYTES: Final = 32
_IV_BYTES: Final = 16


class _Parameter(ctypes.Structure):
    """``OSSL_PARAM``, openssl/core.h."""

    _fields_: ClassVar = [
        ("key", c_char_p),
        ("data_type", c_uint),
        ("data", c_void_p),
        ("data_size", c_size_t),
        ("return_size", c_size_t),
    ]


_UTF8_STRING, _OCTET_STRING = 4, 5

# openssl/ssl.h
_CTRL_SESSION_NUMBER: Final = 20
_CTRL_SET_CACHE_MODE: Final = 44
_CACHE_SERVER: Final = 0x0002
_CACHE_NO_AUTO_CLEAR: Final = 0x0080
_CACHE_NO_INTERNAL: Final = 0x0300
_EXTENSION_SERVER_NAME: Final = 0
_NAME_TYPE_HOST: Final = 0

_OLDEST: Final = 0x30000000
"""OpenSSL 3.0: the oldest that was tried."""
_TLS_1_3: Final = 0x0304
_LOW_32_BITS: Final = 0xFFFFFFFF
_READABLE_BYTES: Final = 1024
"""The pointer must be mapped for at least so many bytes; OpenSSL 3's context has more."""
VERIFY_MODES: Final = {ssl.CERT_NONE: 0, ssl.CERT_OPTIONAL: 1, ssl.CERT_REQUIRED: 3}
_MAX_SESSION_BYTES: Final = 16 * 1024

SIGNATURES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "OpenSSL_version": (c_char_p, [c_int]),
    "SSL_CTX_ctrl": (c_long, [c_void_p, c_int, c_long, c_void_p]),
    "SSL_CTX_get_options": (c_uint64, [c_void_p]),
    "SSL_CTX_get_verify_mode": (c_int, [c_void_p]),
    "SSL_CTX_get_num_tickets": (c_size_t, [c_void_p]),
    "SSL_CTX_get_timeout": (c_long, [c_void_p]),
    "SSL_CTX_set_timeout": (c_long, [c_void_p, c_long]),
    "SSL_CTX_set_session_id_context": (c_int, [c_void_p, c_char_p, c_uint]),
    "SSL_CTX_set_generate_session_id": (c_int, [c_void_p, c_void_p]),
    "SSL_CTX_sess_set_new_cb": (None, [c_void_p, c_void_p]),
    "SSL_CTX_sess_set_get_cb": (None, [c_void_p, c_void_p]),
    "SSL_SESSION_get_id": (c_void_p, [c_void_p, POINTER(c_uint)]),
    "SSL_SESSION_get_protocol_version": (c_int, [c_void_p]),
    "i2d_SSL_SESSION": (c_int, [c_void_p, c_void_p]),
    "d2i_SSL_SESSION": (c_void_p, [c_void_p, c_void_p, c_long]),
    "SSL_CTX_set_tlsext_ticket_key_evp_cb": (c_int, [c_void_p, c_void_p]),
    "EVP_aes_256_cbc": (c_void_p, []),
    "EVP_EncryptInit_ex": (c_int, [c_void_p, c_void_p, c_void_p, c_char_p, c_char_p]),
    "EVP_DecryptInit_ex": (c_int, [c_void_p, c_void_p, c_void_p, c_char_p, c_char_p]),
    "EVP_MAC_CTX_set_params": (c_int, [c_void_p, c_void_p]),
    "SSL_version": (c_int, [c_void_p]),
    "SSL_get_servername": (c_char_p, [c_void_p, c_int]),
    "SSL_client_hello_get0_ext": (c_int, [c_void_p, c_uint, POINTER(c_void_p), POINTER(c_size_t)]),
}

immortal: list[object] = []
"""OpenSSL may call back for as long as any connection of a context lives, whoever has forgotten it in Python."""


class OpenSslRefused(CoatcheckError):
    """The OpenSSL behind this context could not be proved to be what we think; the message says what did not fit."""


class SessionCallbacks(Protocol):
    """What OpenSSL asks of us. An exception is reported by ``ctypes`` and taken for "nothing"; so raise none."""

    def new_id(self) -> bytes:
        """The 32 bytes of a new session's ID."""
        ...

    def keep(self, door: OpenSslDoor, connection: int, session: int) -> None:
        """A session was made."""
        ...

    def find(self, door: OpenSslDoor, connection: int, session_id: bytes) -> bytes | None:
        """A client offers a session: its encoding, or ``None`` for a full handshake."""
        ...


class TicketSecrets(NamedTuple):
    """What one ticket key is: its name in clear on each ticket, and what seals and marks them (RFC 5077 section 4)."""

    name: bytes
    sealing: bytes
    marking: bytes


class TicketCallbacks(Protocol):
    """What OpenSSL asks where tickets carry the sessions. Raise nothing, as for :class:`SessionCallbacks`."""

    def sealing_key(self, host: bytes) -> TicketSecrets | None:
        """The key for a new ticket of a connection to ``host``; ``None``: it gets none that anybody can open."""
        ...

    def opening_key(self, name: bytes, host: bytes) -> tuple[TicketSecrets, bool] | None:
        """The key of that name, and whether the client is to get a new ticket; ``None`` for a full handshake."""
        ...


class OpenSslDoor:
    """One context, seen through the C interface; made by :func:`open_door`."""

    def __init__(self, library: ctypes.CDLL, pointer: int) -> None:
        self._library = library
        self._pointer = pointer

    def share(self, callbacks: SessionCallbacks, context_id: bytes, timeout_s: int) -> None:
        """Have sessions kept and found by ``callbacks``, for ever. Raises :class:`OpenSslRefused`."""
        library, pointer = self._library, self._pointer
        kept = (
            _NEW_CALLBACK(lambda connection, session: self._keep(callbacks, connection, session)),
            _GET_CALLBACK(lambda *arguments: self._find(callbacks, *arguments)),
            _ID_CALLBACK(lambda connection, place, size: self._new_id(callbacks, place, size)),
        )
        immortal.append(kept)
        mode = _CACHE_SERVER | _CACHE_NO_AUTO_CLEAR | _CACHE_NO_INTERNAL
        library.SSL_CTX_ctrl(pointer, _CTRL_SET_CACHE_MODE, mode, None)
        library.SSL_CTX_set_timeout(pointer, timeout_s)
        if library.SSL_CTX_set_session_id_context(pointer, context_id, len(context_id)) != 1:
            raise OpenSslRefused("the session ID context was refused")
        library.SSL_CTX_sess_set_new_cb(pointer, ctypes.cast(kept[0], c_void_p))
        library.SSL_CTX_sess_set_get_cb(pointer, ctypes.cast(kept[1], c_void_p))
        library.SSL_CTX_set_generate_session_id(pointer, ctypes.cast(kept[2], c_void_p))

    def share_tickets(self, callbacks: TicketCallbacks, context_id: bytes, timeout_s: int) -> None:
        """Have tickets sealed and opened with keys of ``callbacks``, for ever. Raises :class:`OpenSslRefused`."""
        library, pointer = self._library, self._pointer
        kept = _TICKET_CALLBACK(lambda *arguments: self._ticket(callbacks, *arguments))
        immortal.append(kept)
        library.SSL_CTX_set_timeout(pointer, timeout_s)
        if library.SSL_CTX_set_session_id_context(pointer, context_id, len(context_id)) != 1:
            raise OpenSslRefused("the session ID context was refused")
        if library.SSL_CTX_set_tlsext_ticket_key_evp_cb(pointer, ctypes.cast(kept, c_void_p)) != 1:
            raise OpenSslRefused("the keys of tickets were refused")

    def id_of(self, session: int) -> bytes:
        size = c_uint()
        place = self._library.SSL_SESSION_get_id(session, ctypes.byref(size))
        return ctypes.string_at(place, size.value)

    def protocol_of(self, session: int) -> int:
        return int(self._library.SSL_SESSION_get_protocol_version(session))

    def encoded(self, session: int) -> bytes:
        """OpenSSL's own encoding of a session; empty if it has none, or one beyond any sense."""
        size = self._library.i2d_SSL_SESSION(session, None)
        if not 0 < size <= _MAX_SESSION_BYTES:
            return b""
        buffer = ctypes.create_string_buffer(size)
        self._library.i2d_SSL_SESSION(session, ctypes.byref(c_void_p(ctypes.addressof(buffer))))
        return buffer.raw

    def host_of(self, connection: int) -> bytes:
        """The host name of a connection whose handshake is done; empty if the client did not say."""
        return self._library.SSL_get_servername(connection, _NAME_TYPE_HOST) or b""

    def offered_host(self, connection: int) -> bytes:
        """The host name in the ClientHello that is being read (RFC 6066 section 3); empty if there is none."""
        place, size = c_void_p(), c_size_t()
        found = self._library.SSL_client_hello_get0_ext(
            connection, _EXTENSION_SERVER_NAME, ctypes.byref(place), ctypes.byref(size)
        )
        if not found or place.value is None or size.value < 5:
            return b""
        raw = ctypes.string_at(place.value, size.value)
        return raw[5 : 5 + int.from_bytes(raw[3:5], "big")] if raw[2] == _NAME_TYPE_HOST else b""

    # What OpenSSL calls

    def _ticket(
        self, callbacks: TicketCallbacks, connection: int, name: int, iv: int, cipher: int, mac: int, seals: int
    ) -> int:
        library = self._library
        if seals:
            host = self.host_of(connection)
            secrets_ = callbacks.sealing_key(host)
            if secrets_ is None:
                return 0
            fresh = os.urandom(_IV_BYTES)
            ctypes.memmove(name, secrets_.name, TICKET_NAME_BYTES)
            ctypes.memmove(iv, fresh, _IV_BYTES)
            begun = library.EVP_EncryptInit_ex(cipher, library.EVP_aes_256_cbc(), None, secrets_.sealing, fresh)
            return int(begun == 1 and self._mark_with(mac, secrets_.marking))
        found = callbacks.opening_key(ctypes.string_at(name, TICKET_NAME_BYTES), self.offered_host(connection))
        if found is None:
            return 0
        secrets_, is_old = found
        given = ctypes.string_at(iv, _IV_BYTES)
        begun = library.EVP_DecryptInit_ex(cipher, library.EVP_aes_256_cbc(), None, secrets_.sealing, given)
        if begun != 1 or not self._mark_with(mac, secrets_.marking):
            return 0
        # A client of TLS 1.3 offers each ticket once (RFC 8446 appendix C.4): without a new one its next visit would be
        # a full handshake. OpenSSL renews them too, when it has the keys itself.
        return 2 if is_old or library.SSL_version(connection) >= _TLS_1_3 else 1

    def _mark_with(self, mac: int, secret: bytes) -> bool:
        held, digest = ctypes.create_string_buffer(secret, len(secret)), ctypes.create_string_buffer(b"sha256")
        parameters = (_Parameter * 3)(
            _Parameter(b"key", _OCTET_STRING, ctypes.addressof(held), len(secret), 0),
            _Parameter(b"digest", _UTF8_STRING, ctypes.addressof(digest), 6, 0),
            _Parameter(None, 0, None, 0, 0),
        )
        return bool(self._library.EVP_MAC_CTX_set_params(mac, parameters) == 1)

    def _new_id(self, callbacks: SessionCallbacks, place: int, size: Any) -> int:
        ctypes.memmove(place, callbacks.new_id(), 32)
        size[0] = 32
        return 1

    def _keep(self, callbacks: SessionCallbacks, connection: int, session: int) -> int:
        callbacks.keep(self, connection, session)
        return 0  # we keep no reference to it

    def _find(self, callbacks: SessionCallbacks, connection: int, place: int, size: int, copy: Any) -> int | None:
        copy[0] = 0  # what we return belongs to OpenSSL
        encoded = callbacks.find(self, connection, ctypes.string_at(place, size))
        if encoded is None:
            return None
        buffer = ctypes.create_string_buffer(encoded, len(encoded))
        start = c_void_p(ctypes.addressof(buffer))
        session: int | None = self._library.d2i_SSL_SESSION(None, ctypes.byref(start), len(encoded))
        return session


def open_door(context: ssl.SSLContext) -> OpenSslDoor:
    """The door to a server's context. Changes nothing that stays.

    Raises:
        OpenSslRefused: something is not as it was proved to be; then nothing of the context was touched.
    """
    if sys.implementation.name != "cpython":
        raise OpenSslRefused(f"this Python is {sys.implementation.name}, not CPython")
    import _ssl

    if not isinstance(context, _ssl._SSLContext):
        raise OpenSslRefused(f"a {type(context).__name__} is no context of Python's own ssl module")
    library = _library()
    offset = object.__basicsize__  # the pointer comes right after what all objects begin with
    if _ssl._SSLContext.__basicsize__ < offset + ctypes.sizeof(c_void_p):
        raise OpenSslRefused("ssl.SSLContext has no room for the pointer that is expected there")
    pointer = c_void_p.from_address(id(context) + offset).value
    if not pointer or pointer % ctypes.alignment(c_void_p) or not _is_readable(pointer):
        raise OpenSslRefused("where the pointer is expected there is none")
    _compare(library, pointer, context)
    _probe(library, pointer, context)
    return OpenSslDoor(library, pointer)


def declare(library: ctypes.CDLL, signatures: dict[str, tuple[Any, list[Any]]]) -> None:
    """Say what these functions answer and take. Raises ``AttributeError`` for one that is not there."""
    for name, (result, arguments) in signatures.items():
        function = getattr(library, name)
        function.restype, function.argtypes = result, arguments


@cache
def _library() -> ctypes.CDLL:
    """The very libssl that the module ``_ssl`` is bound to: symbols are looked up through that module's own file."""
    import _ssl

    if not ssl.OPENSSL_VERSION.startswith("OpenSSL ") or ssl.OPENSSL_VERSION_NUMBER < _OLDEST:
        raise OpenSslRefused(f"{ssl.OPENSSL_VERSION} is not OpenSSL 3.0 or newer")
    path = getattr(_ssl, "__file__", None)
    try:
        library = ctypes.CDLL(path)
        declare(library, SIGNATURES)
    except (OSError, AttributeError) as missing:
        raise OpenSslRefused(
            "OpenSSL is built into this Python, out of reach; coatcheck.tls.server_context() makes a context over the "
            f"system's ({missing})"
        ) from None
    found = (library.OpenSSL_version(0) or b"").decode("ascii", "replace")
    if found != ssl.OPENSSL_VERSION:
        raise OpenSslRefused(f"the library in reach is {found}, and Python uses {ssl.OPENSSL_VERSION}")
    return library


def _is_readable(pointer: int) -> bool:
    """Whether memory is mapped there: write(2) from a bad address is an error (EFAULT), where a look would crash."""
    write = ctypes.CDLL(None, use_errno=True).write
    write.argtypes, write.restype = [c_int, c_void_p, c_size_t], ctypes.c_ssize_t
    reading, writing = os.pipe()
    try:
        return bool(write(writing, pointer, _READABLE_BYTES) == _READABLE_BYTES)
    finally:
        os.close(reading)
        os.close(writing)


def _compare(library: ctypes.CDLL, pointer: int, context: ssl.SSLContext) -> None:
    """What can be looked at in both ways is equal."""
    looks: dict[str, tuple[int, int]] = {
        "options": (library.SSL_CTX_get_options(pointer) & _LOW_32_BITS, int(context.options) & _LOW_32_BITS),
        "verify mode": (library.SSL_CTX_get_verify_mode(pointer) & 3, VERIFY_MODES[context.verify_mode]),
        "number of tickets": (library.SSL_CTX_get_num_tickets(pointer), context.num_tickets),
        "number of sessions": (
            library.SSL_CTX_ctrl(pointer, _CTRL_SESSION_NUMBER, 0, None),
            context.session_stats()["number"],
        ),
    }
    for what, (through_pointer, through_python) in looks.items():
        if through_pointer != through_python:
            raise OpenSslRefused(f"{what}: {through_pointer} through the pointer, {through_python} through ssl")


def _probe(library: ctypes.CDLL, pointer: int, context: ssl.SSLContext) -> None:
    """A random value that is set through ``ssl`` is there through the pointer."""
    before = context.num_tickets
    value = before + 1 + secrets.randbelow(1000)
    try:
        context.num_tickets = value
    except ValueError:
        raise OpenSslRefused("it is not a server's context: use ssl.PROTOCOL_TLS_SERVER") from None
    try:
        if library.SSL_CTX_get_num_tickets(pointer) != value:
            raise OpenSslRefused("what is set through ssl is not seen through the pointer")
    finally:
        context.num_tickets = before
