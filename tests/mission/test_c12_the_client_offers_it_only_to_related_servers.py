"""C12: "Client side: it offers the identifier only to servers whose address is related to the one that holds the
session." """

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tls.farm import HOST, OTHER_HOST, RELATED_HOST, Servers
from tls.test_client import Balanced, by_http_client, context_of


@pytest.mark.parametrize("related", [["shop.test"], []], ids=["related", "not said"])
def test_a_related_host_is_offered_it_if_its_user_says_so(
    related: list[str], certificates: Path, servers: Servers, redis_url: str
) -> None:
    """The certificate covers both names; only the user can say that they belong together."""
    one, other = servers(redis_url, "threads", siblings=[[HOST, RELATED_HOST]])
    balanced = Balanced([one, other])
    context = context_of(certificates, ssl.TLSVersion.TLSv1_3, related=related)
    by_http_client(context, balanced.port, HOST)
    one.settle()
    assert by_http_client(context, balanced.port, RELATED_HOST)["reused"] is bool(related)
    assert not by_http_client(context, balanced.port, OTHER_HOST)["reused"]
    assert context.counts.offered == len(related)
    balanced.close()
