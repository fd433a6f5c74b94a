"""A put to several session servers is encoded once, and each gets what it would have got alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck import resp
from coatcheck.errors import CorruptEntry
from coatcheck.replication.entry import KEY_BYTES, MAX_ENTRY_BYTES, Entry
from coatcheck.replication.version import OWNER_BYTES, Version
from coatcheck.stores.put_requests import PutRequests, put_requests

HEAD = b"*5\r\n$6\r\nCC.PUT\r\n$16\r\n"
NOTIFYING = b"*6\r\n$6\r\nCC.PUT\r\n$16\r\n"
keys = st.binary(min_size=KEY_BYTES, max_size=KEY_BYTES)
numbers = st.integers(0, 2**32 - 1)
versions = st.builds(Version, numbers, st.binary(min_size=OWNER_BYTES, max_size=OWNER_BYTES), numbers)
entries = st.builds(Entry, versions, st.tuples(versions), st.booleans(), st.integers(1, 10**9), st.binary(max_size=40))
puts = st.tuples(keys, st.none() | versions, entries)


def in_full(key: bytes, seen: Version | None, new: Entry, notify: bytes = b"") -> bytes:
    saw = seen if seen is not None else b""
    return resp.command(b"CC.PUT", key, saw, b"%d" % new.expires_in_ms, new.encode(), *([notify] if notify else []))


@given(st.lists(puts, min_size=1, max_size=4), st.data())
def test_the_request_is_the_same_as_if_each_were_encoded_alone(offered: list[tuple], data: st.DataObject) -> None:  # type: ignore[type-arg]
    requests = PutRequests(HEAD, NOTIFYING, b"")
    for _ in range(8):
        key, seen, new = (data.draw(st.sampled_from([put[part] for put in offered])) for part in range(3))
        notify = data.draw(st.sampled_from([b"", b"abc", b"abcdef"]))
        assert requests.encode(key, seen, new, notify) == in_full(key, seen, new, notify)


def test_it_is_encoded_once_for_all_that_are_asked_in_the_same_words() -> None:
    requests = put_requests(HEAD, NOTIFYING, b"")
    assert put_requests(HEAD, NOTIFYING, b"") is requests
    entry = Entry(Version(1, b"o" * 8, 1), (), False, 1000, b"p")
    first = requests.encode(b"k" * 16, None, entry)
    assert requests.encode(b"k" * 16, None, entry) is first
    assert requests.encode(b"k" * 16, entry.version, entry) != first


def test_what_no_store_would_take_is_refused() -> None:
    requests = put_requests(HEAD, NOTIFYING, b"")
    entry = Entry(Version(1, b"o" * 8, 1), (), False, 1000, bytes(MAX_ENTRY_BYTES))
    with pytest.raises(CorruptEntry, match="at most"):
        requests.encode(b"k" * 16, None, entry)
    with pytest.raises(ValueError, match="16"):
        requests.encode(b"k", None, Entry(Version(1, b"o" * 8, 1), (), False, 1000, b""))
