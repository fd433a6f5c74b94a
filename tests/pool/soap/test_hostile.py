"""What a hostile or broken sender gets: a clear fault; and the provider goes on, no larger than before."""

from __future__ import annotations

import re
import socket
from pathlib import Path

import httpx
import pytest
from lxml import etree

from coatcheck.soap_provider import SERVICE_NS, SESSION_NS
from coatcheck.soap_provider.messages import LIMITS

from .provider_process import ProviderProcess
from .wire import MEDIA_TYPE, SOAP, SOAP12, call, envelope, log_in, post, read

MAX_GROWTH_KB = 64 * 1024

LAUGHS = (
    '<?xml version="1.0"?><!DOCTYPE l [<!ENTITY a "lol">'
    + "".join(f'<!ENTITY {chr(98 + i)} "{("&" + chr(97 + i) + ";") * 10}">' for i in range(9))
    + "]><l>&j;</l>"
)
QUADRATIC = '<!DOCTYPE l [<!ENTITY a "' + "A" * 50_000 + '">]><l>' + "&a;" * 2000 + "</l>"
EXTERNAL = '<?xml version="1.0"?> <!-- x --> <!DOCTYPE l [<!ENTITY x SYSTEM "file:///etc/passwd">]><l>&x;</l>'
REMOTE = '<!DOCTYPE l SYSTEM "http://127.0.0.1:1/evil.dtd"><l/>'


def inside(body: str, header: str = "") -> str:
    return f'<e:Envelope xmlns:e="{SOAP}"><e:Header>{header}</e:Header><e:Body>{body}</e:Body></e:Envelope>'


def headed(blocks: str) -> str:
    """WhoAmI with header blocks; ``s`` is the namespace of session headers."""
    header = f"<e:Header><s:SessionType>Stateless</s:SessionType>{blocks}</e:Header>"
    body = f'<e:Body><WhoAmI xmlns="{SERVICE_NS}"/></e:Body>'
    return f'<e:Envelope xmlns:e="{SOAP}" xmlns:s="{SESSION_NS}">{header}{body}</e:Envelope>'


def named(username: str) -> str:
    return headed(f"{username}<s:PasswordText>secret</s:PasswordText>")


NAME = "<s:UsernameToken><s:Username>SADMIN</s:Username></s:UsernameToken>"

CASES = {
    "billion laughs": (LAUGHS, "DoctypeRefused"),
    "quadratic blow-up": (QUADRATIC, "DoctypeRefused"),
    "external entity": (EXTERNAL, "DoctypeRefused"),
    "remote document type": (REMOTE, "DoctypeRefused"),
    "document type in UTF-16": (LAUGHS.encode("utf-16"), "DoctypeRefused"),
    "undefined entity": (inside("<a>&lol;</a>"), "Malformed"),
    "deep": (inside("<a>" * (LIMITS.depth + 1) + "</a>" * (LIMITS.depth + 1)), "TooDeep"),
    "very deep": ("<a>" * 30_000 + "</a>" * 30_000, "Malformed"),
    "deep, never closed": ("<a>" * 80_000, "Malformed"),
    "many elements": (inside("<a>" + "<b/>" * LIMITS.elements + "</a>"), "TooManyElements"),
    "many attributes": ("<a " + " ".join(f'a{i}="x"' for i in range(20_000)) + "/>", "VersionMismatch"),
    "one long attribute": (f'<a b="{"x" * 200_000}"/>', "VersionMismatch"),
    "many headers": (
        inside("<a/>", '<h xmlns="urn:x"/>' * (LIMITS.headers + 1)),
        "TooManyHeaders",
    ),
    "a header twice": (
        envelope(SessionType="None").replace(
            "</e:Header>", '<SessionType xmlns="http://siebel.com/webservices">Stateful</SessionType></e:Header>'
        ),
        "BadHeader",
    ),
    "a username twice in one header": (
        named(NAME.replace("<s:Username>", "<s:Username>BOB</s:Username><s:Username>")),
        "BadHeader",
    ),
    "a username in and around": (named(NAME.replace("<s:Username>", "BOB<s:Username>")), "BadHeader"),
    "a username in two headers": (named(f"{NAME}<s:Username>BOB</s:Username>"), "BadHeader"),
    "a username in a username": (named(NAME.replace("SADMIN", "<s:Username>SADMIN</s:Username>")), "BadHeader"),
    "credentials in another header": (headed(f"<s:PasswordText>secret{NAME}</s:PasswordText>"), "BadHeader"),
    "a header of ours that is unknown must be understood": (
        named(f'{NAME}<s:SesionType e:mustUnderstand="1">Stateful</s:SesionType>'),
        "NotUnderstood",
    ),
    "the next one must understand it": (
        named(f'{NAME}<h xmlns="urn:x" e:mustUnderstand="1" e:actor="http://schemas.xmlsoap.org/soap/actor/next"/>'),
        "NotUnderstood",
    ),
    "must be understood": (
        inside("<a/>", '<h xmlns="urn:x" e:mustUnderstand="1"/>'),
        "NotUnderstood",
    ),
    "oversized": (b"<a>" + b"x" * (LIMITS.body_bytes + 1), "TooLarge"),
    "empty": ("", "Malformed"),
    "no XML": ("SessionType=Stateless", "Malformed"),
    "cut": (envelope()[:-20], "Malformed"),
    "two roots": (envelope() + envelope(), "Malformed"),
    "NUL bytes": (b"\x00" * 1000, "Malformed"),
    "wrong UTF-8": (envelope("Echo", {"text": "x"}).encode().replace(b"x</text>", b"\xff\xfe</text>"), "WrongEncoding"),
    "declares another encoding": ('<?xml version="1.0" encoding="EBCDIC-CP-US"?>' + envelope(), "WrongEncoding"),
    "no envelope": ("<html/>", "VersionMismatch"),
    "SOAP 1.2 as 1.1": (envelope(version=SOAP12), "VersionMismatch"),
    "SOAP of the future": (envelope(version="http://www.w3.org/2099/soap-envelope"), "VersionMismatch"),
    "no body": (f'<e:Envelope xmlns:e="{SOAP}"/>', "Malformed"),
    "empty body": (inside(""), "Malformed"),
    "two operations": (inside("<a/><b/>"), "Malformed"),
    "unknown namespace": (inside("<Echo/>"), "UnknownOperation"),
    "unknown operation": (envelope("Explode"), "UnknownOperation"),
    "unknown argument": (envelope("Echo", {"texts": "x"}), "BadArgument"),
    "nested argument": (envelope("Echo", {"text": "@"}).replace("@", "<a/>"), "BadArgument"),
    "long argument": (envelope("Echo", {"text": "x" * 20_000}), "BadArgument"),
    "endless delay": (envelope("SlowEcho", {"text": "x", "delayMs": "9999999999999"}), "BadArgument"),
}


