"""How long a session of the provider lives, as the client asks for it in a SOAP header (mission D8)."""

from __future__ import annotations

from enum import Enum

from coatcheck.pool.soap.faults import FaultReason, SoapFault

MAX_SHOWN = 40
"""Characters of a wrong value that its fault repeats."""


class SessionType(Enum):
    """The four session types; the values are what the header holds."""

    NONE = "None"
    """A session for each request, closed after the response."""
    STATELESS = "Stateless"
    """Stays open; a fresh token with every response; logged in again by itself when it was closed."""
    STATEFUL = "Stateful"
    """Stays open, tied to its server; when it was closed, a fault tells the client to log in."""
    SERVER_DETERMINE = "ServerDetermine"
    """Stateless as long as the session holds nothing, stateful while it holds uncommitted changes."""


_BY_NAME = {kind.value.lower(): kind for kind in SessionType}


def parse_session_type(text: str | None) -> SessionType:
    """The type that a header names, in any case; absent or empty means none.

    Raises:
        SoapFault: it names no session type.
    """
    if text is None or not text.strip():
        return SessionType.NONE
    kind = _BY_NAME.get(text.strip().lower())
    if kind is None:
        names = ", ".join(kind.value for kind in SessionType)
        shown = text.strip()[:MAX_SHOWN]
        raise SoapFault(FaultReason.BAD_SESSION_TYPE, f"SessionType {shown!r} is none of {names}")
    return kind
