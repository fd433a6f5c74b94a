"""C11: "Client side: the client sends its identifier to a server that has no such session, reads from the response
whether it was accepted, and negotiates if not." """

from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tls.farm import HOST, VERSIONS, Servers
from tls.test_client import Balanced, by_http_client, context_of


@pytest.mark.parametrize("version", VERSIONS.values(), ids=VERSIONS)
def test_a_server_that_has_it_not_itself_accepts_it(
    version: ssl.TLSVersion, certificates: Path, servers: Servers, redis_url: str
) -> None:
    one, other = servers(redis_url, "threads")
    balanced = Balanced([one, other])
    context = context_of(certificates, version)
    first = by_http_client(context, balanced.port, HOST)
    one.settle()
    again = by_http_client(context, balanced.port, HOST)
    assert (first["reused"], again["reused"]) == (False, True)
    assert first["server"] != again["server"]
    assert (context.counts.offered, context.counts.accepted) == (1, 1)
    balanced.close()


def test_a_session_that_the_server_has_not_is_negotiated_anew(
    certificates: Path, servers: Servers, redis_url: str
) -> None:
    """Two servers that share nothing: offered, refused, and made anew."""
    one, _ = servers(redis_url, "threads")
    stranger, _ = servers(redis_url, "threads", farm="another")
    balanced = Balanced([one, stranger])
    context = context_of(certificates, ssl.TLSVersion.TLSv1_3)
    answers = [by_http_client(context, balanced.port, HOST) for _ in range(4)]
    assert not any(answer["reused"] for answer in answers)
    assert (context.counts.offered, context.counts.accepted, context.counts.kept) == (3, 0, 4)
    balanced.close()
