"""SOAP by hand: envelopes as bytes over HTTP, nothing between the test and the wire."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

import httpx
from lxml import etree

from coatcheck.soap_provider import SERVICE_NS, SESSION_NS

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
SOAP12 = "http://www.w3.org/2003/05/soap-envelope"
MEDIA_TYPE = {SOAP: "text/xml; charset=utf-8", SOAP12: "application/soap+xml; charset=utf-8"}


@dataclass(frozen=True)
class Reply:
    """An answer, taken apart. ``reason``: of its fault, if it is one; ``version``: the namespace of its envelope."""

    status: int
    results: dict[str, str]
    token: str | None
    session_type: str | None
    reason: str | None
    code: str | None
    version: str
    content_type: str


def envelope(
    operation: str = "WhoAmI", arguments: dict[str, str] | None = None, version: str = SOAP, **headers: str | None
) -> str:
    inside = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in (arguments or {}).items())
    blocks = "".join(
        f'<{name} xmlns="{SESSION_NS}">{escape(value)}</{name}>' for name, value in headers.items() if value is not None
    )
    header = f"<e:Header>{blocks}</e:Header>" if blocks else ""
    body = f'<{operation} xmlns="{SERVICE_NS}">{inside}</{operation}>'
    return f'<e:Envelope xmlns:e="{version}">{header}<e:Body>{body}</e:Body></e:Envelope>'


def read(response: httpx.Response) -> Reply:
    root = etree.fromstring(response.content)
    version = str(etree.QName(root).namespace)
    assert version in MEDIA_TYPE
    body = root.find(f"{{{version}}}Body")
    assert body is not None
    fault = body.find(f"{{{version}}}Fault")
    code = detail = None
    if fault is not None and version == SOAP:
        code, detail = fault.findtext("faultcode"), fault.find("detail")
    elif fault is not None:
        code, detail = fault.findtext(f"{{{SOAP12}}}Code/{{{SOAP12}}}Value"), fault.find(f"{{{SOAP12}}}Detail")
    return Reply(
        response.status_code,
        {}
        if fault is not None or not len(body)
        else {etree.QName(each).localname: each.text or "" for each in body[0]},
        root.findtext(f"{{{version}}}Header/{{{SESSION_NS}}}SessionToken"),
        root.findtext(f"{{{version}}}Header/{{{SESSION_NS}}}SessionType"),
        None if detail is None else next(each.text for each in detail if etree.QName(each).localname == "Reason"),
        code,
        version,
        response.headers["content-type"],
    )


def post(url: str, body: str | bytes, content_type: str = MEDIA_TYPE[SOAP], timeout_s: float = 20) -> Reply:
    content = body.encode() if isinstance(body, str) else body
    return read(httpx.post(url, content=content, headers={"Content-Type": content_type}, timeout=timeout_s))


def call(
    url: str,
    operation: str = "WhoAmI",
    arguments: dict[str, str] | None = None,
    version: str = SOAP,
    **headers: str | None,
) -> Reply:
    return post(url, envelope(operation, arguments, version, **headers), MEDIA_TYPE[version])


def log_in(
    url: str,
    session_type: str = "Stateless",
    username: str = "SADMIN",
    password: str = "secret",
    version: str = SOAP,
) -> Reply:
    reply = call(url, version=version, SessionType=session_type, UsernameToken=username, PasswordText=password)
    assert reply.reason is None and reply.token
    return reply
