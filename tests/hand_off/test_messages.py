"""Asks, calls and tickets are hostile input: any bytes of any length are refused, and never more than that."""

from __future__ import annotations

import asyncio
import random
from base64 import urlsafe_b64encode
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from coatcheck.errors import TokenRejected
from coatcheck.hand_off.messages import (
    MAX_TEXT,
    PURPOSES,
    HandOffAsk,
    HandOffCall,
    HandOffCodec,
    HandOffTicket,
    UrlToken,
    is_binder,
    new_binder,
)
from coatcheck.hand_off.rules import ASK, CALL, TICKET, URL_TOKEN
from coatcheck.tokens.keyring import KeyRing

from .two_sites import SHOP, TICKETS, Browser, Farm, farm

RING = KeyRing([bytes(range(32))])
DICE = random.Random(7)
CODEC = HandOffCodec(RING, "farm", SHOP, DICE.randbytes)
ASKED = HandOffAsk(source=SHOP, page=bytes(16), mark=bytes(16), login=True, made_at=1)
MESSAGES: list[HandOffAsk | HandOffCall | HandOffTicket | UrlToken] = [
    ASKED,
    HandOffCall(target=TICKETS, page="/tickets/1", mark=bytes(16), binder=bytes(32), attempt=1, made_at=1),
    HandOffTicket(
        source=SHOP, page=bytes(16), session=bytes(16), promised=bytes(16), list_number=0, login=True, store="one",
        item=bytes(32), binder=bytes(32), attempt=1, made_at=1,
    ),
    UrlToken(
        source=SHOP, chain="", page=bytes(16), session=bytes(16), session_id=bytes(16), timestamp=1, promised=bytes(16),
        list_number=0, login=True, made_at=1,
    ),
]  # fmt: skip
TEXTS = [CODEC.seal(message, TICKETS) for message in MESSAGES]
FUZZED = 20_000


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: type(message).__name__)
def test_only_its_reader_opens_it_and_only_as_what_it_is(
    message: HandOffAsk | HandOffCall | HandOffTicket | UrlToken,
) -> None:
    text = CODEC.seal(message, TICKETS)
    own = type(message)
    assert CODEC.open(own, text, TICKETS) == message
    assert text.isascii()
    others: list[tuple[HandOffCodec, Any, str]] = [
        (CODEC, own, SHOP),
        (HandOffCodec(RING, "other", SHOP, DICE.randbytes), own, TICKETS),
        (HandOffCodec(RING, "farm", TICKETS, DICE.randbytes), own, TICKETS),
        (HandOffCodec(KeyRing([bytes(32)]), "farm", SHOP, DICE.randbytes), own, TICKETS),
        *((CODEC, kind, TICKETS) for kind in PURPOSES if kind is not own),
    ]
    for codec, kind, reader in others:
        with pytest.raises(TokenRejected):
            codec.open(kind, text, reader)


def test_every_flipped_bit_is_refused() -> None:
    for kind, text in zip(PURPOSES, TEXTS, strict=True):
        raw = bytearray(text.encode())
        for at in range(len(raw)):
            for bit in range(8):
                raw[at] ^= 1 << bit
                with pytest.raises(TokenRejected):
                    CODEC.open(kind, raw.decode("latin-1"), TICKETS)
                raw[at] ^= 1 << bit


@settings(max_examples=500, deadline=None)
@given(st.text(max_size=200))
def test_any_text_is_refused(text: str) -> None:
    for kind in PURPOSES:
        with pytest.raises(TokenRejected):
            CODEC.open(kind, text, TICKETS)


def test_what_is_too_long_is_not_even_decoded() -> None:
    with pytest.raises(TokenRejected):
        CODEC.open(HandOffAsk, "A" * (MAX_TEXT + 1), TICKETS)


@pytest.mark.parametrize(
    ("which", "member", "odd"),
    [
        (0, "page", bytes(15)), (0, "mark", bytes(17)), (1, "mark", b""), (1, "binder", b""),
        (2, "session", bytes(15)), (2, "promised", bytes(17)), (2, "item", bytes(31)), (2, "list_number", 64),
        (2, "list_number", -1), (3, "session_id", b""), (3, "list_number", 1 << 40), (3, "made_at", "now"),
    ],
)  # fmt: skip
def test_what_a_site_of_the_farm_has_sealed_has_the_form_of_a_message(which: int, member: str, odd: Any) -> None:
    """Another release, or a site that somebody has taken over."""
    packed = [odd if name == member else value for name, value in msgspec.structs.asdict(MESSAGES[which]).items()]
    kind = type(MESSAGES[which])
    sealed = CODEC._boxes[kind].seal(msgspec.msgpack.encode(packed), TICKETS.encode())
    text = urlsafe_b64encode(sealed).rstrip(b"=").decode()
    with pytest.raises(TokenRejected):
        CODEC.open(kind, text, TICKETS)


def test_mutated_messages_open_nothing() -> None:
    """A slice; `tests/hand_off/test_messages.py` run by hand makes a million (FUZZED)."""
    dice = random.Random(11)
    kinds = list(PURPOSES)
    for _ in range(FUZZED):
        which = dice.randrange(len(TEXTS))
        raw = bytearray(TEXTS[which].encode())
        for _ in range(dice.randint(1, 4)):
            at = dice.randrange(len(raw))
            match dice.randrange(4):
                case 0:
                    raw[at] = dice.randrange(256)
                case 1:
                    del raw[at]
                case 2:
                    raw.insert(at, dice.randrange(256))
                case _:
                    raw += raw[: dice.randrange(len(raw))]
        text = raw.decode("latin-1")
        if text == TEXTS[which]:
            continue
        with pytest.raises(TokenRejected):
            CODEC.open(kinds[which], text, TICKETS)


def test_mutated_urls_get_no_session_and_no_error_of_the_server() -> None:
    async def story(both: Farm, browser: Browser) -> None:
        await browser.visit(f"{SHOP}/login-ada")
        seen = [await browser.until(f"{SHOP}/tickets/1", step) for step in (ASK, CALL, TICKET)]
        dice = random.Random(13)
        for _ in range(1500):
            url = dice.choice(seen)
            at = dice.randrange(url.index("/", 9) + 1, len(url))
            mutated = url[:at] + dice.choice("AZaz09-_=&?%/.") + url[at + dice.randrange(2) :]
            if mutated == url:
                continue
            reply = await Browser(both).send(mutated)
            assert reply.status in (200, 303, 400, 414, 421), mutated
            assert not [line for line in reply.all("set-cookie") if "-login" in line]
        long = await Browser(both).send(f"{TICKETS}/tickets/1?{URL_TOKEN}={'A' * 20_000}")
        assert long.status == 303

    async def main() -> None:
        async with farm() as both:
            await story(both, Browser(both))

    asyncio.run(main())


def test_a_binder_is_32_random_bytes() -> None:
    drawn = new_binder(DICE.randbytes)
    assert is_binder(drawn)
    assert drawn != new_binder(DICE.randbytes)
    for wrong in (None, b"", drawn[:-1], drawn + b"A", drawn[:-1] + b"=", drawn[:-1] + b"\xff", b" " * 43):
        assert not is_binder(wrong)


def test_a_ticket_shows_nothing_of_itself_in_logs() -> None:
    for message in (MESSAGES[2], MESSAGES[3]):
        assert "\\x00" not in repr(message)
        assert len(repr(message)) < 60
    assert msgspec.structs.asdict(ASKED)["mark"] == bytes(16)
