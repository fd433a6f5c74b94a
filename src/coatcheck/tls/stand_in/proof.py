"""The proof that a stand-in works on this machine: handshakes with Python's own OpenSSL as the client, in memory."""

from __future__ import annotations

import datetime
import ssl
import tempfile
from functools import cache
from pathlib import Path
from typing import Any, Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coatcheck.tls.openssl import OpenSslRefused
from coatcheck.tls.stand_in.certificate import shown_certificate
from coatcheck.tls.stand_in.connection import StandInConnection
from coatcheck.tls.stand_in.context import StandInContext

MAX_ROUNDS: Final = 10
"""A handshake takes two or three."""
_NAME: Final = "stand-in.invalid"
_DAY: Final = datetime.timedelta(days=1)


def stand_in_context() -> StandInContext:
    """A new context over the system's OpenSSL. Raises :class:`OpenSslRefused` if that was not proved to work."""
    _prove()
    return StandInContext()


@cache
def _prove() -> None:
    """Once for the process; a refusal is tried again."""
    context = StandInContext()
    try:
        with tempfile.TemporaryDirectory(prefix="coatcheck-") as folder:
            path = Path(folder) / "certificate.pem"
            certificate, key = _certificate()
            path.write_bytes(certificate + key)
            context.load_cert_chain(path)
            client = ssl.create_default_context(cafile=path)
            for version in (ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3):
                client.minimum_version = client.maximum_version = version
                _converse(context, client)
        subject = shown_certificate(ssl.PEM_cert_to_DER_cert(certificate.decode())).get("subject")
    except (OSError, AttributeError, NotImplementedError, TypeError, ValueError) as wrong:
        raise OpenSslRefused(f"a handshake over the system's OpenSSL fails: {wrong!r}") from None
    if subject != ((("commonName", _NAME),),):
        raise OpenSslRefused("a certificate cannot be shown")


def _converse(context: StandInContext, client: ssl.SSLContext) -> None:
    """A handshake, a word each way, and both ends say the same of it."""
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = client.wrap_bio(to_client, to_server, server_hostname=_NAME)
    other = context.wrap_bio(to_server, to_client, server_side=True)
    inner: Any = other._sslobj  # type: ignore[attr-defined]
    if type(inner) is not StandInConnection:
        raise OpenSslRefused("ssl.SSLObject asks something else for its connections")
    waiting = [one, other]
    for _ in range(MAX_ROUNDS):
        waiting = [side for side in waiting if not _has_shaken_hands(side)]
    if waiting:
        raise OpenSslRefused("a handshake over the system's OpenSSL does not end")
    one.write(b"to the server")
    other.write(b"to the client")
    said = other.read(64), one.read(64)
    if said != (b"to the server", b"to the client"):
        raise OpenSslRefused("what is sent over the system's OpenSSL is not what arrives")
    if (one.version(), one.cipher()) != (other.version(), other.cipher()):
        raise OpenSslRefused(f"the ends disagree: {one.cipher()} and {other.cipher()}")


def _has_shaken_hands(side: ssl.SSLObject) -> bool:
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return False
    return True


def _certificate() -> tuple[bytes, bytes]:
    """One that signs itself, for this proof alone, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, _NAME)])
    now = datetime.datetime.now(datetime.UTC)
    identifier = x509.SubjectKeyIdentifier.from_public_key(key.public_key())
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - _DAY, now + _DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(_NAME)]), critical=False)
        .add_extension(identifier, critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(key.public_key()), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    return made.public_bytes(pem), private
