"""The key ring that several machines share: the states of its keys, and how two copies of it become one.

A key is *announced* (everybody opens with it, nobody seals yet), then *active* (it seals), then *retiring* (it opens
only), then *revoked* (it opens nothing, and its secret is gone). No step is ever taken back, so copies that were
changed apart are joined without asking who is right: of each key the furthest step counts.
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import Enum
from typing import Final

import msgspec

from coatcheck.errors import ConfigError, CorruptEntry
from coatcheck.tokens.keyring import MIN_SECRET_BYTES, KeyRing, key_id

MAX_KEYS: Final = KeyRing.MAX_KEYS
MAX_REVOKED: Final = 64
"""Revoked keys that are remembered, so that an old copy of the ring brings none of them back."""
MAX_MACHINES: Final = 32
MAX_MACHINE_NAME: Final = 64
"""Characters of a machine's name."""
FORMAT: Final = 1


class KeyState(Enum):
    """What a key does for the farm now."""

    ANNOUNCED = "announced"
    ACTIVE = "active"
    RETIRING = "retiring"
    REVOKED = "revoked"


class SharedKey(msgspec.Struct, frozen=True, array_like=True):
    """One key. ``activation``: the how manieth key of the ring it was to seal; 0: it is only announced."""

    id: bytes
    secret: bytes
    """Empty once it is revoked."""
    activation: int = 0
    revoked: bool = False

    def __repr__(self) -> str:
        return f"<SharedKey {self.id.hex()}>"

    def joined(self, other: SharedKey) -> SharedKey:
        """The furthest that either says of this key."""
        revoked = self.revoked or other.revoked
        secret = b"" if revoked else max(self.secret, other.secret)
        return SharedKey(self.id, secret, max(self.activation, other.activation), revoked)


class RingMember(msgspec.Struct, frozen=True, array_like=True):
    """What one machine says of itself. ``accepts``: the IDs of the keys that all its processes open with.

    ``beat`` is raised with each word; the higher one is the later one. ``has_left``: its last word, at a planned stop.
    """

    beat: int
    accepts: tuple[bytes, ...] = ()
    has_left: bool = False


