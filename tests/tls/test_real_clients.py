"""OpenSSL's own client and curl resume sessions across two server processes, each in its own way."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from .farm import HOST, PATIENCE_S, VERSIONS, Balancer, Servers

MODES = ["threads", "uvloop", "stand-in-threads", "stand-in-uvloop"]
REQUEST = b"GET / HTTP/1.1\r\nHost: shop.test\r\nConnection: close\r\n\r\n"


def s_client(certificates: Path, port: int, version: str, *options: str) -> str:
    """What ``openssl s_client`` says of a connection."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{port}", "-servername", HOST, "-ign_eof"]
    command += ["-verify_return_error", "-CAfile", str(certificates / "ca.pem"), f"-tls{version.replace('.', '_')}"]
    done = subprocess.run([*command, *options], input=REQUEST, capture_output=True, timeout=PATIENCE_S, check=False)
    said = done.stdout.decode("utf-8", "replace")
    assert '"version"' in said, said + done.stderr.decode("utf-8", "replace")
    return said


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", VERSIONS)
def test_openssl_resumes_at_another_server_with_a_session_from_a_file(
    mode: str, version: str, certificates: Path, redis_url: str, servers: Servers, tmp_path: Path
) -> None:
    one, other = servers(redis_url, mode)
    session, next_session = tmp_path / "session.pem", tmp_path / "next.pem"
    assert "\nNew, " in s_client(certificates, one.port, version, "-sess_out", str(session))
    one.settle()
    kept = session.read_bytes()
    said = s_client(certificates, other.port, version, "-sess_in", str(session), "-sess_out", str(next_session))
    assert "\nReused, " in said
    assert '"server": "web-2", "reused": true' in said
    other.settle()
    session.write_bytes(kept)
    again = s_client(certificates, one.port, version, "-sess_in", str(session))
    if version == "1.3":
        assert "\nNew, " in again, "it was taken"
        assert "\nReused, " in s_client(certificates, one.port, version, "-sess_in", str(next_session))
    else:
        assert "\nReused, " in again, "it moved, and moves again"


@pytest.mark.parametrize("mode", MODES)
def test_a_handshake_that_is_asked_for_another_key_share_ends_well(
    mode: str, certificates: Path, redis_url: str, servers: Servers, tmp_path: Path
) -> None:
    """HelloRetryRequest (RFC 8446 section 4.1.4): the client offers its session a second time."""
    one, other = servers(redis_url, mode, curve="secp384r1")
    session = tmp_path / "session.pem"
    groups = ("-groups", "X25519:P-384")
    assert "\nNew, " in s_client(certificates, one.port, "1.3", *groups, "-sess_out", str(session))
    one.settle()
    said = s_client(certificates, other.port, "1.3", *groups, "-sess_in", str(session))
    assert "\nReused, " in said


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("version", VERSIONS)
def test_curl_resumes_behind_a_balancer_that_takes_turns(
    mode: str, version: str, certificates: Path, redis_url: str, servers: Servers
) -> None:
    curl = shutil.which("curl")
    assert curl is not None, "curl is missing: apt-get install curl"
    running = servers(redis_url, mode)
    balancer = Balancer([server.port for server in running])
    try:
        where = f"https://{HOST}:{balancer.port}/"
        command = [curl, "--silent", "--show-error", "--no-keepalive", "--rate", "60/s", "--http1.1"]
        command += ["--cacert", str(certificates / "ca.pem"), "--resolve", f"{HOST}:{balancer.port}:127.0.0.1"]
        command += [f"--tlsv{version}", "--tls-max", version, "--write-out", "\n", *[where] * 4]
        done = subprocess.run(command, capture_output=True, text=True, timeout=2 * PATIENCE_S, check=False)
        assert done.returncode == 0, done.stderr
        lines = [line for line in done.stdout.splitlines() if line]
        assert [f'"server": "web-{at % 2 + 1}"' in line for at, line in enumerate(lines)] == [True] * 4
        assert ['"reused": true' in line for line in lines] == [False, True, True, True]
    finally:
        balancer.close()
