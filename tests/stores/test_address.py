"""URLs of networked stores."""

from __future__ import annotations

import ssl

import pytest

from coatcheck.errors import ConfigError
from coatcheck.stores.address import StoreAddress, parse_url


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("redis://127.0.0.1", StoreAddress(host="127.0.0.1", port=6379)),
        ("valkey://h:7000?db=2", StoreAddress(host="h", port=7000, db=2)),
        ("redis://h/5", StoreAddress(host="h", db=5)),
        ("redis://h/5?db=5", StoreAddress(host="h", db=5)),
        ("redis://:p%40ss%2F@h", StoreAddress(host="h", password="p@ss/")),
        ("redis://me:secret@[::1]:7001", StoreAddress(host="::1", port=7001, username="me", password="secret")),
        ("unix:///run/v.sock?db=1", StoreAddress(path="/run/v.sock", db=1)),
        ("unix://me:secret@/run/v.sock", StoreAddress(path="/run/v.sock", username="me", password="secret")),
    ],
)
def test_forms(url: str, address: StoreAddress) -> None:
    assert parse_url(url) == address


def test_tls_schemes_verify_certificates_unless_told_otherwise() -> None:
    for scheme in ("rediss", "valkeys"):
        tls = parse_url(f"{scheme}://h").tls
        assert tls is not None
        assert tls.verify_mode is ssl.CERT_REQUIRED
        assert tls.check_hostname
    own = ssl.create_default_context()
    assert parse_url("rediss://h", own).tls is own


@pytest.mark.parametrize(
    "url",
    [
        "", "h:6379", "http://h", "redis://", "redis://:secret@", "unix://", "redis://h:port", "redis://h:99999",
        "redis://h/x", "redis://h?db=x", "redis://h/1?db=2", "redis://h?timeout=3", "redis://h?db=-1",
        "redis://me:secret@[::1", "redis://h?db=%D9%A1", "redis://h?db=9999999",
    ],
)  # fmt: skip
def test_bad_forms_get_one_line_without_secrets(url: str) -> None:
    with pytest.raises(ConfigError) as refused:
        parse_url(url)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_tls_context_needs_a_tls_scheme() -> None:
    with pytest.raises(ConfigError, match="rediss"):
        parse_url("redis://h", ssl.create_default_context())


def test_the_password_is_never_shown() -> None:
    address = parse_url("redis://me:secret@h")
    assert "secret" not in f"{address} {address!r}"
