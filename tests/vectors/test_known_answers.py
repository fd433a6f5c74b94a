"""Known answers, computed outside the product from docs/formats.md: it opens each, and makes exactly the same."""

from __future__ import annotations

import ast
import asyncio
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

import in_hand
from coatcheck.device.challenges import Challenge, ChallengeCodec, ChallengeKind
from coatcheck.drivers import asyncio_driver
from coatcheck.drivers.sessions import Sessions
from coatcheck.hand_off.messages import PURPOSES, HandOffCodec, binder_hash, is_bound_to, page_hash, taker
from coatcheck.replication.entry import Entry, decode_entry
from coatcheck.replication.notice import ClaimAnswer, Notice, decode_message
from coatcheck.replication.placement import Placement
from coatcheck.replication.version import SERVER_ID_BYTES, Version
from coatcheck.sessions.durable import SocketTicket, TicketCodec
from coatcheck.sessions.mapping import Session
from coatcheck.sessions.provider import ProviderLogin
from coatcheck.sessions.record import decode_record, encode_record
from coatcheck.sessions.site_chains import encoder_of, seen_from
from coatcheck.soap_provider.session_types import SessionType
from coatcheck.soap_provider.token import SessionToken, SessionTokenCodec
from coatcheck.stores.memory import MemoryStore
from coatcheck.stores.take_once.memory import MemoryItemsForThreads
from coatcheck.takeover.rules.live_state import LiveState, LiveStateSealer
from coatcheck.takeover.rules.traffic_keys import Epoch
from coatcheck.tls.agreement import KeyAgreement
from coatcheck.tls.hosts import Siblings
from coatcheck.tls.record import RecordSealer, SessionRecord
from coatcheck.tls.session_id import SessionIds, item_key, server_tag, store_tag
from coatcheck.tls.ticket_keys import TicketKeys
from coatcheck.tokens.chain import NO_CHAIN
from coatcheck.tokens.keyring import KeyRing, PayloadSealer
from coatcheck.tokens.sealed import SealedToken, TokenCodec

HERE = Path(__file__).parent
KNOWN: dict[str, Any] = json.loads((HERE / "known_answers.json").read_text())
SECRETS = [bytes.fromhex(text) for text in KNOWN["secrets"]]
FARM: str = KNOWN["farm"]
WHOLE_RING = KeyRing(SECRETS, KNOWN["primary"])


def ring_that_seals_with(secret: int) -> KeyRing:
    return KeyRing(SECRETS, secret)


def always(nonce: str) -> Callable[[int], bytes]:
    """Randomness that is known: one nonce, of the length that is asked for."""
    raw = bytes.fromhex(nonce)

    def random_bytes(count: int) -> bytes:
        assert count == len(raw)
        return raw

    return random_bytes


def named(kind: str) -> Any:
    return pytest.mark.parametrize("known", KNOWN[kind], ids=lambda known: known["name"])


def unhexed(mark: list[Any]) -> Version:
    return Version(mark[0], bytes.fromhex(mark[1]), mark[2])


def test_the_answers_are_what_the_generator_makes_and_it_knows_nothing_of_coatcheck() -> None:
    source = (HERE / "generate.py").read_text()
    imported = {
        name
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom) else [each.name for each in node.names])
    }
    assert not [name for name in imported if name.startswith("coatcheck")]
    namespace: dict[str, Any] = {"__name__": "generate"}
    exec(compile(source, "generate.py", "exec"), namespace)
    assert namespace["known_answers"]() == KNOWN, "python tests/vectors/generate.py > tests/vectors/known_answers.json"


@pytest.mark.parametrize(
    ("plain", "associated", "sealed"),
    [
        ("", "", "07f5f4169bbf55a8400cd47ea6fd400f"),
        ("0100000000000000", "", "c2ef328e5c71c83b843122130f7364b761e0b97427e3df28"),
        ("0200000000000000", "01", "1de22967237a813291213f267e3b452f02d01ae33e4ec854"),
    ],
)
def test_the_primitive_is_that_of_rfc_8452(plain: str, associated: str, sealed: str) -> None:
    """Appendix C.2, AEAD_AES_256_GCM_SIV."""
    key, nonce = bytes([1]) + bytes(31), bytes([3]) + bytes(11)
    made = AESGCMSIV(key).encrypt(nonce, bytes.fromhex(plain), bytes.fromhex(associated))
    assert made.hex() == sealed


def test_keys_and_credentials() -> None:
    assert [f"primary {name}>" in repr(ring_that_seals_with(n)) for n, name in enumerate(KNOWN["key_ids"])] == [
        True
    ] * 2
    for name, credential in KNOWN["credentials"].items():
        assert WHOLE_RING.credential(name) == credential


