"""Reads SOAP envelopes from hostile bytes, and writes faults.

Before anything is parsed: size, encoding, no document type. While it is parsed: no entities, no network, no
files, libxml2's own limits. Afterwards: depth and number of elements and headers.
"""

from __future__ import annotations

import codecs
import re
from dataclasses import dataclass
from email.message import Message
from typing import Final

from lxml import etree

from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.pool.soap.versions import SOAP_11, SOAP_12, VERSIONS, SoapVersion, version_of

MAX_SHOWN: Final = 80

_ENCODINGS: Final = {"utf-8", "us-ascii", "ascii", "utf-16", "utf-16le", "utf-16be", "utf-16-le", "utf-16-be"}
_DECLARED = re.compile(r"<\?xml[^>]{0,200}?encoding\s*=\s*[\"']([A-Za-z][A-Za-z0-9._-]{0,40})[\"']")
_PROLOG = re.compile(r"(?:\s+|<\?(?:.*?)\?>|<!--(?:.*?)-->)", re.S)
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\ufffe\uffff\ud800-\udfff]")
_LANGUAGE: Final = "{http://www.w3.org/XML/1998/namespace}lang"


@dataclass(frozen=True, slots=True)
class EnvelopeLimits:
    """The most that is read: bytes, elements inside each other, elements, and blocks in the header."""

    body_bytes: int = 256 * 1024
    depth: int = 32
    elements: int = 5000
    headers: int = 16


@dataclass(frozen=True, slots=True)
class Envelope:
    """An envelope, read and measured. ``header`` and ``body``: the elements of these names in ``root``.

    ``action``: what the media type of SOAP 1.2 says about the operation.
    """

    version: SoapVersion
    root: etree._Element
    header: etree._Element | None
    body: etree._Element
    action: str = ""


def read_envelope(body: bytes, content_type: str, limits: EnvelopeLimits) -> Envelope:
    """Read what somebody sent whom we do not trust. Comments and processing instructions are left out.

    Raises:
        SoapFault: for whatever is wrong with it.
    """
    parsed = _media_type(content_type)
    version = version_sent(content_type)
    if version is None:
        raise SoapFault(
            FaultReason.WRONG_CONTENT_TYPE,
            f"SOAP is sent as {SOAP_11.media_type} or {SOAP_12.media_type}, not as {shown(content_type) or 'nothing'}",
        )
    root = read_xml(body, _parameter(parsed, "charset").strip().lower() or None, limits)
    return _split(root, version, limits, _parameter(parsed, "action"))


def version_sent(content_type: str) -> SoapVersion | None:
    """The version of SOAP that goes under this media type."""
    media_type = _media_type(content_type).get_content_type() if content_type.strip() else ""
    return next((each for each in VERSIONS if each.media_type == media_type), None)


def _media_type(content_type: str) -> Message:
    parsed = Message()
    parsed["content-type"] = _CONTROL.sub("?", content_type)
    return parsed


def _parameter(parsed: Message, name: str) -> str:
    found = parsed.get_param(name)
    return found if isinstance(found, str) else ""


def read_xml(body: bytes, charset: str | None, limits: EnvelopeLimits) -> etree._Element:
    """A document of somebody whom we do not trust, without what makes parsers work for others.

    ``charset``: what the sender says that it is in. Raises :class:`SoapFault`.
    """
    if len(body) > limits.body_bytes:
        raise SoapFault(FaultReason.TOO_LARGE, f"the message is larger than {limits.body_bytes} bytes")
    return _parse(_decode(body, charset), limits)


def _decode(body: bytes, charset: str | None) -> str:
    """Strictly: what two parsers could read differently is refused."""
    if body.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        charset = charset or "utf-16"
    encoding = charset or "utf-8"
    if encoding not in _ENCODINGS:
        raise SoapFault(FaultReason.WRONG_ENCODING, f"send UTF-8 or UTF-16, not {shown(encoding)}")
    try:
        text = body.decode("utf-8-sig" if encoding == "utf-8" else encoding)
    except UnicodeDecodeError:
        raise SoapFault(FaultReason.WRONG_ENCODING, f"the message is not {encoding}") from None
    text = text.removeprefix("\ufeff")
    declared = _DECLARED.match(text)
    if declared is not None and _family(declared[1]) != _family(encoding):
        raise SoapFault(
            FaultReason.WRONG_ENCODING, f"the message is {encoding}, but says that it is {shown(declared[1])}"
        )
    return text


def _family(encoding: str) -> str:
    name = encoding.lower().replace("_", "-")
    if name.startswith("utf-16"):
        return "utf-16"
    return "utf-8" if name in ("utf-8", "utf8", "us-ascii", "ascii") else name


def _parse(text: str, limits: EnvelopeLimits) -> etree._Element:
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
        raise SoapFault(FaultReason.MALFORMED, f"not well-formed: {shown(str(error))}") from None
    if root.getroottree().docinfo.internalDTD is not None:
        raise SoapFault(FaultReason.DOCTYPE_REFUSED, "a document type is refused: SOAP has none")
    _measure(root, limits)
    return root


