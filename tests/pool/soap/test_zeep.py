"""A real SOAP client, sync and async, made from the WSDL alone."""

from __future__ import annotations

import asyncio

import httpx
import pytest
import zeep
from lxml import etree
from zeep.exceptions import Fault
from zeep.plugins import HistoryPlugin
from zeep.transports import AsyncTransport

from coatcheck.soap_provider import SERVICE_NS, SESSION_NS

from .provider_process import ProviderProcess


def blocks(**headers: str) -> list[etree._Element]:
    made = []
    for name, value in headers.items():
        element = etree.Element(f"{{{SESSION_NS}}}{name}")
        element.text = value
        made.append(element)
    return made


PORTS = pytest.mark.parametrize("port", ["ProviderPort", "ProviderPort12"], ids=["SOAP 1.1", "SOAP 1.2"])


@PORTS
def test_every_operation_of_the_wsdl_works(provider: ProviderProcess, port: str) -> None:
    client = zeep.Client(provider.wsdl)
    service = client.bind("ProviderService", port)
    signed_in = blocks(SessionType="None", UsernameToken="SADMIN", PasswordText="secret")
    assert service.Echo("Grüße <&>") == "Grüße <&>"
    assert service.SlowEcho(text="x", delayMs=10) == "x"
    assert service.WhoAmI()["username"] == "anonymous"
    assert service.UpdateAccount(name="z", note="n", _soapheaders=signed_in) == 0
    found = service.QueryAccount("z", _soapheaders=signed_in)
    assert (found["note"], found["committed"]) == ("n", True)
    operations = next(iter(client.wsdl.services.values())).ports[port].binding.all()
    assert set(operations) == {"Echo", "SlowEcho", "WhoAmI", "QueryAccount", "UpdateAccount", "Logout"}


@PORTS
def test_zeep_reads_tokens_and_faults(provider: ProviderProcess, port: str) -> None:
    history = HistoryPlugin()
    client = zeep.Client(provider.wsdl, plugins=[history])
    service = client.bind("ProviderService", port)
    service.Echo("in", _soapheaders=blocks(SessionType="Stateless", UsernameToken="ANN", PasswordText="word"))
    token = history.last_received["envelope"].findtext(f".//{{{SESSION_NS}}}SessionToken")
    me = service.WhoAmI(_soapheaders=blocks(SessionType="Stateless", SessionToken=token))
    assert (me["username"], me["requests"]) == ("ANN", 2)
    assert service.Logout(_soapheaders=blocks(SessionToken=token)) is None
    with pytest.raises(Fault, match="none of ours") as refused:
        service.WhoAmI(_soapheaders=blocks(SessionToken=token[:-4] + "AAAA"))
    assert refused.value.detail.findtext(f"{{{SERVICE_NS}}}Reason") == "TokenInvalid"


def test_zeep_async(provider: ProviderProcess) -> None:
    async def run() -> list[str]:
        async with httpx.AsyncClient() as http:
            with httpx.Client() as wsdl:
                client = zeep.AsyncClient(provider.wsdl, transport=AsyncTransport(client=http, wsdl_client=wsdl))
                return await asyncio.gather(*(client.service.Echo(str(n)) for n in range(10)))

    assert asyncio.run(run()) == [str(n) for n in range(10)]
