"""The farm's secret keys: which one seals, and which ones still open (threat model, section 7; ASVS 9.1)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from hashlib import blake2b
from hmac import compare_digest
from typing import ClassVar

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCMSIV
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from coatcheck.errors import ConfigError, CorruptEntry, TokenReason, TokenRejected

KEY_ID_BYTES = 4
NONCE_BYTES = 12
TAG_BYTES = 16
MIN_SECRET_BYTES = 32
FORMAT = 1
OVERHEAD_BYTES = 1 + KEY_ID_BYTES + NONCE_BYTES + TAG_BYTES

RandomBytes = Callable[[int], bytes]


def key_id(secret: bytes) -> bytes:
    """The 4 bytes that name a key in everything that it sealed (behind the format's byte)."""
    return _derive(secret, b"key-id", KEY_ID_BYTES)


def sealing_key(raw: bytes, at: int = 0) -> bytes:
    """The ID of the key that sealed what begins at ``at``; it stands in clear, so nothing is opened for that."""
    return raw[at + 1 : at + 1 + KEY_ID_BYTES]


def _derive(secret: bytes, info: bytes, length: int) -> bytes:
    return HKDF(SHA256(), length, salt=None, info=b"coatcheck/1/" + info).derive(secret)


class KeyRing:
    """The secrets that open sealed things; one of them, the primary, seals new ones.

    Every server must accept a key before any server seals with it: add the new secret on all servers
    first, make it the primary afterwards, and drop the old one when the longest token has expired.
    """

    MAX_KEYS: ClassVar = 16

    def __init__(self, secrets: Sequence[bytes], primary: int = 0) -> None:
        """``secrets``: at least one, of at least 32 random bytes each; ``primary``: the index of the sealing one."""
        if not 1 <= len(secrets) <= self.MAX_KEYS:
            raise ConfigError(f"the key ring needs 1 to {self.MAX_KEYS} keys, not {len(secrets)}")
        if any(len(secret) < MIN_SECRET_BYTES for secret in secrets):
            raise ConfigError(f"a key of the key ring needs at least {MIN_SECRET_BYTES} bytes")
        if not 0 <= primary < len(secrets):
            raise ConfigError(f"primary key {primary} is not in the key ring of {len(secrets)}")
        self._secrets = {_derive(secret, b"key-id", KEY_ID_BYTES): bytes(secret) for secret in secrets}
        if len(self._secrets) != len(secrets):
            raise ConfigError("two keys of the key ring are the same")
        self._primary = _derive(secrets[primary], b"key-id", KEY_ID_BYTES)
        self._boxes: list[SealedBox] = []
        self._macs: list[KeyedMac] = []
        self._on_change: list[Callable[[], None]] = []
        self._branches: list[KeyRing] = []

    def __repr__(self) -> str:
        return f"<KeyRing of {len(self._secrets)} keys, primary {self._primary.hex()}>"

    def box(self, purpose: str, audience: str, random_bytes: RandomBytes) -> SealedBox:
        """What seals and opens for one purpose and one audience; a thing sealed for another never opens here."""
        info = f"{purpose}\x00{audience}".encode()
        box = SealedBox(self._keys(info), self._primary, info, random_bytes)
        self._boxes.append(box)
        return box

    def on_change(self, forget: Callable[[], None]) -> None:
        """Call ``forget`` after each change of the ring: what was opened before may not open any more."""
        self._on_change.append(forget)

    def branch(self) -> KeyRing:
        """The same keys for somebody who may be gone before this ring is: it follows each change until it is
        :meth:`cut`, and then this ring holds nothing of it."""
        branch = KeyRing(list(self._secrets.values()), list(self._secrets).index(self._primary))
        self._branches.append(branch)
        return branch

    def cut(self, branch: KeyRing) -> None:
        """Tell ``branch`` of no more changes. May be repeated."""
        if branch in self._branches:
            self._branches.remove(branch)

    def join(self, branch: KeyRing) -> None:
        """Have ``branch`` follow again, beginning with what has changed since it was cut. May be repeated."""
        if branch not in self._branches:
            self._branches.append(branch)
        if (branch._secrets, branch._primary) != (self._secrets, self._primary):
            branch.change(list(self._secrets.values()), list(self._secrets).index(self._primary))

    def mac(self, purpose: str, audience: str) -> KeyedMac:
        """What marks and knows our own things that stand in clear, for one purpose and one audience."""
        mac = KeyedMac(f"{purpose}\x00{audience}".encode())
        mac.use(*self._mac_keys(mac.purpose))
        self._macs.append(mac)
        return mac

    def _mac_keys(self, info: bytes) -> tuple[list[bytes], bytes]:
        keys = {key_id: _derive(secret, info, 32) for key_id, secret in self._secrets.items()}
        return list(keys.values()), keys[self._primary]

    def _keys(self, info: bytes) -> dict[bytes, AESGCMSIV]:
        return {key_id: AESGCMSIV(_derive(secret, info, 32)) for key_id, secret in self._secrets.items()}

    def change(self, secrets: Sequence[bytes], primary: int) -> None:
        """Hold these secrets from now on, and so does every box of this ring; judged as by the constructor."""
        judged = KeyRing(secrets, primary)
        self._secrets, self._primary = judged._secrets, judged._primary
        for box in self._boxes:
            box.use(self._keys(box.purpose), self._primary)
        for mac in self._macs:
            mac.use(*self._mac_keys(mac.purpose))
        for forget in self._on_change:
            forget()
        for branch in list(self._branches):
            branch.change(secrets, primary)

    def credential(self, name: str) -> str:
        """A password that only holders of the primary key can know, for server-to-server authentication."""
        return _derive(self._secrets[self._primary], b"credential\x00" + name.encode(), 24).hex()

    def credentials(self, name: str) -> tuple[str, ...]:
        """Every password that a holder of one of our keys may show, the own one first: while keys are rotated, one side
        of a connection may be a step ahead of the other."""
        others = (secret for key_id, secret in self._secrets.items() if key_id != self._primary)
        infos = (_derive(secret, b"credential\x00" + name.encode(), 24).hex() for secret in others)
        return (self.credential(name), *infos)

    def derived(self, purpose: str) -> tuple[tuple[bytes, ...], int]:
        """Secrets for a ring of a process that must not open what this one seals, and the index of its primary."""
        info = b"ring\x00" + purpose.encode()
        secrets = tuple(_derive(secret, info, MIN_SECRET_BYTES) for secret in self._secrets.values())
        return secrets, list(self._secrets).index(self._primary)


class SealedBox:
    """AES-256-GCM-SIV (RFC 8452) for one purpose: ``format, key ID (4), nonce (12), ciphertext, tag (16)``."""

    def __init__(self, keys: dict[bytes, AESGCMSIV], primary: bytes, purpose: bytes, random_bytes: RandomBytes) -> None:
        self.purpose = purpose
        self._random_bytes = random_bytes
        self.use(keys, primary)

    def use(self, keys: dict[bytes, AESGCMSIV], primary: bytes) -> None:
        """Open with these keys from now on, by their IDs, and seal with the primary one."""
        self._openers = {bytes([FORMAT]) + key_id: key.decrypt for key_id, key in keys.items()}
        self._prefix = bytes([FORMAT]) + primary
        self._encrypt = keys[primary].encrypt
        # Format byte, key ID, purpose and audience are all authenticated.
        self._associated = {prefix: prefix + self.purpose for prefix in self._openers}
        self._sealing_associated = self._associated[self._prefix]

    def prefixes(self) -> list[bytes]:
        """How everything begins that this box opens (5 bytes: format and key ID); what it seals begins as the first."""
        return [self._prefix, *(prefix for prefix in self._openers if prefix != self._prefix)]

    def knows(self, sealed: bytes) -> bool:
        """Whether the key that sealed this is in the ring; nothing is opened for that."""
        return sealed[:5] in self._openers

    def seal(self, plain: bytes, context: bytes = b"") -> bytes:
        """Seal with the primary key; ``context`` is authenticated, not stored. Adds 33 bytes."""
        nonce = self._random_bytes(NONCE_BYTES)
        return self._prefix + nonce + self._encrypt(nonce, plain, self._sealing_associated + context)

    def open(self, sealed: bytes, context: bytes = b"") -> bytes:
        """The reverse of :meth:`seal`; raises :class:`TokenRejected` on anything that our ring did not seal."""
        prefix = sealed[:5]
        opener = self._openers.get(prefix)
        if opener is None:
            if len(sealed) < OVERHEAD_BYTES:
                raise TokenRejected(TokenReason.MALFORMED)
            if sealed[0] != FORMAT:
                raise TokenRejected(TokenReason.UNKNOWN_FORMAT)
            raise TokenRejected(TokenReason.UNKNOWN_KEY)
        try:
            return opener(sealed[5:17], sealed[17:], self._associated[prefix] + context)
        except (InvalidTag, ValueError):
            raise TokenRejected(TokenReason.FORGED) from None


class KeyedMac:
    """Keyed BLAKE2b (RFC 7693) for one purpose."""

    def __init__(self, purpose: bytes) -> None:
        self.purpose = purpose

    def use(self, keys: list[bytes], primary: bytes) -> None:
        """Know the marks of these keys from now on, and mark with the primary one."""
        self._all = [primary, *[key for key in keys if key != primary]]
        self._marking = primary

    def mark(self, clear: bytes, size: int) -> bytes:
        """``size`` bytes that only holders of the primary key can make."""
        return blake2b(clear, digest_size=size, key=self._marking).digest()

    def marks(self, clear: bytes, size: int) -> list[bytes]:
        """The marks that each of our keys makes, that of the primary first."""
        return [blake2b(clear, digest_size=size, key=key).digest() for key in self._all]

    def is_ours(self, clear: bytes, mark: bytes) -> bool:
        """Whether a holder of one of our keys made this mark; in constant time for each key."""
        return any(compare_digest(blake2b(clear, digest_size=len(mark), key=key).digest(), mark) for key in self._all)


class PayloadSealer:
    """Seals what session servers store: they never see session data (invariant 7).

    The entry's clear header and the session's key are bound to the payload, so a session server cannot
    pass an old state off as a new version, nor one session's data as another's.
    """

    def __init__(self, ring: KeyRing, farm: str, random_bytes: RandomBytes) -> None:
        self._box = ring.box("entry", farm, random_bytes)

    def seal(self, key: bytes, header: bytes, body: bytes) -> bytes:
        return self._box.seal(body, key + header)

    def knows(self, payload: bytes) -> bool:
        return self._box.knows(payload)

    def unseal(self, key: bytes, header: bytes, payload: bytes) -> bytes:
        try:
            return self._box.open(payload, key + header)
        except TokenRejected as rejection:
            raise CorruptEntry(f"payload {rejection.reason.value}") from None
