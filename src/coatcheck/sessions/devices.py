"""What a user may see of his own sessions, and who can say it (ASVS 7.5.2)."""

from __future__ import annotations

from typing import Any, Protocol

import msgspec

from coatcheck.sessions.ending import SessionEnd


class SessionHome(Protocol):
    """Who can say more of a session than what it holds; each answers for the session that a request state is of."""

    async def ended(self, request: Any) -> SessionEnd:
        """Wait for its end."""

    async def devices(self, request: Any) -> list[Device]:
        """The sessions of its user."""

    async def close_device(self, request: Any, public: str) -> bool:
        """Close one of them."""

    async def close_other_devices(self, request: Any) -> int:
        """Close all but this one."""


class Device(msgspec.Struct, frozen=True):
    """One of a user's sessions, as the user may see it. Times are Unix ms.

    ``device``: what the browser said it was at the login, its User-Agent, shortened; ``address``: whence it came then.
    ``current``: whether it is the session of this very request.
    """

    id: str
    current: bool
    device: str
    address: str
    logged_in_at: int
    last_seen_at: int
