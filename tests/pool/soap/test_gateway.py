"""SOAP clients that know nothing of sessions, behind the gateway: at the real provider, and at upstreams that fail."""

from __future__ import annotations

import base64
import http.server
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import requests
import zeep
from lxml import etree
from zeep.exceptions import Fault
from zeep.transports import Transport

from certificate import make_certificate
from coatcheck.pool.soap.gateway import CALL_LIMITS
from coatcheck.soap_provider import SESSION_NS
from forked import run_coatcheck

from .conftest import StartProvider
from .gateway_process import BEARER, LOGOUT, PASSWORD, GatewayProcess, OddUpstream, Seen, fault, reply
from .provider_process import ProviderProcess
from .test_hostile import CASES, as_soap_12, inside
from .wire import MEDIA_TYPE, SOAP, SOAP12, envelope, read

VERSIONS = pytest.mark.parametrize("version", [SOAP, SOAP12], ids=["SOAP 1.1", "SOAP 1.2"])
PORTS = {SOAP: "ProviderPort", SOAP12: "ProviderPort12"}
Handler = http.server.BaseHTTPRequestHandler


@pytest.fixture(scope="module")
def upstream(start: StartProvider) -> ProviderProcess:
    """Strict: only the newest token of a session is good for anything."""
    return start("--user", f"SADMIN:{PASSWORD}", "--single-use", "--max-sessions-per-user", "2")


