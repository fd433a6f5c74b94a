"""The system's libssl: found, judged by its version, and told what its functions take."""

from __future__ import annotations

import ctypes
import os
import sys
from ctypes import POINTER, c_char_p, c_int, c_long, c_size_t, c_uint, c_uint64, c_ulong, c_void_p
from functools import cache
from typing import Any, Final

from coatcheck.tls.openssl import SIGNATURES, OpenSslRefused, declare

NAME: Final = "libssl.so.3"
"""What the dynamic linker calls OpenSSL 3.x. Of other versions nothing was proved."""
MAJOR: Final = 3

PASSWORD_CALLBACK: Final = ctypes.CFUNCTYPE(c_int, c_void_p, c_int, c_int, c_void_p)
ALPN_CALLBACK: Final = ctypes.CFUNCTYPE(c_int, c_void_p, c_void_p, c_void_p, c_void_p, c_uint, c_void_p)

_OWN_SIGNATURES: Final[dict[str, tuple[Any, list[Any]]]] = {
    "OpenSSL_version_num": (c_ulong, []),
    "TLS_server_method": (c_void_p, []),
    "SSL_CTX_new": (c_void_p, [c_void_p]),
    "SSL_CTX_free": (None, [c_void_p]),
    "SSL_CTX_set_options": (c_uint64, [c_void_p, c_uint64]),
    "SSL_CTX_clear_options": (c_uint64, [c_void_p, c_uint64]),
    "SSL_CTX_set_verify": (None, [c_void_p, c_int, c_void_p]),
    "SSL_CTX_get0_param": (c_void_p, [c_void_p]),
    "SSL_CTX_set_num_tickets": (c_int, [c_void_p, c_size_t]),
    "SSL_CTX_set_security_level": (None, [c_void_p, c_int]),
    "SSL_CTX_set_cipher_list": (c_int, [c_void_p, c_char_p]),
    "SSL_CTX_set_alpn_select_cb": (None, [c_void_p, c_void_p, c_void_p]),
    "SSL_CTX_set_default_passwd_cb": (None, [c_void_p, c_void_p]),
    "SSL_CTX_use_certificate_chain_file": (c_int, [c_void_p, c_char_p]),
    "SSL_CTX_use_PrivateKey_file": (c_int, [c_void_p, c_char_p, c_int]),
    "SSL_CTX_check_private_key": (c_int, [c_void_p]),
    "SSL_CTX_load_verify_file": (c_int, [c_void_p, c_char_p]),
    "SSL_CTX_load_verify_dir": (c_int, [c_void_p, c_char_p]),
    "SSL_CTX_get_cert_store": (c_void_p, [c_void_p]),
    "SSL_new": (c_void_p, [c_void_p]),
    "SSL_free": (None, [c_void_p]),
    "SSL_ctrl": (c_long, [c_void_p, c_int, c_long, c_void_p]),
    "SSL_set_bio": (None, [c_void_p, c_void_p, c_void_p]),
    "SSL_set_accept_state": (None, [c_void_p]),
    "SSL_do_handshake": (c_int, [c_void_p]),
    "SSL_read_ex": (c_int, [c_void_p, c_void_p, c_size_t, POINTER(c_size_t)]),
    "SSL_write_ex": (c_int, [c_void_p, c_char_p, c_size_t, POINTER(c_size_t)]),
    "SSL_shutdown": (c_int, [c_void_p]),
    "SSL_get_shutdown": (c_int, [c_void_p]),
    "SSL_get_error": (c_int, [c_void_p, c_int]),
    "SSL_is_init_finished": (c_int, [c_void_p]),
    "SSL_session_reused": (c_int, [c_void_p]),
    "SSL_get_version": (c_char_p, [c_void_p]),
    "SSL_pending": (c_int, [c_void_p]),
    "SSL_get_current_cipher": (c_void_p, [c_void_p]),
    "SSL_CIPHER_get_name": (c_char_p, [c_void_p]),
    "SSL_CIPHER_get_version": (c_char_p, [c_void_p]),
    "SSL_CIPHER_get_bits": (c_int, [c_void_p, POINTER(c_int)]),
    "SSL_get0_alpn_selected": (None, [c_void_p, POINTER(c_void_p), POINTER(c_uint)]),
    "SSL_select_next_proto": (c_int, [c_void_p, c_void_p, c_void_p, c_uint, c_void_p, c_uint]),
    "SSL_get1_peer_certificate": (c_void_p, [c_void_p]),
    "SSL_get_verify_mode": (c_int, [c_void_p]),
    "SSL_get_verify_result": (c_long, [c_void_p]),
    "X509_verify_cert_error_string": (c_char_p, [c_long]),
    "X509_VERIFY_PARAM_get_flags": (c_ulong, [c_void_p]),
    "X509_VERIFY_PARAM_set_flags": (c_int, [c_void_p, c_ulong]),
    "X509_VERIFY_PARAM_clear_flags": (c_int, [c_void_p, c_ulong]),
    "X509_STORE_add_cert": (c_int, [c_void_p, c_void_p]),
    "X509_free": (None, [c_void_p]),
    "i2d_X509": (c_int, [c_void_p, c_void_p]),
    "d2i_X509": (c_void_p, [c_void_p, c_void_p, c_long]),
    "BIO_new": (c_void_p, [c_void_p]),
    "BIO_s_mem": (c_void_p, []),
    "BIO_write": (c_int, [c_void_p, c_char_p, c_int]),
    "BIO_ctrl": (c_long, [c_void_p, c_int, c_long, c_void_p]),
    "ERR_clear_error": (None, []),
    "ERR_peek_last_error": (c_ulong, []),
    "ERR_reason_error_string": (c_char_p, [c_ulong]),
    "ERR_lib_error_string": (c_char_p, [c_ulong]),
}


@cache
def system_library() -> ctypes.CDLL:
    """The system's OpenSSL, once for the process. Raises :class:`OpenSslRefused` if there is none that was proved."""
    if sys.implementation.name != "cpython":
        raise OpenSslRefused(f"this Python is {sys.implementation.name}, not CPython")
    # If the OpenSSL inside this Python can be seen by others, the system's must still call itself and not that one.
    apart = os.RTLD_LOCAL | getattr(os, "RTLD_DEEPBIND", 0)
    try:
        library = ctypes.CDLL(NAME, mode=apart)
        declare(library, {"OpenSSL_version": (c_char_p, [c_int])})
        version = (library.OpenSSL_version(0) or b"").decode("ascii", "replace")
        if not version.startswith("OpenSSL "):
            raise OpenSslRefused(f"the system's {NAME} is {version}, not OpenSSL")
        declare(library, SIGNATURES | _OWN_SIGNATURES)
    except OSError as missing:
        raise OpenSslRefused(f"the system has no {NAME}: {missing}") from None
    except AttributeError as missing:
        raise OpenSslRefused(f"the system's {NAME} is not complete: {missing}") from None
    if library.OpenSSL_version_num() >> 28 != MAJOR:
        raise OpenSslRefused(f"the system's {NAME} is {version}, not OpenSSL {MAJOR}")
    return library
