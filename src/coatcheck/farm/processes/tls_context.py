"""The certificate and key of a farm, as what ends TLS in it uses them."""

from __future__ import annotations

import ssl

from coatcheck.errors import ConfigError


def tls_context(certificate: str, key: str) -> ssl.SSLContext:
    """What a process of the farm speaks HTTPS with.

    Raises:
        ConfigError: the two files cannot be loaded, or do not belong together.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols(["http/1.1"])
    try:
        # An empty password: a locked key must fail, not ask a terminal that nobody watches.
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        files = f"{certificate} with tls_key {key}"
        raise ConfigError(f"tls_certificate: cannot load {files}: {reason}; name two PEM files") from None
    return context
