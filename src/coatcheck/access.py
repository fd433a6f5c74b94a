"""What a web process must know to open its sessions."""

from __future__ import annotations

import msgspec

from coatcheck.hand_off.sites import Sites
from coatcheck.sessions.settings import SessionSettings
from coatcheck.stores.session_server_url import SessionServerAddress


class SessionAccess(msgspec.Struct, frozen=True, kw_only=True):
    """What one web process needs to open its sessions."""

    farm: str
    server: str
    """This web server's name, unique within the farm."""
    session_servers: tuple[SessionServerAddress, ...]
    """``coatcheck://:PASSWORD@HOST:PORT`` (embedded), ``redis://``, ``valkey://`` or ``sqlite:///FILE``."""
    keys: tuple[bytes, ...]
    """The key ring's secrets, 32 random bytes or more each. All are accepted."""
    primary_key: int = 0
    """The index of the key that seals."""
    settings: SessionSettings = SessionSettings()
    sites: Sites | None = None
    """Where the farm's pages live, if at more than one origin."""

    def __repr__(self) -> str:
        return f"SessionAccess(farm={self.farm!r}, server={self.server!r})"
