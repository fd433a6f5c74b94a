"""Where session tokens stand in envelopes of SOAP 1.1 and 1.2."""

from __future__ import annotations

from typing import Final, Protocol

from lxml import etree

from coatcheck.pool.soap.envelope import header_of

SESSION_NS: Final = "http://siebel.com/webservices"
"""The namespace of the session headers: the one that clients of such services already send."""
SESSION_HEADERS: Final = frozenset({"SessionType", "UsernameToken", "Username", "PasswordText", "SessionToken"})


class Placing(Protocol):
    """Where an upstream has tokens in its envelopes (lxml elements)."""

    def apply(self, envelope: etree._Element, token: str) -> None:
        """Put the token into a request."""

    def sign_in(self, envelope: etree._Element, username: str, password: str) -> None:
        """Put credentials into a request."""

    def extract(self, envelope: etree._Element) -> str | None:
        """The fresh token in a response, or ``None``."""


class SessionHeaders:
    """The SOAP headers SessionType, UsernameToken, PasswordText and SessionToken (mission D8)."""

    def __init__(self, session_type: str = "Stateless", namespace: str = SESSION_NS) -> None:
        self._session_type = session_type
        self._namespace = namespace

    def apply(self, envelope: etree._Element, token: str) -> None:
        self._add(envelope, SessionType=self._session_type, SessionToken=token)

    def sign_in(self, envelope: etree._Element, username: str, password: str) -> None:
        self._add(envelope, SessionType=self._session_type, UsernameToken=username, PasswordText=password)

    def extract(self, envelope: etree._Element) -> str | None:
        return envelope.findtext(f"{{{etree.QName(envelope).namespace}}}Header/{{{self._namespace}}}SessionToken")

    def take_out(self, envelope: etree._Element) -> bool:
        """Leave no session header in it; whether there was one."""
        header = envelope.find(f"{{{etree.QName(envelope).namespace}}}Header")
        if header is None:
            return False
        found = [each for each in header if self._is_ours(each)]
        for each in found:
            header.remove(each)
        if not len(header):
            envelope.remove(header)
        return bool(found)

    def _is_ours(self, block: etree._Element) -> bool:
        name = etree.QName(block)
        return name.namespace == self._namespace and name.localname in SESSION_HEADERS

    def _add(self, envelope: etree._Element, **headers: str) -> None:
        header = header_of(envelope)
        for name, value in headers.items():
            etree.SubElement(header, f"{{{self._namespace}}}{name}").text = value
