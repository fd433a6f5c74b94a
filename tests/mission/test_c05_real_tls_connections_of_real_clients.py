"""C5: "It works for real TLS connections of real clients." """

from __future__ import annotations

from pathlib import Path

import pytest

from tls.farm import VERSIONS, Servers
from tls.test_real_clients import s_client


@pytest.mark.parametrize("mode", ["threads", "asyncio", "uvloop"])
@pytest.mark.parametrize("version", VERSIONS)
def test_openssls_own_client_resumes_at_another_process(
    mode: str, version: str, certificates: Path, redis_url: str, servers: Servers, tmp_path: Path
) -> None:
    one, other = servers(redis_url, mode)
    session = str(tmp_path / "session.pem")
    assert "\nNew, " in s_client(certificates, one.port, version, "-sess_out", session)
    one.settle()
    said = s_client(certificates, other.port, version, "-sess_in", session)
    assert "\nReused, " in said
    assert '"server": "web-2", "reused": true' in said
