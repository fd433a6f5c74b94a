"""Token checks, by their numbers in OWASP ASVS 5.0 (7.2, 9.1, 9.2)."""

from __future__ import annotations

import asyncio
import os
from base64 import urlsafe_b64decode, urlsafe_b64encode

import pytest

from coatcheck.drivers.asyncio_driver import RandomPool
from coatcheck.errors import ConfigError, TokenReason, TokenRejected
from coatcheck.events import EventKind
from coatcheck.replication.entry import KEY_BYTES
from coatcheck.sessions.policy import SessionPolicy
from coatcheck.tokens.keyring import KeyRing
from coatcheck.tokens.sealed import SESSION_ID_BYTES, TokenCodec

from .two_servers import COOKIE, LOGIN, Browser, Servers, shopper, two_servers

RING = KeyRing([os.urandom(32)])
CONTENT = (b"k" * 16, b"i" * 16, 1_763_700_000_000, b"v" * 16, 0)


def codec(ring: KeyRing = RING, purpose: str = "anonymous", audience: str = "farm") -> TokenCodec:
    return TokenCodec(ring, purpose, audience, os.urandom)


def refused(text: bytes, by: TokenCodec) -> TokenReason:
    with pytest.raises(TokenRejected) as rejection:
        by.open(text)
    return rejection.value.reason


def test_7_2_1_a_foreign_farms_token_is_refused() -> None:
    async def story() -> None:
        async with two_servers() as ours, two_servers() as theirs:
            stranger = await shopper(theirs)
            answer = await Browser(ours, stranger.jar).send(1, "GET", "/")
            assert answer.body["data"] == {}
            assert ours.events[0].kind is EventKind.TOKEN_REJECTED
            assert ours.events[0].detail == "unknown_key"

    asyncio.run(story())


