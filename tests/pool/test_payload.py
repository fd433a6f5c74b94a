"""What belongs to a token beside its string."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.pool import AsyncTokenPool, LoginFailed, SignedIn, TokenPool
from coatcheck.pool.masking import masked
from coatcheck.pool.payload import MARK, MAX_PAYLOAD_BYTES, check_payload, pack, token_of, unpack

KEY = b"0123456789abcdef" * 2
SECRET = "a secret of the payload"
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(
    token=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=50),
    marked=st.booleans(),
    payload=st.none()
    | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=5), JSON, max_size=3),
)
def test_what_is_packed_is_unpacked(token: str, marked: bool, payload: Any) -> None:
    token = MARK + token if marked else token
    try:
        checked = check_payload(payload)
    except ValueError:
        return  # lone surrogates inside
    assert unpack(pack(token, checked)) == (token, checked)
    assert token_of(pack(token, None)) == token


@pytest.mark.parametrize(
    "payload",
    [
        "text",
        {1: "a number as name"},
        {"x": object()},
        {"x": {1, 2}},
        {"x": b"bytes"},
        {"x": float("nan")},
        {"x": "y" * MAX_PAYLOAD_BYTES},
        {"x": ("a", "tuple")},
    ],
)
def test_anything_else_is_no_payload(payload: Any) -> None:
    with pytest.raises(ValueError, match="a payload") as refusal:
        check_payload(payload)
    assert "yyy" not in str(refusal.value)
    pool = TokenPool(lambda user: SignedIn("t", payload=payload), on_event=lambda event: None)
    with pool, pytest.raises(LoginFailed):
        pool.lease("ada").acquire()


@pytest.mark.parametrize("shared", [False, True])
def test_a_payload_stays_with_its_token_until_it_is_replaced(tmp_path: Path, shared: bool) -> None:
    options: dict[str, Any] = {"store": f"sqlite:///{tmp_path}/tokens.db", "key": KEY} if shared else {}
    logged_out: list[str] = []
    pool = TokenPool(
        lambda user: SignedIn("one", payload={"csrf": SECRET}),
        logout=lambda user, token: logged_out.append(token),
        **options,
    )
    with pool.lease("ada") as held:
        assert held.payload == {"csrf": SECRET}
    with pool.lease("ada") as held:
        assert held.payload == {"csrf": SECRET}
        held.renew("two")
    with pool.lease("ada") as held:
        assert (held.token, held.payload) == ("two", {"csrf": SECRET})
        held.renew("three", payload={"csrf": "newer"})
    (row,) = pool.list()
    assert row.token == masked("three")
    with pool.lease("ada") as held:
        assert (held.token, held.payload) == ("three", {"csrf": "newer"})
        assert "newer" not in repr(held)
        held.renew("four", payload=None)
        with pytest.raises(ValueError, match="a payload"):
            held.renew("five", payload={"x": object()})
    with pool.lease("ada") as held:
        assert (held.token, held.payload) == ("four", None)
        held.renew("five", payload={"again": 1})
        held.drop(sign_out=True)
    pool.close()
    assert logged_out == ["five"], "and never the payload"
    if shared:
        assert SECRET.encode() not in b"".join(each.read_bytes() for each in tmp_path.iterdir())


def test_the_classic_calls_keep_it() -> None:
    with TokenPool(lambda user: SignedIn("one", payload={"n": 1})) as pool:
        with pool.lease("ada"):
            pass
        taken = pool.check_out("ada")
        assert (taken.token, taken.payload) == ("one", {"n": 1})
        pool.check_in("ada", taken, "two")
        with pool.lease("ada") as held:
            assert (held.token, held.payload) == ("two", {"n": 1})


def test_probes_and_keepalives_see_the_token_alone() -> None:
    seen: list[str] = []

    def keepalive(user: str, token: str) -> str:
        seen.append(token)
        return token + "'"

    async def main() -> None:
        async with AsyncTokenPool(
            lambda user: SignedIn("one", payload={"n": 1}),
            keepalive=keepalive,
            keepalive_every="10ms",
            probe=lambda user, token: bool(seen.append(token)) or True,
            on_error="probe",
        ) as pool:
            with pytest.raises(ZeroDivisionError):
                async with pool.lease("ada"):
                    raise ZeroDivisionError
            await asyncio.sleep(0.02)
            await pool.keep_alive()
            async with pool.lease("ada") as held:
                assert held.token.startswith("one'")
                assert held.payload == {"n": 1}

    asyncio.run(main())
    assert set(seen) <= {"one" + "'" * count for count in range(50)}
