"""The context of a stand-in: each setting is made in Python's context, which judges it, and then in the system's."""

from __future__ import annotations

import ctypes
import os
import re
import socket
import ssl
import weakref
from collections.abc import Callable, Iterable
from ctypes import c_void_p
from typing import Any, Final, NoReturn

from coatcheck.tls.openssl import VERIFY_MODES, OpenSslDoor, immortal
from coatcheck.tls.stand_in.connection import StandInConnection
from coatcheck.tls.stand_in.errors import library_error
from coatcheck.tls.stand_in.library import ALPN_CALLBACK, PASSWORD_CALLBACK, system_library
from coatcheck.tls.stand_in.on_socket import SocketConnection

# openssl/ssl.h
_CTRL_MODE: Final = 33
_CTRL_GROUPS_LIST: Final = 92
_CTRL_MIN_VERSION: Final = 123
_CTRL_MAX_VERSION: Final = 124
_MODE_RELEASE_BUFFERS: Final = 0x10
_FILETYPE_PEM: Final = 1
_ALPN_OK, _ALPN_NO_ANSWER = 0, 3
_NEGOTIATED: Final = 1
_ALL_BITS: Final = 2**64 - 1
_OWN_SESSIONS: Final = b"coatcheck"
_PEM_BLOCK: Final = re.compile(r"-----BEGIN CERTIFICATE-----.*?-----END CERTIFICATE-----", re.DOTALL)

_AS_IT_IS: Final = frozenset(
    {"cert_store_stats", "get_ca_certs", "get_ciphers", "protocol", "security_level", "sslobject_class"}
    | {"sslsocket_class", "wrap_bio", "wrap_socket"}
)
"""What Python's own context answers for both."""


class StandInContext(ssl.SSLContext):
    """A server's context over the system's OpenSSL. What it cannot do raises ``NotImplementedError``.

    Raises :class:`coatcheck.tls.OpenSslRefused` if the system has no OpenSSL that was proved.
    """

    def __new__(cls) -> StandInContext:
        return super().__new__(cls, ssl.PROTOCOL_TLS_SERVER)

    def __init__(self) -> None:
        library = self._library = system_library()
        pointer = library.SSL_CTX_new(library.TLS_server_method())
        if not pointer:
            raise library_error(library)
        self._pointer: int = pointer
        weakref.finalize(self, library.SSL_CTX_free, pointer).atexit = False
        library.SSL_CTX_ctrl(pointer, _CTRL_MODE, _MODE_RELEASE_BUFFERS, None)
        library.SSL_CTX_set_security_level(pointer, self.security_level)
        library.SSL_CTX_set_session_id_context(pointer, _OWN_SESSIONS, len(_OWN_SESSIONS))
        # Those of TLS 1.3 are not in this list, and the same in all versions of OpenSSL.
        named = ":".join(one["name"] for one in self.get_ciphers() if not one["name"].startswith("TLS_"))
        self._must(library.SSL_CTX_set_cipher_list(pointer, named.encode()))
        self._follow()

    @property
    def door(self) -> OpenSslDoor:
        """How its sessions are shared."""
        return OpenSslDoor(self._library, self._pointer)

    def load_cert_chain(self, certfile: Any, keyfile: Any = None, password: Any = None) -> None:
        super().load_cert_chain(certfile, keyfile, password)
        library, pointer = self._library, self._pointer
        answer = PASSWORD_CALLBACK(lambda place, size, writes, data: _give_password(password, place, size))
        library.SSL_CTX_set_default_passwd_cb(pointer, ctypes.cast(answer, c_void_p))
        try:
            self._must(library.SSL_CTX_use_certificate_chain_file(pointer, os.fsencode(certfile)))
            key = os.fsencode(certfile if keyfile is None else keyfile)
            self._must(library.SSL_CTX_use_PrivateKey_file(pointer, key, _FILETYPE_PEM))
            self._must(library.SSL_CTX_check_private_key(pointer))
        finally:
            library.SSL_CTX_set_default_passwd_cb(pointer, None)

    def load_verify_locations(self, cafile: Any = None, capath: Any = None, cadata: Any = None) -> None:
        super().load_verify_locations(cafile, capath, cadata)
        if cafile is not None:
            self._must(self._library.SSL_CTX_load_verify_file(self._pointer, os.fsencode(cafile)))
        if capath is not None:
            self._must(self._library.SSL_CTX_load_verify_dir(self._pointer, os.fsencode(capath)))
        if isinstance(cadata, str):
            cadata = b"".join(map(ssl.PEM_cert_to_DER_cert, _PEM_BLOCK.findall(cadata)))
        if cadata is not None:
            self._trust(bytes(cadata))

    def _trust(self, encoded: bytes) -> None:
        """Certificates in DER, one after the other."""
        library = self._library
        held = ctypes.create_string_buffer(encoded, len(encoded))
        place, end = c_void_p(ctypes.addressof(held)), ctypes.addressof(held) + len(encoded)
        while (place.value or end) < end:
            certificate = library.d2i_X509(None, ctypes.byref(place), end - (place.value or end))
            self._must(certificate)
            self._must(library.X509_STORE_add_cert(library.SSL_CTX_get_cert_store(self._pointer), certificate))
            library.X509_free(certificate)

    def set_ciphers(self, cipherlist: str) -> None:
        super().set_ciphers(cipherlist)
        self._must(self._library.SSL_CTX_set_cipher_list(self._pointer, cipherlist.encode()))

    def set_ecdh_curve(self, name: str | bytes) -> None:
        super().set_ecdh_curve(name)  # type: ignore[arg-type]
        wanted = name.encode() if isinstance(name, str) else bytes(name)
        self._must(self._library.SSL_CTX_ctrl(self._pointer, _CTRL_GROUPS_LIST, 0, wanted))

    def set_alpn_protocols(self, alpn_protocols: Iterable[str]) -> None:
        names = [one.encode("ascii") for one in alpn_protocols]
        super().set_alpn_protocols([name.decode() for name in names])
        ours = b"".join(bytes((len(name),)) + name for name in names)
        answer = ALPN_CALLBACK(_chooser(self._library, ours))
        immortal.append(answer)  # a connection may outlive this context
        self._library.SSL_CTX_set_alpn_select_cb(self._pointer, ctypes.cast(answer, c_void_p), None)

    # What ``SSLObject`` and ``SSLSocket`` of the standard library ask a context for.

    def _wrap_bio(
        self,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
        server_side: bool,
        server_hostname: object = None,
        *,
        owner: object = None,
        session: object = None,
    ) -> StandInConnection:
        _check(server_side, session)
        return StandInConnection(self, self._library, self._pointer, incoming, outgoing)

    def _wrap_socket(
        self,
        sock: socket.socket,
        server_side: bool,
        server_hostname: object = None,
        *,
        owner: object = None,
        session: object = None,
    ) -> SocketConnection:
        _check(server_side, session)
        return SocketConnection(self, self._library, self._pointer, sock)

    def _follow(self) -> None:
        """Set in the system's context what is a number in Python's."""
        library, pointer = self._library, self._pointer
        options = int(self.options)
        library.SSL_CTX_clear_options(pointer, ~options & _ALL_BITS)
        library.SSL_CTX_set_options(pointer, options)
        library.SSL_CTX_set_verify(pointer, VERIFY_MODES[self.verify_mode], None)
        parameters = library.SSL_CTX_get0_param(pointer)
        library.X509_VERIFY_PARAM_clear_flags(parameters, library.X509_VERIFY_PARAM_get_flags(parameters))
        self._must(library.X509_VERIFY_PARAM_set_flags(parameters, int(self.verify_flags)))
        # What has no number, "the oldest" and "the newest there are", is below 0 for Python, and 0 for OpenSSL.
        self._must(library.SSL_CTX_ctrl(pointer, _CTRL_MIN_VERSION, max(self.minimum_version, 0), None))
        self._must(library.SSL_CTX_ctrl(pointer, _CTRL_MAX_VERSION, max(self.maximum_version, 0), None))
        self._must(library.SSL_CTX_set_num_tickets(pointer, self.num_tickets))

    def _must(self, result: int | None) -> None:
        if not result or result < 0:
            raise library_error(self._library)


