"""The name of a lease outside the process: its user and its fencing number, so that any instance can end it."""

from __future__ import annotations

from binascii import Error as BinasciiError
from binascii import a2b_base64, b2a_base64
from typing import Final, NamedTuple

from coatcheck.pool.masking import MAX_USER_CHARS

MAX_LEASE_ID_CHARS: Final = 6 * MAX_USER_CHARS
MAX_FENCING: Final = 2**63


class LeaseName(NamedTuple):
    """Whose lease, and which."""

    user: str
    fencing: int


def format_lease_id(user: str, fencing: int) -> str:
    """``<fencing>.<user in base64url>``: safe in a path."""
    text = b2a_base64(user.encode(), newline=False).rstrip(b"=").replace(b"+", b"-").replace(b"/", b"_")
    return f"{fencing}.{text.decode()}"


def parse_lease_id(text: str) -> LeaseName | None:
    """The reverse; ``None`` for anything else."""
    number, dot, encoded = text.partition(".")
    if not dot or len(text) > MAX_LEASE_ID_CHARS or not text.isascii() or not number.isdecimal() or len(number) > 19:
        return None
    try:
        padded = encoded.replace("-", "+").replace("_", "/") + "=" * (-len(encoded) % 4)
        user = a2b_base64(padded, strict_mode=True).decode()
    except (BinasciiError, UnicodeDecodeError):
        return None
    name = LeaseName(user, int(number))
    # One lease has one name: other spellings of it are refused.
    if not 0 < name.fencing < MAX_FENCING or not user or format_lease_id(*name) != text:
        return None
    return name
