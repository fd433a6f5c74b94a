"""What the provider reads from an envelope, and what it writes into one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from lxml import etree

from coatcheck.pool.soap.envelope import (
    Envelope,
    EnvelopeLimits,
    add_fault,
    clean,
    header_of,
    open_envelope,
    read_envelope,
    serialised,
    shown,
)
from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.pool.soap.session_headers import SESSION_HEADERS, SESSION_NS
from coatcheck.pool.soap.versions import SoapVersion

SERVICE_NS: Final = "urn:coatcheck:provider"
LIMITS: Final = EnvelopeLimits()
MAX_HEADER_CHARS: Final = 2048


@dataclass(frozen=True, slots=True)
class SoapRequest:
    """An envelope, read. ``headers``: local name to text, of the session namespace.

    ``operation``: the local name of the body's element. ``arguments``: its children, name to text.
    """

    version: SoapVersion
    headers: dict[str, str] = field(repr=False)
    operation: str
    arguments: dict[str, str]


def read_request(body: bytes, content_type: str) -> SoapRequest:
    """Read a request of a client that we do not trust.

    Raises:
        SoapFault: for whatever is wrong with it.
    """
    envelope = read_envelope(body, content_type, LIMITS)
    headers = _read_headers(envelope)
    contents = list(envelope.body)
    if len(contents) != 1:
        raise SoapFault(FaultReason.MALFORMED, f"the Body has {len(contents)} elements; it must have one")
    content = contents[0]
    operation = content.tag if isinstance(content.tag, str) else ""
    if not operation.startswith(f"{{{SERVICE_NS}}}"):
        raise SoapFault(FaultReason.UNKNOWN_OPERATION, f"there is no operation {shown(operation)} here")
    return SoapRequest(envelope.version, headers, etree.QName(content).localname, _read_arguments(content))


def _read_headers(envelope: Envelope) -> dict[str, str]:
    """The session headers; others are skipped unless we must understand them (section 4.2.3; 1.2: part 1, 5.2.3)."""
    version = envelope.version
    found: dict[str, str] = {}
    for block in () if envelope.header is None else envelope.header:
        # What is meant for somebody further on is theirs to understand.
        if block.get(version.tag(version.actor), "") not in version.ours:
            continue
        name = etree.QName(block)
        if name.namespace != SESSION_NS or name.localname not in SESSION_HEADERS:
            if (block.get(version.tag("mustUnderstand")) or "").strip() in ("1", "true"):
                tag = str(block.tag)
                raise SoapFault(FaultReason.NOT_UNDERSTOOD, f"the header {shown(tag)} is not understood", tag)
            continue
        local, text = _read_header(block, name.localname)
        if local in found:
            raise SoapFault(FaultReason.BAD_HEADER, f"the header {shown(local)} is there twice")
        if len(text) > MAX_HEADER_CHARS:
            raise SoapFault(
                FaultReason.BAD_HEADER, f"the header {shown(local)} is longer than {MAX_HEADER_CHARS} characters"
            )
        found[local] = text
    return found


def _read_header(block: etree._Element, local: str) -> tuple[str, str]:
    """Name and text. A username may stand inside UsernameToken, as WS-Security nests it; then it stands there alone."""
    text = (block.text or "").strip()
    parts = list(block)
    if not parts:
        return "UsernameToken" if local == "Username" else local, text
    inner = parts[0]
    if local != "UsernameToken" or etree.QName(inner).localname != "Username":
        raise SoapFault(FaultReason.BAD_HEADER, f"the header {local} has parts")
    if len(parts) > 1 or len(inner) or text or (inner.tail or "").strip():
        raise SoapFault(FaultReason.BAD_HEADER, "UsernameToken has a Username and something else")
    return local, (inner.text or "").strip()


def _read_arguments(content: etree._Element) -> dict[str, str]:
    arguments: dict[str, str] = {}
    for child in content:
        name = etree.QName(child).localname
        if name in arguments or len(child):
            raise SoapFault(FaultReason.BAD_ARGUMENT, f"the argument {shown(name)} is there twice, or has parts")
        arguments[name] = child.text or ""
    return arguments


def write_reply(version: SoapVersion, operation: str, results: dict[str, str], headers: dict[str, str]) -> bytes:
    """The envelope of an answer: ``<operation>Response`` with its ``results``, and session ``headers``."""
    envelope, body = open_envelope(version)
    _add_headers(envelope, headers)
    reply = etree.SubElement(body, f"{{{SERVICE_NS}}}{operation}Response", nsmap={"p": SERVICE_NS})
    for name, value in results.items():
        etree.SubElement(reply, f"{{{SERVICE_NS}}}{name}").text = clean(value)
    return serialised(envelope)


def write_fault(version: SoapVersion, fault: SoapFault, headers: dict[str, str]) -> bytes:
    """The envelope of a fault; the detail names the reason, for programs."""
    envelope, body = open_envelope(version)
    _add_headers(envelope, headers)
    add_fault(envelope, body, fault, SERVICE_NS)
    return serialised(envelope)


def _add_headers(envelope: etree._Element, headers: dict[str, str]) -> None:
    for name, value in headers.items():
        header = header_of(envelope)
        etree.SubElement(header, f"{{{SESSION_NS}}}{name}", nsmap={"s": SESSION_NS}).text = value
