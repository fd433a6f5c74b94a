"""Which way ``server_context`` goes, and that a stand-in is refused where it was not proved."""

from __future__ import annotations

import ctypes
import logging
import os
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec._core
import pytest

from coatcheck.tls import OpenSslRefused, openssl, server_context, share_sessions, share_ticket_keys
from coatcheck.tls.stand_in import StandInContext, certificate, library, proof, stand_in_context
from coatcheck.tls.stand_in.records import RecordEnd

from .farm import KEY, TLS_1_2, TLS_1_3
from .in_memory import Pair, client_context


@pytest.fixture(autouse=True)
def fresh() -> Iterator[None]:
    caches = (openssl._library, library.system_library, proof._prove)
    for cached in caches:
        cached.cache_clear()
    yield
    for cached in caches:
        cached.cache_clear()


@pytest.fixture
def built_in(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a Python that has OpenSSL built in: no symbol of it can be reached."""
    import _ssl

    monkeypatch.setattr(_ssl, "__file__", msgspec._core.__file__)


def look(context: ssl.SSLContext) -> tuple[object, ...]:
    versions = context.minimum_version, context.maximum_version
    ciphers = tuple(one["name"] for one in context.get_ciphers())
    return context.options, context.verify_mode, context.verify_flags, context.num_tickets, versions, ciphers


def test_where_pythons_own_openssl_is_in_reach_it_is_a_plain_context() -> None:
    context = server_context()
    assert type(context) is ssl.SSLContext
    assert look(context) == look(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))


@pytest.mark.usefixtures("built_in")
def test_where_it_is_not_the_systems_stands_in_with_the_same_settings() -> None:
    context = server_context()
    assert isinstance(context, StandInContext)
    assert look(context) == look(ssl.create_default_context(ssl.Purpose.CLIENT_AUTH))


@pytest.mark.usefixtures("built_in")
@pytest.mark.parametrize("version", [TLS_1_2, TLS_1_3])
@pytest.mark.parametrize("tickets", [False, True], ids=["take-once", "ticket-keys"])
def test_its_sessions_are_shared(version: ssl.TLSVersion, tickets: bool, certificates: Path) -> None:
    context = server_context()
    context.load_cert_chain(certificates / "server.pem")
    if tickets:
        shared: Any = share_ticket_keys(context, store="memory://", keyring=KEY, required=True)
    else:
        shared = share_sessions(context, store="memory://", server="web-1", keyring=KEY, required=True)
    client = client_context(certificates, version)
    first = Pair(context, client).shake()
    first.server.write(b"x")
    first.client.read(1)
    session = first.client.session
    resumed = [Pair(context, client, session=session).shake().server.session_reused for _ in range(2)]
    shared.close()
    once = version is TLS_1_3 and not tickets
    assert resumed == [True, not once]


@pytest.mark.usefixtures("built_in")
def test_a_plain_context_there_is_told_of_it(certificates: Path, caplog: pytest.LogCaptureFixture) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    assert not share_sessions(context, store="memory://", server="web-1", keyring=KEY).active
    assert "server_context()" in caplog.text


@pytest.mark.usefixtures("built_in")
def test_where_there_is_none_it_is_a_plain_context_and_a_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(library, "NAME", "libssl-that-nobody-has.so.3")
    with caplog.at_level(logging.WARNING):
        context = server_context()
    assert type(context) is ssl.SSLContext
    assert "built into this Python" in caplog.text
    assert "the system has no libssl-that-nobody-has.so.3" in caplog.text
    context.load_cert_chain(certificates / "server.pem")
    Pair(context, client_context(certificates)).shake()


@pytest.mark.usefixtures("built_in")
def test_a_key_log_that_is_not_written_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("SSLKEYLOGFILE", str(tmp_path / "keys"))
    assert isinstance(server_context(), StandInContext)
    assert "SSLKEYLOGFILE" in caplog.text


class Other:
    """A library that says of itself what it is told to."""

    def __init__(self, version: str, number: int = 0x30000000, missing: str = "") -> None:
        self._real = ctypes.CDLL(library.NAME)
        self.OpenSSL_version = lambda which: version.encode()
        self.OpenSSL_version_num = lambda: number
        self._missing = missing

    def __getattr__(self, name: str) -> Any:
        if name == self._missing:
            raise AttributeError(f"undefined symbol: {name}")
        return getattr(self._real, name)


@pytest.mark.parametrize(
    ("other", "word"),
    [
        (("LibreSSL 4.0.0", 0x20000000), "is LibreSSL 4.0.0, not OpenSSL"),
        (("AWS-LC 1.30.0", 0x1010107F), "not OpenSSL"),
        (("OpenSSL 1.1.1w  11 Sep 2023", 0x1010117F), "not OpenSSL 3"),
        (("OpenSSL 4.0.0 1 Apr 2026", 0x40000000), "not OpenSSL 3"),
        (("OpenSSL 3.0.0", 0x30000000, "SSL_CTX_get_num_tickets"), "not complete: .*SSL_CTX_get_num_tickets"),
        (("OpenSSL 3.0.0", 0x30000000, "SSL_read_ex"), "not complete: .*SSL_read_ex"),
    ],
)
def test_another_library_is_refused(other: tuple[Any, ...], word: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = Other(*other)
    monkeypatch.setattr(ctypes, "CDLL", lambda name, mode=0: found)
    with pytest.raises(OpenSslRefused, match=word):
        stand_in_context()


def test_another_python_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    class Other:
        name = "pypy"

    monkeypatch.setattr(sys, "implementation", Other)
    with pytest.raises(OpenSslRefused, match="pypy"):
        stand_in_context()


def test_it_is_proved_by_handshakes_before_it_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    from coatcheck.tls.stand_in.connection import StandInConnection

    monkeypatch.setattr(StandInConnection, "read", lambda self, length, buffer=None: b"something else")
    with pytest.raises(OpenSslRefused, match="not what arrives"):
        stand_in_context()
    monkeypatch.undo()
    monkeypatch.setattr(StandInConnection, "cipher", lambda self: ("another", "TLSv1.3", 256))
    with pytest.raises(OpenSslRefused, match="disagree"):
        stand_in_context()
    monkeypatch.undo()
    monkeypatch.setattr(StandInConnection, "do_handshake", lambda self: StandInConnection.read(self, 1))
    with pytest.raises(OpenSslRefused):
        stand_in_context()
    monkeypatch.undo()
    assert stand_in_context()


def test_a_python_whose_own_part_asks_for_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrap_bio(self: StandInContext, *arguments: Any, **named: Any) -> Any:
        return ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), ssl.MemoryBIO(), server_hostname="x.test")

    monkeypatch.setattr(StandInContext, "wrap_bio", wrap_bio)
    with pytest.raises(OpenSslRefused, match="asks something else"):
        stand_in_context()


@pytest.mark.parametrize("wrong", [{}, {"subject": ((("commonName", "another"),),)}])
def test_a_python_that_does_not_show_certificates_is_refused(
    wrong: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(proof, "shown_certificate", lambda der: wrong)
    with pytest.raises(OpenSslRefused, match="certificate"):
        stand_in_context()
    monkeypatch.setattr(proof, "shown_certificate", certificate.shown_certificate)
    import _ssl

    monkeypatch.delattr(_ssl, "_test_decode_cert")
    with pytest.raises(OpenSslRefused, match="_test_decode_cert"):
        stand_in_context()


def test_it_needs_no_extra(certificates: Path) -> None:
    code = (
        "import sys; sys.modules['hiredis'] = sys.modules['uvloop'] = None\n"
        "import coatcheck.tls.stand_in\n"
        "coatcheck.tls.stand_in.stand_in_context().load_cert_chain(sys.argv[1])\n"
    )
    words = [sys.executable, "-c", code, str(certificates / "server.pem")]
    subprocess.run(words, check=True, timeout=60, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_where_a_record_ends() -> None:
    end = RecordEnd()
    assert end.missing == 5
    assert not end.received(b"\x16\x03")
    assert end.missing == 3
    assert not end.received(b"\x01\x01\x02")
    assert end.missing == 0x102
    assert not end.received(bytes(0x100))
    assert end.missing == 2
    assert end.received(bytes(2))
    assert end.missing == 5
    assert end.received(b"\x17\x03\x03\x00\x00"), "an empty one"
    assert end.missing == 5
