"""Versions, entries and where they are stored, as docs/spec/entry.md has them."""

from __future__ import annotations

import asyncio
import os
from hashlib import blake2b
from typing import Any

import msgspec
import pytest

from coatcheck.drivers.sessions import Sessions
from coatcheck.errors import CorruptEntry, SessionUnavailable
from coatcheck.host_clock import HeldClock
from coatcheck.replication.entry import Entry, decode_entry
from coatcheck.replication.placement import Placement
from coatcheck.replication.version import Version, covers, with_write
from coatcheck.sessions.record import decode_record
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.port import UNREACHABLE
from coatcheck.tokens.keyring import KeyRing, PayloadSealer

from .citing import cites

ONE, OTHER = b"aaabbbbb", b"aaaccccc"
RING = KeyRing([bytes(range(32))])


def entry(**change: object) -> Entry:
    plain = Entry(Version(1, ONE, 2), (Version(1, ONE, 2),), False, 1000, b"payload")
    return msgspec.structs.replace(plain, **change)


@cites("E1")
def test_the_bytes_of_a_version() -> None:
    version = Version(0x01020304, ONE, 0x0A0B0C0D)
    assert version == b"\x01\x02\x03\x04aaabbbbb\x0a\x0b\x0c\x0d"
    assert version.server_id == b"aaa"
    assert Version(1, ONE, 0).next_write() == Version(1, ONE, 1)


@cites("E2")
def test_a_number_is_not_used_again_whatever_became_of_its_put() -> None:
    offered: list[bytes] = []

    class Losing(MemoryStore):
        """Takes every third put, and says of the others that it is not known what became of them."""

        def put(self, key: bytes, seen: Any, new: Entry, reply: Any, notify: bytes = b"") -> None:
            offered.append(new.version + new.payload)
            if len(offered) % 3 == 1:
                super().put(key, seen, new, reply, notify)
            else:
                reply(UNREACHABLE)

    async def story() -> None:
        store = Losing("store", HeldClock().now_s)
        sessions = Sessions(farm="farm", server_name="web", stores=[store], ring=RING, copies=1, in_memory=True)
        await sessions.start()
        cookie = b""
        for number in range(40):
            try:
                opened = await sessions.open(cookie)
            except SessionUnavailable:
                continue  # its claim is one more number that was tried
            opened.session["n"] = number
            answer = await sessions.finish(opened)
            cookie = next((v.partition(b";")[0] for _, v in answer.headers if v.startswith(b"coatcheck=")), cookie)
        await sessions.aclose()

    asyncio.run(story())
    assert len(set(offered)) >= 12
    assert len({one[:16] for one in offered}) == len(set(offered))


@cites("E3")
def test_a_history_has_the_last_write_of_each_epoch() -> None:
    history = with_write((), Version(1, ONE, 1))
    assert with_write(history, Version(1, ONE, 2)) == (Version(1, ONE, 2),)
    for epoch in range(2, 18):
        history = with_write(history, Version(epoch, OTHER, 1))
    assert history == tuple(Version(epoch, OTHER, 1) for epoch in range(2, 18))


@cites("E4")
def test_what_a_history_covers() -> None:
    history = tuple(Version(epoch, ONE, 5) for epoch in (2, 4))
    assert covers(history, Version(4, ONE, 5))
    assert covers(history, Version(2, ONE, 4))
    for lacking in (Version(4, ONE, 6), Version(4, OTHER, 5), Version(3, ONE, 1), Version(1, ONE, 1)):
        assert not covers(history, lacking)
    full = tuple(Version(epoch, ONE, 5) for epoch in range(10, 26))
    assert covers(full, Version(9, OTHER, 99))
    assert not covers(full, Version(26, ONE, 1))


@cites("E5", "E6")
def test_the_bytes_of_an_entry() -> None:
    for closed, provisional, flags in ((False, False, 0), (True, False, 1), (True, True, 3)):
        one = entry(closed=closed, provisional=provisional)
        head = b"\x01" + bytes([flags]) + Version(1, ONE, 2) + b"\x01" + Version(1, ONE, 2)
        assert one.encode() == head + b"payload"
        assert decode_entry(head + b"payload", 1000) == one


@cites("E6", "E7")
def test_what_is_no_entry_is_refused() -> None:
    raw = entry().encode()
    for wrong in (
        raw[:18],
        b"\x02" + raw[1:],
        *(raw[:1] + bytes([flags]) + raw[2:] for flags in (2, 4, 255)),
        raw[:18] + b"\x11" + bytes(17 * 16),
        raw[:34],
        raw + bytes(1 << 20),
    ):
        with pytest.raises(CorruptEntry):
            decode_entry(wrong, 1000)
    assert decode_entry(raw + bytes((1 << 20) - len(raw)), 1000).version == Version(1, ONE, 2)


@cites("E8")
def test_key_and_header_are_bound_to_the_payload() -> None:
    sealer, box = PayloadSealer(RING, "farm", os.urandom), RING.box("entry", "farm", os.urandom)
    one = entry()
    key = bytes(16)
    assert box.open(sealer.seal(key, one.header(), b"record"), key + one.header()) == b"record"
    payload = box.seal(b"", key + one.header())
    assert sealer.unseal(key, one.header(), payload) == b""
    for other_key, header in ((bytes(15) + b"\x01", one.header()), (key, entry(closed=True).header())):
        with pytest.raises(CorruptEntry):
            sealer.unseal(other_key, header, payload)


@cites("E9")
def test_a_payload_that_does_not_open_is_left_out_and_one_of_an_unknown_key_asked_about() -> None:
    async def story() -> None:
        store = MemoryStore("store", HeldClock().now_s)

        async def silence() -> bool:
            return False

        sessions = Sessions(
            farm="farm", server_name="web", stores=[store], ring=RING, copies=1, in_memory=True, refresh_keys=silence
        )
        await sessions.start()
        forged = RING.box("entry", "farm", os.urandom).seal(b"", b"for something else")
        for key, payload in ((b"k" * 16, forged), (b"l" * 16, b"\x01strange" + bytes(40))):
            store.put(key, None, entry(payload=payload), lambda reply: None)
        assert await sessions.show(b"k" * 16) is None
        with pytest.raises(SessionUnavailable):
            await sessions.show(b"l" * 16)
        await sessions.aclose()

    asyncio.run(story())


@cites("E10")
def test_a_record_and_one_of_a_later_release() -> None:
    link = [b"i" * 16, 900]
    record = [b"\x81\xa1a\x01", 1, 2, "ada", [link, None, [[link, 5, None]], 0]]
    for later in ([], [None], [None, None], [None, None, None], [None, None, None, "something", {"new": 1}]):
        found = decode_record(msgspec.msgpack.encode(record + later))
        assert (found.data, found.created_at, found.last_seen_at, found.user) == (b"\x81\xa1a\x01", 1, 2, "ada")
        assert (found.chain.current.minted_at, found.chain.retired[0].retired_at) == (900, 5)
    for wrong in (record[:4], [*record[:4], None], [1, *record[1:]], {"data": b""}):
        with pytest.raises(CorruptEntry):
            decode_record(msgspec.msgpack.encode(wrong))


@cites("E11")
def test_the_ranking() -> None:
    names = ["session-1", "session-2", "x" * 70, "\u00e9" * 40]

    def score(name: str) -> bytes:
        return blake2b(b"k" * 16, key=name.encode()[:64], digest_size=8).digest()

    assert list(Placement(names, 2).ranking(b"k" * 16)) == sorted(names, key=score, reverse=True)
