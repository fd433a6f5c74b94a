"""Addresses as people write them: one parser, one spelling, one judgement of who can reach them."""

from __future__ import annotations

import pytest

from coatcheck.errors import ConfigError
from coatcheck.host_port import format_host_port, is_loopback, parse_host_port


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8200", ("127.0.0.1", 8200)),
        ("[::1]:70", ("::1", 70)),
        ("[fe80::1%eth0]:1", ("fe80::1%eth0", 1)),
        ("web-1.example.org:65535", ("web-1.example.org", 65535)),
    ],
)
def test_an_address_is_read_and_written(text: str, address: tuple[str, int]) -> None:
    assert parse_host_port(text, "listen") == address
    assert format_host_port(*address) == text


@pytest.mark.parametrize("wrong", ["", ":80", "x", "x:", "x:y", "x:65536", "x:-1", "::1:80", "[::1:80", "x:80 ", "x:٨"])
def test_what_is_no_address_is_refused_in_the_name_of_its_setting(wrong: str) -> None:
    with pytest.raises(ConfigError, match=r"^--listen: an address such as"):
        parse_host_port(wrong, "--listen")


def test_who_can_be_reached_from_this_machine_alone() -> None:
    hosts = ("127.0.0.9", "::1", "localhost", "0.0.0.0", "::", "10.0.0.1", "example.org")
    assert [is_loopback(host) for host in hosts] == [True, True, True, False, False, False, False]