@pytest.fixture(scope="module")
def gateway(upstream: ProviderProcess, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    arguments = ("--per-user", "2", "--logout-operation", LOGOUT)
    started = GatewayProcess(tmp_path_factory.mktemp("gateway"), upstream.url, *arguments)
    yield started
    assert started.end() == 0


@pytest.fixture(scope="module")
def odd_upstream() -> Iterator[OddUpstream]:
    started = OddUpstream()
    yield started
    started.end()


@pytest.fixture(scope="module")
def odd_gateway(odd_upstream: OddUpstream, tmp_path_factory: pytest.TempPathFactory) -> Iterator[GatewayProcess]:
    arguments = ("--timeout", "2s", "--wait", "1s", "--login-rate", "1000/1s", "--expired-fault", "Reason=GoneAway")
    started = GatewayProcess(tmp_path_factory.mktemp("odd"), odd_upstream.url, *arguments)
    yield started
    assert started.end() == 0


@pytest.fixture
def odd(odd_upstream: OddUpstream, odd_gateway: GatewayProcess) -> OddUpstream:
    odd_upstream.seen.clear()
    return odd_upstream


def zeep_service(gateway: GatewayProcess, version: str) -> zeep.proxy.ServiceProxy:
    """A client made from the gateway's own WSDL; all it was told besides is the header that lets it in."""
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {BEARER}"
    client = zeep.Client(f"{gateway.url}/?wsdl", transport=Transport(session=session))
    return client.bind("ProviderService", PORTS[version])


# -- at the provider


@VERSIONS
def test_zeep_calls_share_sessions_that_it_does_not_know_of(
    gateway: GatewayProcess, upstream: ProviderProcess, version: str
) -> None:
    service = zeep_service(gateway, version)
    before = service.WhoAmI()
    logins = upstream.counter("logins")
    seen = [service.WhoAmI() for _ in range(4)]
    assert {each["username"] for each in seen} == {"SADMIN"}
    assert {each["session"] for each in seen} == {before["session"]}
    assert [each["requests"] - before["requests"] for each in seen] == [1, 2, 3, 4]
    assert service.UpdateAccount(name="z", note="Grüße <&>") == 0
    assert service.QueryAccount("z")["note"] == "Grüße <&>"
    with pytest.raises(Fault, match="no account") as failed:
        service.QueryAccount("missing")
    assert failed.value.detail[0].text == "NotFound", "faults of the service pass through"
    assert service.WhoAmI()["session"] == before["session"], "and keep the session"
    assert upstream.counter("logins") == logins


@VERSIONS
def test_no_session_header_reaches_the_client(gateway: GatewayProcess, version: str) -> None:
    for operation, arguments in (("Echo", {"text": "in"}), ("QueryAccount", {"name": "missing"})):
        answer = gateway.post(envelope(operation, arguments, version), MEDIA_TYPE[version])
        assert SESSION_NS.encode() not in answer.content
        assert etree.fromstring(answer.content).find(f"{{{version}}}Header") is None
        assert read(answer).version == version and answer.headers["content-type"] == MEDIA_TYPE[version]
        assert not [name for name in answer.headers if "session" in name or "cookie" in name]


@VERSIONS
def test_an_expired_session_is_opened_anew_and_the_call_made_again(
    gateway: GatewayProcess, upstream: ProviderProcess, version: str
) -> None:
    first = gateway.call(version=version).results["session"]
    logins = upstream.counter("logins")
    for switch, reason in (("expire-tokens", "TokenExpired"), ("expire-tokens?user=SADMIN", "TokenExpired")):
        refused = upstream.counter(f"fault.{reason}")
        upstream.admin(switch)
        again = gateway.call("UpdateAccount", {"name": "once", "note": switch}, version)
        until = time.monotonic() + 60
        while again.reason == reason:  # a token that dies within a second of its login is taken for good so long
            assert time.monotonic() < until
            time.sleep(0.02)
            again = gateway.call("UpdateAccount", {"name": "once", "note": switch}, version)
        assert (again.reason, again.results) == (None, {"uncommitted": "0"})
        assert upstream.counter(f"fault.{reason}") > refused
    assert gateway.call(version=version).results["session"] != first
    assert 1 <= upstream.counter("logins") - logins <= 4


def test_many_callers_wait_for_few_sessions(gateway: GatewayProcess, upstream: ProviderProcess) -> None:
    wrong: list[object] = []

    def work(number: int) -> None:
        with httpx.Client(headers={"Authorization": f"Bearer {BEARER}"}, timeout=60) as client:
            for _ in range(5):
                version = (SOAP, SOAP12)[number % 2]
                body = envelope("Echo", {"text": str(number)}, version)
                answer = read(client.post(gateway.url, content=body, headers={"Content-Type": MEDIA_TYPE[version]}))
                if answer.results != {"text": str(number)}:
                    wrong.append(answer)

    busy = upstream.counter("fault.SessionBusy")
    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert upstream.counter("fault.SessionBusy") == busy
    assert upstream.admin("stats")["peak_sessions_per_user"] <= 2


def test_its_sessions_are_logged_out_when_it_is_told_to(start: StartProvider, tmp_path: Path) -> None:
    provider = start("--user", f"SADMIN:{PASSWORD}")
    gateway = GatewayProcess(tmp_path, provider.url, "--logout-operation", LOGOUT, "--max-uses", "2")
    try:
        sessions = [gateway.call().results["session"] for _ in range(4)]
        assert len(set(sessions)) == 2
        deadline = time.monotonic() + 20
        while provider.counter("logouts") < 1 and time.monotonic() < deadline:
            time.sleep(0.05)
        assert provider.counter("logouts") >= 1
    finally:
        assert gateway.end() == 0
    assert (gateway.log.read_text(), provider.admin("stats")["open_sessions"]) == ("", 0)


def test_a_wrong_password_is_told_to_the_operator(start: StartProvider, tmp_path: Path) -> None:
    provider = start("--user", f"SADMIN:{PASSWORD}")
    gateway = GatewayProcess(tmp_path, provider.url, "--soap", "1.2", "--wait", "0.5s", password="very-wrong")
    try:
        for version in (SOAP, SOAP12):
            refused = gateway.call(version=version)
            assert (refused.reason, refused.status) == ("NoSession", 500)
            assert refused.code in ("soap:Server", "soap:Receiver")
    finally:
        assert gateway.end() == 0
    log = gateway.log.read_text()
    assert "refused WhoAmI: Reason=LoginFailed, Value=Sender" in log and "very-wrong" not in log


def test_two_gateways_with_one_store_are_one_pool(start: StartProvider, tmp_path: Path) -> None:
    provider = start("--user", f"SADMIN:{PASSWORD}", "--single-use")
    key = tmp_path / "key"
    key.write_text("m3XqjvY0a8pS6tRrWn2cUeK5hLzFg7D9oBiQxT1VwJ4")
    key.chmod(0o600)
    shared = ("--store", f"sqlite:///{tmp_path}/tokens.db", "--key-file", str(key))
    gateways = [GatewayProcess(tmp_path / soap, provider.url, *shared, "--soap", soap) for soap in ("1.2", "1.1")]
    try:
        sessions = {gateway.call().results["session"] for _ in range(3) for gateway in gateways}
        assert len(sessions) == 1 and provider.counter("logins") == 1
    finally:
        assert [gateway.end() for gateway in gateways] == [0, 0]


# -- the WSDL


def test_the_wsdl_names_the_gateway_and_its_schemas_are_the_upstreams(
    gateway: GatewayProcess, upstream: ProviderProcess
) -> None:
    document = etree.fromstring(gateway.http.get("/?wsdl").content)
    addresses = [each.get("location") for each in document.iter() if etree.QName(each).localname == "address"]
    assert addresses == [f"{gateway.url}/"] * 2
    theirs = etree.fromstring(httpx.get(upstream.wsdl).content)
    assert len(list(document.iter())) == len([each for each in theirs.iter() if isinstance(each.tag, str)])
    assert read(gateway.http.get("/?admin=1")).reason == "WrongMethod"
    assert read(gateway.http.put("/")).status == 405


# -- who may call


def test_only_callers_with_a_bearer_token_get_in(gateway: GatewayProcess, upstream: ProviderProcess) -> None:
    requests_before = upstream.counter("requests")
    basic = {name: base64.b64encode(f"any:{name}".encode()).decode() for name in (BEARER, "wrong")}
    wrong = ["", "Bearer wrong", "Bearer", f"Basic {basic['wrong']}", "Basic !", f"Basic {BEARER}"]
    for shown in wrong:
        for version in (SOAP, SOAP12):
            answer = gateway.post(envelope(version=version), MEDIA_TYPE[version], Authorization=shown)
            assert (answer.status_code, read(answer).reason) == (401, "Unauthorized")
            assert answer.headers["www-authenticate"] == 'Bearer, Basic realm="coatcheck"'
        assert gateway.http.get("/?wsdl", headers={"Authorization": shown}).status_code == 401
    assert upstream.counter("requests") == requests_before
    answer = gateway.post(envelope(), MEDIA_TYPE[SOAP], Authorization=f"Basic {basic[BEARER]}")
    assert read(answer).results["username"] == "SADMIN"
    assert httpx.get(f"{gateway.url}/healthz").json() == {"status": "ok"}


# -- hostile clients

SERVICE_ONLY = {"UnknownOperation", "BadArgument", "NotUnderstood"}
"""What the service behind the gateway has to judge."""
LARGER = {
    "deep": "<a>" * (CALL_LIMITS.depth + 1) + "</a>" * (CALL_LIMITS.depth + 1),
    "many elements": "<a>" + "<b/>" * (CALL_LIMITS.elements + 1) + "</a>",
    "oversized": "<a>" + "x" * (CALL_LIMITS.body_bytes + 1),
    "many headers": inside("<a/>", '<h xmlns="urn:x"/>' * (CALL_LIMITS.headers + 1)),
}
"""A gateway lets more through than the provider, which knows its operations."""
HOSTILE = [
    name
    for name, (_, reason) in CASES.items()
    if reason not in SERVICE_ONLY and name not in ("empty body", "two operations")
]


@VERSIONS
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_request_goes_no_further(
    odd_gateway: GatewayProcess, odd: OddUpstream, name: str, version: str
) -> None:
    body, reason = CASES[name]
    body = LARGER.get(name, body)
    charset = "utf-16" if isinstance(body, bytes) and body[:2] in (b"\xff\xfe", b"\xfe\xff") else "utf-8"
    sent = body if version == SOAP else as_soap_12(body)
    logins = odd.logins
    answer = read(odd_gateway.post(sent, MEDIA_TYPE[version].replace("utf-8", charset)))
    assert (answer.reason, answer.version) == (reason, version)
    assert (odd.seen, odd.logins) == ([], logins)


def test_session_headers_of_a_client_are_refused(odd_gateway: GatewayProcess, odd: OddUpstream) -> None:
    for headers in ({"SessionToken": "stolen"}, {"UsernameToken": "BOB"}, {"SessionType": "None"}):
        assert odd_gateway.call("Echo", {"text": "x"}, **headers).reason == "BadHeader"
    assert odd.seen == []


@pytest.mark.parametrize("action", ['x"; y="z', "x\\", "a;b", "x" * 2000, "ä"])
def test_an_action_adds_nothing_to_a_header(odd_gateway: GatewayProcess, odd: OddUpstream, action: str) -> None:
    shown = {"SOAPAction": f'"{action}"'.encode("latin-1")}
    answer = odd_gateway.http.post("/", content=envelope("Echo"), headers={"Content-Type": MEDIA_TYPE[SOAP], **shown})
    assert read(answer).reason == "Malformed"
    assert odd.seen == []


def test_what_the_upstream_gets(odd_gateway: GatewayProcess, odd: OddUpstream) -> None:
    odd.behave = lambda handler, seen: reply(handler, envelope("EchoResponse", SessionToken="N1"), Set_Cookie="sid=1")
    own = '<h xmlns="urn:own" e:mustUnderstand="1">mine</h>'
    body = envelope("Echo", {"text": "Grüße"}).replace("<e:Body>", f"<e:Header>{own}</e:Header><e:Body>")
    text = body.encode("utf-16")
    answer = odd_gateway.post(text, "text/xml; charset=utf-16", "/any/path?at=all", SOAPAction='"urn:do"', Cookie="a=b")
    assert read(answer).reason is None and "set-cookie" not in answer.headers
    odd_gateway.call("Echo")
    first, second = odd.seen
    assert first.headers["content-type"] == "text/xml; charset=utf-8" and first.headers["soapaction"] == '"urn:do"'
    assert {"cookie", "authorization"}.isdisjoint(first.headers) and "cookie" not in second.headers
    root = etree.fromstring(first.body)
    blocks = [(etree.QName(each).localname, each.text) for each in root[0]]
    assert blocks == [("h", "mine"), ("SessionType", "Stateless"), ("SessionToken", first.token)]
    assert root.findtext(".//{*}text") == "Grüße"
    assert second.token == "N1"
    media_type = f'{MEDIA_TYPE[SOAP12]}; action="urn:do"'
    odd_gateway.post(envelope("Echo", version=SOAP12), media_type)
    assert odd.seen[2].headers["content-type"] == media_type and "soapaction" not in odd.seen[2].headers


def test_what_is_signed_stays_as_it_was(odd_gateway: GatewayProcess, odd: OddUpstream) -> None:
    """Both ways, by the rules of exclusive canonicalisation, which signatures of messages are made by."""
    text = (
        'a&#13;b <![CDATA[<c> & d]]> &lt;e&gt;\t"f"  <x:g xmlns:x="urn:x" x:b="2" a="1&#10;"/><!-- not signed --> ü\n'
    )
    signed = envelope("Pay", {"text": "@"}).replace("@", text)

    def canonical(message: bytes) -> bytes:
        body = etree.fromstring(message).find(f"{{{SOAP}}}Body")
        return etree.tostring(body, method="c14n", exclusive=True, with_comments=False)

    odd.behave = says(envelope("PayResponse", {"text": "@"}, SessionToken="N1").replace("@", text))
    answer = odd_gateway.post(signed, MEDIA_TYPE[SOAP])
    assert canonical(odd.seen[0].body) == canonical(signed.encode())
    assert canonical(answer.content) == canonical(signed.replace("Pay", "PayResponse").encode())
    assert b"N1" not in answer.content


# -- upstreams that fail


def drops(handler: Handler, seen: Seen) -> None:
    handler.close_connection = True
    handler.connection.shutdown(socket.SHUT_RDWR)


def hangs(handler: Handler, seen: Seen) -> None:
    handler.connection.settimeout(20)
    handler.rfile.read(1)  # until the gateway gives up


def half(handler: Handler, seen: Seen) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", "1000")
    handler.end_headers()
    handler.wfile.write(b"<e:Envelope")
    handler.close_connection = True


def says(
    body: str | bytes, status: int = 200, content_type: str = MEDIA_TYPE[SOAP], **headers: str
) -> Callable[..., None]:
    return lambda handler, seen: reply(handler, body, status, content_type, **headers)


BOMB = '<!DOCTYPE l [<!ENTITY a "lol">]>' + envelope("EchoResponse", {"text": "&a;"}, SessionToken="N1")
UPSTREAMS = {
    "goes away": (drops, "UpstreamLost"),
    "hangs": (hangs, "UpstreamLost"),
    "breaks off": (half, "UpstreamLost"),
    "is another server": (says("<html>", 502, "text/html"), "BadAnswer"),
    "sends elsewhere": (says("", 302, Location="http://127.0.0.1:1/"), "BadAnswer"),
    "sends a document type": (says(BOMB), "BadAnswer"),
    "sends half of it": (says(envelope("EchoResponse")[:-9]), "BadAnswer"),
    "sends too much": (says(b"<a>" + b"x" * (8 * 1024 * 1024 + 1)), "BadAnswer"),
    "sends it compressed": (says(b"\x1f\x8b", Content_Encoding="gzip"), "BadAnswer"),
    "fails with nothing": (says("", 500), "BadAnswer"),
}


@pytest.mark.parametrize("name", UPSTREAMS)
def test_what_may_have_been_carried_out_is_never_repeated(
    odd_gateway: GatewayProcess, odd: OddUpstream, name: str
) -> None:
    odd.behave = says(envelope("EchoResponse", SessionToken="N1"))
    odd_gateway.call("Echo")
    odd.behave, reason = UPSTREAMS[name]
    odd.seen.clear()
    logins = odd.logins
    for version in (SOAP, SOAP12):
        failed = odd_gateway.call("Pay", version=version)
        assert (failed.reason, failed.status, failed.version) == (reason, 500, version)
    assert [each.operation for each in odd.seen] == ["Pay", "Pay"], "once for each call"
    odd.behave = says(envelope("EchoResponse", SessionToken="N2"))
    assert odd_gateway.call("Echo").reason is None
    assert odd.logins == logins + 2, "a token whose state is unknown is not used again"


def test_a_fault_that_comes_with_a_fresh_token_is_an_answer(odd_gateway: GatewayProcess, odd: OddUpstream) -> None:
    odd.behave = says(fault("GoneAway", token="N5"), 500)
    assert odd_gateway.call("Pay").reason == "GoneAway"
    assert len(odd.seen) == 1, "the session is alive, so the call may have been carried out"
    odd.behave = says(envelope("EchoResponse", SessionToken="N6"))
    odd_gateway.call("Echo")
    assert odd.seen[1].token == "N5"


def test_a_refused_token_is_replaced_and_a_fresh_one_is_not_tried_twice(
    odd_gateway: GatewayProcess, odd: OddUpstream
) -> None:
    odd.behave = says(envelope("EchoResponse"))
    odd_gateway.call("Echo")
    odd.seen.clear()
    logins = odd.logins
    odd.behave = says(fault("GoneAway"), 500)
    assert odd_gateway.call("Pay").reason == "GoneAway"
    tokens = [each.token for each in odd.seen]
    assert odd.logins > logins and tokens[-1] == f"T{odd.logins}" and len(set(tokens)) == len(tokens)
    assert odd_gateway.call("Pay").reason == "GoneAway"
    assert len(odd.seen) == len(tokens) + 1, "it was fresh from a login: another will not be better"
    odd.behave = says(fault("TokenExpired"), 500)
    assert odd_gateway.call("Pay").reason == "TokenExpired"
    assert len(odd.seen) == len(tokens) + 2, "only what was named counts as a refusal"


def test_an_answer_without_a_body_is_an_answer(odd_gateway: GatewayProcess, odd: OddUpstream) -> None:
    odd.behave = says("", 202)
    logins = odd.logins
    answers = [odd_gateway.post(envelope("Notify"), MEDIA_TYPE[SOAP]) for _ in range(2)]
    assert [(answer.status_code, answer.content) for answer in answers] == [(202, b"")] * 2
    assert odd.logins <= logins + 1 and odd.seen[0].token == odd.seen[1].token


def test_an_upstream_that_is_not_there_cost_nothing(tmp_path: Path) -> None:
    upstream = OddUpstream()
    upstream.behave = says(envelope("EchoResponse"))
    gateway = GatewayProcess(tmp_path, upstream.url)
    try:
        assert gateway.call("Echo").reason is None
        upstream.end()
        for _ in range(2):
            failed = gateway.call("Pay")
            assert (failed.reason, failed.code) == ("UpstreamUnreachable", "soap:Server")
        assert upstream.logins == 1, "its token was never shown, and is kept"
    finally:
        assert gateway.end() == 0


def test_only_an_upstream_that_is_trusted_sees_a_password(tmp_path: Path) -> None:
    certificate, key = make_certificate(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(certificate, key)
    upstream = OddUpstream(tls)
    upstream.behave = says(envelope("EchoResponse"))
    trusting = GatewayProcess(tmp_path / "one", upstream.url, "--upstream-ca-file", str(certificate))
    strict = GatewayProcess(tmp_path / "two", upstream.url)
    try:
        assert trusting.call("Echo").reason is None
        assert strict.call("Echo").reason == "NoSession"
        assert (upstream.logins, len(upstream.seen)) == (1, 1)
    finally:
        assert [gateway.end() for gateway in (trusting, strict)] == [0, 0]
        upstream.end()
    assert "the upstream cannot be reached: ConnectError" in strict.log.read_text()


# -- settings


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--upstream", "nonsense"), "upstream"),
        (("--upstream", "http://192.0.2.1/soap"), "in the clear"),
        (("--login-operation", "{urn:x}A", "--login-url", "http://127.0.0.1:1/"), "one of them"),
        ((), "one of them is needed"),
        (("--login-operation", "{urn:x}not a name"), "login-operation"),
        (("--login-operation", "A", "--timeout", "60s"), "shorter than the lease"),
        (("--login-operation", "A", "--timeout", "never"), "timeout"),
        (("--login-operation", "A", "--expired-fault", "Gone"), "NAME=TEXT"),
        (("--login-operation", "A", "--listen", "0.0.0.0:0"), "in the clear"),
        (("--login-operation", "A", "--password-file", "/nonexistent"), "password-file"),
        (("--login-operation", "A", "--upstream-ca-file", "/nonexistent"), "upstream-ca-file"),
        (("--login-operation", "A", "--store", "redis://127.0.0.1:1/0"), "key"),
    ],
)
def test_wrong_settings_end_it_with_one_line(tmp_path: Path, arguments: tuple[str, ...], words: str) -> None:
    token = tmp_path / "token"
    token.write_text(BEARER)
    token.chmod(0o600)
    command = ["pool", "soap-gateway", "--listen", "127.0.0.1:0", "--token-file", str(token), "--user", "SADMIN"]
    ended = run_coatcheck(*command, "--upstream", "http://127.0.0.1:1/soap", *arguments)
    assert ended.returncode == 2
    assert words in ended.stderr and ended.stderr.startswith("coatcheck: ") and ended.stderr.count("\n") == 1
