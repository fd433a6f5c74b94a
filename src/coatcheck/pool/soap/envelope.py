"""Reads SOAP 1.1 envelopes from hostile bytes, and writes replies.

Before anything is parsed: size, encoding, no document type. While it is parsed: no entities, no network, no
files, libxml2's own limits. Afterwards: depth and number of elements and headers.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass, field
from email.message import Message
from typing import Final

from lxml import etree

from coatcheck.pool.soap.faults import FaultReason, SoapFault

ENVELOPE_NS: Final = "http://schemas.xmlsoap.org/soap/envelope/"
ENVELOPE_12_NS: Final = "http://www.w3.org/2003/05/soap-envelope"
SESSION_NS: Final = "http://siebel.com/webservices"
"""The namespace of the session headers: the one that clients of such services already send."""
SESSION_HEADERS: Final = frozenset({"SessionType", "UsernameToken", "Username", "PasswordText", "SessionToken"})
NEXT_ACTOR: Final = "http://schemas.xmlsoap.org/soap/actor/next"
SERVICE_NS: Final = "urn:coatcheck:provider"

MAX_BODY_BYTES: Final = 256 * 1024
MAX_DEPTH: Final = 32
MAX_ELEMENTS: Final = 5000
MAX_HEADERS: Final = 16
MAX_HEADER_CHARS: Final = 2048
MAX_SHOWN: Final = 80

CONTENT_TYPE: Final = "text/xml; charset=utf-8"

_ENCODINGS: Final = {"utf-8", "us-ascii", "ascii", "utf-16", "utf-16le", "utf-16be", "utf-16-le", "utf-16-be"}
_DECLARED = re.compile(r"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z][A-Za-z0-9._-]{0,40})[\"']")
_PROLOG = re.compile(r"(?:\s+|<\?(?:.*?)\?>|<!--(?:.*?)-->)", re.S)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class SoapRequest:
    """An envelope, read. ``headers``: local name to text, of the session namespace.

    ``operation``: the local name of the body's element. ``arguments``: its children, name to text.
    """

    headers: dict[str, str] = field(repr=False)
    operation: str
    arguments: dict[str, str]


def read_envelope(body: bytes, content_type: str) -> SoapRequest:
    """Read a request of a client that we do not trust.

    Raises:
        SoapFault: for whatever is wrong with it.
    """
    if len(body) > MAX_BODY_BYTES:
        raise SoapFault(FaultReason.TOO_LARGE, f"the request is larger than {MAX_BODY_BYTES} bytes")
    root = _parse(_decode(body, _charset(content_type)))
    header, content = _split(root)
    headers = _read_headers(header)
    operation = content.tag if isinstance(content.tag, str) else ""
    if not operation.startswith(f"{{{SERVICE_NS}}}"):
        raise SoapFault(FaultReason.UNKNOWN_OPERATION, f"there is no operation {_shown(operation)} here")
    return SoapRequest(headers, etree.QName(content).localname, _read_arguments(content))


def _charset(content_type: str) -> str | None:
    parsed = Message()
    parsed["content-type"] = content_type
    if parsed.get_content_type() != "text/xml" or not content_type.strip():
        raise SoapFault(
            FaultReason.WRONG_CONTENT_TYPE, f"SOAP 1.1 is sent as text/xml, not as {_shown(content_type) or 'nothing'}"
        )
    charset = parsed.get_param("charset")
    return str(charset).strip().lower() if charset else None


def _decode(body: bytes, charset: str | None) -> str:
    """Strictly: what two parsers could read differently is refused."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        charset = charset or "utf-16"
    encoding = charset or "utf-8"
    if encoding not in _ENCODINGS:
        raise SoapFault(FaultReason.WRONG_ENCODING, f"send UTF-8 or UTF-16, not {_shown(encoding)}")
    try:
        text = body.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError:
        raise SoapFault(FaultReason.WRONG_ENCODING, f"the request is not {encoding}") from None
    text = text.removeprefix("\ufeff")
    declared = _DECLARED.match(text)
    if declared is not None and _family(declared[1]) != _family(encoding):
        raise SoapFault(
            FaultReason.WRONG_ENCODING, f"the request is {encoding}, but says that it is {_shown(declared[1])}"
        )
    return text


def _family(encoding: str) -> str:
    name = encoding.lower().replace("_", "-")
    if name.startswith("utf-16"):
        return "utf-16"
    return "utf-8" if name in ("utf-8", "utf8", "us-ascii", "ascii") else name


def _parse(text: str) -> etree._Element:
    at = 0
    while found := _PROLOG.match(text, at):
        at = found.end()
    # Only here may a document type stand; the same words inside an element are somebody's text.
    if text.startswith("<!DOCTYPE", at):
        raise SoapFault(FaultReason.DOCTYPE_REFUSED, "a document type is refused: SOAP has none")
    parser = etree.XMLParser(
        encoding="utf-8",
        resolve_entities=False,
        no_network=True,
        load_dtd=False,
        huge_tree=False,
        remove_comments=True,
        remove_pis=True,
    )
    try:
        root = etree.fromstring(text.encode("utf-8"), parser)
    except (etree.XMLSyntaxError, UnicodeEncodeError, ValueError) as error:
        raise SoapFault(FaultReason.MALFORMED, f"not well-formed: {_shown(str(error))}") from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise SoapFault(FaultReason.DOCTYPE_REFUSED, "a document type is refused: SOAP has none")
    _measure(root)
    return root


