"""SOAP 1.1 and 1.2: what differs between them on the wire."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class SoapVersion:
    """``actor``: the attribute that says whom a header block is for; ``ours``: its values that mean whoever reads.

    ``sender`` and ``receiver``: the codes of faults that are the one's or the other's. ``sender_status``: of HTTP.
    """

    name: str
    namespace: str
    media_type: str
    actor: str
    ours: frozenset[str]
    sender: str
    receiver: str
    sender_status: int

    @property
    def content_type(self) -> str:
        """Of what we write."""
        return f"{self.media_type}; charset=utf-8"

    def tag(self, name: str) -> str:
        """The name of an element or attribute of the envelope, as lxml writes it."""
        return f"{{{self.namespace}}}{name}"


_NS_11: Final = "http://schemas.xmlsoap.org/soap/envelope/"
_NS_12: Final = "http://www.w3.org/2003/05/soap-envelope"

SOAP_11: Final = SoapVersion(
    "1.1",
    _NS_11,
    "text/xml",
    "actor",
    frozenset({"", "http://schemas.xmlsoap.org/soap/actor/next"}),
    "Client",
    "Server",
    500,
)
"""Section 4.2.2 has the actors, 4.4.1 the codes, 6.2 the status."""

SOAP_12: Final = SoapVersion(
    "1.2",
    _NS_12,
    "application/soap+xml",
    "role",
    frozenset({"", f"{_NS_12}/role/next", f"{_NS_12}/role/ultimateReceiver"}),
    "Sender",
    "Receiver",
    400,
)
"""Part 1, section 2.2 has the roles, 5.4.6 the codes; part 2, table 20 the status."""

VERSIONS: Final = (SOAP_11, SOAP_12)


def version_of(namespace: str | None) -> SoapVersion | None:
    """The version whose envelopes are in this namespace."""
    return next((each for each in VERSIONS if each.namespace == namespace), None)