def _check(server_side: bool, session: object) -> None:
    if not server_side:
        raise ssl.SSLError("Cannot create a client socket with a PROTOCOL_TLS_SERVER context")
    if session is not None:
        raise ValueError("Cannot set session for server-side SSLSocket.")


def _give_password(password: Any, place: int, size: int) -> int:
    """How long it is; below 0 if there is none, or it is too long for OpenSSL."""
    given = password() if callable(password) else password
    secret = given.encode() if isinstance(given, str) else bytes(given or b"")
    if not secret or len(secret) > size:
        return -1
    ctypes.memmove(place, secret, len(secret))
    return len(secret)


def _chooser(library: ctypes.CDLL, ours: bytes) -> Callable[..., int]:
    """Chooses the first protocol of ours that the client offers (RFC 7301 section 3.2); none is no error."""
    held = ctypes.create_string_buffer(ours, len(ours))

    def choose(connection: int, place: int, size: int, theirs: int, their_size: int, data: object) -> int:
        found = library.SSL_select_next_proto(place, size, held, len(ours), theirs, their_size)
        return _ALPN_OK if found == _NEGOTIATED else _ALPN_NO_ANSWER

    return choose


def _followed(name: str) -> property:
    given: Any = getattr(ssl.SSLContext, name)

    def change(self: StandInContext, value: Any) -> None:
        given.__set__(self, value)
        self._follow()

    return property(lambda self: given.__get__(self), change)


def _refused(name: str) -> Any:
    """Whatever else an ``SSLContext`` has, today or in a later Python: nothing is silently not done."""
    given: Any = getattr(ssl.SSLContext, name)

    def refuse(*arguments: object, **named: object) -> NoReturn:
        raise NotImplementedError(f"a context over the system's OpenSSL has no {name}")

    def change(self: StandInContext, value: Any) -> None:
        if given.__get__(self) != value:
            refuse()

    return refuse if callable(given) else property(lambda self: given.__get__(self), change)


for _name in ("maximum_version", "minimum_version", "num_tickets", "options", "verify_flags", "verify_mode"):
    setattr(StandInContext, _name, _followed(_name))
for _name in dir(ssl.SSLContext):
    if not _name.startswith("_") and _name not in _AS_IT_IS and _name not in vars(StandInContext):
        setattr(StandInContext, _name, _refused(_name))