def test_7_2_3_ids_have_128_bits_of_the_operating_systems_randomness(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SESSION_ID_BYTES * 8 >= 128
    assert KEY_BYTES * 8 >= 128
    asked: list[int] = []
    genuine = os.urandom

    def urandom(count: int) -> bytes:
        asked.append(count)
        return genuine(count)

    monkeypatch.setattr(os, "urandom", urandom)
    pool = RandomPool()
    drawn = {pool(16) for _ in range(2000)}
    assert len(drawn) == 2000
    assert sum(asked) >= 2000 * 16


def test_7_2_4_login_gives_a_new_token_and_the_old_one_is_dead() -> None:
    async def story() -> None:
        async with two_servers() as servers:
            browser = await shopper(servers)
            before, key = browser.copy(), browser.token().key
            answer = await browser.post(1, "/login")
            assert answer.cookies[COOKIE] == ""
            assert browser.token(LOGIN).key != key
            for server in (1, 2):
                assert (await before.send(server, "GET", "/")).body == {"user": None, "data": {}}
            again = browser.copy()
            await browser.post(2, "/login?user=root")  # a change of privilege
            assert (await again.send(1, "GET", "/")).body["user"] is None
            assert (await browser.get(1)).body["user"] == "root"

    asyncio.run(story())


def test_9_1_every_flipped_bit_and_every_other_character_is_refused() -> None:
    seals, opens = codec(), codec()
    text = seals.seal(*CONTENT)
    assert opens.open(text) == CONTENT
    assert len(text) < 128
    raw = urlsafe_b64decode(text)
    for bit in range(len(raw) * 8):
        damaged = bytearray(raw)
        damaged[bit // 8] ^= 1 << bit % 8
        refused(urlsafe_b64encode(damaged), opens)
    for at in range(len(text)):
        for character in {0, 43, 47, 61, 65, 95, 255} - {text[at]}:
            refused(text[:at] + bytes([character]) + text[at + 1 :], opens)


@pytest.mark.parametrize("text", [b"", b"=", b"A" * 115, b"A" * 117, b"A" * 1_000_000, b"\x00" * 116, b"\xff" * 116])
def test_9_1_any_bytes_of_any_length_are_refused(text: bytes) -> None:
    assert refused(text, codec()) in TokenReason


def test_9_1_only_the_one_format_is_allowed() -> None:
    raw = urlsafe_b64decode(codec().seal(*CONTENT))
    reasons = [refused(urlsafe_b64encode(bytes([fmt]) + raw[1:]), codec()) for fmt in range(256) if fmt != raw[0]]
    assert set(reasons) == {TokenReason.UNKNOWN_FORMAT}


def test_9_1_keys_come_from_the_ring_alone_and_must_be_long() -> None:
    assert refused(codec(KeyRing([os.urandom(32)])).seal(*CONTENT), codec()) is TokenReason.UNKNOWN_KEY
    for secrets in ([], [b""], [b"x" * 31], [b"x" * 32] * 2, [bytes([n]) * 32 for n in range(17)]):
        with pytest.raises(ConfigError):
            KeyRing(secrets)


@pytest.mark.parametrize(("purpose", "audience"), [("login", "farm"), ("anonymous", "farm2"), ("anonymous", "")])
def test_9_2_wrong_purpose_and_wrong_audience_are_refused(purpose: str, audience: str) -> None:
    assert refused(codec(RING, purpose, audience).seal(*CONTENT), codec()) is TokenReason.FORGED


def test_9_2_an_anonymous_token_is_nothing_under_the_logged_in_name() -> None:
    async def story() -> None:
        async with two_servers() as servers:
            browser = await shopper(servers)
            promoted = Browser(servers, {LOGIN: browser.jar[COOKIE]})
            assert (await promoted.send(1, "GET", "/")).body == {"user": None, "data": {}}
            await browser.post(1, "/login")
            demoted = Browser(servers, {COOKIE: browser.jar[LOGIN]})
            assert (await demoted.send(1, "GET", "/")).body == {"user": None, "data": {}}

    asyncio.run(story())


def test_9_2_an_expired_token_is_refused() -> None:
    async def story() -> None:
        async with two_servers(SessionPolicy(idle_timeout_ms=60_000)) as servers:
            browser = await shopper(servers)
            servers.later(120)
            assert (await browser.send(1, "GET", "/")).body["data"] == {}
            assert EventKind.SESSION_EXPIRED in servers.kinds()

    asyncio.run(story())


def test_an_id_that_was_never_issued_is_never_adopted_and_counted() -> None:
    """Session fixation: even a token that our own key ring sealed opens nothing that is not stored."""

    async def story() -> None:
        async with two_servers() as servers:
            ours = TokenCodec(servers.ring, "anonymous", "farm", os.urandom)
            key = os.urandom(16)
            fixed = Browser(servers, {COOKIE: ours.seal(key, os.urandom(16), servers.now_ms, bytes(16)).decode()})
            answer = await fixed.put(1)
            assert answer.body == 1
            assert fixed.token().key != key
            assert servers.sessions[0].events[EventKind.SESSION_NOT_FOUND] == 1

    asyncio.run(story())


def test_another_id_of_a_live_session_opens_nothing() -> None:
    async def story(servers: Servers) -> None:
        browser = await shopper(servers)
        real = browser.token()
        ours = TokenCodec(servers.ring, "anonymous", "farm", os.urandom)
        forged = Browser(servers, {COOKIE: ours.seal(real.key, os.urandom(16), real.timestamp, real.version).decode()})
        assert (await forged.send(1, "GET", "/")).body["data"] == {}
        wrong_time = Browser(
            servers, {COOKIE: ours.seal(real.key, real.session_id, real.timestamp + 1, real.version).decode()}
        )
        assert (await wrong_time.send(2, "GET", "/")).body["data"] == {}, "ID and timestamp must both match (A6)"

    async def tell() -> None:
        async with two_servers() as servers:
            await story(servers)

    asyncio.run(tell())


def test_refused_tokens_cost_no_look_at_the_session_servers() -> None:
    async def story() -> None:
        async with two_servers() as servers:
            for store in servers.stores:
                store.get = None  # type: ignore[assignment,method-assign]  # whoever asks, fails
            for text in ("x", "A" * 116, "A" * 4000):
                assert (await Browser(servers, {COOKIE: text}).send(1, "GET", "/")).status == 200
            assert servers.kinds() == [EventKind.TOKEN_REJECTED] * 3

    asyncio.run(story())