@named("tokens")
def test_a_token_is_opened_and_made(known: dict[str, Any]) -> None:
    texts = (known["key"], known["session_id"], known["version"])
    key, session_id, version = (bytes.fromhex(text) for text in texts)
    token = SealedToken(key, session_id, known["timestamp"], version, known["list_number"])
    text = known["text"].encode()
    writer = TokenCodec(ring_that_seals_with(known["secret"]), known["purpose"], FARM, always(known["nonce"]))
    assert writer.seal_token(token) == text
    assert writer.seal(*token) == text
    reader = TokenCodec(WHOLE_RING, known["purpose"], FARM, always(""))
    assert reader.open(text) == token, "opened by a codec that has sealed nothing"


@named("tickets")
def test_a_ticket_is_opened_and_made(known: dict[str, Any]) -> None:
    key, socket, version = (bytes.fromhex(known[name]) for name in ("key", "socket", "version"))
    ticket = SocketTicket(key, socket, version, known["list_number"], known["login"])
    writer = TicketCodec(ring_that_seals_with(known["secret"]), FARM, always(known["nonce"]))
    assert writer.seal(ticket) == known["text"].encode()
    assert TicketCodec(WHOLE_RING, FARM, always("")).open(known["text"].encode()) == ticket


def test_the_entries_of_durable_websockets() -> None:
    known = next(entry for entry in KNOWN["entries"] if entry["name"] == "with durable WebSockets")
    sockets = decode_record(bytes.fromhex(known["record"])).sockets
    assert sockets is not None
    first, second = sockets.values()
    assert (first.holder, first.done, first.sent, first.close) == (2, 7, 5, None)
    assert [(answer.is_text, answer.data) for answer in first.answers] == [(True, "é 1".encode()), (False, b"\0\1")]
    assert (second.answers, second.close, second.at) == ((), (4000, "done"), 1)


@named("entries")
def test_an_entry_is_opened_and_made(known: dict[str, Any]) -> None:
    key, body, raw = (bytes.fromhex(known[name]) for name in ("key", "record", "entry"))
    version, history = unhexed(known["version"]), tuple(unhexed(mark) for mark in known["history"])
    found = decode_entry(raw, 77_000)
    assert (found.version, found.history, found.closed) == (version, history, known["closed"])
    assert found.provisional == known["provisional"]
    assert found.expires_in_ms == 77_000
    writer = PayloadSealer(ring_that_seals_with(known["secret"]), FARM, always(known["nonce"]))
    closed, provisional = known["closed"], known["provisional"]
    header = Entry(version, history, closed, 1, b"", provisional).header()
    assert Entry(version, history, closed, 1, writer.seal(key, header, body), provisional).encode() == raw
    reader = PayloadSealer(WHOLE_RING, FARM, always(""))
    assert reader.unseal(key, found.header(), found.payload) == body
    if not known["closed"]:
        assert encode_record(decode_record(body)) == body


@named("hand_offs")
def test_the_messages_of_a_hand_off_are_opened_and_made(known: dict[str, Any]) -> None:
    kinds: dict[str, Any] = {purpose: kind for kind, purpose in PURPOSES.items()}
    binder, reading = known["binder"].encode(), HandOffCodec(WHOLE_RING, FARM, known["home"], always(""))
    found: dict[str, Any] = {}
    for each in known["messages"]:
        kind = kinds[each["purpose"]]
        found[each["purpose"]] = message = reading.open(kind, each["text"], each["reader"])
        ring = ring_that_seals_with(known["secret"])
        writing = HandOffCodec(ring, FARM, known["home"], always(each["nonce"]))
        assert writing.seal(message, each["reader"]) == each["text"]
        assert writing.mark(bytes.fromhex(known["session"])).hex() == known["mark"]
    session, mark = bytes.fromhex(known["session"]), bytes.fromhex(known["mark"])
    assert reading.is_marked(session, mark)
    ask, call, ticket = found["hand-off/ask"], found["hand-off/call"], found["hand-off"]
    assert ask.mark == call.mark == mark
    assert ask.page == ticket.page == page_hash(known["page"])
    assert (call.page, call.binder, call.attempt) == (known["page"], binder_hash(binder), 1)
    assert (ticket.session, ticket.login, ticket.list_number) == (session, known["login"], 63)
    assert (ticket.store, ticket.item.hex(), ticket.promised.hex()) == ("session-2", known["item"], known["version"])
    assert ticket.made_at == known["now"] + 80
    assert is_bound_to(ticket, binder)
    assert taker(ticket, binder).hex() == known["taker"]
    assert found["hand-off/token"].timestamp == known["now"] - 9


