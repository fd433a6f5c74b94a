"""What went wrong in libssl, as the exceptions of Python's ``ssl``, with their reasons."""

from __future__ import annotations

import ctypes
import ssl
from typing import Final

_LIBRARY_SSL: Final = 20
_CERTIFICATE_VERIFY_FAILED: Final = 134
_UNEXPECTED_EOF: Final = 294

_WORDS: Final[dict[int, tuple[type[ssl.SSLError], str]]] = {
    ssl.SSL_ERROR_ZERO_RETURN: (ssl.SSLZeroReturnError, "TLS/SSL connection has been closed (EOF)"),
    ssl.SSL_ERROR_WANT_READ: (ssl.SSLWantReadError, "The operation did not complete (read)"),
    ssl.SSL_ERROR_WANT_WRITE: (ssl.SSLWantWriteError, "The operation did not complete (write)"),
    ssl.SSL_ERROR_EOF: (ssl.SSLEOFError, "EOF occurred in violation of protocol"),
}


def connection_error(library: ctypes.CDLL, connection: int, code: int) -> ssl.SSLError:
    """The error of a call on a connection; ``code``: what ``SSL_get_error`` said. Empties this thread's queue."""
    last = library.ERR_peek_last_error()
    if code == ssl.SSL_ERROR_SYSCALL and not last:
        code = ssl.SSL_ERROR_EOF  # there is no system call here: it had failed before
    if not last and code in _WORDS:
        return say(code)
    which = (last >> 23 & 0xFF, last & 0x7FFFFF)
    if which == (_LIBRARY_SSL, _UNEXPECTED_EOF):
        return library_error(library, ssl.SSL_ERROR_EOF, *_WORDS[ssl.SSL_ERROR_EOF])
    if which != (_LIBRARY_SSL, _CERTIFICATE_VERIFY_FAILED):
        return library_error(library, code)
    failed = library.SSL_get_verify_result(connection)
    because = (library.X509_verify_cert_error_string(failed) or b"").decode("ascii", "replace")
    error = library_error(library, code, ssl.SSLCertVerificationError, f"certificate verify failed: {because}")
    error.verify_code, error.verify_message = failed, because  # type: ignore[attr-defined]
    return error


def say(code: int) -> ssl.SSLError:
    """What is no failure of the library: wait, or the end of the connection."""
    kind, words = _WORDS[code]
    return kind(code, words)


def library_error(
    library: ctypes.CDLL, code: int = ssl.SSL_ERROR_SSL, kind: type[ssl.SSLError] = ssl.SSLError, words: str = ""
) -> ssl.SSLError:
    """The newest error in this thread's queue, which is empty afterwards; ``words``: instead of OpenSSL's own."""
    last = library.ERR_peek_last_error()
    text = (library.ERR_reason_error_string(last) or b"").decode("ascii", "replace")
    place = (library.ERR_lib_error_string(last) or b"").decode("ascii", "replace")
    library.ERR_clear_error()
    if not text:
        return kind(code, "A failure in the SSL library occurred")
    # As Python names them: "http request" of the "SSL routines" is HTTP_REQUEST of SSL.
    reason, origin = text.upper().replace(" ", "_"), (place.split() or ["?"])[0].upper()
    error = kind(code, f"[{origin}: {reason}] {words or text}")
    error.library, error.reason = origin, reason
    return error
