"""Which session of an identity provider a session of ours came from (OpenID Connect Core 1.0, section 2).

Pure data: flows that find sessions by it are in :mod:`coatcheck.sessions.provider_sessions`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import msgspec

MAX_CLAIM_BYTES: Final = 1024
"""Of ``iss``, ``sub`` and ``sid`` in UTF-8. OpenID Connect bounds ``sub`` at 255 characters, the others not at all."""


class ProviderName(msgspec.Struct, frozen=True, gc=False):
    """What an identity provider calls a session (``claim`` ``sid``), a user (``sub``) or a message."""

    issuer: str
    claim: str
    value: str

    def __repr__(self) -> str:
        return f"<ProviderName {self.claim} of {self.issuer!r}>"

    @property
    def is_session(self) -> bool:
        """Whether it is the name of one session, which begins once and ends once."""
        return self.claim == "sid"

    def clear(self) -> bytes:
        """What the key of its entry is made from; no two names have the same. No claim holds a NUL."""
        return "\x00".join((self.claim, self.issuer, self.value)).encode()


class ProviderLogin(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """The claims of the ID token of a login; ``since``: when it was linked to the session here (Unix ms)."""

    issuer: str
    sid: str = ""
    sub: str = ""
    since: int = 0

    def __repr__(self) -> str:
        return f"<ProviderLogin of {self.issuer!r}>"

    def names(self) -> list[ProviderName]:
        """The names under which it can be ended. A session that has no name of its own is found by its user's, too,
        where a provider names both."""
        pairs = (("sid", self.sid), ("sub", self.sub), ("sub without sid", "" if self.sid else self.sub))
        return [ProviderName(self.issuer, claim, value) for claim, value in pairs if value]


def is_claim(value: object) -> bool:
    """Whether it is text that can be kept: not empty, within :data:`MAX_CLAIM_BYTES`, without a NUL."""
    if not isinstance(value, str) or not value or "\x00" in value:
        return False
    try:
        return len(value.encode()) <= MAX_CLAIM_BYTES
    except UnicodeEncodeError:
        return False


def provider_session_of(claims: Mapping[str, Any]) -> ProviderLogin:
    """What is kept of the claims of an ID token: ``iss``, and of ``sid`` and ``sub`` those that are there.

    Raises :class:`ValueError` unless there is an ``iss`` and one of the others, each text of at most
    :data:`MAX_CLAIM_BYTES`.
    """
    if not isinstance(claims, Mapping):
        raise ValueError("id_token: the claims of the ID token, as a dict; verify it and decode it first")
    found = {name: claims[name] for name in ("iss", "sid", "sub") if claims.get(name) is not None}
    for name, value in found.items():
        if not is_claim(value):
            raise ValueError(f"id_token: {name} is text of 1 to {MAX_CLAIM_BYTES} bytes")
    if "iss" not in found or len(found) == 1:
        raise ValueError("id_token: iss is needed, and sid or sub; these are no claims of an ID token")
    return ProviderLogin(found["iss"], found.get("sid", ""), found.get("sub", ""))
