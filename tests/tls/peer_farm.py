"""An authority of the farm, certificates of its servers, and its list of those that it took back."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

HOUR = datetime.timedelta(hours=1)


class Authority:
    """Writes ``authority.pem``, ``NAME.pem`` and ``revoked.pem`` into ``folder``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "farm authority")])
        self._serials: dict[str, int] = {}
        made = self._sign(self._name, self._key, x509.BasicConstraints(ca=True, path_length=0))
        self.certificate = folder / "authority.pem"
        self.certificate.write_bytes(made.public_bytes(serialization.Encoding.PEM))
        self.revoked = folder / "revoked.pem"
        self.revoke()

    def issue(self, name: str, file: str = "") -> Path:
        """A server's certificate and key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
        made = self._sign(subject, key, x509.SubjectAlternativeName([x509.DNSName(name)]))
        self._serials[name] = made.serial_number
        plain = serialization.NoEncryption()
        private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, plain)
        path = self.folder / f"{file or name}.pem"
        path.write_bytes(made.public_bytes(serialization.Encoding.PEM) + private)
        return path

    def revoke(self, *names: str) -> None:
        """Publish the list of what was taken back."""
        now = datetime.datetime.now(datetime.UTC)
        listed = x509.CertificateRevocationListBuilder(self._name, now - HOUR, now + HOUR)
        for name in names:
            one = x509.RevokedCertificateBuilder(self._serials[name], now - HOUR)
            listed = listed.add_revoked_certificate(one.build())
        whole = listed.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)
        new = self.revoked.with_suffix(".new")
        new.write_bytes(whole)
        new.replace(self.revoked)

    def _sign(
        self, name: x509.Name, key: ec.EllipticCurvePrivateKey, extension: x509.ExtensionType
    ) -> x509.Certificate:
        now = datetime.datetime.now(datetime.UTC)
        return (
            x509.CertificateBuilder(self._name, name, key.public_key(), x509.random_serial_number())
            .not_valid_before(now - HOUR)
            .not_valid_after(now + HOUR)
            .add_extension(extension, critical=False)
            .sign(self._key, hashes.SHA256())
        )