def test_the_fields_of_a_record_of_two_sites() -> None:
    known = next(known for known in KNOWN["entries"] if known["name"] == "of two sites")
    stored = decode_record(bytes.fromhex(known["record"]))
    assert stored.chain == NO_CHAIN, "it is not used at the home site"
    record = seen_from(stored, "tickets.example")
    assert record.chain.current.minted_at == KNOWN["creation"]["now"] - 5
    assert record.handed is not None
    assert record.handed.chains == ()
    assert [one.site for one in record.handed.redeemed] == ["tickets.example"]
    assert encoder_of("tickets.example")(record).hex() == known["record"]
    assert seen_from(stored, "other.example").chain == NO_CHAIN


@pytest.mark.parametrize(
    ("name", "in_force"), [("of a bound session", True), ("of a session about to be bound", False)]
)
def test_the_fields_of_a_record_that_is_bound(name: str, in_force: bool) -> None:
    known = next(known for known in KNOWN["entries"] if known["name"] == name)
    raw = bytes.fromhex(known["record"])
    record = decode_record(raw)
    assert encode_record(record) == raw
    bound = record.bound
    assert bound is not None
    assert (bound.is_in_force, bound.is_pending(record.chain)) == (in_force, not in_force)
    assert bound.key.algorithm == ("ES256" if in_force else "RS256")
    assert (bound.since, bound.serial) == (record.created_at, 3 if in_force else 0)
    assert (record.deadline is None) == in_force


@named("device")
def test_a_challenge_and_the_name_of_a_bound_session(known: dict[str, Any]) -> None:
    key = bytes.fromhex(known["key"])
    challenge = Challenge(ChallengeKind(known["kind"]), key, known["made_at"], known["serial"])
    writer = ChallengeCodec(ring_that_seals_with(known["secret"]), FARM, always(known["nonce"]))
    assert (writer.seal(challenge), writer.name(key)) == (known["challenge"], known["identifier"])
    reader = ChallengeCodec(WHOLE_RING, FARM, always(""))
    assert (reader.open(known["challenge"]), reader.session(known["identifier"])) == (challenge, key)


def test_the_fields_of_a_record_that_an_identity_provider_may_end() -> None:
    known = next(known for known in KNOWN["entries"] if known["name"] == "of an identity provider's session")
    provider = decode_record(bytes.fromhex(known["record"])).provider
    since = KNOWN["creation"]["now"] - 9
    assert provider == ProviderLogin("https://id.example", sid="sid 1", sub="süb", since=since)


def test_the_fields_of_a_record() -> None:
    rotated = next(known for known in KNOWN["entries"] if known["name"] == "rotated")
    now = KNOWN["creation"]["now"]
    record = decode_record(bytes.fromhex(rotated["record"]))
    assert (record.created_at, record.last_seen_at, record.user) == (now - 9, now - 1, "ann@example.org")
    chain = record.chain
    assert chain.next is not None
    assert (chain.current.minted_at, chain.next.minted_at, chain.forgotten_at) == (now - 60_000, now, now - 10_000_000)
    (retired,) = chain.retired
    assert (retired.link.minted_at, retired.retired_at, retired.moved_on_at) == (now - 190_000, now - 120_000, None)


@pytest.mark.parametrize("known", KNOWN["placements"], ids=lambda known: f"{len(known['names'])}-{known['key'][:6]}")
def test_where_a_session_is_placed(known: dict[str, Any]) -> None:
    names, key, ranking = known["names"], bytes.fromhex(known["key"]), tuple(known["ranking"])
    assert Placement(names, 1).ranking(key) == ranking
    assert Placement(names[::-1], 2).ranking(key) == ranking, "whatever the order of the settings"


def test_messages() -> None:
    known = KNOWN["messages"]
    key, version = bytes.fromhex(known["key"]), Version(known["epoch"], bytes.fromhex(known["owner"]), known["seq"])
    messages = {
        "notice": Notice(key, version, False),
        "notice_of_a_close": Notice(key, version, True),
        "answer": ClaimAnswer(key, version, known["others_ms"]),
    }
    for name, message in messages.items():
        assert message.encode().hex() == known[name]
        assert decode_message(bytes.fromhex(known[name])) == message


@named("tls_sessions")
def test_a_shared_tls_session_is_named_and_sealed(known: dict[str, Any]) -> None:
    store, raw, key = store_tag(known["store"]), bytes.fromhex(known["id"]), bytes.fromhex(known["key"])
    assert SessionIds(WHOLE_RING, FARM, known["server"], always(known["random"])).new(store) == raw
    assert SessionIds(WHOLE_RING, FARM, "any", always("")).read(raw) == (server_tag(known["server"]), store)
    assert item_key(raw) == key
    record = SessionRecord(
        known["server"],
        known["host"],
        bytes.fromhex(known["context"]),
        known["expires_at"],
        known["protocol"],
        bytes.fromhex(known["state"]),
    )
    stored = bytes.fromhex(known["stored"])
    assert RecordSealer(WHOLE_RING, FARM, always(known["nonce"])).seal(key, record) == stored
    assert RecordSealer(WHOLE_RING, FARM, always("")).open(key, stored) == record


