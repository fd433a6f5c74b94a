"""The door to OpenSSL opens only where everything was proved, and a refusal leaves the context as it was."""

from __future__ import annotations

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

from coatcheck.errors import ConfigError
from coatcheck.tls import OpenSslRefused, openssl, share_sessions
from coatcheck.tls.openssl import open_door

from .farm import KEY, TLS_1_2, Client


@pytest.fixture(autouse=True)
def fresh_library() -> Iterator[None]:
    openssl._library.cache_clear()
    yield
    openssl._library.cache_clear()


def server_context(certificates: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificates / "server.pem")
    return context


def look(context: ssl.SSLContext) -> tuple[object, ...]:
    return context.options, context.verify_mode, context.num_tickets, tuple(sorted(context.session_stats().items()))


def test_it_opens_here_and_changes_nothing(certificates: Path) -> None:
    context = server_context(certificates)
    before = look(context)
    assert open_door(context)
    assert look(context) == before


class Liar(ssl.SSLContext):
    """What Python shows of it is not what OpenSSL has."""

    lie: dict[str, Any]

    def __getattribute__(self, name: str) -> Any:
        lie = object.__getattribute__(self, "__dict__").get("lie", {})
        return lie[name] if name in lie else super().__getattribute__(name)


@pytest.mark.parametrize(
    ("lie", "word"),
    [
        ({"options": ssl.OP_NO_TLSv1_3}, "options"),
        ({"verify_mode": ssl.CERT_REQUIRED}, "verify mode"),
        ({"num_tickets": 7}, "tickets"),
        ({"session_stats": lambda: {"number": 3}}, "sessions"),
    ],
)
def test_whatever_does_not_fit_is_refused(lie: dict[str, Any], word: str, certificates: Path) -> None:
    context = Liar(ssl.PROTOCOL_TLS_SERVER)
    context.lie = lie
    with pytest.raises(OpenSslRefused, match=word):
        open_door(context)


def test_what_is_set_through_ssl_must_be_seen_through_the_pointer(monkeypatch: pytest.MonkeyPatch) -> None:
    class Deaf(ssl.SSLContext):
        num_tickets = 2  # type: ignore[assignment]

    with pytest.raises(OpenSslRefused, match="not seen"):
        open_door(Deaf(ssl.PROTOCOL_TLS_SERVER))


def test_a_clients_context_is_refused() -> None:
    with pytest.raises(OpenSslRefused, match="server's context"):
        open_door(ssl.create_default_context())


def test_another_version_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch, certificates: Path) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION", "OpenSSL 3.9.9 1 Jan 2031")
    with pytest.raises(OpenSslRefused, match=r"3\.9\.9"):
        open_door(server_context(certificates))


@pytest.mark.parametrize("version", ["LibreSSL 3.8.2", "OpenSSL 1.1.1w  11 Sep 2023", "AWS-LC 1.30.0"])
def test_another_library_is_refused(version: str, monkeypatch: pytest.MonkeyPatch, certificates: Path) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION", version)
    if "1.1.1" in version:
        monkeypatch.setattr(ssl, "OPENSSL_VERSION_NUMBER", 0x1010117F)
    with pytest.raises(OpenSslRefused, match="not OpenSSL"):
        open_door(server_context(certificates))


def test_a_python_that_has_openssl_built_in_is_refused(monkeypatch: pytest.MonkeyPatch, certificates: Path) -> None:
    """Through another module's file no symbol of OpenSSL can be reached."""
    import _ssl

    monkeypatch.setattr(_ssl, "__file__", msgspec._core.__file__)
    with pytest.raises(OpenSslRefused, match="built into this Python"):
        open_door(server_context(certificates))


def test_a_bad_address_is_an_answer_and_no_crash() -> None:
    assert not openssl._is_readable(0x10)
    assert not openssl._is_readable(2**63)
    assert openssl._is_readable(id(open_door))


def test_without_a_door_the_context_serves_as_before_and_a_warning_says_why(
    monkeypatch: pytest.MonkeyPatch, certificates: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(ssl, "OPENSSL_VERSION", "LibreSSL 3.8.2")
    context = server_context(certificates)
    before = look(context)
    with caplog.at_level(logging.WARNING):
        shared = share_sessions(context, store="memory://", server="web-1", keyring=KEY)
    assert not shared.active
    assert "not shared: LibreSSL" in caplog.text
    assert look(context) == before
    client = Client(certificates, TLS_1_2)
    incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
    one = context.wrap_bio(incoming, outgoing, server_side=True)
    other = client.context.wrap_bio(outgoing, incoming, server_hostname="shop.test")
    for side in (other, one, other, one, other):
        try:
            side.do_handshake()
        except ssl.SSLWantReadError:
            continue
    assert one.version() == "TLSv1.2"
    with pytest.raises(OpenSslRefused):
        share_sessions(server_context(certificates), store="memory://", server="web-1", keyring=KEY, required=True)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"store": "memory:///x"}, "session_server"),
        ({"store": []}, "name a store"),
        ({"server": "a b"}, "server"),
        ({"farm": ""}, "farm"),
        ({"keyring": "short"}, "keyring"),
        ({"keyring": 7}, "keyring"),
        ({"lifetime": "8d"}, "lifetime"),
        ({"lifetime": "soon"}, "lifetime"),
        ({"fetch_timeout": "1m"}, "fetch_timeout"),
        ({"siblings": [["a.test", "b.test"], ["b.test"]]}, "siblings"),
        ({"siblings": [["bücher.test"]]}, "siblings"),
    ],
)
def test_a_wrong_argument_is_one_clear_line(arguments: dict[str, Any], word: str, certificates: Path) -> None:
    right = {"store": "memory://", "server": "web-1", "keyring": KEY}
    with pytest.raises(ConfigError, match=word) as raised:
        share_sessions(server_context(certificates), **{**right, **arguments})
    assert "\n" not in str(raised.value)
    assert KEY not in str(raised.value)


def test_what_needs_no_extra_is_had_without_one(certificates: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['hiredis'] = sys.modules['uvloop'] = None\n"
        "import ssl, coatcheck.tls\n"
        "context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)\n"
        "coatcheck.tls.share_sessions(context, store=sys.argv[1], server='web-1', keyring=sys.argv[2], required=True)\n"
        "assert type(coatcheck.tls.new_event_loop()).__name__ == 'Ahead_UnixSelectorEventLoop'\n"
    )
    words = [sys.executable, "-c", code, f"sqlite:///{tmp_path / 'tls.db'}", KEY]
    subprocess.run(words, check=True, timeout=60, env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})


def test_a_context_is_shared_once(certificates: Path) -> None:
    context = server_context(certificates)
    shared = share_sessions(context, store="memory://", server="web-1", keyring=KEY)
    with pytest.raises(ConfigError, match="already"):
        share_sessions(context, store="memory://", server="web-1", keyring=KEY)
    shared.close()
