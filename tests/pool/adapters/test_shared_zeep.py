"""A shared token in SOAP headers, through zeep's own plugin calls."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import zeep
from lxml import etree

from coatcheck.pool import AsyncTokenPool, TokenPool
from coatcheck.pool.adapters.zeep import AsyncZeepSessions, SessionPlugin, ZeepSessions
from coatcheck.pool.soap.session_headers import SESSION_NS
from coatcheck.pool.soap.versions import SOAP_11


class Service:
    """An operation that zeep's plugin has put a token into; it takes any live one, from many callers at once."""

    def __init__(self, plugin: SessionPlugin) -> None:
        self.plugin = plugin
        self.live: set[str] = set()
        self.logins = 0

    def login(self, user: str) -> str:
        self.logins += 1
        self.live.add(f"token {self.logins}")
        return f"token {self.logins}"

    def echo(self, text: str) -> str:
        envelope = etree.Element(f"{{{SOAP_11.namespace}}}Envelope")
        self.plugin.egress(envelope, {}, None, {})
        token = envelope.findtext(f"{{{SOAP_11.namespace}}}Header/{{{SESSION_NS}}}SessionToken")
        if token not in self.live:
            detail = etree.Element("detail")
            etree.SubElement(detail, "Reason").text = "TokenInvalid"
            raise zeep.exceptions.Fault("refused", detail=detail)
        answer: Any = etree.Element(f"{{{SOAP_11.namespace}}}Envelope")
        self.plugin.ingress(answer, {}, None)
        return text

    async def echo_async(self, text: str) -> str:
        return self.echo(text)


def test_calls_share_a_token_and_a_refused_one_is_tried_again_once() -> None:
    plugin = SessionPlugin()
    service = Service(plugin)
    with TokenPool(lambda user: service.login(user), per_user=1, wait="30s") as pool:
        sessions = ZeepSessions(plugin, pool, shared=True)
        with sessions.lease("svc") as held, sessions.lease("svc") as other:
            assert held.token == other.token == "token 1"
            assert service.echo("one") == "one"
        service.live.clear()
        assert sessions.call("svc", service.echo, "two") == "two"
        assert service.logins == 2
        calls = []

        def refused(text: str) -> str:
            calls.append(text)
            service.live.clear()
            return service.echo(text)

        with pytest.raises(zeep.exceptions.Fault):
            sessions.call("svc", refused, "three")
        assert len(calls) <= 2


def test_the_same_for_asyncio() -> None:
    plugin = SessionPlugin()
    service = Service(plugin)

    async def main() -> None:
        async with AsyncTokenPool(service.login, per_user=1, wait="30s") as pool:
            sessions = AsyncZeepSessions(plugin, pool, shared=True)
            calls = [sessions.call("svc", service.echo_async, str(number)) for number in range(20)]
            assert await asyncio.gather(*calls) == [str(number) for number in range(20)]
            service.live.clear()
            calls = [sessions.call("svc", service.echo_async, str(number)) for number in range(20)]
            assert await asyncio.gather(*calls) == [str(number) for number in range(20)]

    asyncio.run(main())
    assert service.logins == 2