def size_kb(provider: ProviderProcess) -> int:
    status = Path(f"/proc/{provider.process.pid}/status").read_text()
    return int(next(line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")))


NEXT = "http://schemas.xmlsoap.org/soap/actor/next"
BLAMED = {
    SOAP: {"Client", "VersionMismatch", "MustUnderstand"},
    SOAP12: {"Sender", "VersionMismatch", "MustUnderstand"},
}


def as_soap_12(body: str | bytes) -> str | bytes:
    """The same in the words of SOAP 1.2, and what was SOAP 1.2 is SOAP 1.1."""
    if isinstance(body, bytes):
        return body
    swapped = body.replace(NEXT, f"{SOAP12}/role/next").replace("e:actor", "e:role")
    return "".join({SOAP: SOAP12, SOAP12: SOAP}.get(part, part) for part in re.split('(?<=")(.*?)(?=")', swapped))


@pytest.mark.parametrize("version", [SOAP, SOAP12], ids=["SOAP 1.1", "SOAP 1.2"])
@pytest.mark.parametrize("name", CASES)
def test_a_bad_request_is_a_clear_fault(provider: ProviderProcess, name: str, version: str) -> None:
    body, reason = CASES[name]
    charset = "utf-16" if isinstance(body, bytes) and body[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    media_type = MEDIA_TYPE[version].replace("utf-8", charset)
    reply = post(provider.url, body if version == SOAP else as_soap_12(body), media_type)
    assert (reply.reason, reply.version, reply.content_type) == (reason, version, MEDIA_TYPE[version])
    assert reply.code is not None and reply.code.removeprefix("soap:") in BLAMED[version]
    own = 400 if reply.code == "soap:Sender" else 500
    assert reply.status == (413 if reason == "TooLarge" else own)


def test_soap_12_says_in_its_header_what_it_speaks_and_what_it_does_not_understand(provider: ProviderProcess) -> None:
    def blocks(body: str) -> list[etree._Element]:
        answer = httpx.post(provider.url, content=body, headers={"Content-Type": MEDIA_TYPE[SOAP12]})
        return list(etree.fromstring(answer.content).find(f"{{{SOAP12}}}Header"))

    (upgrade,) = blocks(envelope(version="urn:other"))
    assert [name_in(each) for each in upgrade] == [f"{{{SOAP12}}}Envelope", f"{{{SOAP}}}Envelope"]
    for block, name in (('<h xmlns="urn:x" e:mustUnderstand="true"/>', "{urn:x}h"), ('<h e:mustUnderstand="1"/>', "h")):
        (told,) = blocks(str(as_soap_12(inside("<a/>", block))))
        assert (told.tag, name_in(told)) == (f"{{{SOAP12}}}NotUnderstood", name)


def name_in(element: etree._Element) -> str:
    """The attribute ``qname``, its prefix read as the document declares it."""
    prefix, colon, local = element.get("qname", "").rpartition(":")
    return f"{{{element.nsmap[prefix]}}}{local}" if colon else local


def test_sessions_outlive_hostile_requests_and_nothing_grows(provider: ProviderProcess) -> None:
    token = log_in(provider.url).token
    for body, _ in CASES.values():
        post(provider.url, body)
    before = size_kb(provider)
    sessions = provider.admin("stats")["open_sessions"]
    for _ in range(5):
        for body, _ in CASES.values():
            post(provider.url, body)
    assert size_kb(provider) - before < MAX_GROWTH_KB
    assert provider.admin("stats")["open_sessions"] == sessions
    assert call(provider.url, SessionType="Stateless", SessionToken=token).results["username"] == "SADMIN"


def test_headers_for_somebody_else_are_theirs_to_understand(provider: ProviderProcess) -> None:
    for block in (
        '<h xmlns="urn:x" e:mustUnderstand="1" e:actor="urn:somebody-else"/>',
        '<s:SessionType e:actor="urn:somebody-else">Stateful</s:SessionType>',
        '<h xmlns="urn:x" e:mustUnderstand="0"/><s:Note>x</s:Note>',
    ):
        for version in (SOAP, SOAP12):
            body = named(NAME + block)
            reply = post(provider.url, body if version == SOAP else as_soap_12(body), MEDIA_TYPE[version])
            assert (reply.results["username"], reply.session_type) == ("SADMIN", "Stateless")


@pytest.mark.parametrize(
    "content_type", ["", "application/json", "text/plain", "application/soap", "multipart/related", "text/xml2"]
)
def test_a_wrong_content_type_is_415_and_a_fault(provider: ProviderProcess, content_type: str) -> None:
    reply = post(provider.url, envelope(), content_type)
    assert (reply.status, reply.reason) == (415, "WrongContentType")


@pytest.mark.parametrize("charset", ["iso-8859-1", "utf-7", "x" * 300, "rot13", "unicode_escape"])
def test_a_wrong_charset_is_a_fault(provider: ProviderProcess, charset: str) -> None:
    assert post(provider.url, envelope(), f"text/xml; charset={charset}").reason == "WrongEncoding"


def test_utf_16_and_a_byte_order_mark_are_read(provider: ProviderProcess) -> None:
    text = envelope("Echo", {"text": "Grüße, 世界"})
    for body, charset in (
        (text.encode("utf-16"), "; charset=utf-16"),
        (text.encode("utf-16"), ""),
        (b"\xef\xbb\xbf" + text.encode(), ""),
        (('<?xml version="1.0" encoding="UTF-8"?>\n<!-- c -->' + text).encode(), "; charset=UTF-8"),
    ):
        assert post(provider.url, body, f"text/xml{charset}").results == {"text": "Grüße, 世界"}


def test_words_of_a_document_type_inside_a_text_are_just_text(provider: ProviderProcess) -> None:
    assert call(provider.url, "Echo", {"text": "<!DOCTYPE html>"}).results == {"text": "<!DOCTYPE html>"}


def test_a_compressed_request_is_refused(provider: ProviderProcess) -> None:
    headers = {"Content-Type": "text/xml", "Content-Encoding": "gzip"}
    assert read(httpx.post(provider.url, content=b"\x1f\x8b", headers=headers)).reason == "WrongContentType"


def test_other_methods_are_405_and_a_fault(provider: ProviderProcess) -> None:
    for method in ("GET", "PUT", "DELETE"):
        response = httpx.request(method, provider.url)
        assert response.headers["allow"] == "GET, POST"
        assert (response.status_code, read(response).reason) == (405, "WrongMethod")


def test_a_sender_that_goes_away_in_the_middle_costs_nothing(provider: ProviderProcess) -> None:
    port = int(provider.base.rsplit(":", 1)[1])
    for _ in range(20):
        with socket.create_connection(("127.0.0.1", port), timeout=5) as sender:
            sender.sendall(
                b"POST /soap HTTP/1.1\r\nHost: x\r\nContent-Type: text/xml\r\nContent-Length: 900\r\n\r\n<a>"
            )
    assert call(provider.url, "Echo", {"text": "still here"}).results == {"text": "still here"}


def test_the_wsdl_is_not_a_way_in(provider: ProviderProcess) -> None:
    response = httpx.get(f"{provider.url}?WSDL", headers={"Host": "a'\"<evil>"})
    assert b"<evil>" not in response.content


def test_admin_refuses_nonsense(provider: ProviderProcess) -> None:
    for body in (b"", b"[]", b"{", b'{"expire_rate": 2}', b'{"expire_rate": "x"}', b'{"unknown": 1}', b"\xff"):
        response = httpx.post(f"{provider.base}/admin/misbehave", content=body)
        assert response.status_code == 400 and response.json()["error"]
