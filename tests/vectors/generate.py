"""Known answers, made from docs/formats.md and primitives alone: nothing of coatcheck is imported here.

``python tests/vectors/generate.py`` prints the JSON that stands in ``known_answers.json``.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import struct
from base64 import urlsafe_b64encode
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM, AESGCMSIV, ChaCha20Poly1305

FORMAT = b"\x01"
FARM = "farm-1"
SECRETS = [bytes(range(32)), bytes(range(100, 148))]
PRIMARY = 1
NOW = 1_763_700_000_123


# -- section 1: keys


def derive(secret: bytes, info: bytes, length: int) -> bytes:
    """HKDF-SHA-256 (RFC 5869), written out: extract with a salt of zeros, then expand."""
    pseudorandom = hmac.digest(bytes(32), secret, "sha256")
    made, block, info = b"", b"", b"coatcheck/1/" + info
    while len(made) < length:
        block = hmac.digest(pseudorandom, block + info + bytes([len(made) // 32 + 1]), "sha256")
        made += block
    return made[:length]


def key_id(secret: bytes) -> bytes:
    return derive(secret, b"key-id", 4)


def credential(secret: bytes, name: str) -> str:
    return derive(secret, b"credential\x00" + name.encode(), 24).hex()


# -- section 2: a sealed thing


def seal(secret: bytes, purpose: str, audience: str, nonce: bytes, plain: bytes, context: bytes = b"") -> bytes:
    scope = purpose.encode() + b"\x00" + audience.encode()
    head = FORMAT + key_id(secret)
    return head + nonce + AESGCMSIV(derive(secret, scope, 32)).encrypt(nonce, plain, head + scope + context)


def base64url(raw: bytes) -> str:
    return urlsafe_b64encode(raw).rstrip(b"=").decode()


# -- MessagePack, as far as it is needed here, every value in its shortest form


def pack(value: Any) -> bytes:
    if value is None:
        return b"\xc0"
    if isinstance(value, bool):
        return b"\xc3" if value else b"\xc2"
    if isinstance(value, int):
        for limit, code, form in ((1 << 7, b"", ">B"), (1 << 8, b"\xcc", ">B"), (1 << 16, b"\xcd", ">H")):
            if 0 <= value < limit:
                return code + struct.pack(form, value)
        return b"\xce" + struct.pack(">I", value) if value < 1 << 32 else b"\xcf" + struct.pack(">Q", value)
    if isinstance(value, bytes):
        size = len(value)
        return (b"\xc4" + bytes([size]) if size < 256 else b"\xc5" + struct.pack(">H", size)) + value
    if isinstance(value, str):
        raw = value.encode()
        return (bytes([0xA0 | len(raw)]) if len(raw) < 32 else b"\xd9" + bytes([len(raw)])) + raw
    if isinstance(value, dict):
        return bytes([0x80 | len(value)]) + b"".join(pack(each) for pair in value.items() for each in pair)
    head = bytes([0x90 | len(value)]) if len(value) < 16 else b"\xdc" + struct.pack(">H", len(value))
    return head + b"".join(pack(each) for each in value)


# -- randomness, so that no two things here are alike and every run makes the same


def drawn(label: str, size: int) -> bytes:
    return hashlib.shake_256(label.encode()).digest(size)


def version(epoch: int, owner: bytes, seq: int) -> bytes:
    return struct.pack(">I8sI", epoch, owner, seq)


# -- sections 3 to 6


def token(name: str, secret: int, purpose: str, timestamp: int, told: bytes, number: int = 0) -> dict[str, Any]:
    key, session_id, nonce = drawn(f"{name} key", 16), drawn(f"{name} ID", 16), drawn(f"{name} nonce", 12)
    plain = key + session_id + (number << 42 | timestamp).to_bytes(6, "big") + told
    text = base64url(seal(SECRETS[secret], f"token/{purpose}", FARM, nonce, plain))
    return {
        "name": name, "secret": secret, "purpose": purpose, "key": key.hex(), "session_id": session_id.hex(),
        "timestamp": timestamp, "version": told.hex(), "list_number": number, "nonce": nonce.hex(), "text": text,
    }  # fmt: skip


def record(
    data: dict[str, Any],
    created: int,
    seen: int,
    user: str | None,
    chain: list[Any],
    sockets: Any = None,
    handed: list[Any] | None = None,
    provider: list[Any] | None = None,
    *more: Any,
) -> bytes:
    return pack([pack(data), created, seen, user, chain, sockets, handed, provider, *more])


def ticket(name: str, secret: int, told: bytes, number: int, login: bool) -> dict[str, Any]:
    """Section 12."""
    key, socket, nonce = drawn(f"{name} key", 16), drawn(f"{name} socket", 8), drawn(f"{name} nonce", 12)
    text = base64url(seal(SECRETS[secret], "websocket", FARM, nonce, key + socket + told + bytes([number, login])))
    return {
        "name": name, "secret": secret, "key": key.hex(), "socket": socket.hex(), "version": told.hex(),
        "list_number": number, "login": login, "nonce": nonce.hex(), "text": text,
    }  # fmt: skip


def entry(
    name: str,
    secret: int,
    mark: tuple[int, bytes, int],
    history: list[Any],
    body: bytes | None,
    provisional: bool = False,
) -> dict[str, Any]:
    key, nonce = drawn(f"{name} key", 16), drawn(f"{name} nonce", 12)
    closed = body is None
    header = FORMAT + bytes([closed | provisional << 1]) + version(*mark) + bytes([len(history)])
    header += b"".join(version(*each) for each in history)
    sealed = seal(SECRETS[secret], "entry", FARM, nonce, body or b"", key + header)
    return {
        "name": name, "secret": secret, "key": key.hex(), "nonce": nonce.hex(), "closed": closed,
        "provisional": provisional,
        "version": [mark[0], mark[1].hex(), mark[2]], "history": [[e, o.hex(), s] for e, o, s in history],
        "record": (body or b"").hex(), "entry": (header + sealed).hex(),
    }  # fmt: skip


def ranking(key: bytes, names: list[str]) -> list[str]:
    """The session servers for a session, first those that hold it."""

    def weight(name: str) -> bytes:
        return hashlib.blake2b(key, key=name.encode()[:64], digest_size=8).digest()

    return sorted(names, key=weight, reverse=True)


def placement(names: list[str]) -> list[dict[str, Any]]:
    keys = [drawn(f"placed {number}", 16) for number in range(6)]
    return [{"names": names, "key": key.hex(), "ranking": ranking(key, names)} for key in keys]


def soap(name: str, user: str, password: str, issued: int, serial: int, server: str, kind: str) -> dict[str, Any]:
    session_id, nonce = drawn(f"{name} ID", 16), drawn(f"{name} nonce", 12)
    plain = pack([session_id, user, password, issued, serial, server, kind])
    return {
        "name": name, "session_id": session_id.hex(), "username": user, "password": password, "issued_at": issued,
        "serial": serial, "server": server, "session_type": kind, "nonce": nonce.hex(),
        "text": base64url(seal(SECRETS[PRIMARY], "soap-session", "provider", nonce, plain)),
    }  # fmt: skip


def tls_session(name: str, server: str, store: str, host: str, protocol: int, state: bytes) -> dict[str, Any]:
    """Section 8: an ID, the key that it is stored under, and the sealed record."""
    random_bytes, nonce, context = drawn(f"{name} random", 15), drawn(f"{name} nonce", 12), drawn("TLS context", 32)
    server_tag = hashlib.blake2b(server.encode(), digest_size=4, person=b"coatcheck-tls").digest()
    store_tag = hashlib.blake2b(store.encode(), digest_size=2, person=b"coatcheck-store").digest()
    clear = FORMAT + server_tag + store_tag + random_bytes
    marking = derive(SECRETS[PRIMARY], b"tls-session-id\x00" + FARM.encode(), 32)
    made = clear + hashlib.blake2b(clear, key=marking, digest_size=10).digest()
    key = hashlib.blake2b(made, digest_size=32, person=b"coatcheck-tls-id").digest()
    plain = pack([server, host, context, NOW, protocol, state])
    return {
        "name": name, "server": server, "store": store, "host": host, "protocol": protocol, "state": state.hex(),
        "context": context.hex(), "expires_at": NOW, "random": random_bytes.hex(), "nonce": nonce.hex(),
        "id": made.hex(), "key": key.hex(),
        "stored": seal(SECRETS[PRIMARY], "tls-session", FARM, nonce, plain, key).hex(),
    }  # fmt: skip


def ticket_key(name: str, period_ms: int, period: int, hosts: list[str]) -> dict[str, Any]:
    """Section 8: where the key of a period is agreed on, how it is sealed there, and what it is for each host."""
    secret, nonce = drawn(f"{name} secret", 32), drawn(f"{name} nonce", 12)
    about = f"{FARM}\x00{period_ms}\x00{period}".encode()
    place = hashlib.blake2b(about, digest_size=32, person=b"coatcheck-ticket").digest()

    def part(host: str, purpose: bytes, size: int) -> str:
        return hashlib.blake2b(host.encode(), digest_size=size, key=secret, person=purpose).hexdigest()

    return {
        "name": name, "period_ms": period_ms, "period": period, "secret": secret.hex(), "nonce": nonce.hex(),
        "place": place.hex(), "stored": seal(SECRETS[PRIMARY], "tls-ticket-key", FARM, nonce, secret, place).hex(),
        "hosts": {
            host: [part(host, b"ticket name", 16), part(host, b"ticket seal", 32), part(host, b"ticket mark", 32)]
            for host in hosts
        },
    }  # fmt: skip


# -- section 10: live TLS connections

TRACES: dict[str, tuple[str, list[tuple[int, str]]]] = {
    # Section 3: the application traffic secret of each side; its records with data or an alert, and their numbers.
    "client": (
        "9e40646ce79a7f9dc05af8889bce6552875afa0b06df0087f792ebb7c17504a5",
        [
            (0, "1703030043a23f7054b62c94d0affafe8228ba55cbefacea42f914aa66bcab3f2b9819a8a5b46b395bd54a9a20441e2b62974e"
                "1f5a6292a2977014bd1e3deae63aeebb21694915e4"),
            (1, "1703030013c9872760655666b74d7ff1153efd6db6d0b0e3"),
        ],
    ),
    "server": (
        "a11af9f05531f856ad47116b45a950328204b4f44bfb6b3a4b4f1f3fcb631643",
        [
            (1, "17030300432e937e11ef4ac740e538ad36005fc4a46932fc3225d05f82aa1b36e30efaf97d90e6dffc602dcb501a59a8fcc49c"
                "4bf2e5f0a21c0047c2abf332540dd032e167c2955d"),
            (2, "1703030013b58fd67166ebf599d24720cfbe7efa7a8864a9"),
        ],
    ),
}  # fmt: skip
SUITES: dict[str, tuple[str, int, Any]] = {
    "TLS_AES_128_GCM_SHA256": ("sha256", 16, AESGCM),
    "TLS_AES_256_GCM_SHA384": ("sha384", 32, AESGCM),
    "TLS_CHACHA20_POLY1305_SHA256": ("sha256", 32, ChaCha20Poly1305),
}


def expand_label(digest: str, secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label (RFC 8446 section 7.1), written out, for an empty context."""
    info = struct.pack(">HB", size, 6 + len(label)) + b"tls13 " + label + b"\x00"
    made = block = b""
    while len(made) < size:
        block = hmac.digest(secret, block + info + bytes([len(made) // len(hmac.digest(b"", b"", digest)) + 1]), digest)
        made += block
    return made[:size]


def protection(suite: str, secret: bytes, number: int) -> tuple[Any, bytes, bytes, bytes]:
    """The AEAD of a record, its key and IV, and the nonce (RFC 8446 section 5.3)."""
    digest, key_bytes, aead = SUITES[suite]
    key, iv = expand_label(digest, secret, b"key", key_bytes), expand_label(digest, secret, b"iv", 12)
    return aead(key), key, iv, bytes(a ^ b for a, b in zip(iv, number.to_bytes(12, "big"), strict=True))


def traced(secret_hex: str, pieces: list[tuple[int, str]]) -> dict[str, Any]:
    secret = bytes.fromhex(secret_hex)
    _, key, iv, _ = protection("TLS_AES_128_GCM_SHA256", secret, 0)
    opened = []
    for number, record_hex in pieces:
        record = bytes.fromhex(record_hex)
        aead, _, _, nonce = protection("TLS_AES_128_GCM_SHA256", secret, number)
        inner = aead.decrypt(nonce, record[5:], record[:5])
        opened.append({"number": number, "record": record_hex, "type": inner[-1], "content": inner[:-1].hex()})
    return {"secret": secret_hex, "key": key.hex(), "iv": iv.hex(), "records": opened}


def generations(suite: str) -> dict[str, Any]:
    """The secrets behind four KeyUpdates (RFC 8446 section 7.2), and the first record that each protects."""
    digest, secrets, sealed = SUITES[suite][0], [], []
    secret = drawn(f"secret of {suite}", hashlib.new(digest).digest_size)
    for _ in range(4):
        aead, _, _, nonce = protection(suite, secret, 0)
        header = bytes((23, 3, 3, 0, len(b"known") + 1 + 16))
        secrets.append(secret.hex())
        sealed.append((header + aead.encrypt(nonce, b"known\x17", header)).hex())
        secret = expand_label(digest, secret, b"traffic upd", len(secret))
    return {"suite": suite, "secrets": secrets, "records": sealed}


def live_state(name: str, suite: str, client: list[int], server: list[int]) -> dict[str, Any]:
    """What a web server leaves of a connection; ``client`` and ``server``: from which records on keys are used."""
    size, nonce = hashlib.new(SUITES[suite][0]).digest_size, drawn(f"{name} nonce", 12)
    connection, checkpoint = drawn(f"{name} connection", 16), drawn(f"{name} checkpoint", 16)
    keys = [
        [[first, number, drawn(f"{name} {side} {number}", size)] for number, first in enumerate(firsts)]
        for side, firsts in (("client", client), ("server", server))
    ]
    plain = pack([1, connection, checkpoint, suite, *keys])
    return {
        "name": name, "suite": suite, "connection": connection.hex(), "checkpoint": checkpoint.hex(),
        "client": [[first, number, secret.hex()] for first, number, secret in keys[0]],
        "server": [[first, number, secret.hex()] for first, number, secret in keys[1]],
        "nonce": nonce.hex(), "sealed": seal(SECRETS[PRIMARY], "tls-connection", FARM, nonce, plain).hex(),
    }  # fmt: skip


def hand_off(secret: int, page: str, login: bool) -> dict[str, Any]:
    """Section 13: the messages of one hand-off, in the order in which they travel."""
    source, target, audience = "https://shop.example", "https://tickets.example", FARM + "\x00https://shop.example"
    session, told, item = (
        drawn(f"{page} session", 16),
        version(3, drawn(f"{page} owner", 8), 7),
        drawn(f"{page} item", 32),
    )
    binder = base64url(drawn(f"{page} binder", 32)).encode()

    def hashed(raw: bytes, person: bytes, size: int, key: bytes = b"") -> bytes:
        return hashlib.blake2b(raw, digest_size=size, person=person, key=key).digest()

    marking = derive(SECRETS[secret], b"hand-off-session\x00" + FARM.encode(), 32)
    mark = hashlib.blake2b(session, digest_size=16, key=marking).digest()
    of_page, of_binder = hashed(page.encode(), b"coatcheck-page", 16), hashed(binder, b"coatcheck-binder", 32)
    plain = {
        "hand-off/ask": (target, [source, of_page, mark, login, NOW]),
        "hand-off/call": (source, [target, page, mark, of_binder, 1, NOW + 40]),
        "hand-off": (target, [source, of_page, session, told, 63, login, "session-2", item, of_binder, 1, NOW + 80]),
        "hand-off/token": (
            target, [source, "", of_page, session, drawn(f"{page} ID", 16), NOW - 9, told, 63, login, NOW]
        ),
    }  # fmt: skip
    messages = []
    for purpose, (reader, fields) in plain.items():
        nonce = drawn(f"{page} {purpose}", 12)
        text = base64url(seal(SECRETS[secret], purpose, audience, nonce, pack(fields), reader.encode()))
        messages.append({"purpose": purpose, "reader": reader, "nonce": nonce.hex(), "text": text})
    return {
        "name": page, "secret": secret, "home": source, "page": page, "login": login, "session": session.hex(),
        "version": told.hex(), "item": item.hex(), "binder": binder.decode(), "mark": mark.hex(), "now": NOW,
        "taker": hashed(item, b"coatcheck-taker", 16, of_binder).hex(), "messages": messages,
    }  # fmt: skip


def device(name: str, secret: int, kind: int, serial: int) -> dict[str, Any]:
    """Section 14: a challenge, and the name of its session."""
    key, nonce = drawn(f"{name} bound key", 16), drawn(f"{name} challenge nonce", 12)
    plain = bytes([kind]) + key + NOW.to_bytes(6, "big") + serial.to_bytes(4, "big")
    return {
        "name": name, "secret": secret, "kind": kind, "key": key.hex(), "made_at": NOW, "serial": serial,
        "nonce": nonce.hex(), "challenge": base64url(seal(SECRETS[secret], "device-challenge", FARM, nonce, plain)),
        "identifier": base64url(seal(SECRETS[secret], "device-session", FARM, bytes(12), key)),
    }  # fmt: skip


def creation() -> dict[str, Any]:
    """A session that begins at ``NOW``: all that is drawn for it, and what its browser and its session servers get."""
    server_id, owner_tail = drawn("created server", 3), drawn("created owner", 5)
    key, session_id = drawn("created key", 16), drawn("created ID", 16)
    entry_nonce, token_nonce = drawn("created entry nonce", 12), drawn("created token nonce", 12)
    mark = version(1, server_id + owner_tail, 1)
    body = record({"cart": "tea"}, NOW, NOW, None, [[session_id, NOW], None, [], 0])
    header = FORMAT + b"\x00" + mark + b"\x01" + mark
    stored = header + seal(SECRETS[PRIMARY], "entry", FARM, entry_nonce, body, key + header)
    plain = key + session_id + NOW.to_bytes(6, "big") + mark
    cookie = base64url(seal(SECRETS[PRIMARY], "token/anonymous", FARM, token_nonce, plain))
    draws = [server_id, key, session_id, owner_tail, entry_nonce, token_nonce]
    return {"now": NOW, "data": {"cart": "tea"}, "draws": [each.hex() for each in draws], "key": key.hex(),
            "entry": stored.hex(), "cookie": cookie}  # fmt: skip


def known_answers() -> dict[str, Any]:
    one, other = drawn("owner one", 8), drawn("owner other", 8)
    link, older = [drawn("link", 16), NOW - 60_000], [drawn("older link", 16), NOW - 190_000]
    chain = [link, [drawn("next link", 16), NOW], [[older, NOW - 120_000, None]], NOW - 10_000_000]
    moved = [link, None, [[older, NOW - 120_000, NOW - 1]], 0]
    small = record({"cart": "tea"}, NOW - 5, NOW, None, [link, None, [], 0])
    large = record({"cart": ["tea", 3, True, None], "words": "x" * 40}, NOW - 9, NOW - 1, "ann@example.org", chain)
    answers = [[True, "é 1".encode()], [False, b"\x00\x01"]]
    sockets = {
        drawn("socket", 8): [2, 7, 5, answers, None, NOW],
        drawn("other socket", 8): [1, 0, 0, [], [4000, "done"], 1],
    }
    held = record({"n": 1}, NOW - 9, NOW - 1, None, [link, None, [], 0], sockets)
    tickets = ["tickets.example", [[drawn("link at tickets", 16), NOW - 5], None, [], 0]]
    redeemed = [drawn("redeemed", 16), "tickets.example", NOW - 5, False]
    nowhere = [[b"", 0], None, [], 1 << 62]
    of_two_sites = record({}, NOW - 9, NOW - 1, "ann", nowhere, None, [[tickets], [redeemed]])
    linked = ["https://id.example", "sid 1", "süb", NOW - 9]
    of_a_provider = record({}, NOW - 9, NOW - 1, "ann", [link, None, [], 0], None, None, linked)
    point, modulus = drawn("x", 32) + drawn("y", 32), b"\x80" + drawn("modulus", 255)
    bound = [["ES256", point], NOW - 9, NOW - 2, 3, b""]
    of_a_browser = record({}, NOW - 9, NOW - 1, "ann", [link, None, [], 0], None, None, None, None, bound)
    pending = [["RS256", modulus], NOW - 9, NOW - 9, 0, drawn("next link", 16)]
    to_be_bound = record({}, NOW - 9, NOW - 1, "ann", chain, None, None, None, NOW + 9, pending)
    epochs = [(n, drawn(f"epoch {n}", 8), n * 300) for n in range(5, 21)]
    key = drawn("told key", 16)
    return {
        "farm": FARM, "secrets": [secret.hex() for secret in SECRETS], "primary": PRIMARY,
        "key_ids": [key_id(secret).hex() for secret in SECRETS],
        "credentials": {name: credential(SECRETS[PRIMARY], name) for name in ("session-server", "director é")},
        "tokens": [
            token("anonymous", PRIMARY, "anonymous", NOW, version(3, one, 7)),
            token("logged in", PRIMARY, "login", NOW + 1, version(2**32 - 1, other, 2**32 - 1)),
            token("promised nothing", PRIMARY, "anonymous", (1 << 42) - 1, bytes(16), 63),
            token("of the former key", 0, "login", (1 << 32) - 1, version(1, one, 1)),
        ],
        "entries": [
            entry("just created", PRIMARY, (1, one, 1), [(1, one, 1)], small),
            entry("claimed", PRIMARY, (2, other, 0), [(1, one, 9)], record({}, 1, 2, "", moved)),
            entry("rotated", PRIMARY, (7, other, 2), [(3, one, 1), (7, other, 2)], large),
            entry("of two sites", PRIMARY, (9, other, 4), [(9, other, 4)], of_two_sites),
            entry("of many owners", 0, (20, epochs[-1][1], 6000), epochs, large),
            entry("with durable WebSockets", PRIMARY, (2, one, 3), [(2, one, 3)], held),
            entry("of an identity provider's session", PRIMARY, (1, one, 1), [(1, one, 1)], of_a_provider),
            entry("of a bound session", PRIMARY, (1, one, 2), [(1, one, 2)], of_a_browser),
            entry("of a session about to be bound", PRIMARY, (1, one, 2), [(1, one, 2)], to_be_bound),
            entry("tombstone", PRIMARY, (3, one, 0), [(1, one, 1)], None),
            entry("provisional tombstone", PRIMARY, (4, other, 0), [(1, one, 1)], None, True),
        ],
        "tickets": [
            ticket("of a login", PRIMARY, version(3, one, 7), 0, True),
            ticket("of the former key", 0, version(2**32 - 1, other, 0), 63, False),
        ],
        "tls_sessions": [
            tls_session("TLS 1.2", "web-1", "session-1", "shop.example", 0x0303, drawn("state", 134)),
            tls_session("TLS 1.3 without a name", "wéb-2", "east", "", 0x0304, drawn("large state", 600)),
        ],
        "ticket_keys": [
            ticket_key("hourly", 3_600_000, 497_500, ["shop.example", ""]),
            ticket_key("short", 1000, 1_791_000_001, ["www.shop.example"]),
        ],
        "tls_traffic": {
            "rfc_8448": {side: traced(*known) for side, known in TRACES.items()},
            "generations": [generations(suite) for suite in SUITES],
        },
        "live_states": [
            live_state("just begun", "TLS_AES_128_GCM_SHA256", [1], [4]),
            live_state("long, and taken over", "TLS_AES_256_GCM_SHA384", [1, 90, 70_000], [1 << 33, (1 << 33) + 1]),
        ],
        "device": [device("of a login", PRIMARY, 1, 0), device("of the former key", 0, 2, (1 << 32) - 1)],
        "hand_offs": [hand_off(PRIMARY, "/tickets/42?seat=3", True), hand_off(0, "/", False)],
        "placements": [
            *placement(["session-1", "session-2", "session-3"]),
            *placement([f"{number} of the ördinary names" * 3 for number in range(5)]),
        ],
        "messages": {
            "key": key.hex(), "epoch": 9, "owner": one.hex(), "seq": 0, "others_ms": 1999,
            "notice": (b"\x01" + key + version(9, one, 0) + b"\x00").hex(),
            "notice_of_a_close": (b"\x01" + key + version(9, one, 0) + b"\x01").hex(),
            "answer": (b"\x02" + key + version(9, one, 0) + (1999).to_bytes(4, "big")).hex(),
        },
        "soap": [
            soap("stateless", "SADMIN", "secret", NOW, 1, "one", "Stateless"),
            soap("stateful", "björn", "pässword " * 5, NOW, 70_000, "", "Stateful"),
        ],
        "creation": creation(),
    }  # fmt: skip


if __name__ == "__main__":
    print(json.dumps(known_answers(), indent=1, ensure_ascii=False))