def _measure(root: etree._Element) -> None:
    elements = depth = 0
    for event, _ in etree.iterwalk(root, events=("start", "end")):
        depth += 1 if event == "start" else -1
        elements += event == "start"
        if depth > MAX_DEPTH:
            raise SoapFault(FaultReason.TOO_DEEP, f"elements are nested deeper than {MAX_DEPTH}")
        if elements > MAX_ELEMENTS:
            raise SoapFault(FaultReason.TOO_MANY_ELEMENTS, f"there are more than {MAX_ELEMENTS} elements")


def _split(root: etree._Element) -> tuple[etree._Element | None, etree._Element]:
    """Header and the one element of the body (SOAP 1.1 section 4)."""
    if root.tag == f"{{{ENVELOPE_12_NS}}}Envelope":
        raise SoapFault(FaultReason.VERSION_MISMATCH, "this is SOAP 1.2; the service speaks SOAP 1.1")
    if root.tag != f"{{{ENVELOPE_NS}}}Envelope":
        raise SoapFault(FaultReason.VERSION_MISMATCH, f"no SOAP 1.1 envelope, but {_shown(str(root.tag))}")
    parts = list(root)
    header = parts.pop(0) if parts and parts[0].tag == f"{{{ENVELOPE_NS}}}Header" else None
    if len(parts) != 1 or parts[0].tag != f"{{{ENVELOPE_NS}}}Body":
        raise SoapFault(FaultReason.MALFORMED, "an envelope has at most one Header, then one Body")
    contents = list(parts[0])
    if len(contents) != 1:
        raise SoapFault(FaultReason.MALFORMED, f"the Body has {len(contents)} elements; it must have one")
    return header, contents[0]


def _read_headers(header: etree._Element | None) -> dict[str, str]:
    """The session headers; others are skipped unless we must understand them (section 4.2.3)."""
    found: dict[str, str] = {}
    blocks = [] if header is None else list(header)
    if len(blocks) > MAX_HEADERS:
        raise SoapFault(FaultReason.TOO_MANY_HEADERS, f"there are more than {MAX_HEADERS} headers")
    for block in blocks:
        # What is meant for somebody further on is theirs to understand (section 4.2.2).
        if block.get(f"{{{ENVELOPE_NS}}}actor") not in (None, "", NEXT_ACTOR):
            continue
        name = etree.QName(block)
        if name.namespace != SESSION_NS or name.localname not in SESSION_HEADERS:
            if (block.get(f"{{{ENVELOPE_NS}}}mustUnderstand") or "").strip() in ("1", "true"):
                raise SoapFault(FaultReason.NOT_UNDERSTOOD, f"the header {_shown(str(block.tag))} is not understood")
            continue
        local, text = _read_header(block, name.localname)
        if local in found:
            raise SoapFault(FaultReason.BAD_HEADER, f"the header {_shown(local)} is there twice")
        if len(text) > MAX_HEADER_CHARS:
            raise SoapFault(
                FaultReason.BAD_HEADER, f"the header {_shown(local)} is longer than {MAX_HEADER_CHARS} characters"
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
            raise SoapFault(FaultReason.BAD_ARGUMENT, f"the argument {_shown(name)} is there twice, or has parts")
        arguments[name] = child.text or ""
    return arguments


def _shown(text: str) -> str:
    return _CONTROL.sub("?", text)[:MAX_SHOWN]


def write_reply(operation: str, results: dict[str, str], headers: dict[str, str]) -> bytes:
    """The envelope of an answer: ``<operation>Response`` with its ``results``, and session ``headers``."""
    envelope, body = _open_envelope(headers)
    reply = etree.SubElement(body, f"{{{SERVICE_NS}}}{operation}Response", nsmap={"p": SERVICE_NS})
    for name, value in results.items():
        etree.SubElement(reply, f"{{{SERVICE_NS}}}{name}").text = _CONTROL.sub("?", value)
    return etree.tostring(envelope, xml_declaration=True, encoding="utf-8")


def write_fault(fault: SoapFault, headers: dict[str, str]) -> bytes:
    """The envelope of a fault (SOAP 1.1 section 4.4); the detail names the reason, for programs."""
    envelope, body = _open_envelope(headers)
    element = etree.SubElement(body, f"{{{ENVELOPE_NS}}}Fault")
    etree.SubElement(element, "faultcode").text = f"soap:{fault.reason.code}"
    etree.SubElement(element, "faultstring").text = _CONTROL.sub("?", fault.message)
    detail = etree.SubElement(element, "detail")
    etree.SubElement(detail, f"{{{SERVICE_NS}}}Reason", nsmap={"p": SERVICE_NS}).text = fault.reason.value
    return etree.tostring(envelope, xml_declaration=True, encoding="utf-8")


def _open_envelope(headers: dict[str, str]) -> tuple[etree._Element, etree._Element]:
    envelope = etree.Element(f"{{{ENVELOPE_NS}}}Envelope", nsmap={"soap": ENVELOPE_NS})
    if headers:
        header = etree.SubElement(envelope, f"{{{ENVELOPE_NS}}}Header")
        for name, value in headers.items():
            etree.SubElement(header, f"{{{SESSION_NS}}}{name}", nsmap={"s": SESSION_NS}).text = value
    return envelope, etree.SubElement(envelope, f"{{{ENVELOPE_NS}}}Body")
