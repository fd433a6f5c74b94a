"""The rules alone: which session answers, and what becomes of it."""

from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from coatcheck.pool.soap.faults import FaultReason, SoapFault
from coatcheck.soap_provider.messages import read_request
from coatcheck.soap_provider.rules import Presented, ProviderSessionState, TokenLimits, WayIn, enter, leave
from coatcheck.soap_provider.session_types import SessionType
from coatcheck.soap_provider.token import SessionToken, SessionTokenCodec
from coatcheck.tokens.keyring import KeyRing

LIMITS = TokenLimits(timeout_s=60)
NOW = 1_000_000


def token(kind: SessionType = SessionType.STATELESS, age_ms: int = 0, serial: int = 1) -> SessionToken:
    return SessionToken(b"i" * 16, "ann", "word", NOW - age_ms, serial, "one", kind)


@given(
    kind=st.sampled_from(SessionType),
    issued=st.sampled_from([SessionType.STATELESS, SessionType.STATEFUL]),
    session=st.none() | st.builds(ProviderSessionState, st.booleans(), st.integers(1, 3)),
    age_ms=st.integers(0, 120_000),
    server=st.sampled_from(["one", "two"]),
)
def test_a_token_resumes_logs_in_again_or_is_a_fault(
    kind: SessionType, issued: SessionType, session: ProviderSessionState | None, age_ms: int, server: str
) -> None:
    presented = Presented(kind, token=token(issued, age_ms))
    try:
        entry = enter(presented, session, server, LIMITS, NOW)
    except SoapFault as fault:
        reason = fault.reason
        if age_ms >= 60_000:
            assert reason is FaultReason.TOKEN_EXPIRED
        elif session is not None:
            assert reason is FaultReason.SESSION_BUSY and session.busy
        else:
            assert SessionType.STATEFUL in (kind, issued)
            assert reason is (FaultReason.SESSION_EXPIRED if server == "one" else FaultReason.WRONG_SERVER)
        return
    assert age_ms < 60_000
    if session is not None:
        assert entry is WayIn.RESUME and not session.busy
    else:
        assert entry is WayIn.LOG_IN_AGAIN and SessionType.STATEFUL not in (kind, issued)


@pytest.mark.parametrize(
    ("asked", "changes", "after"),
    [
        (SessionType.NONE, True, SessionType.NONE),
        (SessionType.STATELESS, True, SessionType.STATELESS),
        (SessionType.STATEFUL, False, SessionType.STATEFUL),
        (SessionType.SERVER_DETERMINE, False, SessionType.STATELESS),
        (SessionType.SERVER_DETERMINE, True, SessionType.STATEFUL),
    ],
)
def test_what_a_session_is_after_the_response(asked: SessionType, changes: bool, after: SessionType) -> None:
    assert leave(asked, changes) is after


def test_a_token_is_opened_only_with_its_key_and_unchanged() -> None:
    codec = SessionTokenCodec(KeyRing([b"k" * 32]), "provider", os.urandom)
    other = SessionTokenCodec(KeyRing([b"l" * 32]), "provider", os.urandom)
    sealed = codec.seal(token())
    assert codec.open(sealed) == token()
    assert "word" not in sealed and "word" not in repr(token())
    flipped = sealed[:20] + ("A" if sealed[20] != "A" else "B") + sealed[21:]
    for codec_asked, text in ((other, sealed), (codec, flipped), (codec, sealed[:-1]), (codec, ""), (codec, "é")):
        with pytest.raises(SoapFault) as refused:
            codec_asked.open(text)
        assert refused.value.reason is FaultReason.TOKEN_INVALID


@given(st.binary(max_size=300) | st.text(max_size=300).map(str.encode))
def test_any_bytes_are_read_or_are_a_fault(body: bytes) -> None:
    for content_type in ("text/xml", "text/xml; charset=utf-16", "text/xml; charset=utf-8"):
        with pytest.raises(SoapFault) as refused:
            read_request(body, content_type)
        assert refused.value.message
