"""A user's state as Redis keeps it: numbers, deadlines and keyed hashes in clear, for the server decides by them; the
values of tokens sealed.

A value is bound to its pool, its user and the credentials that opened it, so whoever can write to the server can move
it neither to another user nor to other credentials.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from os import urandom
from typing import Any, Final

import msgspec

from coatcheck.errors import TokenReason, TokenRejected
from coatcheck.pool.errors import StoreUnavailable
from coatcheck.pool.masking import UNREADABLE
from coatcheck.pool.state import NO_LIMIT, Ticket, UserState
from coatcheck.tokens.keyring import KeyRing

PREFIX_BYTES: Final = 5
"""A sealed value begins with its format and the ID of its key, as hexadecimal digits for the server to read."""

MOST_WHOLE: Final = 2**53
"""The server's numbers are doubles: whole ones beyond this are no limit."""


def cannot_be_opened(user: str, reason: TokenReason) -> StoreUnavailable:
    return StoreUnavailable(f"the state of {user!r} cannot be opened: {reason.value}")


class Values:
    """Seals and opens the tokens of one pool; texts, for the server's script knows no bytes."""

    def __init__(self, ring: KeyRing, name: str) -> None:
        self._box = ring.box("pool-token", name, urandom)

    def seal(self, user: str, credentials: bytes, value: str) -> str:
        sealed = self._box.seal(value.encode("utf-8", "surrogatepass"), _context(user, credentials))
        return sealed[:PREFIX_BYTES].hex() + urlsafe_b64encode(sealed[PREFIX_BYTES:]).decode()

    def open(self, user: str, credentials: bytes, sealed: str) -> str:
        """Raises ``StoreUnavailable`` on what our keys did not seal for this pool, user and credentials."""
        try:
            digits = 2 * PREFIX_BYTES
            raw = bytes.fromhex(sealed[:digits]) + urlsafe_b64decode(sealed[digits:])
            return self._box.open(raw, _context(user, credentials)).decode("utf-8", "surrogatepass")
        except TokenRejected as rejection:
            raise cannot_be_opened(user, rejection.reason) from None
        except ValueError:
            raise cannot_be_opened(user, TokenReason.MALFORMED) from None

    def _shown(self, user: str, credentials: bytes, sealed: str) -> str:
        """What operators may look at; :data:`UNREADABLE` if its key is gone."""
        has_key = any(sealed.startswith(prefix.hex()) for prefix in self._box.prefixes())
        return self.open(user, credentials, sealed) if has_key else UNREADABLE

    def keys(self) -> str:
        """How values begin that we can open."""
        return " ".join(prefix.hex() for prefix in self._box.prefixes())

    def is_current(self, sealed: str) -> bool:
        """Whether the key that seals now has sealed it."""
        return sealed[: 2 * PREFIX_BYTES] == self._box.prefixes()[0].hex()

    def read(self, user: str, stored: bytes) -> UserState:
        """The state for looking at, its values opened as far as we have their keys. Raises ``StoreUnavailable``."""
        try:
            raw = msgspec.msgpack.decode(stored)
            tokens = [*raw["free"], *(lease["token"] for lease in raw["leases"] if lease.get("token"))]
            for sealed in [*tokens, *raw["closing"]]:
                sealed["value"] = self._shown(user, bytes.fromhex(sealed["sealed_for"]), sealed["value"])
            for named in [*tokens, *raw["leases"], *raw["tickets"], *raw["failing"]]:
                named["credentials"] = bytes.fromhex(named["credentials"])
            raw["proven"] = bytes.fromhex(raw["proven"])
            raw["tickets"] = [msgspec.structs.astuple(Ticket(**ticket)) for ticket in raw["tickets"]]
            for name in ("leases", "closing"):
                raw[name] = {slot["fence"]: {"token": None, **slot} for slot in raw[name]}
            if raw.get("limits"):
                raw["limits"] = [NO_LIMIT if limit >= MOST_WHOLE else limit for limit in raw["limits"]]
            return msgspec.convert(raw, UserState)
        except (msgspec.MsgspecError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError):
            raise StoreUnavailable(f"the state of {user!r} is not what a pool writes") from None

    def written(self, user: str, state: UserState) -> bytes:
        """The reverse of :meth:`read`."""
        raw: dict[str, Any] = msgspec.to_builtins(state, builtin_types=(bytes,))
        tokens = [*raw["free"], *(lease["token"] for lease in raw["leases"].values() if lease["token"])]
        for token in tokens:
            token["sealed_for"] = token["credentials"].hex()
            token["value"] = self.seal(user, token["credentials"], token["value"])
        for closing in raw["closing"].values():
            closing |= {"sealed_for": "", "value": self.seal(user, b"", closing["value"])}
        raw["tickets"] = [msgspec.structs.asdict(ticket) for ticket in state.tickets]
        for named in [*tokens, *raw["leases"].values(), *raw["tickets"], *raw["failing"]]:
            named["credentials"] = named["credentials"].hex()
        raw["proven"] = raw["proven"].hex()
        for name in ("leases", "closing"):
            raw[name] = [{"fence": fence, **slot} for fence, slot in raw[name].items()]
        if raw["limits"]:
            raw["limits"] = [min(limit, MOST_WHOLE) for limit in raw["limits"]]
        return msgspec.msgpack.encode(raw)


def _context(user: str, credentials: bytes) -> bytes:
    # No user has a NUL, so no two pairs are written alike.
    return user.encode() + b"\x00" + credentials
