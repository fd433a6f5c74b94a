"""The headers of device bound sessions, as browsers write them and as they could be written to hurt us."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from coatcheck.device.headers import (
    MAX_HEADER_BYTES,
    MAX_SKIPPED,
    Skipped,
    challenge_for,
    read_item,
    read_skipped,
    registration,
    the_only,
)

BROWSER = json.loads((Path(__file__).parent / "browser.json").read_text())


def test_what_we_write() -> None:
    assert registration("/a/.coatcheck/device/register", "c-_1") == (
        b"secure-session-registration",
        b'(ES256 RS256);path="/a/.coatcheck/device/register";challenge="c-_1"',
    )
    assert challenge_for("c", 'i"\\d') == (b"secure-session-challenge", b'"c";id="i\\"\\\\d"')
    for text in ("caf\u00e9", "a\nb", "\x7f"):
        with pytest.raises(ValueError, match="printable ASCII"):
            challenge_for(text, "id")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (BROWSER["session"].encode(), BROWSER["session"]),
        (BROWSER["refresh"]["proof"].encode(), BROWSER["refresh"]["proof"]),
        (b'"a.b.c"', "a.b.c"), (b' "a"; x=1;y="2"; z ', "a"), (b'"a \\" \\\\"', 'a " \\'), (b"a;q=1", "a"), (b'""', ""),
        (b"", None), (b'"a', None), (b'a"', None), (b'"a\\x"', None), (b'"a", "b"', None), (b"a, b", None),
        (b"(a b)", None),
        (b'"caf\xc3\xa9"', None), (b"a\x00", None), (b"a b", None), (b"a;", None), (b"a;=1", None), (b"a;x=", None),
        (None, None),
        (b'"' + b"a" * MAX_HEADER_BYTES + b'"', None),
    ],
)  # fmt: skip
def test_items_are_strings_or_bare(value: bytes | None, text: str | None) -> None:
    assert read_item(value) == text


def test_what_a_browser_has_skipped() -> None:
    assert read_skipped(BROWSER["skipped"].encode()) == (Skipped("quota_exceeded", BROWSER["session"]),)
    value = b'unreachable;session_identifier=123 ,\tquota_exceeded;x; session_identifier="a b", server_error'
    assert read_skipped(value) == (
        Skipped("unreachable", "123"),
        Skipped("quota_exceeded", "a b"),
        Skipped("server_error", ""),
    )


@pytest.mark.parametrize(
    "value",
    [b"", b",", b"a,", b",a", b"a b", b"a;session_identifier", b"a;session_identifier=", b"(a)", b"a;;b", b"\xff"],
)  # fmt: skip
def test_what_is_malformed_says_nothing(value: bytes) -> None:
    assert [one for one in read_skipped(value) if one.session] == []


def test_what_is_too_much_is_not_read() -> None:
    assert len(read_skipped(b", ".join([b"a"] * 1000))) == MAX_SKIPPED
    assert read_skipped(b"a, " * MAX_HEADER_BYTES) == ()
    assert read_item(b'"' + b"\\" * 8000) is None


def test_a_header_that_stands_twice_is_none() -> None:
    headers = [(b"a", b"1"), (b"b", b"2"), (b"b", b"3")]
    assert [the_only(headers, name) for name in (b"a", b"b", b"c")] == [b"1", None, None]
