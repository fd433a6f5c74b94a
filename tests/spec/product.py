"""What the product answers to the cases of the specification, and cases that the product makes."""

from __future__ import annotations

import json
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Iterator
from random import Random
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV

from coatcheck.errors import CorruptEntry, TokenRejected
from coatcheck.replication.entry import decode_entry, encode_header
from coatcheck.replication.placement import Placement
from coatcheck.replication.put_rule import Verdict, judge, servers_to_notify
from coatcheck.replication.version import Version, covers, with_write
from coatcheck.sessions.record import encode_chain
from coatcheck.tokens.chain import Chain, ChainLink, Retired, Shown, mint, needs_successor, show
from coatcheck.tokens.keyring import KeyRing, PayloadSealer
from coatcheck.tokens.sealed import TokenCodec

Case = dict[str, Any]
START_MS = 1_763_700_000_000


def fixed(nonce: str) -> Callable[[int], bytes]:
    return lambda count: bytes.fromhex(nonce)


def ring_of(ask: Case) -> KeyRing:
    return KeyRing([bytes.fromhex(secret) for secret in ask["secrets"]], ask["primary"])


# -- tokens ----------------------------------------------------------------------------------------


def seal_token(ask: Case) -> str:
    token = ask["token"]
    codec = TokenCodec(ring_of(ask), ask["purpose"], ask["audience"], fixed(ask["nonce"]))
    key, session_id, version = (bytes.fromhex(token[name]) for name in ("key", "session_id", "version"))
    return codec.seal(key, session_id, token["timestamp"], version, token["list_number"]).decode()


def open_token(ask: Case) -> Case:
    codec = TokenCodec(ring_of(ask), ask["purpose"], ask["audience"], fixed(""))
    try:
        token = codec.open(ask["text"].encode())
    except TokenRejected as rejection:
        return {"refused": rejection.reason.value}
    return {
        "key": token.key.hex(),
        "session_id": token.session_id.hex(),
        "timestamp": token.timestamp,
        "list_number": token.list_number,
        "version": token.version.hex(),
    }


# -- chains ----------------------------------------------------------------------------------------

VERDICTS = {Shown.CURRENT: "current", Shown.NEXT: "next", Shown.IN_GRACE: "in_grace", Shown.LATE: "late",
            Shown.RETURNED: "returned", Shown.STOLEN: "stolen", Shown.DEAD: "dead"}  # fmt: skip


def link(of: Case) -> ChainLink:
    return ChainLink(bytes.fromhex(of["id"]), of["minted_at"])


def chain(of: Case) -> Chain:
    retired = tuple(Retired(link(old), old["retired_at"], old["moved_on_at"]) for old in of["retired"])
    return Chain(link(of["current"]), None if of["next"] is None else link(of["next"]), retired, of["forgotten_at"])


def plain_link(one: ChainLink) -> Case:
    return {"id": one.session_id.hex(), "minted_at": one.minted_at}


def plain_chain(one: Chain) -> Case:
    return {
        "current": plain_link(one.current),
        "next": None if one.next is None else plain_link(one.next),
        "retired": [
            {**plain_link(old.link), "retired_at": old.retired_at, "moved_on_at": old.moved_on_at}
            for old in one.retired
        ],
        "forgotten_at": one.forgotten_at,
    }


def show_link(ask: Case) -> Case:
    shown, now, grace = link(ask["shown"]), ask["now"], ask["grace"]
    verdict, after = show(
        chain(ask["chain"]), shown.session_id, shown.minted_at, now, grace, ask["newest_shown_at"]
    )  # fmt: skip
    if needs_successor(after, verdict, now, ask["rotate_after"]):
        after = mint(after, bytes.fromhex(ask["id"]), now)
    return {
        "verdict": VERDICTS[verdict],
        "chain": plain_chain(after),
        "told": plain_link(after.told(now, grace)),
        "packed": encode_chain(after).hex(),
    }


