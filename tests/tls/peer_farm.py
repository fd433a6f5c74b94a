"""An authority of the farm, certificates of its servers, and its list of those that it took back."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from .signer import HOUR, PEM, Signer


class Authority:
    """Writes ``authority.pem``, ``NAME.pem`` and ``revoked.pem`` into ``folder``."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self._signer = Signer("farm authority")
        self._serials: dict[str, int] = {}
        self.certificate = folder / "authority.pem"
        self.certificate.write_bytes(self._signer.certificate.public_bytes(PEM))
        self.revoked = folder / "revoked.pem"
        self.revoke()

    def issue(self, name: str, file: str = "") -> Path:
        """A server's certificate and key."""
        made, text = self._signer.issue(name, [x509.DNSName(name)])
        self._serials[name] = made.serial_number
        path = self.folder / f"{file or name}.pem"
        path.write_bytes(text)
        return path

    def revoke(self, *names: str) -> None:
        """Publish the list of what was taken back."""
        now = datetime.datetime.now(datetime.UTC)
        listed = x509.CertificateRevocationListBuilder(self._signer.name, now - HOUR, now + HOUR)
        for name in names:
            one = x509.RevokedCertificateBuilder(self._serials[name], now - HOUR)
            listed = listed.add_revoked_certificate(one.build())
        whole = listed.sign(self._signer.key, hashes.SHA256()).public_bytes(PEM)
        new = self.revoked.with_suffix(".new")
        new.write_bytes(whole)
        new.replace(self.revoked)
