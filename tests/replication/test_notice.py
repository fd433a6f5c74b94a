"""Messages between web servers: a fixed form, anything else is refused."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.errors import CorruptEntry
from coatcheck.replication.notice import ClaimAnswer, Notice, decode_message
from coatcheck.replication.version import Version

NUMBERS = st.integers(0, 2**32 - 1)
VERSIONS = st.builds(Version, NUMBERS, st.binary(min_size=8, max_size=8), NUMBERS)
KEYS = st.binary(min_size=16, max_size=16)
MESSAGES = st.one_of(st.builds(Notice, KEYS, VERSIONS, st.booleans()), st.builds(ClaimAnswer, KEYS, VERSIONS, NUMBERS))
NOTICE = Notice(b"k" * 16, Version(1, b"serverAA", 2), True).encode()
ANSWER = ClaimAnswer(b"k" * 16, Version(1, b"serverAA", 2), 1500).encode()


@given(MESSAGES)
def test_round_trip(message: Notice | ClaimAnswer) -> None:
    assert decode_message(message.encode()) == message


BENT = {
    "empty": b"",
    "notice cut": NOTICE[:-1],
    "notice longer": NOTICE + b"\x00",
    "answer cut": ANSWER[:-1],
    "answer longer": ANSWER + b"\x00",
    "an answer's kind, a notice's size": b"\x02" + NOTICE[1:],
    "a notice's kind, an answer's size": b"\x01" + ANSWER[1:],
    "zeros": bytes(len(NOTICE)),
}


@pytest.mark.parametrize("raw", BENT.values(), ids=BENT.keys())
def test_anything_else_is_corrupt(raw: bytes) -> None:
    with pytest.raises(CorruptEntry, match=f"{len(raw)} bytes"):
        decode_message(raw)


@given(st.binary(max_size=60))
def test_any_bytes_are_corrupt_or_a_message(raw: bytes) -> None:
    try:
        message = decode_message(raw)
    except CorruptEntry:
        return
    assert isinstance(message, Notice | ClaimAnswer)
