"""The one parser of URLs, for session servers and pools, and the one of durations; no password is ever told."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coatcheck.duration import format_duration, parse_duration
from coatcheck.pool.stores.address import SCHEMES as POOL_SCHEMES
from coatcheck.stores.session_server_url import SCHEMES as SESSION_SCHEMES
from coatcheck.url import StoreUrl, parse_store_url

SECRET = "hunter2"
ALL = tuple(sorted({*SESSION_SCHEMES, *POOL_SCHEMES}))
TEXT = st.text(max_size=30)
URLS = st.one_of(
    st.builds(
        lambda scheme, user, at, path, query: f"{scheme}://{user}:{SECRET}@{at}{path}{query}",
        st.sampled_from([*ALL, "http", ""]), TEXT, TEXT, TEXT, st.sampled_from(["", "?db=3", "?db=x", "?x=1", "#f"]),
    ),
    TEXT,
    st.from_regex(r"\A(redis|unix|sqlite|memory|coatcheck)://[a-z:@/\[\].?=0-9%-]{0,20}\Z"),
)  # fmt: skip


@pytest.mark.parametrize(
    ("url", "parts"),
    [
        ("redis://h", StoreUrl(scheme="redis", host="h")),
        ("rediss://:p%40%2F@h:7000/3", StoreUrl(scheme="rediss", host="h", port=7000, password="p@/", database=3)),
        ("valkeys://me:pw@[::1]", StoreUrl(scheme="valkeys", host="::1", username="me", password="pw")),
        ("unix:///run/a%20b.sock?db=1", StoreUrl(scheme="unix", path="/run/a b.sock", database=1)),
        ("sqlite:///sessions.db", StoreUrl(scheme="sqlite", path="sessions.db")),
        ("sqlite:////var/lib/a%3F.db", StoreUrl(scheme="sqlite", path="/var/lib/a?.db")),
        ("memory://", StoreUrl(scheme="memory")),
        ("coatcheck://:pw@127.0.0.1:9", StoreUrl(scheme="coatcheck", host="127.0.0.1", port=9, password="pw")),
    ],
)
def test_forms(url: str, parts: StoreUrl) -> None:
    assert parse_store_url(url, ALL) == parts
    assert parse_store_url(url, ALL).password == "" or parse_store_url(url, ALL).password not in str(parts)


@pytest.mark.parametrize(
    "url",
    [
        5, None, "", "h:6379", "redis://", "redis:// h", "redis://h\n", "redis://h:0", "redis://h:x", "redis://[::1",
        "redis://h/x", "redis://h/1?db=2", "redis://h?timeout=3", "redis://h#x", "unix://", "unix://host/x", "sqlite://",
        "sqlite:////", "sqlite://host/x", "sqlite:///x?mode=ro", "sqlite:///a%00b", "memory://x", "memory:///x",
        "http://h", "redis://" + "h" * 5000,
    ],
)  # fmt: skip
def test_what_is_no_url(url: object) -> None:
    with pytest.raises(ValueError, match=r"\w") as refused:
        parse_store_url(url, ALL)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


@settings(max_examples=500, deadline=None)
@given(URLS)
def test_fuzz_a_url_is_read_or_refused_and_never_tells_its_password(url: str) -> None:
    try:
        parts = parse_store_url(url, ALL)
    except ValueError as error:
        assert SECRET not in str(error)
        assert "\n" not in str(error)
        return
    assert f":{SECRET}@" not in f"{parts} {parts!r}"
    assert parts.scheme in ALL


@settings(max_examples=300, deadline=None)
@given(st.one_of(TEXT, st.integers(), st.floats(), st.none(), st.booleans(), st.timedeltas(), st.lists(TEXT)))
def test_fuzz_a_duration_is_seconds_or_refused(value: object) -> None:
    try:
        seconds = parse_duration(value)
    except ValueError as error:
        assert "duration" in str(error)
        return
    assert math.isfinite(seconds)
    assert seconds >= 0


@given(st.integers(0, 10**9))
def test_a_duration_as_it_is_shown_is_read_back(milliseconds: int) -> None:
    assert parse_duration(format_duration(milliseconds / 1000)) == pytest.approx(milliseconds / 1000, rel=1e-5)
    assert parse_duration(timedelta(milliseconds=milliseconds)) == pytest.approx(milliseconds / 1000)
