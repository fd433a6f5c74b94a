"""What one server of the provider is told when it starts."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final

from coatcheck.errors import ConfigError
from coatcheck.soap_provider.misbehaviour import Misbehaviour

ANY_USER: Final = "*"
MAX_USERS: Final = 10_000
MAX_CREDENTIAL_CHARS: Final = 200
MIN_KEY_BYTES: Final = 32
MAX_LIFE_S: Final = 365 * 86_400.0


@dataclass(frozen=True, slots=True)
class ProviderOptions:
    """``users``: name to password; the name ``*`` stands for any user.

    ``server``: this server's name; stateful sessions are tied to it. ``key``: the secret that seals tokens, the
    same on all servers. ``token_timeout_s``: a token that is older is refused. ``idle_s``: a session without
    requests is closed. ``single_use``: only the newest token of a session is accepted. ``seed``: of the
    misbehaviour; ``None`` draws one.
    """

    users: dict[str, str] = field(default_factory=lambda: {"SADMIN": "SADMIN"}, repr=False)
    server: str = "s1"
    key: bytes | None = field(default=None, repr=False)
    token_timeout_s: float = 900.0
    idle_s: float = 300.0
    single_use: bool = False
    misbehaviour: Misbehaviour = field(default_factory=Misbehaviour)
    seed: int | None = None

    def __post_init__(self) -> None:
        if not 1 <= len(self.users) <= MAX_USERS:
            raise ConfigError(f"users: 1 to {MAX_USERS}, not {len(self.users)}")
        for username, password in self.users.items():
            if not 1 <= len(username) <= MAX_CREDENTIAL_CHARS or len(password) > MAX_CREDENTIAL_CHARS:
                raise ConfigError(f"users: a name and a password of at most {MAX_CREDENTIAL_CHARS} characters")
        if self.key is not None and len(self.key) < MIN_KEY_BYTES:
            raise ConfigError(f"key: at least {MIN_KEY_BYTES} bytes")
        if not 1 <= len(self.server) <= 100:
            raise ConfigError("server: a name of 1 to 100 characters")
        for name in ("token_timeout_s", "idle_s"):
            if not 0 < getattr(self, name) <= MAX_LIFE_S:
                raise ConfigError(f"{name}: more than 0 and at most {MAX_LIFE_S:g} seconds, not {getattr(self, name)}")
        self.misbehaviour.checked()