def _measure(root: etree._Element, limits: EnvelopeLimits) -> None:
    elements = depth = 0
    for event, _ in etree.iterwalk(root, events=("start", "end")):
        depth += 1 if event == "start" else -1
        elements += event == "start"
        if depth > limits.depth:
            raise SoapFault(FaultReason.TOO_DEEP, f"elements are nested deeper than {limits.depth}")
        if elements > limits.elements:
            raise SoapFault(FaultReason.TOO_MANY_ELEMENTS, f"there are more than {limits.elements} elements")


def _split(root: etree._Element, version: SoapVersion, limits: EnvelopeLimits, action: str) -> Envelope:
    """Header and body (SOAP 1.1 section 4, SOAP 1.2 part 1, section 5)."""
    name = etree.QName(root)
    told = version_of(name.namespace)
    if told is None or name.localname != "Envelope":
        raise SoapFault(FaultReason.VERSION_MISMATCH, f"no SOAP 1.1 or 1.2 envelope, but {shown(str(root.tag))}")
    if told is not version:
        raise SoapFault(
            FaultReason.VERSION_MISMATCH, f"an envelope of SOAP {told.name} is sent as {told.media_type}, not as here"
        )
    parts = list(root)
    header = parts.pop(0) if parts and parts[0].tag == version.tag("Header") else None
    if len(parts) != 1 or parts[0].tag != version.tag("Body"):
        raise SoapFault(FaultReason.MALFORMED, "an envelope has at most one Header, then one Body")
    if header is not None and len(header) > limits.headers:
        raise SoapFault(FaultReason.TOO_MANY_HEADERS, f"there are more than {limits.headers} headers")
    return Envelope(version, root, header, parts[0], action)


def shown(text: str) -> str:
    """The beginning of somebody's text, for a message."""
    return _CONTROL.sub("?", text)[:MAX_SHOWN]


def clean(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return _CONTROL.sub("?", text)


def open_envelope(version: SoapVersion) -> tuple[etree._Element, etree._Element]:
    """A new envelope and its body."""
    envelope = etree.Element(version.tag("Envelope"), nsmap={"soap": version.namespace})
    return envelope, etree.SubElement(envelope, version.tag("Body"))


def serialised(envelope: etree._Element) -> bytes:
    """As it is sent, in UTF-8."""
    return etree.tostring(envelope, xml_declaration=True, encoding="utf-8")


def add_fault(envelope: etree._Element, body: etree._Element, fault: SoapFault, namespace: str) -> None:
    """Write a fault into an envelope; its detail names the reason, for programs. ``namespace``: of who refuses."""
    version = version_of(etree.QName(envelope).namespace) or SOAP_11
    element = etree.SubElement(body, version.tag("Fault"))
    code = f"soap:{fault.reason.code(version)}"
    if version is SOAP_11:
        etree.SubElement(element, "faultcode").text = code
        etree.SubElement(element, "faultstring").text = clean(fault.message)
        detail = etree.SubElement(element, "detail")
    else:
        etree.SubElement(etree.SubElement(element, version.tag("Code")), version.tag("Value")).text = code
        text = etree.SubElement(etree.SubElement(element, version.tag("Reason")), version.tag("Text"))
        text.set(_LANGUAGE, "en")
        text.text = clean(fault.message)
        detail = etree.SubElement(element, version.tag("Detail"))
        _explain(envelope, fault)
    etree.SubElement(detail, f"{{{namespace}}}Reason", nsmap={"p": namespace}).text = fault.reason.value


def _explain(envelope: etree._Element, fault: SoapFault) -> None:
    """What SOAP 1.2 says about two faults in its header (part 1, sections 5.4.7 and 5.4.8)."""
    if fault.reason is FaultReason.VERSION_MISMATCH:
        upgrade = etree.SubElement(header_of(envelope), SOAP_12.tag("Upgrade"))
        for each in reversed(VERSIONS):
            supported = etree.SubElement(upgrade, SOAP_12.tag("SupportedEnvelope"), nsmap={"v": each.namespace})
            supported.set("qname", "v:Envelope")
    elif fault.reason is FaultReason.NOT_UNDERSTOOD and fault.block:
        name = etree.QName(fault.block)
        nsmap = {"n": name.namespace} if name.namespace else None
        block = etree.SubElement(header_of(envelope), SOAP_12.tag("NotUnderstood"), nsmap=nsmap)
        block.set("qname", f"n:{name.localname}" if name.namespace else name.localname)


def header_of(envelope: etree._Element) -> etree._Element:
    """The header of an envelope, which gets one if it has none."""
    tag = f"{{{etree.QName(envelope).namespace}}}Header"
    header = envelope.find(tag)
    if header is None:
        header = etree.Element(tag)
        envelope.insert(0, header)
    return header
