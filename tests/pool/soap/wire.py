"""SOAP by hand: envelopes as bytes over HTTP, nothing between the test and the wire."""

from __future__ import annotations

from dataclasses import dataclass
from xml.sax.saxutils import escape

import httpx
from lxml import etree

from coatcheck.pool.soap import SERVICE_NS, SESSION_NS

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"


@dataclass(frozen=True)
class Reply:
    """An answer, taken apart. ``reason``: of its fault, if it is one."""

    status: int
    results: dict[str, str]
    token: str | None
    session_type: str | None
    reason: str | None
    code: str | None


def envelope(operation: str = "WhoAmI", arguments: dict[str, str] | None = None, **headers: str | None) -> str:
    inside = "".join(f"<{name}>{escape(value)}</{name}>" for name, value in (arguments or {}).items())
    blocks = "".join(
        f'<{name} xmlns="{SESSION_NS}">{escape(value)}</{name}>' for name, value in headers.items() if value is not None
    )
    header = f"<e:Header>{blocks}</e:Header>" if blocks else ""
    body = f'<{operation} xmlns="{SERVICE_NS}">{inside}</{operation}>'
    return f'<e:Envelope xmlns:e="{SOAP}">{header}<e:Body>{body}</e:Body></e:Envelope>'


def read(response: httpx.Response) -> Reply:
    root = etree.fromstring(response.content)
    body = root.find(f"{{{SOAP}}}Body")
    assert body is not None
    fault = body.find(f"{{{SOAP}}}Fault")
    return Reply(
        response.status_code,
        {} if fault is not None else {etree.QName(each).localname: each.text or "" for each in body[0]},
        root.findtext(f"{{{SOAP}}}Header/{{{SESSION_NS}}}SessionToken"),
        root.findtext(f"{{{SOAP}}}Header/{{{SESSION_NS}}}SessionType"),
        None if fault is None else fault.findtext(f"detail/{{{SERVICE_NS}}}Reason"),
        None if fault is None else fault.findtext("faultcode"),
    )


def post(url: str, body: str | bytes, content_type: str = "text/xml; charset=utf-8", timeout_s: float = 20) -> Reply:
    content = body.encode() if isinstance(body, str) else body
    return read(httpx.post(url, content=content, headers={"Content-Type": content_type}, timeout=timeout_s))


def call(url: str, operation: str = "WhoAmI", arguments: dict[str, str] | None = None, **headers: str | None) -> Reply:
    return post(url, envelope(operation, arguments, **headers))


def log_in(url: str, session_type: str = "Stateless", username: str = "SADMIN", password: str = "secret") -> Reply:
    reply = call(url, SessionType=session_type, UsernameToken=username, PasswordText=password)
    assert reply.reason is None and reply.token
    return reply
