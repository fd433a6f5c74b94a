"""Clients of the real provider for part D: zeep and plain httpx, with a pool and without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any
from xml.sax.saxutils import escape

import httpx
import zeep
from lxml import etree

from coatcheck.pool import TokenPool
from coatcheck.pool.adapters.httpx import PoolAuth
from coatcheck.pool.adapters.zeep import SessionHeaders, SessionPlugin, ZeepSessions
from coatcheck.soap_provider import LOG_IN_REASONS, SERVICE_NS, SESSION_NS

SOAP = "http://schemas.xmlsoap.org/soap/envelope/"
PASSWORD = "secret"
TOKEN_HERE = b"@token@"


@dataclass(frozen=True)
class Answer:
    """A response of the provider, read by hand."""

    token: str | None
    reason: str | None
    username: str | None
    session: str | None


def envelope(headers: dict[str, str], operation: str = "WhoAmI") -> bytes:
    """An envelope by hand."""
    blocks = "".join(f'<{name} xmlns="{SESSION_NS}">{escape(value)}</{name}>' for name, value in headers.items())
    return (
        f'<e:Envelope xmlns:e="{SOAP}"><e:Header>{blocks}</e:Header>'
        f'<e:Body><{operation} xmlns="{SERVICE_NS}"/></e:Body></e:Envelope>'
    ).encode()


def read(response: httpx.Response) -> Answer:
    """What is in the answer's envelope."""
    root = etree.fromstring(response.content)
    return Answer(
        root.findtext(f"{{{SOAP}}}Header/{{{SESSION_NS}}}SessionToken"),
        root.findtext(f".//{{{SERVICE_NS}}}Reason"),
        root.findtext(f".//{{{SERVICE_NS}}}username"),
        root.findtext(f".//{{{SERVICE_NS}}}session"),
    )


def ask(url: str, operation: str = "WhoAmI", **headers: str) -> Answer:
    """One request by hand."""
    content_type = {"Content-Type": "text/xml; charset=utf-8"}
    return read(httpx.post(url, content=envelope(headers, operation), headers=content_type, timeout=20))


def put_token(request: httpx.Request, token: str) -> httpx.Request:
    """The request with the token where the envelope has room for it."""
    content = request.content.replace(TOKEN_HERE, token.encode())
    return httpx.Request(request.method, request.url, content=content, headers={"Content-Type": "text/xml"})


class HttpxCaller:
    """Calls WhoAmI with httpx and envelopes by hand; the adapter puts the tokens in."""

    def __init__(self, url: str, user: str, pool: TokenPool | None = None, **options: Any) -> None:
        self.pool = pool or TokenPool(**{"login": lambda user: self._sign_in(url, user), **options})
        auth = PoolAuth(
            self.pool,
            user,
            apply=put_token,
            extract=lambda response: read(response).token,
            is_expired=lambda response: read(response).reason in LOG_IN_REASONS,
            read_body=True,
        )
        self._url = url
        self._client = httpx.Client(auth=auth, timeout=20)

    def _sign_in(self, url: str, user: str) -> str:
        answer = ask(url, SessionType="Stateless", UsernameToken=user, PasswordText=PASSWORD)
        assert answer.token is not None
        return answer.token

    def call(self) -> Answer:
        content = envelope({"SessionType": "Stateless", "SessionToken": TOKEN_HERE.decode()})
        return read(self._client.post(self._url, content=content))

    def close(self) -> None:
        self._client.close()
        self.pool.close()


class ZeepCaller:
    """Calls WhoAmI with zeep; the plugin puts the tokens in."""

    def __init__(
        self, url: str, user: str, session_type: str = "Stateless", pool: TokenPool | None = None, **options: Any
    ) -> None:
        self.plugin = SessionPlugin(SessionHeaders(session_type))
        self.service = zeep.Client(f"{url}?wsdl", plugins=[self.plugin]).service
        self.pool = pool or TokenPool(**{"login": self.sign_in, **options})
        self.sessions = ZeepSessions(self.plugin, self.pool)
        self.user = user

    def sign_in(self, user: str) -> str:
        return self.plugin.sign_in(self.service.WhoAmI, user, PASSWORD)

    def call(self) -> Answer:
        me = self.sessions.call(self.user, self.service.WhoAmI)
        return Answer(None, None, me["username"], me["session"])

    def close(self) -> None:
        self.pool.close()


CALLERS: dict[str, Callable[..., Any]] = {"httpx": HttpxCaller, "zeep": ZeepCaller}
