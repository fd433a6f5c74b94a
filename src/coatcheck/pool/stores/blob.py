"""A user's state as sealed bytes, for SQLite, PostgreSQL and states of before in Redis: read, apply the rules, write.

All of the state is sealed, not only the tokens, so whoever can write to the store can delete state and bring back an
old one whole, but neither read nor invent one.
"""

from __future__ import annotations

from collections.abc import Iterable
from os import urandom
from typing import Final

import msgspec

from coatcheck.errors import TokenReason, TokenRejected
from coatcheck.pool import rules, slots
from coatcheck.pool.commands import Acquire, Add, Command, CommandOutcome, LogInAhead, LoginDone, Reset, Then
from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.state import NOBODYS, Policy, UserState, new_user
from coatcheck.pool.stores.header import has_ended, sealed_of, with_end
from coatcheck.pool.stores.values import Values, cannot_be_opened
from coatcheck.tokens.keyring import KeyRing

TICKET_LIFE_S: Final = 3.0
"""A waiting process that dies holds the queue up for so long at most."""

FORMAT: Final = b"\x02"
FORMER: Final = b"\x01"
"""States of before tokens had credentials. Whose their tokens are is not known, so nobody gets them any more."""

LIMITING = (Acquire, LogInAhead, LoginDone, Add, Then)
"""After these the state says what the limits of their pool are; the script of Redis has the same list."""


class Changed(msgspec.Struct):
    """What a command made of a state: the new bytes (``None``: unchanged), the outcome, and whose turn it is."""

    sealed: bytes | None
    outcome: CommandOutcome
    turns: list[int]


class StateBox:
    """Seals, opens and changes states. Every state is bound to the pool's name and to its user."""

    def __init__(self, ring: KeyRing, name: str, policy: Policy) -> None:
        self.policy = msgspec.structs.replace(policy, ticket_life_s=TICKET_LIFE_S)
        self.name = name
        self.values = Values(ring, name)
        self.shared_name = f"{name}\x1fshared"  # no pool has such a name: its characters are printable
        self._box = ring.box("pool-state", name, urandom)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(UserState)

    def seal(self, user: str, state: UserState) -> bytes:
        return self._sealed(user, state, self._encoder.encode(state))

    def _sealed(self, user: str, state: UserState, encoded: bytes) -> bytes:
        return with_end(state.ends_at(), self._box.seal(FORMAT + encoded, user.encode()))

    def open(self, user: str, stored: bytes) -> UserState:
        """Raises ``StoreUnavailable`` on bytes that our keys did not seal for this pool and user."""
        try:
            return self._open(user, stored)
        except TokenRejected as rejection:
            raise cannot_be_opened(user, rejection.reason) from None

    def _open(self, user: str, stored: bytes) -> UserState:
        try:
            plain = self._box.open(sealed_of(stored), user.encode())
            if plain[:1] not in (FORMAT, FORMER):
                raise StoreUnavailable(f"the state of {user!r} has a format that this version does not know")
            state = self._decoder.decode(plain[1:])
            return state if plain[:1] == FORMAT else _of_nobody(state)
        except msgspec.DecodeError:
            raise StoreUnavailable(f"the state of {user!r} is not what a pool writes") from None

    def shown(self, found: Iterable[tuple[str, bytes, float]]) -> dict[str, tuple[UserState, float]]:
        """The states of users with the store's time; without those that were sealed by a key that we do not have."""
        states = {}
        for user, stored, now in found:
            try:
                states[user] = self._open(user, stored), now
            except TokenRejected as rejection:
                if rejection.reason is not TokenReason.UNKNOWN_KEY:
                    raise cannot_be_opened(user, rejection.reason) from None
        return states

    def is_idle(self, user: str, stored: bytes, now: float) -> bool:
        """Whether nothing is in the state that anybody could miss."""
        try:
            return self._open(user, stored).is_idle(now)
        except TokenRejected as rejection:
            return has_ended(rejection, stored, now)

    def _state(self, user: str, stored: bytes | None, now: float, command: Command) -> tuple[UserState, bytes]:
        """The state, and how it is encoded; new, and not as it is stored, if nobody can use what is stored any more."""
        if stored is not None:
            try:
                state = self._open(user, stored)
            except TokenRejected as rejection:
                # Its key is gone. Who still has it may use what is in it, until that ends or an operator says so.
                reset = rejection.reason is TokenReason.UNKNOWN_KEY and isinstance(command, Reset)
                if not (reset or has_ended(rejection, stored, now)):
                    raise cannot_be_opened(user, rejection.reason) from None
                return new_user(int(now * 1_000_000)), b""
        else:
            state = new_user(int(now * 1_000_000))
        return state, self._encoder.encode(state)

    def change(self, user: str, stored: bytes | None, now: float, command: Command) -> Changed:
        """Apply ``command`` at ``now`` (Unix seconds of the store's clock)."""
        state, before = self._state(user, stored, now, command)
        outcome = rules.apply(state, self.policy, now, command)
        after = self._encoder.encode(state)
        limits = self.policy.per_user, self.policy.max_uses
        if after != before and isinstance(command, LIMITING) and limits != state.limits:
            state.limits = limits
            after = self._encoder.encode(state)
        new = self._sealed(user, state, after) if after != before else None
        return Changed(new, outcome, slots.turns(state, self.policy, now))

    def is_turn(self, state: UserState, now: float, ticket: int) -> bool:
        """Whether the caller with ``ticket`` should ask again: it is its turn, or something is overdue."""
        return (
            now >= state.next_deadline
            or any(now >= other.alive_until for other in state.tickets)
            or ticket in slots.turns(state, self.policy, now)
        )


def _of_nobody(state: UserState) -> UserState:
    """A state of the release before: its tokens hold their slots until they expire, or somebody needs the room."""
    for token in state.free:
        token.credentials = NOBODYS
    for holding in state.leases.values():
        holding.credentials = NOBODYS
        if holding.token is not None:
            holding.token.credentials = NOBODYS
    state.tickets = []  # those who wait come back by themselves
    return state