# -- entries and the put rule ----------------------------------------------------------------------


def header_of(entry: Case) -> bytes:
    version, history = Version.unpack(bytes.fromhex(entry["version"])), entry.get("history", ())
    packed = tuple(Version.unpack(bytes.fromhex(one)) for one in history)
    return encode_header(version, packed, bool(entry["flags"]), entry["flags"] == 3)


def seal_entry(ask: Case) -> str:
    entry, header = ask["entry"], header_of(ask["entry"])
    sealer = PayloadSealer(ring_of(ask), ask["farm"], fixed(ask["nonce"]))
    return (header + sealer.seal(bytes.fromhex(ask["key"]), header, bytes.fromhex(entry["body"]))).hex()


def open_entry(ask: Case) -> Case:
    try:
        entry = decode_entry(bytes.fromhex(ask["raw"]), 1)
    except CorruptEntry:
        return {"refused": "shape"}
    try:
        body = PayloadSealer(ring_of(ask), ask["farm"], fixed("")).unseal(
            bytes.fromhex(ask["key"]), entry.header(), entry.payload
        )
    except CorruptEntry:
        return {"refused": "payload"}
    return {
        "flags": entry.closed + 2 * entry.provisional,
        "version": entry.version.hex(),
        "history": [one.hex() for one in entry.history],
        "body": body.hex(),
    }


def versions(texts: list[str]) -> tuple[Version, ...]:
    return tuple(Version.unpack(bytes.fromhex(text)) for text in texts)


def put(ask: Case) -> Case:
    stored = None if ask["stored"] is None else header_of(ask["stored"])
    verdict = judge(stored, bytes.fromhex(ask["seen"] or ""), header_of(ask["new"]))
    notified = servers_to_notify(verdict, stored, b"")
    return {"accepted": verdict is not Verdict.REFUSED, "notified": notified[0].hex() if notified else None}


ANSWERS: dict[str, Callable[[Case], Any]] = {
    "seal_token": seal_token,
    "open_token": open_token,
    "show": show_link,
    "seal_entry": seal_entry,
    "open_entry": open_entry,
    "put": put,
    "covers": lambda ask: covers(versions(ask["history"]), versions([ask["version"]])[0]),
    "written": lambda ask: [one.hex() for one in with_write(versions(ask["history"]), versions([ask["version"]])[0])],
    "ranking": lambda ask: list(Placement(ask["names"], "all").ranking(bytes.fromhex(ask["key"]))),
    "gcm_siv": lambda ask: (
        AESGCMSIV(bytes.fromhex(ask["key"]))
        .encrypt(*(bytes.fromhex(ask[name]) for name in ("nonce", "plain", "associated")))
        .hex()
    ),
}


def answer(ask: Case) -> Any:
    """What the product says, as JSON would have it."""
    return json.loads(json.dumps(ANSWERS[ask["kind"]](ask)))


# -- cases that the product makes ------------------------------------------------------------------