@named("ticket_keys")
def test_a_ticket_key_is_found_sealed_and_divided(known: dict[str, Any]) -> None:
    keys = TicketKeys(known["period_ms"], 60_000, Siblings())
    offered: list[tuple[bytes, bytes]] = []

    class Store(MemoryItemsForThreads):
        def agree(self, key: bytes, proposal: bytes, life_ms: int, limit_s: float) -> bytes:
            offered.append((key, proposal))
            return bytes.fromhex(known["stored"])

    agreement = KeyAgreement(list, keys, WHOLE_RING, FARM)
    agreement._stores = [Store("store", time.monotonic)]
    agreement._agree(known["period"], known["period"] * known["period_ms"])
    assert offered[0][0] == bytes.fromhex(known["place"])
    assert len(offered[0][1]) == len(known["stored"]) // 2
    assert keys.secret(known["period"]) == bytes.fromhex(known["secret"])
    box = WHOLE_RING.box("tls-ticket-key", FARM, always(known["nonce"]))
    assert box.seal(bytes.fromhex(known["secret"]), bytes.fromhex(known["place"])).hex() == known["stored"]
    for host, parts in known["hosts"].items():
        assert [part.hex() for part in keys.of_period(known["period"], host) or ()] == parts


@named("live_states")
def test_the_state_of_a_live_connection_is_opened_and_made(known: dict[str, Any]) -> None:
    sealer = LiveStateSealer(WHOLE_RING, FARM, always(known["nonce"]))
    keys = {side: tuple(Epoch(f, g, bytes.fromhex(s)) for f, g, s in known[side]) for side in ("client", "server")}
    names = bytes.fromhex(known["connection"]), bytes.fromhex(known["checkpoint"])
    state = LiveState(1, *names, known["suite"], keys["client"], keys["server"])
    assert sealer.open(bytes.fromhex(known["sealed"])) == state
    assert sealer.seal(state).hex() == known["sealed"]


@named("soap")
def test_a_soap_token_is_opened_and_made(known: dict[str, Any]) -> None:
    token = SessionToken(
        bytes.fromhex(known["session_id"]),
        known["username"],
        known["password"],
        known["issued_at"],
        known["serial"],
        known["server"],
        SessionType(known["session_type"]),
    )
    assert SessionTokenCodec(WHOLE_RING, "provider", always(known["nonce"])).seal(token) == known["text"]
    assert SessionTokenCodec(WHOLE_RING, "provider", always("")).open(known["text"]) == token


def test_a_session_that_begins_is_made_of_what_was_drawn_and_of_nothing_else(monkeypatch: pytest.MonkeyPatch) -> None:
    """Key and session ID are 16 bytes of randomness each, every bit of them; so are cookie and entry, bit by bit."""
    known = KNOWN["creation"]
    server_id, *draws = (bytes.fromhex(text) for text in known["draws"])

    def random_bytes(count: int) -> bytes:
        """The next known draw of this length; the server ID is drawn once more when a process is forked."""
        if count == SERVER_ID_BYTES:
            return server_id
        found = [at for at, draw in enumerate(draws) if len(draw) == count]
        assert found, f"{count} bytes more are drawn than are known"
        return draws.pop(found[0])

    monkeypatch.setattr(asyncio_driver, "RandomPool", lambda: random_bytes)

    async def story() -> tuple[bytes, list[Entry | None]]:
        stores = [MemoryStore(name, time.monotonic) for name in ("one", "two")]
        sessions = Sessions(farm=FARM, server_name="web-1", stores=stores, ring=WHOLE_RING)
        sessions.copies.world.now_ms = lambda: known["now"]  # type: ignore[method-assign]
        await sessions.start()
        try:
            session = Session()
            session.update(known["data"])
            issue = (await in_hand.saved(sessions, session)).issue
            assert issue is not None
            found: list[Entry | None] = []
            for store in stores:
                store.get(bytes.fromhex(known["key"]), found.append)
            return sessions.seal(issue), found
        finally:
            await sessions.aclose()

    cookie, found = asyncio.run(story())
    assert cookie.decode() == known["cookie"]
    assert [entry.encode().hex() for entry in found if entry is not None] == [known["entry"]] * 2
    assert draws == [], "nothing was drawn that is in neither"
