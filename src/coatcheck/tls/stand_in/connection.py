"""One connection of a stand-in: what ``ssl.SSLObject`` calls in the C module, answered by the system's libssl."""

from __future__ import annotations

import ctypes
import ssl
import threading
from ctypes import c_char, c_size_t, c_uint, c_void_p
from typing import Any, Final, NoReturn

from coatcheck.tls.stand_in.certificate import shown_certificate
from coatcheck.tls.stand_in.errors import connection_error
from coatcheck.tls.stand_in.records import RecordEnd

MAX_READ_BYTES: Final = 16 * 1024
"""A record has no more (RFC 8446 section 5.1), and OpenSSL hands out no more at once."""

# openssl/bio.h, openssl/ssl.h
_BIO_RESET: Final = 1
_BIO_INFO: Final = 3
_BIO_SET_EOF_RETURN: Final = 130
_SSL_CTRL_MODE: Final = 33
_MODES: Final = 0x2 | 0x4
"""SSL_MODE_ACCEPT_MOVING_WRITE_BUFFER, SSL_MODE_AUTO_RETRY: as Python sets them."""
_VERIFY_PEER: Final = 1
_RECEIVED_SHUTDOWN: Final = 2


class StandInConnection:
    """A server's end of a connection, between two ``ssl.MemoryBIO``. Any thread may call it, one at a time gets in."""

    def __init__(
        self,
        context: ssl.SSLContext,
        library: ctypes.CDLL,
        pointer: int,
        incoming: ssl.MemoryBIO,
        outgoing: ssl.MemoryBIO,
    ) -> None:
        """``pointer``: the ``SSL_CTX``. Raises ``ssl.SSLError``."""
        self._ssl: int | None = None
        self._library = library
        self._context = context
        self._incoming, self._outgoing = incoming, outgoing
        self._guard = threading.Lock()
        self._record = RecordEnd()
        self._is_at_the_end = False
        self._shown: dict[str, Any] | None = None
        made = library.SSL_new(pointer)
        arriving, leaving = library.BIO_new(library.BIO_s_mem()), library.BIO_new(library.BIO_s_mem())
        if not made or not arriving or not leaving:
            raise MemoryError("libssl has no room for a connection")
        self._ssl, self._arriving, self._leaving = made, arriving, leaving
        for each in (arriving, leaving):
            library.BIO_ctrl(each, _BIO_SET_EOF_RETURN, -1, None)  # nothing there is no end: more may come
        library.SSL_set_bio(made, arriving, leaving)
        library.SSL_ctrl(made, _SSL_CTRL_MODE, _MODES, None)
        library.SSL_set_accept_state(made)

    def __del__(self) -> None:
        if self._ssl:
            self._library.SSL_free(self._ssl)  # and the two BIOs
            self._ssl = None

    def __getattr__(self, name: str) -> NoReturn:
        raise NotImplementedError(f"connections over the system's OpenSSL have no {name}")

    # -- what it is ---------------------------------------------------------------------------------

    server_side = True
    server_hostname = None
    owner: Any = None

    @property
    def context(self) -> ssl.SSLContext:
        return self._context

    @context.setter
    def context(self, other: object) -> NoReturn:
        raise NotImplementedError("connections over the system's OpenSSL keep their context")

    @property
    def session(self) -> NoReturn:
        raise NotImplementedError("connections over the system's OpenSSL show no session")

    @session.setter
    def session(self, other: object) -> NoReturn:
        raise ValueError("Cannot set session for server-side SSLSocket.")

    # -- what it does -------------------------------------------------------------------------------

    def do_handshake(self) -> None:
        self._call(self._library.SSL_do_handshake)

    def read(self, length: int, buffer: Any = None) -> Any:
        """Up to ``length`` bytes; into ``buffer``, if there is one, and then how many. Nothing at the end."""
        if buffer is None:
            if length < 0:
                raise ValueError("size should not be negative")
            place: Any = ctypes.create_string_buffer(min(length, MAX_READ_BYTES))
        else:
            view = memoryview(buffer).cast("B")
            length = length if 0 < length <= len(view) else len(view)
            place = (c_char * min(length, MAX_READ_BYTES)).from_buffer(view) if length else b""
        count = self._read(place, len(place)) if length else 0
        return count if buffer is not None else ctypes.string_at(place, count)

    def _read(self, place: Any, length: int) -> int:
        count = c_size_t()
        try:
            self._call(self._library.SSL_read_ex, place, length, ctypes.byref(count))
        except ssl.SSLZeroReturnError:
            if self._library.SSL_get_shutdown(self._ssl) != _RECEIVED_SHUTDOWN:
                raise
            return 0
        return count.value

    def write(self, data: Any) -> int:
        """All of it is taken."""
        given = data if isinstance(data, bytes) else bytes(memoryview(data).cast("B"))
        if not given:
            return 0
        count = c_size_t()
        self._call(self._library.SSL_write_ex, given, len(given), ctypes.byref(count))
        return count.value

    def shutdown(self) -> Any:
        """Send close_notify, and wait for the other's."""
        for _ in range(2):  # 0 says that ours was sent; then the other's is looked for
            if self._call(self._library.SSL_shutdown, zero_is_fine=True):
                break

    def pending(self) -> int:
        with self._guard:
            return int(self._library.SSL_pending(self._ssl))

    # -- what was agreed on -------------------------------------------------------------------------

    @property
    def session_reused(self) -> bool:
        return bool(self._library.SSL_session_reused(self._ssl))

    def version(self) -> str | None:
        if not self._library.SSL_is_init_finished(self._ssl):
            return None
        found: bytes = self._library.SSL_get_version(self._ssl)
        return found.decode("ascii")

    def cipher(self) -> tuple[str, str, int] | None:
        library = self._library
        found = library.SSL_get_current_cipher(self._ssl)
        if not found:
            return None
        name, version = library.SSL_CIPHER_get_name(found), library.SSL_CIPHER_get_version(found)
        return name.decode("ascii"), version.decode("ascii"), int(library.SSL_CIPHER_get_bits(found, None))

    def compression(self) -> None:
        """There is none: contexts of Python and of ours forbid it."""

    def selected_alpn_protocol(self) -> str | None:
        place, size = c_void_p(), c_uint()
        self._library.SSL_get0_alpn_selected(self._ssl, ctypes.byref(place), ctypes.byref(size))
        return ctypes.string_at(place.value, size.value).decode("ascii") if place.value else None

    def getpeercert(self, binary_form: bool = False) -> bytes | dict[str, Any] | None:
        """The client's certificate, as ``ssl`` answers it: none is ``None``, one that was not checked is empty."""
        library = self._library
        if not library.SSL_is_init_finished(self._ssl):
            raise ValueError("handshake not done yet")
        certificate = library.SSL_get1_peer_certificate(self._ssl)
        if not certificate:
            return None
        try:
            encoded = ctypes.create_string_buffer(library.i2d_X509(certificate, None))
            library.i2d_X509(certificate, ctypes.byref(c_void_p(ctypes.addressof(encoded))))
        finally:
            library.X509_free(certificate)
        if binary_form:
            return encoded.raw
        if not library.SSL_get_verify_mode(self._ssl) & _VERIFY_PEER:
            return {}
        if self._shown is None:
            self._shown = shown_certificate(encoded.raw)
        return self._shown

    # -- how libssl is called -----------------------------------------------------------------------

    def _call(self, function: Any, *arguments: Any, zero_is_fine: bool = False) -> int:
        """One call, with what it wants to read, if that is there; what it wants to send goes out, also if it fails."""
        library = self._library
        failed = None
        with self._guard:
            while True:
                library.ERR_clear_error()
                result: int = function(self._ssl, *arguments)
                if result > 0 or (result == 0 and zero_is_fine):
                    break
                code = library.SSL_get_error(self._ssl, result)
                if code != ssl.SSL_ERROR_WANT_READ or not self._take_in():
                    failed = connection_error(library, self._ssl or 0, code)
                    break
            self._give_out()
        if failed is not None:
            raise failed
        return result

    def _take_in(self) -> bool:
        """One record, or what has come of it, or the end; ``False`` if nothing has."""
        pieces = []
        while piece := self._incoming.read(self._record.missing):
            pieces.append(piece)
            if self._record.received(piece):
                break
        data = b"".join(pieces)
        if data and self._library.BIO_write(self._arriving, data, len(data)) != len(data):
            raise MemoryError("libssl has no room for what came")
        if data or self._is_at_the_end or not self._incoming.eof:
            return bool(data)
        self._is_at_the_end = True
        self._library.BIO_ctrl(self._arriving, _BIO_SET_EOF_RETURN, 0, None)
        return True

    def _give_out(self) -> None:
        place = c_void_p()
        size = self._library.BIO_ctrl(self._leaving, _BIO_INFO, 0, ctypes.byref(place))
        if size > 0:
            self._outgoing.write(ctypes.string_at(place.value or 0, size))
            self._library.BIO_ctrl(self._leaving, _BIO_RESET, 0, None)