class RingState(msgspec.Struct, frozen=True, array_like=True):
    """The ring at one moment, in one place. Made by :func:`seed`, changed by its methods, each of which gives another.

    A ring that is no set of keys any more cannot be made: raises :class:`ConfigError`.
    """

    format: int
    keys: tuple[SharedKey, ...]
    machines: dict[str, RingMember]

    @property
    def usable(self) -> tuple[SharedKey, ...]:
        """The keys that open: the retiring ones, the active one, the announced ones."""
        return tuple(sorted((key for key in self.keys if not key.revoked), key=_by_age))

    @property
    def active(self) -> SharedKey:
        """The key that seals: the one that was told to last."""
        return max(self.usable, key=lambda key: (key.activation, key.id))

    def state_of(self, key: SharedKey) -> KeyState:
        if key.revoked:
            return KeyState.REVOKED
        if not key.activation:
            return KeyState.ANNOUNCED
        return KeyState.ACTIVE if key == self.active else KeyState.RETIRING

    @property
    def announced(self) -> SharedKey | None:
        """The key that is to seal next, if there is one."""
        return next((key for key in self.usable if not key.activation), None)

    def announce(self, secret: bytes) -> RingState:
        """With one more key, which opens and does not seal; raises :class:`ConfigError` if there are too many."""
        if len(self.usable) >= MAX_KEYS:
            raise ConfigError(f"keys: there are {MAX_KEYS} already; revoke an old one first")
        return self._with(SharedKey(key_id(secret), secret))

    def activate(self, identity: bytes) -> RingState:
        """This announced key seals from now on."""
        key = self._key(identity)
        if key.revoked or key.activation:
            raise ConfigError(f"keys: {identity.hex()} is not announced; announce a key first")
        return self._with(msgspec.structs.replace(key, activation=self.active.activation + 1))

    def revoke(self, identity: bytes) -> RingState:
        """Without the secret of this key; raises :class:`ConfigError` for the one that seals."""
        key = self._key(identity)
        if key == self.active:
            raise ConfigError("keys: this is the key that seals; rotate first")
        return self._with(msgspec.structs.replace(key, secret=b"", revoked=True))

    def says(self, name: str, accepts: Iterable[bytes], now_ms: int) -> RingState:
        """As the machine ``name`` says it: it opens with these keys, and is there (``now_ms``: Unix ms)."""
        return self._heard(name, RingMember(now_ms, tuple(sorted(accepts))))

    def leaves(self, name: str, now_ms: int) -> RingState:
        """The machine ``name`` stops, and nobody need wait for it."""
        return self._heard(name, RingMember(now_ms, has_left=True))

    def _heard(self, name: str, word: RingMember) -> RingState:
        before = self.machines.get(name)
        if before is not None and before.beat >= word.beat:
            word = msgspec.structs.replace(word, beat=before.beat + 1)
        return self._among({**self.machines, name: word})

    @property
    def present(self) -> dict[str, RingMember]:
        """The machines that have not left."""
        return {name: one for name, one in self.machines.items() if not one.has_left}

    def unaware(self, identity: bytes) -> list[str]:
        """The machines that have not said that they open with this key."""
        return sorted(name for name, one in self.present.items() if identity not in one.accepts)

    def joined(self, other: RingState) -> RingState:
        """What both say: of each key the furthest step, of each machine the latest word."""
        keys = {key.id: key for key in self.keys}
        for key in other.keys:
            mine = keys.get(key.id)
            keys[key.id] = key if mine is None else mine.joined(key)
        machines = dict(self.machines)
        for name, one in other.machines.items():
            if name not in machines or (machines[name].beat, machines[name].accepts) < (one.beat, one.accepts):
                machines[name] = one
        return msgspec.structs.replace(self, keys=_bounded(keys.values()))._among(machines)

    def _key(self, identity: bytes) -> SharedKey:
        for key in self.keys:
            if key.id == identity:
                return key
        raise ConfigError(f"keys: there is no key {identity.hex()}")

    def _with(self, changed: SharedKey) -> RingState:
        others = (key for key in self.keys if key.id != changed.id)
        return msgspec.structs.replace(self, keys=_bounded([*others, changed]))

    def _among(self, machines: dict[str, RingMember]) -> RingState:
        newest = sorted(machines.items(), key=lambda item: (-item[1].beat, item[0]))[:MAX_MACHINES]
        return msgspec.structs.replace(self, machines=dict(sorted(newest)))


def _by_age(key: SharedKey) -> tuple[bool, int, bytes]:
    return not key.activation, key.activation, key.id


def _bounded(keys: Iterable[SharedKey]) -> tuple[SharedKey, ...]:
    """Sorted, so that equal rings are equal; of the revoked ones those that sealed last."""
    ordered = sorted(keys, key=_by_age)
    revoked = [key for key in ordered if key.revoked][-MAX_REVOKED:]
    return tuple(key for key in ordered if not key.revoked or key in revoked)


def seed(secrets: tuple[bytes, ...], primary: int) -> RingState:
    """The ring that a farm begins with: the keys that all its machines were given."""
    keys = []
    for at, secret in enumerate(secrets):
        activation = 0 if at > primary else at + 1
        keys.append(SharedKey(key_id(secret), secret, activation))
    return RingState(FORMAT, _bounded(keys), {})


def encode_ring(state: RingState) -> bytes:
    """MessagePack; it holds secrets, so it is sealed before it goes anywhere."""
    return msgspec.msgpack.encode(state)


def decode_ring(raw: bytes) -> RingState:
    """The reverse of :func:`encode_ring`; raises :class:`CorruptEntry` for what is no ring of this format."""
    try:
        state = msgspec.msgpack.decode(raw, type=RingState)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise CorruptEntry(f"no key ring: {error}") from None
    if state.format != FORMAT:
        raise CorruptEntry(f"a key ring of format {state.format}; this release knows {FORMAT}")
    if not any(key.activation and not key.revoked for key in state.keys):
        raise CorruptEntry("a key ring without a key that seals")
    if any(not key.revoked and len(key.secret) < MIN_SECRET_BYTES for key in state.keys):
        raise CorruptEntry("a key ring with a key that is too short")
    return state