class Maker:
    """Cases of one seed. What is sealed in them, and what becomes of their chains, is the product's doing."""

    def __init__(self, seed: int) -> None:
        self._dice = Random(seed)

    def cases(self, count: int) -> Iterator[Case]:
        made = 0
        while made < count:
            kind = self._dice.random()
            some = [self._token()] if kind < 0.7 else [self._entry()] if kind < 0.9 else [self._put()]
            for case in self._chain(20) if kind > 0.98 else some:
                made += 1
                if made <= count:
                    yield case

    def _hex(self, size: int) -> str:
        return self._dice.randbytes(size).hex()

    def _ring(self) -> Case:
        secrets = [self._hex(self._dice.choice((32, 40, 64))) for _ in range(self._dice.randint(1, 3))]
        return {"secrets": secrets, "primary": self._dice.randrange(len(secrets))}

    def _flipped(self, raw: bytes) -> bytes:
        at = self._dice.randrange(len(raw))
        return raw[:at] + bytes([raw[at] ^ 1 << self._dice.randrange(8)]) + raw[at + 1 :]

    def _token(self) -> Case:
        dice = self._dice
        ask: Case = {**self._ring(), "purpose": dice.choice(("anonymous", "login")), "audience": dice.choice("ab")}
        token = {"key": self._hex(16), "session_id": self._hex(16), "timestamp": dice.randrange(1 << 42),
                 "list_number": dice.randrange(64), "version": self._hex(16)}  # fmt: skip
        sealing = {**ask, "kind": "seal_token", "nonce": self._hex(12), "token": token}
        text, fate = seal_token(sealing), dice.random()
        if fate < 0.1:
            return sealing
        if fate < 0.25:
            text = urlsafe_b64encode(self._flipped(urlsafe_b64decode(text))).decode()
        elif fate < 0.3:
            ask["audience"] += "c"
        elif fate < 0.35:
            ask |= self._ring()
        elif fate < 0.4:
            text = text[: dice.randrange(117)] + dice.choice(("", "A", "+", "\u00e9"))
        return {**ask, "kind": "open_token", "text": text}

    def _chain(self, count: int) -> Iterator[Case]:
        dice = self._dice
        grace, rotate_after = dice.choice((0, 500, 60_000)), dice.choice((0, 1000, 300_000))
        now, newest = START_MS, None
        one = Chain(ChainLink(self._dice.randbytes(16), now))
        known = [one.current]
        for _ in range(count):
            now += dice.choice((0, 1, grace, grace + 1, 2 * grace + 1, rotate_after, dice.randrange(200_000)))
            shown = dice.choice((one.current, one.next or one.current, dice.choice(known)))
            ask = {"kind": "show", "chain": plain_chain(one), "shown": plain_link(shown), "now": now, "grace": grace,
                   "rotate_after": rotate_after, "id": self._hex(16),
                   "newest_shown_at": dice.choice((None, newest))}  # fmt: skip
            told = show_link(ask)
            one = chain(told["chain"])
            if one.next is not None:
                known.append(one.next)
            if told["verdict"] in ("current", "next"):
                newest = now
            yield ask

    def _version(self) -> str:
        dice = self._dice
        return f"{dice.randint(1, 3):08x}" + dice.choice(("aa" * 8, "ab" * 8)) + f"{dice.choice((0, 1, 2, 255)):08x}"

    def _entry(self) -> Case:
        dice, ask = self._dice, {**self._ring(), "farm": "farm", "key": self._hex(16)}
        flags = dice.choice((0, 1, 3))
        entry = {"flags": flags, "version": self._version(), "body": "" if flags else self._hex(dice.randrange(300)),
                 "history": [self._version() for _ in range(dice.choice((0, 1, 16)))]}  # fmt: skip
        sealing = {**ask, "kind": "seal_entry", "nonce": self._hex(12), "entry": entry}
        raw, fate = bytes.fromhex(seal_entry(sealing)), dice.random()
        if fate < 0.2:
            return sealing
        if fate < 0.5:
            raw = self._flipped(raw[:40]) + raw[40:]
        elif fate < 0.6:
            raw = raw[: dice.randrange(len(raw))]
        elif fate < 0.7:
            ask["key"] = self._hex(16)
        return {**ask, "kind": "open_entry", "raw": raw.hex()}

    def _put(self) -> Case:
        dice = self._dice
        one: Callable[[], Case] = lambda: {"flags": dice.choice((0, 0, 1, 3)), "version": self._version()}  # noqa: E731
        stored = one() if dice.random() < 0.8 else None
        new = stored if stored is not None and dice.random() < 0.2 else one()
        seen = dice.choice((None, self._version(), stored["version"] if stored is not None else None))
        return {"kind": "put", "stored": stored, "seen": seen, "new": new}
