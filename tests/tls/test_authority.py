"""``coatcheck certs``: OpenSSL at its strictest takes what it makes, and servers of a farm know each other by it."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from coatcheck.errors import ConfigError
from coatcheck.tls.authority import Authority
from ports import free_port

from .farm import PATIENCE_S, TLS_1_3, Client, Server


def run(folder: Path, *words: str, code: int = 0) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "coatcheck.cli", "certs", *words], cwd=folder, capture_output=True, text=True,
        timeout=PATIENCE_S, check=False,
    )  # fmt: skip
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == (code != 0)
    return done.stdout + done.stderr


def openssl(folder: Path, *words: str) -> str:
    done = subprocess.run(["openssl", *words], cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    return done.stdout + done.stderr


def test_openssl_takes_what_was_issued_until_it_is_revoked(tmp_path: Path) -> None:
    run(tmp_path, "init", "--name", "shop")
    run(tmp_path, "issue", "web-1", "--address", "10.0.0.1")
    run(tmp_path, "issue", "web-2", "--lifetime", "30d")
    strict = ("verify", "-x509_strict", "-crl_check", "-CAfile", "certs/authority.pem", "-CRLfile", "certs/revoked.pem")
    for name in ("web-1", "web-2"):
        assert f"certs/{name}.pem: OK" in openssl(tmp_path, *strict, f"certs/{name}.pem")
    shown = openssl(tmp_path, "x509", "-in", "certs/web-1.pem", "-noout", "-ext", "subjectAltName,basicConstraints")
    assert "DNS:web-1, IP Address:10.0.0.1" in shown
    assert "CA:FALSE" in shown
    assert "1 revoked" in run(tmp_path, "revoke", "web-2")
    assert "certificate revoked" in openssl(tmp_path, *strict, "certs/web-2.pem")
    assert "certs/web-1.pem: OK" in openssl(tmp_path, *strict, "certs/web-1.pem")
    rows = json.loads(run(tmp_path, "ls", "--json"))
    assert [(row["name"], row["revoked"]) for row in rows] == [("web-1", False), ("web-2", True)]
    run(tmp_path, "issue", "web-2")
    assert "certs/web-2.pem: OK" in openssl(tmp_path, *strict, "certs/web-2.pem"), "a new one, of the same name"


def test_keys_are_for_their_owner_alone(tmp_path: Path) -> None:
    authority = Authority.make(tmp_path / "certs", "farm")
    authority.issue("web-1")
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "certs").iterdir()}
    assert modes == {
        "authority.key": 0o600, "authority.pem": 0o644, "issued.json": 0o600, "revoked.pem": 0o644, "web-1.pem": 0o600,
    }  # fmt: skip


def test_servers_give_each_other_their_sessions_by_it(tmp_path: Path, certificates: Path) -> None:
    authority = Authority.make(tmp_path / "certs", "farm")
    where = {name: f"127.0.0.1:{free_port()}" for name in ("web-1", "web-2")}
    running = []
    try:
        for name in where:
            peers = {
                "listen": where[name], "servers": where, "certificate": str(authority.issue(name)),
                "authority": str(tmp_path / "certs/authority.pem"), "revoked": str(tmp_path / "certs/revoked.pem"),
            }  # fmt: skip
            running.append(Server(certificates, name, peers))
        one, other = running
        client = Client(certificates, TLS_1_3)
        client.visit(one)
        assert client.visit(other)["reused"]
        session = client.session
        authority.revoke("web-1")
        other.wait_for(lambda status: status["stores"]["web-1"] is True)
        one.wait_for(lambda status: status["stores"]["web-2"] is False)
        assert not client.visit(one, session=session)["reused"], "it is asked for, and no longer given"
    finally:
        for server in running:
            server.stop()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["issue", "web-1"], "begin with: coatcheck certs init"),
        (["init", "--lifetime", "0"], "days"),
        (["init", "--name", "a b"], "farm"),
        (["revoke", "web-1"], "begin with"),
        (["ls"], "begin with"),
    ],
)
def test_what_cannot_be_is_one_clear_line(words: list[str], said: str, tmp_path: Path) -> None:
    assert said in run(tmp_path, *words, code=2)


def test_an_authority_is_never_written_over(tmp_path: Path) -> None:
    run(tmp_path, "init")
    before = (tmp_path / "certs/authority.key").read_bytes()
    assert "already" in run(tmp_path, "init", code=2)
    assert (tmp_path / "certs/authority.key").read_bytes() == before
    for wrong in ("authority", "revoked", "../x", ""):
        assert run(tmp_path, "issue", wrong, code=2)
    run(tmp_path, "issue", "web-1", "--address", "nowhere", code=2)
    (tmp_path / "certs/authority.key").write_bytes(b"damaged")
    with pytest.raises(ConfigError, match="certs"):
        Authority(tmp_path / "certs")
