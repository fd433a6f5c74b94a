"""A farm's own certificate authority, in a folder: who may call itself one of its servers (mission C10).

``authority.pem`` is its certificate and ``authority.key`` its key, which no server needs; ``NAME.pem`` a server's
certificate with its key; ``revoked.pem`` the list of those that were taken back, signed (RFC 5280 section 5). They pass
the strictest check (``X509_V_FLAG_X509_STRICT``), as Python 3.13 makes by default.
"""

from __future__ import annotations

import datetime
import ipaddress
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from coatcheck.errors import ConfigError
from coatcheck.options import check_plain_name

AUTHORITY_DAYS: Final = 3650
SERVER_DAYS: Final = 365
MAX_DAYS: Final = 3650
BACKDATED: Final = datetime.timedelta(hours=1)
"""So that a server whose clock is behind takes a new certificate."""
_PEM: Final = serialization.Encoding.PEM


class Issued(msgspec.Struct, frozen=True):
    """One certificate, as ``issued.json`` has it."""

    name: str
    serial: str
    """In hex."""
    until: str
    """ISO 8601, UTC."""
    revoked: bool = False


class Authority:
    """The authority of a folder. Raises :class:`ConfigError` if there is none, or a file of it is damaged.

    One operator at a time: nothing guards against two.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        try:
            self._certificate = x509.load_pem_x509_certificate((folder / "authority.pem").read_bytes())
            key = serialization.load_pem_private_key((folder / "authority.key").read_bytes(), None)
            self._issued = msgspec.json.decode((folder / "issued.json").read_bytes(), type=list[Issued])
        except FileNotFoundError as missing:
            raise ConfigError(f"certs: there is no {missing.filename}; begin with: coatcheck certs init") from None
        except (OSError, ValueError, msgspec.DecodeError) as wrong:
            raise ConfigError(f"certs: {folder}: {wrong}") from None
        if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != self._certificate.public_key():
            raise ConfigError(f"certs: {folder}: authority.key is not the key of authority.pem")
        self._key = key

    @classmethod
    def make(cls, folder: Path, farm: str, days: int = AUTHORITY_DAYS) -> Authority:
        """A new one, for the farm of this name; an existing one is left alone, and an error."""
        check_plain_name("farm", farm)
        lasts = _days(days)
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            key = ec.generate_private_key(ec.SECP256R1())
            name = _named(f"{farm} authority")
            certificate = (
                _builder(name, name, key.public_key(), key.public_key(), lasts)
                .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
                .add_extension(_usage(authority=True), critical=True)
                .sign(key, hashes.SHA256())
            )
            _write(folder / "authority.key", _private(key), 0o600, new=True)
            _write(folder / "authority.pem", certificate.public_bytes(_PEM), 0o644, new=True)
            _write(folder / "issued.json", b"[]", 0o600)
        except FileExistsError:
            raise ConfigError(f"certs: {folder} has an authority already") from None
        except OSError as wrong:
            raise ConfigError(f"certs: {folder}: {wrong.strerror}") from None
        made = cls(folder)
        made._write_revoked()
        return made

    def issue(self, name: str, addresses: Sequence[str] = (), days: int = SERVER_DAYS) -> Path:
        """A certificate for the server of this name, with a new key; an older one of it lives on until it ends, or is
        revoked. ``addresses``: IP addresses that it covers beside its name."""
        check_plain_name("server", name)
        if name in ("authority", "revoked"):
            raise ConfigError(f"certs: a server cannot be called {name}")
        lasts = _days(days)
        names: list[x509.GeneralName] = [x509.DNSName(name)]
        try:
            names += [x509.IPAddress(ipaddress.ip_address(address)) for address in addresses]
        except ValueError as wrong:
            raise ConfigError(f"certs: address: {wrong}") from None
        key = ec.generate_private_key(ec.SECP256R1())
        certificate = (
            _builder(_named(name), self._certificate.subject, key.public_key(), self._key.public_key(), lasts)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(authority=False), critical=True)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        until = certificate.not_valid_after_utc.isoformat()
        self._issued.append(Issued(name, f"{certificate.serial_number:x}", until))
        self._write_issued()
        path = self._folder / f"{name}.pem"
        _write(path, certificate.public_bytes(_PEM) + _private(key), 0o600)
        return path

    def revoke(self, name: str) -> int:
        """Take back all certificates of a server; how many there were. Servers read the list when it changes."""
        found = [one for one in self._issued if one.name == name and not one.revoked]
        if not found:
            known = ", ".join(sorted({one.name for one in self._issued if not one.revoked})) or "none"
            raise ConfigError(f"certs: there is no certificate of {name!r} to revoke; issued: {known}")
        self._issued = [msgspec.structs.replace(one, revoked=one.revoked or one.name == name) for one in self._issued]
        self._write_issued()
        self._write_revoked()
        return len(found)

    def issued(self) -> list[Issued]:
        """All of them, the oldest first."""
        return list(self._issued)

    def _write_issued(self) -> None:
        _write(self._folder / "issued.json", msgspec.json.format(msgspec.json.encode(self._issued)), 0o600)

    def _write_revoked(self) -> None:
        now = datetime.datetime.now(datetime.UTC)
        whole = x509.CertificateRevocationListBuilder(self._certificate.subject, now - BACKDATED, _end(MAX_DAYS))
        for one in self._issued:
            if one.revoked:
                taken_back = x509.RevokedCertificateBuilder(int(one.serial, 16), now - BACKDATED)
                whole = whole.add_revoked_certificate(taken_back.build())
        identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        signed = whole.add_extension(identifier, critical=False).sign(self._key, hashes.SHA256())
        _write(self._folder / "revoked.pem", signed.public_bytes(_PEM), 0o644)


def _builder(
    name: x509.Name,
    issuer: x509.Name,
    public: ec.EllipticCurvePublicKey,
    signer: ec.EllipticCurvePublicKey,
    lasts: datetime.datetime,
) -> x509.CertificateBuilder:
    begins = datetime.datetime.now(datetime.UTC) - BACKDATED
    return (
        x509.CertificateBuilder(issuer, name, public, x509.random_serial_number(), begins, lasts)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer), critical=False)
    )


def _usage(authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority, key_cert_sign=authority, crl_sign=authority, content_commitment=False,
        key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False, decipher_only=False,
    )  # fmt: skip


def _named(text: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _days(days: int) -> datetime.datetime:
    if not 1 <= days <= MAX_DAYS:
        raise ConfigError(f"certs: days: 1 to {MAX_DAYS} (got {days})")
    return _end(days)


def _end(days: int) -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC) + datetime.timedelta(days=days)


def _private(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(_PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())


def _write(path: Path, content: bytes, mode: int, new: bool = False) -> None:
    """Whole or not at all; ``new``: only if there is no such file."""
    if new and path.exists():
        raise FileExistsError(path)
    beside = path.with_name(path.name + ".new")
    descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, mode)
    with os.fdopen(descriptor, "wb") as file:
        os.fchmod(file.fileno(), mode)
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)
